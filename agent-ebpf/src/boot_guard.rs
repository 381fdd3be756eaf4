//! The guard that stands until an agent has its first policy in force: nothing enters or leaves the cgroups that it
//! was told of, nor those below them, whether they are there already or come later.
//!
//! It knows no policy, no identity and no agent, so that whatever keeps an agent from its work does not keep the guard
//! from its own.
#![no_std]
#![no_main]
// Atomic addition is an instruction of the target that `core` has no stable name for.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod kernfs;
mod object;

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use agent_common::layout::{BOOT_DEPTH_MAX, BOOT_PATH_BYTES, BOOT_PATHS, BootPath, boot_count};
use aya_ebpf::{
    EbpfContext as _, btf_maps as bm,
    helpers::{bpf_probe_read_kernel_str_bytes, generated::bpf_skb_ancestor_cgroup_id},
    macros::{btf_map, btf_tracepoint, cgroup_skb},
    programs::{BtfTracePointContext, SkBuffContext},
};

/// `BPF_F_NO_PREALLOC` of linux/bpf.h.
const NO_PREALLOC: usize = 1;

/// Offset of `root` in `struct cgroup`, bytes, from the kernel's BTF.
#[unsafe(no_mangle)]
static OFF_ROOT: u32 = 0;
/// Offset of `hierarchy_id` in `struct cgroup_root`.
#[unsafe(no_mangle)]
static OFF_HIERARCHY: u32 = 0;

/// The cgroups that are named. Written once, before anything is attached.
#[btf_map(name = "boot_paths")]
static PATHS: bm::HashMap<BootPath, u32, { BOOT_PATHS as usize }> = bm::HashMap::new();

/// Those of them that there are. Full: [`boot_count::MISSED`].
#[btf_map(name = "boot_cgroups")]
static CGROUPS: bm::HashMap<u64, u32, 65_536, NO_PREALLOC> = bm::HashMap::new();

/// See [`boot_count`].
#[btf_map(name = "boot_counts")]
static COUNTS: bm::PerCpuArray<u64, { boot_count::ALL as usize }> = bm::PerCpuArray::new();

/// The one that every CPU reads: not 0 = a cgroup was missed.
#[unsafe(no_mangle)]
static mut MISSED: u32 = 0;

/// What sockets send.
#[cgroup_skb]
pub fn ew_boot_out(ctx: SkBuffContext) -> i32 {
    judge(&ctx, boot_count::SENT)
}

/// What they receive.
#[cgroup_skb]
pub fn ew_boot_in(ctx: SkBuffContext) -> i32 {
    judge(&ctx, boot_count::RECEIVED)
}

/// A named cgroup is guarded before anybody can be in it.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn ew_boot_mkdir(ctx: BtfTracePointContext) -> i32 {
    let (cgroup, path): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    if made(cgroup, path).is_none() {
        count(boot_count::MISSED);
        // SAFETY: of this program; all write the same.
        unsafe { ptr::write_volatile(&raw mut MISSED, 1) };
    }
    0
}

/// Its entry can go.
#[btf_tracepoint(function = "cgroup_release")]
pub fn ew_boot_release(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    if is_v2(cgroup) == Some(true)
        && let Some(id) = kernfs::id(cgroup)
    {
        let _ = CGROUPS.remove(id);
    }
    0
}

#[inline(always)]
fn made(cgroup: *const u8, path: *const u8) -> Option<()> {
    // Other hierarchies have cgroups of the same paths.
    if !is_v2(cgroup)? {
        return Some(());
    }
    let mut key: BootPath = [0; BOOT_PATH_BYTES];
    // SAFETY: the helper checks the address, and writes no more than fits.
    unsafe { bpf_probe_read_kernel_str_bytes(path, &mut key) }.ok()?;
    // By reference: a copy would be too much for the stack.
    let named = &key;
    // SAFETY: read only to see whether it is there.
    if unsafe { PATHS.get(named) }.is_some() {
        CGROUPS.insert(kernfs::id(cgroup)?, 1, 0).ok()?;
    }
    Some(())
}

/// Says whether a cgroup is of the hierarchy that sockets belong to: its number is 0.
#[inline(always)]
fn is_v2(cgroup: *const u8) -> Option<bool> {
    // SAFETY: statics of this program. Volatile, because their values at load are not those that were compiled in.
    let (root, hierarchy) =
        unsafe { (ptr::read_volatile(&raw const OFF_ROOT), ptr::read_volatile(&raw const OFF_HIERARCHY)) };
    let root: *const u8 = kernfs::read(cgroup, root)?;
    Some(kernfs::read::<i32>(root, hierarchy)? == 0)
}

#[inline(always)]
fn judge(skb: &SkBuffContext, counter: u32) -> i32 {
    if is_guarded(skb) {
        count(counter);
        return 0;
    }
    1
}

#[inline(always)]
fn is_guarded(skb: &SkBuffContext) -> bool {
    // SAFETY: of this program.
    if unsafe { ptr::read_volatile(&raw const MISSED) } != 0 {
        return true;
    }
    for level in 1..=BOOT_DEPTH_MAX {
        // SAFETY: the context of this packet.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb.as_ptr().cast(), level.cast_signed()) };
        if id == 0 {
            // The socket's own cgroup lies above.
            return false;
        }
        // SAFETY: read only to see whether it is there.
        if unsafe { CGROUPS.get(id) }.is_some() {
            return true;
        }
    }
    false
}

#[inline(always)]
fn count(index: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(index) {
        // SAFETY: an aligned, live counter of a map; a program that interrupts this one adds to it as well.
        let _ = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
    }
}
