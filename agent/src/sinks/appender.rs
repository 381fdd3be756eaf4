//! Numbers, serialises and writes a batch. The only place that gives out sequence numbers.
//!
//! The order in the file is the order of the numbers. A number whose write failed is used up, so a
//! reader sees exactly which records it misses, and the `loss` record that follows names them.

use std::io::{self, Write};

use crate::events::{
    accounting::LossFound,
    ocsf::{Node, Stamp, write_line},
    queue::SharedLedger,
    record::{LossEvent, Now, Record, Share, Stage},
};

/// See the module.
#[derive(Debug)]
pub struct Appender {
    node: Node,
    ledger: SharedLedger,
    /// The next number.
    next: u64,
    /// The last number that is on disk; 0 = none.
    last_written: u64,
    /// The last line has no newline: a write ended in its middle.
    torn: bool,
    /// The last write failed. The next one begins with the record of that loss, alone.
    failing: bool,
    buffer: Vec<u8>,
}

/// One line of a batch.
struct Entry {
    sequence: u64,
    /// Index in the buffer behind its newline.
    end: usize,
    what: What,
}

enum What {
    Record(Share, u64),
    Loss(LossEvent),
    Accounting,
}

impl Appender {
    /// Goes on after `sequence`. `torn` says that what is written to ends in the middle of a line.
    pub const fn new(node: Node, ledger: SharedLedger, sequence: u64, torn: bool) -> Self {
        Self { node, ledger, next: sequence + 1, last_written: sequence, torn, failing: false, buffer: Vec::new() }
    }

    /// The last number given out.
    pub const fn sequence(&self) -> u64 {
        self.next - 1
    }

    /// The last number that is on disk.
    pub const fn last_written(&self) -> u64 {
        self.last_written
    }

    /// Says how what is written to from here on ends.
    pub const fn set_torn(&mut self, torn: bool) {
        self.torn = torn;
    }

    /// Writes the losses and sums that are due, then `records`. Returns the bytes that got out.
    ///
    /// What does not get out is counted in the books; nothing is tried twice but the record of a loss.
    pub fn write(&mut self, out: &mut dyn Write, records: &[Record], now: &Now) -> u64 {
        let before = self.ledger.lock().losses(now.wall);
        let mut bytes = 0;
        if self.failing {
            bytes += self.probe(out, &before, now);
            if self.failing {
                self.use_up(records, now);
                return bytes;
            }
        }
        // Asked again: the probe may have told some.
        let (losses, accounting) = {
            let ledger = self.ledger.lock();
            (ledger.losses(now.wall), ledger.due_accounting(now))
        };
        let mut entries = Vec::with_capacity(records.len() + losses.len() + 1);
        self.begin();
        // First of all, so that exactly the records with a lower number are in the sums.
        if let Some(event) = accounting {
            self.push(&mut entries, &Record::Accounting(event), What::Accounting, now);
        }
        for event in losses {
            self.push(&mut entries, &Record::Loss(event.clone()), What::Loss(event), now);
        }
        for record in records {
            let (share, denials) = record.denials();
            self.push(&mut entries, record, What::Record(share, denials), now);
        }
        bytes + self.flush(out, entries, now)
    }

    /// Tries to write the record of the loss, and nothing else.
    fn probe(&mut self, out: &mut dyn Write, losses: &[LossEvent], now: &Now) -> u64 {
        let (first, torn) = (self.next, self.torn);
        let mut entries = Vec::with_capacity(losses.len());
        self.begin();
        for event in losses {
            self.push(&mut entries, &Record::Loss(event.clone()), What::Loss(event.clone()), now);
        }
        let (written, error) = write_all(out, &self.buffer);
        if error.is_some() && written == 0 {
            // Nothing was begun, so nobody can have seen these numbers.
            (self.next, self.torn) = (first, torn);
            return 0;
        }
        self.settle(entries, written, error, now)
    }

    fn begin(&mut self) {
        self.buffer.clear();
        if self.torn {
            self.buffer.push(b'\n');
        }
    }

    fn push(&mut self, entries: &mut Vec<Entry>, record: &Record, what: What, now: &Now) {
        let sequence = self.next;
        self.next += 1;
        let stamp = Stamp { node: &self.node, sequence, logged: now.wall };
        match write_line(&mut self.buffer, record, &stamp) {
            Ok(()) => entries.push(Entry { sequence, end: self.buffer.len(), what }),
            Err(error) => {
                let (share, denials) = record.denials();
                let sequences = Some((sequence, sequence));
                let detail = Some(error.to_string());
                let found = LossFound { stage: Stage::Encode, share, records: 1, denials, sequences, detail };
                self.ledger.lock().lost(now.wall, found);
            }
        }
    }

    fn flush(&mut self, out: &mut dyn Write, entries: Vec<Entry>, now: &Now) -> u64 {
        if entries.is_empty() {
            return 0;
        }
        let (written, error) = write_all(out, &self.buffer);
        self.settle(entries, written, error, now)
    }

    /// Enters into the books which lines got out.
    fn settle(&mut self, entries: Vec<Entry>, written: usize, error: Option<io::Error>, now: &Now) -> u64 {
        self.failing = error.is_some();
        if written > 0 {
            self.torn = self.buffer[written - 1] != b'\n';
        }
        let detail = error.map(|error| error.to_string());
        let mut ledger = self.ledger.lock();
        for Entry { sequence, end, what } in entries {
            // A record without its newline is whole: the next write, or the next agent, adds that.
            if end <= written + 1 {
                self.last_written = sequence;
                match what {
                    What::Record(share, denials) => ledger.written(share, denials),
                    What::Loss(event) => {
                        ledger.written(Share::None, 0);
                        ledger.loss_told(&event);
                    }
                    What::Accounting => {
                        ledger.written(Share::None, 0);
                        ledger.accounting_told(now);
                    }
                }
            } else {
                // A loss stays untold and sums stay due; their numbers are used up all the same.
                let (share, denials) = match what {
                    What::Record(share, denials) => (share, denials),
                    What::Loss(_) | What::Accounting => (Share::None, 0),
                };
                ledger.lost(now.wall, not_written(sequence, share, denials, detail.clone()));
            }
        }
        written as u64
    }

    /// Counts records lost without trying: what is written to has just refused.
    fn use_up(&mut self, records: &[Record], now: &Now) {
        let mut ledger = self.ledger.lock();
        for record in records {
            let (share, denials) = record.denials();
            ledger.lost(now.wall, not_written(self.next, share, denials, None));
            self.next += 1;
        }
    }
}

fn not_written(sequence: u64, share: Share, denials: u64, detail: Option<String>) -> LossFound {
    LossFound { stage: Stage::Write, share, records: 1, denials, sequences: Some((sequence, sequence)), detail }
}

/// Writes with one call if the system takes it all. Returns how much got out, and why not all did.
fn write_all(out: &mut dyn Write, buffer: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while written < buffer.len() {
        match out.write(&buffer[written..]) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::events::{accounting::Ledger, testing};

    /// A disk with room for so many bytes.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
        calls: usize,
    }

    impl Write for Disk {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            let n = buffer.len().min(self.room);
            if n == 0 {
                return Err(io::Error::from_raw_os_error(28));
            }
            self.room -= n;
            self.bytes.extend(&buffer[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Disk {
        const fn new(room: usize) -> Self {
            Self { bytes: Vec::new(), room, calls: 0 }
        }

        /// Sequence numbers and codes of the whole lines, and the number of others.
        fn lines(&self) -> (Vec<(u64, String)>, usize) {
            let mut torn = 0;
            let mut lines = Vec::new();
            for line in self.bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                match serde_json::from_slice::<serde_json::Value>(line) {
                    Ok(line) => {
                        let metadata = &line["metadata"];
                        let code = metadata["event_code"].as_str().unwrap().to_owned();
                        lines.push((metadata["sequence"].as_u64().unwrap(), code));
                    }
                    Err(_) => torn += 1,
                }
            }
            (lines, torn)
        }

        fn last(&self) -> serde_json::Value {
            let line = self.bytes.split(|&byte| byte == b'\n').rfind(|line| !line.is_empty()).unwrap();
            serde_json::from_slice(line).unwrap()
        }
    }

    const FULL: usize = 0;
    const ROOM: usize = usize::MAX / 2;

    fn appender(sequence: u64, torn: bool) -> Appender {
        Appender::new(testing::node(), SharedLedger::new(Ledger::default()), sequence, torn)
    }

    fn batch(n: usize) -> Vec<Record> {
        (0..n).map(|_| Record::Deny(Arc::new(testing::event()))).collect()
    }

    fn codes(numbers: impl IntoIterator<Item = u64>, code: &str) -> Vec<(u64, String)> {
        numbers.into_iter().map(|n| (n, code.to_owned())).collect()
    }

    #[test]
    fn a_batch_is_one_write_and_its_numbers_go_on() {
        let (mut appender, mut disk) = (appender(7, false), Disk::new(ROOM));
        appender.write(&mut disk, &batch(3), &testing::now());
        appender.write(&mut disk, &[], &testing::now());
        appender.write(&mut disk, &batch(2), &testing::now());
        assert_eq!(disk.lines(), (codes(8..=12, "deny"), 0));
        assert_eq!((disk.calls, appender.sequence(), appender.last_written()), (2, 12, 12));
        assert_eq!(appender.ledger.lock().sums().told.listed, 5);
    }

    #[test]
    fn a_torn_line_is_closed_before_the_next_begins() {
        let (mut appender, mut disk) = (appender(0, true), Disk::new(ROOM));
        disk.bytes = b"{\"time\":17953".to_vec();
        appender.write(&mut disk, &batch(1), &testing::now());
        assert_eq!(disk.lines(), (codes([1], "deny"), 1));
    }

    #[test]
    fn what_a_full_disk_refused_is_named_once_there_is_room() {
        let (mut appender, mut disk) = (appender(0, false), Disk::new(ROOM));
        appender.write(&mut disk, &batch(2), &testing::now());
        disk.room = FULL;
        appender.write(&mut disk, &batch(3), &testing::now());
        // Nothing new comes, and the disk stays full: no number is spent on trying.
        appender.write(&mut disk, &[], &testing::now());
        appender.write(&mut disk, &[], &testing::now());
        appender.write(&mut disk, &batch(2), &testing::now());
        assert_eq!(appender.sequence(), 7);
        disk.room = ROOM;
        appender.write(&mut disk, &[], &testing::now());
        let last = disk.last();
        assert_eq!(last["status_detail"], "No space left on device (os error 28)");
        assert_eq!(last["message"], "5 records (5 denials) lost at write: sequence 3 to 7");
        appender.write(&mut disk, &batch(1), &testing::now());
        let expected = [codes([1, 2], "deny"), codes([8], "loss"), codes([9], "deny")].concat();
        assert_eq!(disk.lines(), (expected, 0));
        let sums = *appender.ledger.lock().sums();
        assert_eq!((sums.told.listed, sums.lost.write, sums.records_lost.write), (3, 5, 5));
    }

    #[test]
    fn wherever_a_write_ends_whole_lines_count_and_the_rest_is_lost() {
        let mut whole = Disk::new(ROOM);
        appender(0, false).write(&mut whole, &batch(3), &testing::now());
        let ends: Vec<_> = (0..whole.bytes.len()).filter(|&at| whole.bytes[at] == b'\n').collect();
        let around_ends = ends.iter().flat_map(|&end| end - 1..end + 3);
        for room in (1..ends[2]).step_by(211).chain(around_ends).filter(|&room| room <= ends[2]) {
            let (mut appender, mut disk) = (appender(0, false), Disk::new(room));
            appender.write(&mut disk, &batch(3), &testing::now());
            let told = appender.ledger.lock().sums().told.listed;
            assert_eq!(appender.ledger.lock().sums().lost.write, 3 - told, "room {room}");
            assert_eq!(appender.last_written(), told);
            disk.room = ROOM;
            appender.write(&mut disk, &batch(1), &testing::now());
            let (lines, torn) = disk.lines();
            let next = if told < 3 { [codes([4], "loss"), codes([5], "deny")].concat() } else { codes([4], "deny") };
            assert_eq!(lines, [codes(1..=told, "deny"), next].concat(), "room {room}");
            assert!(torn <= 1, "room {room}");
        }
    }

    #[test]
    fn a_loss_record_that_is_torn_itself_is_told_again() {
        let (mut appender, mut disk) = (appender(0, false), Disk::new(FULL));
        appender.write(&mut disk, &batch(1), &testing::now());
        disk.room = 10;
        appender.write(&mut disk, &[], &testing::now());
        disk.room = ROOM;
        appender.write(&mut disk, &[], &testing::now());
        assert_eq!(disk.lines(), (codes([3], "loss"), 1));
        let last = disk.last();
        assert_eq!(last["message"], "2 records (1 denials) lost at write: sequence 1 to 2", "its number is gone too");
    }
}
