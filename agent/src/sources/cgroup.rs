//! The cgroup v2 hierarchy: where it is mounted, which cgroups exist, the path behind an id.
//!
//! A cgroup's id is the inode of its directory and is never given twice. Paths are given twice, so a
//! path is only ever used to reach a directory, and the id is then read from what was reached.

// open_by_handle_at(2) has no safe wrapper.
#![expect(unsafe_code, reason = "a cgroup id becomes a path by open_by_handle_at(2)")]

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, ffi::OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, fstat, fstatfs, open, openat},
    io::Errno,
};

use crate::identity::resolver::CgroupNode;

/// The magic number of cgroup2 (linux/magic.h, `CGROUP2_SUPER_MAGIC`).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// The inode of the root of every cgroup hierarchy (kernfs gives the first number to it).
const ROOT_INODE: u64 = 1;

/// The type of a kernfs file handle (linux/exportfs.h, `FILEID_KERNFS`): the 8 bytes of the inode.
const KERNFS_HANDLE: i32 = 0xfe;

/// The deepest cgroup that is walked to. A count, below the usual limit of 1024 open files, since each
/// level holds one: a workload that nests deeper must not end the walk. What lies deeper gets no label
/// here, and without one it is denied.
const DEPTH_MAX: usize = 256;

/// How every directory is opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The mounted cgroup v2 hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    mount: PathBuf,
    root: OwnedFd,
    root_inode: u64,
}

/// Why the hierarchy cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// /proc is not there.
    #[error("read {path}")]
    Mountinfo {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Nothing to guard.
    #[error(
        "no cgroup2 file system is mounted; mount one: `mount -t cgroup2 none /sys/fs/cgroup`, or boot with \
         `systemd.unified_cgroup_hierarchy=1`"
    )]
    NotMounted,
    /// Every mount point is hidden below another mount.
    #[error("cgroup2 is mounted at {} but something else is mounted over it", .mount.display())]
    Hidden {
        /// The last mount point that was tried.
        mount: PathBuf,
    },
    /// The part to guard does not exist, or is no path from the root.
    #[error("open cgroup `{path}` below {}", .mount.display())]
    Scope {
        /// As configured.
        path: String,
        /// The mount point.
        mount: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory could not be read although it exists.
    #[error("read cgroup `{}`", .path.escape_debug())]
    Read {
        /// From the root.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not find cgroups by their id for us.
    #[error("find the cgroup with id {id}; this needs CAP_DAC_READ_SEARCH")]
    Handle {
        /// The id.
        id: u64,
        /// Why.
        source: io::Error,
    },
}

impl Hierarchy {
    /// Finds the hierarchy in /proc/self/mountinfo. If it is mounted more than once, a mount that shows
    /// the real root is taken.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Mountinfo`], [`CgroupError::NotMounted`], [`CgroupError::Hidden`].
    pub fn find() -> Result<Self, CgroupError> {
        const PATH: &str = "/proc/self/mountinfo";
        let text = std::fs::read(PATH).map_err(|source| CgroupError::Mountinfo { path: PATH, source })?;
        let mut error = CgroupError::NotMounted;
        let mut best = None;
        for mount in cgroup2_mounts(&text) {
            match Self::at(&mount) {
                Some(found) if found.is_real_root() => return Ok(found),
                Some(found) => best = best.or(Some(found)),
                None => error = CgroupError::Hidden { mount },
            }
        }
        best.ok_or(error)
    }

    /// Opens a mount point, if a cgroup2 file system is what one sees there.
    fn at(mount: &Path) -> Option<Self> {
        let root = open(mount, DIRECTORY, Mode::empty()).ok()?;
        let magic = u64::try_from(fstatfs(&root).ok()?.f_type).ok()?;
        let root_inode = fstat(&root).ok()?.st_ino;
        (magic == CGROUP2_MAGIC).then(|| Self { mount: mount.to_owned(), root, root_inode })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Says whether the mount shows the root of the host's hierarchy. If not, this process lives in a
    /// cgroup namespace or a part was bind-mounted, and cgroups outside it are beyond reach.
    #[must_use]
    pub fn is_real_root(&self) -> bool {
        self.root_inode == ROOT_INODE
    }

    /// Returns the directory of a cgroup, given its path from the root of the hierarchy.
    #[must_use]
    pub fn dir(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// Lists `scope` and every cgroup below it, parents first. `/` is the whole hierarchy.
    ///
    /// Cgroups that vanish during the walk are left out. Ones that are made behind the walk's back may
    /// be missing: whoever needs them listens before the walk begins.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Scope`] if there is no such cgroup; [`CgroupError::Read`] if one that exists
    /// cannot be read.
    pub fn walk(&self, scope: &str) -> Result<Vec<CgroupNode>, CgroupError> {
        let (dir, path) = self.open_scope(scope)?;
        let mut found = Vec::new();
        walk_into(dir, path, &mut found)?;
        Ok(found)
    }

    /// Returns the path of a cgroup, or None if it is gone or lies outside the mount.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Handle`] if the kernel refuses to tell.
    pub fn path_of(&self, id: u64) -> Result<Option<String>, CgroupError> {
        let error = |source: io::Error| CgroupError::Handle { id, source };
        let dir = match open_by_id(self.root.as_fd(), id) {
            Ok(dir) => dir,
            // ESTALE: no such cgroup any more. ENOENT: it is being removed.
            Err(e) if is_gone(e.raw_os_error()) || e.raw_os_error() == Some(libc::ESTALE) => return Ok(None),
            Err(e) => return Err(error(e)),
        };
        let link = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(error)?;
        let Ok(below) = link.strip_prefix(&self.mount) else { return Ok(None) };
        // The kernel writes ` (deleted)` behind the path of a removed directory, and a cgroup may have
        // that as its name: only the inode tells.
        match openat(
            &self.root,
            if below.as_os_str().is_empty() { Path::new(".") } else { below },
            DIRECTORY,
            Mode::empty(),
        ) {
            Ok(reached) if fstat(&reached).is_ok_and(|stat| stat.st_ino == id) => Ok(Some(rooted(below))),
            _ => Ok(None),
        }
    }

    /// Returns `scope`, the cgroup and all between them, parents first; empty if the cgroup is gone or
    /// not in `scope`. It is what [`crate::identity::resolver::Resolver::resolve`] needs to label one
    /// new cgroup.
    ///
    /// # Errors
    ///
    /// As [`Self::path_of`] and [`Self::walk`].
    pub fn chain_of(&self, id: u64, scope: &str) -> Result<Vec<CgroupNode>, CgroupError> {
        let Some(target) = self.path_of(id)? else { return Ok(Vec::new()) };
        let (mut dir, mut path) = self.open_scope(scope)?;
        let Some(below) = below(&target, &path) else { return Ok(Vec::new()) };
        let mut chain: Vec<CgroupNode> = Vec::new();
        let mut names = below.split('/').filter(|name| !name.is_empty());
        loop {
            let Ok(stat) = fstat(&dir) else { return Ok(Vec::new()) };
            let parent = chain.last().map(|above| above.id);
            chain.push(CgroupNode { id: stat.st_ino, path: path.clone(), parent });
            let Some(name) = names.next() else { break };
            match openat(&dir, name, DIRECTORY, Mode::empty()) {
                Ok(child) => (dir, path) = (child, join(&path, name)),
                Err(_) => return Ok(Vec::new()),
            }
        }
        // The path may have been given to another cgroup in between.
        Ok(if chain.last().is_some_and(|last| last.id == id) { chain } else { Vec::new() })
    }

    fn open_scope(&self, scope: &str) -> Result<(OwnedFd, String), CgroupError> {
        let path = format!("/{}", scope.trim_matches('/'));
        let error = |source| CgroupError::Scope { path: scope.to_owned(), mount: self.mount.clone(), source };
        if path.split('/').any(|name| name == "." || name == "..") {
            return Err(error(io::ErrorKind::InvalidInput.into()));
        }
        let name = if path == "/" { "." } else { &path[1..] };
        let dir = openat(&self.root, name, DIRECTORY, Mode::empty()).map_err(|e| error(e.into()))?;
        Ok((dir, path))
    }
}

/// Walks one directory. Each level holds one descriptor, and the child is opened below it: a directory
/// that is removed and made again in between cannot get a parent that is not its own.
fn walk_into(dir: OwnedFd, path: String, found: &mut Vec<CgroupNode>) -> Result<(), CgroupError> {
    let mut levels = vec![Level::open(dir, path, None, found)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.children.pop() else {
            levels.pop();
            continue;
        };
        let path = join(&level.path, &String::from_utf8_lossy(name.as_bytes()));
        match openat(&level.dir, &name, DIRECTORY, Mode::empty()) {
            Ok(dir) => {
                let parent = Some(level.id);
                let below = Level::open(dir, path, parent, found)?;
                if levels.len() < DEPTH_MAX {
                    levels.push(below);
                }
            }
            Err(e) if is_gone(Some(e.raw_os_error())) => {}
            Err(e) => return Err(CgroupError::Read { path, source: e.into() }),
        }
    }
    Ok(())
}

/// One open directory of a walk.
struct Level {
    dir: OwnedFd,
    path: String,
    id: u64,
    children: Vec<OsString>,
}

impl Level {
    /// Records the cgroup and lists its children.
    fn open(dir: OwnedFd, path: String, parent: Option<u64>, found: &mut Vec<CgroupNode>) -> Result<Self, CgroupError> {
        let read = |e: Errno| CgroupError::Read { path: path.clone(), source: e.into() };
        let id = fstat(&dir).map_err(read)?.st_ino;
        found.push(CgroupNode { id, path: path.clone(), parent });
        let mut children = Vec::new();
        for entry in Dir::read_from(&dir).map_err(read)? {
            match entry {
                Ok(entry) if entry.file_type() == FileType::Directory => {
                    let name = entry.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        children.push(OsString::from_vec(name.to_vec()));
                    }
                }
                Ok(_) => {}
                // The directory itself was removed: it has no children.
                Err(e) if is_gone(Some(e.raw_os_error())) => break,
                Err(e) => return Err(read(e)),
            }
        }
        Ok(Self { dir, path, id, children })
    }
}

/// ENODEV is what kernfs says about a directory that is removed while it is open.
fn is_gone(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ENOENT | libc::ENODEV))
}

fn join(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

fn rooted(below: &Path) -> String {
    format!("/{}", String::from_utf8_lossy(below.as_os_str().as_bytes()))
}

/// Returns the part of `path` below `scope`.
fn below<'a>(path: &'a str, scope: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(scope.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Returns the mount points of cgroup2, in the order of the file.
///
/// Source: proc_pid_mountinfo(5): `id parent maj:min root mount-point options [tags…] - type source …`.
fn cgroup2_mounts(text: &[u8]) -> Vec<PathBuf> {
    let mount_point = |line: &[u8]| {
        let mut fields = line.split(|&c| c == b' ');
        let mount = fields.nth(4)?.to_vec();
        let kind = fields.skip_while(|&f| f != b"-").nth(1)?;
        (kind == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(&mount))))
    };
    text.split(|&c| c == b'\n').filter_map(mount_point).collect()
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |c: u8| (b'0'..=b'7').contains(&c).then(|| u32::from(c - b'0'));
        let escaped = match (first, tail) {
            (b'\\', [a, b, c, ..]) => (|| u8::try_from(octal(*a)? * 64 + octal(*b)? * 8 + octal(*c)?).ok())(),
            _ => None,
        };
        out.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    out
}

/// The handle of a kernfs file, as `struct file_handle` lays it out with 8 bytes behind it.
#[repr(C)]
struct KernfsHandle {
    handle_bytes: u32,
    handle_type: i32,
    id: [u8; 8],
}

fn open_by_id(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    let mut handle = KernfsHandle { handle_bytes: 8, handle_type: KERNFS_HANDLE, id: id.to_ne_bytes() };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `handle` begins like `struct file_handle` (u32, i32) and has the 8 bytes that
    // `handle_bytes` promises; it lives across the call, and `mount` is an open descriptor.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mount_points_are_found_behind_any_number_of_tags() {
        let text = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
            42 31 0:38 /../.. /a\\040b\\134c rw shared:7 master:1 - cgroup2 none rw\n\
            short line\n";
        let expected = [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/a b\\c")];
        assert_eq!(cgroup2_mounts(text), expected);
        assert!(cgroup2_mounts(b"41 31 0:38 / /cgroup2 rw - tmpfs cgroup2 rw").is_empty());
    }

    #[test]
    fn only_whole_names_are_inside_a_scope() {
        assert_eq!(below("/lab/a", "/lab"), Some("/a"));
        assert_eq!(below("/lab", "/lab"), Some(""));
        assert_eq!(below("/lab2/a", "/lab"), None);
        assert_eq!(below("/lab", "/"), Some("/lab"));
    }

    proptest! {
        #[test]
        fn no_mountinfo_panics(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = cgroup2_mounts(&text);
            prop_assert!(unescape(&text).len() <= text.len());
        }
    }
}
