//! Bytes of the ring buffer -> a denial whose every number is known to mean something.
//!
//! Trusts nothing: a record that another version of the programs wrote, or a slip of ours, is an
//! error with its number and is counted as lost. It never panics and never guesses.

use std::net::IpAddr;

use agent_common::{
    flow::{Direction, icmp_port, proto},
    id::{Epoch, IdentityId, RuleNumber},
    layout::{DenyKey, DenyRecord, Hook, KnownBy, LAYOUT_VERSION, record_flags},
    verdict::{Mode, Reason},
};
use zerocopy::FromBytes as _;

/// One denial as the kernel reported it. What the hook could not know is `None`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Denial {
    /// The hook that decided.
    pub hook: Hook,
    /// Exit or door of the local end.
    pub direction: Direction,
    /// Mode of the local end in that direction.
    pub mode: Mode,
    /// Why.
    pub reason: Reason,
    /// Audit let it pass.
    pub would: bool,
    /// The caller saw EPERM.
    pub eperm: bool,
    /// IP protocol on the wire.
    pub proto: u8,
    /// TCP flags.
    pub tcp_flags: Option<u8>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// How the identity of the peer was found.
    pub known_by: KnownBy,
    /// Epoch of the decision.
    pub epoch: Epoch,
    /// Rule that decided.
    pub rule: RuleNumber,
    /// Interface; 0 = not known.
    pub ifindex: u32,
    /// Boot clock.
    pub boot_ns: u64,
    /// Identity of this end.
    pub local_id: IdentityId,
    /// Identity of the other end, as believed.
    pub peer_id: IdentityId,
    /// Identity of the acting task, if it is another workload.
    pub task: Option<IdentityId>,
    /// Cgroup of the socket.
    pub cgroup: u64,
    /// Cookie of the socket.
    pub cookie: Option<u64>,
    /// Cookie of the network namespace.
    pub netns: Option<u64>,
    /// This end's address.
    pub local_addr: Option<IpAddr>,
    /// The other end's address.
    pub peer_addr: Option<IpAddr>,
    /// This end's port.
    pub local_port: Option<u16>,
    /// The other end's port.
    pub peer_port: Option<u16>,
    /// Acting process: its id, its user, and the name it chose.
    pub process: Option<KernelProcess>,
    /// Length of the packet; 0 for a system call.
    pub bytes: u32,
    /// What makes this denial equal to others.
    pub key: DenyKey,
}

/// The acting process, as far as the kernel says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KernelProcess {
    /// Process id.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; 16],
}

/// Why bytes are no denial.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidRecord {
    /// Too short or too long.
    #[error("the record has {got} bytes, expected {expected}")]
    Length {
        /// Of the bytes.
        got: usize,
        /// Of the layout.
        expected: usize,
    },
    /// Programs of another version wrote it.
    #[error("the record has layout version {0}, this agent reads {LAYOUT_VERSION}")]
    Version(u8),
    /// A number that is no [`Hook`].
    #[error("no hook has the number {0}")]
    Hook(u8),
    /// A number that is no [`Direction`].
    #[error("no direction has the number {0}")]
    Direction(u8),
    /// A number that is no [`Mode`].
    #[error("no mode has the number {0}")]
    Mode(u8),
    /// A number that is no [`Reason`] for a denial.
    #[error("no reason for a denial has the number {0}")]
    Reason(u8),
    /// A number that is no [`KnownBy`].
    #[error("no way of knowing a peer has the number {0}")]
    KnownBy(u8),
    /// Bits that have no meaning in this version.
    #[error("the flags {0:#04x} have bits without a meaning")]
    Flags(u8),
}

/// Every flag that has a meaning.
const FLAGS: u8 = record_flags::WOULD_DENY
    | record_flags::PROCESS
    | record_flags::LOCAL_PORT
    | record_flags::LOCAL_ADDR
    | record_flags::EPERM;

/// Reads one record of the ring buffer.
///
/// # Errors
///
/// [`InvalidRecord`]; the caller counts one denial lost at `decode`.
pub fn decode(bytes: &[u8]) -> Result<Denial, InvalidRecord> {
    let record = DenyRecord::read_from_bytes(bytes)
        .map_err(|_| InvalidRecord::Length { got: bytes.len(), expected: size_of::<DenyRecord>() })?;
    check(&record)
}

fn check(record: &DenyRecord) -> Result<Denial, InvalidRecord> {
    // Destructured, so that a new field of the layout cannot be forgotten here.
    let &DenyRecord {
        version,
        hook,
        direction,
        mode,
        reason,
        flags,
        proto,
        tcp_flags,
        icmp,
        known_by,
        reserved: _,
        epoch,
        rule,
        ifindex,
        boot_ns,
        local_id,
        peer_id,
        task_id,
        cgroup,
        cookie,
        netns,
        local_addr,
        peer_addr,
        local_port,
        peer_port,
        pid,
        uid,
        bytes,
        comm,
    } = record;
    if u32::from(version) != LAYOUT_VERSION {
        return Err(InvalidRecord::Version(version));
    }
    if flags & !FLAGS != 0 {
        return Err(InvalidRecord::Flags(flags));
    }
    let has = |flag| flags & flag != 0;
    let hook = Hook::from_u8(hook).ok_or(InvalidRecord::Hook(hook))?;
    let direction = Direction::from_u8(direction).ok_or(InvalidRecord::Direction(direction))?;
    let mode = mode_of(mode).ok_or(InvalidRecord::Mode(mode))?;
    let reason = match Reason::from_u8(reason) {
        None | Some(Reason::Allowed) => return Err(InvalidRecord::Reason(reason)),
        Some(reason) => reason,
    };
    let known_by = known_by_of(known_by).ok_or(InvalidRecord::KnownBy(known_by))?;
    let is_icmp = proto == proto::ICMP || proto == proto::ICMPV6;
    let key = key_of(record, direction);
    Ok(Denial {
        hook,
        direction,
        mode,
        reason,
        would: has(record_flags::WOULD_DENY),
        eperm: has(record_flags::EPERM),
        proto,
        // A SYN or RST has a bit set; the hooks of system calls see no segment and leave 0.
        tcp_flags: (proto == proto::TCP && tcp_flags != 0).then_some(tcp_flags),
        // No packet, no type: the hooks of system calls are not asked for ICMP.
        icmp: (is_icmp && is_packet(hook)).then_some((icmp[0], icmp[1])),
        known_by,
        epoch: Epoch(epoch),
        rule: RuleNumber(rule),
        ifindex,
        boot_ns,
        local_id: IdentityId(local_id),
        peer_id: IdentityId(peer_id),
        task: known(task_id).map(IdentityId),
        cgroup,
        cookie: known(cookie),
        netns: known(netns),
        local_addr: has(record_flags::LOCAL_ADDR).then(|| address(local_addr)),
        peer_addr: (peer_addr != [0; 16] || !is_packet(hook)).then(|| address(peer_addr)),
        local_port: (has(record_flags::LOCAL_PORT) && has_ports(proto)).then_some(local_port),
        peer_port: (has_ports(proto) && peer_port != 0).then_some(peer_port),
        process: has(record_flags::PROCESS).then_some(KernelProcess { pid, uid, comm }),
        bytes,
        key,
    })
}

/// Says whether the hook sees packets, not system calls.
#[must_use]
pub const fn is_packet(hook: Hook) -> bool {
    match hook {
        Hook::Egress | Hook::Ingress | Hook::TcFrom | Hook::TcTo | Hook::TcHost => true,
        Hook::Connect4 | Hook::Connect6 | Hook::Sendmsg4 | Hook::Sendmsg6 | Hook::Setsockopt => false,
    }
}

/// Says whether the protocol has ports in the place where the parser reads them.
#[must_use]
pub const fn has_ports(number: u8) -> bool {
    matches!(number, proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE)
}

/// Reads an address of 16 bytes, network order, IPv4 mapped.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

/// Returns what the kernel put into `deny_seen` for this record, so that a row finds its first.
fn key_of(record: &DenyRecord, direction: Direction) -> DenyKey {
    let port = match (record.proto, direction) {
        (proto::ICMP | proto::ICMPV6, _) => icmp_port(record.proto, record.icmp[0]),
        (_, Direction::Egress) => record.peer_port,
        (_, Direction::Ingress) => record.local_port,
    };
    DenyKey {
        local: if IdentityId(record.local_id).is_unknown() { record.cgroup } else { record.local_id },
        peer: record.peer_id,
        peer_addr: if record.peer_id < IdentityId::FIRST_HASHED { record.peer_addr } else { [0; 16] },
        port,
        proto: record.proto,
        direction: record.direction,
        reason: record.reason,
        would: u8::from(record.flags & record_flags::WOULD_DENY != 0),
        reserved: [0; 2],
    }
}

/// Unlike [`Mode::from_u8`], which must always answer, this refuses what is no mode.
const fn mode_of(n: u8) -> Option<Mode> {
    match n {
        0 => Some(Mode::Enforce),
        1 => Some(Mode::Audit),
        2 => Some(Mode::Observe),
        _ => None,
    }
}

const fn known_by_of(n: u8) -> Option<KnownBy> {
    match n {
        0 => Some(KnownBy::Nothing),
        1 => Some(KnownBy::Socket),
        2 => Some(KnownBy::Address),
        3 => Some(KnownBy::World),
        4 => Some(KnownBy::Host),
        _ => None,
    }
}

/// 0 is never a number of a cookie or an acting task.
const fn known(n: u64) -> Option<u64> {
    if n == 0 { None } else { Some(n) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::events::testing::record;

    #[test]
    fn a_record_of_the_kernel_is_read_to_its_last_field() {
        let denial = decode(record().as_bytes()).unwrap();
        assert_eq!(denial.hook, Hook::Ingress);
        assert_eq!(denial.reason, Reason::NoRule);
        assert_eq!(denial.peer_addr, Some("10.244.1.23".parse().unwrap()), "unmapped");
        assert_eq!((denial.peer_port, denial.local_port), (Some(51734), Some(5432)));
        assert_eq!(denial.tcp_flags, Some(2));
        assert_eq!((denial.icmp, denial.process, denial.task), (None, None, None));
        assert_eq!(denial.key.port, 5432);
        assert_eq!(denial.key.peer_addr, [0; 16], "its identity says enough");
    }

    #[test]
    fn a_number_without_a_meaning_is_refused_with_its_number() {
        let valid = record();
        for (record, error) in [
            (DenyRecord { version: 9, ..valid }, InvalidRecord::Version(9)),
            (DenyRecord { hook: 0, ..valid }, InvalidRecord::Hook(0)),
            (DenyRecord { hook: 99, ..valid }, InvalidRecord::Hook(99)),
            (DenyRecord { direction: 2, ..valid }, InvalidRecord::Direction(2)),
            (DenyRecord { mode: 3, ..valid }, InvalidRecord::Mode(3)),
            (DenyRecord { reason: 0, ..valid }, InvalidRecord::Reason(0)),
            (DenyRecord { reason: 99, ..valid }, InvalidRecord::Reason(99)),
            (DenyRecord { known_by: 5, ..valid }, InvalidRecord::KnownBy(5)),
            (DenyRecord { flags: 0x80, ..valid }, InvalidRecord::Flags(0x80)),
        ] {
            assert_eq!(decode(record.as_bytes()), Err(error));
        }
        let bytes = valid.as_bytes();
        assert_eq!(decode(&bytes[1..]), Err(InvalidRecord::Length { got: 143, expected: 144 }));
        assert_eq!(decode(&[]), Err(InvalidRecord::Length { got: 0, expected: 144 }));
    }

    #[test]
    fn what_a_hook_cannot_know_is_absent() {
        let connect = DenyRecord {
            hook: Hook::Connect4 as u8,
            direction: Direction::Egress as u8,
            flags: record_flags::PROCESS | record_flags::EPERM,
            tcp_flags: 0,
            local_port: 0,
            bytes: 0,
            ..record()
        };
        let denial = decode(connect.as_bytes()).unwrap();
        assert_eq!((denial.local_port, denial.local_addr, denial.tcp_flags), (None, None, None));
        assert!(denial.process.is_some() && denial.eperm);
        let icmp = DenyRecord { proto: proto::ICMP, icmp: [8, 0], ..record() };
        let denial = decode(icmp.as_bytes()).unwrap();
        assert_eq!((denial.icmp, denial.local_port, denial.peer_port), (Some((8, 0)), None, None));
        assert_eq!(denial.key.port, 8);
    }

    #[test]
    fn a_peer_without_an_identity_of_its_own_is_told_apart_by_its_address() {
        let world = DenyRecord { peer_id: IdentityId::WORLD.0, local_id: IdentityId::UNKNOWN.0, ..record() };
        let key = decode(world.as_bytes()).unwrap().key;
        assert_eq!(key.peer_addr, world.peer_addr);
        assert_eq!(key.local, world.cgroup, "an unknown local end is told apart by its cgroup");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_record_of_the_right_length_is_read_or_refused_for_a_number(
            bytes in proptest::array::uniform32(any::<u8>()), at in 0_usize..112,
        ) {
            let mut whole = record().as_bytes().to_vec();
            whole[at..at + 32].copy_from_slice(&bytes);
            if let Err(InvalidRecord::Length { .. }) = decode(&whole) {
                prop_assert!(false, "the length was right");
            }
        }
    }
}
