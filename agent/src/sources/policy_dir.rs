//! Policy files, from disk to text. What they say is not looked at.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::policy::file::FILE_BYTES_MAX;

/// The ending of a policy file.
const ENDING: &str = "yaml";
/// Mode bits that let somebody else write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Whose files are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trust {
    /// Anyone's: for checking a policy before it counts.
    Anyone,
    /// Files and directories of this uid that nobody else can write, and no symbolic links: for a
    /// policy that will be enforced.
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
    #[error("read `{}`", path.display())]
    Io {
        /// What was being read.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A device, a pipe, a socket, a directory in a directory.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Somebody else could change it.
    #[error("`{}` belongs to uid {owner}; it must belong to uid {wanted}: chown it", path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// Somebody else could change it.
    #[error("`{}` can be written by others (mode {mode:04o}): chmod go-w it", path.display())]
    Writable {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Larger than any policy.
    #[error("`{}` is larger than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not text.
    #[error("`{}` is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
    /// It looks like a policy and would be passed over in silence.
    #[error("`{}` would not be read: rename it to end in `.{ENDING}`", .0.display())]
    Ending(PathBuf),
}

impl ReadPolicyError {
    /// Says whether the content is at fault, rather than the way to it.
    #[must_use]
    pub const fn is_content(&self) -> bool {
        match self {
            Self::TooLarge(_) | Self::NotUtf8(_) => true,
            Self::Io { .. } | Self::NotAFile(_) | Self::Owner { .. } | Self::Writable { .. } | Self::Ending(_) => false,
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
            for file in list(path, &metadata, trust)? {
                texts.push(read_file(&file, trust)?);
            }
        } else {
            texts.push(read_file(path, trust)?);
        }
    }
    texts.sort_by(|a, b| a.name.cmp(&b.name));
    // A file given twice, or beside its directory, is one file.
    texts.dedup_by(|a, b| a.name == b.name);
    Ok(texts)
}

/// Returns the policy files of a directory. Hidden ones are what editors leave behind.
fn list(directory: &Path, metadata: &Metadata, trust: Trust) -> Result<Vec<PathBuf>, ReadPolicyError> {
    // Who can write the directory can put another file in the place of one that is trusted.
    check_owner(directory, metadata, trust)?;
    let io = |source| ReadPolicyError::Io { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        match path.extension() {
            Some(ending) if ending == ENDING && !is_hidden => files.push(path),
            Some(ending) if ending == "yml" && !is_hidden => return Err(ReadPolicyError::Ending(path)),
            _ => {}
        }
    }
    Ok(files)
}

fn read_file(path: &Path, trust: Trust) -> Result<PolicyText, ReadPolicyError> {
    let io = |source| ReadPolicyError::Io { path: path.to_owned(), source };
    let follow = match trust {
        Trust::Anyone => 0,
        Trust::Owner(_) => libc::O_NOFOLLOW,
    };
    // Opening a pipe would wait for its other end for ever.
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | follow;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
    // Of the open file, not of the path: the path may mean another file by now.
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(ReadPolicyError::NotAFile(path.to_owned()));
    }
    check_owner(path, &metadata, trust)?;
    let bytes = read_limited(file).map_err(io)?.ok_or_else(|| ReadPolicyError::TooLarge(path.to_owned()))?;
    let text = String::from_utf8(bytes).map_err(|_| ReadPolicyError::NotUtf8(path.to_owned()))?;
    Ok(PolicyText { name: path.to_string_lossy().into_owned(), text })
}

fn check_owner(path: &Path, metadata: &Metadata, trust: Trust) -> Result<(), ReadPolicyError> {
    let Trust::Owner(wanted) = trust else { return Ok(()) };
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != wanted {
        return Err(ReadPolicyError::Owner { path: path.to_owned(), owner, wanted });
    }
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(ReadPolicyError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Reads all of a file, or nothing if it is too large; it may grow while it is read.
fn read_limited(file: File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= FILE_BYTES_MAX).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

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
        assert!(matches!(read(&[&path], Trust::Owner(uid + 1)), Err(ReadPolicyError::Owner { .. })));
        for mode in [0o664, 0o646] {
            write(&directory, "a.yaml", "a", mode);
            assert!(matches!(read(&[&path], trust), Err(ReadPolicyError::Writable { .. })), "{mode:o}");
            assert!(read(&[&path], Trust::Anyone).is_ok());
        }
        write(&directory, "a.yaml", "a", 0o644);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(read(&[directory.path()], trust), Err(ReadPolicyError::Writable { .. })));
    }

    #[test]
    fn links_and_special_files_are_refused_and_none_blocks() {
        let (directory, trust) = directory();
        let target = write(&directory, "a.yaml", "a", 0o644);
        let link = directory.path().join("link.yaml");
        symlink(&target, &link).unwrap();
        assert!(matches!(read(&[&link], trust), Err(ReadPolicyError::Io { .. })));
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
}
