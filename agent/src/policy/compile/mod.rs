//! From a valid policy to the entries of the maps.
//!
//! Groups are expanded, `any` is not. Exact keys are self-contained: every wildcard rule that also
//! applies to the pair is merged in, so that a hit needs one look-up. What it must mean is
//! [`super::spec`]; the two share no code.

mod cast;
mod prefixes;
mod ranges;

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{
    id::IdentityId,
    layout::{EdgeEntry, EdgeKey, INLINE_RANGES, Range, SPILL_RANGES, SpillEntry, level},
};

use self::cast::Cast;
use super::{
    finding::{Code, Finding, Mark},
    map_state::MapState,
    model::{Action, Place, Policy, Rule, SharedPeers},
    peers::Peers,
    resolvers::Resolvers,
};

/// Most edges that one rule may open. One more is E15: it is a group of groups that nobody meant.
pub const EDGES_PER_RULE_MAX: usize = 100_000;
/// Most ranges of one edge; one more is E15. What fits an entry and its spill.
pub const RANGES_PER_EDGE_MAX: usize = INLINE_RANGES + SPILL_RANGES;

/// What compiling needs beside the policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompileInput<'a> {
    /// What must be added to the boot clock to get Unix time, in seconds, rounded up: so no rule
    /// outlives what was written. 0 makes the boot clock of the result the Unix clock.
    pub boot_to_unix: i64,
    /// Rules of `revoke` and `break-glass`.
    pub overrides: &'a [Rule],
    /// Whom the built-in `dns` lets every workload ask; without them it is off.
    pub resolvers: Option<&'a Resolvers>,
    /// Whose answers tell the addresses of DNS names.
    pub answers: Option<&'a Resolvers>,
    /// Workloads of other hosts, by address.
    pub peers: Option<&'a Peers>,
}

/// Compiles a policy.
///
/// # Errors
///
/// E13 if two names have one number, E15 if an edge or a rule is over its limit; E02, E03 or E05 if an
/// override no longer fits the policy it was written for.
pub fn compile(policy: &Policy, input: &CompileInput<'_>) -> Result<MapState, Vec<Finding>> {
    let mut rules: Vec<&Rule> = policy.rules.iter().chain(input.overrides).collect();
    rules.sort_by(|a, b| a.id.cmp(&b.id));
    let twice = rules.windows(2).filter(|pair| pair[0].id == pair[1].id);
    let twice: Vec<Finding> =
        twice.map(|pair| finding(Code::E02, pair[1], format!("two rules have the id `{}`", pair[1].id))).collect();
    if !twice.is_empty() {
        return Err(twice);
    }
    let cast = Cast::new(policy, &rules, input.peers)?;
    let raw = expand(policy, &cast, &rules, input.boot_to_unix)?;
    let (edges, spill) = entries(&raw, &cast, &rules)?;
    Ok(MapState {
        edges,
        spill,
        prefixes: cast.prefixes,
        dns_names: cast.dns_names,
        unknown_mode: Some(policy.mode_of_unknown()),
        resolvers: input.resolvers.cloned().unwrap_or_default(),
        answers: input.answers.cloned().unwrap_or_default(),
        peers: input.peers.cloned().unwrap_or_default(),
        named: BTreeMap::new(),
        rule_ids: rules.iter().map(|rule| rule.id.clone()).collect(),
        names: cast.names,
    })
}

/// Ranges by pair, before wildcards are merged into exact keys.
type Raw = BTreeMap<EdgeKey, Vec<Range>>;

/// `edges` and `spill`.
type Entries = (BTreeMap<EdgeKey, EdgeEntry>, Vec<SpillEntry>);

fn expand(policy: &Policy, cast: &Cast, rules: &[&Rule], boot_to_unix: i64) -> Result<Raw, Vec<Finding>> {
    let mut raw = Raw::new();
    let mut findings = Vec::new();
    for (number, rule) in (1_u32..).zip(rules) {
        let (Some(from), Some(to)) = (cast.ends(policy, &rule.from), cast.ends(policy, &rule.to)) else {
            let message = format!("rule `{}` names someone whom the policy does not know", rule.id);
            findings.push(finding(Code::E03, rule, message));
            continue;
        };
        let from: BTreeSet<IdentityId> = from.into_iter().map(|(from, _)| from).collect();
        let edges = from.len().saturating_mul(to.len());
        if edges > EDGES_PER_RULE_MAX {
            let message = format!("rule `{}` would open {edges} edges, and {EDGES_PER_RULE_MAX} are the most", rule.id);
            findings.push(finding(Code::E15, rule, message).help("split the group, or use `any`"));
            continue;
        }
        let shape = Range {
            flags: level_of(rule.action),
            rule: number,
            expires: boot_expiry(rule.expires, boot_to_unix),
            ..Range::default()
        };
        for (to, name) in to {
            let Some(ports) = rule.ports.iter().map(|spec| policy.ports_on(name, spec)).collect::<Option<Vec<_>>>()
            else {
                let message = format!("rule `{}` names a port that `{name}` does not have", rule.id);
                findings.push(finding(Code::E05, rule, message));
                break;
            };
            let is_closed = policy.workloads.get(name).is_some_and(|to| to.shared_peers == SharedPeers::Deny);
            let is_kept_out = is_closed && opens(&shape);
            for &from in from.iter().filter(|&&from| !(is_kept_out && cast.is_shared(from))) {
                let ranges = raw.entry(EdgeKey { from, to }).or_default();
                ranges.extend(ports.iter().map(|p| Range { proto: p.proto, lo: p.lo, hi: p.hi, ..shape }));
            }
        }
    }
    // A rule to `any` is one to them as well: an entry of the pair's own keeps it out.
    let to_any: Vec<IdentityId> =
        raw.keys().filter(|key| key.to == IdentityId::ANY && cast.is_shared(key.from)).map(|key| key.from).collect();
    for from in to_any {
        for &to in cast.closed() {
            raw.entry(EdgeKey { from, to }).or_default();
        }
    }
    if findings.is_empty() { Ok(raw) } else { Err(findings) }
}

const fn level_of(action: Action) -> u8 {
    match action {
        Action::OverrideDeny => level::OVERRIDE_DENY,
        Action::OverrideAllow => level::OVERRIDE_ALLOW,
        Action::Deny => level::DENY,
        Action::Allow => level::ALLOW,
    }
}

/// Returns the boot second from which a rule no longer matches; 0 = never.
///
/// A rule that ended before the boot ends in second 1, because 0 would mean that it never ends. One
/// that ends after the clock of the kernel does ends with it.
fn boot_expiry(expires: Option<i64>, boot_to_unix: i64) -> u32 {
    expires.map_or(0, |unix| {
        let boot = unix.saturating_sub(boot_to_unix).clamp(1, i64::from(u32::MAX));
        u32::try_from(boot).unwrap_or(u32::MAX)
    })
}

fn entries(raw: &Raw, cast: &Cast, rules: &[&Rule]) -> Result<Entries, Vec<Finding>> {
    let mut edges = BTreeMap::new();
    let mut spill = Vec::new();
    let mut too_long: Option<(&EdgeKey, Vec<Range>)> = None;
    for key in raw.keys() {
        let mut ranges = Vec::new();
        for wider in applying(key) {
            let is_shut = wider.to != key.to && cast.is_shared(wider.from) && cast.closed().contains(&key.to);
            let ranges_of = raw.get(&wider).into_iter().flatten();
            ranges.extend(ranges_of.filter(|range| !(is_shut && opens(range))).copied());
        }
        let ranges = ranges::tidy(ranges);
        if ranges.len() > RANGES_PER_EDGE_MAX {
            // The longest says most about what is wrong; a thousand of them would say no more.
            if too_long.as_ref().is_none_or(|(_, longest)| longest.len() < ranges.len()) {
                too_long = Some((key, ranges));
            }
            continue;
        }
        edges.insert(*key, entry(&ranges, &mut spill));
    }
    match too_long {
        None => Ok((edges, spill)),
        Some((_, ranges)) => Err(vec![too_many_ranges(&ranges, rules)]),
    }
}

/// Says whether a range allows what it matches.
const fn opens(range: &Range) -> bool {
    matches!(range.level(), level::ALLOW | level::OVERRIDE_ALLOW)
}

/// Returns the keys whose rules apply to a pair: itself, and for an exact one every wildcard.
fn applying(key: &EdgeKey) -> Vec<EdgeKey> {
    let EdgeKey { from, to } = *key;
    if from == IdentityId::ANY || to == IdentityId::ANY {
        return vec![*key];
    }
    let any = IdentityId::ANY;
    vec![*key, EdgeKey { from, to: any }, EdgeKey { from: any, to }, EdgeKey { from: any, to: any }]
}

fn entry(ranges: &[Range], spill: &mut Vec<SpillEntry>) -> EdgeEntry {
    let mut entry = EdgeEntry { count: u8::try_from(ranges.len()).unwrap_or(u8::MAX), ..EdgeEntry::default() };
    for (slot, range) in entry.ranges.iter_mut().zip(ranges) {
        *slot = *range;
    }
    if ranges.len() > INLINE_RANGES {
        entry.spill = u32::try_from(spill.len()).unwrap_or(u32::MAX);
        let mut rest = SpillEntry::default();
        for (slot, range) in rest.ranges.iter_mut().zip(&ranges[INLINE_RANGES..]) {
            *slot = *range;
        }
        spill.push(rest);
    }
    entry
}

fn too_many_ranges(ranges: &[Range], rules: &[&Rule]) -> Finding {
    let mut numbers: Vec<u32> = ranges.iter().map(|range| range.rule).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let involved: Vec<&Rule> =
        numbers.iter().filter_map(|&n| rules.get((n as usize).checked_sub(1)?)).copied().collect();
    let message = format!("one edge has {} port ranges, and {RANGES_PER_EDGE_MAX} are the most", ranges.len());
    let mut places = involved.iter().map(|rule| (mark(&rule.place), format!("rule `{}` takes part", rule.id)));
    let mut finding = Finding::general(Code::E15, message).help("use ranges instead of single ports");
    finding.at = places.next().map(|(at, _)| at);
    // Enough to see the pattern.
    finding.also = places.take(4).collect();
    finding
}

fn finding(code: Code, rule: &Rule, message: String) -> Finding {
    Finding::new(code, mark(&rule.place), message)
}

fn mark(place: &Place) -> Mark {
    Mark { place: place.clone(), width: 1 }
}

#[cfg(test)]
mod tests;
