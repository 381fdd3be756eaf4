//! Reads a ring buffer of the kernel.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};

/// A ring buffer and the descriptor that becomes readable when something is in it.
pub struct Ring(pub(super) RingBuf<MapData>);

impl Ring {
    /// Waits until there is something to read, at most `timeout_ms`.
    ///
    /// # Errors
    ///
    /// What poll(2) said; an interruption counts as nothing to read.
    pub fn wait(&self, timeout_ms: i64) -> std::io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec { tv_sec: timeout_ms / 1000, tv_nsec: timeout_ms % 1000 * 1_000_000 };
        match poll(&mut [PollFd::new(&self.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Hands every record that is there to `take`; returns how many there were.
    ///
    /// Each has left the ring by then: were it there until `take` is done, whoever is killed meanwhile would have told what
    /// the next one tells again. What has left and was not told is missing from the books, and found so.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        let mut bytes = Vec::new();
        while let Some(record) = self.0.next() {
            bytes.clear();
            bytes.extend_from_slice(&record);
            drop(record);
            take(&bytes);
            count += 1;
        }
        count
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsRawFd as _;
        // SAFETY: the ring owns the descriptor and is borrowed for as long as the result lives.
        #[allow(unsafe_code)]
        unsafe {
            BorrowedFd::borrow_raw(self.0.as_raw_fd())
        }
    }
}
