//! Pins on bpffs, owned like a database: one directory of ours, 0700, a lock, the layout version in
//! the path.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use agent_common::layout::LAYOUT_VERSION;

use super::kernel::devices::remove_filter;

/// Where the kernel objects of one agent are pinned.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Held as long as the agent lives.
    _lock: Option<File>,
}

/// Why the pins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// An operation on the directory.
    #[error("{verb} `{}`", .path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not on bpffs.
    #[error("`{}` is not on a bpf file system; mount one: `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NotBpffs(PathBuf),
    /// Somebody else's, or a symlink.
    #[error("`{}` is not a directory of root with mode 0700; remove it if it is not in use", .0.display())]
    NotOurs(PathBuf),
    /// Another agent runs.
    #[error("another agent holds the pins in `{}`; stop it first", .0.display())]
    Locked(PathBuf),
}

impl Pins {
    /// Makes or checks `directory` and takes its lock; the lock file is in `run_directory`, since
    /// bpffs has no ordinary files.
    ///
    /// # Errors
    ///
    /// [`PinsError`]; nothing of a foreign directory is changed.
    pub fn open(directory: &Path, run_directory: &Path) -> Result<Self, PinsError> {
        let parent = directory.parent().unwrap_or(Path::new("/"));
        if !is_bpffs(parent)? {
            return Err(PinsError::NotBpffs(parent.to_owned()));
        }
        let versioned = directory.join(format!("v{LAYOUT_VERSION}"));
        for dir in [directory, &versioned, &versioned.join("maps"), &versioned.join("links")] {
            make(dir)?;
        }
        let lock_path = run_directory.join("pins.lock");
        let io = |verb, source| PinsError::Io { verb, path: lock_path.clone(), source };
        let lock =
            File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(|e| io("open", e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory: versioned, _lock: Some(lock) }),
            Err(fs::TryLockError::WouldBlock) => Err(PinsError::Locked(directory.to_owned())),
            Err(fs::TryLockError::Error(e)) => Err(io("lock", e)),
        }
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    /// Where a link is pinned.
    #[must_use]
    pub fn link(&self, program: &str) -> PathBuf {
        self.directory.join("links").join(program)
    }

    /// Removes every pin under `directory`, links first, so that no program runs on missing maps. What is attached
    /// without a link is taken off as well; that is looked for in the network namespace of the calling thread.
    /// Returns how many links there were.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`] with the first path that could not be removed.
    pub fn remove_all(directory: &Path) -> Result<usize, PinsError> {
        let mut links = 0;
        for version in list(directory)? {
            for (kind, counts) in [("links", true), ("maps", false)] {
                let dir = version.join(kind);
                for pin in list(&dir)? {
                    if let Some(name) = pin.file_name().and_then(|name| name.to_str()).filter(|_| counts) {
                        let failed = |source| PinsError::Io { verb: "detach", path: pin.clone(), source };
                        remove_filter(name).map_err(failed)?;
                    }
                    fs::remove_file(&pin).map_err(|source| PinsError::Io { verb: "remove", path: pin, source })?;
                    links += usize::from(counts);
                }
                remove_dir(&dir)?;
            }
            remove_dir(&version)?;
        }
        remove_dir(directory)?;
        Ok(links)
    }
}

fn make(path: &Path) -> Result<(), PinsError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(PinsError::Io { verb: "make", path: path.to_owned(), source }),
    }
    let meta = fs::symlink_metadata(path).map_err(|source| PinsError::Io {
        verb: "look at",
        path: path.to_owned(),
        source,
    })?;
    if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o077 != 0 {
        return Err(PinsError::NotOurs(path.to_owned()));
    }
    Ok(())
}

fn list(path: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let failed = |source| PinsError::Io { verb: "list", path: path.to_owned(), source };
    match fs::read_dir(path) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path()).map_err(failed)).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(e)),
    }
}

fn remove_dir(path: &Path) -> Result<(), PinsError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PinsError::Io { verb: "remove", path: path.to_owned(), source }),
    }
}

/// Magic number of bpffs: `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

fn is_bpffs(path: &Path) -> Result<bool, PinsError> {
    let stat = rustix::fs::statfs(path).map_err(|e| PinsError::Io {
        verb: "look at",
        path: path.to_owned(),
        source: e.into(),
    })?;
    #[allow(clippy::unnecessary_cast, reason = "the type of the field differs between machines")]
    Ok(stat.f_type as i64 == BPF_FS_MAGIC)
}
