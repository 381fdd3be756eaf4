//! What `/proc` says about the acting process of a denial, if it still lives.

use std::{fs, os::unix::ffi::OsStringExt as _, path::Path};

/// What the kernel's record does not carry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessDetails {
    /// Path of its program: foreign bytes.
    pub exe: Vec<u8>,
    /// Its start, boot clock.
    pub start_boot_ns: u64,
}

/// `USER_HZ`: the unit of times in `/proc`, part of the kernel's interface on x86-64 and arm64.
const TICKS_PER_SECOND: u64 = 100;
const NS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

/// Returns the details of a process, or `None` if it is gone or its number belongs to another one.
///
/// `stamp_ns` is the boot time of the denial: a process that began later cannot have caused it.
#[must_use]
pub fn look_up(proc_root: &Path, pid: u32, stamp_ns: u64) -> Option<ProcessDetails> {
    let folder = proc_root.join(pid.to_string());
    let before = start_ns(&folder)?;
    let exe = fs::read_link(folder.join("exe")).ok()?.into_os_string().into_vec();
    // Read again: between the two the number may have been given to another process.
    let after = start_ns(&folder)?;
    // The start is rounded down to a tick, so a true cause is never younger than its denial.
    (before == after && before <= stamp_ns).then_some(ProcessDetails { exe, start_boot_ns: before })
}

/// Source: proc_pid_stat(5), field 22. The name in field 2 may hold spaces and brackets: what
/// follows is counted from the last bracket.
fn start_ns(folder: &Path) -> Option<u64> {
    const FIELDS_AFTER_NAME: usize = 22 - 3;
    let stat = fs::read(folder.join("stat")).ok()?;
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?;
    let ticks: u64 = rest.split_ascii_whitespace().nth(FIELDS_AFTER_NAME)?.parse().ok()?;
    ticks.checked_mul(NS_PER_TICK)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn fake(stat: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("7");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("stat"), stat).unwrap();
        symlink("/usr/bin/python3.11", folder.join("exe")).unwrap();
        root
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_start() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 912 1 1";
        let root = fake(&format!("7 (a) b) (c) {rest}"));
        let details = look_up(root.path(), 7, u64::MAX).unwrap();
        assert_eq!(details.start_boot_ns, 9_120_000_000);
        assert_eq!(details.exe, b"/usr/bin/python3.11");
    }

    #[test]
    fn a_process_younger_than_the_denial_is_another_process() {
        let root = fake("7 (x) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 912 1 1");
        assert!(look_up(root.path(), 7, 9_120_000_000).is_some());
        assert!(look_up(root.path(), 7, 9_119_999_999).is_none());
        assert!(look_up(root.path(), 8, u64::MAX).is_none(), "gone");
    }

    #[test]
    fn a_live_process_is_found() {
        let details = look_up(Path::new("/proc"), std::process::id(), u64::MAX).unwrap();
        assert!(details.exe.starts_with(b"/"));
    }
}
