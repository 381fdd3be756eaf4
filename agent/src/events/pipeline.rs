//! From kernel bytes to the queue of the writer. Needs no kernel: bytes, rows and counters come in.
//!
//! Two threads call it: the ring reader [`Pipeline::on_ring_bytes`], and once a second the datapath,
//! which alone may delete rows: [`Pipeline::due`], look up and delete, read the counters,
//! [`Pipeline::on_tick`]. It never waits for a sink.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc::Receiver},
};

use agent_common::layout::{DenyKey, DenyStat};
use tokio::sync::broadcast;

use super::{
    accounting::{KernelCounts, LossFound, Observation},
    decode::{Denial, InvalidRecord, decode},
    enrich::{CutFlow, Enrich},
    held::Held,
    process,
    queue::{Message, QUEUE_RECORDS_MAX, RecordQueue, SharedLedger},
    record::{DenyEvent, Now, Record, Share, Stage},
    snapshot::Snapshots,
    windows::{FoldedRow, FoldedWindow, Windows},
};

/// Events that a follower may lag behind. One more, and it is told how many it missed.
pub const FOLLOWER_EVENTS_MAX: usize = 1024;

/// Denials that are kept to be shown to who asks later. At about 1 kB each, 1 MB.
pub const RECENT_EVENTS_MAX: usize = 1024;

/// Settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// As in [`super::community_id`].
    pub community_id_seed: u16,
    /// Where processes are looked up; `None` leaves path and start of a process out.
    pub proc_root: Option<PathBuf>,
    /// Records that can wait for the writer.
    pub queue_records_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { community_id_seed: 0, proc_root: Some("/proc".into()), queue_records_max: QUEUE_RECORDS_MAX }
    }
}

/// Rows that are to be taken out of the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Due {
    /// Keys of `deny_seen`, to be looked up and deleted.
    pub seen: Vec<DenyKey>,
    /// Whether all of `deny_folded` is to be taken.
    pub folded: bool,
}

/// What a tick brings.
#[derive(Clone, Copy, Debug)]
pub struct Tick<'a> {
    /// The counters, read after the rows were taken.
    pub kernel: KernelCounts,
    /// Rows of `deny_seen` that were taken.
    pub seen: &'a [(DenyKey, DenyStat)],
    /// Rows of `deny_folded` that were taken; `None` if they were not due or could not be read.
    pub folded: Option<&'a [FoldedRow]>,
    /// The ring was empty after the counters were read.
    pub ring_empty: bool,
}

/// Makes records and hands them on.
#[derive(Debug)]
pub struct Pipeline {
    config: Config,
    queue: RecordQueue,
    followers: broadcast::Sender<Arc<DenyEvent>>,
    /// Oldest first. Locked while an event is sent, so that who asks for both misses none.
    recent: Mutex<VecDeque<Arc<DenyEvent>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    windows: Windows,
    folded: FoldedWindow,
    held: Held,
    /// Repeats in the rows of the last look.
    repeats: HashMap<DenyKey, u64>,
}

impl Pipeline {
    /// Returns the pipeline and the end of its queue that the writer reads.
    ///
    /// `ledger` comes from the writer, which knows the sums of an agent before.
    #[must_use]
    pub fn new(config: Config, ledger: SharedLedger) -> (Self, Receiver<Message>) {
        let (queue, receiver) = RecordQueue::new(ledger, config.queue_records_max);
        let (followers, _) = broadcast::channel(FOLLOWER_EVENTS_MAX);
        (Self { config, queue, followers, recent: Mutex::default(), state: Mutex::default() }, receiver)
    }

    /// Returns the newest denials, oldest first, and those from this moment on, as `flows` shows them.
    #[must_use]
    pub fn subscribe(&self) -> (Vec<Arc<DenyEvent>>, broadcast::Receiver<Arc<DenyEvent>>) {
        let recent = self.lock_recent();
        (recent.iter().cloned().collect(), self.followers.subscribe())
    }

    /// Returns the newest denials, oldest first, at most [`RECENT_EVENTS_MAX`].
    #[must_use]
    pub fn recent(&self) -> Vec<Arc<DenyEvent>> {
        self.lock_recent().iter().cloned().collect()
    }

    /// The books, for `status` and metrics.
    #[must_use]
    pub const fn ledger(&self) -> &SharedLedger {
        self.queue.ledger()
    }

    /// Takes in one record of the ring. `awaits` says of which addresses it may be told soon whose they are.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord`] if it is none. The denial is counted lost at `decode` already; the error is for the log.
    pub fn on_ring_bytes(
        &self,
        bytes: &[u8],
        now: &Now,
        snapshots: &Snapshots,
        awaits: impl Fn(IpAddr) -> bool,
    ) -> Result<(), InvalidRecord> {
        self.ledger().lock().take(Share::Listed, 1);
        let denial = decode(bytes).inspect_err(|error| {
            let (stage, share, detail) = (Stage::Decode, Share::Listed, Some(error.to_string()));
            let found = LossFound { stage, share, records: 0, denials: 1, sequences: None, detail };
            self.ledger().lock().lost(now.wall, found);
        })?;
        let event = self.enrich(now, snapshots).denial(&denial, self.details(&denial));
        let event = self.opened(now, &denial.key, event);
        let waits = event.peer().addr.is_some_and(awaits);
        let event = if waits { self.state().held.hold(now.boot_ns, denial.key, event) } else { Some(event) };
        if let Some(event) = event {
            self.publish(now, event);
        }
        Ok(())
    }

    /// Tells of the denials that have waited long enough for whose the other end is. `settles` says that it is known
    /// now, and may.
    pub fn on_wait(&self, now: &Now, settles: impl Fn(&DenyEvent) -> bool) {
        let (settled, told) = self.state().held.due(now.boot_ns, settles);
        self.ledger().lock().settled(Share::Listed, settled);
        told.into_iter().for_each(|event| self.publish(now, event));
    }

    /// Tells of all denials that wait: there is no later.
    pub fn on_stop(&self, now: &Now) {
        let told: Vec<_> = self.state().held.all().collect();
        told.into_iter().for_each(|event| self.publish(now, event));
    }

    /// Returns the rows whose window has ended. `rows` is all of `deny_seen`.
    pub fn due(&self, now: &Now, rows: &[(DenyKey, DenyStat)]) -> Due {
        let mut state = self.state();
        state.repeats = rows.iter().filter(|(_, stat)| stat.count > 0).map(|(key, stat)| (*key, stat.count)).collect();
        Due { seen: state.windows.due(now.boot_ns, rows), folded: state.folded.is_due(now.boot_ns) }
    }

    /// Takes in the rows that [`Pipeline::due`] named, and the counters.
    pub fn on_tick(&self, now: &Now, tick: &Tick<'_>, snapshots: &Snapshots) {
        let enrich = self.enrich(now, snapshots);
        let (rows, settled, repeats_left) = {
            let mut state = self.state();
            // A row that was due and could not be taken stays and is no loss yet.
            let mut left = std::mem::take(&mut state.repeats);
            for (key, _) in tick.seen {
                left.remove(key);
            }
            let settled = tick.seen.iter().filter(|(key, stat)| state.held.settles(key, stat));
            let settled: HashSet<DenyKey> = settled.map(|(key, _)| *key).collect();
            (state.windows.taken(now.boot_ns, tick.seen), settled, left.values().sum())
        };
        for row in &rows {
            self.ledger().lock().take(Share::Repeated, row.stat.count);
            if settled.contains(&row.key) {
                self.ledger().lock().settled(Share::Repeated, row.stat.count);
            } else {
                self.publish(now, enrich.repeat(row).into());
            }
        }
        for row in tick.folded.unwrap_or_default().iter().filter(|row| row.stat.count > 0) {
            self.ledger().lock().take(Share::Folded, row.stat.count);
            self.queue.offer(now.wall, Record::Folded(enrich.folded(row)));
        }
        let observation = Observation {
            kernel: tick.kernel,
            repeats_left,
            folded_taken: tick.folded.is_some(),
            ring_empty: tick.ring_empty,
            epoch: snapshots.newest().map(|snapshot| snapshot.epoch),
        };
        self.ledger().lock().observe(now, &observation);
        self.queue.wake();
    }

    /// Takes in a flow that was closed.
    pub fn on_cut(&self, cut: &CutFlow, now: &Now, snapshots: &Snapshots) {
        self.publish(now, self.enrich(now, snapshots).cut(cut).into());
    }

    /// Hands on a record about eastwall itself: policy, start, stop.
    pub fn submit(&self, now: &Now, record: Record) {
        self.queue.offer(now.wall, record);
    }

    fn publish(&self, now: &Now, event: Arc<DenyEvent>) {
        let mut recent = self.lock_recent();
        if recent.len() >= RECENT_EVENTS_MAX {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&event));
        // The error says that nobody follows.
        let _ = self.followers.send(Arc::clone(&event));
        drop(recent);
        self.queue.offer(now.wall, Record::Deny(event));
    }

    fn opened(&self, now: &Now, key: &DenyKey, mut event: DenyEvent) -> Arc<DenyEvent> {
        let mut state = self.state();
        if let Some(series) = state.windows.series(key) {
            event.series = series;
        }
        let event = Arc::new(event);
        state.windows.opened(now.boot_ns, *key, Arc::clone(&event));
        event
    }

    fn details(&self, denial: &Denial) -> Option<process::ProcessDetails> {
        let pid = denial.process?.pid;
        process::look_up(self.config.proc_root.as_deref()?, pid, denial.boot_ns)
    }

    const fn enrich<'a>(&self, now: &Now, snapshots: &'a Snapshots) -> Enrich<'a> {
        Enrich { now: *now, snapshots, community_id_seed: self.config.community_id_seed }
    }

    /// Poisoned or not: what is shown again decides nothing.
    fn lock_recent(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<DenyEvent>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Poisoned or not: the windows decide only how often a repeat is told.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
