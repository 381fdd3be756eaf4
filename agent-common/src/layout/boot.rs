//! The guard that stands until an agent has its first policy in force: its maps and programs.

/// Bytes of the path of a cgroup, which a zero ends.
pub const BOOT_PATH_BYTES: usize = 256;
/// The longest path that can be named, bytes. One byte less than fits, so that a longer one, cut off, is equal to none.
pub const BOOT_PATH_MAX: usize = BOOT_PATH_BYTES - 2;
/// Cgroups that can be named.
pub const BOOT_PATHS: u32 = 256;
/// The deepest level below the root at which a cgroup can be named.
pub const BOOT_DEPTH_MAX: u32 = 16;

/// Path of a cgroup from the root of the hierarchy, filled up with zeros.
pub type BootPath = [u8; BOOT_PATH_BYTES];

/// Indexes of the counters.
pub mod boot_count {
    /// Packets that guarded cgroups did not send.
    pub const SENT: u32 = 0;
    /// Packets that they did not receive.
    pub const RECEIVED: u32 = 1;
    /// Cgroups that could not be told from guarded ones. While it is not 0 nothing passes.
    pub const MISSED: u32 = 2;
    /// How many there are.
    pub const ALL: u32 = 3;
}
