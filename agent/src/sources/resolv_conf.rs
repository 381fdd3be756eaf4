//! The host's own list of resolvers: the text of a resolv.conf(5).

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// More than anybody writes.
const SIZE_MAX: u64 = 64 << 10;

/// Returns the text. Links are followed: the file is one on most hosts. What is no UTF-8 is replaced.
///
/// # Errors
///
/// What the system says, or that it is too long.
pub fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let size = File::open(path)?.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(size).unwrap_or(u64::MAX) > SIZE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 64 KiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
