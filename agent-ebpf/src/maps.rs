//! Every map: key, value, who writes, who reads, and what happens when it is full.
//!
//! Sizes here are the defaults; the agent sets those of its configuration before loading.

use agent_common::{
    addr::Addr,
    layout::{
        AddrEntry, AddrNames, DNS_NAMES_MAX, DenyCounter, DenyKey, DenyRecord, DenyStat, DeviceEntry, EdgeEntry,
        EdgeKey, FlowKey, FlowState, IdentEntry, NameKey, PrefixKey, ResetRecord, RuleStat, Settings, SockState,
        SpillEntry, UidKey,
    },
    parse::dns,
};
use aya_ebpf::{btf_maps as bm, macros::btf_map};

use crate::recent::{self, Recent};

/// `BPF_F_NO_PREALLOC` of linux/bpf.h.
pub const NO_PREALLOC: usize = 1;

/// Policy, by side. The agent fills the idle side before the epoch names it; programs read.
/// Full: the agent counts before it writes, and refuses the policy.
///
/// The value is an [`EdgeEntry`], in words: before Linux 6.3 a map whose value has the type of a structure takes no inner
/// map that was made without types.
#[btf_map(name = "edges")]
pub static EDGES: bm::ArrayOfMaps<bm::HashMap<EdgeKey, EdgeWords, 65_536, NO_PREALLOC>, 2> = bm::ArrayOfMaps::new();

type EdgeWords = [u32; size_of::<EdgeEntry>() / 4];

/// Ranges beyond the third of an edge, by side. As `edges`; the value is a [`SpillEntry`].
#[btf_map(name = "spill")]
pub static SPILL: bm::ArrayOfMaps<bm::Array<SpillWords, 4_096>, 2> = bm::ArrayOfMaps::new();

type SpillWords = [u32; size_of::<SpillEntry>() / 4];

/// Prefix -> external or set, by side. As `edges`; the value is an [`AddrEntry`].
#[btf_map(name = "addr_ext")]
pub static ADDR_EXT: bm::ArrayOfMaps<Trie<PrefixKey, AddrWords, 16_384>, 2> = bm::ArrayOfMaps::new();

type AddrWords = [u64; size_of::<AddrEntry>() / 8];

/// DNS name -> externals, by side. As `edges`; a value is [`DNS_NAMES_MAX`] identities, 0 = none.
#[btf_map(name = "dns_names")]
pub static DNS_NAMES: bm::ArrayOfMaps<Trie<NameKey, [u64; DNS_NAMES_MAX], 4_096>, 2> = bm::ArrayOfMaps::new();

/// Address -> externals that answers of resolvers name with it. Written by programs, swept by the agent.
/// Full: the address stays unknown, which is counted.
#[btf_map(name = "dns_addrs")]
pub static DNS_ADDRS: bm::HashMap<Addr, AddrNames, 65_536, NO_PREALLOC> = bm::HashMap::new();

/// Addresses that an external has in `dns_addrs`. Raised by programs, set right by the agent's sweep.
/// Full: as there.
#[btf_map(name = "dns_used")]
pub static DNS_USED: bm::HashMap<u64, u64, 4_096, NO_PREALLOC> = bm::HashMap::new();

/// Room for one answer of a resolver, for each CPU.
#[btf_map(name = "dns_room")]
pub static DNS_ROOM: bm::PerCpuArray<DnsRoom, 1> = bm::PerCpuArray::new();

/// See [`DNS_ROOM`]. Programs that use it run one at a time on a CPU, because they are called for packets that come in.
#[repr(C)]
pub struct DnsRoom {
    /// The answer.
    pub message: [u8; dns::MESSAGE_BYTES],
    /// The name it is about.
    pub name: [u8; dns::NAME_BYTES],
    /// The key of that name.
    pub key: NameKey,
    /// Zero.
    pub reserved: u32,
    /// The externals of that name.
    pub externals: [u64; DNS_NAMES_MAX],
    /// The names of an address that has none yet.
    pub new: AddrNames,
}

/// Cgroup -> identity. Written by the agent, and by `ew_cgrp_mkdir` for a cgroup that is just made.
/// Full: a cgroup without an entry is `unknown`, and the agent raises an alert.
#[btf_map(name = "cgrp_ident")]
pub static CGRP_IDENT: bm::HashMap<u64, IdentEntry, 65_536, NO_PREALLOC> = bm::HashMap::new();

/// (Cgroup, uid) -> identity; asked only if the cgroup's entry says so. Written by the agent.
#[btf_map(name = "uid_ident")]
pub static UID_IDENT: bm::HashMap<UidKey, IdentEntry, 16_384, NO_PREALLOC> = bm::HashMap::new();

/// Device, by its index on the host's side -> who is behind it.
/// Written by the agent before the device's programs are attached. Full: the agent reports the device.
#[btf_map(name = "dev_owner")]
pub static DEV_OWNER: bm::HashMap<u32, DeviceEntry, 4_096, NO_PREALLOC> = bm::HashMap::new();

/// Address -> a cgroup of the one workload of this host that has it, whose label is the address's; 0 = of several, or
/// of none with a label. Written by the agent, which begins an epoch when an address changes hands.
/// Full: the agent reports the address, whose packets a device then drops.
#[btf_map(name = "addr_owner")]
pub static ADDR_OWNER: bm::HashMap<Addr, u64, 16_384, NO_PREALLOC> = bm::HashMap::new();

/// The epoch in force; its lowest bit names the side. One store by the agent switches the policy.
#[btf_map(name = "epoch")]
pub static EPOCH: bm::Array<u64, 1> = bm::Array::new();

/// Switches that flip with the policy, by side. Written by the agent.
#[btf_map(name = "settings")]
pub static SETTINGS: bm::Array<Settings, 2> = bm::Array::new();

/// Flows that no socket is tied to, owner in the key: a cgroup, or a device for what passes there. Written by programs, swept by the agent.
/// Full, or the owner's quota is used up: the new flow is denied and counted.
#[btf_map(name = "flows")]
pub static FLOWS: bm::HashMap<FlowKey, FlowState, 65_536, NO_PREALLOC> = bm::HashMap::new();

/// Entries that a cgroup or a device has in `flows`. Raised by programs, set right by the agent's sweep.
#[btf_map(name = "flow_quota")]
pub static FLOW_QUOTA: bm::HashMap<u64, u64, 16_384, NO_PREALLOC> = bm::HashMap::new();

/// Hits by rule: one count a decision. The sides use different halves.
#[btf_map(name = "rule_stats")]
pub static RULE_STATS: bm::PerCpuArray<RuleStat, 32_768> = bm::PerCpuArray::new();

/// First denials. Full: counted in `deny_counts[Ring]`; the verdict does not care.
#[btf_map(name = "events")]
pub static EVENTS: bm::RingBuf<DenyRecord, 1_048_576> = bm::RingBuf::new();

/// Sums of the denials, exact.
#[btf_map(name = "deny_counts")]
pub static DENY_COUNTS: bm::PerCpuArray<u64, { DenyCounter::COUNT as usize }> = bm::PerCpuArray::new();

/// Keys that have had their first record, with the repeats since. Taken out by the agent at the end
/// of a window. Full: no deduplication.
#[btf_map(name = "deny_seen")]
pub static DENY_SEEN: bm::HashMap<DenyKey, DenyStat, 65_536, NO_PREALLOC> = bm::HashMap::new();

/// Token bucket by workload: [tokens << 32 | tick of the newest token]. An eviction refills one bucket.
#[btf_map(name = "deny_budget")]
pub static DENY_BUDGET: bm::LruHashMap<u64, u64, 16_384> = bm::LruHashMap::new();

/// Denials beyond the budget, by (workload, direction and audit). Full: the denial is counted as `Ring`, lost.
#[btf_map(name = "deny_folded")]
pub static DENY_FOLDED: bm::HashMap<[u64; 2], DenyStat, 32_768, NO_PREALLOC> = bm::HashMap::new();

/// [kind, cgroup, parent]: kind 1 = made, 2 = released. Full: counted in `deny_counts[15]`, and the
/// agent walks the tree.
#[btf_map(name = "cgroup_events")]
pub static CGROUP_EVENTS: bm::RingBuf<[u64; 3], 262_144> = bm::RingBuf::new();

/// Calls that the agent is to answer for a door. Full: those callers hear nothing.
#[btf_map(name = "resets")]
pub static RESETS: bm::RingBuf<ResetRecord, 65_536> = bm::RingBuf::new();

/// What passed a device a moment ago, on each CPU, by a mix of the packet's ends. Full: the last one stays.
#[btf_map(name = "recent")]
pub static RECENT: bm::PerCpuArray<Recent, { recent::SLOTS as usize }> = bm::PerCpuArray::new();

/// How often the agent has dropped all of `recent`.
#[btf_map(name = "recent_turn")]
pub static RECENT_TURN: bm::Array<u32, 1> = bm::Array::new();

/// Index in `deny_counts` of cgroup events that were lost.
pub const CGROUP_EVENTS_LOST: u32 = 15;

/// What is known about a socket. Written by programs; it dies with the socket. No room: the verdict
/// is made again for every packet.
#[unsafe(link_section = ".maps")]
#[unsafe(export_name = "sockets")]
pub static SOCKETS: SkStorage<SockState> = SkStorage::new();

/// Socket storage whose values are inherited by accepted sockets, which the library's type is not.
#[repr(C)]
pub struct SkStorage<T> {
    r#type: *const [i32; 24],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; 0x201],
}

// SAFETY: never read; only its address is used, and helpers synchronise themselves.
unsafe impl<T> Sync for SkStorage<T> {}

impl<T> SkStorage<T> {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }
}

/// LPM trie whose key is a type of ours: the library's wraps the key in one of its own.
#[repr(C)]
pub struct Trie<K, V, const N: usize> {
    r#type: *const [i32; 11],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; N],
    map_flags: *const [i32; NO_PREALLOC],
}
