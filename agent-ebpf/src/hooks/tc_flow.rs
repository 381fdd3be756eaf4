//! A packet at a device, once its sender is known: it belongs to a flow that may pass, or policy is asked.

use agent_common::{
    flow::proto,
    layout::{Role, record_flags},
    parse::{frame::HEADER_BYTES, tcp},
    verdict::{Decision, Reason, Verdict},
};
use aya_ebpf::{
    bindings::{
        __sk_buff,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::generated::bpf_get_socket_cookie,
};

use super::tc_host;
use crate::{
    dns, emit,
    flows::{self, Known},
    fragments, frames,
    judge::Case,
    on_error::{Error, on_error},
    peer, policy, quotes, reset,
    sockets::{self, Tuple},
};

/// Where a packet passes.
#[derive(Clone, Copy)]
pub struct Place {
    /// Whose its flow is, of [`FlowKey::owner`].
    pub owner: u64,
    /// Who uses up room for datagrams in pieces: a cgroup, or 0 for the workload of the device.
    pub sharer: u64,
    /// The network namespace of the workload behind the device; none of a device of the host.
    pub netns: u32,
    /// A process of the host sends it, and by another source than the host's: it calls nobody by that. Where the callee
    /// of a workload's flow was translated into the host, its answers have such a source.
    pub forged: bool,
}

/// Judges a packet whose source is the sender's: by its flow, and else by policy. `said` is of
/// [`frames::ew_read_frame`].
#[inline(always)]
pub fn judge_flow<const HOST: bool>(skb: *mut __sk_buff, case: &mut Case, said: u32, place: Place) -> i32 {
    let Place { owner, sharer, netns, forged } = place;
    let leaves = HOST || case.leaves;
    let is_first = said == frames::FIRST_FRAGMENT;
    if is_first && !fragments::begins(skb, case, sharer) {
        return finish(skb, case, &Decision::deny(Reason::Fragment));
    }
    let mut decision = on_error(&Error::NoFlow);
    // A workload is no router: it may not advertise itself as one, nor redirect.
    if leaves && case.as_icmp().is_of_router() {
        return finish(skb, case, &decision);
    }
    // An error is part of the flow that it is about, whatever a rule says.
    if case.as_icmp().is_icmp_error() {
        return match if leaves {
            quotes::flow::<true>(skb, case, owner)
        } else {
            quotes::flow::<false>(skb, case, owner)
        } {
            frames::PACKET => TCX_NEXT,
            quotes::NO_FLOW => finish(skb, case, &decision),
            failed => finish(skb, case, &on_error(&Error::Frame(frames::error(failed)))),
        };
    }
    let known = ew_tc_look_up(&raw mut *case, owner);
    match known {
        PASSES | ASKS => {}
        _ if !HOST && case.proto == proto::TCP && ew_tc_is_open(skb, &raw mut *case, netns) != 0 => {}
        _ => return finish(skb, case, &decision),
    }
    if forged && matches!(case.role, Role::Callee) {
        return finish(skb, case, &Decision::deny(Reason::SpoofedSource));
    }
    if known == PASSES {
        if is_first && !fragments::approve(skb, case, sharer) {
            return finish(skb, case, &on_error(&Error::FlowTableFull));
        }
        if !leaves {
            ew_tc_hear_answer(skb, &raw const *case);
        }
        return TCX_NEXT;
    }
    decide::<HOST>(skb, case, &mut decision);
    if matches!(case.typed_mode().apply(&decision), Verdict::Allow)
        && !(ew_tc_remember(&raw const *case, decision.valid_until.0, owner) != 0
            && (!is_first || fragments::approve(skb, case, sharer)))
    {
        // A flow that is not recorded has replies that look like new flows.
        decision = on_error(&Error::FlowTableFull);
    }
    let code = finish(skb, case, &decision);
    if !leaves && code == TCX_NEXT {
        ew_tc_hear_answer(skb, &raw const *case);
    }
    code
}

/// What the flow table makes of a packet: it belongs to no flow and is not one that begins one.
const BEGINS_NOTHING: u32 = 0;
/// It belongs to a flow that may pass.
const PASSES: u32 = 1;
/// Policy is to be asked.
const ASKS: u32 = 2;

/// Asks the flow table about a packet, and notes in the case which end of its flow this one is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_look_up(case: *mut Case, owner: u64) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return BEGINS_NOTHING;
    };
    let echo = case.echo();
    let mut key = case.flow_key(owner);
    let flows::Found { known, reply } = flows::find(&mut key, case.epoch, case.leaves, case.tcp_flags, echo);
    case.role = if case.leaves == reply { Role::Callee } else { Role::Caller };
    match known {
        Known::Live(_) => return PASSES,
        // The end of a flow that was allowed once and is no longer: without it the peer hangs. It carries
        // nothing, and there is one.
        Known::Stale if ends(case) => {
            flows::forget(&key);
            return PASSES;
        }
        Known::No if case.proto == proto::TCP && !flows::asks(proto::TCP, case.tcp_flags, None) || echo == Some(0) => {
            return BEGINS_NOTHING;
        }
        Known::Stale => case.is_running = true,
        Known::No => {}
    }
    if echo == Some(0) {
        // The rule for an echo flow is the one for its request.
        case.icmp[0] = if case.proto == proto::ICMP { 8 } else { 128 };
    }
    ASKS
}

/// Says whether a socket of the workload has the connection of a segment, though the table does not: it is older
/// than the programs at this device, or was silent for long. Notes which end of it this one is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_is_open(skb: *mut __sk_buff, case: *mut Case, netns: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    u32::from(is_open(skb, case, netns))
}

#[inline(always)]
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
    case.is_running = true;
    true
}

/// Learns from an answer of a resolver which addresses externals have.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_hear_answer(skb: *mut __sk_buff, case: *const Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    if case.may_be_answer() && policy::names_externals(&case.peer_addr, case.epoch) {
        dns::hear(skb, case, HEADER_BYTES as u32);
    }
    0
}

/// Records that the flow of a packet may pass. False: there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_remember(case: *const Case, valid_until: u32, owner: u64) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let mut key = case.flow_key(owner);
    key.direction = u8::from(matches!(case.role, Role::Callee));
    u32::from(flows::record(&key, case.epoch, valid_until, 0))
}

#[inline(always)]
const fn ends(case: &Case) -> bool {
    case.proto == proto::TCP && case.tcp_flags & tcp::RST != 0 && case.has_payload == 0
}

/// Names the other end and decides. A frame of its own: the stack holds 512 bytes over all frames.
#[inline(never)]
fn decide<const HOST: bool>(skb: *mut __sk_buff, case: &mut Case, decision: &mut Decision) {
    if HOST {
        tc_host::ew_host_name_peer(skb, case);
    } else {
        ew_tc_name_peer(case);
    }
    case.decide(decision);
}

/// A frame of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_name_peer(case: *mut Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    case.peer = peer::by_address(&case.peer_addr, case.epoch & 1);
    0
}

/// Applies the mode, reports a denial, returns the hook's code.
#[inline(always)]
pub fn finish(skb: *mut __sk_buff, case: &Case, decision: &Decision) -> i32 {
    let verdict = case.conclude(decision, |verdict| {
        ew_tc_report(skb, case, emit::told(decision, verdict), decision.rule.0);
    });
    if matches!(verdict, Verdict::Allow) {
        return TCX_NEXT;
    }
    if reset::is_due(case) {
        reset::ew_ask_reset(skb, case, HEADER_BYTES as u32);
    }
    TCX_DROP
}

/// A frame of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_tc_report(skb: *mut __sk_buff, case: *const Case, told: u32, rule: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let (decision, verdict) = emit::heard(told, rule);
    emit::denial(case, &decision, verdict, |record| {
        // What is no IP has no addresses.
        if case.local_addr[0] | case.local_addr[1] != 0 {
            record.flags |= record_flags::LOCAL_PORT | record_flags::LOCAL_ADDR;
        }
        // SAFETY: the context.
        record.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    });
    0
}
