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
    match unknown_end(flow) {
        Some(reason) => Decision::deny(reason),
        None => best(policy, flow, clock).decision(),
    }
}

/// What speaks most for or against a flow, as one number: what crosses the border of a function that a verifier checks
/// by itself.
///
/// Shape: from the lowest bit 19 bits of the rule, 3 of the level, one that says that a range which allows has run out;
/// in the upper half the boot second until which it holds, 0 = as long as the policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct Best(pub u64);

const RULE_BITS: u32 = 19;
const EXPIRED: u64 = 1 << (RULE_BITS + 3);
/// Most rules of a policy, which have numbers from 1 on.
pub const RULES_MAX: u32 = (1 << RULE_BITS) - 1;

impl Best {
    /// Nothing: the default.
    const NONE: Self = Self((NO_LEVEL as u64) << RULE_BITS);

    #[inline(always)]
    const fn of(range: &Range) -> Self {
        Self((range.expires as u64) << 32 | (range.level() as u64) << RULE_BITS | (range.rule & RULES_MAX) as u64)
    }

    /// A lower level is better, and within a level a lower rule.
    #[inline(always)]
    const fn rank(self) -> u64 {
        self.0 & (EXPIRED - 1)
    }

    /// Takes the other one if that is better: as if the rules of both flows were one's.
    #[inline(always)]
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        let expired = (self.0 | other.0) & EXPIRED;
        let best = if other.rank() < self.rank() { other.0 } else { self.0 };
        Self(best | expired)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    const fn level(self) -> u8 {
        (self.0 >> RULE_BITS & level::MASK as u64) as u8
    }

    /// What follows from it.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "19 bits, and 32")]
    pub const fn decision(self) -> Decision {
        let (allow, reason) = match self.level() {
            level::OVERRIDE_DENY => (false, Reason::OverrideDeny),
            level::OVERRIDE_ALLOW | level::ALLOW => (true, Reason::Allowed),
            NO_LEVEL if self.0 & EXPIRED != 0 => (false, Reason::Expired),
            NO_LEVEL => (false, Reason::NoRule),
            _ => (false, Reason::DenyRule),
        };
        let (rule, until) = ((self.0 & RULES_MAX as u64) as u32, (self.0 >> 32) as u32);
        Decision { allow, reason, rule: RuleNumber(rule), valid_until: BootSeconds(until) }
    }
}

/// Looks for what decides a flow whose ends are both known.
#[inline(always)]
#[must_use]
pub fn best(policy: &impl PolicyMap, flow: &Flow, clock: &impl Clock) -> Best {
    // One key for all, which is on the stack.
    let mut key = EdgeKey { from: flow.from, to: flow.to };
    // An exact key is self-contained, so a hit is final whether or not one of its ranges matches.
    if let Some(best) = for_key(policy, &key, flow, clock) {
        return best;
    }
    // One by one: verifiers before Linux 6.6 refuse the shape that the compiler gives to a loop over them.
    key.to = IdentityId::ANY;
    let of_caller = for_key(policy, &key, flow, clock).unwrap_or(Best::NONE);
    key.from = IdentityId::ANY;
    let of_all = for_key(policy, &key, flow, clock).unwrap_or(Best::NONE);
    key.to = flow.to;
    of_caller.or(of_all).or(for_key(policy, &key, flow, clock).unwrap_or(Best::NONE))
}

/// Looks at one key; none if there is no such edge.
#[inline(always)]
fn for_key(policy: &impl PolicyMap, key: &EdgeKey, flow: &Flow, clock: &impl Clock) -> Option<Best> {
    let entry = policy.edge(key)?;
    let found = first_match(policy, entry, flow, clock, true);
    if found != Best::NONE {
        return Some(found);
    }
    // What would match if nothing ever ran out.
    let level = first_match(policy, entry, flow, clock, false).level();
    let ran_out = matches!(level, level::ALLOW | level::OVERRIDE_ALLOW);
    Some(if ran_out { Best(Best::NONE.0 | EXPIRED) } else { Best::NONE })
}

/// A level that no range has; above every level.
const NO_LEVEL: u8 = level::MASK;

/// Returns why no rule can match, if an end has no identity.
#[inline(always)]
#[must_use]
pub const fn unknown_end(flow: &Flow) -> Option<Reason> {
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
fn first_match(policy: &impl PolicyMap, entry: &EdgeEntry, flow: &Flow, clock: &impl Clock, expiry: bool) -> Best {
    let count = entry.count as usize;
    for i in 0..INLINE_RANGES {
        if i >= count {
            return Best::NONE;
        }
        if matches(&entry.ranges[i], flow, clock, expiry) {
            return Best::of(&entry.ranges[i]);
        }
    }
    if count <= INLINE_RANGES {
        return Best::NONE;
    }
    // A spill that is missing hides ranges. Those may be denials, so the answer is a denial.
    let Some(spill) = policy.spill(entry.spill) else {
        return Best((level::DENY as u64) << RULE_BITS);
    };
    let rest = count - INLINE_RANGES;
    for i in 0..SPILL_RANGES {
        if i >= rest {
            return Best::NONE;
        }
        if matches(&spill.ranges[i], flow, clock, expiry) {
            return Best::of(&spill.ranges[i]);
        }
    }
    Best::NONE
}

#[inline(always)]
fn matches(range: &Range, flow: &Flow, clock: &impl Clock, expiry: bool) -> bool {
    (range.proto == 0 || range.proto == flow.proto)
        && flow.port >= range.lo
        && flow.port <= range.hi
        && if expiry { range.expires == 0 || clock.boot_seconds().0 < range.expires } else { range.level() & 1 != 0 }
}
