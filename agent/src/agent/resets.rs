//! Answers for doors: a TCP reset to a caller that was denied, where the workload's policy says `onDeny: reset`.
//!
//! Programs of the kernel can send no packet of their own, so the agent does, by raw sockets of the host's network. While
//! no agent runs, callers hear nothing, as from every other door.
//!
//! Source: RFC 9293, section 3.5.2 (a SYN to a closed port), ip(7), raw(7).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd as _, OwnedFd},
};

use agent_common::layout::ResetRecord;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use zerocopy::FromBytes as _;

use super::core::Core;

/// Problem of `status`.
const PROBLEM: &str = "resets";
const TCP: u8 = 6;
/// RST and ACK.
const FLAGS: u8 = 0x14;
const HEADER_BYTES: u8 = 20;
const HOPS: u8 = 64;

/// The sockets by which answers leave.
#[derive(Debug)]
struct Sockets {
    v4: OwnedFd,
    v6: OwnedFd,
}

/// Opened when the first answer is due.
#[derive(Debug, Default)]
pub(super) struct Resets {
    sockets: Option<Sockets>,
}

impl Core {
    /// Answers the calls that doors have denied since the last time.
    pub(super) fn answer_calls(&mut self) {
        let (mut calls, host_netns) = (Vec::new(), self.host_netns);
        self.resets_due.drain(|bytes| calls.extend(ResetRecord::read_from_bytes(bytes).ok()));
        calls.retain(|call| can_be_reached(call, host_netns));
        if calls.is_empty() {
            return;
        }
        let sent = self.open_sockets().and_then(|()| {
            let Some(sockets) = &self.resets.sockets else { return Ok(()) };
            // Whom no route leads to is not told, and that is no reason to leave out the others.
            let failures = calls.iter().filter_map(|call| send(sockets, call).err());
            failures.into_iter().find(|e| !is_of_the_way(e)).map_or(Ok(()), Err)
        });
        self.tell(PROBLEM, sent.err().map(|e| format!("`onDeny: reset`: callers that were denied hear nothing: {e}")));
    }

    fn open_sockets(&mut self) -> io::Result<()> {
        if self.resets.sockets.is_none() {
            let open = |family| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))
                    .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("open a raw socket: {e}")))?;
                self.datapath.let_answer(socket.as_fd()).map_err(|e| io::Error::other(format!("{e}: {}", e.source)))?;
                Ok::<_, io::Error>(socket)
            };
            let (v4, v6) = (open(AddressFamily::INET)?, open(AddressFamily::INET6)?);
            self.resets.sockets = Some(Sockets { v4, v6 });
        }
        Ok(())
    }
}

/// Says whether an answer can come from the host's network: over loopback it must be that of the call.
fn can_be_reached(call: &ResetRecord, host_netns: u64) -> bool {
    call.netns == host_netns || !address(call.caller).is_loopback()
}

fn is_of_the_way(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENOBUFS | libc::EAGAIN))
}

fn send(sockets: &Sockets, call: &ResetRecord) -> io::Result<()> {
    let (socket, to): (_, SocketAddr) = match address(call.caller) {
        IpAddr::V4(v4) => (&sockets.v4, SocketAddrV4::new(v4, 0).into()),
        IpAddr::V6(v6) => (&sockets.v6, SocketAddrV6::new(v6, 0, 0, 0).into()),
    };
    let packet = answer(call);
    sendto(socket, &packet, SendFlags::empty(), &to)?;
    Ok(())
}

fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

/// The reset that answers a call, from the IP header on: what a host without a listener there would send.
fn answer(call: &ResetRecord) -> Vec<u8> {
    let mut tcp = [0; HEADER_BYTES as usize];
    tcp[..2].copy_from_slice(&call.callee_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&call.caller_port.to_be_bytes());
    // The SYN is one number long.
    tcp[8..12].copy_from_slice(&call.sequence.wrapping_add(1).to_be_bytes());
    tcp[12] = (HEADER_BYTES / 4) << 4;
    tcp[13] = FLAGS;
    match (address(call.callee), address(call.caller)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let sum = checksum(&[&from.octets(), &to.octets(), &[0, TCP, 0, HEADER_BYTES], &tcp]);
            tcp[16..18].copy_from_slice(&sum);
            [&v4(from, to)[..], &tcp].concat()
        }
        _ => {
            let (from, to) = (Ipv6Addr::from(call.callee), Ipv6Addr::from(call.caller));
            let length = [0, 0, 0, HEADER_BYTES, 0, 0, 0, TCP];
            let sum = checksum(&[&from.octets(), &to.octets(), &length, &tcp]);
            tcp[16..18].copy_from_slice(&sum);
            [&v6(from, to)[..], &tcp].concat()
        }
    }
}

/// RFC 791, section 3.1. Number and checksum are the kernel's.
fn v4(from: Ipv4Addr, to: Ipv4Addr) -> [u8; 20] {
    const DO_NOT_FRAGMENT: u8 = 0x40;
    let mut header = [0x45, 0, 0, 2 * HEADER_BYTES, 0, 0, DO_NOT_FRAGMENT, 0, HOPS, TCP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    header
}

/// RFC 8200, section 3.
fn v6(from: Ipv6Addr, to: Ipv6Addr) -> [u8; 40] {
    let mut header = [0; 40];
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, HEADER_BYTES, TCP, HOPS]);
    header[8..24].copy_from_slice(&from.octets());
    header[24..].copy_from_slice(&to.octets());
    header
}

/// RFC 1071, over pieces of even length.
fn checksum(pieces: &[&[u8]]) -> [u8; 2] {
    let words = pieces.iter().flat_map(|piece| piece.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::policy::ask::octets;

    fn call(caller: &str, callee: &str, sequence: u32) -> ResetRecord {
        let octets = |text: &str| octets(text.parse().unwrap());
        ResetRecord {
            caller: octets(caller),
            callee: octets(callee),
            netns: 7,
            caller_port: 40_001,
            callee_port: 5432,
            sequence,
        }
    }

    #[test]
    fn the_answer_is_what_another_parser_takes_for_a_reset_of_that_call() {
        for (caller, callee) in [("10.0.0.1", "10.255.0.254"), ("fd00::1", "fd00::ffff")] {
            for sequence in [0, 1, 0x1234_5678, u32::MAX] {
                let packet = answer(&call(caller, callee, sequence));
                let sliced = SlicedPacket::from_ip(&packet).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP: {sliced:?}") };
                assert_eq!((tcp.source_port(), tcp.destination_port()), (5432, 40_001));
                assert!(tcp.rst() && tcp.ack() && !tcp.syn() && tcp.payload().is_empty());
                assert_eq!(tcp.acknowledgment_number(), sequence.wrapping_add(1));
                let (from, to, sum) = match sliced.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        let header = ip.header();
                        let sum = tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap();
                        (header.source_addr().into(), header.destination_addr().into(), sum)
                    }
                    NetSlice::Ipv6(ip) => {
                        let header = ip.header();
                        let sum = tcp.calc_checksum_ipv6(header.source(), header.destination()).unwrap();
                        (header.source_addr().into(), header.destination_addr().into(), sum)
                    }
                    other => panic!("no IP: {other:?}"),
                };
                assert_eq!((from, to), (callee.parse::<IpAddr>().unwrap(), caller.parse::<IpAddr>().unwrap()));
                assert_eq!(tcp.checksum(), sum);
            }
        }
    }

    #[test]
    fn loopback_of_another_network_is_out_of_reach() {
        assert!(can_be_reached(&call("127.0.0.1", "127.0.0.1", 0), 7));
        assert!(!can_be_reached(&call("127.0.0.1", "127.0.0.1", 0), 8));
        assert!(!can_be_reached(&call("::1", "::1", 0), 8));
        assert!(can_be_reached(&call("10.0.0.1", "10.0.0.2", 0), 8));
    }
}
