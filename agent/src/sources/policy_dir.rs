//! Policy files, from disk to text. What they say is not looked at.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat};

use super::trust::{self, Untrusted, shown};
use crate::policy::file::FILE_BYTES_MAX;

/// The ending of a policy file.
const ENDING: &str = "yaml";

/// Whose files are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trust {
    /// Anyone's: for checking a policy before it counts.
    Anyone,
    /// Files and directories of this uid that nobody else can write, below directories of which the same
    /// is true, and no symbolic links: for a policy that will be enforced.
    Owner(u32),
}

impl Trust {
    /// What the agent trusts.
    pub const ROOT: Self = Self::Owner(0);
}

/// One file, read once: what was checked is what is used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyText {
    /// The path as it was given, or the directory as it was given with the name of the file.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// Why policy files could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadPolicyError {
    /// The system says no.
    #[error("read `{}`", shown(path))]
    Io {
        /// What was being read.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A device, a pipe, a socket, a directory in a directory.
    #[error("`{}` is not a regular file", shown(.0))]
    NotAFile(PathBuf),
    /// Somebody else could change it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// Larger than any policy.
    #[error("`{}` is larger than {FILE_BYTES_MAX} bytes; split it into several files", shown(.0))]
    TooLarge(PathBuf),
    /// Not text.
    #[error("`{}` is not UTF-8", shown(.0))]
    NotUtf8(PathBuf),
    /// It looks like a policy and would be passed over in silence.
    #[error("`{}` would not be read: rename it to end in `.{ENDING}`", shown(.0))]
    Ending(PathBuf),
}

impl ReadPolicyError {
    /// Says whether the content is at fault, rather than the way to it.
    #[must_use]
    pub const fn is_content(&self) -> bool {
        match self {
            Self::TooLarge(_) | Self::NotUtf8(_) => true,
            Self::Io { .. } | Self::NotAFile(_) | Self::Untrusted(_) | Self::Ending(_) => false,
        }
    }
}

/// Reads files, and the `*.yaml` of directories (not of those inside them), sorted by name.
///
/// # Errors
///
/// [`ReadPolicyError`] for the first that cannot be used; a part of a policy is no policy.
pub fn read(paths: &[impl AsRef<Path>], trust: Trust) -> Result<Vec<PolicyText>, ReadPolicyError> {
    let mut texts = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        let metadata = fs::metadata(path).map_err(|source| ReadPolicyError::Io { path: path.to_owned(), source })?;
        if metadata.is_dir() {
            let directory = open_directory(path, trust)?;
            for name in list(path, &directory)? {
                let file = path.join(&name);
                texts.push(match trust {
                    // A link to a file elsewhere is as good as the file.
                    Trust::Anyone => read_file(&open(&file)?, &file, trust)?,
                    Trust::Owner(_) => read_file(&trust::open_file(&directory, &name, &file)?, &file, trust)?,
                });
            }
        } else {
            texts.push(read_one(path, trust)?);
        }
    }
    texts.sort_by(|a, b| a.name.cmp(&b.name));
    // A file given twice, or beside its directory, is one file.
    texts.dedup_by(|a, b| a.name == b.name);
    Ok(texts)
}

/// Reads one file.
///
/// # Errors
///
/// [`ReadPolicyError`].
pub fn read_one(path: &Path, trust: Trust) -> Result<PolicyText, ReadPolicyError> {
    match (trust, path.file_name()) {
        (Trust::Owner(_), Some(name)) => {
            let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let directory = open_directory(above, trust)?;
            read_file(&trust::open_file(directory, Path::new(name), path)?, path, trust)
        }
        _ => read_file(&open(path)?, path, trust),
    }
}

fn open_directory(path: &Path, trust: Trust) -> Result<OwnedFd, ReadPolicyError> {
    match trust {
        Trust::Owner(owner) => Ok(trust::open_directory(path, owner)?),
        Trust::Anyone => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty())
                .map_err(|e| ReadPolicyError::Io { path: path.to_owned(), source: e.into() })
        }
    }
}

fn open(path: &Path) -> Result<File, ReadPolicyError> {
    // Opening a pipe would wait for its other end for ever.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty());
    Ok(opened.map_err(|e| ReadPolicyError::Io { path: path.to_owned(), source: e.into() })?.into())
}

/// Returns the names of the policy files of a directory. Hidden ones are what editors leave behind.
fn list(path: &Path, directory: &OwnedFd) -> Result<Vec<PathBuf>, ReadPolicyError> {
    let io = |e: rustix::io::Errno| ReadPolicyError::Io { path: path.to_owned(), source: e.into() };
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = PathBuf::from(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
        let is_hidden = entry.file_name().to_bytes().starts_with(b".");
        match name.extension() {
            Some(ending) if ending == ENDING && !is_hidden => names.push(name),
            Some(ending) if ending == "yml" && !is_hidden => return Err(ReadPolicyError::Ending(path.join(name))),
            _ => {}
        }
    }
    names.sort();
    Ok(names)
}

fn read_file(file: &File, path: &Path, trust: Trust) -> Result<PolicyText, ReadPolicyError> {
    let io = |source| ReadPolicyError::Io { path: path.to_owned(), source };
    // Of the open file, not of the path: the path may mean another file by now.
    let stat = fstat(file.as_fd()).map_err(|e| io(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ReadPolicyError::NotAFile(path.to_owned()));
    }
    if let Trust::Owner(owner) = trust {
        trust::check(path, &stat, owner)?;
    }
    let bytes = read_limited(file).map_err(io)?.ok_or_else(|| ReadPolicyError::TooLarge(path.to_owned()))?;
    let text = String::from_utf8(bytes).map_err(|_| ReadPolicyError::NotUtf8(path.to_owned()))?;
    Ok(PolicyText { name: path.to_string_lossy().into_owned(), text })
}

/// Reads all of a file, or nothing if it is too large; it may grow while it is read.
fn read_limited(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= FILE_BYTES_MAX).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    /// A directory that the agent would trust if it belonged to the uid returned.
    fn directory() -> (tempfile::TempDir, Trust) {
        let directory = tempfile::tempdir().unwrap();
        let uid = fs::metadata(directory.path()).unwrap().uid();
        (directory, Trust::Owner(uid))
    }

    fn write(directory: &tempfile::TempDir, name: &str, text: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn files_of_a_directory_are_read_in_the_order_of_their_names() {
        let (directory, trust) = directory();
        for name in ["b.yaml", "a.yaml", ".#a.yaml", "notes.txt", "README"] {
            write(&directory, name, name, 0o644);
        }
        fs::create_dir(directory.path().join("deeper")).unwrap();
        let texts = read(&[directory.path().to_owned(), directory.path().join("a.yaml")], trust).unwrap();
        assert_eq!(texts.iter().map(|file| file.text.as_str()).collect::<Vec<_>>(), ["a.yaml", "b.yaml"]);
    }

    #[test]
    fn what_another_could_change_is_trusted_by_nobody_who_enforces() {
        let (directory, trust) = directory();
        let Trust::Owner(uid) = trust else { panic!() };
        let path = write(&directory, "a.yaml", "a", 0o644);
        assert!(read(&[&path], trust).is_ok());
        assert!(matches!(
            read(&[&path], Trust::Owner(uid + 1)),
            Err(ReadPolicyError::Untrusted(Untrusted::Owner { .. }))
        ));
        for mode in [0o664, 0o646] {
            write(&directory, "a.yaml", "a", mode);
            assert!(
                matches!(read(&[&path], trust), Err(ReadPolicyError::Untrusted(Untrusted::Writable { .. }))),
                "{mode:o}"
            );
            assert!(read(&[&path], Trust::Anyone).is_ok());
        }
        write(&directory, "a.yaml", "a", 0o644);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            read(&[directory.path()], trust),
            Err(ReadPolicyError::Untrusted(Untrusted::Writable { .. }))
        ));
    }

    #[test]
    fn links_and_special_files_are_refused_and_none_blocks() {
        let (directory, trust) = directory();
        let target = write(&directory, "a.yaml", "a", 0o644);
        let link = directory.path().join("link.yaml");
        symlink(&target, &link).unwrap();
        assert!(matches!(read(&[&link], trust), Err(ReadPolicyError::Untrusted(Untrusted::Link(_)))));
        assert_eq!(read(&[&link], Trust::Anyone).unwrap()[0].text, "a");
        let pipe = directory.path().join("pipe.yaml");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        assert!(matches!(read(&[&pipe], Trust::Anyone), Err(ReadPolicyError::NotAFile(_))));
        fs::create_dir(directory.path().join("dir.yaml")).unwrap();
        fs::remove_file(&pipe).unwrap();
        fs::remove_file(&link).unwrap();
        assert!(matches!(read(&[directory.path()], trust), Err(ReadPolicyError::NotAFile(_))));
    }

    #[test]
    fn content_that_is_no_policy_text_is_refused() {
        let (directory, trust) = directory();
        let path = write(&directory, "a.yaml", [0xff, 0xfe], 0o644);
        assert!(read(&[&path], trust).unwrap_err().is_content());
        write(&directory, "a.yaml", vec![b'#'; FILE_BYTES_MAX + 1], 0o644);
        assert!(matches!(read(&[&path], trust), Err(ReadPolicyError::TooLarge(_))));
        write(&directory, "a.yaml", vec![b'#'; FILE_BYTES_MAX], 0o644);
        assert!(read(&[&path], trust).is_ok());
        write(&directory, "b.yml", "b", 0o644);
        assert!(matches!(read(&[directory.path()], trust), Err(ReadPolicyError::Ending(_))));
        assert!(matches!(read(&[directory.path().join("none")], trust), Err(ReadPolicyError::Io { .. })));
    }

    #[test]
    fn g94_a_file_that_is_swapped_while_it_is_read_is_read_as_it_was_checked_or_refused() {
        const ROUNDS: usize = 2_000;
        let (directory, trust) = directory();
        let secret = tempfile::NamedTempFile::new().unwrap();
        fs::write(secret.path(), "secret").unwrap();
        let target = write(&directory, "a.yaml", "good", 0o644);
        assert_eq!(read(&[directory.path()], trust).unwrap()[0].text, "good");
        let (good, bad) = std::thread::scope(|threads| {
            let swapping = threads.spawn(|| {
                let new = directory.path().join("new");
                for round in 0..ROUNDS {
                    match round % 4 {
                        0 => symlink(secret.path(), &new).unwrap(),
                        1 => rustix::fs::mkfifoat(CWD, &new, Mode::RUSR).unwrap(),
                        2 => drop(write(&directory, "new", "evil", 0o666)),
                        _ => drop(write(&directory, "new", "good", 0o644)),
                    }
                    fs::rename(&new, &target).unwrap();
                }
            });
            let (mut good, mut bad) = (0, 0);
            while !swapping.is_finished() {
                match read(&[directory.path()], trust) {
                    Ok(texts) => {
                        assert_eq!(texts[0].text, "good");
                        good += 1;
                    }
                    Err(_) => bad += 1,
                }
            }
            (good, bad)
        });
        println!("{ROUNDS} swaps: {good} times as it was written by its owner, {bad} times refused");
        assert!(good > 0 && bad > 0);
    }

    #[test]
    fn a_device_is_refused_at_once() {
        let (directory, trust) = directory();
        assert!(matches!(read(&["/dev/zero"], Trust::Anyone), Err(ReadPolicyError::NotAFile(_))));
        symlink("/dev/zero", directory.path().join("zero.yaml")).unwrap();
        let linked = read(&[directory.path()], trust);
        assert!(matches!(linked, Err(ReadPolicyError::Untrusted(Untrusted::Link(_)))), "{linked:?}");
        assert!(matches!(read(&[directory.path()], Trust::Anyone), Err(ReadPolicyError::NotAFile(_))));
    }
}
