//! The parser against an independent dissector, on frames that a grammar makes and chance damages.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "dissect/mod.rs"]
mod dissect;
#[path = "dissect/generate.rs"]
mod generate;

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use agent_common::parse::{
    Packet, ParseError, Piece,
    frame::{self, FrameError, HEADER_BYTES},
    packet,
};
use dissect::{Outcome, compare};
use generate::Random;

/// Frames in one run: ten million with `EASTWALL_LONG=1`.
fn frames() -> u64 {
    if std::env::var_os("EASTWALL_LONG").is_some_and(|v| v == "1") { 10_000_000 } else { 100_000 }
}

/// Where a run begins: `EASTWALL_SEED`, or the time. It is printed, so that a run can be had again.
fn seed() -> u64 {
    match std::env::var("EASTWALL_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() & u128::from(u64::MAX)).unwrap(),
    }
}

#[test]
fn what_is_read_a_dissector_reads_as_the_same_and_what_it_cannot_read_never_passes() {
    let (seed, frames, begin) = (seed(), frames(), Instant::now());
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut outcomes = BTreeMap::<Outcome, u64>::new();
    for _ in 0..frames {
        let outcome = compare(&generate::frame(&mut random));
        *outcomes.entry(outcome).or_default() += 1;
    }
    println!("{frames} frames in {:.1?}: {outcomes:#?}", begin.elapsed());
    // A comparison of frames that are all alike would be none.
    let share = |outcome| outcomes.get(&outcome).copied().unwrap_or(0);
    assert!(share(Outcome::Same) > frames / 4 && share(Outcome::Neither) > frames / 20);
    for rare in [Outcome::FirstFragment, Outcome::LaterFragment, Outcome::Arp] {
        assert!(share(rare) > frames / 400, "{rare:?} is rare");
    }
    assert!(outcomes.keys().filter(|outcome| matches!(outcome, Outcome::Stricter(_))).count() >= 9);
}

#[test]
fn a_frame_that_is_cut_anywhere_is_read_alike() {
    let seed = seed();
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut cuts = 0;
    while cuts < frames() / 4 {
        let whole = generate::whole(&mut random).bytes;
        for length in 0..=whole.len() {
            compare(&whole[..length]);
            cuts += 1;
        }
    }
}

/// The comparison is worth as much as it notices.
#[test]
fn a_parser_that_errs_is_found_out() {
    let mut random = Random(7);
    let mut noticed = [0; 4];
    let mut read = 0;
    while read < 200 {
        let bytes = generate::frame(&mut random);
        let (mut packet, mut piece) = (Packet::default(), Piece::default());
        let ours = frame::read(bytes.as_slice(), &mut packet, &mut piece);
        let Ok(frame) = ours else { continue };
        if frame == frame::Frame::Arp || packet.proto == 51 {
            continue;
        }
        read += 1;
        let wrong = [
            (ours, Packet { dst_port: packet.dst_port ^ 1, ..packet }),
            (ours, Packet { proto: packet.proto ^ 2, ..packet }),
            // It passes although its last byte is missing.
            (Ok(frame), packet),
            // It is refused for no reason.
            (Err(FrameError::Packet(ParseError::Length)), packet),
        ];
        for (n, (ours, packet)) in wrong.into_iter().enumerate() {
            let shorter = &bytes[..bytes.len().min(HEADER_BYTES + 27)];
            let bytes = if n == 2 { shorter } else { &bytes };
            noticed[n] += u32::from(dissect::compare_with(bytes, ours, &packet, &piece).is_err());
        }
    }
    // Not all: a packet that was short before is read, and some lie about their lengths in a way that is allowed.
    assert!(noticed[0] == 200 && noticed[1] == 200 && noticed[2] > 150 && noticed[3] > 150, "{noticed:?}");
}

#[test]
fn a_frame_is_its_packet_with_a_header_in_front() {
    let mut random = Random(seed());
    for _ in 0..frames() / 10 {
        let bytes = generate::frame(&mut random);
        let mut framed = Packet::default();
        if frame::read(bytes.as_slice(), &mut framed, &mut Piece::default())
            .is_ok_and(|frame| frame != frame::Frame::Arp)
        {
            assert_eq!(packet(&bytes[HEADER_BYTES..]), Ok(framed), "{bytes:02x?}");
        }
    }
}
