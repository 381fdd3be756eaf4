//! Names of maps and programs. The kernel keeps 15 characters.

/// Maps of maps and maps, by the name under which they are pinned.
pub mod map {
    /// `ARRAY_OF_MAPS` of 2: hash [`super::super::EdgeKey`] -> [`super::super::EdgeEntry`], by side.
    pub const EDGES: &str = "edges";
    /// `ARRAY_OF_MAPS` of 2: array of [`super::super::SpillEntry`], by side.
    pub const SPILL: &str = "spill";
    /// `ARRAY_OF_MAPS` of 2: LPM trie [`super::super::PrefixKey`] -> [`super::super::AddrEntry`], by side.
    pub const ADDR_EXT: &str = "addr_ext";
    /// `ARRAY_OF_MAPS` of 2: LPM trie [`super::super::NameKey`] -> identities of externals, by side.
    pub const DNS_NAMES: &str = "dns_names";
    /// Hash: address, 16 bytes -> [`super::super::AddrNames`].
    pub const DNS_ADDRS: &str = "dns_addrs";
    /// Hash: identity of an external -> number of its addresses in `dns_addrs`.
    pub const DNS_USED: &str = "dns_used";
    /// Hash: cgroup id -> [`super::super::IdentEntry`].
    pub const CGRP_IDENT: &str = "cgrp_ident";
    /// Hash: [`super::super::UidKey`] -> [`super::super::IdentEntry`].
    pub const UID_IDENT: &str = "uid_ident";
    /// Hash: index of a device -> [`super::super::DeviceEntry`].
    pub const DEV_OWNER: &str = "dev_owner";
    /// Hash: address, 16 bytes -> cgroup id of the workload of this host that has it; 0 = no one workload.
    pub const ADDR_OWNER: &str = "addr_owner";
    /// Array of 1: the epoch in force, as u64.
    pub const EPOCH: &str = "epoch";
    /// Array of 2: [`super::super::Settings`], by side.
    pub const SETTINGS: &str = "settings";
    /// Socket storage: [`super::super::SockState`].
    pub const SOCKETS: &str = "sockets";
    /// Hash: [`super::super::FlowKey`] -> [`super::super::FlowState`], for flows without a fixed socket.
    pub const FLOWS: &str = "flows";
    /// Hash: cgroup id, or [`super::super::device_owner`] -> number of its entries in `flows`.
    pub const FLOW_QUOTA: &str = "flow_quota";
    /// Per-CPU array: [`super::super::RuleStat`], rule number + capacity in odd epochs.
    pub const RULE_STATS: &str = "rule_stats";
    /// Ring buffer of [`super::super::DenyRecord`].
    pub const EVENTS: &str = "events";
    /// Per-CPU array of u64, indexed by [`super::super::DenyCounter`].
    pub const DENY_COUNTS: &str = "deny_counts";
    /// Hash: [`super::super::DenyKey`] -> [`super::super::DenyStat`].
    pub const DENY_SEEN: &str = "deny_seen";
    /// LRU hash: identity or cgroup -> token bucket.
    pub const DENY_BUDGET: &str = "deny_budget";
    /// Hash: (identity or cgroup, direction in bit 0 and audit in bit 1) -> folded denials.
    pub const DENY_FOLDED: &str = "deny_folded";
    /// Ring buffer: cgroup made or released.
    pub const CGROUP_EVENTS: &str = "cgroup_events";
    /// Ring buffer of [`super::super::ResetRecord`].
    pub const RESETS: &str = "resets";

    /// Array of 1: number of times that all slots of `recent` were dropped, as u32. Of one load of the programs, and not
    /// pinned.
    pub const RECENT_TURN: &str = "recent_turn";

    /// Every map that is pinned, in that order.
    pub const ALL: [&str; 23] = [
        EDGES,
        SPILL,
        ADDR_EXT,
        DNS_NAMES,
        DNS_ADDRS,
        DNS_USED,
        CGRP_IDENT,
        UID_IDENT,
        DEV_OWNER,
        ADDR_OWNER,
        EPOCH,
        SETTINGS,
        SOCKETS,
        FLOWS,
        FLOW_QUOTA,
        RULE_STATS,
        EVENTS,
        DENY_COUNTS,
        DENY_SEEN,
        DENY_BUDGET,
        DENY_FOLDED,
        CGROUP_EVENTS,
        RESETS,
    ];
}

/// Programs.
pub mod program {
    /// Label of a new socket.
    pub const SOCK_CREATE: &str = "ew_sock_create";
    /// connect(2), IPv4.
    pub const CONNECT4: &str = "ew_connect4";
    /// connect(2), IPv6 and v4-mapped.
    pub const CONNECT6: &str = "ew_connect6";
    /// sendto(2) and sendmsg(2) with an address, IPv4.
    pub const SENDMSG4: &str = "ew_sendmsg4";
    /// The same, IPv6.
    pub const SENDMSG6: &str = "ew_sendmsg6";
    /// Everything a socket sends: the boundary.
    pub const EGRESS: &str = "ew_egress";
    /// Everything a socket receives: the boundary.
    pub const INGRESS: &str = "ew_ingress";
    /// A cgroup is made: it has an entry before mkdir(2) returns.
    pub const CGROUP_MKDIR: &str = "ew_cgrp_mkdir";
    /// A cgroup is gone and no socket refers to it.
    pub const CGROUP_RELEASE: &str = "ew_cgrp_release";

    /// What leaves a workload by its device.
    pub const TC_FROM: &str = "ew_tc_from";
    /// What enters it.
    pub const TC_TO: &str = "ew_tc_to";

    /// What processes of the host send by a device of it past their sockets.
    pub const TC_HOST: &str = "ew_tc_host";
    /// setsockopt(2): refuses what would send past that.
    pub const SETSOCKOPT: &str = "ew_setsockopt";

    /// Lets nothing pass: it holds a place for the moment in which another program moves.
    pub const TC_CLOSED: &str = "ew_tc_closed";

    /// Programs for the host's side of workloads' devices, in the order in which they are attached.
    pub const DEVICE: [&str; 2] = [TC_TO, TC_FROM];
    /// Every program for devices.
    pub const DEVICES: [&str; 3] = [TC_TO, TC_FROM, TC_HOST];

    /// Every program of the guarded cgroup, in the order in which they are attached: the boundary first.
    pub const ALL: [&str; 10] = [
        CGROUP_MKDIR,
        CGROUP_RELEASE,
        SOCK_CREATE,
        EGRESS,
        INGRESS,
        SETSOCKOPT,
        CONNECT4,
        CONNECT6,
        SENDMSG4,
        SENDMSG6,
    ];
}

/// Maps and programs of the guard that stands until there is an agent.
pub mod boot {
    /// Hash: [`super::super::BootPath`] -> 1, the cgroups that are named.
    pub const PATHS: &str = "boot_paths";
    /// Hash: cgroup id -> 1, those of them that there are.
    pub const CGROUPS: &str = "boot_cgroups";
    /// Per-CPU array of u64, indexed by [`super::super::boot_count`].
    pub const COUNTS: &str = "boot_counts";
    /// Every map.
    pub const MAPS: [&str; 3] = [PATHS, CGROUPS, COUNTS];

    /// A cgroup is made: if it is named, it is guarded before mkdir(2) returns.
    pub const MKDIR: &str = "ew_boot_mkdir";
    /// A cgroup is gone and no socket refers to it.
    pub const RELEASE: &str = "ew_boot_release";
    /// What sockets send.
    pub const OUT: &str = "ew_boot_out";
    /// What they receive.
    pub const IN: &str = "ew_boot_in";
    /// Every program, in the order in which they are attached: who is guarded is known before anything is judged.
    pub const PROGRAMS: [&str; 4] = [MKDIR, RELEASE, OUT, IN];
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_keeps_every_name_whole() {
        let of_agent = super::map::ALL.iter().chain(&super::program::ALL).chain(&super::program::DEVICES);
        for name in of_agent.chain(&super::boot::MAPS).chain(&super::boot::PROGRAMS) {
            assert!(name.len() <= 15, "`{name}` is longer than 15 characters");
        }
    }
}
