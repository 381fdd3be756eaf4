//! Offsets of kernel structures from the kernel's own type information.
//!
//! Source: Documentation/bpf/btf.rst, "Type Encoding".

use std::{fs, io, path::Path};

/// Where the kernel shows it.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Kernel type information, little or big endian as the machine.
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
}

/// Why an offset could not be found.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file.
    #[error("read `{VMLINUX}`; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    Read(#[source] io::Error),
    /// The bytes.
    #[error("`{VMLINUX}` is not BTF")]
    Format,
    /// The structure or member.
    #[error("the kernel has no `{0}.{1}`")]
    Member(&'static str, &'static str),
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

impl Btf {
    /// Reads the running kernel's.
    pub fn of_kernel() -> Result<Self, BtfError> {
        let bytes = fs::read(Path::new(VMLINUX)).map_err(BtfError::Read)?;
        let word = |at: usize| word(&bytes, at).ok_or(BtfError::Format);
        if bytes.get(..2) != Some(&0xeb9f_u16.to_ne_bytes()) {
            return Err(BtfError::Format);
        }
        let header = word(4)? as usize;
        let part = |offset: u32, len: u32| {
            let start = header + offset as usize;
            bytes.get(start..start + len as usize).map(<[u8]>::to_vec).ok_or(BtfError::Format)
        };
        Ok(Self { types: part(word(8)?, word(12)?)?, strings: part(word(16)?, word(20)?)? })
    }

    /// Returns the offset of a member in bytes. Looks through no anonymous members.
    pub fn offset(&self, of: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let missing = || BtfError::Member(of, member);
        let mut at = 0;
        while at < self.types.len() {
            let (name, info) = self.head(at).ok_or(BtfError::Format)?;
            let (kind, len) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_STRUCT && self.string(name) == Some(of.as_bytes()) {
                let bitfields = info >> 31 != 0;
                return (0..len)
                    .map(|i| at + 12 + i * 12)
                    .find(|&m| word(&self.types, m).and_then(|n| self.string(n)) == Some(member.as_bytes()))
                    .and_then(|m| word(&self.types, m + 8))
                    .map(|bits| if bitfields { bits & 0x00ff_ffff } else { bits } / 8)
                    .ok_or_else(missing);
            }
            at += 12 + tail(kind, len);
        }
        Err(missing())
    }

    fn head(&self, at: usize) -> Option<(u32, u32)> {
        Some((word(&self.types, at)?, word(&self.types, at + 4)?))
    }

    fn string(&self, at: u32) -> Option<&[u8]> {
        let rest = self.strings.get(at as usize..)?;
        rest.iter().position(|&b| b == 0).and_then(|end| rest.get(..end))
    }
}

/// Bytes behind the common head of a type.
const fn tail(kind: u32, len: usize) -> usize {
    match kind {
        // int, var, decl_tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        KIND_STRUCT | KIND_UNION => len * 12,
        // enum, func_proto
        6 | 13 => len * 8,
        // datasec, enum64
        15 | 19 => len * 12,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_tells_where_its_members_are() {
        let btf = Btf::of_kernel().unwrap();
        assert_eq!(btf.offset("list_head", "prev").unwrap(), u32::try_from(size_of::<usize>()).unwrap());
        assert!(btf.offset("cgroup", "kn").unwrap() > 0);
        assert!(matches!(btf.offset("cgroup", "no_such"), Err(BtfError::Member("cgroup", "no_such"))));
    }
}
