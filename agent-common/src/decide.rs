//! THE decision: compiled policy, a flow and a time in; allow or deny, why and by which rule out.

use crate::{
    flow::{Direction, Flow},
    id::{BootSeconds, IdentityId, RuleNumber},
    layout::{EdgeEntry, EdgeKey, INLINE_RANGES, Range, SPILL_RANGES, SpillEntry, level},
    verdict::{Decision, Reason},
};

/// Compiled policy, wherever it is kept: the pinned maps, or a `MapState` in memory.
pub trait PolicyMap {
    /// Returns the entry of a pair, if there is one.
    fn edge(&self, key: &EdgeKey) -> Option<&EdgeEntry>;
    /// Returns the ranges of an entry beyond the third.
    fn spill(&self, index: u32) -> Option<&SpillEntry>;
}

/// Tells the time, and only when asked: reading the clock costs as much as a look-up.
pub trait Clock {
    /// Returns the seconds on the boot clock.
    fn boot_seconds(&self) -> BootSeconds;
}

impl Clock for BootSeconds {
    fn boot_seconds(&self) -> BootSeconds {
        *self
    }
}

/// Returns the decision for `flow`, without regard to modes.
///
/// 0. Deny by an override-deny that matches.
/// 1. Otherwise allow by an override-allow that matches.
/// 2. Otherwise deny by a deny rule that matches.
/// 3. Otherwise allow by an allow rule that matches.
/// 4. Otherwise deny: default.
///
/// Rules have no order; within a level the lowest rule number is named. No rule matches an end that
/// is `unknown`. Source: policy.md, "The decision" and "Look-up". Built-ins are taken by the caller: `self`
/// before, [`crate::builtin`] after.
/// Cost: at most four look-ups, whatever the size of the policy.
#[inline(always)]
pub fn decide(policy: &impl PolicyMap, flow: &Flow, clock: &impl Clock) -> Decision {
    if let Some(reason) = unknown_end(flow) {
        return Decision::deny(reason);
    }
    // An exact key is self-contained, so a hit is final whether or not one of its ranges matches.
    if let Some(entry) = policy.edge(&EdgeKey { from: flow.from, to: flow.to }) {
        return match first_match(policy, entry, flow, clock, true) {
            Some(range) => decision(&range),
            None => Decision::deny(no_match(first_match(policy, entry, flow, clock, false))),
        };
    }
    let (mut best, mut expired) = (NO_RANGE, false);
    // One by one: verifiers before Linux 6.6 refuse the shape that the compiler gives to a loop over them.
    for_key(policy, EdgeKey { from: flow.from, to: IdentityId::ANY }, flow, clock, &mut best, &mut expired);
    for_key(policy, EdgeKey { from: IdentityId::ANY, to: flow.to }, flow, clock, &mut best, &mut expired);
    for_key(policy, EdgeKey { from: IdentityId::ANY, to: IdentityId::ANY }, flow, clock, &mut best, &mut expired);
    match best.level() {
        NO_LEVEL if expired => Decision::deny(Reason::Expired),
        NO_LEVEL => Decision::deny(Reason::NoRule),
        _ => decision(&best),
    }
}

/// Looks at one key with a wildcard: keeps its range if that is better, and notes if only time speaks against one.
#[inline(always)]
fn for_key(
    policy: &impl PolicyMap,
    key: EdgeKey,
    flow: &Flow,
    clock: &impl Clock,
    best: &mut Range,
    expired: &mut bool,
) {
    let Some(entry) = policy.edge(&key) else {
        return;
    };
    match first_match(policy, entry, flow, clock, true) {
        Some(range) if better(&range, best) => *best = range,
        Some(_) => {}
        None => *expired |= matches!(no_match(first_match(policy, entry, flow, clock, false)), Reason::Expired),
    }
}

/// A level that no range has; above every level.
const NO_LEVEL: u8 = level::MASK;
const NO_RANGE: Range = Range { proto: 0, flags: NO_LEVEL, lo: 0, hi: 0, reserved: 0, rule: 0, expires: 0 };

#[inline(always)]
const fn better(a: &Range, b: &Range) -> bool {
    a.level() < b.level() || (a.level() == b.level() && a.rule < b.rule)
}

/// Returns why no rule can match, if an end has no identity.
#[inline(always)]
const fn unknown_end(flow: &Flow) -> Option<Reason> {
    match (flow.from.is_unknown(), flow.to.is_unknown(), flow.direction) {
        (true, _, Direction::Egress) | (_, true, Direction::Ingress) => Some(Reason::UnknownSelf),
        (true, _, Direction::Ingress) => Some(Reason::UnknownCaller),
        (_, true, Direction::Egress) => Some(Reason::UnknownTarget),
        (false, false, _) => None,
    }
}

/// Returns the first range that matches, which is the best one, because ranges are sorted by (level,
/// rule). With `expiry` false only ranges that allow match, and those that ran out as well.
///
/// Carries nothing from one range to the next: the verifier then sees one state, not one for each path.
#[inline(always)]
fn first_match(
    policy: &impl PolicyMap,
    entry: &EdgeEntry,
    flow: &Flow,
    clock: &impl Clock,
    expiry: bool,
) -> Option<Range> {
    let count = entry.count as usize;
    for i in 0..INLINE_RANGES {
        if i >= count {
            return None;
        }
        if matches(&entry.ranges[i], flow, clock, expiry) {
            return Some(entry.ranges[i]);
        }
    }
    if count <= INLINE_RANGES {
        return None;
    }
    // A spill that is missing hides ranges. Those may be denials, so the answer is a denial.
    let Some(spill) = policy.spill(entry.spill) else {
        return Some(Range { flags: level::DENY, ..NO_RANGE });
    };
    let rest = count - INLINE_RANGES;
    for i in 0..SPILL_RANGES {
        if i >= rest {
            return None;
        }
        if matches(&spill.ranges[i], flow, clock, expiry) {
            return Some(spill.ranges[i]);
        }
    }
    None
}

#[inline(always)]
fn matches(range: &Range, flow: &Flow, clock: &impl Clock, expiry: bool) -> bool {
    (range.proto == 0 || range.proto == flow.proto)
        && flow.port >= range.lo
        && flow.port <= range.hi
        && if expiry { range.expires == 0 || clock.boot_seconds().0 < range.expires } else { range.level() & 1 != 0 }
}

/// Why nothing matched, given what would allow the flow if nothing ever ran out.
#[inline(always)]
const fn no_match(without_expiry: Option<Range>) -> Reason {
    match without_expiry {
        Some(range) if matches!(range.level(), level::ALLOW | level::OVERRIDE_ALLOW) => Reason::Expired,
        _ => Reason::NoRule,
    }
}

#[inline(always)]
const fn decision(range: &Range) -> Decision {
    let (allow, reason) = match range.level() {
        level::OVERRIDE_DENY => (false, Reason::OverrideDeny),
        level::OVERRIDE_ALLOW | level::ALLOW => (true, Reason::Allowed),
        _ => (false, Reason::DenyRule),
    };
    Decision { allow, reason, rule: RuleNumber(range.rule), valid_until: BootSeconds(range.expires) }
}
