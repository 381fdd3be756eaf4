//! The only caller of `now()`: everything else is given the time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the wall clock in seconds since the Unix epoch; a clock before 1970 reads 0.
#[must_use]
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
