//! A case: one attempt with both ends named, and the judgement on it.

use agent_common::{
    flow::{Direction, Flow, proto},
    id::{IdentityId, RuleNumber},
    layout::{IdentSlot, KnownBy, Role},
    parse::Packet,
    verdict::{Decision, Mode},
};

use crate::{peer::Peer, policy};

/// Everything a decision and its report need.
pub struct Case {
    /// The packet, or what a system call says it would be.
    pub packet: Packet,
    /// This end.
    pub slot: IdentSlot,
    /// The other end.
    pub peer: Peer,
    /// Cgroup of this end's socket.
    pub cgroup: u64,
    /// Acting task's identity, if it is another workload's; else 0.
    pub task: IdentityId,
    /// Epoch of this run.
    pub epoch: u32,
    /// Interface, or 0.
    pub ifindex: u32,
    /// Length of the packet, or 0.
    pub bytes: u32,
    /// `agent_common::layout::Hook`.
    pub hook: u8,
    /// The packet leaves this end.
    pub leaves: bool,
    /// Whether this end called or was called.
    pub role: Role,
}

impl Case {
    /// This end's address.
    #[inline(always)]
    pub const fn local_addr(&self) -> [u8; 16] {
        if self.leaves { self.packet.src } else { self.packet.dst }
    }

    /// The other end's address.
    #[inline(always)]
    pub const fn peer_addr(&self) -> [u8; 16] {
        if self.leaves { self.packet.dst } else { self.packet.src }
    }

    /// This end's port, host order.
    #[inline(always)]
    pub const fn local_port(&self) -> u16 {
        if self.leaves { self.packet.src_port } else { self.packet.dst_port }
    }

    /// The other end's port, host order.
    #[inline(always)]
    pub const fn peer_port(&self) -> u16 {
        if self.leaves { self.packet.dst_port } else { self.packet.src_port }
    }

    /// Which check of this end is asked.
    #[inline(always)]
    pub const fn flow_direction(&self) -> u8 {
        match self.role {
            Role::Callee => Direction::Ingress as u8,
            Role::Caller | Role::Unknown => Direction::Egress as u8,
        }
    }

    /// The port that rules speak of; for ICMP the type in its IPv4 form.
    #[inline(always)]
    pub fn target_port(&self) -> u16 {
        if matches!(self.packet.proto, proto::ICMP | proto::ICMPV6) {
            return self.packet.echo().map_or(self.packet.icmp[0] as u16, u16::from);
        }
        match self.role {
            Role::Callee => self.local_port(),
            Role::Caller | Role::Unknown => self.peer_port(),
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
        let protocol = if self.packet.proto == proto::ICMPV6 { proto::ICMP } else { self.packet.proto };
        Flow { from, to, proto: protocol, port: self.target_port(), direction }
    }

    /// Decides: first the built-in `self`, then policy.
    #[inline(always)]
    pub fn decide(&self, out: &mut Decision) {
        let same = self.slot.id.0 == self.peer.id.0 && !self.slot.id.is_unknown();
        if same && matches!(self.peer.known_by, KnownBy::Socket | KnownBy::Host) {
            *out = Decision::builtin(RuleNumber::BUILTIN_SELF);
            return;
        }
        policy::decide_counted(&self.flow(), self.epoch, out);
    }

    /// The mode as a type.
    #[inline(always)]
    pub const fn typed_mode(&self) -> Mode {
        Mode::from_u8(self.mode())
    }
}
