//! The parsers of packets, frames and quotes, beside a dissector: whoever sends one chooses its bytes.
#![no_main]

#[path = "../../../agent-common/tests/dissect/mod.rs"]
mod dissect;

use agent_common::parse::{
    Packet, Piece,
    frame::{self, ethertype},
    packet, quote,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    dissect::compare(bytes);
    let mut framed = Packet::default();
    let read = frame::read(bytes, &mut framed, &mut Piece::default());
    let is_packet = read.is_ok_and(|read| read != frame::Frame::Arp);
    // A frame is its packet with a header in front.
    assert!(!is_packet || packet(&bytes[frame::HEADER_BYTES..]) == Ok(framed));
    let mut quoted = Packet::default();
    // What an error quotes has no flags and nothing behind its header, as far as anybody looks.
    assert!(quote::read(bytes, &mut quoted).is_err() || (quoted.tcp_flags, quoted.has_payload) == (0, 0));
    // The bytes as a packet, in a frame of its own.
    let Ok(whole) = packet(bytes) else { return };
    let kind = if whole.v6 == 1 { ethertype::IPV6 } else { ethertype::IPV4 };
    let frame = [&[2; 12], &kind.to_be_bytes()[..], bytes].concat();
    dissect::compare(&frame);
});
