//! The one queue between whoever makes records and the writer. What does not fit is counted, and
//! nobody waits.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
};

use super::{
    accounting::{Ledger, LossFound},
    record::{Record, Stage, UnixMillis},
};

/// Records that can wait for the writer. One more is lost at `queue`.
pub const QUEUE_RECORDS_MAX: usize = 8192;

/// The books, shared by the ring reader, the datapath and the writer. Each holds them for a few additions.
#[derive(Clone, Debug, Default)]
pub struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    /// Shares `ledger`.
    #[must_use]
    pub fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    /// Opens the books.
    ///
    /// Someone who panicked with them open left a sum of two numbers, at worst without the second: they
    /// are still the best there is.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes through the queue.
#[derive(Debug)]
pub enum Message {
    /// A record to be written.
    Record(Box<Record>),
    /// Look at the books and at the switches of the writer.
    Wake,
}

/// The near end of the queue.
#[derive(Clone, Debug)]
pub struct RecordQueue {
    sender: SyncSender<Message>,
    ledger: SharedLedger,
}

impl RecordQueue {
    /// Returns both ends.
    #[must_use]
    pub fn new(ledger: SharedLedger, records_max: usize) -> (Self, Receiver<Message>) {
        let (sender, receiver) = sync_channel(records_max);
        (Self { sender, ledger }, receiver)
    }

    /// Gives a record to the writer, or counts it lost at `queue`. Never waits.
    pub fn offer(&self, now: UnixMillis, record: Record) {
        let (Message::Record(record), detail) = (match self.sender.try_send(Message::Record(Box::new(record))) {
            Ok(()) => return,
            Err(TrySendError::Full(message)) => (message, None),
            Err(TrySendError::Disconnected(message)) => (message, Some("the writer has stopped".to_owned())),
        }) else {
            return;
        };
        let (share, denials) = record.denials();
        let found = LossFound { stage: Stage::Queue, share, records: 1, denials, sequences: None, detail };
        self.ledger.lock().lost(now, found);
    }

    /// Makes the writer look at the books. A full queue has woken it already.
    pub fn wake(&self) {
        let _ = self.sender.try_send(Message::Wake);
    }

    /// The books.
    #[must_use]
    pub const fn ledger(&self) -> &SharedLedger {
        &self.ledger
    }
}
