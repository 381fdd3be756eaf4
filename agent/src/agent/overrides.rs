//! Overrides in force: `revoke` and `break-glass`. They always end, and survive a restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    control::wire::{Override, OverrideRow},
    events::record::OverrideData,
    policy::{
        ask,
        model::{Action, Place, Rule},
        ports,
    },
};

/// Longest break-glass, seconds: 24 h. An opening that nobody closes is a policy change.
pub const BREAK_GLASS_SECONDS_MAX: u64 = 86_400;

/// The overrides of this node.
#[derive(Debug)]
pub struct Overrides {
    path: PathBuf,
    next: u64,
    rows: Vec<OverrideRow>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Saved {
    next: u64,
    rows: Vec<OverrideRow>,
}

/// Why an override is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOverride {
    /// No end, or an allow that lasts too long.
    #[error("E11: it must end after at least a second and at most {}, not {asked} s", days(*max))]
    Lasts {
        /// Seconds.
        asked: u64,
        /// Seconds.
        max: u64,
    },
    /// A name or port of the policy in force.
    #[error(transparent)]
    Names(ask::InvalidQuestion),
    /// No reason.
    #[error("an override needs a reason: it is read when somebody asks why")]
    Reason,
    /// A port.
    #[error("E05: {0}")]
    Port(String),
    /// No such override.
    #[error("there is no override `{0}`; `eastwall overrides` lists them")]
    Missing(String),
}

impl Overrides {
    /// Reads those that an agent before left.
    ///
    /// # Errors
    ///
    /// If the file is there and cannot be read: a revocation must not be forgotten in silence.
    pub fn open(state_directory: &Path) -> io::Result<Self> {
        let path = state_directory.join("overrides.json");
        let saved: Saved = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Saved::default(),
            Err(e) => return Err(e),
        };
        Ok(Self { path, next: saved.next, rows: saved.rows })
    }

    /// Those in force.
    #[must_use]
    pub fn rows(&self) -> &[OverrideRow] {
        &self.rows
    }

    /// As rules of the policy. One that has ended is left to the kernel, which compares its end.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        self.rows.iter().map(rule).collect()
    }

    /// Returns a copy with one more, and its row.
    ///
    /// # Errors
    ///
    /// [`InvalidOverride`].
    pub fn with(&self, kind: &str, asked: &Override, now_unix: i64) -> Result<(Self, OverrideRow), InvalidOverride> {
        let max = if kind == "break-glass" { BREAK_GLASS_SECONDS_MAX } else { 10 * 365 * 86_400 };
        if asked.seconds == 0 || asked.seconds > max {
            return Err(InvalidOverride::Lasts { asked: asked.seconds, max });
        }
        if asked.reason.trim().is_empty() {
            return Err(InvalidOverride::Reason);
        }
        for port in &asked.ports {
            ports::parse(port).map_err(|e| InvalidOverride::Port(e.to_string()))?;
        }
        let next = self.next + 1;
        let row = OverrideRow {
            id: format!("ov-{next}"),
            kind: kind.to_owned(),
            from: asked.from.clone(),
            to: asked.to.clone(),
            ports: if asked.ports.is_empty() { vec!["any".to_owned()] } else { asked.ports.clone() },
            expires: now_unix.saturating_add(i64::try_from(asked.seconds).unwrap_or(i64::MAX)),
            reason: asked.reason.clone(),
            ticket: asked.ticket.clone(),
        };
        let rows = self.rows.iter().cloned().chain([row.clone()]).collect();
        Ok((Self { path: self.path.clone(), next, rows }, row))
    }

    /// Returns a copy without one.
    ///
    /// # Errors
    ///
    /// [`InvalidOverride::Missing`].
    pub fn without(&self, id: &str) -> Result<(Self, OverrideRow), InvalidOverride> {
        let row = self.rows.iter().find(|r| r.id == id).cloned();
        let row = row.ok_or_else(|| InvalidOverride::Missing(id.to_owned()))?;
        let rows = self.rows.iter().filter(|r| r.id != id).cloned().collect();
        Ok((Self { path: self.path.clone(), next: self.next, rows }, row))
    }

    /// Returns those that have ended.
    #[must_use]
    pub fn ended(&self, now_unix: i64) -> Vec<String> {
        self.rows.iter().filter(|r| r.expires <= now_unix).map(|r| r.id.clone()).collect()
    }

    /// Writes them down, whole or not at all.
    ///
    /// # Errors
    ///
    /// What the file system said.
    pub fn save(&self) -> io::Result<()> {
        let saved = Saved { next: self.next, rows: self.rows.clone() };
        let new = self.path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec_pretty(&saved).map_err(io::Error::other)?)?;
        fs::rename(&new, &self.path)
    }
}

/// As a record shows it.
pub(super) fn override_data(row: &OverrideRow) -> OverrideData {
    OverrideData {
        id: row.id.clone(),
        action: if row.kind == "break-glass" { "allow" } else { "deny" }.to_owned(),
        from: row.from.clone(),
        to: row.to.clone(),
        expires: crate::policy::time::format(row.expires),
    }
}

/// Seconds as whole hours or days.
fn days(seconds: u64) -> String {
    if seconds > 86_400 { format!("{} days", seconds / 86_400) } else { format!("{} h", seconds / 3600) }
}

fn rule(row: &OverrideRow) -> Rule {
    Rule {
        id: row.id.clone(),
        action: if row.kind == "break-glass" { Action::OverrideAllow } else { Action::OverrideDeny },
        from: row.from.clone(),
        to: row.to.clone(),
        // Parsed when it was asked for; what cannot be read any more is left out, and the row shows it.
        ports: row.ports.iter().filter_map(|p| ports::parse(p).ok()).collect(),
        expires: Some(row.expires),
        reason: Some(row.reason.clone()),
        owner: None,
        ticket: row.ticket.clone(),
        place: Place { file: "overrides".to_owned(), line: 0, column: 0 },
    }
}
