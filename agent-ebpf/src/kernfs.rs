//! The kernel's structures of cgroups, as far as programs of tracing read them.

use core::ptr;

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// Offset of `kn` in `struct cgroup`, bytes, from the kernel's BTF. The agent writes it before it loads, as those of
/// the others.
#[unsafe(no_mangle)]
static OFF_CGROUP_KN: u32 = 0;
/// Offset of `id` in `struct kernfs_node`.
#[unsafe(no_mangle)]
static OFF_KN_ID: u32 = 0;

/// Returns the id of a cgroup.
#[inline(always)]
pub fn id(cgroup: *const u8) -> Option<u64> {
    // SAFETY: statics of this program. Volatile, because their values at load are not those that were compiled in.
    let (of_node, of_id) =
        unsafe { (ptr::read_volatile(&raw const OFF_CGROUP_KN), ptr::read_volatile(&raw const OFF_KN_ID)) };
    let node: *const u8 = read(cgroup, of_node)?;
    read(node, of_id)
}

/// Reads a field of a structure of the kernel, `offset` bytes from its start.
#[inline(always)]
pub fn read<T>(base: *const u8, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails if it cannot be read.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) }.ok()
}
