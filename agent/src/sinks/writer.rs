//! The thread that writes. It alone waits for the disk.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use super::file::FileSink;
use crate::events::{
    queue::Message,
    record::{Now, Record},
};

/// Most records in one write. At 3.3 kB each, 3 MB of buffer.
const BATCH_RECORDS_MAX: usize = 1024;
/// How long the thread sleeps when nothing comes: how late it may see a switch, or room on the disk.
const SLEEP: Duration = Duration::from_millis(250);

/// Reads both clocks.
pub type Clock = Box<dyn Fn() -> Now + Send>;

/// The switches of the thread.
#[derive(Debug)]
pub struct WriterHandle {
    switches: Arc<Switches>,
    thread: thread::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Switches {
    reopen: AtomicBool,
    stop: AtomicBool,
}

impl WriterHandle {
    /// Opens the file at the path again before the next write: SIGHUP. Does not wait.
    pub fn reopen(&self) {
        self.switches.reopen.store(true, Ordering::Release);
    }

    /// Writes what is in the queue, makes it durable, and ends the thread. Waits for the disk.
    ///
    /// Returns false if the thread had panicked.
    pub fn stop(self) -> bool {
        self.switches.stop.store(true, Ordering::Release);
        self.thread.join().is_ok()
    }
}

/// Starts the thread. It ends by [`WriterHandle::stop`], or when nobody can send any more.
///
/// # Errors
///
/// If the system has no thread left.
pub fn spawn(sink: FileSink, receiver: Receiver<Message>, clock: Clock) -> io::Result<WriterHandle> {
    let switches = Arc::new(Switches::default());
    let theirs = Arc::clone(&switches);
    let thread =
        thread::Builder::new().name("spool-writer".to_owned()).spawn(move || run(sink, &receiver, &clock, &theirs))?;
    Ok(WriterHandle { switches, thread })
}

fn run(mut sink: FileSink, receiver: &Receiver<Message>, clock: &Clock, switches: &Switches) {
    loop {
        // Before the queue is read, so that what was sent before the switch is written.
        let stop = switches.stop.load(Ordering::Acquire);
        let (batch, is_open) = next_batch(receiver, if stop { Duration::ZERO } else { SLEEP });
        let now = clock();
        if switches.reopen.swap(false, Ordering::AcqRel) {
            sink.reopen(&now);
        }
        let is_last = batch.len() < BATCH_RECORDS_MAX;
        sink.write(&batch, &now);
        if (stop || !is_open) && is_last {
            sink.sync(&now);
            return;
        }
    }
}

/// Returns what the queue holds, after waiting for the first of it, and whether more can come.
fn next_batch(receiver: &Receiver<Message>, wait: Duration) -> (Vec<Record>, bool) {
    let first = match receiver.recv_timeout(wait) {
        Ok(message) => message,
        Err(RecvTimeoutError::Timeout) => return (Vec::new(), true),
        Err(RecvTimeoutError::Disconnected) => return (Vec::new(), false),
    };
    let records = std::iter::once(first).chain(receiver.try_iter()).filter_map(|message| match message {
        Message::Record(record) => Some(*record),
        Message::Wake => None,
    });
    (records.take(BATCH_RECORDS_MAX).collect(), true)
}
