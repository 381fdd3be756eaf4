//! What the kernel reports -> records for sinks. No I/O but `/proc` in [`process`], no maps, no clock.
//!
//! ```text
//! ring bytes -> decode -> enrich -> windows -> queue -> writer (crate::sinks)
//! ```
//!
//! No verdict depends on anything here: the kernel decides first and reports afterwards.

pub mod community_id;
mod control_record;
pub mod decode;
pub mod enrich;
pub mod escape;
mod long_field;
pub mod ocsf;
pub mod process;
pub mod record;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
pub mod windows;
pub mod words;
