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
    flow::proto,
    layout::{DeviceEntry, FlowKey, Hook, Role, device_owner, ident_flags, record_flags},
    parse::{Packet, plain::Plain, tcp},
    verdict::{Decision, Reason, Verdict},
};
use aya_ebpf::{
    bindings::{
        __sk_buff,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::generated::{bpf_get_socket_cookie, bpf_get_socket_uid, bpf_skb_cgroup_id},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    emit,
    flows::{self, Known},
    frames,
    judge::Case,
    maps::DEV_OWNER,
    on_error::{Error, on_error},
    peer, policy,
    sockets::{self, Tuple},
    who,
};

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

#[inline(always)]
fn run(skb: *mut __sk_buff, leaves: bool) -> i32 {
    let epoch = policy::epoch();
    // Flows are of one owner of a device: who else becomes that begins without any.
    if !leaves && passes_to(skb, epoch) {
        return TCX_NEXT;
    }
    // SAFETY: the context.
    let ifindex = unsafe { (*skb).ifindex };
    // The agent names the owner before it attaches, so a device without one is not of this agent.
    let Some(&DeviceEntry { cgroup, netns, .. }) = (unsafe { DEV_OWNER.get(ifindex) }) else {
        return TCX_NEXT;
    };
    if leaves {
        if passes_from(skb, cgroup, epoch) { TCX_NEXT } else { judge_from(skb, cgroup, netns, epoch) }
    } else {
        judge_to(skb, cgroup, netns, epoch)
    }
}

/// Frames of their own, which are gone before a judgement needs the stack.
#[inline(never)]
fn passes_from(skb: *mut __sk_buff, device: u64, epoch: u32) -> bool {
    // SAFETY: the context.
    let sender = unsafe { bpf_skb_cgroup_id(skb) };
    (sender <= who::ROOT_CGROUP || sender == device) && passes(skb, epoch, true)
}

#[inline(never)]
fn passes_to(skb: *mut __sk_buff, epoch: u32) -> bool {
    passes(skb, epoch, false)
}

#[inline(never)]
fn judge_from(skb: *mut __sk_buff, device: u64, netns: u32, epoch: u32) -> i32 {
    judge(skb, device, netns, epoch, true)
}

#[inline(never)]
fn judge_to(skb: *mut __sk_buff, device: u64, netns: u32, epoch: u32) -> i32 {
    judge(skb, device, netns, epoch, false)
}

/// Says whether an ordinary packet belongs to a flow that may pass.
#[inline(always)]
fn passes(skb: *mut __sk_buff, epoch: u32, leaves: bool) -> bool {
    let Some(plain) = frames::plain(skb) else {
        return false;
    };
    let Plain { src, dst, src_port, dst_port, proto, tcp_flags, .. } = plain;
    // SAFETY: the context.
    let owner = device_owner(unsafe { (*skb).ifindex }, 0);
    let mut key = if leaves {
        flows::key(owner, &src, &dst, src_port, dst_port, proto)
    } else {
        flows::key(owner, &dst, &src, dst_port, src_port, proto)
    };
    // Who calls has the higher port, nearly always: so one look is enough.
    let by_own = src_port > dst_port;
    by_own && is_live(&mut key, epoch, leaves, tcp_flags, false)
        || !flows::asks(proto, tcp_flags, None) && is_live(&mut key, epoch, leaves, tcp_flags, true)
        || !by_own && is_live(&mut key, epoch, leaves, tcp_flags, false)
}

#[inline(always)]
fn is_live(key: &mut FlowKey, epoch: u32, leaves: bool, tcp_flags: u8, reply: bool) -> bool {
    matches!(flows::see(key, epoch, leaves, tcp_flags, reply), Known::Live(_))
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, device: u64, netns: u32, epoch: u32, leaves: bool) -> i32 {
    // Without a socket there is no owner of one: it is the cgroup's name.
    let slot = who::slot_of(device, || u32::MAX, epoch & 1);
    let mut case = Case::new(if leaves { Hook::TcFrom } else { Hook::TcTo }, leaves, device, slot, epoch);
    // SAFETY: the context.
    (case.ifindex, case.bytes) = unsafe { ((*skb).ifindex, (*skb).len) };
    let said = read_case(skb, &mut case);
    if leaves {
        if contradicts(skb, &mut case) {
            return finish(skb, &case, &Decision::deny(Reason::DeviceMismatch));
        }
    } else if device == 0 || slot.flags & ident_flags::ASK_UID != 0 {
        name_receiver(skb, &mut case, netns);
    }
    match said {
        frames::PACKET => {}
        frames::ARP => return TCX_NEXT,
        frames::NEIGHBOUR if !leaves || !case.as_icmp().is_of_router() => return TCX_NEXT,
        frames::NEIGHBOUR => {}
        failed => return finish(skb, &case, &on_error(&Error::Frame(frames::error(failed)))),
    }
    if leaves && peer::owner_of(&case.local_addr) != Some(device) {
        return finish(skb, &case, &Decision::deny(Reason::SpoofedSource));
    }
    // Who shares a device takes no part in the flows of another.
    let owner = device_owner(case.ifindex, if device == 0 { case.cgroup } else { 0 });
    let mut decision = on_error(&Error::NoFlow);
    // A workload is no router: it may not advertise itself as one, nor redirect.
    if leaves && case.as_icmp().is_of_router() {
        return finish(skb, &case, &decision);
    }
    // An error is part of the flow that it is about, whatever a rule says.
    if case.as_icmp().is_icmp_error() {
        return match if leaves {
            quotes_flow::<true>(skb, &case, owner)
        } else {
            quotes_flow::<false>(skb, &case, owner)
        } {
            frames::PACKET => TCX_NEXT,
            NO_FLOW => finish(skb, &case, &decision),
            failed => finish(skb, &case, &on_error(&Error::Frame(frames::error(failed)))),
        };
    }
    match look_up(&mut case, owner) {
        Seen::Passes => return TCX_NEXT,
        Seen::BeginsNothing if case.proto == proto::TCP && is_open(skb, &mut case, netns) => {}
        Seen::BeginsNothing => return finish(skb, &case, &decision),
        Seen::Asks => {}
    }
    decide(&mut case, &mut decision);
    if matches!(case.typed_mode().apply(&decision), Verdict::Allow) && !remember(&case, &decision, owner) {
        // A flow that is not recorded has replies that look like new flows.
        decision = on_error(&Error::FlowTableFull);
    }
    finish(skb, &case, &decision)
}

/// Reads the frame into the case.
#[inline(never)]
fn read_case(skb: *mut __sk_buff, case: &mut Case) -> u32 {
    let mut packet = Packet::default();
    let said = frames::ew_read_frame(skb, &raw mut packet);
    case.read(&packet);
    said
}

/// Says whether a socket sent the frame that is another workload's than the device. Notes whose it is; where several
/// workloads share a device, the socket tells which one sends.
#[inline(never)]
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
#[inline(never)]
fn name_receiver(skb: *mut __sk_buff, case: &mut Case, netns: u32) {
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
}

/// What [`quotes_flow`] returns for a packet of no flow.
const NO_FLOW: u32 = u32::MAX;

/// Looks whether an ICMP error quotes a packet of a flow that may pass, and is on its way to who sent that one:
/// [`frames::PACKET`], [`NO_FLOW`], or an error of the quote.
#[inline(never)]
fn quotes_flow<const LEAVES: bool>(skb: *mut __sk_buff, case: &Case, owner: u64) -> u32 {
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

/// What the flow table makes of a packet.
enum Seen {
    /// It belongs to a flow that may pass.
    Passes,
    /// It belongs to no flow and is not one that begins one.
    BeginsNothing,
    /// Policy is to be asked.
    Asks,
}

/// Asks the flow table about a packet, and notes in the case which end of its flow this one is.
#[inline(never)]
fn look_up(case: &mut Case, owner: u64) -> Seen {
    let echo = case.echo();
    let mut key = case.flow_key(owner);
    let flows::Found { known, reply } = flows::find(&mut key, case.epoch, case.leaves, case.tcp_flags, echo);
    case.role = if case.leaves == reply { Role::Callee } else { Role::Caller };
    match known {
        Known::Live(_) => return Seen::Passes,
        // The end of a flow that was allowed once and is no longer: without it the peer hangs. It carries
        // nothing, and there is one.
        Known::Stale if ends(case) => {
            flows::forget(&key);
            return Seen::Passes;
        }
        Known::No if case.proto == proto::TCP && !flows::asks(proto::TCP, case.tcp_flags, None) || echo == Some(0) => {
            return Seen::BeginsNothing;
        }
        Known::Stale | Known::No => {}
    }
    if echo == Some(0) {
        // The rule for an echo flow is the one for its request.
        case.icmp[0] = if case.proto == proto::ICMP { 8 } else { 128 };
    }
    Seen::Asks
}

/// Says whether a socket of the workload has the connection of a segment, though the table does not: it is older
/// than the programs at this device, or was silent for long. Notes which end of it this one is.
#[inline(never)]
fn is_open(skb: *mut __sk_buff, case: &mut Case, netns: u32) -> bool {
    let (ctx, netns) = (skb.cast(), u64::from(netns));
    let mut tuple = Tuple::new(&case.peer_addr, case.peer_port, &case.local_addr, case.local_port);
    let mut role = 0;
    let found = peer::find_in(ctx, netns, proto::TCP, &mut tuple, |sk| {
        // SAFETY: storage of a referenced socket.
        role = sockets::stored(sk).map_or(0, |stored| unsafe { (*stored).sticky_role });
        0
    });
    if found.is_none_or(|found| found.listens) {
        return false;
    }
    let called = match role {
        1 => false,
        2 => true,
        // Made before the programs of sockets were there.
        _ => peer::listens(ctx, netns, &case.local_addr, case.local_port, &case.peer_addr),
    };
    case.role = if called { Role::Callee } else { Role::Caller };
    true
}

/// Records that the flow of a packet may pass. False: there is no room.
#[inline(never)]
fn remember(case: &Case, decision: &Decision, owner: u64) -> bool {
    let mut key = case.flow_key(owner);
    key.direction = u8::from(matches!(case.role, Role::Callee));
    flows::record(&key, case.epoch, decision.valid_until.0, 0)
}

#[inline(always)]
const fn ends(case: &Case) -> bool {
    case.proto == proto::TCP && case.tcp_flags & tcp::RST != 0 && case.has_payload == 0
}

/// Names the other end and decides. A frame of its own: the stack holds 512 bytes over all frames.
#[inline(never)]
fn decide(case: &mut Case, decision: &mut Decision) {
    case.peer = peer::by_address(&case.peer_addr, case.epoch & 1);
    case.decide(decision);
}

/// Applies the mode, reports a denial, returns the hook's code.
#[inline(always)]
fn finish(skb: *mut __sk_buff, case: &Case, decision: &Decision) -> i32 {
    let verdict = case.conclude(decision, |verdict| report(skb, case, decision, verdict as u32));
    if matches!(verdict, Verdict::Allow) { TCX_NEXT } else { TCX_DROP }
}

#[inline(never)]
fn report(skb: *mut __sk_buff, case: &Case, decision: &Decision, verdict: u32) {
    let verdict = if verdict == 0 { Verdict::Deny } else { Verdict::Allow };
    emit::denial(case, decision, verdict, |record| {
        // What is no IP has no addresses.
        if case.local_addr[0] | case.local_addr[1] != 0 {
            record.flags |= record_flags::LOCAL_PORT | record_flags::LOCAL_ADDR;
        }
        // SAFETY: the context.
        record.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    });
}
