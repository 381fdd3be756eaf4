//! The packet parser against packets of known content.

mod packet;

use agent_common::parse::{
    Packet, ParseError, Piece,
    frame::{self, Frame, FrameError, ethertype},
    packet as parse, quote, read,
};
use packet::{Built, Bytes, built};
use proptest::prelude::*;

/// Longest prefix that is tried, in bytes: beyond IPv6, a fragment header and TCP with options.
const PREFIX_MAX: usize = 80;

/// What a decision rests on, without what a cut packet may lose.
fn tuple(packet: &Packet) -> Packet {
    Packet { has_payload: 0, ..*packet }
}

/// Reads a frame as a workload's device does.
fn parse_frame(bytes: &Bytes<'_>) -> Result<(Frame, Packet), FrameError> {
    let mut packet = Packet::default();
    frame::read(bytes, &mut packet, &mut Piece::default()).map(|frame| (frame, packet))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_is_read_as_it_was_built(Built { bytes, expected, piece, is_offload } in built()) {
        let (mut said, mut part) = (Packet::default(), Piece::default());
        let read = read(&Bytes { bytes: &bytes, is_offload }, &mut said, &mut part);
        prop_assert_eq!(read.map(|()| said), expected.ok_or(ParseError::Fragment));
        prop_assert_eq!(part, piece);
    }

    #[test]
    fn a_cut_packet_is_refused_or_read_as_the_whole_one(Built { bytes, expected, is_offload, .. } in built()) {
        for length in 0..bytes.len().min(PREFIX_MAX) {
            match (parse(&Bytes { bytes: &bytes[..length], is_offload }), &expected) {
                (Ok(cut), Some(whole)) => prop_assert_eq!(tuple(&cut), tuple(whole)),
                (Ok(cut), None) => prop_assert!(false, "ports out of nowhere: {:?}", cut),
                (Err(_), _) => {}
            }
        }
    }

    #[test]
    fn a_frame_says_what_its_packet_says(
        Built { bytes, expected, is_offload, .. } in built(),
        addresses in any::<[u8; 12]>(),
        is_right_type in proptest::bool::weighted(0.9),
    ) {
        let is_v6 = bytes[0] >> 4 == 6;
        let kind = if is_v6 == is_right_type { ethertype::IPV6 } else { ethertype::IPV4 };
        let whole = [&addresses[..], &kind.to_be_bytes(), &bytes].concat();
        let found = parse_frame(&Bytes { bytes: &whole, is_offload });
        let wanted = if is_right_type { expected.ok_or(ParseError::Fragment) } else { Err(ParseError::Version) };
        prop_assert_eq!(found.map(|(_, packet)| packet), wanted.map_err(FrameError::Packet));
        // The generated packets have the hop limit of an ordinary one.
        prop_assert!(!matches!(found, Ok((Frame::Arp | Frame::Neighbour, _))));
        for length in 0..whole.len().min(PREFIX_MAX) {
            if let Ok((_, cut)) = parse_frame(&Bytes { bytes: &whole[..length], is_offload }) {
                prop_assert_eq!(Some(tuple(&cut)), expected.as_ref().map(tuple));
            }
        }
    }

    #[test]
    fn no_bytes_at_all_make_the_quote_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = quote::read(bytes.as_slice(), &mut Packet::default());
    }
}
