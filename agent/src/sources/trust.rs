//! Files and directories that nobody else can change, seen from the root of the file system down.
//!
//! A file is as trustworthy as every directory above it: who can write one of those puts another file in
//! its place. So the way is walked one directory at a time, each is opened without following links, and
//! what was looked at is what is used: nothing is looked up by its path a second time.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat};

/// Mode bits that let somebody else write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In such a directory everybody may make something, and nobody may replace what is another's.
const STICKY: u32 = 0o1000;

/// Somebody else could change it.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// The system says no.
    #[error("read `{}`", shown(path))]
    Io {
        /// What was being read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It belongs to another.
    #[error("`{}` belongs to uid {owner}; it must belong to uid {wanted}: chown it", shown(path))]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// Its mode lets others write.
    #[error("`{}` can be written by others (mode {mode:04o}): chmod go-w it", shown(path))]
    Writable {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It may mean something else tomorrow.
    #[error("`{}` is a symbolic link, which is not followed: name or put there what it means", shown(.0))]
    Link(PathBuf),
    /// A file, a pipe, a device.
    #[error("`{}` is not a directory", shown(.0))]
    NotADirectory(PathBuf),
}

/// A path in a message. Whoever made it forges no line.
pub fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

/// Opens a directory for reading that only `owner` can change: it and all above it belong to `owner` or
/// root, and can be written by nobody else. Above it, a sticky directory such as `/tmp` will do.
///
/// # Errors
///
/// [`Untrusted`] with the first directory on the way that is not so, or is a symbolic link.
pub fn open_directory(path: &Path, owner: u32) -> Result<OwnedFd, Untrusted> {
    let io = |path: &Path, source: io::Error| Untrusted::Io { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(|e| io(path, e))?;
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = PathBuf::from("/");
    let mut directory = openat(CWD, &at, step, Mode::empty()).map_err(|e| io(&at, e.into()))?;
    check_above(&at, &fstat(&directory).map_err(|e| io(&at, e.into()))?, owner)?;
    for part in absolute.components().filter(|part| *part != Component::RootDir) {
        at.push(part);
        directory = openat(&directory, part.as_os_str(), step, Mode::empty()).map_err(|e| match e {
            rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => not_a_directory(&directory, &at, part),
            e => io(&at, e.into()),
        })?;
        check_above(&at, &fstat(&directory).map_err(|e| io(&at, e.into()))?, owner)?;
    }
    check(&at, &fstat(&directory).map_err(|e| io(&at, e.into()))?, owner)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&directory, ".", flags, Mode::empty()).map_err(|e| io(&at, e.into()))
}

/// Opens something in a directory for reading, without following a link and without waiting: opening a
/// pipe would wait for its other end for ever.
///
/// # Errors
///
/// [`Untrusted::Link`], or [`Untrusted::Io`]. Whose the file is, is for the caller to look at.
pub fn open_file(directory: impl AsFd, name: &Path, path: &Path) -> Result<File, Untrusted> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::LOOP) => Err(Untrusted::Link(path.to_owned())),
        Err(e) => Err(Untrusted::Io { path: path.to_owned(), source: e.into() }),
    }
}

/// Checks that something belongs to `owner` and that nobody else can write it.
///
/// # Errors
///
/// [`Untrusted::Owner`] or [`Untrusted::Writable`].
pub fn check(path: &Path, stat: &Stat, owner: u32) -> Result<(), Untrusted> {
    if stat.st_uid != owner {
        return Err(Untrusted::Owner { path: path.to_owned(), owner: stat.st_uid, wanted: owner });
    }
    if stat.st_mode & WRITABLE_BY_OTHERS != 0 {
        return Err(Untrusted::Writable { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

fn check_above(path: &Path, stat: &Stat, owner: u32) -> Result<(), Untrusted> {
    if stat.st_uid != owner && stat.st_uid != 0 {
        return Err(Untrusted::Owner { path: path.to_owned(), owner: stat.st_uid, wanted: owner });
    }
    if stat.st_mode & WRITABLE_BY_OTHERS != 0 && stat.st_mode & STICKY == 0 {
        return Err(Untrusted::Writable { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

fn not_a_directory(above: &OwnedFd, path: &Path, part: Component<'_>) -> Untrusted {
    let stat = statat(above, part.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
    match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Symlink) => Untrusted::Link(path.to_owned()),
        _ => Untrusted::NotADirectory(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;

    #[test]
    fn a_directory_is_as_good_as_the_worst_above_it() {
        let top = tempfile::tempdir().unwrap();
        let owner = fs::metadata(top.path()).unwrap().uid();
        let (middle, below) = (top.path().join("middle"), top.path().join("middle/below"));
        fs::create_dir_all(&below).unwrap();
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for path in [&middle, &below] {
            chmod(path, 0o755);
        }
        assert!(open_directory(&below, owner).is_ok());
        for (path, mode, good) in [
            (&middle, 0o775, false),
            (&middle, 0o757, false),
            (&middle, 0o1777, true),
            (&below, 0o1777, false),
            (&below, 0o775, false),
        ] {
            chmod(path, mode);
            let opened = open_directory(&below, owner);
            match &opened {
                Err(Untrusted::Writable { path: named, .. }) => assert_eq!(named, path),
                opened => assert!(good && opened.is_ok(), "{} {mode:o}: {opened:?}", path.display()),
            }
            chmod(path, 0o755);
        }
        assert!(matches!(open_directory(&below, owner + 1), Err(Untrusted::Owner { .. })));
    }

    #[test]
    fn a_link_on_the_way_is_named_and_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let owner = fs::metadata(top.path()).unwrap().uid();
        let (real, link) = (top.path().join("real"), top.path().join("link"));
        fs::create_dir_all(real.join("below")).unwrap();
        symlink(&real, &link).unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        assert!(open_directory(&real.join("below"), owner).is_ok());
        for path in [link.clone(), link.join("below")] {
            let error = open_directory(&path, owner).unwrap_err();
            assert!(matches!(&error, Untrusted::Link(named) if *named == link), "{error:?}");
        }
        let file = open_directory(&top.path().join("file/below"), owner);
        assert!(matches!(file, Err(Untrusted::NotADirectory(_))), "{file:?}");
        assert!(matches!(open_directory(&top.path().join("none"), owner), Err(Untrusted::Io { .. })));
    }
}
