//! A kernel that unpacks itself -> the kernel. Unpacking it here is seconds faster than in an emulated machine.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

/// How packed data begins, and what unpacks it to its standard output.
const PACKINGS: [(&[u8], &str); 4] =
    [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"\x1f\x8b\x08", "gzip"), (b"\x02\x21\x4c\x18", "lz4")];

const ELF: &[u8] = b"\x7fELF";

/// Writes the kernel in `packed` to `image`; as it is, if it is packed in another way.
///
/// # Errors
///
/// A file cannot be read or written.
pub fn unpack(packed: &Path, image: &Path) -> Result<()> {
    let bytes = fs::read(packed).with_context(|| format!("read {}", packed.display()))?;
    for (magic, program) in PACKINGS {
        for at in offsets(&bytes, magic) {
            if unpack_at(packed, at, program, image).is_some() {
                return Ok(());
            }
        }
    }
    fs::copy(packed, image).with_context(|| format!("copy {}", packed.display()))?;
    Ok(())
}

fn offsets(bytes: &[u8], magic: &[u8]) -> Vec<u64> {
    let places = bytes.windows(magic.len()).enumerate().filter(|(_, window)| *window == magic);
    places.map(|(at, _)| at as u64).collect()
}

fn unpack_at(packed: &Path, at: u64, program: &str, image: &Path) -> Option<()> {
    let mut from = File::open(packed).ok()?;
    from.seek(SeekFrom::Start(at)).ok()?;
    // What stands behind the packed data makes the program complain when all is done.
    let _ = Command::new(program)
        .args(["--decompress", "--stdout"])
        .stdin(from)
        .stdout(File::create(image).ok()?)
        .stderr(Stdio::null())
        .status()
        .ok()?;
    let mut head = [0; 4];
    File::open(image).ok()?.read_exact(&mut head).ok()?;
    (head == ELF).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_where_packed_data_may_begin_is_found() {
        assert_eq!(offsets(b"--\x1f\x8b\x08--\x1f\x8b\x08", b"\x1f\x8b\x08"), [2, 7]);
        assert_eq!(offsets(b"\x1f", b"\x1f\x8b\x08"), [0_u64; 0]);
    }
}
