//! The ranges of one edge: merged, pruned, sorted.

use agent_common::layout::Range;

/// Returns the ranges sorted by (level, rule), with no more of them than the decision needs.
///
/// Ranges of one rule that touch become one. A range that an earlier one covers for ever is left out:
/// it can never decide.
pub(super) fn tidy(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by_key(|range| (range.level(), range.rule, range.proto, range.lo, range.hi));
    let mut tidy: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        if let Some(last) = tidy.last_mut().filter(|last| joins(last, &range)) {
            last.hi = last.hi.max(range.hi);
        } else if !tidy.iter().any(|earlier| covers_for_ever(earlier, &range)) {
            tidy.push(range);
        }
    }
    tidy
}

/// Says whether two ranges of one rule, in order, are one.
fn joins(a: &Range, b: &Range) -> bool {
    (a.flags, a.rule, a.expires, a.proto) == (b.flags, b.rule, b.expires, b.proto)
        && u32::from(b.lo) <= u32::from(a.hi) + 1
}

/// Says whether `later` is never reached: the earlier one matches whatever it matches, for as long.
fn covers_for_ever(earlier: &Range, later: &Range) -> bool {
    let lasts = earlier.expires == 0 || (earlier.rule == later.rule && earlier.expires == later.expires);
    lasts && (earlier.proto == 0 || earlier.proto == later.proto) && earlier.lo <= later.lo && later.hi <= earlier.hi
}

#[cfg(test)]
mod tests {
    use agent_common::layout::level;

    use super::*;

    fn range(rule: u32, proto: u8, lo: u16, hi: u16) -> Range {
        Range { rule, proto, lo, hi, flags: level::ALLOW, ..Range::default() }
    }

    #[test]
    fn ranges_of_one_rule_that_touch_become_one() {
        let ranges = vec![range(1, 6, 80, 90), range(1, 6, 91, 95), range(1, 6, 70, 85), range(1, 17, 96, 97)];
        assert_eq!(tidy(ranges), [range(1, 6, 70, 95), range(1, 17, 96, 97)]);
        let apart = vec![range(1, 6, 80, 90), range(2, 6, 91, 95)];
        assert_eq!(tidy(apart.clone()), apart);
        assert_eq!(tidy(vec![range(1, 6, 1, u16::MAX), range(1, 6, u16::MAX, u16::MAX)]).len(), 1);
    }

    #[test]
    fn what_can_never_decide_is_left_out_and_nothing_else() {
        let deny = Range { flags: level::DENY, ..range(9, 0, 0, u16::MAX) };
        assert_eq!(tidy(vec![range(1, 6, 80, 80), deny]), [deny]);
        let ends = Range { expires: 5, ..deny };
        assert_eq!(tidy(vec![range(1, 6, 80, 80), ends]).len(), 2, "the deny ends, and then the allow decides");
        let other = Range { proto: 17, ..deny };
        assert_eq!(tidy(vec![range(1, 6, 80, 80), other]).len(), 2);
    }
}
