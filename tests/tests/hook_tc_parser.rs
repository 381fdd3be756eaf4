//! The parser as the kernel runs it, against the parser as the host runs it: G46, G47 and G48 of the list of gaps.
//!
//! Frames go through the program at a device by test run. Their sources are nobody's, so a frame that is read is denied
//! for that, and its record says what was read.

#[path = "../../agent-common/tests/dissect/generate.rs"]
mod generate;

use std::{collections::BTreeMap, time::SystemTime};

use agent_common::{
    layout::{DenyCounter, names::program},
    parse::{
        Packet, ParseError, Piece,
        frame::{self, Frame, FrameError, HEADER_BYTES},
    },
    verdict::Reason,
};
use eastwall::datapath::Device;
use generate::Random;
use tests::{
    lab::{GuardOptions, Wall},
    scene::repetitions,
};

/// The index of the loopback device, on which a test run has its frames.
const LOOPBACK: u32 = 1;

/// What a test run returns that the kernel refuses, as an errno.
const EINVAL: i32 = -22;

/// What the program returns to have a frame dropped: linux/bpf.h, `TCX_DROP`.
const DROP: i32 = 2;

/// What the program must say about a frame from a workload.
fn expected(read: Result<Frame, FrameError>) -> Reason {
    match read {
        // Addresses of the sender of ARP, and of neighbour discovery, are nobody's either.
        Ok(_) => Reason::SpoofedSource,
        Err(FrameError::Packet(ParseError::Fragment)) => Reason::Fragment,
        Err(FrameError::Short | FrameError::Packet(_)) => Reason::Malformed,
        Err(FrameError::Vlan | FrameError::EtherType) => Reason::LinkProtocol,
    }
}

#[test]
fn g46_g47_g48_the_kernel_reads_every_frame_as_the_host_does() {
    let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
    wall.guard_device(&Device { index: LOOPBACK, ..wall.devices()[0] }, wall.web.cgroup.id());
    let program = wall.web.actor.take(wall.guard().datapath().program(program::TC_FROM).unwrap());
    let seed = match std::env::var("EASTWALL_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()),
    };
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut reasons = BTreeMap::<&str, usize>::new();
    for _ in 0..repetitions(3_000, 1_000_000) {
        let bytes = generate::frame(&mut random);
        let mut packet = Packet::default();
        let read = frame::read(bytes.as_slice(), &mut packet, &mut Piece::default());
        let reason = expected(read);
        let codes = wall.web.actor.test_run(program, 0, vec![bytes.clone()]);
        let denials = wall.guard().look();
        // The kernel makes no test run of a frame without the fixed part of its IP header.
        if codes == [EINVAL] && bytes.len() < HEADER_BYTES + 40 {
            continue;
        }
        let said: Vec<Reason> = denials.causes().into_iter().map(|(_, reason)| reason).collect();
        assert_eq!((said, denials.count(DenyCounter::Dropped), codes), (vec![reason], 1, vec![DROP]), "{bytes:02x?}");
        if reason == Reason::SpoofedSource {
            let record = denials.records[0];
            let kernel = Packet {
                src: record.local_addr,
                dst: record.peer_addr,
                src_port: record.local_port,
                dst_port: record.peer_port,
                proto: record.proto,
                tcp_flags: record.tcp_flags,
                icmp: record.icmp,
                icmp_id: packet.icmp_id,
                has_payload: packet.has_payload,
                v6: packet.v6,
            };
            assert_eq!(kernel, packet, "{bytes:02x?}");
        }
        *reasons.entry(reason.name()).or_default() += 1;
    }
    println!("{reasons:?}");
    for reason in [Reason::SpoofedSource, Reason::Fragment, Reason::Malformed, Reason::LinkProtocol] {
        assert!(reasons.get(reason.name()).is_some_and(|&n| n > 50), "{reason:?} is rare: {reasons:?}");
    }
}
