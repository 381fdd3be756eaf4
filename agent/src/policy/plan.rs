//! Does a compiled policy fit the maps? Counted before any write.

use agent_common::decide::RULES_MAX;

use super::map_state::MapState;

/// How much the maps hold.
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

/// Rules of one policy; half of `rule_stats`, whose size is built into the programs.
const RULES: u32 = 16_383;
const _: () = assert!(RULES <= RULES_MAX);

impl Default for Capacity {
    fn default() -> Self {
        Self { edges: 1 << 20, cgroups: 1 << 16, prefixes: 1 << 16, spills: 4_096, rules: RULES, flows: 1 << 16 }
    }
}

/// Entries of cgroups that are narrowed by owner; this number is built into the programs.
pub const UID_ENTRIES: u32 = 16_384;

/// DNS names of externals, which are walked one by one at a look at the maps.
pub const DNS_NAMES: u32 = 4_096;

/// The policy does not fit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("E16: the policy needs {needed} {what}, the maps hold {holds}; nothing was changed")]
pub struct TooLarge {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub needed: usize,
    /// How many there is room for.
    pub holds: u32,
}

/// Checks that a policy fits, with the number of cgroups it labels and of those it narrows by owner.
///
/// # Errors
///
/// [`TooLarge`] with the first map that is too small; nothing may then be written.
pub fn check_capacity(map: &MapState, cgroups: usize, by_uid: usize, capacity: &Capacity) -> Result<(), TooLarge> {
    let MapState {
        edges,
        spill,
        prefixes,
        dns_names,
        unknown_mode: _,
        resolvers: _,
        answers: _,
        peers: _,
        named: _,
        rule_ids,
        names: _,
    } = map;
    let needs = [
        ("edges", edges.len(), capacity.edges),
        ("edges with more than three port ranges", spill.len(), capacity.spills),
        ("address prefixes", prefixes.len(), capacity.prefixes),
        ("DNS names", dns_names.len(), DNS_NAMES),
        ("rules", rule_ids.len(), capacity.rules),
        ("cgroups", cgroups, capacity.cgroups),
        ("cgroups by uid", by_uid, UID_ENTRIES),
    ];
    match needs.into_iter().find(|&(_, needed, holds)| needed > holds as usize) {
        Some((what, needed, holds)) => Err(TooLarge { what, needed, holds }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::random::Case;

    #[test]
    fn exactly_full_fits_and_one_more_does_not() {
        let map =
            (0..50).map(|seed| Case::new(seed, 0).map).find(|map| !map.spill.is_empty() && !map.prefixes.is_empty());
        let map = map.unwrap();
        let size = |n: usize| u32::try_from(n).unwrap();
        let full = Capacity {
            edges: size(map.edges.len()),
            spills: size(map.spill.len()),
            prefixes: size(map.prefixes.len()),
            rules: size(map.rule_ids.len()),
            cgroups: 5,
            flows: 0,
        };
        let most = UID_ENTRIES as usize;
        assert_eq!(check_capacity(&map, 5, most, &full), Ok(()));
        for small in [
            Capacity { edges: full.edges - 1, ..full },
            Capacity { spills: full.spills - 1, ..full },
            Capacity { prefixes: full.prefixes - 1, ..full },
            Capacity { rules: full.rules - 1, ..full },
            Capacity { cgroups: 4, ..full },
        ] {
            let error = check_capacity(&map, 5, most, &small).unwrap_err();
            assert_eq!(error.needed, error.holds as usize + 1, "{small:?}");
        }
        assert_eq!(check_capacity(&map, 5, most + 1, &full).unwrap_err().what, "cgroups by uid");
    }
}
