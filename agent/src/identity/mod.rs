//! Who is who. PURE: no I/O, no clock, no log.

pub mod spiffe;
