//! How many edges one compiled policy opens and closes relative to another.
//!
//! Only what is allowed counts, not how it is said: a rule that moves, is renamed or is covered by another
//! changes nothing. Entries that are alike are passed over, so that two policies of 100,000 edges are
//! compared while they are swapped.

use agent_common::{
    flow::proto,
    id::{BootSeconds, IdentityId},
    layout::{EdgeKey, Range},
};

use super::map_state::MapState;

/// Edges that changed: pairs of identities, or of one and `any`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Pairs that may use a port now and could not before.
    pub opened: usize,
    /// Pairs that could use a port before and may not now. A pair can be in both.
    pub closed: usize,
}

/// Compares what `before` allowed at its moment with what `after` allows at its own.
///
/// With the moment at which each came into force, the sums over a row of changes add up, also when rules ran
/// out in between.
#[must_use]
pub fn changes(before: (&MapState, BootSeconds), after: (&MapState, BootSeconds)) -> Changes {
    let new_keys = after.0.edges.keys().filter(|key| !before.0.edges.contains_key(key));
    let mut changes = Changes::default();
    for key in before.0.edges.keys().chain(new_keys) {
        // Nearly all of them, as a rule.
        if is_exact(before.0, key) && is_exact(after.0, key) && own(before, key).eq(own(after, key)) {
            continue;
        }
        let (old, new) = (rules_of(before, key), rules_of(after, key));
        changes.opened += usize::from(allows_more(&new, &old));
        changes.closed += usize::from(allows_more(&old, &new));
    }
    changes
}

/// An exact key is self-contained; a wildcard is judged together with those that are wider.
fn is_exact(map: &MapState, key: &EdgeKey) -> bool {
    map.edges.contains_key(key) && key.from != IdentityId::ANY && key.to != IdentityId::ANY
}

/// What the entry of an exact key means.
fn own<'a>((map, now): (&'a MapState, BootSeconds), key: &'a EdgeKey) -> impl Iterator<Item = (u8, u8, u16, u16)> {
    map.ranges(key).filter(move |range| in_force(range, now)).map(shape)
}

const fn in_force(range: &Range, now: BootSeconds) -> bool {
    range.expires == 0 || now.0 < range.expires
}

/// The ranges that a flow of the pair is judged by, best first, without those that have run out.
fn rules_of((map, now): (&MapState, BootSeconds), key: &EdgeKey) -> Vec<Range> {
    if is_exact(map, key) {
        return map.ranges(key).filter(|range| in_force(range, now)).copied().collect();
    }
    let any = IdentityId::ANY;
    let mut keys =
        [(key.from, key.to), (key.from, any), (any, key.to), (any, any)].map(|(from, to)| EdgeKey { from, to });
    keys.sort_unstable();
    let mut keys = keys.to_vec();
    keys.dedup();
    let mut ranges: Vec<Range> =
        keys.iter().flat_map(|key| map.ranges(key)).filter(|r| in_force(r, now)).copied().collect();
    ranges.sort_by_key(|range| (range.level(), range.rule));
    ranges
}

/// What a range means, whatever its number and its end.
const fn shape(range: &Range) -> (u8, u8, u16, u16) {
    (range.proto, range.level(), range.lo, range.hi)
}

/// Says whether `a` allows a protocol and port that `b` does not.
fn allows_more(a: &[Range], b: &[Range]) -> bool {
    // Between these no range begins or ends, so nothing else need be asked.
    let all = || a.iter().chain(b);
    let ports: Vec<u16> = all().flat_map(|r| [Some(r.lo), r.hi.checked_add(1)]).flatten().chain([0]).collect();
    // One that no rule can name stands for all that none of these does.
    let protocols = all().map(|r| r.proto).filter(|&p| p != 0).chain([UNNAMED]);
    let mut protocols: Vec<u8> = protocols.collect();
    protocols.sort_unstable();
    protocols.dedup();
    protocols.iter().any(|&p| ports.iter().any(|&port| allows(a, p, port) && !allows(b, p, port)))
}

/// A protocol that no rule can name: `any` is the only way to allow it.
const UNNAMED: u8 = u8::MAX;
const _: () =
    assert!(UNNAMED != proto::TCP && UNNAMED != proto::UDP && UNNAMED != proto::ICMP && UNNAMED != proto::SCTP);

fn allows(ranges: &[Range], proto: u8, port: u16) -> bool {
    let first = ranges.iter().find(|r| (r.proto == 0 || r.proto == proto) && (r.lo..=r.hi).contains(&port));
    // Even levels deny.
    first.is_some_and(|range| range.level() & 1 != 0)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Instant};

    use agent_common::{
        decide::decide,
        flow::{Direction, Flow},
        layout::{EdgeEntry, level},
    };

    use super::*;
    use crate::policy::random::Case;

    const NEVER: BootSeconds = BootSeconds(0);

    fn range(lo: u16, hi: u16, level: u8, rule: u32) -> Range {
        Range { proto: proto::TCP, flags: level, lo, hi, rule, ..Range::default() }
    }

    fn map(edges: &[(u64, u64, &[Range])]) -> MapState {
        let mut map = MapState::default();
        for &(from, to, given) in edges {
            let mut entry = EdgeEntry { count: u8::try_from(given.len()).unwrap(), ..EdgeEntry::default() };
            entry.ranges[..given.len()].copy_from_slice(given);
            map.edges.insert(EdgeKey { from: IdentityId(from), to: IdentityId(to) }, entry);
        }
        map
    }

    #[track_caller]
    fn check(before: &MapState, after: &MapState, opened: usize, closed: usize) {
        assert_eq!(changes((before, NEVER), (after, NEVER)), Changes { opened, closed });
        assert_eq!(changes((after, NEVER), (before, NEVER)), Changes { opened: closed, closed: opened });
    }

    #[test]
    fn what_is_allowed_counts_and_not_how_it_is_said() {
        let pg = map(&[(500, 501, &[range(5432, 5432, level::ALLOW, 1)])]);
        check(&MapState::default(), &pg, 1, 0);
        check(&pg, &pg, 0, 0);
        check(&pg, &map(&[(500, 501, &[range(5432, 5432, level::ALLOW, 7)])]), 0, 0);
        check(&pg, &map(&[(500, 501, &[range(5432, 5432, level::OVERRIDE_ALLOW, 7)])]), 0, 0);
        let split = [range(5432, 5432, level::ALLOW, 1), range(5400, 5432, level::ALLOW, 2)];
        check(&pg, &map(&[(500, 501, &split)]), 1, 0);
        check(&pg, &map(&[(500, 501, &[range(80, 80, level::ALLOW, 1)])]), 1, 1);
        check(&pg, &map(&[(500, 502, &[range(5432, 5432, level::ALLOW, 1)])]), 1, 1);
        let denied = [range(1, 9000, level::DENY, 2), range(5432, 5432, level::ALLOW, 1)];
        check(&pg, &map(&[(500, 501, &denied)]), 0, 1);
    }

    #[test]
    fn an_edge_that_a_wildcard_opened_before_is_not_opened_again() {
        let any = IdentityId::ANY.0;
        let wide = map(&[(any, 501, &[range(5432, 5432, level::ALLOW, 1)])]);
        let both: &[Range] = &[range(5432, 5432, level::ALLOW, 1), range(80, 80, level::ALLOW, 2)];
        check(&wide, &map(&[(any, 501, &both[..1]), (500, 501, &both[..1])]), 0, 0);
        check(&wide, &map(&[(any, 501, &both[..1]), (500, 501, both)]), 1, 0);
    }

    #[test]
    fn a_rule_that_ran_out_is_closed_by_the_next_change_and_never_twice() {
        let mut ends = range(5432, 5432, level::OVERRIDE_ALLOW, 1);
        ends.expires = 100;
        let opened = map(&[(500, 501, &[ends])]);
        let at = |map, seconds| (map, BootSeconds(seconds));
        let empty = MapState::default();
        assert_eq!(changes(at(&empty, 0), at(&opened, 50)), Changes { opened: 1, closed: 0 });
        assert_eq!(changes(at(&opened, 50), at(&opened, 100)), Changes { opened: 0, closed: 1 });
        assert_eq!(changes(at(&opened, 100), at(&empty, 200)), Changes::default());
    }

    #[test]
    fn random_policies_change_as_every_single_port_says() {
        let mut seen = Changes::default();
        for seed in 0..60 {
            let (before, after) = (Case::new(2 * seed, 0).map, Case::new(2 * seed + 1, 0).map);
            let mut expected = Changes::default();
            let keys: BTreeSet<&EdgeKey> = before.edges.keys().chain(after.edges.keys()).collect();
            // All ports beside which anything begins or ends, for any pair.
            let ranges = [&before, &after].into_iter().flat_map(|map| map.edges.keys().flat_map(|key| map.ranges(key)));
            let around = |port: u16| [port.saturating_sub(1), port, port.saturating_add(1)];
            let ports: BTreeSet<u16> = ranges.flat_map(|r| [r.lo, r.hi]).flat_map(around).collect();
            for key in keys {
                // Whoever no rule names stands for `any`.
                let end = |id, stranger| if id == IdentityId::ANY { IdentityId(stranger) } else { id };
                let (from, to) = (end(key.from, 0x7001), end(key.to, 0x7002));
                let (mut opened, mut closed) = (false, false);
                for proto in [proto::TCP, proto::UDP, proto::ICMP, proto::SCTP, 47] {
                    for &port in &ports {
                        let flow = Flow { from, to, proto, port, direction: Direction::Egress };
                        let allow = |map| decide(map, &flow, &BootSeconds(0)).allow;
                        opened |= allow(&after) && !allow(&before);
                        closed |= allow(&before) && !allow(&after);
                    }
                }
                expected.opened += usize::from(opened);
                expected.closed += usize::from(closed);
            }
            assert_eq!(changes((&before, NEVER), (&after, NEVER)), expected, "seed {seed}");
            seen.opened += expected.opened;
            seen.closed += expected.closed;
        }
        assert!(seen.opened > 100 && seen.closed > 100, "{seen:?}");
    }

    #[test]
    fn a_hundred_thousand_edges_are_compared_quickly() {
        const EDGES: u64 = 100_000;
        let build = |port| {
            let mut map = MapState::default();
            for n in 0..EDGES {
                let ranges = [range(port, port, level::ALLOW, 1), Range::default(), Range::default()];
                let entry = EdgeEntry { count: 1, ranges, ..EdgeEntry::default() };
                map.edges.insert(EdgeKey { from: IdentityId(500 + n % 1000), to: IdentityId(9_000 + n / 1000) }, entry);
            }
            map
        };
        let (a, b) = (build(80), build(81));
        for (after, expected) in [(&a, 0), (&b, 100_000)] {
            let start = Instant::now();
            assert_eq!(changes((&a, NEVER), (after, NEVER)), Changes { opened: expected, closed: expected });
            println!("{EDGES} edges, {expected} of them changed: {:?}", start.elapsed());
        }
    }
}
