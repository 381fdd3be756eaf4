//! The only place that asks for the time.

use agent_common::{id::BootSeconds, layout::TICK_SHIFT};
use rustix::time::{ClockId, clock_gettime};

use crate::events::record::{Now, UnixMillis};

/// Reads both clocks.
#[must_use]
pub fn now() -> Now {
    let wall = clock_gettime(ClockId::Realtime);
    let boot = clock_gettime(ClockId::Boottime);
    Now { wall: UnixMillis(nanos(wall) / 1_000_000), boot_ns: nanos(boot) }
}

/// Seconds on the boot clock, which rules and answers of resolvers count their ends by.
#[must_use]
pub fn boot_seconds() -> BootSeconds {
    seconds_of(nanos(clock_gettime(ClockId::Boottime)))
}

/// Returns the second of a moment on the boot clock, in ns.
#[must_use]
pub fn seconds_of(boot_ns: u64) -> BootSeconds {
    BootSeconds(u32::try_from(boot_ns / 1_000_000_000).unwrap_or(u32::MAX))
}

/// Unix time in seconds.
#[must_use]
pub fn unix_seconds() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}

/// What must be added to the boot clock to get Unix time, in seconds, rounded up.
#[must_use]
pub fn boot_to_unix() -> i64 {
    let now = now();
    let millis = now.wall.0.saturating_sub(now.boot_ns / 1_000_000);
    i64::try_from(millis.div_ceil(1000)).unwrap_or(i64::MAX)
}

/// The clock that hits of rules are stamped with, ns.
#[must_use]
pub fn hit_ns() -> u64 {
    nanos(clock_gettime(ClockId::MonotonicCoarse))
}

/// The tick of the kernel's flow table: 2³⁰ ns of the monotonic clock.
#[must_use]
pub fn flow_tick() -> u32 {
    let ticks = hit_ns() >> TICK_SHIFT;
    // The kernel keeps 32 bits of it as well.
    u32::try_from(ticks & u64::from(u32::MAX)).unwrap_or(0)
}

fn nanos(time: rustix::time::Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
