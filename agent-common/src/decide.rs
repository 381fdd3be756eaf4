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
/// is `unknown`. Source: policy.md, "The decision" and "Look-up". Built-ins are taken by the caller.
/// Cost: at most four look-ups, whatever the size of the policy.
#[inline(always)]
pub fn decide(policy: &impl PolicyMap, flow: &Flow, clock: &impl Clock) -> Decision {
    if let Some(reason) = unknown_end(flow) {
        return Decision::deny(reason);
    }
    // An exact key is self-contained, so a hit is final whether or not one of its ranges matches.
    if let Some(entry) = policy.edge(&EdgeKey { from: flow.from, to: flow.to }) {
        let mut best = Best::NONE;
        best.scan(policy, entry, flow, clock);
        return best.decision();
    }
    let mut best = Best::NONE;
    if let Some(entry) = policy.edge(&EdgeKey { from: flow.from, to: IdentityId::ANY }) {
        best.scan(policy, entry, flow, clock);
    }
    if let Some(entry) = policy.edge(&EdgeKey { from: IdentityId::ANY, to: flow.to }) {
        best.scan(policy, entry, flow, clock);
    }
    if let Some(entry) = policy.edge(&EdgeKey { from: IdentityId::ANY, to: IdentityId::ANY }) {
        best.scan(policy, entry, flow, clock);
    }
    best.decision()
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

/// The best range so far: the lowest (level, rule).
struct Best {
    level: u8,
    rule: u32,
    expires: u32,
    /// An allow rule matched but for its expiry.
    expired: bool,
}

impl Best {
    /// Above every level.
    const NO_LEVEL: u8 = u8::MAX;
    const NONE: Self = Self { level: Self::NO_LEVEL, rule: 0, expires: 0, expired: false };

    #[inline(always)]
    fn scan(&mut self, policy: &impl PolicyMap, entry: &EdgeEntry, flow: &Flow, clock: &impl Clock) {
        let count = entry.count as usize;
        for (i, range) in entry.ranges.iter().enumerate() {
            if i >= count || self.take(range, flow, clock) {
                return;
            }
        }
        if count <= INLINE_RANGES {
            return;
        }
        // A spill that is missing hides ranges. Those may be denials, so nothing of the entry counts.
        let Some(spill) = policy.spill(entry.spill) else {
            *self = Self { level: level::OVERRIDE_DENY, ..Self::NONE };
            return;
        };
        let rest = count - INLINE_RANGES;
        for i in 0..SPILL_RANGES {
            if i >= rest || self.take(&spill.ranges[i], flow, clock) {
                return;
            }
        }
    }

    /// Takes a range if it matches and is better; says whether the scan of this entry is over.
    #[inline(always)]
    fn take(&mut self, range: &Range, flow: &Flow, clock: &impl Clock) -> bool {
        if (range.proto != 0 && range.proto != flow.proto) || flow.port < range.lo || flow.port > range.hi {
            return false;
        }
        let level = range.level();
        if range.expires != 0 && clock.boot_seconds().0 >= range.expires {
            self.expired |= level == level::ALLOW || level == level::OVERRIDE_ALLOW;
            return false;
        }
        if level < self.level || (level == self.level && range.rule < self.rule) {
            self.level = level;
            self.rule = range.rule;
            self.expires = range.expires;
        }
        true
    }

    #[inline(always)]
    const fn decision(&self) -> Decision {
        let (allow, reason) = match self.level {
            level::OVERRIDE_DENY => (false, Reason::OverrideDeny),
            level::DENY => (false, Reason::DenyRule),
            level::OVERRIDE_ALLOW | level::ALLOW => (true, Reason::Allowed),
            _ if self.expired => (false, Reason::Expired),
            _ => (false, Reason::NoRule),
        };
        Decision { allow, reason, rule: RuleNumber(self.rule), valid_until: BootSeconds(self.expires) }
    }
}
