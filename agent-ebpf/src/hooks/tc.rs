//! TC on the host's side of a workload's device: the boundary for frames, which no socket need have sent.
//!
//! The device tells the workload: `dev_owner` names a cgroup of it, whose label is this end; behind a device that
//! several share, it is that of the socket at this end. A socket that sent the frame must not contradict the device,
//! and what leaves has an address of the workload for its source. Every flow is in the flow table, under an owner that
//! is the device, or who shares it. Only for a connection that the table does not have, because it is older than these
//! programs, are the workload's sockets asked.
//!
//! Frames are dropped in silence. What passes goes on to the programs behind this one.

use agent_common::{
    addr,
    builtin::DNS_PORT,
    flow::proto,
    layout::{DeviceEntry, FlowKey, Hook, device_owner, ident_flags},
    parse::{Packet, plain::Plain},
    verdict::{Decision, Reason},
};
use aya_ebpf::{
    bindings::{
        __sk_buff,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::generated::{bpf_get_socket_uid, bpf_skb_cgroup_id},
    macros::classifier,
    programs::TcContext,
};

use super::{
    tc_flow::{Place, finish, judge_flow},
    tc_host,
};
use crate::{
    flows::{self, Known},
    fragments, frames, globals,
    judge::Case,
    maps::DEV_OWNER,
    on_error::{Error, on_error},
    peer, policy,
    recent::{self, Seen},
    sockets::{self, Addr, Tuple},
    who,
};

/// RFC 4861, section 4.4.
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Judges what leaves a workload by its device: TC ingress on the host's side.
#[classifier]
pub fn ew_tc_from(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, true)
}

/// Judges what enters a workload by its device: TC egress on the host's side.
#[classifier]
pub fn ew_tc_to(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, false)
}

/// Lets nothing pass. The agent puts it in the place of a program that it moves before another's.
#[classifier]
pub fn ew_tc_closed(_ctx: TcContext) -> i32 {
    TCX_DROP
}

#[inline(always)]
fn run(skb: *mut __sk_buff, leaves: bool) -> i32 {
    let standing = recent::standing();
    let epoch = recent::epoch(standing);
    let here = !leaves && globals::guards_host() && tc_host::is_sent_here(skb);
    if here && tc_host::sent_past_sockets(skb) && tc_host::ew_judge_host(skb, epoch) != TCX_NEXT {
        return TCX_DROP;
    }
    // Flows are of one owner of a device: who else becomes that begins without any.
    let passes = if leaves { passed_from(skb, standing) } else { passes_to(skb, standing, here) };
    if passes {
        return TCX_NEXT;
    }
    // SAFETY: the context.
    let ifindex = unsafe { (*skb).ifindex };
    // The agent names the owner before it attaches, so a device without one is not of this agent.
    let Some(&DeviceEntry { cgroup, hardware, netns, .. }) = (unsafe { DEV_OWNER.get(ifindex) }) else {
        return TCX_NEXT;
    };
    if leaves {
        let is_own = frames::comes_from(skb, hardware);
        if is_own && passes_from(skb, cgroup, hardware, standing) {
            TCX_NEXT
        } else {
            ew_judge_from(skb, cgroup, netns, epoch, u32::from(is_own))
        }
    } else {
        ew_judge_to(skb, cgroup, netns, epoch, u32::from(here))
    }
}

/// Frames of their own, which are gone before a judgement needs the stack.
#[inline(never)]
fn passed_from(skb: *mut __sk_buff, standing: u64) -> bool {
    frames::plain(skb).is_some_and(|plain| recent::passes(skb, &plain, standing, true, false))
}

#[inline(never)]
fn passes_from(skb: *mut __sk_buff, cgroup: u64, hardware: u64, standing: u64) -> bool {
    recent::may_send(skb, cgroup)
        && frames::plain(skb)
            .is_some_and(|plain| passes(skb, &plain, Seen { standing, leaves: true, here: false, hardware, cgroup }))
}

#[inline(never)]
fn passes_to(skb: *mut __sk_buff, standing: u64, here: bool) -> bool {
    frames::plain(skb).is_some_and(|plain| {
        recent::passes(skb, &plain, standing, false, here)
            || passes(skb, &plain, Seen { standing, leaves: false, here, hardware: 0, cgroup: 0 })
    })
}

/// Global, so that the verifier checks a judgement by itself and not for every state of the fast path.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_judge_from(skb: *mut __sk_buff, device: u64, netns: u32, epoch: u32, is_own: u32) -> i32 {
    judge(skb, device, netns, epoch, true, is_own != 0, false)
}

/// See [`ew_judge_from`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_judge_to(skb: *mut __sk_buff, device: u64, netns: u32, epoch: u32, here: u32) -> i32 {
    judge(skb, device, netns, epoch, false, true, here != 0)
}

/// Says whether an ordinary packet belongs to a flow that may pass, and notes that.
#[inline(always)]
fn passes(skb: *mut __sk_buff, plain: &Plain, seen: Seen) -> bool {
    let (epoch, leaves) = (recent::epoch(seen.standing), seen.leaves);
    let Plain { src, dst, src_port, dst_port, proto, tcp_flags, .. } = *plain;
    // An answer that may name an external is looked at, each one.
    if !leaves && src_port == DNS_PORT && proto == proto::UDP && policy::names_externals(&src, epoch) {
        return false;
    }
    // SAFETY: the context.
    let owner = device_owner(unsafe { (*skb).ifindex }, 0);
    let mut key = if leaves {
        flows::key(owner, &src, &dst, src_port, dst_port, proto)
    } else {
        flows::key(owner, &dst, &src, dst_port, src_port, proto)
    };
    // Who calls has the higher port, nearly always: so one look is enough.
    let by_own = src_port > dst_port;
    // See [`Place::forged`].
    let may_call = !seen.here || tc_host::is_of_host(&src, 0);
    let mut valid_until = None;
    if by_own && may_call {
        valid_until = live(&mut key, epoch, leaves, tcp_flags, false);
    }
    if valid_until.is_none() && !flows::asks(proto, tcp_flags, None) {
        valid_until = live(&mut key, epoch, leaves, tcp_flags, true);
    }
    if valid_until.is_none() && !by_own && may_call {
        valid_until = live(&mut key, epoch, leaves, tcp_flags, false);
    }
    let Some(valid_until) = valid_until else {
        return false;
    };
    recent::note(skb, plain, seen, valid_until);
    true
}

/// Until when a flow may pass, if it may: a boot second; 0 = as long as the epoch.
#[inline(always)]
fn live(key: &mut FlowKey, epoch: u32, leaves: bool, tcp_flags: u8, reply: bool) -> Option<u32> {
    match flows::see(key, epoch, leaves, tcp_flags, reply) {
        Known::Live(valid_until) => Some(valid_until),
        _ => None,
    }
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, device: u64, netns: u32, epoch: u32, leaves: bool, is_own: bool, here: bool) -> i32 {
    // Without a socket there is no owner of one: it is the cgroup's name.
    let slot = who::slot_of(device, || u32::MAX, epoch & 1);
    let mut case = Case::new(if leaves { Hook::TcFrom } else { Hook::TcTo }, leaves, device, slot, epoch);
    // SAFETY: the context.
    (case.ifindex, case.bytes) = unsafe { ((*skb).ifindex, (*skb).len) };
    let said = ew_tc_read(skb, &raw mut case);
    if leaves {
        if ew_tc_contradicts(skb, &raw mut case) != 0 {
            return finish(skb, &case, &Decision::deny(Reason::DeviceMismatch));
        }
    } else if device == 0 || slot.flags & ident_flags::ASK_UID != 0 {
        ew_tc_name_receiver(skb, &raw mut case, netns);
    }
    // Whoever sends to a workload uses up no room that the workload has for sending.
    let sharer = match (leaves, device) {
        (false, _) => who::ROOT_CGROUP,
        (true, 0) => case.cgroup,
        (true, _) => 0,
    };
    match said {
        frames::PACKET | frames::FIRST_FRAGMENT => {}
        frames::LATER_FRAGMENT if is_own && fragments::follows(skb, &case, sharer) => return TCX_NEXT,
        // A workload is no router: it may not advertise itself as one, nor redirect.
        frames::NEIGHBOUR if leaves && case.as_icmp().is_of_router() => {}
        frames::ARP | frames::NEIGHBOUR if !leaves || is_own && speaks_for_itself(skb, &case, said, device) => {
            return TCX_NEXT;
        }
        frames::ARP | frames::NEIGHBOUR => return finish(skb, &case, &Decision::deny(Reason::SpoofedSource)),
        failed => return finish(skb, &case, &on_error(&Error::Frame(frames::error(failed)))),
    }
    if leaves && !(is_own && peer::owner_of(&case.local_addr) == Some(device)) {
        return finish(skb, &case, &Decision::deny(Reason::SpoofedSource));
    }
    // Who shares a device takes no part in the flows of another.
    let owner = device_owner(case.ifindex, if device == 0 { case.cgroup } else { 0 });
    let forged = here && !tc_host::is_of_host(&case.peer_addr, 0);
    judge_flow::<false>(skb, &mut case, said, Place { owner, sharer, netns, forged })
}

/// Says whether ARP or neighbour discovery from a workload is about addresses of its own: the sender's, and the one that
/// an advertisement is about. One that several have, of which none may send by it, is asked for by each. Whoever tries
/// out an address has none yet: RFC 5227, section 2.1.1; RFC 4862, section 5.4.2.
#[inline(never)]
pub fn speaks_for_itself(skb: *mut __sk_buff, case: &Case, said: u32, device: u64) -> bool {
    let is_own = |addr: &Addr| matches!(peer::owner_of(addr), Some(owner) if owner == device || owner == 0);
    let is_none = addr::is_unspecified(&case.local_addr);
    if said == frames::ARP {
        return is_none || is_own(&case.local_addr);
    }
    if case.icmp[0] == NEIGHBOUR_ADVERTISEMENT {
        let mut target = [0; 2];
        return is_own(&case.local_addr) && frames::target(skb, &mut target) && is_own(&target);
    }
    is_none || is_own(&case.local_addr)
}

/// Reads the frame into the case. Like all steps of a judgement global, so that the verifier checks each step once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_read(skb: *mut __sk_buff, case: *mut Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return u32::MAX;
    };
    let mut packet = Packet::default();
    let said = frames::ew_read_frame(skb, &raw mut packet);
    case.read(&packet);
    said
}

/// Says whether a socket sent the frame that is another workload's than the device. Notes whose it is; where several
/// workloads share a device, the socket tells which one sends.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_contradicts(skb: *mut __sk_buff, case: *mut Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 1;
    };
    u32::from(contradicts(skb, case))
}

#[inline(always)]
fn contradicts(skb: *mut __sk_buff, case: &mut Case) -> bool {
    // SAFETY: the context.
    let sender = unsafe { bpf_skb_cgroup_id(skb) };
    // No socket, or one of the kernel's own.
    if sender <= who::ROOT_CGROUP || sender == case.cgroup && case.slot.flags & ident_flags::ASK_UID == 0 {
        return false;
    }
    case.cgroup = sender;
    let side = case.epoch & 1;
    // Of a workload that is narrowed by owner, the device has the name without.
    let named = who::slot_of(sender, || u32::MAX, side);
    if named.flags & ident_flags::LABELLED == 0 || named.id.is_unknown() {
        return false;
    }
    if !case.slot.id.is_unknown() && named.id.0 != case.slot.id.0 {
        return true;
    }
    // SAFETY: the context.
    case.slot = who::slot_of(sender, || unsafe { bpf_get_socket_uid(skb) }, side);
    false
}

/// Where several workloads share a device, or one is narrowed by owner, the socket that would receive tells which one
/// is called.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_name_receiver(skb: *mut __sk_buff, case: *mut Case, netns: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    let mut tuple = Tuple::new(&case.peer_addr, case.peer_port, &case.local_addr, case.local_port);
    let mut uid = u32::MAX;
    let found = peer::find_in(skb.cast(), u64::from(netns), case.proto, &mut tuple, |sk| {
        sockets::stored(sk).map_or(0, |stored| {
            // SAFETY: storage of a referenced socket.
            unsafe {
                uid = (*stored).uid;
                (*stored).cgroup
            }
        })
    });
    if let Some(found) = found
        && found.cgroup != 0
    {
        case.cgroup = found.cgroup;
        case.slot = who::slot_of(found.cgroup, || uid, case.epoch & 1);
    }
    0
}
