//! What the kernel reports -> records for sinks. No I/O but `/proc` in [`process`], no maps, no clock.
//!
//! ```text
//! ring bytes -> decode -> enrich -> held, windows -> queue -> writer (crate::sinks)
//! ```
//!
//! No verdict depends on anything here: the kernel decides first and reports afterwards. [`pipeline`]
//! is the way in, [`record`] what comes out, [`accounting`] proves that nothing went missing unsaid.

pub mod accounting;
pub mod community_id;
mod control_record;
pub mod decode;
pub mod enrich;
pub mod escape;
pub mod held;
pub mod line;
mod long_field;
pub mod ocsf;
pub mod pipeline;
pub mod process;
pub mod queue;
pub mod record;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
pub mod windows;
pub mod words;
