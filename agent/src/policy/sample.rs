//! Flows by which a copy of a compiled policy is told from the original.

use agent_common::{
    flow::{Direction, Flow},
    id::IdentityId,
    layout::EdgeKey,
};

use super::map_state::MapState;

/// Returns flows over the edges of a policy, at the ends of their ranges and one beyond: over all of them if
/// there are at most `edges_max`, else over that many, chosen by `seed`. As many pairs of names again are
/// tried that are no edges.
#[must_use]
pub fn flows(map: &MapState, edges_max: usize, seed: u64) -> Vec<Flow> {
    let names: Vec<IdentityId> = map.names.keys().copied().collect();
    let mut dice = Dice(seed);
    let step = map.edges.len().div_ceil(edges_max.max(1)).max(1);
    let first = dice.below(step);
    let mut flows = Vec::new();
    for key in map.edges.keys().skip(first).step_by(step) {
        // Whoever is named, or nobody, for `any`.
        let mut end = |id| match names.get(dice.below(names.len() + 1)) {
            _ if id != IdentityId::ANY => id,
            Some(&id) => id,
            None => STRANGER,
        };
        let (from, to) = (end(key.from), end(key.to));
        // What an entry without ranges keeps out is what a wider one lets in.
        let wider = EdgeKey { to: IdentityId::ANY, ..*key };
        let all = [Some(*key), map.ranges(key).next().is_none().then_some(wider)];
        for range in all.iter().flatten().flat_map(|key| map.ranges(key)) {
            let proto = if range.proto == 0 { UNNAMED } else { range.proto };
            for port in [Some(range.lo), Some(range.hi), range.hi.checked_add(1), range.lo.checked_sub(1)] {
                flows.extend(port.map(|port| Flow { from, to, proto, port, direction: Direction::Egress }));
            }
        }
    }
    for _ in 0..edges_max.min(4 * map.edges.len() + 16) {
        let mut end = || names.get(dice.below(names.len())).copied().unwrap_or(STRANGER);
        let (from, to) = (end(), end());
        if !map.edges.contains_key(&EdgeKey { from, to }) {
            let port = u16::try_from(dice.below(1 << 16)).unwrap_or(0);
            flows.push(Flow { from, to, proto: agent_common::flow::proto::TCP, port, direction: Direction::Ingress });
        }
    }
    flows
}

/// Returns the first address of prefixes and the one before, of all or of `prefixes_max` of them.
///
/// Shape: 16 bytes, network order, IPv4 mapped.
#[must_use]
pub fn addresses(map: &MapState, prefixes_max: usize, seed: u64) -> Vec<[u8; 16]> {
    let step = map.prefixes.len().div_ceil(prefixes_max.max(1)).max(1);
    let first = Dice(seed).below(step);
    let chosen = map.prefixes.keys().skip(first).step_by(step);
    chosen.flat_map(|p| [p.addr, u128::from_be_bytes(p.addr).wrapping_sub(1).to_be_bytes()]).collect()
}

/// An identity that no policy names.
const STRANGER: IdentityId = IdentityId(u64::MAX >> 2);
/// A protocol that only `any` allows.
const UNNAMED: u8 = 47;

/// Numbers that look random: xorshift64*. No secret depends on them.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        let mut x = self.0 | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        let end = u64::try_from(end.max(1)).unwrap_or(1);
        usize::try_from((x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1) % end).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use agent_common::{decide::decide, id::BootSeconds};

    use super::*;
    use crate::policy::random::Case;

    #[test]
    fn every_lost_or_changed_entry_of_a_small_policy_is_noticed() {
        let (mut tried, mut shut) = (0, 0);
        for seed in 0..40 {
            let map = Case::new(seed, 0).map;
            let flows = flows(&map, 500, seed);
            let differs = |copy: &MapState| {
                flows.iter().any(|f| decide(copy, f, &BootSeconds(0)) != decide(&map, f, &BootSeconds(0)))
            };
            assert!(!differs(&map.clone()));
            // An edge that only repeats a wider one is no loss.
            for key in map.edges.keys().filter(|k| k.from != IdentityId::ANY && k.to != IdentityId::ANY) {
                let mut copy = map.clone();
                if map.ranges(key).next().is_none() {
                    copy.edges.remove(key);
                    assert!(differs(&copy), "seed {seed}: {key:?} no longer keeps out what a wider one lets in");
                    shut += 1;
                    continue;
                }
                copy.edges.get_mut(key).unwrap().ranges[0].flags ^= 1;
                assert!(differs(&copy), "seed {seed}: {key:?} allows what it denied, or the reverse");
                let mut copy = map.clone();
                copy.edges.get_mut(key).unwrap().ranges[0].rule ^= 1;
                assert!(differs(&copy), "seed {seed}: {key:?} names another rule");
                tried += 2;
            }
        }
        assert!(tried > 1_000 && shut > 0, "{tried} {shut}");
    }

    #[test]
    fn the_sample_of_a_large_policy_is_small_and_not_always_the_same() {
        let case = (0..200).map(|seed| Case::new(seed, 0).map).max_by_key(|map| map.edges.len()).unwrap();
        let few = flows(&case, 10, 1);
        assert!(few.len() < 10 * 20 * 4 + 10, "{}", few.len());
        assert!(!few.is_empty());
        assert_ne!(few, flows(&case, 10, 2));
        assert_eq!(flows(&MapState::default(), 10, 1).len(), 10);
    }
}
