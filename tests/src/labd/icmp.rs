//! Echo requests by raw sockets, because `ping_group_range` is closed in a fresh namespace.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::sockets::{receive, send, socket};
use crate::lab::{Family, Kind};

const ICMP: u32 = 1;
const ICMPV6: u32 = 58;

/// Sends one echo request with `data`, and waits for the reply that carries it.
pub(super) fn ping(to: IpAddr, data: &[u8], timeout: Duration) -> Result<(), Errno> {
    let end = Instant::now() + timeout;
    let id = std::process::id().to_be_bytes();
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Family::V4, ICMP, 8, 0),
        IpAddr::V6(_) => (Family::V6, ICMPV6, 128, 129),
    };
    let socket = socket(family, Kind::Raw, protocol)?;
    let mut message = vec![request, 0, 0, 0, id[2], id[3], 0, 1];
    message.extend(data);
    if family == Family::V4 {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    send(socket.as_fd(), Some(SocketAddr::new(to, 0)), &message)?;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        if left_ms == 0 {
            return Err(Errno::TIMEDOUT);
        }
        for packet in receive(socket.as_fd(), 1, left_ms)? {
            let icmp = match (family, packet.data.first()) {
                // A raw IPv4 socket gives the IP header too; its length is in the low half of its first byte.
                (Family::V4, Some(first)) => packet.data.get(usize::from(first & 15) * 4..).unwrap_or_default(),
                _ => &packet.data,
            };
            // On loopback the socket sees the request as well.
            if icmp.first() == Some(&reply) && icmp.get(4..) == message.get(4..) {
                return Ok(());
            }
        }
    }
}

/// RFC 1071, over 16-bit words; an odd byte is padded with zero.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    !words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_of_the_rfc_comes_out() {
        // RFC 1071, section 3: the sum of these is ddf2.
        assert_eq!(super::checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(super::checksum(&[0xff, 0xff, 0x01]), !0x0100);
    }
}
