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

/// What a kernel that QEMU boots without unpacking has, and where: ELF of amd64, and the header of arm64.
const KERNELS: [(usize, &[u8]); 2] = [(0, b"\x7fELF"), (56, b"ARM\x64")];

/// The length of a head by which a kernel is known, bytes.
const HEAD: usize = 64;

/// Writes the kernel in `packed` to `image`; as it is, if it is packed in another way.
///
/// # Errors
///
/// A file cannot be read or written.
pub fn unpack(packed: &Path, image: &Path) -> Result<()> {
    let bytes = fs::read(packed).with_context(|| format!("read {}", packed.display()))?;
    // One that is not packed may have packed data inside.
    let packings = if is_kernel(&bytes) { &[] } else { &PACKINGS[..] };
    for (magic, program) in packings {
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
    let mut head = [0; HEAD];
    File::open(image).ok()?.read_exact(&mut head).ok()?;
    is_kernel(&head).then_some(())
}

fn is_kernel(bytes: &[u8]) -> bool {
    KERNELS.iter().any(|(at, magic)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_where_packed_data_may_begin_is_found() {
        assert_eq!(offsets(b"--\x1f\x8b\x08--\x1f\x8b\x08", b"\x1f\x8b\x08"), [2, 7]);
        assert_eq!(offsets(b"\x1f", b"\x1f\x8b\x08"), [0_u64; 0]);
    }

    #[test]
    fn a_kernel_is_known_by_its_head_and_one_that_unpacks_itself_is_none() {
        let mut arm = [0; HEAD];
        arm[..2].copy_from_slice(b"MZ");
        assert!(!is_kernel(&arm));
        arm[56..60].copy_from_slice(b"ARM\x64");
        assert!(is_kernel(&arm));
        assert!(is_kernel(b"\x7fELF\x02\x01"));
        assert!(!is_kernel(b"MZ"));
    }
}
