//! Exit codes. Scripts depend on them, so they are given out here and nowhere else.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Done; yes; nothing differs.
    Done = 0,
    /// The answer is no: a test failed, a difference was found, a flow is denied.
    No = 1,
    /// Wrong usage.
    Usage = 2,
    /// The policy is invalid; nothing was applied.
    Invalid = 3,
    /// The agent cannot be reached.
    Unreachable = 4,
    /// Not permitted.
    NotPermitted = 5,
    /// Partly done; failures are listed.
    Partly = 6,
    /// Time ran out.
    TimeOut = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure, and the code that the process ends with.
#[derive(Debug)]
pub struct CliError {
    /// The code.
    pub exit: Exit,
    /// What to tell.
    pub source: anyhow::Error,
}

impl CliError {
    /// Returns a failure of a kind.
    pub fn new(exit: Exit, source: impl Into<anyhow::Error>) -> Self {
        Self { exit, source: source.into() }
    }
}

/// What nobody gave a code to is the failure of an operation, and operations here read and write.
impl From<anyhow::Error> for CliError {
    fn from(source: anyhow::Error) -> Self {
        Self { exit: Exit::Partly, source }
    }
}

impl From<std::io::Error> for CliError {
    fn from(source: std::io::Error) -> Self {
        Self { exit: Exit::Partly, source: source.into() }
    }
}
