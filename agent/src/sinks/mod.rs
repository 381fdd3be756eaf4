//! Where records go. The file is the spool: every other sink will read it, so that a dead receiver
//! costs disk and neither memory nor a verdict.
//!
//! - [`mod@file`] is the spool, or stdout: what is open at the path, and what someone else did to it.
//! - `appender` numbers the records of a batch, writes them at once, and counts what did not get out.
//! - `position` is what outlives the agent: the last number and the sums.
//! - [`writer`] is the thread.
//!
//! Source: events.md, sections 3.3 and 7.

mod appender;
pub mod file;
mod position;
#[cfg(test)]
mod tests;
pub mod writer;

pub use file::{FileSink, Opened, SinkConfig, SinkError, Target};
pub use writer::{WriterHandle, spawn};
