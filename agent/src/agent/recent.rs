//! What happened in the last hour: sums that were looked at once a minute.

use std::collections::VecDeque;

use agent_common::layout::DenyCounter;

use super::core::Core;
use crate::{clock, control::wire::Recent, datapath::DatapathError};

/// How far back is told, ns.
const HOUR_NS: u64 = 3_600_000_000_000;
/// Between two looks, ns.
const MINUTE_NS: u64 = 60_000_000_000;

/// Sums since this host started, which never fall.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Sums {
    /// Denials, would-be denials included.
    pub(super) denied: u64,
    /// Would-be denials.
    pub(super) would_deny: u64,
    /// Denials without a record.
    pub(super) lost: u64,
}

/// The sums of the last hour, oldest first; at most 62.
#[derive(Debug, Default)]
pub(super) struct History {
    looks: VecDeque<(u64, Sums)>,
}

impl History {
    /// Keeps the sums of a moment, if the last look is a minute old. `now_ns` is on the boot clock.
    pub(super) fn look(&mut self, now_ns: u64, sums: Sums) {
        if self.looks.back().is_some_and(|(at, _)| now_ns.saturating_sub(*at) < MINUTE_NS) {
            return;
        }
        self.looks.push_back((now_ns, sums));
        // The oldest is the last one from before the hour.
        while self.looks.get(1).is_some_and(|(at, _)| now_ns.saturating_sub(*at) >= HOUR_NS) {
            self.looks.pop_front();
        }
    }

    /// What happened since an hour ago, or since the first look.
    pub(super) fn until(&self, now_ns: u64, sums: Sums) -> Recent {
        let first = self.looks.iter().find(|(at, _)| now_ns.saturating_sub(*at) < HOUR_NS + MINUTE_NS);
        let (at, before) = first.copied().unwrap_or((now_ns, sums));
        Recent {
            seconds: now_ns.saturating_sub(at) / 1_000_000_000,
            denied: sums.denied.saturating_sub(before.denied),
            would_deny: sums.would_deny.saturating_sub(before.would_deny),
            lost: sums.lost.saturating_sub(before.lost),
        }
    }
}

impl Core {
    /// Looks at the sums, on a tick.
    pub(super) fn look_at_sums(&mut self) -> Result<(), DatapathError> {
        let sums = self.sums()?;
        self.history.look(clock::now().boot_ns, sums);
        Ok(())
    }

    pub(super) fn sums(&self) -> Result<Sums, DatapathError> {
        let (base, lost) = {
            let ledger = self.pipeline.ledger().lock();
            (ledger.sums().base, ledger.accounting(clock::now().wall).lost.total())
        };
        let counts = self.datapath.deny_counts()?;
        let count = |c: DenyCounter| base[c as usize] + counts[c as usize];
        Ok(Sums { denied: count(DenyCounter::Denied), would_deny: count(DenyCounter::WouldDeny), lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(denied: u64) -> Sums {
        Sums { denied, would_deny: denied / 2, lost: 0 }
    }

    #[test]
    fn an_hour_is_told_and_no_more_is_kept() {
        let mut history = History::default();
        assert_eq!(history.until(5, sums(7)), Recent::default(), "nothing is known before the first look");
        // One denial a second for three hours, looked at every second.
        for second in 0..10_800 {
            history.look(second * 1_000_000_000, sums(second));
            let recent = history.until(second * 1_000_000_000, sums(second));
            assert_eq!((recent.denied, recent.lost), (recent.seconds, 0));
            assert!(recent.seconds == second || (3_600..3_660).contains(&recent.seconds), "{second}: {recent:?}");
            assert!(history.looks.len() <= 62, "{}", history.looks.len());
        }
    }
}
