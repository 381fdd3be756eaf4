//! TC egress at the devices of the host's own network: what its processes send past their sockets.
//!
//! What a socket of IP sends has been judged at the exit of its cgroup. What is left are frames that a process makes
//! itself, by AF_PACKET, and packets of raw sockets, whose source may be made up. Who sends is known by the
//! socket, which stays with the frame up to the device; a frame that came by another device is none of these.

use agent_common::{
    addr,
    flow::proto,
    layout::{HOST_OWNER, Hook},
    parse::{Packet, Piece, frame},
    verdict::{Decision, Reason},
};
use aya_ebpf::{
    bindings::{__sk_buff, tcx_action_base::TCX_NEXT},
    helpers::generated::{bpf_get_socket_uid, bpf_skb_cgroup_id},
    macros::classifier,
    programs::TcContext,
};

use super::{tc, tc_flow};
use crate::{
    fragments, frames, globals,
    headers::{self, Skb},
    judge::Case,
    maps::DEV_OWNER,
    on_error::{Error, on_error},
    peer::{self, Peer},
    policy,
    sockets::{self, Addr, LOOPBACK, Tuple},
    who,
};

/// linux/socket.h
const AF_PACKET: u32 = 17;
/// 255.255.255.255.
const ALL_HOSTS: Addr = addr::mapped(u32::MAX);

/// Judges what a process of the host sends past its socket.
#[classifier]
pub fn ew_tc_host(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if sent_past_sockets(skb) { ew_judge_host(skb, policy::epoch()) } else { TCX_NEXT }
}

/// Says whether a process of the host's network sends the frame, or of one that a device of the host is lent to.
#[inline(always)]
pub fn is_sent_here(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context; the helper answers for the socket of the frame.
    unsafe { (*skb).ingress_ifindex == 0 && bpf_skb_cgroup_id(skb) > who::ROOT_CGROUP }
}

/// Says whether it does so by a socket that makes frames or packets itself.
#[inline(always)]
pub fn sent_past_sockets(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context.
    if unsafe { (*skb).ingress_ifindex } != 0 {
        return false;
    }
    sockets::full(skb).is_some_and(|sk| {
        // SAFETY: a full socket.
        unsafe { (*sk).family == AF_PACKET || (*sk).type_ == sockets::RAW }
    })
}

/// Says whether an address is one by which the host may send, by a device.
#[inline(always)]
pub fn is_of_host(addr: &Addr, ifindex: u32) -> bool {
    // Whoever asks for an address has none yet.
    addr::is_unspecified(addr)
        || ifindex == LOOPBACK && addr::is_loopback(addr)
        || peer::owner_of(addr) == Some(HOST_OWNER)
}

/// Says whether the host asks for an address of its own: RFC 2131, section 4.1. Without one there is no way to the host
/// by which a policy could be put right.
const fn asks_for_address(case: &Case) -> bool {
    let is_to_all = case.peer_addr[0] == ALL_HOSTS[0] && case.peer_addr[1] == ALL_HOSTS[1];
    let is_dhcp = case.proto == proto::UDP && case.local_port == 68 && case.peer_port == 67;
    is_dhcp && is_to_all && addr::v4(&case.local_addr).is_some() && addr::is_unspecified(&case.local_addr)
}

/// Judges a frame that [`sent_past_sockets`] speaks of. Global, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_judge_host(skb: *mut __sk_buff, epoch: u32) -> i32 {
    // SAFETY: the context.
    let (sender, ifindex, bytes) = unsafe { (bpf_skb_cgroup_id(skb), (*skb).ifindex, (*skb).len) };
    if !globals::guards_host() || sender <= who::ROOT_CGROUP || !who::is_guarded(sender) {
        return TCX_NEXT;
    }
    // SAFETY: the context.
    let slot = who::slot_of(sender, || unsafe { bpf_get_socket_uid(skb) }, epoch & 1);
    let mut case = Case::new(Hook::TcHost, true, sender, slot, epoch);
    (case.ifindex, case.bytes) = (ifindex, bytes);
    let said = ew_host_read(skb, &raw mut case);
    if !is_frame_made(skb) {
        // The exit of the cgroup has judged the rest.
        return if is_of_host(&case.local_addr, ifindex) || is_elsewhere(skb, epoch) || sockets::answers(skb) {
            TCX_NEXT
        } else {
            tc_flow::finish(skb, &case, &Decision::deny(Reason::SpoofedSource))
        };
    }
    match said {
        frames::PACKET | frames::FIRST_FRAGMENT => {}
        frames::LATER_FRAGMENT if fragments::follows(skb, &case, sender) => return TCX_NEXT,
        frames::ARP | frames::NEIGHBOUR if tc::speaks_for_itself(skb, &case, said, HOST_OWNER) => return TCX_NEXT,
        frames::ARP | frames::NEIGHBOUR => return tc_flow::finish(skb, &case, &Decision::deny(Reason::SpoofedSource)),
        failed => return tc_flow::finish(skb, &case, &on_error(&Error::Frame(frames::error(failed)))),
    }
    if said == frames::PACKET && asks_for_address(&case) {
        return TCX_NEXT;
    }
    if !is_of_host(&case.local_addr, ifindex) {
        return tc_flow::finish(skb, &case, &Decision::deny(Reason::SpoofedSource));
    }
    tc_flow::judge_flow::<true>(
        skb,
        &mut case,
        said,
        tc_flow::Place { owner: sender, sharer: sender, netns: 0, forged: false },
    )
}

/// Reads the frame into the case. What it has for a tag, a device of the host has given it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_host_read(skb: *mut __sk_buff, case: *mut Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return u32::MAX;
    };
    let mut packet = Packet::default();
    // SAFETY: an entry that the agent writes whole; the context.
    let has_ethernet = unsafe { DEV_OWNER.get((*skb).ifindex) }.is_none_or(|device| device.hardware != 0);
    let said = if has_ethernet {
        frames::code(&frame::read(&Skb { skb }, &mut packet, &mut Piece::default()))
    } else {
        frames::code_of_packet(headers::ew_read_packet(skb, &raw mut packet))
    };
    case.read(&packet);
    said
}

/// Says whether a process made the frame, and not only the packet in it.
#[inline(always)]
fn is_frame_made(skb: *mut __sk_buff) -> bool {
    // SAFETY: a full socket.
    sockets::full(skb).is_none_or(|sk| unsafe { (*sk).family } == AF_PACKET)
}

/// Says whether the socket is of another network, to which a device of the host is lent: of macvlan and the like.
#[inline(always)]
fn is_elsewhere(skb: *mut __sk_buff, epoch: u32) -> bool {
    let Some(settings) = policy::settings(epoch & 1) else {
        return false;
    };
    sockets::full(skb).and_then(sockets::stored).is_some_and(|stored| {
        // SAFETY: storage of a live socket.
        let netns = unsafe { (*stored).netns };
        netns != 0 && netns != settings.host_netns
    })
}

/// Names the other end: over loopback by its socket, which has the last word in any case.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_host_name_peer(skb: *mut __sk_buff, case: *mut Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    let side = case.epoch & 1;
    if case.ifindex != LOOPBACK {
        case.peer = peer::by_address(&case.peer_addr, side);
        return 0;
    }
    let mut tuple = Tuple::new(&case.local_addr, case.local_port, &case.peer_addr, case.peer_port);
    let found = peer::find(skb.cast(), case.proto, &mut tuple, peer::cgroup_by_storage);
    case.peer =
        found.filter(|found| found.cgroup != 0).map_or(Peer::UNKNOWN, |found| peer::by_cgroup(found.cgroup, side));
    0
}
