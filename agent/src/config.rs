//! `/etc/eastwall/agent.yaml`: what a human wrote -> settings that make sense.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{datapath::boot_guard, policy::resolvers::Resolvers};

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/eastwall/agent.yaml";

/// Settings of the agent. Every field has a default; an empty file is valid.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Trust domain, if no policy document names it.
    pub trust_domain: Option<String>,
    /// Name of this host in selectors and derived names; else the kernel's.
    pub host: Option<String>,
    /// Fleet or cluster, for events.
    pub tenant: Option<String>,
    /// Cgroup to guard, from the root of the hierarchy; `/` is the whole host.
    pub scope: String,
    /// Directory of the pins, on bpffs.
    pub pin_directory: PathBuf,
    /// The control socket.
    pub control_socket: PathBuf,
    /// Policy documents.
    pub policy_directory: PathBuf,
    /// What must survive a restart.
    pub state_directory: PathBuf,
    /// Events: a file, or `-` for the standard output.
    pub events_file: PathBuf,
    /// Whether connect and sendmsg refuse early; the packet hooks judge in either case.
    pub fast_refusal: bool,
    /// Whether devices of workloads with a network of their own are guarded.
    pub guard_devices: bool,
    /// Whether what processes of the host's own network send past their sockets is judged; if it is not said, that is so
    /// where the whole host is guarded.
    pub guard_host: Option<bool>,
    /// Whether devices are guarded by TCX where the kernel has it; else it is by filters of `clsact`.
    pub tcx: bool,
    /// Cgroups that `eastwall boot-guard` keeps silent until a policy is in force, by path from the root of the hierarchy.
    pub boot_guard: Vec<String>,
    /// Whether the built-in `dns` is on: every workload may ask the resolvers, udp and tcp 53.
    pub dns: bool,
    /// The resolvers; else those of `resolv_conf`.
    pub dns_resolvers: Option<Resolvers>,
    /// The host's list of resolvers, in the form of resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// Workloads of other hosts, by address; none if there is no file.
    pub peers_file: Option<PathBuf>,
    /// Whether the kernel programs say what they do, in the agent's log; for whoever works on them.
    pub kernel_log: bool,
    /// Group that may read from the control socket.
    pub group: String,
    /// Events one workload may write at once before they are folded into a number.
    pub event_burst: u32,
    /// The same, a second.
    pub event_per_second: u32,
    /// Entries of the flow table that one cgroup may hold.
    pub flow_quota: u32,
    /// Sizes of the maps.
    pub capacity: CapacityFile,
}

/// Sizes of the maps.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CapacityFile {
    /// Edges.
    pub edges: u32,
    /// Cgroups.
    pub cgroups: u32,
    /// Entries of the flow table.
    pub flows: u32,
}

impl Default for CapacityFile {
    fn default() -> Self {
        Self { edges: 1 << 20, cgroups: 1 << 16, flows: 1 << 16 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            trust_domain: None,
            host: None,
            tenant: None,
            scope: "/".to_owned(),
            pin_directory: "/sys/fs/bpf/eastwall".into(),
            control_socket: "/run/eastwall/agent.sock".into(),
            policy_directory: "/etc/eastwall/policy.d".into(),
            state_directory: "/var/lib/eastwall".into(),
            events_file: "/var/log/eastwall/events.ndjson".into(),
            fast_refusal: true,
            guard_devices: true,
            guard_host: None,
            tcx: true,
            boot_guard: Vec::new(),
            dns: true,
            dns_resolvers: None,
            resolv_conf: "/etc/resolv.conf".into(),
            peers_file: None,
            kernel_log: false,
            group: "eastwall".to_owned(),
            event_burst: 100,
            event_per_second: 20,
            flow_quota: 8_192,
            capacity: CapacityFile::default(),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The file cannot be read.
    #[error("read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no YAML, or has a field that does not exist.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1; 0 = nobody knows.
        line: u64,
        /// From 1, in characters.
        column: u64,
        /// What.
        message: String,
    },
    /// A value makes no sense.
    #[error("`{}`: `{field}` {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Its field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Config {
    /// Reads the settings. A file that is not there is an error only if `must_exist`.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`], naming the file and the field.
    pub fn read(path: &Path, must_exist: bool) -> Result<Self, InvalidConfig> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(Self::default()),
            Err(source) => return Err(InvalidConfig::Read { path: path.to_owned(), source }),
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let options = serde_saphyr::options! { with_snippet: false };
        let config: Self = serde_saphyr::from_str_with_options(&text, options).map_err(|e| {
            let (line, column) = e.location().map_or((0, 0), |at| (at.line(), at.column()));
            InvalidConfig::Parse { path: path.to_owned(), line, column, message: message(&e.to_string()) }
        })?;
        config.checked(path)
    }

    fn checked(self, path: &Path) -> Result<Self, InvalidConfig> {
        let wrong = |field, problem| Err(InvalidConfig::Value { path: path.to_owned(), field, problem });
        if !self.scope.starts_with('/') || (self.scope.len() > 1 && self.scope.ends_with('/')) {
            return wrong("scope", "must be a cgroup path that begins with `/` and does not end with one");
        }
        if self.guard_host == Some(true) && !self.guard_devices {
            return wrong("guardHost", "needs `guardDevices`, which is off");
        }
        for cgroup in &self.boot_guard {
            if let Some(problem) = boot_guard::unfit(cgroup) {
                return wrong("bootGuard", problem);
            }
            let below = cgroup.strip_prefix(self.scope.trim_end_matches('/'));
            if !below.is_some_and(|below| below.is_empty() || below.starts_with('/')) {
                return wrong("bootGuard", "must name cgroups that `scope` covers");
            }
        }
        if self.boot_guard.len() > boot_guard::CGROUPS_MAX {
            return wrong("bootGuard", "must not name more than 256 cgroups; name one above them");
        }
        if self.event_burst == 0 {
            return wrong("eventBurst", "must be at least 1, or no denial would ever be shown");
        }
        for (field, n) in [("capacity.edges", self.capacity.edges), ("capacity.cgroups", self.capacity.cgroups)] {
            if n == 0 {
                return wrong(field, "must be at least 1");
            }
        }
        Ok(self)
    }

    /// Says whether what processes of the host's own network send past their sockets is judged.
    #[must_use]
    pub fn guards_host(&self) -> bool {
        self.guard_devices && self.guard_host.unwrap_or(self.scope == "/")
    }

    /// The directory of the control socket, which also holds the lock and the sequence.
    #[must_use]
    pub fn run_directory(&self) -> &Path {
        self.control_socket.parent().unwrap_or(Path::new("/run/eastwall"))
    }
}

/// What the parser says, without the place and without the list of all fields if one of them is near.
fn message(said: &str) -> String {
    let said = said.rsplit_once(" at line ").map_or(said, |(before, _)| before);
    let Some((what, fields)) = said.split_once(", expected one of ") else { return said.to_owned() };
    let written = what.split('`').nth(1).unwrap_or_default();
    let fields = fields.split(", ").map(|field| field.trim_matches('`'));
    let near = fields.map(|field| (strsim::damerau_levenshtein(written, field), field)).min();
    match near {
        Some((distance, field)) if distance <= 3 => format!("{what}; did you mean `{field}`?"),
        _ => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "fastRefusal: true\nscopee: /x\n").unwrap();
        let error = Config::read(file.path(), true).unwrap_err().to_string();
        assert!(error.ends_with(":2:1: unknown field `scopee`; did you mean `scope`?"), "{error}");
        fs::write(file.path(), "nothingLikeIt: 1\n").unwrap();
        let error = Config::read(file.path(), true).unwrap_err().to_string();
        assert!(error.contains("unknown field `nothingLikeIt`, expected one of"), "{error}");
        fs::write(file.path(), "scope: x\n").unwrap();
        assert!(Config::read(file.path(), true).unwrap_err().to_string().contains("`scope` must be"));
        fs::write(file.path(), "fastRefusal: false\n").unwrap();
        assert!(!Config::read(file.path(), true).unwrap().fast_refusal);
    }

    #[test]
    fn resolvers_are_addresses_and_an_error_names_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            fs::write(file.path(), text).unwrap();
            Config::read(file.path(), true)
        };
        let config = read("dns: true\ndnsResolvers: [127.0.0.53, \"fd00::53\"]\n").unwrap();
        assert_eq!(config.dns_resolvers.unwrap().to_string(), "127.0.0.53, fd00::53");
        let many = format!(
            "host: h\ndnsResolvers: [{}]\n",
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|a| [a; 3].join(", ")).join(", ")
        );
        assert_eq!(read(&many).unwrap().dns_resolvers.unwrap().addresses().len(), 3, "none twice");
        let nine: Vec<String> = (1..=9).map(|n| format!("10.0.0.{n}")).collect();
        for (wrong, why) in [
            ("[10.0.0.x]", "invalid IP address syntax"),
            ("[0.0.0.0]", "`0.0.0.0` is no address of a resolver"),
            ("[]", "an empty list names no resolver"),
            (&format!("[{}]", nine.join(", ")), "9 resolvers, and 8 are the most"),
        ] {
            let error = read(&format!("host: h\ndnsResolvers: {wrong}\n")).unwrap_err().to_string();
            assert!(error.contains(":2:") && error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_packaged_file_says_the_defaults() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/agent.yaml");
        assert_eq!(Config::read(&file, true).unwrap(), Config::default());
    }
}
