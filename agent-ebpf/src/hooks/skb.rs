// tidy: long because both directions are one judgement, whose steps share a case and an order.
//! cgroup_skb egress and ingress: the boundary. Everything a socket sends or receives passes here.

use core::ptr;

use agent_common::{
    cached,
    flow::proto,
    id::{BootSeconds, RuleNumber},
    layout::{DenyRecord, FlowKey, Hook, KnownBy, Role, SockState, record_flags},
    parse::{self, Packet, ParseError, tcp},
    verdict::{Decision, Verdict},
};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_get_socket_uid, bpf_sk_release, bpf_skb_cgroup_id, bpf_skb_load_bytes,
        bpf_skc_lookup_tcp,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};

use crate::{
    emit, flows,
    flows::Known,
    globals,
    judge::Case,
    log,
    on_error::{Error, on_error},
    peer::{self, Peer},
    policy::{self, BootClock},
    sockets::{self, Tuple, state},
    who,
};

/// The loopback device has this index in every network namespace.
const LOOPBACK: u32 = 1;
/// The cgroup at the root of the hierarchy: the kernel's own sockets live there.
const ROOT_CGROUP: u64 = 1;

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
    if let Some(sk) = sockets::full(skb) {
        // SAFETY: a full socket.
        let (protocol, kind, sk_state) = unsafe { ((*sk).protocol, (*sk).type_, (*sk).state) };
        let is_tcp = protocol == u32::from(proto::TCP) && kind == sockets::STREAM;
        // Only a SYN-ACK leaves a listener, and only in answer to a SYN that its door let in.
        if is_tcp && leaves && sk_state == state::LISTEN {
            return Verdict::Allow as i32;
        }
        // An inbound UDP datagram reached a connected socket because it matches the socket's peer; an
        // outbound one can carry another address, so it is read first.
        let peer_is_fixed = is_tcp && sk_state != state::LISTEN
            || !leaves && protocol == u32::from(proto::UDP) && kind == sockets::DGRAM;
        if peer_is_fixed && cached_verdict(sk, epoch) {
            return Verdict::Allow as i32;
        }
    }
    if leaves { judge_egress(skb, epoch) } else { judge_ingress(skb, epoch) }
}

/// Says whether the socket's storage holds a pass for its present peer.
#[inline(always)]
fn cached_verdict(sk: *mut bpf_sock, epoch: u32) -> bool {
    let Some(stored) = sockets::stored(sk) else {
        return false;
    };
    // SAFETY: a full socket and its storage.
    unsafe {
        if (*stored).epoch != epoch {
            return false;
        }
        let (addr, port) = sockets::peer(sk);
        let known = sockets::load(&(*stored).peer_addr);
        if port == 0
            || (*stored).peer_port != port
            || u32::from((*stored).local_port) != (*sk).src_port
            || known[0] != addr[0]
            || known[1] != addr[1]
        {
            return false;
        }
        cached::holds(&*stored, epoch, now, globals::secret())
    }
}

#[inline(never)]
fn judge_egress(skb: *mut __sk_buff, epoch: u32) -> i32 {
    judge(skb, epoch, true)
}

#[inline(never)]
fn judge_ingress(skb: *mut __sk_buff, epoch: u32) -> i32 {
    judge(skb, epoch, false)
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, epoch: u32, leaves: bool) -> i32 {
    let side = epoch & 1;
    // SAFETY: the context; the helper answers for the socket that the program runs on.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    // SAFETY: the context.
    let (ifindex, bytes) = unsafe { ((*skb).ifindex, (*skb).len) };
    let mut case = Case {
        local_addr: [0; 2],
        peer_addr: [0; 2],
        local_port: 0,
        peer_port: 0,
        icmp_id: 0,
        icmp: [0; 2],
        proto: 0,
        tcp_flags: 0,
        has_payload: 0,
        // SAFETY: the context.
        slot: who::slot_of(cgroup, || unsafe { bpf_get_socket_uid(skb) }, side),
        peer: Peer::UNKNOWN,
        cgroup,
        task: agent_common::id::IdentityId(0),
        epoch,
        ifindex,
        bytes,
        hook: if leaves { Hook::Egress as u8 } else { Hook::Ingress as u8 },
        leaves,
        role: if leaves { Role::Caller } else { Role::Callee },
    };
    let mut decision = on_error(&Error::NoSocket);
    let failed = read_case(skb, &mut case);
    if failed != 0 {
        decision = on_error(&Error::Parse(parse_error(failed)));
        return finish(skb, &case, &decision);
    }
    if kernel_answers(skb, &case) {
        return Verdict::Allow as i32;
    }
    if case.proto == proto::TCP {
        tcp_case(skb, &mut case, &mut decision)
    } else {
        flow_case(skb, &mut case, &mut decision)
    }
}

/// Reads the packet; the result is 0, or an error for [`parse_error`].
///
/// Global, so that the verifier checks it once and not for every state of every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_read_packet(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(packet) = (unsafe { packet.as_mut() }) else {
        return 1;
    };
    match parse::read(&Skb { skb }, packet) {
        Ok(()) => 0,
        Err(ParseError::Truncated) => 1,
        Err(ParseError::Version) => 2,
        Err(ParseError::Length) => 3,
        Err(ParseError::Headers) => 4,
        Err(ParseError::Fragment) => 5,
    }
}

/// Reads the packet into the case. A frame of its own: the stack holds 512 bytes over all frames.
#[inline(never)]
fn read_case(skb: *mut __sk_buff, case: &mut Case) -> u32 {
    let mut packet = Packet::default();
    let failed = ew_read_packet(skb, &raw mut packet);
    if case.leaves {
        case.read(&packet, true)
    } else {
        case.read(&packet, false)
    }
    failed
}

/// See [`ew_read_packet`].
#[inline(always)]
const fn parse_error(code: u32) -> ParseError {
    match code {
        5 => ParseError::Fragment,
        4 => ParseError::Headers,
        3 => ParseError::Length,
        2 => ParseError::Version,
        _ => ParseError::Truncated,
    }
}

/// Says whether the packet is one that the kernel sends or takes by itself: built-in `icmp-errors`.
///
/// - A reset without payload. It ends flows and opens none; without it the peer of a cut flow hangs.
/// - From the root cgroup only, where the kernel's control sockets live: ICMP errors, neighbour and
///   listener discovery, and echo replies over loopback, whose request the caller's exit has judged.
#[inline(always)]
fn kernel_answers(skb: *mut __sk_buff, case: &Case) -> bool {
    if case.proto == proto::TCP && case.tcp_flags & tcp::RST != 0 && case.has_payload == 0 {
        return case.cgroup == ROOT_CGROUP || tcp_socket(skb).is_some();
    }
    case.leaves
        && case.cgroup == ROOT_CGROUP
        && (case.as_icmp().is_icmp_error()
            || case.as_icmp().is_neighbour_discovery()
            || case.ifindex == LOOPBACK && case.echo() == Some(0))
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
    case.role = match sk_state {
        state::LISTEN => Role::Callee,
        state::SYN_SENT => Role::Caller,
        _ => sticky_role(skb, sk, case),
    };
    decide(skb, case, decision);
    if let Some(stored) = sockets::storage(sk) {
        // SAFETY: storage of a socket that the packet keeps alive.
        unsafe {
            (*stored).sticky_role = case.role as u8;
            // Never on a listener: children inherit its storage, and a verdict must not be inherited.
            if sk_state != state::LISTEN && passes(case, decision) {
                remember(stored, case, decision);
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
    // Remote port 0 matches no connection, so only a listener can be found.
    let mut tuple = Tuple::new(&case.peer_addr, 0, &case.local_addr, case.local_port);
    // SAFETY: the helper reads the tuple; what it returns is released at once.
    unsafe {
        let found = if tuple.is_v4() {
            bpf_skc_lookup_tcp(skb.cast(), tuple.as_ptr(), 12, sockets::CURRENT_NETNS, 0)
        } else {
            bpf_skc_lookup_tcp(skb.cast(), tuple.as_ptr(), 36, sockets::CURRENT_NETNS, 0)
        };
        if found.is_null() {
            return Role::Caller;
        }
        bpf_sk_release(found.cast());
    }
    Role::Callee
}

/// Everything but TCP: the state is in the flow table, or in the storage of a connected UDP socket.
#[inline(always)]
fn flow_case(skb: *mut __sk_buff, case: &mut Case, decision: &mut Decision) -> i32 {
    let connected = connected_udp(skb, case);
    if case.leaves && !connected.is_null() && cached_verdict(connected, case.epoch) {
        return Verdict::Allow as i32;
    }
    let mut key = FlowKey {
        owner: case.cgroup,
        local_addr: [0; 16],
        peer_addr: [0; 16],
        local_port: case.local_port,
        peer_port: case.peer_port,
        proto: case.proto,
        direction: if case.leaves { 1 } else { 0 },
        reserved: [0; 2],
    };
    sockets::store(&mut key.local_addr, case.local_addr);
    sockets::store(&mut key.peer_addr, case.peer_addr);
    let echo = case.echo();
    if echo.is_some() {
        key.local_port = case.icmp_id;
        key.peer_port = case.icmp_id;
    }
    // Against the direction of a flow that the other side began: a reply. An echo request never is
    // one, whatever its identifier.
    let mut role = if case.leaves { Role::Caller } else { Role::Callee };
    let reply = if echo == Some(8) { Known::No } else { flows::see(&key, case.epoch, true, boot_seconds) };
    match reply {
        Known::Live => return Verdict::Allow as i32,
        Known::Stale => role = if case.leaves { Role::Callee } else { Role::Caller },
        Known::No => {
            if echo == Some(0) {
                *decision = on_error(&Error::NoFlow);
                return finish(skb, case, decision);
            }
            key.direction = if case.leaves { 0 } else { 1 };
            if flows::see(&key, case.epoch, false, boot_seconds) == Known::Live {
                return Verdict::Allow as i32;
            }
        }
    }
    case.role = role;
    if echo == Some(0) {
        // The rule for an echo flow is the one for its request.
        case.icmp[0] = if case.proto == proto::ICMP { 8 } else { 128 };
    }
    decide(skb, case, decision);
    if passes(case, decision) {
        if !case.leaves && matches!(case.role, Role::Callee) {
            mark_called(skb);
        }
        let mut remembered = false;
        if !connected.is_null()
            && let Some(stored) = sockets::storage(connected)
        {
            // SAFETY: storage of a live socket.
            unsafe { remember(stored, case, decision) };
            remembered = true;
        }
        let recorded = flows::record(&key, case.epoch, decision.valid_until.0);
        // A connected socket remembers by itself; for others a flow that is not recorded has replies
        // that look like new flows.
        if !recorded && !remembered {
            *decision = on_error(&Error::FlowTableFull);
        }
    }
    finish(skb, case, decision)
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

/// The packet's socket, if it is UDP, connected, and the packet goes to or comes from its peer; else
/// null, which unlike an `Option` leaves no register without a value.
#[inline(always)]
fn connected_udp(skb: *mut __sk_buff, case: &Case) -> *mut bpf_sock {
    let Some(sk) = sockets::full(skb) else {
        return ptr::null_mut();
    };
    // SAFETY: a full socket.
    let udp = unsafe { (*sk).protocol == u32::from(proto::UDP) && (*sk).type_ == sockets::DGRAM };
    if !udp || case.proto != proto::UDP {
        return ptr::null_mut();
    }
    let (addr, port) = sockets::peer(sk);
    let to = &case.peer_addr;
    let same = addr[0] == to[0] && addr[1] == to[1];
    if port != 0 && port == case.peer_port && same { sk } else { ptr::null_mut() }
}

/// Names the other end and decides. A frame of its own.
#[inline(never)]
fn decide(skb: *mut __sk_buff, case: &mut Case, decision: &mut Decision) {
    name_peer(skb, case);
    case.decide(decision);
}

/// A frame of its own.
#[inline(never)]
fn name_peer(skb: *mut __sk_buff, case: &mut Case) {
    case.peer = peer_of(skb, case);
}

/// Who the other end is.
#[inline(always)]
fn peer_of(skb: *mut __sk_buff, case: &Case) -> Peer {
    let side = case.epoch & 1;
    if case.ifindex != LOOPBACK {
        return peer::by_address(&case.peer_addr, side);
    }
    if !matches!(case.proto, proto::TCP | proto::UDP) {
        // Over loopback nothing but TCP and UDP can be looked up; what is left goes to the kernel.
        let host = peer::by_cgroup(ROOT_CGROUP, side);
        return Peer { known_by: KnownBy::Host, ..host };
    }
    let mut tuple = Tuple::new(&case.local_addr, case.local_port, &case.peer_addr, case.peer_port);
    match peer::find(skb.cast(), case.proto, &mut tuple, peer::cgroup_by_helper) {
        // A listener on the caller's port is not the caller.
        Some(found) if found.listens && matches!(case.role, Role::Callee) => Peer::UNKNOWN,
        Some(found) => peer::by_cgroup(found.cgroup, side),
        None => Peer::UNKNOWN,
    }
}

#[inline(always)]
fn passes(case: &Case, decision: &Decision) -> bool {
    matches!(case.typed_mode().apply(decision), Verdict::Allow)
}

/// Stores a pass in a socket's storage, the seal last.
///
/// # Safety
///
/// `stored` is the storage of a live socket.
#[inline(never)]
unsafe fn remember(stored: *mut SockState, case: &Case, decision: &Decision) {
    let mut verdict = SockState {
        peer_port: case.peer_port,
        local_port: case.local_port,
        epoch: case.epoch,
        valid_until: decision.valid_until.0,
        role: case.role as u8,
        proto: case.proto,
        ..SockState::default()
    };
    sockets::store(&mut verdict.peer_addr, case.peer_addr);
    verdict.seal = cached::seal(&verdict, globals::secret());
    // SAFETY: the caller's promise. Field by field, so that what is known about the maker stays.
    unsafe {
        ptr::write_volatile(&raw mut (*stored).seal, 0);
        sockets::store(&mut (*stored).peer_addr, case.peer_addr);
        (*stored).peer_port = verdict.peer_port;
        (*stored).local_port = verdict.local_port;
        (*stored).epoch = verdict.epoch;
        (*stored).valid_until = verdict.valid_until;
        (*stored).role = verdict.role;
        (*stored).proto = verdict.proto;
        ptr::write_volatile(&raw mut (*stored).seal, verdict.seal);
    }
}

/// Applies the mode, reports a denial, returns the hook's code.
#[inline(always)]
fn finish(skb: *mut __sk_buff, case: &Case, decision: &Decision) -> i32 {
    let mode = case.typed_mode();
    let verdict = mode.apply(decision);
    if mode.reports(decision) {
        log::denial(case, decision);
        report(skb, case, decision, verdict as u32);
    }
    verdict as i32
}

#[inline(never)]
fn report(skb: *mut __sk_buff, case: &Case, decision: &Decision, verdict: u32) {
    let verdict = if verdict == 0 { Verdict::Deny } else { Verdict::Allow };
    emit::denial(case, decision, verdict, |record| {
        record.flags |= record_flags::LOCAL_PORT | record_flags::LOCAL_ADDR;
        // SAFETY: the context.
        record.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
        let Some(stored) = sockets::full(skb).and_then(sockets::stored) else {
            return;
        };
        // SAFETY: storage of a live socket.
        unsafe { describe(&*stored, record, case.leaves) };
    });
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

#[inline(always)]
fn now() -> BootSeconds {
    use agent_common::decide::Clock as _;
    BootClock.boot_seconds()
}

#[inline(always)]
fn boot_seconds() -> u32 {
    now().0
}

/// A packet from its IP header, as cgroup_skb sees it.
struct Skb {
    skb: *mut __sk_buff,
}

impl parse::Source for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize, out: &mut [u8; N]) -> bool {
        // SAFETY: the helper writes N bytes or fails.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), offset as u32, out.as_mut_ptr().cast(), N as u32) == 0 }
    }
}

const _: () = assert!(RuleNumber::DEFAULT.0 == 0);
