//! The spool through restarts, crashes, reboots and other people's hands.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use agent_common::layout::{DenyCounter, DenyRecord, DenyStat};
use serde_json::Value;
use zerocopy::IntoBytes as _;

use super::*;
use crate::events::{
    decode::decode,
    ocsf::Node,
    pipeline::{Config, Pipeline, Tick},
    record::{LifecycleEvent, Now, Phase, Record, UnixMillis, new_uid},
    testing,
};

struct Place {
    _folder: tempfile::TempDir,
    spool: PathBuf,
    position: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("log/events.ndjson");
        let position = folder.path().join("sequence");
        Self { _folder: folder, spool, position }
    }

    fn open(&self) -> (FileSink, Opened) {
        self.open_as(testing::node())
    }

    fn open_as(&self, node: Node) -> (FileSink, Opened) {
        let config = SinkConfig { target: Target::File(self.spool.clone()), position: Some(self.position.clone()) };
        FileSink::open(config, node, &testing::now()).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        lines(&self.spool)
    }

    fn sequences(&self) -> Vec<u64> {
        self.lines().iter().map(sequence).collect()
    }
}

/// Every whole record in a file.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read(path).unwrap();
    text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn sequence(line: &Value) -> u64 {
    line["metadata"]["sequence"].as_u64().unwrap()
}

fn loss<'a>(lines: &'a [Value], stage: &str) -> &'a Value {
    lines.iter().find(|line| line["unmapped"]["eastwall"]["stage"] == stage).expect("no such loss was told")
}

fn batch(n: usize) -> Vec<Record> {
    (0..n).map(|_| Record::Deny(Arc::new(testing::event()))).collect()
}

fn stop_record() -> Record {
    let time = testing::now().wall;
    Record::Lifecycle(LifecycleEvent { uid: new_uid(time), time, phase: Phase::Stopped, epoch: None, links: 9 })
}

const NOW: fn() -> Now = testing::now;

#[test]
fn a_restart_goes_on_with_the_numbers_and_the_sums() {
    let place = Place::new();
    let (mut sink, opened) = place.open();
    assert_eq!((opened.previous_boot_last_sequence, opened.previous_stop_clean), (None, None));
    sink.write(&batch(3), &NOW());
    sink.write(&[stop_record()], &NOW());
    drop(sink);
    let (mut sink, opened) = place.open();
    assert_eq!((opened.previous_boot_last_sequence, opened.previous_stop_clean), (None, Some(true)));
    assert_eq!(opened.ledger.lock().sums().told.listed, 3);
    sink.write(&batch(1), &NOW());
    assert_eq!(place.sequences(), [1, 2, 3, 4, 5]);
    assert_eq!(fs::metadata(&place.spool).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn either_witness_is_enough_to_go_on() {
    let place = Place::new();
    place.open().0.write(&batch(3), &NOW());
    fs::remove_file(&place.position).unwrap();
    place.open().0.write(&batch(1), &NOW());
    assert_eq!(place.sequences(), [1, 2, 3, 4], "by the spool");
    fs::rename(&place.spool, place.spool.with_extension("1")).unwrap();
    fs::write(&place.spool, "").unwrap();
    place.open().0.write(&batch(1), &NOW());
    assert_eq!(place.sequences(), [5], "by the small file: the spool was rotated");
}

#[test]
fn a_crash_before_the_small_file_loses_neither_number_nor_sum() {
    let place = Place::new();
    let (mut sink, _) = place.open();
    sink.write(&batch(2), &NOW());
    let before = fs::read(&place.position).unwrap();
    sink.write(&batch(3), &NOW());
    fs::write(&place.position, before).unwrap();
    drop(sink);
    let (mut sink, opened) = place.open();
    assert_eq!(opened.ledger.lock().sums().told.listed, 5);
    assert_eq!(opened.previous_stop_clean, Some(false));
    sink.write(&batch(1), &NOW());
    assert_eq!(place.sequences(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_reboot_begins_at_one_and_knows_the_last_of_the_boot_before() {
    let place = Place::new();
    place.open().0.write(&batch(4), &NOW());
    let node = Node { boot_id: "7e2d9c14-5a3b-4f60-8c71-b0a9d8e7f6c5".into(), ..testing::node() };
    let (mut sink, opened) = place.open_as(node);
    assert_eq!(opened.previous_boot_last_sequence, Some(4));
    assert_eq!(opened.ledger.lock().sums().told.listed, 0);
    sink.write(&batch(1), &NOW());
    assert_eq!(place.sequences(), [1, 2, 3, 4, 1]);
}

#[test]
fn a_torn_line_is_closed_and_counted_and_nothing_is_cut_out() {
    let place = Place::new();
    place.open().0.write(&batch(2), &NOW());
    let whole = fs::read(&place.spool).unwrap();
    let torn = &whole[..whole.len() - 20];
    fs::write(&place.spool, torn).unwrap();
    fs::remove_file(&place.position).unwrap();
    place.open().0.write(&batch(1), &NOW());
    assert!(fs::read(&place.spool).unwrap().starts_with(torn));
    let lines = place.lines();
    assert_eq!(lines.iter().map(sequence).collect::<Vec<_>>(), [1, 2, 3], "the number of the torn one was not written");
    assert_eq!(loss(&lines, "write")["status_detail"], "a line torn by a crash was closed");
}

#[test]
fn a_record_that_lacks_its_newline_is_whole() {
    let place = Place::new();
    place.open().0.write(&batch(2), &NOW());
    let whole = fs::read(&place.spool).unwrap();
    fs::write(&place.spool, &whole[..whole.len() - 1]).unwrap();
    fs::remove_file(&place.position).unwrap();
    place.open().0.write(&batch(1), &NOW());
    assert_eq!(place.sequences(), [1, 2, 3]);
    assert!(place.lines().iter().all(|line| line["metadata"]["event_code"] == "deny"), "no loss is claimed");
}

#[test]
fn whoever_rotates_by_rename_loses_nothing_with_or_without_a_signal() {
    let place = Place::new();
    let (mut sink, _) = place.open();
    sink.write(&batch(2), &NOW());
    let closed = |n: u32| place.spool.with_extension(n.to_string());
    fs::rename(&place.spool, closed(1)).unwrap();
    fs::write(&place.spool, "").unwrap();
    sink.reopen(&NOW());
    sink.write(&batch(2), &NOW());
    fs::rename(&place.spool, closed(2)).unwrap();
    sink.write(&batch(2), &NOW());
    let all = [lines(&closed(1)), lines(&closed(2)), place.lines()].concat();
    assert_eq!(all.iter().map(sequence).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert!(all.iter().all(|line| line["metadata"]["event_code"] == "deny"), "no loss is claimed");
}

#[test]
fn a_deleted_spool_is_said_in_the_next_one() {
    let place = Place::new();
    let (mut sink, _) = place.open();
    sink.write(&batch(3), &NOW());
    fs::remove_file(&place.spool).unwrap();
    sink.write(&batch(1), &NOW());
    let lines = place.lines();
    assert_eq!(loss(&lines, "spool")["message"], "3 records (0 denials) lost at spool: sequence 1 to 3");
    drop(sink);
    fs::remove_file(&place.spool).unwrap();
    place.open().0.write(&batch(1), &NOW());
    let lines = place.lines();
    assert_eq!(
        loss(&lines, "spool")["message"],
        "2 records (0 denials) lost at spool: sequence 4 to 5",
        "also if nobody ran at that time"
    );
}

#[test]
fn a_spool_that_is_cut_off_is_noticed() {
    let place = Place::new();
    let (mut sink, _) = place.open();
    sink.write(&batch(3), &NOW());
    fs::OpenOptions::new().write(true).open(&place.spool).unwrap().set_len(0).unwrap();
    sink.write(&batch(1), &NOW());
    let lines = place.lines();
    assert_eq!(loss(&lines, "spool")["message"], "3 records (0 denials) lost at spool: sequence 1 to 3");
    assert_eq!(lines.iter().map(sequence).collect::<Vec<_>>(), [4, 5]);
    let first_line = fs::read(&place.spool).unwrap().iter().position(|&byte| byte == b'\n').unwrap() as u64 + 1;
    drop(sink);
    fs::OpenOptions::new().write(true).open(&place.spool).unwrap().set_len(first_line).unwrap();
    place.open().0.write(&[], &NOW());
    let lines = place.lines();
    assert_eq!(lines.last().unwrap()["message"], "1 records (0 denials) lost at spool: sequence 5 to 5");
}

/// One kernel with one first denial, two repeats and one denial that the ring had no room for.
#[test]
fn from_kernel_bytes_to_the_file_the_books_are_balanced() {
    let place = Place::new();
    let (sink, opened) = place.open();
    let (pipeline, receiver) = Pipeline::new(Config { proc_root: None, ..Config::default() }, opened.ledger.clone());
    let (_, mut follower) = pipeline.subscribe();
    let writer = spawn(sink, receiver, Box::new(testing::now)).unwrap();
    let snapshots = testing::snapshots();

    let mut now = testing::now();
    pipeline.on_ring_bytes(testing::record().as_bytes(), &now, &snapshots, |_| false).unwrap();
    assert!(pipeline.on_ring_bytes(b"no record", &now, &snapshots, |_| false).is_err());
    let key = decode(testing::record().as_bytes()).unwrap().key;
    let stat = DenyStat { count: 2, bytes: 120, first_ns: now.boot_ns, last_ns: now.boot_ns + 1 };
    let mut kernel = [0; DenyCounter::COUNT as usize];
    for (counter, count) in
        [(DenyCounter::Denied, 5), (DenyCounter::Emitted, 2), (DenyCounter::Repeated, 2), (DenyCounter::Ring, 1)]
    {
        kernel[counter as usize] = count;
    }
    for second in 0..12 {
        now = Now { wall: UnixMillis(now.wall.0 + 1000), boot_ns: now.boot_ns + 1_000_000_000 };
        let rows: &[_] = if second < 10 { &[(key, stat)] } else { &[] };
        let due = pipeline.due(&now, rows);
        let taken: Vec<_> = rows.iter().filter(|row| due.seen.contains(&row.0)).copied().collect();
        assert_eq!(taken.len(), usize::from(second == 9), "the window is 10 s");
        let folded = due.folded.then_some(&[][..]);
        pipeline.on_tick(&now, &Tick { kernel, seen: &taken, folded, ring_empty: true }, &snapshots);
    }
    assert!(writer.stop());

    let first = follower.try_recv().unwrap();
    assert_eq!(follower.try_recv().unwrap().series, first.series);
    let lines = place.lines();
    let kinds: Vec<_> = lines.iter().map(|line| line["unmapped"]["eastwall"]["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|&&kind| kind == "first").count(), 1);
    let repeat = lines.iter().find(|line| line["unmapped"]["eastwall"]["kind"] == "repeat").unwrap();
    assert_eq!((repeat["count"].as_u64(), repeat["traffic"]["bytes"].as_u64()), (Some(2), Some(120)));
    assert_eq!(loss(&lines, "ring")["count"], 1);
    assert_eq!(loss(&lines, "decode")["status_detail"], "the record has 9 bytes, expected 144");
    let sums = opened.ledger.lock().accounting(now.wall);
    assert_eq!((sums.denied, sums.listed, sums.repeated, sums.lost.total(), sums.pending), (5, 1, 2, 2, 0));
}

#[test]
fn the_writer_opens_the_new_file_when_it_is_told_to() {
    let place = Place::new();
    let (sink, opened) = place.open();
    let (pipeline, receiver) = Pipeline::new(Config { proc_root: None, ..Config::default() }, opened.ledger);
    let writer = spawn(sink, receiver, Box::new(testing::now)).unwrap();
    pipeline.submit(&testing::now(), stop_record());
    let closed = place.spool.with_extension("1");
    while place.lines().is_empty() {
        std::thread::yield_now();
    }
    fs::rename(&place.spool, &closed).unwrap();
    writer.reopen();
    pipeline.submit(&testing::now(), stop_record());
    assert!(writer.stop());
    let sequences = [lines(&closed), place.lines()].map(|lines| lines.iter().map(sequence).collect::<Vec<_>>());
    assert_eq!(sequences, [[1], [2]]);
}

#[test]
fn a_full_queue_never_waits_and_its_losses_are_told() {
    let place = Place::new();
    let (sink, opened) = place.open();
    let config = Config { proc_root: None, queue_records_max: 4, ..Config::default() };
    let (pipeline, receiver) = Pipeline::new(config, opened.ledger.clone());
    for peer_port in 1..=10 {
        let record = DenyRecord { peer_port, ..testing::record() };
        pipeline.on_ring_bytes(record.as_bytes(), &testing::now(), &testing::snapshots(), |_| false).unwrap();
    }
    assert_eq!(opened.ledger.lock().sums().records_lost.queue, 6);
    let writer = spawn(sink, receiver, Box::new(testing::now)).unwrap();
    assert!(writer.stop());
    let lines = place.lines();
    assert_eq!(loss(&lines, "queue")["message"], "6 records (6 denials) lost at queue");
    assert_eq!(lines.len(), 5);
}
