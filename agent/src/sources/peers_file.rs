//! The file that names workloads of other hosts: its text.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use rustix::fs::fstat;

use super::trust::{self, Untrusted};

/// Room for as many addresses as are taken, bytes.
const SIZE_MAX: u64 = 4 << 20;

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum ReadPeersError {
    /// Somebody else could have written it: who may, gives their workloads any name.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// It is not text of a length that anybody means.
    #[error("read `{}`", trust::shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Returns the text of a file that only `owner` can change, as are all directories above it.
///
/// # Errors
///
/// [`ReadPeersError`].
pub fn read(path: &Path, owner: u32) -> Result<String, ReadPeersError> {
    let failed = |source| ReadPeersError::Read { path: path.to_owned(), source };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidFilename.into()));
    };
    let directory = trust::open_directory(directory, owner)?;
    let file = trust::open_file(&directory, Path::new(name), path)?;
    trust::check(path, &fstat(&file).map_err(|e| failed(e.into()))?, owner)?;
    let mut text = String::new();
    let size = file.take(SIZE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if u64::try_from(size).unwrap_or(u64::MAX) > SIZE_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 4 MiB")));
    }
    Ok(text)
}
