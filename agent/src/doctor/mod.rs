//! Checks of the host: what eastwall needs, what it finds, and what no hook of it covers.

mod families;
mod holders;
mod host;
pub mod who_dropped;

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, and somebody should know.
    Warn,
    /// Nothing like it on this host is watched by eastwall.
    NotCovered,
    /// Keeps eastwall from enforcing.
    Fail,
}

impl Outcome {
    /// The word in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::NotCovered => "not covered",
            Self::Fail => "fail",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// How it ended.
    pub outcome: Outcome,
    /// What was looked at.
    pub check: &'static str,
    /// What was found.
    pub found: String,
    /// What to do; empty if there is nothing to do.
    pub fix: String,
}

impl Finding {
    pub(crate) fn new(outcome: Outcome, check: &'static str, found: impl Into<String>, fix: &str) -> Self {
        Self { outcome, check, found: found.into(), fix: fix.to_owned() }
    }
}

pub use holders::{Holders, Program, held_by, holders};

/// Looks at everything, the host first.
#[must_use]
pub fn examine() -> Vec<Finding> {
    let mut findings = host::examine();
    findings.extend(families::examine());
    findings
}
