use agent_common::layout::DenyCounter;
use proptest::prelude::*;

use super::*;

/// A kernel, an agent and a file, too simple to be wrong: each denial is one token that is in exactly
/// one place.
#[derive(Debug, Default)]
struct World {
    kernel: KernelCounts,
    ring: u64,
    rows: u64,
    folded_rows: u64,
    queue: Vec<(Share, u64)>,
    ledger: Ledger,
    now: Now,
    /// What the file tells, counted from the records in it.
    file: Shares,
    lost_by_the_world: u64,
}

#[derive(Clone, Debug)]
enum Step {
    First,
    Repeat,
    Fold,
    RingFull,
    Read,
    Refused,
    TakeRows,
    TakeFolded,
    Write,
    WriteFails,
    QueueFull,
    LateIncrement,
    Crash,
    NewMaps,
    Tick,
}

impl World {
    fn count(&mut self, counter: DenyCounter) {
        self.kernel[DenyCounter::Denied as usize] += 1;
        self.kernel[counter as usize] += 1;
    }

    fn lose(&mut self, stage: Stage, share: Share, records: u64, denials: u64) {
        let found = LossFound { stage, share, records, denials, sequences: None, detail: None };
        self.ledger.lost(self.now.wall, found);
        self.lost_by_the_world += denials;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::First => {
                self.count(DenyCounter::Emitted);
                self.ring += 1;
            }
            Step::Repeat => {
                self.count(DenyCounter::Repeated);
                self.rows += 1;
            }
            Step::Fold => {
                self.count(DenyCounter::Folded);
                self.folded_rows += 1;
            }
            Step::RingFull => {
                self.count(DenyCounter::Ring);
                self.lost_by_the_world += 1;
            }
            Step::Read if self.ring > 0 => {
                self.ring -= 1;
                self.ledger.take(Share::Listed, 1);
                self.queue.push((Share::Listed, 1));
            }
            Step::Refused if self.ring > 0 => {
                self.ring -= 1;
                self.ledger.take(Share::Listed, 1);
                self.lose(Stage::Decode, Share::Listed, 0, 1);
            }
            Step::TakeRows if self.rows > 0 => {
                let taken = std::mem::take(&mut self.rows);
                self.ledger.take(Share::Repeated, taken);
                self.queue.push((Share::Repeated, taken));
            }
            Step::TakeFolded if self.folded_rows > 0 => {
                let taken = std::mem::take(&mut self.folded_rows);
                self.ledger.take(Share::Folded, taken);
                self.queue.push((Share::Folded, taken));
            }
            Step::Write if !self.queue.is_empty() => {
                let (share, denials) = self.queue.remove(0);
                self.file.add(share, denials);
                self.ledger.written(share, denials);
            }
            Step::WriteFails if !self.queue.is_empty() => {
                let (share, denials) = self.queue.remove(0);
                self.lose(Stage::Write, share, 1, denials);
            }
            Step::QueueFull if !self.queue.is_empty() => {
                let (share, denials) = self.queue.remove(0);
                self.lose(Stage::Queue, share, 1, denials);
            }
            Step::LateIncrement => {
                self.count(DenyCounter::Repeated);
                self.lost_by_the_world += 1;
            }
            Step::Crash => {
                self.lost_by_the_world += self.queue.drain(..).map(|(_, denials)| denials).sum::<u64>();
                self.ledger = Ledger::restored(*self.ledger.sums());
            }
            Step::NewMaps => {
                // Seen before the end; what the old maps still held is gone with them.
                self.tick();
                self.lost_by_the_world += self.ring + self.rows + self.folded_rows;
                (self.ring, self.rows, self.folded_rows) = (0, 0, 0);
                self.kernel = KernelCounts::default();
                self.ledger.maps_are_new();
            }
            Step::Tick => self.tick(),
            Step::Read | Step::Refused | Step::TakeRows | Step::TakeFolded => {}
            Step::Write | Step::WriteFails | Step::QueueFull => {}
        }
    }

    fn tick(&mut self) {
        self.now.boot_ns += 1_000 * NS_PER_MS;
        self.now.wall.0 += 1_000;
        let observation = Observation {
            kernel: self.kernel,
            repeats_left: self.rows,
            folded_taken: self.folded_rows == 0,
            ring_empty: self.ring == 0,
            epoch: Some(Epoch(1)),
        };
        self.ledger.observe(&self.now, &observation);
    }

    /// Takes everything out of the kernel, writes it, and waits until nothing moves.
    fn settle(&mut self) {
        while self.ring > 0 {
            self.step(&Step::Read);
        }
        for step in [Step::TakeRows, Step::TakeFolded] {
            self.step(&step);
        }
        while !self.queue.is_empty() {
            self.step(&Step::Write);
        }
        self.tick();
        self.tick();
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::First), 8 => Just(Step::Repeat), 4 => Just(Step::Fold), 1 => Just(Step::RingFull),
        8 => Just(Step::Read), 1 => Just(Step::Refused), 2 => Just(Step::TakeRows), 2 => Just(Step::TakeFolded),
        8 => Just(Step::Write), 1 => Just(Step::WriteFails), 1 => Just(Step::QueueFull),
        1 => Just(Step::LateIncrement), 1 => Just(Step::Crash), 4 => Just(Step::Tick),
    ];
    proptest::collection::vec(step, 0..200)
}

fn adds_up(event: &AccountingEvent) -> bool {
    event.denied == event.listed + event.repeated + event.folded + event.lost.total() + event.pending
}

proptest! {
    #[test]
    fn every_denial_is_told_lost_or_pending_with_difference_zero(steps in steps(), new_maps in any::<bool>()) {
        let mut world = World::default();
        let mut denied_before = 0;
        for step in &steps {
            world.step(step);
        }
        if new_maps {
            denied_before = world.kernel[DenyCounter::Denied as usize];
            world.step(&Step::NewMaps);
            for step in &steps {
                world.step(step);
            }
        }
        world.settle();
        let sums = world.ledger.accounting(world.now.wall);
        prop_assert_eq!(sums.denied, denied_before + world.kernel[DenyCounter::Denied as usize]);
        prop_assert_eq!(Shares { listed: sums.listed, repeated: sums.repeated, folded: sums.folded }, world.file);
        prop_assert_eq!(sums.lost.total(), world.lost_by_the_world);
        prop_assert_eq!(sums.pending, 0);
        prop_assert!(adds_up(&sums));
    }

    #[test]
    fn the_sums_add_up_at_every_tick(steps in steps()) {
        let mut world = World::default();
        for step in &steps {
            world.step(step);
            if matches!(step, Step::Tick) {
                let sums = world.ledger.accounting(world.now.wall);
                prop_assert!(adds_up(&sums), "{sums:?}");
                prop_assert!(sums.lost.total() <= world.lost_by_the_world, "no loss is invented");
            }
        }
    }

    #[test]
    fn every_loss_is_told_once(steps in steps()) {
        let mut world = World::default();
        let mut told = 0;
        for step in &steps {
            world.step(step);
            for loss in world.ledger.losses(world.now.wall) {
                told += loss.denials;
                world.ledger.loss_told(&loss);
            }
        }
        prop_assert_eq!(told, world.ledger.accounting(world.now.wall).lost.total());
    }
}

#[test]
fn counters_that_were_read_while_programs_counted_close_the_books_all_the_same() {
    let ways = [DenyCounter::Emitted, DenyCounter::Repeated, DenyCounter::Folded, DenyCounter::Ring];
    // The first reads one denial less, as many, or one more than its ways.
    for (way, more_denied, more_told) in ways.into_iter().flat_map(|way| [(way, 0, 1), (way, 0, 0), (way, 1, 0)]) {
        let mut last = KernelCounts::default();
        ways.iter().for_each(|&way| last[way as usize] = 3);
        last[DenyCounter::Denied as usize] = 12 + more_denied;
        last[way as usize] += more_told;
        let mut world = World::default();
        world.ledger.maps_ended_with(&last);
        (0..3).for_each(|_| world.tick());
        let sums = world.ledger.accounting(world.now.wall);
        let all = 12 + more_denied + more_told;
        assert_eq!((sums.denied, sums.lost.total(), sums.pending), (all, all, 0), "{last:?}: {sums:?}");
        assert_eq!(sums.lost.ring, last[DenyCounter::Ring as usize], "no other loss is told as one of the ring");
    }
}

#[test]
fn what_left_the_kernel_after_it_was_last_seen_to_count_was_counted() {
    let shares = [Share::Listed, Share::Repeated, Share::Folded];
    for (share, is_written) in shares.into_iter().flat_map(|share| [(share, false), (share, true)]) {
        let mut world = World::default();
        world.count(DenyCounter::Emitted);
        world.ring = 1;
        world.tick();
        world.step(&Step::Read);
        world.step(&Step::Write);
        // Two more, before the next look; then the maps are gone.
        world.ledger.take(share, 2);
        if is_written {
            world.ledger.written(share, 2);
        } else {
            world.lose(Stage::Write, share, 1, 2);
        }
        world.kernel = KernelCounts::default();
        world.ledger.maps_are_new();
        (0..3).for_each(|_| world.tick());
        let sums = world.ledger.accounting(world.now.wall);
        assert!(adds_up(&sums), "{sums:?}");
        assert_eq!((sums.denied, sums.pending), (3, 0), "{sums:?}");
    }
}

fn loss(denials: u64, sequences: (u64, u64)) -> LossFound {
    let records = sequences.1 - sequences.0 + 1;
    let (stage, share, sequences) = (Stage::Write, Share::Listed, Some(sequences));
    LossFound { stage, share, records, denials, sequences, detail: Some("No space left on device".into()) }
}

#[test]
fn losses_of_one_stage_are_one_record_with_their_range() {
    let mut ledger = Ledger::default();
    ledger.lost(UnixMillis(5), loss(3, (10, 11)));
    ledger.lost(UnixMillis(9), loss(4, (12, 20)));
    let losses = ledger.losses(UnixMillis(10));
    assert_eq!(losses.len(), 1);
    let event = &losses[0];
    assert_eq!((event.records, event.denials, event.sequences), (11, 7, Some((10, 20))));
    assert_eq!((event.start, event.end), (UnixMillis(5), UnixMillis(9)));
    ledger.lost(UnixMillis(11), loss(1, (21, 21)));
    ledger.loss_told(event);
    let rest = ledger.losses(UnixMillis(12));
    assert_eq!((rest[0].records, rest[0].denials), (1, 1), "what came later is told later");
}

#[test]
fn a_repeat_whose_row_vanished_is_lost_at_table_and_only_once_nothing_moves() {
    let mut world = World::default();
    world.settle();
    world.step(&Step::LateIncrement);
    world.tick();
    assert_eq!(world.ledger.losses(UnixMillis(0)).len(), 0, "it may still arrive");
    world.tick();
    let losses = world.ledger.losses(UnixMillis(0));
    assert_eq!((losses[0].stage, losses[0].denials), (Stage::Table, 1));
}

#[test]
fn what_an_agent_before_took_and_did_not_write_is_lost_at_crash() {
    let mut world = World::default();
    for step in [Step::First, Step::First, Step::Repeat, Step::Read, Step::Read, Step::TakeRows, Step::Write] {
        world.step(&step);
    }
    world.tick();
    world.step(&Step::Crash);
    world.settle();
    let sums = world.ledger.accounting(world.now.wall);
    assert_eq!((sums.listed, sums.lost), (1, Lost { crash: 2, ..Lost::default() }));
}

#[test]
fn counters_that_begin_again_are_noticed() {
    let mut world = World::default();
    for step in [Step::First, Step::First, Step::Read, Step::Write, Step::Tick] {
        world.step(&step);
    }
    world.kernel = KernelCounts::default();
    (world.ring, world.lost_by_the_world) = (0, 1);
    world.settle();
    let sums = world.ledger.accounting(world.now.wall);
    assert_eq!((sums.denied, sums.listed, sums.lost.crash), (2, 1, 1));
}

#[test]
fn the_sums_are_due_every_minute_if_they_changed_and_else_every_five() {
    let mut world = World::default();
    let due_after = |world: &mut World| {
        let begin = world.now.boot_ns;
        while world.ledger.due_accounting(&world.now).is_none() {
            world.tick();
        }
        world.ledger.accounting_told(&world.now);
        (world.now.boot_ns - begin) / (1_000 * NS_PER_MS)
    };
    world.tick();
    assert_eq!(due_after(&mut world), 300);
    world.step(&Step::RingFull);
    assert_eq!(due_after(&mut world), 60);
    assert_eq!(due_after(&mut world), 300);
}

#[test]
fn sums_wait_until_the_kernel_was_seen_to_count_what_is_told() {
    let mut world = World::default();
    world.tick();
    for step in [Step::First, Step::Read, Step::Write] {
        world.step(&step);
    }
    world.now.boot_ns += ACCOUNTING_IDLE_PERIOD_MS * NS_PER_MS;
    world.ledger.accounting.due = true;
    assert!(world.ledger.due_accounting(&world.now).is_none(), "one told, none counted");
    world.tick();
    assert!(adds_up(&world.ledger.due_accounting(&world.now).unwrap()));
}
