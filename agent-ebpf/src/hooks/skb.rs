// tidy: long because both directions are one judgement, whose steps share a case and an order.
//! cgroup_skb egress and ingress: the boundary. Everything a socket sends or receives passes here.

use agent_common::{
    builtin::DNS_PORT,
    flow::proto,
    id::RuleNumber,
    layout::{DenyRecord, Hook, KnownBy, Role, SockState, record_flags},
    parse::{Packet, tcp},
    verdict::{Decision, Verdict},
};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_get_socket_uid, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};

use crate::{
    dns, emit, flows,
    flows::Known,
    headers,
    judge::Case,
    memory,
    on_error::{Error, on_error},
    peer::{self, Peer},
    policy, reset,
    sockets::{self, LOOPBACK, Tuple, state},
    who,
};

/// Judges what sockets send.
#[cgroup_skb(egress)]
pub fn ew_egress(ctx: SkBuffContext) -> i32 {
    run(ctx.skb.skb, true)
}

/// Judges what sockets receive.
#[cgroup_skb(ingress)]
pub fn ew_ingress(ctx: SkBuffContext) -> i32 {
    run(ctx.skb.skb, false)
}

#[inline(always)]
fn run(skb: *mut __sk_buff, leaves: bool) -> i32 {
    let epoch = policy::epoch();
    if memory::passes(skb, epoch, leaves) {
        return Verdict::Allow as i32;
    }
    let verdict = if leaves { ew_judge_egress(skb, epoch) } else { ew_judge_ingress(skb, epoch) };
    // The compiler knows that it is 0 or 1; the verifier does not, and wants to see it.
    // SAFETY: a value on the stack.
    i32::from(unsafe { core::ptr::read_volatile(&raw const verdict) } != 0)
}

/// Global, so that the verifier checks a judgement by itself and not for every state of the fast path.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_judge_egress(skb: *mut __sk_buff, epoch: u32) -> i32 {
    judge(skb, epoch, true)
}

/// See [`ew_judge_egress`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_judge_ingress(skb: *mut __sk_buff, epoch: u32) -> i32 {
    judge(skb, epoch, false)
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, epoch: u32, leaves: bool) -> i32 {
    // SAFETY: the context; the helper answers for the socket that the program runs on.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    // SAFETY: the context.
    let slot = who::slot_of(cgroup, || unsafe { bpf_get_socket_uid(skb) }, epoch & 1);
    let mut case = Case::new(if leaves { Hook::Egress } else { Hook::Ingress }, leaves, cgroup, slot, epoch);
    // SAFETY: the context.
    (case.ifindex, case.bytes) = unsafe { ((*skb).ifindex, (*skb).len) };
    let mut decision = on_error(&Error::NoSocket);
    let failed = ew_skb_read(skb, &raw mut case);
    if failed != 0 {
        decision = on_error(&Error::Parse(headers::error(failed)));
        return finish(skb, &case, &decision);
    }
    if kernel_answers(skb, &case) {
        return Verdict::Allow as i32;
    }
    if case.proto == proto::TCP {
        tcp_case(skb, &mut case, &mut decision)
    } else {
        flow_case(skb, &mut case, &mut decision, leaves)
    }
}

/// Reads the packet into the case. Like all steps of a judgement a frame of its own, since the stack holds 512 bytes
/// over all frames, and global, so that the verifier checks each step once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_skb_read(skb: *mut __sk_buff, case: *mut Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 1;
    };
    if let Some(plain) = headers::plain(skb) {
        case.read_plain(&plain);
        return 0;
    }
    let mut packet = Packet::default();
    let failed = headers::ew_read_packet(skb, &raw mut packet);
    case.read(&packet);
    failed
}

/// Says whether the packet is one that the kernel sends or takes by itself: built-in `icmp-errors`.
///
/// - A reset without payload. It ends flows and opens none; without it the peer of a cut flow hangs. The agent sends some
///   in the place of a door.
/// - From the kernel's own sockets: neighbour and listener discovery.
/// - From the root cgroup only, where the kernel's control sockets live: ICMP errors, and echo replies over loopback,
///   whose request the caller's exit has judged.
#[inline(always)]
fn kernel_answers(skb: *mut __sk_buff, case: &Case) -> bool {
    if case.proto == proto::TCP && case.tcp_flags & tcp::RST != 0 && case.has_payload == 0 {
        return case.cgroup == who::ROOT_CGROUP || tcp_socket(skb).is_some() || sockets::answers(skb);
    }
    if case.leaves && case.as_icmp().is_neighbour_discovery() {
        return case.cgroup == who::ROOT_CGROUP || is_kernels(skb);
    }
    case.leaves
        && case.cgroup == who::ROOT_CGROUP
        && (case.as_icmp().is_icmp_error() || case.ifindex == LOOPBACK && case.echo() == Some(0))
}

/// Says whether the kernel made the socket for itself: `ew_sock_create` has seen all others. Those of a network that a
/// workload made, or that was made for it, are in the cgroup of who did that.
#[inline(never)]
fn is_kernels(skb: *mut __sk_buff) -> bool {
    sockets::full(skb).is_some_and(|sk| {
        // SAFETY: a full socket.
        let raw = unsafe { (*sk).type_ } == sockets::RAW;
        raw && sockets::stored(sk).is_none()
    })
}

#[inline(always)]
fn tcp_socket(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    let sk = sockets::full(skb)?;
    // SAFETY: a full socket.
    let is_tcp = unsafe { (*sk).protocol == u32::from(proto::TCP) && (*sk).type_ == sockets::STREAM };
    is_tcp.then_some(sk)
}

/// TCP: the state is the socket's.
#[inline(always)]
fn tcp_case(skb: *mut __sk_buff, case: &mut Case, decision: &mut Decision) -> i32 {
    let Some(sk) = tcp_socket(skb) else {
        // A raw socket. Only a SYN begins a flow; a raw socket has none that others could answer in.
        if case.leaves && case.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
            *decision = on_error(&Error::NoFlow);
            return finish(skb, case, decision);
        }
        decide(skb, case, decision);
        return finish(skb, case, decision);
    };
    // SAFETY: a full socket.
    let sk_state = unsafe { (*sk).state };
    if case.leaves && sk_state == state::LISTEN {
        // Only a SYN-ACK leaves a listener, and only in answer to a SYN that its door let in.
        return Verdict::Allow as i32;
    }
    case.role = match sk_state {
        state::LISTEN => Role::Callee,
        state::SYN_SENT => Role::Caller,
        _ => {
            case.is_running = true;
            sticky_role(skb, sk, case)
        }
    };
    decide(skb, case, decision);
    if let Some(stored) = sockets::storage(sk) {
        // SAFETY: storage of a socket that the packet keeps alive.
        unsafe {
            (*stored).sticky_role = case.role as u8;
            // A listener remembers the SYN it was sent last, so that the end of the handshake and, as
            // children inherit its storage, the connection itself are not judged again. What was refused
            // ends what the same address and port were allowed before.
            if passes(case, decision) {
                memory::remember(stored, case, decision.valid_until.0);
            } else {
                memory::forget(stored);
            }
        }
    }
    finish(skb, case, decision)
}

/// The role of an established socket: as noted when it called or was called; for a socket older than
/// the agent by whether somebody listens on its local port.
#[inline(never)]
fn sticky_role(skb: *mut __sk_buff, sk: *mut bpf_sock, case: &Case) -> Role {
    if let Some(stored) = sockets::stored(sk) {
        // SAFETY: storage of a live socket.
        match unsafe { (*stored).sticky_role } {
            1 => return Role::Caller,
            2 => return Role::Callee,
            _ => {}
        }
    }
    if peer::listens(skb.cast(), sockets::CURRENT_NETNS, &case.local_addr, case.local_port, &case.peer_addr) {
        Role::Callee
    } else {
        Role::Caller
    }
}

/// Everything but TCP: the state is in the flow table, or in the storage of a connected UDP socket.
#[inline(always)]
fn flow_case(skb: *mut __sk_buff, case: &mut Case, decision: &mut Decision, leaves: bool) -> i32 {
    if case.leaves && case.proto == proto::UDP && case.ifindex == LOOPBACK {
        ew_skb_say_who_sends(skb, case);
    }
    let echo = case.echo();
    let mut key = case.flow_key(case.cgroup);
    let flows::Found { known, reply } = flows::find(&mut key, case.epoch, case.leaves, 0, echo);
    case.role = if case.leaves == reply { Role::Callee } else { Role::Caller };
    match known {
        Known::Live(valid_until) => {
            if !leaves && case.may_be_answer() {
                ew_skb_hear_answer(skb, case);
            }
            ew_skb_remember_datagram(skb, case, valid_until);
            return Verdict::Allow as i32;
        }
        Known::No if echo == Some(0) => {
            *decision = on_error(&Error::NoFlow);
            return finish(skb, case, decision);
        }
        Known::Stale => case.is_running = true,
        Known::No => {}
    }
    if echo == Some(0) {
        // The rule for an echo flow is the one for its request.
        case.icmp[0] = if case.proto == proto::ICMP { 8 } else { 128 };
    }
    decide(skb, case, decision);
    if passes(case, decision) {
        if !case.leaves && matches!(case.role, Role::Callee) {
            mark_called(skb);
        }
        let recorded = flows::record(&key, case.epoch, decision.valid_until.0, case.peer_cgroup);
        // A connected socket remembers by itself; for others a flow that is not recorded has replies
        // that look like new flows.
        let connected = ew_skb_remember_datagram(skb, case, decision.valid_until.0) != 0;
        if !recorded && !connected {
            *decision = on_error(&Error::FlowTableFull);
        }
    }
    let code = finish(skb, case, decision);
    if !leaves && code == Verdict::Allow as i32 && case.may_be_answer() {
        ew_skb_hear_answer(skb, case);
    }
    code
}

/// Takes from the receiver's end what is known there about another cgroup's socket at this address and port.
///
/// A port can change hands. The new owner's socket remembers nothing, so its first datagram comes here, and
/// ends what its predecessor was allowed before the door could take it along.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_skb_say_who_sends(skb: *mut __sk_buff, case: *const Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let mut tuple = Tuple::new(&case.local_addr, case.local_port, &case.peer_addr, case.peer_port);
    let mut receiver = 0;
    peer::find(skb.cast(), proto::UDP, &mut tuple, |sk| {
        if let Some(stored) = sockets::stored(sk) {
            // SAFETY: storage of a referenced socket.
            unsafe { memory::forget_peer(stored, &case.local_addr, case.local_port) };
        }
        receiver = peer::cgroup_by_helper(sk);
        receiver
    });
    if receiver == 0 {
        return 0;
    }
    let mut key = flows::key(receiver, &case.peer_addr, &case.local_addr, case.peer_port, case.local_port, proto::UDP);
    flows::forget_unless(&key, case.cgroup);
    key.direction = 1;
    flows::forget_unless(&key, case.cgroup);
    0
}

/// Notes that somebody calls this socket, so that sendmsg does not take its replies for calls.
#[inline(never)]
fn mark_called(skb: *mut __sk_buff) {
    if let Some(sk) = sockets::full(skb)
        && let Some(stored) = sockets::storage(sk)
    {
        // SAFETY: storage of a live socket.
        unsafe { (*stored).sticky_role = Role::Callee as u8 };
    }
}

/// Learns from an answer of a resolver which addresses externals have: one that came to the host's own network. In the
/// network of a workload that workload says who has which address; what comes to it by a device is heard there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_skb_hear_answer(skb: *mut __sk_buff, case: *const Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let Some(stored) = sockets::full(skb).and_then(sockets::stored) else {
        return 0;
    };
    let Some(settings) = policy::settings(case.epoch & 1) else {
        return 0;
    };
    // SAFETY: storage of a live socket.
    if unsafe { (*stored).netns } == settings.host_netns && policy::names_externals(&case.peer_addr, case.epoch) {
        dns::hear(skb, case, 0);
    }
    0
}

/// Lets a UDP socket remember a flow: its only one if it is connected, and else its last. Says whether it
/// is connected and remembers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_skb_remember_datagram(skb: *mut __sk_buff, case: *const Case, valid_until: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    u32::from(remember_datagram(skb, case, valid_until))
}

#[inline(always)]
fn remember_datagram(skb: *mut __sk_buff, case: &Case, valid_until: u32) -> bool {
    let Some(sk) = sockets::full(skb) else {
        return false;
    };
    // SAFETY: a full socket.
    let udp = unsafe { (*sk).protocol == u32::from(proto::UDP) && (*sk).type_ == sockets::DGRAM };
    if !udp || case.proto != proto::UDP {
        return false;
    }
    let (addr, port) = sockets::peer(sk);
    let to = &case.peer_addr;
    // An answer that may name an external is looked at, each one.
    if case.peer_port == DNS_PORT && policy::names_externals(&case.peer_addr, case.epoch) {
        return false;
    }
    // What a connected socket sends to somebody else is no reason to forget its peer.
    if port != 0 && (port != case.peer_port || addr[0] != to[0] || addr[1] != to[1]) {
        return false;
    }
    let Some(stored) = sockets::storage(sk) else {
        return false;
    };
    // SAFETY: storage of a live socket.
    unsafe { memory::remember(stored, case, valid_until) };
    port != 0
}

/// Names the other end and decides. A frame of its own.
#[inline(never)]
fn decide(skb: *mut __sk_buff, case: &mut Case, decision: &mut Decision) {
    ew_skb_name_peer(skb, case);
    case.decide(decision);
}

/// A frame of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_skb_name_peer(skb: *mut __sk_buff, case: *mut Case) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    case.peer = peer_of(skb, case);
    0
}

/// Who the other end is.
#[inline(always)]
fn peer_of(skb: *mut __sk_buff, case: &mut Case) -> Peer {
    let side = case.epoch & 1;
    if case.ifindex != LOOPBACK {
        return peer::by_address(&case.peer_addr, side);
    }
    if !matches!(case.proto, proto::TCP | proto::UDP) {
        // Over loopback nothing but TCP and UDP can be looked up; what is left goes to the kernel.
        let host = peer::by_cgroup(who::ROOT_CGROUP, side);
        return Peer::new(host.id, KnownBy::Host);
    }
    let mut tuple = Tuple::new(&case.local_addr, case.local_port, &case.peer_addr, case.peer_port);
    match peer::find(skb.cast(), case.proto, &mut tuple, peer::cgroup_by_helper) {
        // A listener on the caller's port is not the caller.
        Some(found) if found.listens && matches!(case.role, Role::Callee) => Peer::UNKNOWN,
        Some(found) => {
            case.peer_cgroup = found.cgroup;
            peer::by_cgroup(found.cgroup, side)
        }
        None => Peer::UNKNOWN,
    }
}

#[inline(always)]
fn passes(case: &Case, decision: &Decision) -> bool {
    matches!(case.typed_mode().apply(decision), Verdict::Allow)
}

/// Applies the mode, reports a denial, returns the hook's code.
#[inline(always)]
fn finish(skb: *mut __sk_buff, case: &Case, decision: &Decision) -> i32 {
    let verdict = case.conclude(decision, |verdict| {
        ew_skb_report(skb, case, emit::told(decision, verdict), decision.rule.0);
    });
    if matches!(verdict, Verdict::Deny) && reset::is_due(case) {
        reset::ew_ask_reset(skb, case, 0);
    }
    verdict as i32
}

/// A frame of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_skb_report(skb: *mut __sk_buff, case: *const Case, told: u32, rule: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let (decision, verdict) = emit::heard(told, rule);
    emit::denial(case, &decision, verdict, |record| {
        record.flags |= record_flags::LOCAL_PORT | record_flags::LOCAL_ADDR;
        // SAFETY: the context.
        record.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
        let Some(stored) = sockets::full(skb).and_then(sockets::stored) else {
            return;
        };
        // SAFETY: storage of a live socket.
        unsafe { describe(&*stored, record, case.leaves) };
    });
    0
}

/// Adds what the socket's maker left behind. At the door that is the callee, which did nothing: only
/// an exit names a process.
#[inline(always)]
fn describe(stored: &SockState, record: &mut DenyRecord, leaves: bool) {
    record.netns = stored.netns;
    if leaves && stored.maker_known != 0 {
        record.pid = stored.pid;
        record.uid = stored.uid;
        record.comm = stored.comm;
        record.flags |= record_flags::PROCESS;
    }
}

const _: () = assert!(RuleNumber::DEFAULT.0 == 0);
