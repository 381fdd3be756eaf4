//! The kernel programs, as built from source with the agent.

/// The object file; `None` in a build without kernel programs.
#[cfg(kernel_programs)]
pub fn bytes() -> Option<&'static [u8]> {
    Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent-ebpf")))
}

/// The object file; `None` in a build without kernel programs.
#[cfg(not(kernel_programs))]
pub const fn bytes() -> Option<&'static [u8]> {
    None
}
