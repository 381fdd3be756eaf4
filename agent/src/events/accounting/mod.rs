//! The books: every denial that the kernel counted is told, lost or pending, with difference 0. Pure.
//!
//! ```text
//! denied = listed + repeated + folded + settled + lost + pending
//! ```
//!
//! `denied` and the losses of the ring come from the kernel. What is told is counted when its record is
//! on disk, never before. What is settled needs none: nobody was denied who may call (see `held`). What left the kernel and is neither told, lost nor on its way was lost
//! without a witness; it is found by subtraction once nothing moves (see [`Ledger::observe`]).
//!
//! Source: events.md, section 3.4; security.md, R9.

#[cfg(test)]
mod tests;

use agent_common::{id::Epoch, layout::DenyCounter};
use serde::{Deserialize, Serialize};

use super::record::{AccountingEvent, LossEvent, Lost, Now, RecordsLost, Share, Stage, UnixMillis, new_uid};

/// How often the sums are told when they changed.
pub const ACCOUNTING_PERIOD_MS: u64 = 60_000;
/// How often they are told when they did not.
pub const ACCOUNTING_IDLE_PERIOD_MS: u64 = 300_000;

const NS_PER_MS: u64 = 1_000_000;

/// The counters of the kernel, summed over CPUs, by [`DenyCounter`].
pub type KernelCounts = [u64; DenyCounter::COUNT as usize];

/// Denials by the way in which they are told.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Shares {
    /// One by one.
    pub listed: u64,
    /// As repeats.
    pub repeated: u64,
    /// As a number of one workload.
    pub folded: u64,
}

impl Shares {
    fn add(&mut self, share: Share, denials: u64) {
        match share {
            Share::Listed => self.listed += denials,
            Share::Repeated => self.repeated += denials,
            Share::Folded => self.folded += denials,
            Share::None => {}
        }
    }

    const fn total(&self) -> u64 {
        self.listed + self.repeated + self.folded
    }
}

/// What outlives the agent: kept beside the sequence number, on a file system that a reboot empties.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedSums {
    /// Denials in records that were written.
    pub told: Shares,
    /// Denials that left the kernel and were lost afterwards.
    pub gone: Shares,
    /// Denials that were settled: it was not known yet who called or was called, and it was soon.
    #[serde(default)]
    pub settled: Shares,
    /// Denials lost, by stage.
    pub lost: Lost,
    /// Records written.
    pub records_written: u64,
    /// Records lost, by stage.
    pub records_lost: RecordsLost,
    /// Counts of maps that are gone: an agent that could not take them over made new ones.
    pub base: KernelCounts,
    /// Counts of the maps in use, when last seen.
    pub kernel: KernelCounts,
}

/// A loss, as the stage that found it says it.
#[derive(Clone, Debug, PartialEq)]
pub struct LossFound {
    /// Where.
    pub stage: Stage,
    /// Which part of the sum the denials were to be.
    pub share: Share,
    /// Records lost.
    pub records: u64,
    /// Denials lost.
    pub denials: u64,
    /// First and last sequence number, where they had one.
    pub sequences: Option<(u64, u64)>,
    /// What the system said.
    pub detail: Option<String>,
}

/// What the datapath saw at one tick.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// The counters of the kernel.
    pub kernel: KernelCounts,
    /// Repeats in rows that stay in the kernel.
    pub repeats_left: u64,
    /// The rows of `deny_folded` were taken at this tick, so none is left.
    pub folded_taken: bool,
    /// The ring was empty after the counters were read.
    pub ring_empty: bool,
    /// Epoch in force.
    pub epoch: Option<Epoch>,
}

/// Makes counters that nobody will count on add up, of whose denials `taken` left the kernel.
///
/// They were read one after the other, while programs counted: one may have read less denials than ways they were told, or
/// more. What has a way was denied. What has none yet was to be told one by one, which is what it is found missing from.
/// And what left the kernel was counted there, though maybe after the counters were read.
fn closed(mut counts: KernelCounts, taken: &Shares) -> KernelCounts {
    let Shares { listed, repeated, folded } = *taken;
    let ways = [(DenyCounter::Emitted, listed), (DenyCounter::Repeated, repeated), (DenyCounter::Folded, folded)];
    for (way, taken) in ways {
        counts[way as usize] = counts[way as usize].max(taken);
    }
    let with_way = counts[DenyCounter::Ring as usize] + ways.map(|(way, _)| counts[way as usize]).iter().sum::<u64>();
    let denied = &mut counts[DenyCounter::Denied as usize];
    let without = denied.saturating_sub(with_way);
    *denied = with_way + without;
    counts[DenyCounter::Emitted as usize] += without;
    counts
}

/// The books of one node and boot.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    sums: SavedSums,
    /// Denials that left the kernel.
    taken: Shares,
    /// Losses that no record tells yet, in the order of the stages.
    untold: Vec<Untold>,
    epoch: Option<Epoch>,
    /// When the kernel was last looked at.
    observed: Option<UnixMillis>,
    /// Everything that an agent before took and did not write has been found.
    inherited: bool,
    accounting: Accounting,
}

#[derive(Clone, Debug)]
struct Untold {
    stage: Stage,
    records: u64,
    denials: u64,
    sequences: Option<(u64, u64)>,
    detail: Option<String>,
    start: UnixMillis,
    end: UnixMillis,
}

#[derive(Clone, Copy, Debug, Default)]
struct Accounting {
    due: bool,
    told_ns: Option<u64>,
    told_denied: u64,
    told_lost: u64,
}

impl Ledger {
    /// Goes on with the sums of an agent before in the same boot.
    #[must_use]
    pub fn restored(sums: SavedSums) -> Self {
        let SavedSums { told, gone, settled, .. } = sums;
        let taken = Shares {
            listed: told.listed + gone.listed + settled.listed,
            repeated: told.repeated + gone.repeated + settled.repeated,
            folded: told.folded + gone.folded + settled.folded,
        };
        Self { sums, taken, ..Self::default() }
    }

    /// Returns what is to outlive the agent.
    #[must_use]
    pub const fn sums(&self) -> &SavedSums {
        &self.sums
    }

    /// Counts denials that left the kernel: read from the ring, or taken with a row.
    pub fn take(&mut self, share: Share, denials: u64) {
        self.taken.add(share, denials);
    }

    /// Counts a record that is on disk.
    pub fn written(&mut self, share: Share, denials: u64) {
        self.sums.records_written += 1;
        self.sums.told.add(share, denials);
    }

    /// Counts denials that no record tells, because they were none that anybody has to know of.
    pub fn settled(&mut self, share: Share, denials: u64) {
        self.sums.settled.add(share, denials);
    }

    /// Counts a loss. Its record is due at once.
    pub fn lost(&mut self, now: UnixMillis, found: LossFound) {
        self.enter(now, now, found);
    }

    /// Enters a loss that happened between two moments.
    fn enter(&mut self, since: UnixMillis, now: UnixMillis, found: LossFound) {
        let LossFound { stage, share, records, denials, sequences, detail } = found;
        self.sums.gone.add(share, denials);
        let Lost { ring, table, decode, crash, queue, encode, write } = &mut self.sums.lost;
        let RecordsLost { queue: queue_records, encode: encode_records, write: write_records } =
            &mut self.sums.records_lost;
        match stage {
            Stage::Ring => *ring += denials,
            Stage::Table => *table += denials,
            Stage::Decode => *decode += denials,
            Stage::Crash => *crash += denials,
            Stage::Queue => (*queue, *queue_records) = (*queue + denials, *queue_records + records),
            Stage::Encode => (*encode, *encode_records) = (*encode + denials, *encode_records + records),
            Stage::Write => (*write, *write_records) = (*write + denials, *write_records + records),
            // They were written and told once; the sums say nothing about who holds them.
            Stage::Spool => {}
        }
        let at = self.untold.iter().position(|untold| untold.stage == stage).unwrap_or_else(|| {
            let at = self.untold.partition_point(|untold| (untold.stage as u8) < stage as u8);
            let (records, denials, sequences, detail) = (0, 0, None, None);
            self.untold.insert(at, Untold { stage, records, denials, sequences, detail, start: since, end: now });
            at
        });
        let untold = &mut self.untold[at];
        untold.records += records;
        untold.denials += denials;
        untold.end = untold.end.max(now);
        untold.sequences = match (untold.sequences, sequences) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (known, None) | (None, known) => known,
        };
        if detail.is_some() {
            untold.detail = detail;
        }
    }

    /// Says that the counters begin at 0 again: the maps of an agent before could not be taken over.
    ///
    /// Whoever makes new maps calls this before the first [`Ledger::observe`]. A counter that went back
    /// says so too, but only if the new one has not overtaken the old.
    pub fn maps_are_new(&mut self) {
        let old = std::mem::take(&mut self.sums.kernel);
        for (base, count) in self.sums.base.iter_mut().zip(old) {
            *base += count;
        }
        self.sums.base = closed(self.sums.base, &self.taken);
    }

    /// As [`Self::maps_are_new`], where the old counters could be read once more.
    pub fn maps_ended_with(&mut self, last: &KernelCounts) {
        self.sums.kernel = *last;
        self.maps_are_new();
    }

    /// Compares what the kernel counted with what left it. Called once a second.
    ///
    /// The books can only be compared when nothing moves: if a counter is what it was a second ago,
    /// whatever it counted has arrived, and what is neither taken nor in a row is lost. Until the first
    /// such moment it is what an agent before took with it (`crash`), later it is repeats whose row
    /// vanished under a late increment (`table`).
    pub fn observe(&mut self, now: &Now, observation: &Observation) {
        let Observation { kernel, repeats_left, folded_taken, ring_empty, epoch } = *observation;
        let before = self.sums.kernel;
        let denied = DenyCounter::Denied as usize;
        if kernel[denied] < before[denied] {
            self.maps_are_new();
        }
        self.sums.kernel = kernel;
        self.epoch = epoch;
        let is_still =
            |counter: DenyCounter| self.observed.is_some() && kernel[counter as usize] == before[counter as usize];
        let (emitted, repeated, folded) =
            (is_still(DenyCounter::Emitted), is_still(DenyCounter::Repeated), is_still(DenyCounter::Folded));

        let ring = self.count(DenyCounter::Ring).saturating_sub(self.sums.lost.ring);
        self.found(now, Stage::Ring, Share::None, ring);
        let late = if self.inherited { Stage::Table } else { Stage::Crash };
        if emitted && ring_empty {
            let missing = self.count(DenyCounter::Emitted).saturating_sub(self.taken.listed);
            self.take(Share::Listed, missing);
            self.found(now, Stage::Crash, Share::Listed, missing);
        }
        if repeated {
            let missing = self.count(DenyCounter::Repeated).saturating_sub(self.taken.repeated + repeats_left);
            self.take(Share::Repeated, missing);
            self.found(now, late, Share::Repeated, missing);
        }
        if folded && folded_taken {
            let missing = self.count(DenyCounter::Folded).saturating_sub(self.taken.folded);
            self.take(Share::Folded, missing);
            self.found(now, late, Share::Folded, missing);
        }
        self.inherited |= emitted && ring_empty && repeated && folded && folded_taken;
        self.observed = Some(now.wall);
        self.mark_accounting(now);
    }

    /// Returns the losses that no record tells yet.
    #[must_use]
    pub fn losses(&self, now: UnixMillis) -> Vec<LossEvent> {
        self.untold
            .iter()
            .map(|untold| LossEvent {
                uid: new_uid(now),
                time: now,
                stage: untold.stage,
                records: untold.records,
                denials: untold.denials,
                sequences: untold.sequences,
                detail: untold.detail.clone(),
                start: untold.start,
                end: untold.end,
            })
            .collect()
    }

    /// Takes a loss off the list, because its record is on disk.
    pub fn loss_told(&mut self, event: &LossEvent) {
        if let Some(untold) = self.untold.iter_mut().find(|untold| untold.stage == event.stage) {
            // What was added since the record was made stays.
            untold.records = untold.records.saturating_sub(event.records);
            untold.denials = untold.denials.saturating_sub(event.denials);
            untold.start = event.end;
            untold.sequences = untold.sequences.filter(|_| untold.records > 0);
        }
        self.untold.retain(|untold| untold.records > 0 || untold.denials > 0);
    }

    /// Returns the sums if they are due, to be the next record written: then every record with a lower
    /// number is in them, and none with a higher one.
    ///
    /// `None` also while records were written of denials that the last look at the kernel did not see
    /// yet; the next tick sees them.
    #[must_use]
    pub fn due_accounting(&self, now: &Now) -> Option<AccountingEvent> {
        (self.accounting.due && self.difference().is_some()).then(|| self.accounting(now.wall))
    }

    /// Notes that the sums were told.
    pub fn accounting_told(&mut self, now: &Now) {
        self.accounting = Accounting {
            due: false,
            told_ns: Some(now.boot_ns),
            told_denied: self.count(DenyCounter::Denied),
            told_lost: self.sums.lost.total(),
        };
    }

    /// Returns the sums as they stand.
    #[must_use]
    pub fn accounting(&self, time: UnixMillis) -> AccountingEvent {
        let Shares { listed, repeated, folded } = self.sums.told;
        AccountingEvent {
            uid: new_uid(time),
            time,
            denied: self.count(DenyCounter::Denied),
            listed,
            repeated,
            folded,
            settled: self.sums.settled.total(),
            lost: self.sums.lost,
            pending: self.difference().unwrap_or(0),
            records_lost: self.sums.records_lost,
            epoch: self.epoch,
        }
    }

    /// Returns what is neither told nor lost; `None` if more was told than the kernel was seen to count.
    fn difference(&self) -> Option<u64> {
        self.count(DenyCounter::Denied)
            .checked_sub(self.sums.told.total() + self.sums.settled.total() + self.sums.lost.total())
    }

    fn count(&self, counter: DenyCounter) -> u64 {
        self.sums.base[counter as usize] + self.sums.kernel[counter as usize]
    }

    fn found(&mut self, now: &Now, stage: Stage, share: Share, denials: u64) {
        if denials > 0 {
            let found = LossFound { stage, share, records: 0, denials, sequences: None, detail: None };
            self.enter(self.observed.unwrap_or(now.wall), now.wall, found);
        }
    }

    fn mark_accounting(&mut self, now: &Now) {
        let Accounting { told_ns, told_denied, told_lost, .. } = self.accounting;
        // The first period begins with the first look.
        let told_ns = *self.accounting.told_ns.insert(told_ns.unwrap_or(now.boot_ns));
        let age_ms = now.boot_ns.saturating_sub(told_ns) / NS_PER_MS;
        let changed = told_denied != self.count(DenyCounter::Denied) || told_lost != self.sums.lost.total();
        let period_ms = if changed { ACCOUNTING_PERIOD_MS } else { ACCOUNTING_IDLE_PERIOD_MS };
        self.accounting.due |= age_ms >= period_ms;
    }
}
