//! Cgroups that remove themselves, with all that runs in them.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use eastwall::sources::cgroup::Hierarchy;
use rustix::{
    fs::{Mode, OFlags, open},
    process::{Pid, Signal, kill_process},
};

const LAB_PREFIX: &str = "eastwall-lab-";

/// How long killed processes may take to leave. They are waited for, so this is no delay.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// A cgroup of the lab. Dropping it kills what runs in it and below, and removes all of it.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    path: String,
    fd: OwnedFd,
    id: u64,
}

impl Cgroup {
    /// Makes the cgroup of a lab, below the root of the hierarchy.
    pub(super) fn of_lab() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let hierarchy = Hierarchy::find()?;
        remove_orphans(hierarchy.mount());
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{LAB_PREFIX}{}-{n}", std::process::id());
        Self::make(hierarchy.mount().join(&name), format!("/{name}"))
    }

    /// Makes a cgroup below this one. `name` may have several segments.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, there is one of that name, or `name` leads out of this cgroup.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        assert!(!name.starts_with('/') && !name.contains(".."), "`{name}` leads out of the lab");
        Self::make(self.dir.join(name), format!("{}/{name}", self.path)).expect("make a cgroup")
    }

    fn make(dir: PathBuf, path: String) -> anyhow::Result<Self> {
        if let Some(above) = dir.parent() {
            fs::create_dir_all(above).with_context(|| format!("make what is above cgroup {path}"))?;
        }
        // One that exists has another owner, who removes it when it likes.
        fs::create_dir(&dir).with_context(|| format!("make cgroup {path}"))?;
        let fd = open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let id = fs::metadata(&dir)?.ino();
        Ok(Self { dir, path, fd, id })
    }

    /// Its path from the root of the hierarchy.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its id: the inode of its directory.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The processes in it, not below it.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        processes(&self.dir).expect("list the processes of a cgroup")
    }

    /// Writes one of the cgroup's files, such as `cgroup.type`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(file), text)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            // A panic here would hide the failure that led to this place.
            eprintln!("cgroup {} is left behind: {error:#}", self.path);
        }
    }
}

/// Kills what runs in a cgroup and below, and removes it. One that is gone already is fine.
fn remove(dir: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + LEAVE_MAX;
    loop {
        if !dir.exists() {
            return Ok(());
        }
        kill(dir)?;
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            // Killed processes have yet to leave.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e).context("remove its directory"),
        }
    }
}

fn kill(dir: &Path) -> anyhow::Result<()> {
    // Kills everything below at once, also what forks meanwhile; Linux 5.14.
    match fs::write(dir.join("cgroup.kill"), "1") {
        Ok(()) => return Ok(()),
        // A threaded one has no processes of its own, only threads of those around it.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context("kill its processes"),
    }
    for child in children(dir)? {
        kill(&child)?;
    }
    for pid in processes(dir).unwrap_or_default() {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir)? {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

fn processes(dir: &Path) -> io::Result<Vec<i32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Removes the labs of test runs that were killed: their name tells the process, and it is gone.
fn remove_orphans(mount: &Path) {
    for dir in children(mount).unwrap_or_default() {
        let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let owner = name.strip_prefix(LAB_PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
            && let Err(error) = remove(&dir)
        {
            eprintln!("cgroup {name} of an earlier run is left behind: {error:#}");
        }
    }
}
