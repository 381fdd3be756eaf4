//! Which names by DNS are forgotten.

use std::collections::BTreeMap;

use agent_common::{id::IdentityId, layout::AddrNames};

/// Addresses with their names, 16 bytes, IPv4 mapped.
pub type Known = BTreeMap<[u8; 16], AddrNames>;

/// Seconds for which a name of an address is kept when its answer has run out: so long a flow that began before may be
/// decided again, by another policy.
const KEPT: u32 = 86_400;

/// What is left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Left {
    /// Those that lose a name, with the names that they keep; all zero if there are none.
    pub changed: Known,
    /// Number of addresses that each external has.
    pub used: BTreeMap<IdentityId, u64>,
    /// Addresses that have a name now.
    pub live: usize,
    /// Those whose names have all run out.
    pub stale: usize,
}

/// Forgets names that ran out long ago, and of an external that has used up half of its room those that ran out first:
/// the other half is for what comes until the next time.
#[must_use]
pub fn forget(known: &Known, now: u32, quota: u32) -> Left {
    let mut left = Left::default();
    let mut stale = Vec::new();
    for (address, names) in known {
        for (place, name) in names.names.iter().enumerate().filter(|(_, name)| name.0 != 0) {
            *left.used.entry(*name).or_default() += 1;
            if names.until[place] <= now {
                stale.push((names.until[place], *address, place, *name));
            }
        }
    }
    stale.sort_unstable();
    for (until, address, place, name) in stale {
        let Some(used) = left.used.get_mut(&name) else { continue };
        if *used <= u64::from(quota / 2) && now < until.saturating_add(KEPT) {
            continue;
        }
        *used -= 1;
        let names = left.changed.entry(address).or_insert_with(|| known.get(&address).copied().unwrap_or_default());
        (names.names[place], names.until[place]) = (IdentityId(0), 0);
    }
    left.used.retain(|_, used| *used > 0);
    for (address, names) in known {
        let names = left.changed.get(address).unwrap_or(names);
        if names.live(now, false).next().is_some() {
            left.live += 1;
        } else if names.live(now, true).next().is_some() {
            left.stale += 1;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_000_000;

    fn names(all: &[(u64, u32)]) -> AddrNames {
        let mut names = AddrNames::default();
        for (place, (name, until)) in all.iter().enumerate() {
            (names.names[place], names.until[place]) = (IdentityId(*name), *until);
        }
        names
    }

    fn known(all: &[&[(u64, u32)]]) -> Known {
        (0_u8..).zip(all).map(|(n, all)| ([n; 16], names(all))).collect()
    }

    #[test]
    fn what_ran_out_is_kept_for_a_day_if_there_is_room() {
        let all = known(&[&[(7, NOW + 1)], &[(7, NOW)], &[(7, NOW - KEPT)], &[(7, NOW - KEPT), (8, NOW + 1)], &[]]);
        let left = forget(&all, NOW, 100);
        assert_eq!(left.changed, [([2; 16], names(&[])), ([3; 16], names(&[(0, 0), (8, NOW + 1)]))].into());
        assert_eq!((left.live, left.stale), (2, 1));
        assert_eq!(left.used, [(IdentityId(7), 2), (IdentityId(8), 1)].into());
    }

    #[test]
    fn what_ran_out_first_makes_room_and_what_is_live_never_does() {
        let all = known(&[&[(7, NOW - 1)], &[(7, NOW - 3)], &[(7, NOW - 2)], &[(7, NOW + 9)], &[(8, NOW - 9)]]);
        let left = forget(&all, NOW, 4);
        assert_eq!(left.changed.keys().collect::<Vec<_>>(), [&[1; 16], &[2; 16]], "the two oldest of that external");
        assert_eq!(left.used, [(IdentityId(7), 2), (IdentityId(8), 1)].into());
        let live = known(&[&[(7, NOW + 1)], &[(7, NOW + 1)], &[(7, NOW + 1)]]);
        assert_eq!(forget(&live, NOW, 2).changed, Known::new());
    }
}
