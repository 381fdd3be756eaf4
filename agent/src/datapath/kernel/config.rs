//! What the kernel side is told, and what it can refuse.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use agent_common::{
    id::{Epoch, IdentityId},
    layout::{
        AddrEntry, DNS_NAMES_MAX, EdgeEntry, EdgeKey, IdentSlot, NameKey, PrefixKey, Settings, SpillEntry, UidKey,
    },
};

use crate::{
    datapath::{
        btf::BtfError,
        pins::PinsError,
        table::{Table, TableError},
    },
    policy::plan::{Capacity, TooLarge},
};

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
    /// Whether devices can be guarded.
    pub devices: bool,
    /// Whether what processes of the host send past their sockets is judged too: at all devices of the host, which must
    /// then be guarded as [`HOST_OWNER`]'s, and its addresses be owned so.
    pub host: bool,
    /// Whether devices are guarded by TCX where the kernel has it. Else it is by filters of `clsact`, as on every kernel before 6.6.
    pub tcx: bool,
    /// Whether the programs say what they do ([`super::Datapath::take_log`]).
    pub kernel_log: bool,
    /// Sizes.
    pub capacity: Capacity,
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
    /// Its `edges`.
    pub edges: Table<EdgeKey, EdgeEntry>,
    /// Its `spill`.
    pub spill: Table<u32, SpillEntry>,
    /// Its `addr_ext`.
    pub prefixes: Table<PrefixKey, AddrEntry>,
    /// Its `dns_names`.
    pub dns_names: Table<NameKey, [IdentityId; DNS_NAMES_MAX]>,
    pub(super) settings: Settings,
}

/// The runs of one program since it was loaded, as far as they were counted.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// How many.
    pub count: u64,
    /// How long all of them took.
    pub time: Duration,
}

impl DatapathError {
    pub(in crate::datapath) fn program(verb: &'static str, program: &'static str, source: io::Error) -> Self {
        Self::Program { verb, program, source: Box::new(source) }
    }
}

/// Why the kernel side could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A build for host tests.
    #[error("this binary was built without the kernel programs; build it without AYA_BUILD_SKIP")]
    NoPrograms,
    /// See [`crate::datapath::release`].
    #[error("{0}")]
    OldKernel(String),
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
        "the kernel takes no types (BTF) of global functions; this needs CONFIG_DEBUG_INFO_BTF, and free memory for the \
         probe"
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
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A map was changed by somebody else, or lost what was written.
    #[error(
        "the maps do not hold what was written to them: {what} should be {wanted} and is {found}; the policy before \
         stays in force"
    )]
    Differs {
        /// Of what.
        what: String,
        /// As written.
        wanted: String,
        /// As read.
        found: String,
    },
    /// Randomness.
    #[error("draw a secret from the kernel")]
    Secret(#[source] io::Error),
}
