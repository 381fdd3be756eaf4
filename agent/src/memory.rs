//! How the process holds its memory.
//!
//! A policy is read in many small pieces that are free a moment later. Left alone, the allocator keeps what it grew to
//! for the next time, in a pool for each thread: the agent would hold twice the memory it needs, for good.
#![expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

/// From this size on, in bytes, a piece has pages of its own, which go back when it is free; and so much may stay free at
/// the end of the heap.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 64 << 10;

/// Lets the allocator give back what is free. Call it before there is a second thread.
pub fn give_back_what_is_free() {
    // Other C libraries give back by themselves.
    #[cfg(target_env = "gnu")]
    for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)] {
        // SAFETY: sets a number of the allocator; a refusal leaves it as it was.
        unsafe { libc::mallopt(option, value) };
    }
}
