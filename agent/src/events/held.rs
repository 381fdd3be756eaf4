//! Denials of ends that nobody knows yet, held for a moment: who they are may be told just behind their first packet. Pure.
//!
//! An address in a range of workloads belongs to one of them, and this host may not have heard yet to which. Its calls are
//! dropped, and tried again: what passes a second later is no denial that anybody has to look at. If it becomes known in
//! time whose the address is, and policy allows the call, the denial is settled: it is counted, and no record tells of it.
//!
//! Source: policy.md, section 7; events.md, section 3.2.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use agent_common::{
    layout::{DenyKey, DenyStat, KnownBy},
    verdict::Reason,
};

use super::{
    record::{DenyEvent, Kind},
    windows::WINDOW_MAX_MS,
};

/// How long a denial waits for an identity.
pub const HOLD_MS: u64 = 5_000;
/// Denials that wait. One more is told at once.
pub const HELD_MAX: usize = 4_096;

const NS_PER_MS: u64 = 1_000_000;

/// The denials that wait, and what was settled of those that did.
#[derive(Debug, Default)]
pub struct Held {
    /// Until when, boot clock; in this order.
    waiting: VecDeque<(u64, DenyKey, Arc<DenyEvent>)>,
    /// When a key was settled: its repeats until then are, too. An entry goes with the row of its key, and where the
    /// kernel had no room for one, with the longest window.
    settled: HashMap<DenyKey, u64>,
}

impl Held {
    /// Holds a denial, or gives it back: it is to be told at once.
    pub fn hold(&mut self, now_ns: u64, key: DenyKey, event: Arc<DenyEvent>) -> Option<Arc<DenyEvent>> {
        let is_nobodys = matches!(event.reason, Reason::UnknownCaller | Reason::UnknownTarget);
        let waits = is_nobodys && event.kind == Kind::First && event.known_by == Some(KnownBy::Address);
        if !waits || self.waiting.len() >= HELD_MAX {
            return Some(event);
        }
        self.waiting.push_back((now_ns.saturating_add(HOLD_MS * NS_PER_MS), key, event));
        None
    }

    /// Takes out the denials that have waited long enough: those that `settles` names are settled, and counted; the others
    /// are to be told.
    pub fn due(&mut self, now_ns: u64, settles: impl Fn(&DenyEvent) -> bool) -> (u64, Vec<Arc<DenyEvent>>) {
        self.settled.retain(|_, at| now_ns.saturating_sub(*at) <= WINDOW_MAX_MS * NS_PER_MS);
        let mut told = Vec::new();
        let mut settled = 0;
        while self.waiting.front().is_some_and(|(until, ..)| *until <= now_ns) {
            let Some((_, key, event)) = self.waiting.pop_front() else { break };
            if settles(&event) {
                settled += event.count;
                self.settled.insert(key, now_ns);
            } else {
                told.push(event);
            }
        }
        (settled, told)
    }

    /// Takes out all of them, to be told: nobody will come back to them.
    pub fn all(&mut self) -> impl Iterator<Item = Arc<DenyEvent>> {
        self.waiting.drain(..).map(|(_, _, event)| event)
    }

    /// Says whether the repeats in a row that was taken are settled with the first of their key. To be asked about every
    /// row, those without repeats too.
    pub fn settles(&mut self, key: &DenyKey, stat: &DenyStat) -> bool {
        self.settled.remove(key).is_some_and(|at| stat.last_ns <= at)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::events::{decode::decode, testing};

    const SECOND: u64 = 1_000 * NS_PER_MS;

    fn unknown(port: u16) -> (DenyKey, Arc<DenyEvent>) {
        let record = agent_common::layout::DenyRecord { peer_port: port, ..testing::record() };
        let key = DenyKey { port, ..decode(record.as_bytes()).unwrap().key };
        let event = DenyEvent { reason: Reason::UnknownCaller, ..testing::event() };
        (key, Arc::new(event))
    }

    #[test]
    fn a_denial_waits_for_five_seconds_and_is_then_settled_or_told() {
        let mut held = Held::default();
        let (key, event) = unknown(1);
        let (other, told) = unknown(2);
        assert_eq!(held.hold(0, key, Arc::clone(&event)), None);
        assert_eq!(held.hold(SECOND, other, Arc::clone(&told)), None);
        assert_eq!(held.due(5 * SECOND - 1, |_| true), (0, vec![]));
        assert_eq!(held.due(5 * SECOND, |_| true), (1, vec![]));
        assert_eq!(held.due(6 * SECOND, |_| false), (0, vec![told]));
        // Repeats are settled with their first, up to that moment, and once.
        let row = |last_ns| DenyStat { count: 3, last_ns, ..DenyStat::default() };
        assert!(!held.settles(&other, &row(0)));
        assert!(held.settles(&key, &row(4 * SECOND)) && !held.settles(&key, &row(4 * SECOND)));
        held.settled.insert(key, 5 * SECOND);
        assert!(!held.settles(&key, &row(6 * SECOND)), "it was denied again afterwards");
        // Without a row.
        held.settled.insert(key, 5 * SECOND);
        held.due((5 + 300) * SECOND, |_| false);
        assert_eq!(held.settled.len(), 1);
        held.due((5 + 301) * SECOND, |_| false);
        assert_eq!(held.settled.len(), 0);
    }

    #[test]
    fn what_is_known_or_too_much_is_told_at_once() {
        let mut held = Held::default();
        let (key, event) = unknown(1);
        for other in [
            DenyEvent { reason: Reason::NoRule, ..(*event).clone() },
            DenyEvent { reason: Reason::UnknownSelf, ..(*event).clone() },
            DenyEvent { known_by: Some(KnownBy::Socket), ..(*event).clone() },
            DenyEvent { kind: Kind::Repeat { window_ms: 1 }, ..(*event).clone() },
        ] {
            assert!(held.hold(0, key, Arc::new(other)).is_some());
        }
        for _ in 0..HELD_MAX {
            assert_eq!(held.hold(0, key, Arc::clone(&event)), None);
        }
        assert!(held.hold(0, key, event).is_some());
        assert_eq!(held.all().count(), HELD_MAX);
    }
}
