//! Answers for doors: a TCP reset to a caller that was denied, where the workload's policy says `onDeny: reset`.
//!
//! Programs of the kernel can send no packet of their own, so the agent does, by raw sockets of the host's network. While
//! no agent runs, callers hear nothing, as from every other door.
//!
//! Source: RFC 9293, section 3.5.2 (a SYN to a closed port), ip(7), raw(7).

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd as _, OwnedFd},
};

use agent_common::layout::ResetRecord;
use etherparse::PacketBuilder;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use zerocopy::FromBytes as _;

use super::core::Core;
use crate::{datapath::Datapath, events::decode::address};

/// Problem of `status`.
const PROBLEM: &str = "resets";
const HOPS: u8 = 64;

/// The sockets by which answers leave; opened when the first is due.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Sockets {
    /// Opens them; what they send is judged as the doors'.
    fn open(datapath: &Datapath) -> io::Result<Self> {
        let open = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))
                .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("open a raw socket: {e}")))?;
            datapath.let_answer(socket.as_fd()).map_err(|e| io::Error::other(format!("{e}: {}", e.source)))?;
            Ok::<_, io::Error>(socket)
        };
        Ok(Self { v4: open(AddressFamily::INET)?, v6: open(AddressFamily::INET6)? })
    }

    fn answer(&self, call: &ResetRecord) -> io::Result<()> {
        let (socket, to): (_, SocketAddr) = match address(call.caller) {
            IpAddr::V4(v4) => (&self.v4, SocketAddrV4::new(v4, 0).into()),
            IpAddr::V6(v6) => (&self.v6, SocketAddrV6::new(v6, 0, 0, 0).into()),
        };
        sendto(socket, &answer(call)?, SendFlags::empty(), &to)?;
        Ok(())
    }
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
        let sent = self.send_answers(&calls);
        self.tell(PROBLEM, sent.err().map(|e| format!("`onDeny: reset`: callers that were denied hear nothing: {e}")));
    }

    fn send_answers(&mut self, calls: &[ResetRecord]) -> io::Result<()> {
        let sockets = match &mut self.answers {
            Some(sockets) => sockets,
            none => none.insert(Sockets::open(&self.datapath)?),
        };
        // Whom no route leads to is not told, and that is no reason to leave out the others.
        let failures: Vec<io::Error> = calls.iter().filter_map(|call| sockets.answer(call).err()).collect();
        failures.into_iter().find(|e| !is_of_the_way(e)).map_or(Ok(()), Err)
    }
}

/// Says whether an answer can come from the host's network: over loopback it must be that of the call.
fn can_be_reached(call: &ResetRecord, host_netns: u64) -> bool {
    call.netns == host_netns || !address(call.caller).is_loopback()
}

fn is_of_the_way(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENOBUFS | libc::EAGAIN))
}

/// The reset that answers a call, from the IP header on: what a host without a listener there would send.
fn answer(call: &ResetRecord) -> io::Result<Vec<u8>> {
    let ip = match (address(call.callee), address(call.caller)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        _ => PacketBuilder::ipv6(call.callee, call.caller, HOPS),
    };
    // The SYN is one number long.
    let tcp = ip.tcp(call.callee_port, call.caller_port, 0, 0).rst().ack(call.sequence.wrapping_add(1));
    let mut packet = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut packet, &[]).map_err(io::Error::other)?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use agent_common::parse::{packet, tcp};

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
    fn the_answer_is_what_the_parser_of_the_kernel_takes_for_a_reset_of_that_call() {
        for (caller, callee) in [("10.0.0.1", "10.255.0.254"), ("fd00::1", "fd00::ffff")] {
            for sequence in [0, 1, 0x1234_5678, u32::MAX] {
                let call = call(caller, callee, sequence);
                let bytes = answer(&call).unwrap();
                let packet = packet(bytes.as_slice()).unwrap();
                assert_eq!((packet.src, packet.dst), (call.callee, call.caller));
                assert_eq!((packet.src_port, packet.dst_port), (5432, 40_001));
                assert_eq!((packet.tcp_flags, packet.has_payload), (tcp::RST | tcp::ACK, 0));
                let segment = &bytes[bytes.len() - 20..];
                assert_eq!(segment[8..12], sequence.wrapping_add(1).to_be_bytes());
                // RFC 1071: over what it covers, the sum with the checksum is all ones.
                let addresses = if caller.contains(':') { &bytes[8..40] } else { &bytes[12..20] };
                let words = addresses.chunks(2).chain(segment.chunks(2));
                let sum: u32 =
                    words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>() + 6 + 20;
                assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{caller}");
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
