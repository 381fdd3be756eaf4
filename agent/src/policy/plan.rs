//! Does a compiled policy fit the maps? Counted before any write.

use super::{
    finding::{Code, Finding},
    map_state::MapState,
};

/// How many entries each map of one side can hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// `edges`.
    pub edges: usize,
    /// `spill`.
    pub spill: usize,
    /// `addr_ext`.
    pub prefixes: usize,
    /// Rules that can be counted in `rule_stats`.
    pub rules: usize,
}

/// Checks that everything fits.
///
/// # Errors
///
/// One E16 for each map that is too small; nothing may then be written.
pub fn check_capacity(map: &MapState, capacity: &Capacity) -> Result<(), Vec<Finding>> {
    let MapState { edges, spill, prefixes, unknown_mode: _, rule_ids, names: _ } = map;
    let needs = [
        ("edges", "edges", edges.len(), capacity.edges),
        ("edges with more than three port ranges", "spill", spill.len(), capacity.spill),
        ("address prefixes", "addr_ext", prefixes.len(), capacity.prefixes),
        ("rules", "rule_stats", rule_ids.len(), capacity.rules),
    ];
    let findings: Vec<Finding> = needs
        .into_iter()
        .filter(|(_, _, needed, capacity)| needed > capacity)
        .map(|(what, map, needed, capacity)| {
            let message = format!("the policy has {needed} {what}, and the map `{map}` holds {capacity}");
            Finding::general(Code::E16, message).help("raise the capacity in agent.yaml, or make the policy smaller")
        })
        .collect();
    if findings.is_empty() { Ok(()) } else { Err(findings) }
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
        let full = Capacity {
            edges: map.edges.len(),
            spill: map.spill.len(),
            prefixes: map.prefixes.len(),
            rules: map.rule_ids.len(),
        };
        assert_eq!(check_capacity(&map, &full), Ok(()));
        for small in [
            Capacity { edges: full.edges - 1, ..full },
            Capacity { spill: full.spill - 1, ..full },
            Capacity { prefixes: full.prefixes - 1, ..full },
            Capacity { rules: full.rules - 1, ..full },
        ] {
            let findings = check_capacity(&map, &small).unwrap_err();
            assert_eq!((findings.len(), findings[0].code), (1, Code::E16), "{small:?}");
        }
    }
}
