//! What the kernel side is told, and what it can refuse.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use agent_common::{
    id::Epoch,
    layout::{IdentSlot, UidKey},
};

use crate::datapath::{btf::BtfError, pins::PinsError, table::TableError};

/// Where and how to attach.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory of the cgroup to attach to: the root of the hierarchy, or of a scope below it.
    pub cgroup: PathBuf,
    /// Directory of the pins, on bpffs.
    pub pins: PathBuf,
    /// Directory of the lock.
    pub run: PathBuf,
    /// Whether connect and sendmsg refuse early; the packet hooks judge in either case.
    pub fast_refusal: bool,
    /// Whether the programs say what they do ([`super::Datapath::take_log`]).
    pub kernel_log: bool,
    /// Sizes.
    pub capacity: Capacity,
}

/// How much the maps hold. Compared with the need before the first write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// Edges of one side.
    pub edges: u32,
    /// Cgroups.
    pub cgroups: u32,
    /// Prefixes of one side.
    pub prefixes: u32,
    /// Edges with more than three ranges, of one side.
    pub spills: u32,
    /// Rules of one policy.
    pub rules: u32,
    /// Entries of the flow table.
    pub flows: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { edges: 1 << 20, cgroups: 1 << 16, prefixes: 1 << 16, spills: 4_096, rules: 16_383, flows: 1 << 16 }
    }
}

/// Who is who, as one side of the maps will say it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identities {
    /// Cgroup id -> slot.
    pub cgroups: BTreeMap<u64, IdentSlot>,
    /// Narrowing by owner of the socket.
    pub uids: BTreeMap<UidKey, IdentSlot>,
}

/// An idle side that is filled and waits for the flip.
#[must_use = "a side that is filled and never used keeps its memory"]
#[derive(Debug)]
pub struct Prepared {
    /// The epoch that will use it.
    pub epoch: Epoch,
}

/// The runs of one program since it was loaded, as far as they were counted.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// How many.
    pub count: u64,
    /// How long all of them took.
    pub time: Duration,
}

/// Why the kernel side could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A build for host tests.
    #[error("this binary was built without the kernel programs; build it without AYA_BUILD_SKIP")]
    NoPrograms,
    /// See there.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// See there.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// See there.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Functions that the verifier checks by themselves need their types.
    #[error(
        "the kernel takes no types (BTF) of global functions; this needs Linux 6.1 or newer with CONFIG_DEBUG_INFO_BTF, \
         and free memory for the probe"
    )]
    NoFunctionTypes,
    /// The kernel refused the object or its maps.
    #[error("load the kernel programs")]
    Load(#[source] aya::EbpfError),
    /// The kernel refused one program.
    #[error("{verb} the program `{program}`")]
    Program {
        /// What was tried.
        verb: &'static str,
        /// Which.
        program: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pinned map has another shape than this version's.
    #[error("the pinned map `{map}` has {what} {found}, this version needs {wanted}; run `eastwall detach` first")]
    Shape {
        /// Which.
        map: &'static str,
        /// Which number of it.
        what: &'static str,
        /// As pinned.
        found: u32,
        /// As needed.
        wanted: u32,
    },
    /// A map could not be made.
    #[error("make a map for {0}")]
    Map(&'static str, #[source] aya::maps::MapError),
    /// The cgroup directory.
    #[error("open the cgroup `{}`", .0.display())]
    Cgroup(PathBuf, #[source] io::Error),
    /// The policy does not fit.
    #[error("E16: the policy needs {needed} {what}, the maps hold {holds}; nothing was changed")]
    Capacity {
        /// Of what.
        what: &'static str,
        /// How many.
        needed: usize,
        /// How many there is room for.
        holds: u32,
    },
    /// Randomness.
    #[error("draw a secret from the kernel")]
    Secret(#[source] io::Error),
}
