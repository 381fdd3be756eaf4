//! connect and sendmsg: refusal at once, with the acting process. Never the boundary: what is not
//! certain here is left to the packet hooks.

use agent_common::{
    flow::{Direction, proto},
    layout::{Hook, IdentSlot, Role, SockState, ident_flags, record_flags},
    verdict::{Decision, Mode, Reason, Verdict},
};
use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_socket_cookie, bpf_getsockopt,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    emit,
    judge::Case,
    memory,
    peer::{self, Peer},
    policy,
    sockets::{self, Addr, Tuple, pair, state},
    who,
};

/// connect(2), IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn ew_connect4(ctx: SockAddrContext) -> i32 {
    judge(ctx.sock_addr, Hook::Connect4)
}

/// connect(2), IPv6 address; v4-mapped ones come here too.
#[cgroup_sock_addr(connect6)]
pub fn ew_connect6(ctx: SockAddrContext) -> i32 {
    judge(ctx.sock_addr, Hook::Connect6)
}

/// sendmsg(2) with an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn ew_sendmsg4(ctx: SockAddrContext) -> i32 {
    judge(ctx.sock_addr, Hook::Sendmsg4)
}

/// sendmsg(2) with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn ew_sendmsg6(ctx: SockAddrContext) -> i32 {
    judge(ctx.sock_addr, Hook::Sendmsg6)
}

#[inline(always)]
fn judge(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let epoch = policy::epoch();
    // SAFETY: the context; the family of the hook says which address is valid, `user_family` may be 0.
    let (addr, port, sk, kind, protocol) = unsafe {
        let addr = match hook {
            Hook::Connect6 | Hook::Sendmsg6 => {
                let ip = &(*ctx).user_ip6;
                [pair(ip[0], ip[1]), pair(ip[2], ip[3])]
            }
            _ => sockets::mapped((*ctx).user_ip4),
        };
        let port = u16::from_be((*ctx).user_port as u16);
        (addr, port, (*ctx).__bindgen_anon_1.sk, (*ctx).type_, (*ctx).protocol)
    };
    if sk.is_null() {
        return 1;
    }
    let Some(stored) = sockets::storage(sk) else {
        return 1;
    };
    // SAFETY: storage of the caller's socket; helpers of the calling task.
    let acting = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: as above.
    let is_running = matches!(hook, Hook::Sendmsg4 | Hook::Sendmsg6) && remembers(unsafe { &*stored }, &addr, port);
    // SAFETY: as above.
    if is_running && goes_on(unsafe { &*stored }, acting, epoch) {
        return 1;
    }
    // SAFETY: as above.
    let (cgroup, was_called) = unsafe {
        remember_task(stored);
        ((*stored).cgroup, (*stored).sticky_role == Role::Callee as u8)
    };
    // Older than the agent, or made by a kernel worker: the packet hook knows its cgroup.
    if cgroup == 0 {
        return 1;
    }
    let mut case = Case::new(hook, true, cgroup, IdentSlot::default(), epoch);
    (case.peer_addr, case.peer_port, case.is_running) = (addr, port, is_running);
    case.proto = match (kind, protocol) {
        // MPTCP has a number of its own above 255; on the wire it is TCP.
        (sockets::STREAM, 262) => proto::TCP,
        (_, 0..=255) => protocol as u8,
        _ => return 1,
    };
    if matches!(case.proto, proto::ICMP | proto::ICMPV6) {
        case.icmp = [if case.proto == proto::ICMP { 8 } else { 128 }, 0];
        case.peer_port = 0;
    }
    let verdict = ew_sa_judge(ctx, &raw mut case, acting, u32::from(was_called));
    // The compiler knows that it is 0 or 1; the verifier does not, and wants to see it.
    // SAFETY: a value on the stack.
    i32::from(unsafe { core::ptr::read_volatile(&raw const verdict) } != 0)
}

/// Judges a case. Like its larger steps global, so that the verifier checks each once and not for every state of its
/// callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_sa_judge(ctx: *mut bpf_sock_addr, case: *mut Case, acting: u64, was_called: u32) -> i32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_mut() }) else {
        return 0;
    };
    judge_case(ctx, case, acting, was_called != 0)
}

/// Says whether a datagram belongs to the flow that the socket remembers, under whatever policy.
///
/// Nothing is unsealed here, and need not be: the packet hook looks at the same verdict, and more closely.
#[inline(always)]
const fn remembers(stored: &SockState, addr: &Addr, port: u16) -> bool {
    stored.seal != 0 && stored.peer_port == port && stored.peer_addr[0] == addr[0] && stored.peer_addr[1] == addr[1]
}

/// Says whether the verdict that the socket remembers is of this policy, and its own workload sends.
#[inline(always)]
const fn goes_on(stored: &SockState, acting: u64, epoch: u32) -> bool {
    stored.epoch == epoch && stored.cgroup == acting
}

#[inline(always)]
fn judge_case(ctx: *mut bpf_sock_addr, case: &mut Case, acting: u64, was_called: bool) -> i32 {
    let side = case.epoch & 1;
    // SAFETY: the calling task; at connect and sendmsg the socket's owner is taken for the caller.
    let uid = || unsafe { bpf_get_current_uid_gid() as u32 };
    case.slot = who::slot_of(case.cgroup, uid, side);
    let task = if acting == case.cgroup { case.slot } else { who::slot_of(acting, uid, side) };
    // Only a labelled endpoint counts as another workload; kernel workers live in the root cgroup.
    let other_task = acting > 1 && task.flags & ident_flags::INHERIT != 0 && task.id.0 != case.slot.id.0;

    let mut certain = Candidates::UNSURE;
    ew_sa_find_candidates(ctx, case, &raw mut certain);
    let verdict = own_verdict(ctx, case, &certain, was_called, !other_task);
    if verdict == 0 || !other_task {
        return verdict;
    }
    // The acting task is another workload: it must be allowed as well, in its own mode.
    let own = case.slot;
    case.slot = task;
    let mut decision = Decision::deny(Reason::TaskMismatch);
    let allowed = certain.any_allows(case, &mut decision);
    if allowed {
        return 1;
    }
    decision.reason =
        if matches!(decision.reason, Reason::OverrideDeny) { Reason::OverrideDeny } else { Reason::TaskMismatch };
    let mode = Mode::from_u8(task.egress_mode);
    case.task = task.id;
    case.slot = IdentSlot { egress_mode: task.egress_mode, ..own };
    finish(ctx, case, &decision, mode)
}

/// A frame of its own, as the stack is short.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_sa_find_candidates(ctx: *mut bpf_sock_addr, case: *const Case, out: *mut Candidates) -> u32 {
    // SAFETY: the verifier knows the sizes behind both pointers, and that they may be null.
    let (Some(case), Some(out)) = (unsafe { case.as_ref() }, unsafe { out.as_mut() }) else {
        return 0;
    };
    *out = Candidates::of(ctx, case, &case.peer_addr, case.epoch & 1);
    0
}

/// A frame of its own.
#[inline(never)]
fn decide(case: &Case, decision: &mut Decision) {
    case.decide(decision);
}

/// Decides for the socket's own workload.
#[inline(always)]
fn own_verdict(
    ctx: *mut bpf_sock_addr,
    case: &mut Case,
    candidates: &Candidates,
    was_called: bool,
    own_task: bool,
) -> i32 {
    let mut decision = Decision::deny(Reason::NoRule);
    if candidates.any_allows(case, &mut decision) {
        // The packet hook would find the same, unless it depends on who owns the socket.
        if own_task && candidates.is_one() && case.slot.flags & ident_flags::ASK_UID == 0 {
            ew_sa_remember_call(ctx, case, decision.valid_until.0);
        }
        return 1;
    }
    if may_answer(ctx, case, was_called) {
        return 1;
    }
    let mode = case.typed_mode();
    finish(ctx, case, &decision, mode)
}

/// Lets a TCP socket that has no connection yet remember that it may call, so that the SYN, which leaves
/// next, is not judged a second time.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_sa_remember_call(ctx: *mut bpf_sock_addr, case: *const Case, valid_until: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    // SAFETY: the context and its socket.
    let (sk, protocol) = unsafe { ((*ctx).__bindgen_anon_1.sk, (*ctx).protocol) };
    // SAFETY: as above.
    if sk.is_null() || protocol != u32::from(proto::TCP) || unsafe { (*sk).state } != state::CLOSE {
        return 0;
    }
    let Some(stored) = sockets::stored(sk) else {
        return 0;
    };
    // SAFETY: storage of the caller's socket.
    unsafe {
        (*stored).sticky_role = Role::Caller as u8;
        memory::remember_call(stored, case, valid_until);
    }
    0
}

/// Says whether a datagram can be the answer to one that came in: then only the packet hook, which knows
/// the flow, can tell.
///
/// It can if the socket has been called, or if another socket that shares its port may have been.
#[inline(always)]
fn may_answer(ctx: *mut bpf_sock_addr, case: &Case, was_called: bool) -> bool {
    // TCP answers on its connection, and sockets for echoes only ask.
    !matches!(case.proto, proto::TCP | proto::ICMP | proto::ICMPV6)
        && (was_called || option(ctx, SO_REUSEADDR) || option(ctx, SO_REUSEPORT))
}

/// socket(7).
const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_REUSEPORT: i32 = 15;

/// Reads a switch of the socket; one that cannot be read counts as on, which leaves the verdict to the
/// packet hook.
#[inline(always)]
fn option(ctx: *mut bpf_sock_addr, name: i32) -> bool {
    let mut value = 1_i32;
    // SAFETY: the helper writes four bytes or fails.
    unsafe { bpf_getsockopt(ctx.cast(), SOL_SOCKET, name, (&raw mut value).cast(), 4) };
    value != 0
}

/// Applies a mode to a denial. What passes under audit is reported by the packet hook, which knows the
/// whole tuple.
#[inline(always)]
fn finish(ctx: *mut bpf_sock_addr, case: &Case, decision: &Decision, mode: Mode) -> i32 {
    let verdict = mode.apply(decision);
    let by_task = case.task.0 != 0;
    if matches!(verdict, Verdict::Deny) || by_task && mode.reports(decision) {
        ew_sa_report(ctx, case, emit::told(decision, verdict), decision.rule.0);
    }
    verdict as i32
}

/// Who the destination can be. A refusal here needs that none of them is allowed.
///
/// Without padding, as [`Case`].
#[repr(C)]
pub struct Candidates {
    /// By address, if [`Self::has_address`].
    address: Peer,
    /// By the socket that would receive, if [`Self::has_socket`].
    socket: Peer,
    /// It is no loopback address.
    has_address: bool,
    /// There is a socket, whose cgroup is known at this hook.
    has_socket: bool,
    /// A socket is there whose cgroup is not known at this hook.
    unsure: bool,
    /// Zero.
    reserved: [u8; 5],
}

impl Candidates {
    /// Nobody, with a doubt.
    const UNSURE: Self = Self { unsure: true, ..Self::new(None, None) };

    #[inline(always)]
    const fn new(address: Option<Peer>, socket: Option<Peer>) -> Self {
        let (has_address, has_socket) = (address.is_some(), socket.is_some());
        let address = if let Some(peer) = address { peer } else { Peer::UNKNOWN };
        let socket = if let Some(peer) = socket { peer } else { Peer::UNKNOWN };
        Self { address, socket, has_address, has_socket, unsure: false, reserved: [0; 5] }
    }

    #[inline(always)]
    fn of(ctx: *mut bpf_sock_addr, case: &Case, addr: &Addr, side: u32) -> Self {
        let loopback = is_loopback(addr);
        let address = (!loopback).then(|| peer::by_address(addr, side));
        let mut tuple = Tuple::new(&[0, 0], 0, addr, case.peer_port);
        let found = peer::find(ctx.cast(), case.proto, &mut tuple, peer::cgroup_by_storage);
        match found {
            Some(found) if found.cgroup == 0 => Self::UNSURE,
            // Away from loopback a wildcard listener matches every address, so this may be anybody.
            Some(found) => Self::new(address, Some(peer::by_cgroup(found.cgroup, side))),
            None if loopback && !matches!(case.proto, proto::TCP | proto::UDP) => Self::UNSURE,
            None => Self::new(address, None),
        }
    }

    /// Says whether there is one and no doubt about it.
    #[inline(always)]
    const fn is_one(&self) -> bool {
        !self.unsure && self.has_address != self.has_socket
    }

    /// Decides for each; on a refusal `decision` and the case hold the last one, the more certain.
    #[inline(always)]
    fn any_allows(&self, case: &mut Case, decision: &mut Decision) -> bool {
        if self.unsure {
            return true;
        }
        case.peer = match (self.has_socket, self.has_address) {
            (true, _) => self.socket,
            (false, true) => self.address,
            (false, false) => Peer::UNKNOWN,
        };
        decide(case, decision);
        if decision.allow {
            return true;
        }
        if self.has_socket && self.has_address {
            case.peer = self.address;
            decide(case, decision);
        }
        decision.allow
    }
}

/// 127.0.0.0/8 and ::1.
#[inline(always)]
fn is_loopback(addr: &Addr) -> bool {
    match sockets::v4(addr) {
        Some(v4) => v4.to_ne_bytes()[0] == 127,
        None => addr[0] == 0 && addr[1] == pair(0, 1_u32.to_be()),
    }
}

/// Notes the acting process in the socket, for the packet hooks that run without one.
///
/// # Safety
///
/// `stored` is the storage of a live socket.
#[inline(always)]
unsafe fn remember_task(stored: *mut SockState) {
    // SAFETY: the caller's promise; helpers of the calling task.
    unsafe {
        let (pid, uid) = ((bpf_get_current_pid_tgid() >> 32) as u32, bpf_get_current_uid_gid() as u32);
        // Its name is then known as well; it changes with an exec, which few sockets live through.
        if (*stored).maker_known != 0 && (*stored).pid == pid && (*stored).uid == uid {
            return;
        }
        (*stored).pid = pid;
        (*stored).uid = uid;
        bpf_get_current_comm((&raw mut (*stored).comm).cast(), 16);
        (*stored).maker_known = 1;
    }
}

/// A frame of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_sa_report(ctx: *mut bpf_sock_addr, case: *const Case, told: u32, rule: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let (decision, verdict) = emit::heard(told, rule);
    emit::denial(case, &decision, verdict, |record| {
        if matches!(verdict, Verdict::Deny) {
            record.flags |= record_flags::EPERM;
        }
        // SAFETY: the context and the calling task.
        unsafe {
            record.cookie = bpf_get_socket_cookie(ctx.cast());
            record.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            record.uid = bpf_get_current_uid_gid() as u32;
            bpf_get_current_comm((&raw mut record.comm).cast(), 16);
            record.flags |= record_flags::PROCESS;
            let sk: *mut bpf_sock = (*ctx).__bindgen_anon_1.sk;
            if !sk.is_null()
                && let Some(stored) = sockets::stored(sk)
            {
                record.netns = (*stored).netns;
            }
        }
    });
    0
}

const _: () = assert!(Direction::Egress as u8 == 0);
