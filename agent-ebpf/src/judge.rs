//! A case: one attempt with both ends named, and the judgement on it.

use agent_common::{
    builtin::{self, DNS_PORT},
    decide::{Best, best, unknown_end},
    flow::{Direction, Flow, icmp_port, proto},
    id::{IdentityId, RuleNumber},
    layout::{DNS_NAMES_MAX, FlowKey, Hook, IdentSlot, KnownBy, Role},
    parse::{Packet, plain::Plain},
    verdict::{Decision, Mode, Verdict},
};

use crate::{
    flows, log,
    maps::DNS_ADDRS,
    peer::Peer,
    policy::{self, BootClock, KernelPolicy},
    sockets::{self, Addr},
};

/// Everything a decision and its report need, seen from this end: a choice between source and
/// destination at run time would be a variable offset into the stack, which the verifier refuses.
///
/// Without padding: what a global function is given must have been written, every byte of it.
#[repr(C)]
pub struct Case {
    /// This end's address.
    pub local_addr: Addr,
    /// The other end's address.
    pub peer_addr: Addr,
    /// This end.
    pub slot: IdentSlot,
    /// The other end.
    pub peer: Peer,
    /// Cgroup of this end's socket.
    pub cgroup: u64,
    /// Cgroup of the other end's socket; 0 = the other end is not known by a socket.
    pub peer_cgroup: u64,
    /// Acting task's identity, if it is another workload's; else 0.
    pub task: IdentityId,
    /// Epoch of this run.
    pub epoch: u32,
    /// Interface, or 0.
    pub ifindex: u32,
    /// Length of the packet, or 0.
    pub bytes: u32,
    /// This end's port, host order.
    pub local_port: u16,
    /// The other end's port, host order.
    pub peer_port: u16,
    /// Echo identifier, or 0.
    pub icmp_id: u16,
    /// ICMP type and code, or 0.
    pub icmp: [u8; 2],
    /// IP protocol on the wire.
    pub proto: u8,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
    /// 1 = there are bytes behind the transport header.
    pub has_payload: u8,
    /// `agent_common::layout::Hook`.
    pub hook: u8,
    /// The packet leaves this end.
    pub leaves: bool,
    /// Whether this end called or was called.
    pub role: Role,
    /// The flow was let pass before, under this policy or another.
    pub is_running: bool,
    /// Zero.
    reserved: [u8; 5],
}

const _: () = assert!(size_of::<Case>() == 4 * 16 + 3 * 8 + 3 * 4 + 4 * 2 + 12);

impl Case {
    /// One about this end, without a packet.
    #[inline(always)]
    pub const fn new(hook: Hook, leaves: bool, cgroup: u64, slot: IdentSlot, epoch: u32) -> Self {
        Self {
            local_addr: [0; 2],
            peer_addr: [0; 2],
            slot,
            peer: Peer::UNKNOWN,
            cgroup,
            peer_cgroup: 0,
            task: IdentityId(0),
            epoch,
            ifindex: 0,
            bytes: 0,
            local_port: 0,
            peer_port: 0,
            icmp_id: 0,
            icmp: [0; 2],
            proto: 0,
            tcp_flags: 0,
            has_payload: 0,
            hook: hook as u8,
            leaves,
            role: if leaves { Role::Caller } else { Role::Callee },
            is_running: false,
            reserved: [0; 5],
        }
    }

    /// Takes over what a packet says. For each direction by itself: an address is at a constant offset then,
    /// which the verifier wants.
    #[inline(always)]
    pub const fn read(&mut self, packet: &Packet) {
        if self.leaves { self.read_as(packet, true) } else { self.read_as(packet, false) }
    }

    #[inline(always)]
    const fn read_as(&mut self, packet: &Packet, leaves: bool) {
        let (local, peer) = if leaves { (&packet.src, &packet.dst) } else { (&packet.dst, &packet.src) };
        self.local_addr = *sockets::load(local);
        self.peer_addr = *sockets::load(peer);
        (self.local_port, self.peer_port) =
            if leaves { (packet.src_port, packet.dst_port) } else { (packet.dst_port, packet.src_port) };
        self.icmp_id = packet.icmp_id;
        self.icmp = packet.icmp;
        self.proto = packet.proto;
        self.tcp_flags = packet.tcp_flags;
        self.has_payload = packet.has_payload;
    }

    /// Takes over what a plain packet says.
    #[inline(always)]
    pub const fn read_plain(&mut self, plain: &Plain) {
        let (local, peer) = if self.leaves { (plain.src, plain.dst) } else { (plain.dst, plain.src) };
        (self.local_addr, self.peer_addr) = (local, peer);
        (self.local_port, self.peer_port) =
            if self.leaves { (plain.src_port, plain.dst_port) } else { (plain.dst_port, plain.src_port) };
        self.proto = plain.proto;
        self.tcp_flags = plain.tcp_flags;
        self.has_payload = plain.has_payload;
    }

    /// The type of an ICMP echo in its IPv4 form: 8 or 0.
    #[inline(always)]
    pub const fn echo(&self) -> Option<u8> {
        self.as_icmp().echo()
    }

    /// Says whether a datagram that comes in can be the answer of a resolver.
    #[inline(always)]
    pub const fn may_be_answer(&self) -> bool {
        !self.leaves && matches!(self.role, Role::Caller) && self.proto == proto::UDP && self.peer_port == DNS_PORT
    }

    /// The key of its flow in the table, under an owner; the direction is still to be set.
    #[inline(always)]
    pub fn flow_key(&self, owner: u64) -> FlowKey {
        let (local_port, peer_port) =
            if self.echo().is_some() { (self.icmp_id, self.icmp_id) } else { (self.local_port, self.peer_port) };
        flows::key(owner, &self.local_addr, &self.peer_addr, local_port, peer_port, self.proto)
    }

    /// The part of the packet that tells ICMP messages apart.
    #[inline(always)]
    pub const fn as_icmp(&self) -> Packet {
        Packet {
            proto: self.proto,
            icmp: self.icmp,
            src: [0; 16],
            dst: [0; 16],
            src_port: 0,
            dst_port: 0,
            tcp_flags: 0,
            icmp_id: 0,
            has_payload: 0,
            v6: 0,
        }
    }

    /// Which check of this end is asked.
    #[inline(always)]
    pub const fn flow_direction(&self) -> u8 {
        match self.role {
            Role::Callee => Direction::Ingress as u8,
            Role::Caller | Role::Unknown => Direction::Egress as u8,
        }
    }

    /// The port that rules speak of.
    #[inline(always)]
    pub fn target_port(&self) -> u16 {
        if matches!(self.proto, proto::ICMP | proto::ICMPV6) {
            return icmp_port(self.proto, self.icmp[0]);
        }
        match self.role {
            Role::Callee => self.local_port,
            Role::Caller | Role::Unknown => self.peer_port,
        }
    }

    /// This end's mode in the direction that is asked.
    #[inline(always)]
    pub const fn mode(&self) -> u8 {
        match self.role {
            Role::Callee => self.slot.ingress_mode,
            Role::Caller | Role::Unknown => self.slot.egress_mode,
        }
    }

    /// The flow as policy sees it.
    #[inline(always)]
    pub fn flow(&self) -> Flow {
        let (from, to, direction) = match self.role {
            Role::Callee => (self.peer.id, self.slot.id, Direction::Ingress),
            Role::Caller | Role::Unknown => (self.slot.id, self.peer.id, Direction::Egress),
        };
        let protocol = if self.proto == proto::ICMPV6 { proto::ICMP } else { self.proto };
        Flow { from, to, proto: protocol, port: self.target_port(), direction }
    }

    /// Says whether both ends are right for the built-in `dns`: the address that is asked, the other end's at an
    /// exit and this end's at a door, is a resolver's.
    #[inline(always)]
    fn asks_resolver(&self) -> bool {
        match self.role {
            Role::Callee => {
                builtin::counts(Direction::Ingress, matches!(self.peer.known_by, KnownBy::Socket))
                    && policy::is_resolver(&self.local_addr, self.epoch)
            }
            Role::Caller | Role::Unknown => policy::is_resolver(&self.peer_addr, self.epoch),
        }
    }

    /// Decides: first the built-in `self`, then policy, then the built-in `dns`.
    #[inline(always)]
    pub fn decide(&self, out: &mut Decision) {
        let same = self.slot.id.0 == self.peer.id.0 && !self.slot.id.is_unknown();
        if same && matches!(self.peer.known_by, KnownBy::Socket | KnownBy::Host) {
            *out = Decision::builtin(RuleNumber::BUILTIN_SELF);
            return;
        }
        let flow = self.flow();
        *out = match unknown_end(&flow) {
            Some(reason) => Decision::deny(reason),
            None if self.peer.is_outside => Best(ew_best_by_names(self)).decision(),
            None => Best(ew_best(self, 0)).decision(),
        };
        policy::ew_count_hit(out.rule.0, self.epoch & 1);
        if builtin::may_be_dns(out, &flow) && self.asks_resolver() {
            *out = Decision::builtin(RuleNumber::BUILTIN_DNS);
        }
    }

    /// Applies the mode to the decision on a packet. What is to be reported is logged, and handed to `report`.
    #[inline(always)]
    pub fn conclude(&self, decision: &Decision, report: impl FnOnce(Verdict)) -> Verdict {
        let mode = self.typed_mode();
        let verdict = mode.apply(decision);
        if mode.reports(decision) {
            log::denial(self, decision);
            report(verdict);
        }
        verdict
    }

    /// The mode as a type.
    #[inline(always)]
    pub const fn typed_mode(&self) -> Mode {
        Mode::from_u8(self.mode())
    }
}

/// Looks for what decides a case, with the other end under another name unless that is 0: see [`Best`].
///
/// Global, so that the verifier checks it once and not for every state of every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_best(case: *const Case, name: u64) -> u64 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let mut flow = case.flow();
    if name != 0 {
        match case.role {
            Role::Callee => flow.from = IdentityId(name),
            Role::Caller | Role::Unknown => flow.to = IdentityId(name),
        }
    }
    best(&KernelPolicy { side: case.epoch & 1 }, &flow, &BootClock).0
}

/// As [`ew_best`], under every name of the other end: its own, and those that answers of resolvers gave to its address.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_best_by_names(case: *const Case) -> u64 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(asked) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let mut best = Best(ew_best(case, 0));
    if policy::settings(asked.epoch & 1).is_none_or(|settings| settings.dns_quota == 0) {
        return best.0;
    }
    // Before Linux 6.2 a key is on the stack or in a map, and nowhere else.
    let key = asked.peer_addr;
    // SAFETY: a live element, whose words programs store one by one.
    let Some(names) = (unsafe { DNS_ADDRS.get(key) }) else {
        return best.0;
    };
    let now = policy::boot_seconds();
    for place in 0..DNS_NAMES_MAX {
        if let Some(name) = names.name(place, now, asked.is_running) {
            best = best.or(Best(ew_best(case, name.0)));
        }
    }
    best.0
}
