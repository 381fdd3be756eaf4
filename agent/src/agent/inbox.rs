//! The one way into the reconcile thread: a bounded queue, and a descriptor that wakes the thread while
//! it waits for the kernel.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::control::{
    access::Caller,
    wire::{Reply, Request},
};

/// Inputs that can wait. A caller beyond that is refused.
pub const INPUTS_MAX: usize = 256;

/// What the thread reacts to.
#[derive(Debug)]
pub enum Input {
    /// A request, and where the answer goes.
    Request(Request, Caller, oneshot::Sender<Reply>),
    /// The policy directory changed, or SIGHUP.
    Reload,
    /// Stop; what is attached stays attached.
    Stop,
}

/// The end that many hold.
#[derive(Clone, Debug)]
pub struct Outside {
    queue: SyncSender<Input>,
    wake: Arc<OwnedFd>,
}

/// The end of the thread.
#[derive(Debug)]
pub struct Inbox {
    queue: Receiver<Input>,
    wake: Arc<OwnedFd>,
}

/// Makes both ends.
///
/// # Errors
///
/// If there is no descriptor left.
pub fn inbox() -> io::Result<(Outside, Inbox)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, receiver) = sync_channel(INPUTS_MAX);
    Ok((Outside { queue: sender, wake: Arc::clone(&wake) }, Inbox { queue: receiver, wake }))
}

impl Outside {
    /// Hands an input over; false if the queue is full or the thread is gone.
    #[must_use]
    pub fn send(&self, input: Input) -> bool {
        let sent = match self.queue.try_send(input) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        };
        // A full counter means that the thread is awake.
        let _ = rustix::io::write(self.wake.as_fd(), &1_u64.to_ne_bytes());
        sent
    }
}

impl Inbox {
    /// Returns what is there, without waiting.
    pub fn take(&self) -> Vec<Input> {
        let mut counter = [0; 8];
        let _ = rustix::io::read(self.wake.as_fd(), &mut counter);
        self.queue.try_iter().collect()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
