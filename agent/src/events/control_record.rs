//! Records about eastwall itself: what was lost, the sums, policy, tampering, start and stop.

use agent_common::id::Epoch;
use uuid::Uuid;

use super::record::UnixMillis;

/// Where something was lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// The ring was full; the kernel counted them.
    Ring,
    /// Repeats whose row vanished under a late increment.
    Table,
    /// Bytes of the kernel that the decoder refused.
    Decode,
    /// Taken from the kernel by an agent that died before it wrote them.
    Crash,
    /// The queue in front of the writer was full.
    Queue,
    /// A record could not be serialised.
    Encode,
    /// A record could not be written.
    Write,
    /// Records that someone else deleted or cut off.
    Spool,
}

impl Stage {
    /// Every stage, in the order of a denial's life.
    pub const ALL: [Self; 8] =
        [Self::Ring, Self::Table, Self::Decode, Self::Crash, Self::Queue, Self::Encode, Self::Write, Self::Spool];

    /// The word used in records and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Table => "table",
            Self::Decode => "decode",
            Self::Crash => "crash",
            Self::Queue => "queue",
            Self::Encode => "encode",
            Self::Write => "write",
            Self::Spool => "spool",
        }
    }

    /// Says whether what is lost here were records already, not denials only.
    #[must_use]
    pub const fn counts_records(self) -> bool {
        match self {
            Self::Queue | Self::Encode | Self::Write | Self::Spool => true,
            Self::Ring | Self::Table | Self::Decode | Self::Crash => false,
        }
    }

    /// What happened, if no error says it better.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Ring => "event ring full",
            Self::Table => "rows taken while the kernel still counted in them",
            Self::Decode => "bytes of the kernel that are no record",
            Self::Crash => "taken by an agent that died before it wrote them",
            Self::Queue => "event queue full",
            Self::Encode => "a record could not be serialised",
            Self::Write => "a record could not be written",
            Self::Spool => "deleted or cut off by someone else",
        }
    }
}

/// Something was lost at one stage.
#[derive(Clone, Debug, PartialEq)]
pub struct LossEvent {
    /// Name of this record.
    pub uid: Uuid,
    /// When the loss was found.
    pub time: UnixMillis,
    /// Where.
    pub stage: Stage,
    /// Records lost; 0 where denials never became records.
    pub records: u64,
    /// Denials lost.
    pub denials: u64,
    /// First and last sequence number among them, where they had one.
    pub sequences: Option<(u64, u64)>,
    /// What happened, as the system says it.
    pub detail: Option<String>,
    /// Begin of the time in which it happened.
    pub start: UnixMillis,
    /// End of it.
    pub end: UnixMillis,
}

/// All sums since boot: `denied` is the sum of the others.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountingEvent {
    /// Name of this record.
    pub uid: Uuid,
    /// When they were added up.
    pub time: UnixMillis,
    /// Denials and would-be denials, counted by the kernel.
    pub denied: u64,
    /// Told one by one.
    pub listed: u64,
    /// Told as repeats.
    pub repeated: u64,
    /// Told as a number of one workload.
    pub folded: u64,
    /// Of ends whose identity came soon after.
    pub settled: u64,
    /// Not told, by stage.
    pub lost: Lost,
    /// Not told yet.
    pub pending: u64,
    /// Records lost, by stage.
    pub records_lost: RecordsLost,
    /// Epoch at that time.
    pub epoch: Option<Epoch>,
}

/// Denials lost, by stage.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[expect(missing_docs, reason = "each field is the stage of its name")]
pub struct Lost {
    pub ring: u64,
    pub table: u64,
    pub decode: u64,
    pub crash: u64,
    pub queue: u64,
    pub encode: u64,
    pub write: u64,
}

impl Lost {
    /// Returns the sum.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let Self { ring, table, decode, crash, queue, encode, write } = *self;
        ring + table + decode + crash + queue + encode + write
    }
}

/// Records lost, by stage.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[expect(missing_docs, reason = "each field is the stage of its name")]
pub struct RecordsLost {
    pub queue: u64,
    pub encode: u64,
    pub write: u64,
}

/// A policy set or an override changed, or was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyEvent {
    /// Name of this record.
    pub uid: Uuid,
    /// When.
    pub time: UnixMillis,
    /// What changed.
    pub change: PolicyChange,
    /// The command that asked for it.
    pub comment: Option<String>,
    /// Who asked for it.
    pub actor: Option<Actor>,
    /// Hash of the set in force afterwards.
    pub set: String,
    /// Epoch before; `None` if there was no policy.
    pub epoch_before: Option<Epoch>,
    /// Epoch afterwards; a refusal leaves the one before.
    pub epoch: Option<Epoch>,
    /// Edges that are open and were not.
    pub edges_opened: u64,
    /// Edges that were open and are not.
    pub edges_closed: u64,
    /// Live flows closed because of it.
    pub flows_cut: u64,
}

/// What changed.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyChange {
    /// A set is in force.
    Applied {
        /// Its name.
        name: String,
    },
    /// A set was refused; the last one stays in force.
    Refused {
        /// Its name, or the directory if it could not be read that far.
        name: String,
        /// Why, in one sentence.
        error: String,
    },
    /// An override is in force.
    OverrideStarted(OverrideData),
    /// An override has ended or was undone.
    OverrideEnded(OverrideData),
}

impl PolicyChange {
    /// The word used in records.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Applied { .. } => "applied",
            Self::Refused { .. } => "refused",
            Self::OverrideStarted(_) => "override-started",
            Self::OverrideEnded(_) => "override-ended",
        }
    }
}

/// An override, as a record shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct OverrideData {
    /// Its id.
    pub id: String,
    /// `allow` or `deny`.
    pub action: String,
    /// The caller.
    pub from: String,
    /// The callee.
    pub to: String,
    /// Its end, RFC 3339, UTC.
    pub expires: String,
}

/// Who asked for a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Actor {
    /// Name of the user.
    pub user: Option<String>,
    /// Number of the user.
    pub uid: u32,
    /// Process id of the command.
    pub pid: u32,
    /// Name of the command.
    pub process: Option<String>,
}

/// Somebody changed what eastwall has in the kernel, and the agent found it.
#[derive(Clone, Debug, PartialEq)]
pub struct TamperEvent {
    /// Name of this record.
    pub uid: Uuid,
    /// When the last try to repair it ended, moments after it was found.
    pub time: UnixMillis,
    /// What was done, in one word: `detached`.
    pub act: &'static str,
    /// To what: the name of a program or a map, or `bpffs`.
    pub object: String,
    /// Where the program is attached, unless it is the guarded cgroup.
    pub device: Option<TamperedDevice>,
    /// Programs of others that have to do with it, as far as the kernel tells.
    pub programs: Vec<ForeignProgram>,
    /// The last time before that at which it was seen as it should be; `None` if no agent was there to see it.
    pub last_good: Option<UnixMillis>,
    /// Why it could not be repaired; `None` = it was.
    pub error: Option<String>,
}

/// A device at which something was changed.
#[derive(Clone, Debug, PartialEq)]
pub struct TamperedDevice {
    /// Its index.
    pub index: u32,
    /// Its name; `None` if it has none any more.
    pub name: Option<String>,
}

/// A program that is not eastwall's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ForeignProgram {
    /// Its number in this boot.
    pub id: u32,
    /// As its maker calls it; empty if it has no name.
    pub name: String,
    /// A hash of its instructions, in hex.
    pub tag: String,
    /// Who loaded it.
    pub loaded_by: u32,
}

/// The agent started, stopped or was replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct LifecycleEvent {
    /// Name of this record.
    pub uid: Uuid,
    /// When.
    pub time: UnixMillis,
    /// What.
    pub phase: Phase,
    /// Epoch in force.
    pub epoch: Option<Epoch>,
    /// Kernel links in place.
    pub links: u64,
}

/// What happened to the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// It started.
    Started {
        /// It found the kernel side running and took it over.
        adopted: bool,
        /// Last sequence number of the boot before, if the spool holds one.
        previous_boot_last_sequence: Option<u64>,
        /// Whether the last record says that the agent before stopped by itself; `None` if there is no record.
        previous_stop_clean: Option<bool>,
    },
    /// Its first policy is in force, so that it took the boot guard off.
    Relieved {
        /// Packets that the guard had dropped: to send and to receive.
        dropped: (u64, u64),
    },
    /// It stops; the kernel side goes on.
    Stopped,
    /// It took over from an agent of another version.
    Upgraded {
        /// That version.
        from: String,
    },
}
