//! The cgroups of the demo: made below the root of the hierarchy, and removed with what runs in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::setup::machine;

/// How long killed processes may take to leave.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// Returns where the cgroup2 hierarchy is mounted.
///
/// # Errors
///
/// It is not.
pub fn mount() -> Result<PathBuf> {
    let mounts = machine::mounts("cgroup2")?;
    mounts.into_iter().next().map(PathBuf::from).context("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Returns `program` so that it runs in the cgroup `dir` from its first instruction.
///
/// The shell moves itself and then becomes the program: sockets get the cgroup that their maker is in.
pub fn command(dir: &Path, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo 0 > \"$1/cgroup.procs\" && shift && exec \"$@\"", "sh"]);
    command.arg(dir).arg(program);
    command
}

/// Kills what runs in the cgroup and below, and removes it. One that is gone already is fine.
///
/// # Errors
///
/// What the kernel says.
pub fn remove(dir: &Path) -> Result<()> {
    let end = Instant::now() + LEAVE_MAX;
    while dir.exists() {
        // Kills everything below at once, also what forks meanwhile; Linux 5.14.
        fs::write(dir.join("cgroup.kill"), "1").with_context(|| format!("kill what runs in {}", dir.display()))?;
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            // Killed processes have yet to leave.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(e).with_context(|| format!("remove the cgroup {}", dir.display())),
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
