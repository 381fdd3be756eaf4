//! What a sink receives: one type for each kind of record.
//!
//! - Numbers are the truth; names beside them are decoration of the moment (security.md, S19).
//! - What is not known is `None`, never 0, "" or "unknown".
//! - Every foreign string has passed [`super::escape`] before it gets here.

use std::{net::IpAddr, sync::Arc};

use agent_common::{
    flow::Direction,
    id::{Epoch, IdentityId, RuleNumber},
    layout::{Hook, KnownBy},
    verdict::{Mode, Reason},
};
use uuid::{NoContext, Timestamp, Uuid};

pub use super::control_record::{
    AccountingEvent, Actor, ForeignProgram, LifecycleEvent, LossEvent, Lost, OverrideData, Phase, PolicyChange,
    PolicyEvent, RecordsLost, Stage, TamperEvent, TamperedDevice,
};
pub use super::long_field::LongField;

/// Milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UnixMillis(pub u64);

/// One moment on both clocks, read together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Now {
    /// Wall clock; may be stepped.
    pub wall: UnixMillis,
    /// Boot clock (`CLOCK_BOOTTIME`), ns; the clock of kernel stamps.
    pub boot_ns: u64,
}

impl Now {
    /// Returns the wall time of a stamp of the kernel, as the wall clock stands at this moment.
    #[must_use]
    pub const fn wall_of(&self, boot_ns: u64) -> UnixMillis {
        const NS_PER_MS: u64 = 1_000_000;
        UnixMillis(match self.boot_ns.checked_sub(boot_ns) {
            Some(age_ns) => self.wall.0.saturating_sub(age_ns / NS_PER_MS),
            // Another CPU stamped it after `self` was read.
            None => self.wall.0.saturating_add((boot_ns - self.boot_ns) / NS_PER_MS),
        })
    }
}

/// Returns the name of a new record: version 7, so that names sort by time.
#[must_use]
pub fn new_uid(time: UnixMillis) -> Uuid {
    let nanos = u32::try_from(time.0 % 1000 * 1_000_000).unwrap_or(0);
    Uuid::new_v7(Timestamp::from_unix(NoContext, time.0 / 1000, nanos))
}

/// Any record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A denial, a would-be denial, a number of them, or a flow that was cut.
    Deny(Arc<DenyEvent>),
    /// Denials beyond the budget of one workload, as a number.
    Folded(FoldedEvent),
    /// Something was lost.
    Loss(LossEvent),
    /// The sums.
    Accounting(AccountingEvent),
    /// A policy set or an override changed.
    Policy(PolicyEvent),
    /// Somebody changed what is in the kernel.
    Tamper(TamperEvent),
    /// The agent started, stopped, was replaced.
    Lifecycle(LifecycleEvent),
}

impl Record {
    /// Returns how the denials in this record are accounted for, and how many they are.
    #[must_use]
    pub fn denials(&self) -> (Share, u64) {
        match self {
            Self::Deny(event) => match event.kind {
                Kind::First => (Share::Listed, event.count),
                Kind::Repeat { .. } => (Share::Repeated, event.count),
                // The kernel side of a cut is a reset that the agent asked for, not a denial.
                Kind::Cut => (Share::None, 0),
            },
            Self::Folded(event) => (Share::Folded, event.count),
            Self::Loss(_) | Self::Accounting(_) | Self::Policy(_) | Self::Tamper(_) | Self::Lifecycle(_) => {
                (Share::None, 0)
            }
        }
    }

    /// Returns when it happened.
    #[must_use]
    pub fn time(&self) -> UnixMillis {
        match self {
            Self::Deny(event) => event.time,
            Self::Folded(event) => event.time,
            Self::Loss(event) => event.time,
            Self::Accounting(event) => event.time,
            Self::Policy(event) => event.time,
            Self::Tamper(event) => event.time,
            Self::Lifecycle(event) => event.time,
        }
    }
}

/// The part of the sum that the denials in a record belong to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Share {
    /// Told one by one.
    Listed,
    /// Told as repeats of one told before.
    Repeated,
    /// Told as a number of one workload.
    Folded,
    /// The record carries none.
    None,
}

/// One denial, or several that are equal.
#[derive(Clone, Debug, PartialEq)]
pub struct DenyEvent {
    /// Name of this record.
    pub uid: Uuid,
    /// Name of the first record of its key.
    pub series: Uuid,
    /// What kind of record.
    pub kind: Kind,
    /// First denial counted here.
    pub time: UnixMillis,
    /// Last denial counted here.
    pub last: UnixMillis,
    /// Stamp of the first denial of the series, boot clock: orders records when the wall clock was stepped.
    pub boot_ns: u64,
    /// What happened.
    pub outcome: Outcome,
    /// Mode of the local end.
    pub mode: Option<Mode>,
    /// Exit or door of the local end.
    pub direction: Direction,
    /// Where it was decided.
    pub point: Option<Point>,
    /// What the caller saw.
    pub answer: Answer,
    /// Why.
    pub reason: Reason,
    /// Number of the rule in the epoch.
    pub rule: RuleNumber,
    /// The rule itself, or what stands for it.
    pub rule_ref: RuleRef,
    /// Epoch of the decision.
    pub epoch: Option<Epoch>,
    /// The policy of that epoch.
    pub policy: Option<PolicyRef>,
    /// The rule that came nearest to allowing it, and the one thing that differs.
    pub nearest: Option<String>,
    /// IP protocol on the wire.
    pub proto: u8,
    /// TCP flags of the packet.
    pub tcp_flags: Option<u8>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// The caller.
    pub source: End,
    /// The callee.
    pub target: End,
    /// How the identity of the peer was found.
    pub known_by: Option<KnownBy>,
    /// The peer is `world` or an external: not one of the workloads.
    pub peer_outside: bool,
    /// Acting process.
    pub process: Option<Process>,
    /// Identity of the acting task, if it is another workload than the socket.
    pub task: Option<IdentityId>,
    /// Cgroup of the socket.
    pub cgroup: Option<u64>,
    /// Its path from the root of the hierarchy.
    pub cgroup_path: Option<String>,
    /// Cookie of the socket.
    pub cookie: Option<u64>,
    /// Cookie of the network namespace.
    pub netns: Option<u64>,
    /// Interface; 0 = not known.
    pub ifindex: u32,
    /// Denials.
    pub count: u64,
    /// Packets among them; a refused system call is none.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Community ID, if the tuple is whole.
    pub community_id: Option<String>,
    /// Strings that reached their limit.
    pub truncated: Vec<LongField>,
}

impl DenyEvent {
    /// Returns the end on this host.
    #[must_use]
    pub const fn local(&self) -> &End {
        match self.direction {
            Direction::Egress => &self.source,
            Direction::Ingress => &self.target,
        }
    }

    /// Returns the other end.
    #[must_use]
    pub const fn peer(&self) -> &End {
        match self.direction {
            Direction::Egress => &self.target,
            Direction::Ingress => &self.source,
        }
    }
}

/// What kind of record a [`DenyEvent`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The first denial of its key, told at once.
    First,
    /// Denials of a key told before.
    Repeat {
        /// Length of the window in which they were counted.
        window_ms: u64,
    },
    /// A live flow was closed because its rule went away.
    Cut,
}

impl Kind {
    /// The word used in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Repeat { .. } => "repeat",
            Self::Cut => "cut",
        }
    }
}

/// What happened to the flow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// Dropped or refused.
    Denied,
    /// Passed, because the mode is audit.
    WouldDeny,
    /// It was open and is closed.
    Cut,
}

impl Outcome {
    /// The word used in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::WouldDeny => "would-deny",
            Self::Cut => "cut",
        }
    }
}

/// Where it was decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Point {
    /// In a kernel program.
    Hook(Hook),
    /// In the agent, which destroyed the socket.
    SockDestroy,
}

impl Point {
    /// The word used in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hook(hook) => hook.name(),
            Self::SockDestroy => "sock-destroy",
        }
    }
}

/// What the caller saw.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Silence.
    None,
    /// The system call failed with EPERM.
    Eperm,
    /// A TCP reset.
    Rst,
}

impl Answer {
    /// The word used in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Eperm => "eperm",
            Self::Rst => "rst",
        }
    }
}

/// A rule, or what stands for one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuleRef {
    /// Its id in the policy; `default` if none matched.
    pub id: String,
    /// It as a sentence, or the reason its author gave.
    pub title: Option<String>,
    /// What it is.
    pub kind: RuleKind,
}

impl RuleRef {
    /// No rule matched.
    #[must_use]
    pub fn default_deny() -> Self {
        Self { id: "default".to_owned(), title: Some("default deny".to_owned()), kind: RuleKind::Default }
    }
}

/// What a [`RuleRef`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RuleKind {
    /// No rule matched.
    Default,
    /// An allow rule.
    Allow,
    /// A deny rule.
    Deny,
    /// An override that allows.
    OverrideAllow,
    /// An override that denies.
    OverrideDeny,
    /// A built-in.
    Builtin,
    /// No rule was asked: the packet was not fit for one.
    Error,
}

impl RuleKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Default, Self::Allow, Self::Deny, Self::OverrideAllow, Self::OverrideDeny, Self::Builtin, Self::Error];

    /// The word used in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::OverrideAllow => "override-allow",
            Self::OverrideDeny => "override-deny",
            Self::Builtin => "builtin",
            Self::Error => "error",
        }
    }
}

/// The policy set of an epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyRef {
    /// Name of the set.
    pub name: String,
    /// Its hash.
    pub hash: String,
}

/// One end of a flow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct End {
    /// Its address.
    pub addr: Option<IpAddr>,
    /// Its port, host order.
    pub port: Option<u16>,
    /// Its identity.
    pub id: IdentityId,
    /// Its short name: the path of the SPIFFE ID, an external, `world`.
    pub service: Option<String>,
    /// Its SPIFFE ID.
    pub spiffe: Option<String>,
    /// The unit or container it runs in.
    pub place: Option<String>,
    /// The container, by its id.
    pub container: Option<String>,
}

/// Acting process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Process {
    /// Process id, in the first namespace.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub comm: String,
    /// Its program; `None` if the process was gone.
    pub exe: Option<String>,
    /// Its start.
    pub start: Option<UnixMillis>,
}

/// Denials beyond the budget of one workload.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedEvent {
    /// Name of this record.
    pub uid: Uuid,
    /// First denial counted here.
    pub time: UnixMillis,
    /// Last denial counted here.
    pub last: UnixMillis,
    /// The workload, or the cgroup if it has no identity.
    pub local: Owner,
    /// Its exit or door.
    pub direction: Direction,
    /// What happened to them.
    pub outcome: Outcome,
    /// Epoch when the number was read.
    pub epoch: Option<Epoch>,
    /// Denials.
    pub count: u64,
    /// Bytes of their packets.
    pub bytes: u64,
}

/// Whose denials were folded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Owner {
    /// A workload.
    Identity {
        /// Its number.
        id: IdentityId,
        /// Its short name.
        service: Option<String>,
        /// Its SPIFFE ID.
        spiffe: Option<String>,
    },
    /// A cgroup without an identity.
    Cgroup(u64),
}
