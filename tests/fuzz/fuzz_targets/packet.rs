//! The parsers of packets, frames and quotes: whoever sends one chooses its bytes.
#![no_main]

use agent_common::parse::{Packet, frame, packet, quote};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut framed = Packet::default();
    let is_packet = matches!(frame::read(bytes, &mut framed), Ok(frame::Frame::Packet | frame::Frame::Neighbour));
    // A frame is its packet with a header in front.
    assert!(!is_packet || packet(&bytes[frame::HEADER_BYTES..]) == Ok(framed));
    let mut quoted = Packet::default();
    // What an error quotes has no flags and nothing behind its header, as far as anybody looks.
    assert!(quote::read(bytes, &mut quoted).is_err() || (quoted.tcp_flags, quoted.has_payload) == (0, 0));
    let Ok(whole) = packet(bytes) else { return };
    // What was read rests on the bytes that are there: with more behind them it is the same, but for
    // the question whether anything is behind the header.
    let longer = [bytes, &[0xa5; 16]].concat();
    let longer = packet(longer.as_slice()).map(|packet| Packet { has_payload: 0, ..packet });
    assert_eq!(longer, Ok(Packet { has_payload: 0, ..whole }));
});
