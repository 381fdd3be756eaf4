//! When the rows of `deny_seen` are taken out of the kernel, and what they then say. Pure.
//!
//! A window begins with the first denial of a key, which is told at once, and ends after its length:
//! 10 s, doubled after each window with repeats up to 5 min, reset by a quiet one. Only the length
//! lives here. The count stays in the kernel until the row is taken, so a crash between two sweeps
//! loses nothing. Once a second: [`Windows::due`], look up and delete those rows, [`Windows::taken`].
//!
//! Source: events.md, section 3.2.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use agent_common::{
    flow::Direction,
    layout::{DenyKey, DenyStat},
};
use uuid::Uuid;

use super::record::DenyEvent;

/// Length of the first window of a key.
pub const WINDOW_MIN_MS: u64 = 10_000;
/// Longest window.
pub const WINDOW_MAX_MS: u64 = 300_000;
/// Keys whose first record is remembered: the capacity of `deny_seen`. Beyond it, the repeats of a
/// key are told with what the key alone says.
pub const KEYS_MAX: usize = 65_536;

const NS_PER_MS: u64 = 1_000_000;

/// The keys with a window.
#[derive(Debug, Default)]
pub struct Windows {
    keys: HashMap<DenyKey, Window>,
}

#[derive(Debug)]
struct Window {
    length_ms: u64,
    /// When it was opened, or the one before it closed; boot clock.
    touched_ns: u64,
    series: Option<Uuid>,
    first: Option<Arc<DenyEvent>>,
}

/// The repeats of one key in one window.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCount {
    /// The key.
    pub key: DenyKey,
    /// Its row.
    pub stat: DenyStat,
    /// Length of the window.
    pub window_ms: u64,
    /// The series of its first record, if this agent made that.
    pub series: Option<Uuid>,
    /// The first record of the window, as an example for the rest.
    pub first: Option<Arc<DenyEvent>>,
}

impl Windows {
    /// Returns the series that a first denial of `key` goes on with, if an earlier window was busy.
    #[must_use]
    pub fn series(&self, key: &DenyKey) -> Option<Uuid> {
        self.keys.get(key)?.series
    }

    /// Remembers the first record of a window.
    pub fn opened(&mut self, now_ns: u64, key: DenyKey, first: Arc<DenyEvent>) {
        if let Some(window) = self.keys.get_mut(&key) {
            *window = Window {
                length_ms: window.length_ms,
                touched_ns: now_ns,
                series: Some(first.series),
                first: Some(first),
            };
        } else if self.keys.len() < KEYS_MAX {
            let window =
                Window { length_ms: WINDOW_MIN_MS, touched_ns: now_ns, series: Some(first.series), first: Some(first) };
            self.keys.insert(key, window);
        }
    }

    /// Returns the keys whose window has ended, in the order of `rows`: every row of `deny_seen`.
    pub fn due(&mut self, now_ns: u64, rows: &[(DenyKey, DenyStat)]) -> Vec<DenyKey> {
        self.forget_quiet(now_ns, rows);
        rows.iter()
            .filter(|(key, stat)| {
                let length_ms = self.keys.get(key).map_or(WINDOW_MIN_MS, |window| window.length_ms);
                now_ns.saturating_sub(stat.first_ns) >= length_ms * NS_PER_MS
            })
            .map(|(key, _)| *key)
            .collect()
    }

    /// Takes in rows that were deleted from the kernel and returns those with repeats, in their order.
    pub fn taken(&mut self, now_ns: u64, rows: &[(DenyKey, DenyStat)]) -> Vec<RowCount> {
        rows.iter().filter_map(|(key, stat)| self.close(now_ns, key, stat)).collect()
    }

    fn close(&mut self, now_ns: u64, key: &DenyKey, stat: &DenyStat) -> Option<RowCount> {
        if stat.count == 0 {
            self.keys.remove(key);
            return None;
        }
        let room = self.keys.len() < KEYS_MAX;
        let (window_ms, series, first) = match self.keys.get_mut(key) {
            Some(window) => {
                let length_ms = window.length_ms;
                window.length_ms = (length_ms * 2).min(WINDOW_MAX_MS);
                window.touched_ns = now_ns;
                (length_ms, window.series, window.first.clone())
            }
            None => {
                if room {
                    let window = Window { length_ms: WINDOW_MIN_MS * 2, touched_ns: now_ns, series: None, first: None };
                    self.keys.insert(*key, window);
                }
                (WINDOW_MIN_MS, None, None)
            }
        };
        Some(RowCount { key: *key, stat: *stat, window_ms, series, first })
    }

    /// Drops the windows without a row that are older than their length: nothing was denied in them,
    /// or the kernel had no room for the row.
    fn forget_quiet(&mut self, now_ns: u64, rows: &[(DenyKey, DenyStat)]) {
        let is_old = |window: &Window| now_ns.saturating_sub(window.touched_ns) > window.length_ms * NS_PER_MS;
        if !self.keys.values().any(is_old) {
            return;
        }
        let in_kernel: HashSet<&DenyKey> = rows.iter().map(|(key, _)| key).collect();
        self.keys.retain(|key, window| in_kernel.contains(key) || !is_old(window));
    }
}

/// One row of `deny_folded`, taken out of the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FoldedRow {
    /// Identity, or cgroup if it has none.
    pub owner: u64,
    /// Exit or door.
    pub direction: Direction,
    /// Audit let them pass.
    pub would: bool,
    /// Count, bytes and time of them.
    pub stat: DenyStat,
}

impl FoldedRow {
    /// Reads a row as the kernel keeps it.
    ///
    /// Shape of the key: identity or cgroup; [`Direction`] in bit 0, audit in bit 1.
    #[must_use]
    pub const fn from_kernel(key: [u64; 2], stat: DenyStat) -> Self {
        let [owner, bits] = key;
        let direction = if bits & 1 == 0 { Direction::Egress } else { Direction::Ingress };
        Self { owner, direction, would: bits & 2 != 0, stat }
    }
}

/// When the rows of `deny_folded` are taken: all together, every 10 s.
#[derive(Debug, Default)]
pub struct FoldedWindow {
    taken_ns: Option<u64>,
}

impl FoldedWindow {
    /// Says whether the rows are to be taken; if so, the next time is one window later.
    ///
    /// The first call says yes: rows may be left from an agent before.
    pub fn is_due(&mut self, now_ns: u64) -> bool {
        let due = self.taken_ns.is_none_or(|taken| now_ns.saturating_sub(taken) >= WINDOW_MIN_MS * NS_PER_MS);
        if due {
            self.taken_ns = Some(now_ns);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::testing;

    const S: u64 = 1_000_000_000;

    fn key(n: u64) -> DenyKey {
        DenyKey { peer: n, ..DenyKey::default() }
    }

    fn row(n: u64, first_s: u64, count: u64) -> (DenyKey, DenyStat) {
        (key(n), DenyStat { count, first_ns: first_s * S, ..DenyStat::default() })
    }

    #[test]
    fn a_busy_key_is_told_less_and_less_often_and_a_quiet_window_resets_it() {
        let mut windows = Windows::default();
        let mut at = 100;
        let mut lengths = Vec::new();
        for _ in 0..7 {
            windows.opened(at * S, key(1), Arc::new(testing::event()));
            let begin = at;
            while windows.due(at * S, &[row(1, begin, 3)]).is_empty() {
                at += 1;
            }
            let counts = windows.taken(at * S, &[row(1, begin, 3)]);
            assert_eq!(counts.len(), 1);
            assert_eq!(counts[0].window_ms, (at - begin) * 1000, "taken in the second in which it ends");
            lengths.push(at - begin);
        }
        assert_eq!(lengths, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(windows.taken(at * S, &[row(1, at, 0)]), [], "nothing to tell");
        assert_eq!(windows.due((at + 10) * S, &[row(1, at, 3)]), [key(1)], "10 s again");
    }

    #[test]
    fn the_first_after_a_busy_window_goes_on_with_the_series() {
        let mut windows = Windows::default();
        let first = Arc::new(testing::event());
        windows.opened(0, key(1), Arc::clone(&first));
        let count = windows.taken(10 * S, &[row(1, 0, 2)]).remove(0);
        assert_eq!((count.series, count.first), (Some(first.series), Some(Arc::clone(&first))));
        assert_eq!(windows.series(&key(1)), Some(first.series));
        let _ = windows.due(31 * S, &[]);
        assert_eq!(windows.series(&key(1)), None, "20 s without a denial are a quiet window");
    }

    #[test]
    fn a_row_of_an_agent_before_is_told_too() {
        let mut windows = Windows::default();
        assert_eq!(windows.due(9 * S, &[row(1, 0, 2)]), []);
        assert_eq!(windows.due(10 * S, &[row(1, 0, 2)]), [key(1)]);
        let count = windows.taken(10 * S, &[row(1, 0, 2)]).remove(0);
        assert_eq!((count.series, count.first, count.stat.count), (None, None, 2));
    }

    #[test]
    fn a_window_whose_row_the_kernel_had_no_room_for_is_forgotten() {
        let mut windows = Windows::default();
        for n in 0..100 {
            windows.opened(0, key(n), Arc::new(testing::event()));
        }
        let _ = windows.due(11 * S, &[row(7, 0, 1)]);
        assert_eq!(windows.keys.len(), 1, "only the key with a row is left");
    }

    #[test]
    fn the_keys_remembered_are_bounded() {
        let mut windows = Windows::default();
        let event = Arc::new(testing::event());
        for n in 0..KEYS_MAX as u64 + 10 {
            windows.opened(0, key(n), Arc::clone(&event));
        }
        assert_eq!(windows.keys.len(), KEYS_MAX);
        assert_eq!(windows.taken(10 * S, &[row(u64::MAX, 0, 5)]).len(), 1, "its repeats are told all the same");
        assert_eq!(windows.keys.len(), KEYS_MAX);
    }

    #[test]
    fn folded_rows_are_taken_at_the_start_and_every_ten_seconds() {
        let mut folded = FoldedWindow::default();
        assert!(folded.is_due(5 * S) && !folded.is_due(14 * S) && folded.is_due(15 * S) && !folded.is_due(16 * S));
    }

    #[test]
    fn the_key_of_a_folded_row_tells_direction_and_audit_apart() {
        let stat = DenyStat { count: 3, ..DenyStat::default() };
        let row = |bits| FoldedRow::from_kernel([7, bits], stat);
        assert_eq!((row(0).direction, row(0).would), (Direction::Egress, false));
        assert_eq!((row(1).direction, row(1).would), (Direction::Ingress, false));
        assert_eq!((row(3).direction, row(3).would), (Direction::Ingress, true));
        assert_eq!((row(2).owner, row(2).stat.count), (7, 3));
    }
}
