//! Atomic addition in maps. The target has no compare-and-swap, so `core` offers none of its types.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Adds `n` to a counter that other CPUs and interrupting programs add to as well.
///
/// # Safety
///
/// `counter` points to an aligned, live u64 of a map.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: the caller's promise.
    let _ = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, n) };
}
