//! Who may import whom: the never list of `docs/ARCHITECTURE.md` as a table.

use anyhow::Result;

use super::{
    Violation,
    paths::{CodePath, paths},
};

/// Code in `folders` never names a path that begins or ends in one of `forbidden`.
struct Rule {
    /// Folders and files, from the root of the checkout.
    folders: &'static [&'static str],
    /// Files and folders in them for which the rule does not hold.
    except: &'static [&'static str],
    /// Paths; a single name is a crate, a keyword or, with `!`, a macro.
    forbidden: &'static [&'static str],
    /// Printed when the rule is broken.
    reason: &'static str,
}

const PURE: &[&str] = &["agent/src/policy", "agent/src/identity", "agent/src/reconcile"];

const RULES: &[Rule] = &[
    Rule {
        folders: &["agent-common/src"],
        except: &[],
        forbidden: &["std", "alloc", "tokio", "tracing", "log"],
        reason: "agent-common is compiled into the kernel programs: no std, no alloc, no clock, no log",
    },
    Rule {
        folders: &["agent-common/src"],
        except: &["agent-common/src/pod.rs"],
        forbidden: &["aya", "unsafe"],
        reason: "only the Pod module of agent-common has aya and unsafe code: the rest is proved by its types",
    },
    Rule {
        folders: PURE,
        except: &[],
        forbidden: &[
            "std::fs",
            "std::env",
            "std::process",
            "std::os",
            "std::thread",
            "std::net::TcpStream",
            "std::net::TcpListener",
            "std::net::UdpSocket",
            "std::net::ToSocketAddrs",
            "std::io::stdin",
            "std::io::stdout",
            "std::io::stderr",
            "tokio",
            "rustix",
            "libc",
            "nix",
        ],
        reason: "policy, identity and reconcile are pure: what they return depends on their arguments alone, so that \
                 tests, explain and the fuzz targets run the same lines as the agent",
    },
    Rule {
        folders: PURE,
        except: &[],
        forbidden: &["SystemTime::now", "Instant::now", "crate::clock"],
        reason: "a pure room never reads a clock: the time is an argument",
    },
    Rule {
        folders: PURE,
        except: &[],
        forbidden: &["tracing", "log", "println!", "eprintln!", "print!", "eprint!"],
        reason: "a pure room never logs: it returns what there is to say, and its caller decides who hears it",
    },
    Rule {
        folders: &["agent/src"],
        except: &["agent/src/datapath"],
        forbidden: &["aya", "aya_obj", "aya_log"],
        reason: "only datapath imports aya: everything above it is tested without a kernel",
    },
    Rule {
        folders: &["agent/src/events", "agent/src/sinks", "agent/src/alerts.rs"],
        except: &[],
        forbidden: &["crate::datapath", "crate::reconcile", "crate::policy"],
        reason: "events come up and policy goes down, and the two flows never meet: no rule or map is seen here",
    },
    Rule {
        folders: &["agent/src/sources"],
        except: &[],
        forbidden: &["crate::datapath", "crate::reconcile", "crate::sinks"],
        reason: "a source reports what is; what it means is decided in the pure rooms",
    },
    Rule {
        folders: &["agent/src/datapath"],
        except: &[],
        forbidden: &["crate::sources", "crate::sinks", "crate::control", "crate::cli"],
        reason: "datapath writes what it is told to; who asked for it is not its business",
    },
    Rule {
        folders: &["agent/src"],
        except: &["agent/src/main.rs", "agent/src/cli"],
        forbidden: &["std::process::exit", "process::exit", "println!", "print!"],
        reason: "only main.rs and cli print or exit: a library that does cannot be tested or embedded",
    },
    Rule {
        folders: &["agent/src"],
        except: &["agent/src/clock.rs"],
        forbidden: &["SystemTime::now", "rustix::time::clock_gettime", "libc::clock_gettime"],
        reason: "only clock.rs reads the time of day: everything else is given it, and is tested with any",
    },
    Rule {
        folders: &["agent/src/cli", "agent/src/control"],
        // `detach` is the deliberate way out and the boot guard stands before the way in: both are for when no agent runs.
        except: &["agent/src/cli/daemon.rs", "agent/src/cli/boot_guard.rs"],
        forbidden: &["crate::datapath"],
        reason: "the reconcile thread alone opens maps, links and pins: two writers would each undo the other",
    },
    Rule {
        folders: &["xtask/src"],
        except: &[],
        forbidden: &["eastwall", "agent_common", "agent_ebpf"],
        reason: "xtask imports nothing of ours, or it could not check and build what does not compile",
    },
];

/// Adds to `found` every path of `text` that the table forbids in the file `name`.
///
/// # Errors
///
/// `text` is not Rust.
pub fn check(name: &str, text: &str, found: &mut Vec<Violation>) -> Result<()> {
    // Modules that are compiled for tests alone.
    if name.ends_with("/tests.rs") || name.contains("/tests/") {
        return Ok(());
    }
    let rules: Vec<&Rule> = RULES.iter().filter(|rule| rule.holds_for(name)).collect();
    if rules.is_empty() {
        return Ok(());
    }
    for path in paths(text)? {
        for rule in &rules {
            if let Some(forbidden) = rule.forbidden.iter().find(|forbidden| matches(forbidden, &path)) {
                found.push(Violation {
                    file: name.to_owned(),
                    line: path.line,
                    what: format!("`{}` ({forbidden})", path.segments.join("::")),
                    reason: rule.reason,
                });
            }
        }
    }
    Ok(())
}

impl Rule {
    fn holds_for(&self, name: &str) -> bool {
        let is_in =
            |place: &&str| name.strip_prefix(*place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.folders.iter().any(is_in) && !self.except.iter().any(is_in)
    }
}

/// Says whether `path` begins with the parts of `forbidden` or, if they are more than one, ends in them:
/// `SystemTime::now` is found behind whatever it was imported as part of.
fn matches(forbidden: &str, path: &CodePath) -> bool {
    let parts: Vec<&str> = forbidden.split("::").collect();
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    segments.starts_with(&parts) || (parts.len() > 1 && segments.ends_with(&parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str, text: &str) -> usize {
        let mut found = Vec::new();
        check(name, text, &mut found).unwrap();
        found.len()
    }

    #[test]
    fn a_pure_room_that_reads_a_file_or_a_clock_is_found() {
        assert_eq!(count("agent/src/policy/load.rs", "use std::{fs, net::IpAddr};"), 1);
        assert_eq!(count("agent/src/policy/load.rs", "use std::net::IpAddr;"), 0);
        assert!(count("agent/src/policy/load.rs", "fn f() { std::time::SystemTime::now(); }") > 0);
        assert_eq!(count("agent/src/policy/load.rs", "fn f(now: SystemTime) {}"), 0);
        assert_eq!(count("agent/src/sources/policy_dir.rs", "use std::fs;"), 0);
    }

    #[test]
    fn the_time_of_day_is_read_in_one_place() {
        let code = "use std::time::SystemTime; fn f() { SystemTime::now(); }";
        assert_eq!(count("agent/src/agent.rs", code), 1);
        assert_eq!(count("agent/src/clock.rs", code), 0);
    }

    #[test]
    fn aya_is_found_everywhere_but_in_datapath() {
        assert_eq!(count("agent/src/agent.rs", "use aya::maps::HashMap;"), 1);
        assert_eq!(count("agent/src/datapath/kernel/mod.rs", "use aya::maps::HashMap;"), 0);
        assert_eq!(count("agent/src/datapath_extra.rs", "use aya::maps::HashMap;"), 1);
        assert_eq!(count("agent-common/src/pod.rs", "unsafe impl aya::Pod for X {}"), 0);
        assert_eq!(count("agent-common/src/flow.rs", "unsafe impl aya::Pod for X {}"), 2);
    }

    #[test]
    fn tests_may_do_what_the_code_they_test_must_not() {
        assert_eq!(count("agent/src/policy/load.rs", "#[cfg(test)] mod tests { use std::fs; }"), 0);
        assert_eq!(count("agent/src/policy/load/tests.rs", "use std::fs;"), 0);
    }
}
