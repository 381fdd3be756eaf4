//! Atomic operations in maps. For the target `core` offers none of its types.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

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

/// Writes `new` if `place` holds `old`, and says whether it did.
///
/// # Safety
///
/// `place` points to an aligned, live u64 of a map.
#[inline(always)]
pub unsafe fn replace(place: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, old, new).1 }
}
