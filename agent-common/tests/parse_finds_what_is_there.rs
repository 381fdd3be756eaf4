//! The packet parser against packets of known content, and against an independent parser.

mod packet;

use agent_common::{
    flow::proto,
    parse::{
        Packet, ParseError,
        frame::{self, Frame, FrameError, ethertype},
        packet as parse, quote,
    },
};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use packet::{Built, built};
use proptest::prelude::*;

/// Longest prefix that is tried, in bytes: beyond IPv6, a fragment header and TCP with options.
const PREFIX_MAX: usize = 80;

/// What a decision rests on, without what a cut packet may lose.
fn tuple(packet: &Packet) -> Packet {
    Packet { has_payload: 0, ..*packet }
}

/// Compares with what the other parser finds in the same bytes, as far as it reads.
fn agrees_with_etherparse(bytes: &[u8], ours: &Packet) -> Result<(), TestCaseError> {
    let Ok(theirs) = LaxSlicedPacket::from_ip(bytes) else { return Ok(()) };
    let (src, dst) = match &theirs.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().to_ipv6_mapped().octets(), header.destination_addr().to_ipv6_mapped().octets())
        }
        Some(LaxNetSlice::Ipv6(ip)) => (ip.header().source(), ip.header().destination()),
        Some(LaxNetSlice::Arp(_)) | None => return Ok(()),
    };
    prop_assert_eq!((ours.src, ours.dst), (src, dst));
    // The authentication header: the other parser looks behind it, a policy never does.
    if ours.proto == 51 {
        return Ok(());
    }
    match &theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            prop_assert_eq!(ours.proto, proto::TCP);
            prop_assert_eq!((ours.src_port, ours.dst_port), (tcp.source_port(), tcp.destination_port()));
            prop_assert_eq!(ours.tcp_flags & 2 != 0, tcp.syn());
            prop_assert_eq!(ours.tcp_flags & 16 != 0, tcp.ack());
        }
        Some(TransportSlice::Udp(udp)) => {
            prop_assert_eq!(ours.proto, proto::UDP);
            prop_assert_eq!((ours.src_port, ours.dst_port), (udp.source_port(), udp.destination_port()));
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            prop_assert_eq!(ours.proto, proto::ICMP);
            prop_assert_eq!(ours.icmp, [icmp.type_u8(), icmp.code_u8()]);
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            prop_assert_eq!(ours.proto, proto::ICMPV6);
            prop_assert_eq!(ours.icmp, [icmp.type_u8(), icmp.code_u8()]);
        }
        Some(TransportSlice::Igmp(_)) => prop_assert_eq!(ours.proto, 2),
        None => {}
    }
    Ok(())
}

/// Reads a frame as a workload's device does.
fn parse_frame(bytes: &[u8]) -> Result<(Frame, Packet), FrameError> {
    let mut packet = Packet::default();
    frame::read(bytes, &mut packet).map(|frame| (frame, packet))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_is_read_as_it_was_built(Built { bytes, expected, .. } in built()) {
        prop_assert_eq!(parse(bytes.as_slice()), expected.ok_or(ParseError::Fragment));
    }

    #[test]
    fn another_parser_finds_the_same(Built { bytes, expected, is_first_fragment } in built()) {
        if let Some(expected) = expected {
            agrees_with_etherparse(&bytes, &expected)?;
            // The comparison above means something: the other parser did read these to the ports.
            let theirs = LaxSlicedPacket::from_ip(&bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;
            if matches!(expected.proto, proto::TCP | proto::UDP) && !is_first_fragment {
                prop_assert!(theirs.transport.is_some(), "{:?}", theirs);
            }
        }
    }

    #[test]
    fn a_cut_packet_is_refused_or_read_as_the_whole_one(Built { bytes, expected, .. } in built()) {
        for length in 0..bytes.len().min(PREFIX_MAX) {
            match (parse(&bytes[..length]), &expected) {
                (Ok(cut), Some(whole)) => prop_assert_eq!(tuple(&cut), tuple(whole)),
                (Ok(cut), None) => prop_assert!(false, "ports out of nowhere: {:?}", cut),
                (Err(_), _) => {}
            }
        }
    }

    #[test]
    fn a_damaged_packet_is_refused_or_read_as_another_parser_does(
        Built { mut bytes, .. } in built(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(packet) = parse(bytes.as_slice()) {
            agrees_with_etherparse(&bytes, &packet)?;
        }
    }

    #[test]
    fn no_bytes_at_all_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(packet) = parse(bytes.as_slice()) {
            agrees_with_etherparse(&bytes, &packet)?;
        }
    }

    #[test]
    fn a_frame_says_what_its_packet_says(
        Built { bytes, expected, .. } in built(),
        addresses in any::<[u8; 12]>(),
        is_right_type in proptest::bool::weighted(0.9),
    ) {
        let is_v6 = bytes[0] >> 4 == 6;
        let kind = if is_v6 == is_right_type { ethertype::IPV6 } else { ethertype::IPV4 };
        let whole = [&addresses[..], &kind.to_be_bytes(), &bytes].concat();
        let found = parse_frame(&whole);
        let wanted = if is_right_type { expected.ok_or(ParseError::Fragment) } else { Err(ParseError::Version) };
        prop_assert_eq!(found.map(|(_, packet)| packet), wanted.map_err(FrameError::Packet));
        // The generated packets have the hop limit of an ordinary one.
        prop_assert!(!matches!(found, Ok((Frame::Arp | Frame::Neighbour, _))));
        for length in 0..whole.len().min(PREFIX_MAX) {
            if let Ok((_, cut)) = parse_frame(&whole[..length]) {
                prop_assert_eq!(Some(tuple(&cut)), expected.as_ref().map(tuple));
            }
        }
    }

    #[test]
    fn no_bytes_at_all_make_the_frame_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = quote::read(bytes.as_slice(), &mut Packet::default());
        match parse_frame(&bytes) {
            Ok((Frame::Arp, packet)) => prop_assert_eq!(packet, Packet::default()),
            Ok((_, packet)) => agrees_with_etherparse(&bytes[frame::HEADER_BYTES..], &packet)?,
            Err(_) => {}
        }
    }
}
