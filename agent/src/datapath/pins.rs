//! Pins on bpffs, owned like a database: one directory of ours, 0700, a lock, the layout version in
//! the path.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use agent_common::layout::{LAYOUT_VERSION, STATE_SINCE};
use rustix::mount::{MountFlags, mount};

use super::{clsact, sys};

/// Where the kernel objects of one agent are pinned.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Where the bpffs is mounted.
    mount: PathBuf,
    /// Held as long as the agent lives.
    #[expect(dead_code, reason = "it is held, and never looked at")]
    lock: Option<File>,
}

/// How the directories of the pins stand: another one means that a pin came or went. Device, inode, and the time of the
/// last change in seconds and nanoseconds.
pub type State = [(u64, u64, i64, i64); 2];

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
        let mut mount = parent_on_bpffs(directory)?;
        while let Some(above) = mount.parent()
            && is_bpffs(above)?
        {
            mount = above;
        }
        let pins =
            Self { directory: directory.join(format!("v{LAYOUT_VERSION}")), mount: mount.to_owned(), lock: None };
        pins.make_directories()?;
        let lock_path = run_directory.join("pins.lock");
        let io = |verb, source| PinsError::Io { verb, path: lock_path.clone(), source };
        let lock =
            File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(|e| io("open", e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { lock: Some(lock), ..pins }),
            Err(fs::TryLockError::WouldBlock) => Err(PinsError::Locked(directory.to_owned())),
            Err(fs::TryLockError::Error(e)) => Err(io("lock", e)),
        }
    }

    /// Makes or checks a directory of pins that are no agent's.
    ///
    /// # Errors
    ///
    /// [`PinsError`]; nothing of a foreign directory is changed.
    pub fn make_apart(directory: &Path) -> Result<(), PinsError> {
        parent_on_bpffs(directory)?;
        make(directory)
    }

    /// Says whether programs of an agent, of whatever version, are pinned under `directory`.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`].
    pub fn has_links(directory: &Path) -> Result<bool, PinsError> {
        for version in list(directory)? {
            if !list(&version.join("links"))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn make_directories(&self) -> Result<(), PinsError> {
        let directory = self.directory.parent().unwrap_or(&self.directory);
        for dir in [directory, &self.directory, &self.directory.join("maps"), &self.directory.join("links")] {
            make(dir)?;
        }
        Ok(())
    }

    /// The directories beside this one: of versions of eastwall whose maps have other layouts.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`].
    pub fn others(&self) -> Result<Vec<PathBuf>, PinsError> {
        let all = self.directory.parent().map_or(Ok(Vec::new()), list)?;
        Ok(all.into_iter().filter(|version| *version != self.directory).collect())
    }

    /// Of [`Self::others`] those whose sockets and flows are written as this version's are.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`].
    pub fn relatives(&self) -> Result<Vec<PathBuf>, PinsError> {
        let is_relative = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
            name.and_then(|n| n.parse().ok()).is_some_and(|n: u32| (STATE_SINCE..LAYOUT_VERSION).contains(&n))
        };
        Ok(self.others()?.into_iter().filter(is_relative).collect())
    }

    /// Returns how the directories of the pins stand; `None` if one is gone.
    pub fn state(&self) -> Option<State> {
        let of = |kind| fs::symlink_metadata(self.directory.join(kind)).ok();
        let (maps, links) = (of("maps")?, of("links")?);
        Some([maps, links].map(|meta| (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec())))
    }

    /// Says whether there is a bpffs where it was.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        is_bpffs(&self.mount).unwrap_or(false)
    }

    /// Makes the directories again, on a bpffs that is mounted again if need be. That holds for the mount namespace of
    /// the agent alone.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`]; mounting takes CAP_SYS_ADMIN.
    pub fn make_again(&self) -> Result<(), PinsError> {
        if !self.is_mounted() {
            let failed = |source: rustix::io::Errno| PinsError::Io {
                verb: "mount a bpf file system on",
                path: self.mount.clone(),
                source: source.into(),
            };
            // As systemd mounts it: for root alone.
            let (flags, options) = (MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"mode=700");
            mount("bpf", &self.mount, "bpf", flags, Some(options)).map_err(failed)?;
        }
        let parent = self.directory.parent().and_then(Path::parent).unwrap_or(&self.mount);
        if !parent.exists() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.map_err(|source| PinsError::Io { verb: "make", path: parent.to_owned(), source })?;
        }
        self.make_directories()
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

    /// Says whether devices are guarded by filters of `clsact`, by the pins under `directory`: what is pinned for one is its
    /// program, and no link.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`] with the first path that could not be looked at.
    pub fn has_filters(directory: &Path) -> Result<bool, PinsError> {
        for version in list(directory)? {
            for path in list(&version.join("links"))? {
                let is_link =
                    sys::open_pin(&path).and_then(|pin| pin.map_or(Ok(true), |pin| sys::is_link(pin.as_fd())));
                if !is_link.map_err(|source| PinsError::Io { verb: "look at", path, source })? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
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
            for pin in list(&version.join("links"))? {
                if let Some(name) = pin.file_name().and_then(|name| name.to_str()) {
                    let failed = |source| PinsError::Io { verb: "detach", path: pin.clone(), source };
                    clsact::remove_pinned(name).map_err(failed)?;
                }
                take_off(&pin)?;
                links += 1;
            }
            remove_version(&version)?;
        }
        remove_dir(directory)?;
        Ok(links)
    }
}

/// A pinned object that is held open as well, so that whoever removes the pin takes nothing away.
#[derive(Debug)]
pub struct Held {
    object: OwnedFd,
    path: PathBuf,
    /// Device and inode of the pin; `None` is none yet.
    pin: Option<(u64, u64)>,
}

impl Held {
    /// Holds an object that is not pinned yet: [`Self::pin`] does.
    #[must_use]
    pub const fn new(object: OwnedFd, path: PathBuf) -> Self {
        Self { object, path, pin: None }
    }

    /// Holds what is pinned at a path; `None` if nothing is.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn open(path: PathBuf) -> io::Result<Option<Self>> {
        let object = sys::open_pin(&path)?;
        Ok(object.map(|object| Self { object, pin: inode(&path), path }))
    }

    /// Says whether the pin is there, and no other in its place.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pin.is_some() && inode(&self.path) == self.pin
    }

    /// Pins it, in place of whatever is pinned there: nobody finds the path empty meanwhile.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`]; the object is held all the same.
    pub fn pin(&mut self) -> Result<(), PinsError> {
        let mut aside = self.path.clone().into_os_string();
        aside.push("_new");
        let aside = PathBuf::from(aside);
        let failed = |verb| {
            let path = self.path.clone();
            move |source| PinsError::Io { verb, path, source }
        };
        // Left by an agent that died here.
        let _ = fs::remove_file(&aside);
        sys::pin(self.object.as_fd(), &aside).map_err(failed("pin"))?;
        fs::rename(&aside, &self.path).map_err(failed("rename the pin to"))?;
        self.pin = inode(&self.path);
        Ok(())
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.object.as_fd()
    }
}

/// The directory in which another one is to be; refuses what is not on bpffs.
fn parent_on_bpffs(directory: &Path) -> Result<&Path, PinsError> {
    let parent = directory.parent().unwrap_or(Path::new("/"));
    if is_bpffs(parent)? { Ok(parent) } else { Err(PinsError::NotBpffs(parent.to_owned())) }
}

/// Removes a pin; that there is none is no error.
pub fn remove(path: &Path) -> Result<(), PinsError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinsError::Io { verb: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Takes a pinned link off, and its pin away; that there is none is no error.
pub fn take_off(pin: &Path) -> Result<(), PinsError> {
    let object = sys::open_pin(pin).map_err(|source| PinsError::Io { verb: "open", path: pin.to_owned(), source })?;
    take_off_open(object.as_ref().map(AsFd::as_fd), pin)
}

/// As [`take_off`], of what is open already. The pin alone would leave it attached until the kernel finds time to free it.
pub fn take_off_open(object: Option<BorrowedFd<'_>>, pin: &Path) -> Result<(), PinsError> {
    let failed = |verb| move |source| PinsError::Io { verb, path: pin.to_owned(), source };
    if let Some(object) = object
        // At a device without TCX it is a program.
        && sys::is_link(object).map_err(failed("look at"))?
    {
        sys::detach(object).map_err(failed("detach"))?;
    }
    remove(pin)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
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

/// Removes the maps of a version, and its directories, once its links are gone.
///
/// # Errors
///
/// [`PinsError::Io`] with the first path that could not be removed.
pub fn remove_version(version: &Path) -> Result<(), PinsError> {
    let maps = version.join("maps");
    for pin in list(&maps)? {
        fs::remove_file(&pin).map_err(|source| PinsError::Io { verb: "remove", path: pin, source })?;
    }
    remove_dir(&maps)?;
    remove_dir(&version.join("links"))?;
    remove_dir(version)
}

/// Lists a directory of pins; one that is not there is empty.
///
/// # Errors
///
/// [`PinsError::Io`].
pub fn list(path: &Path) -> Result<Vec<PathBuf>, PinsError> {
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
