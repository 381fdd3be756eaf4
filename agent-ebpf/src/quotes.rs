//! ICMP errors at a device: part of the flow that they are about.

use agent_common::parse::Packet;
use aya_ebpf::bindings::__sk_buff;

use crate::{flows, frames, judge::Case, sockets};

/// What [`flow`] returns for a packet of no flow.
pub const NO_FLOW: u32 = u32::MAX;

/// Looks whether an ICMP error quotes a packet of a flow that may pass, and is on its way to who sent that one:
/// [`frames::PACKET`], [`NO_FLOW`], or an error of the quote.
#[inline(never)]
pub fn flow<const LEAVES: bool>(skb: *mut __sk_buff, case: &Case, owner: u64) -> u32 {
    let mut quoted = Packet::default();
    let said = frames::ew_read_quote(skb, &raw mut quoted);
    if said != frames::PACKET {
        return said;
    }
    let (src, dst) = (sockets::load(&quoted.src), sockets::load(&quoted.dst));
    // An echo has its identifier at both ends.
    let (a, b) = (quoted.src_port | quoted.icmp_id, quoted.dst_port | quoted.icmp_id);
    let to = if LEAVES { &case.peer_addr } else { &case.local_addr };
    if to[0] != src[0] || to[1] != src[1] {
        return NO_FLOW;
    }
    let mut key = if LEAVES {
        flows::key(owner, dst, src, b, a, quoted.proto)
    } else {
        flows::key(owner, src, dst, a, b, quoted.proto)
    };
    if flows::is_live(&mut key, case.epoch) { frames::PACKET } else { NO_FLOW }
}
