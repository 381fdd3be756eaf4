//! A set of policy files on its way to an answer: read, loaded, compiled, or refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        exit::{CliError, Exit},
        live,
        output::Output,
    },
    control::wire::{Reply, Request},
    policy::{
        compile::{CompileInput, compile},
        finding::{Finding, FindingRecord, Sources, render},
        load::{Loaded, load_in},
        map_state::MapState,
        model::Policy,
        time,
    },
    sources::policy_dir::{self, PolicyText, Trust},
};

/// A policy and its compiled form, on the Unix clock and without overrides.
pub(in crate::cli) struct Set {
    pub(in crate::cli) policy: Policy,
    pub(in crate::cli) map: MapState,
    pub(in crate::cli) warnings: Vec<Finding>,
}

impl Set {
    pub(in crate::cli) fn compile(files: &[PolicyText], trust_domain: Option<&str>) -> Result<Self, Vec<Finding>> {
        let files: Vec<(&str, &str)> = files.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
        let Loaded { policy, warnings } = load_in(&files, trust_domain)?;
        let map = compile(&policy, &CompileInput::default())?;
        Ok(Self { policy, map, warnings })
    }
}

/// Reads the files of anyone: what is only checked needs no trust.
pub(in crate::cli) fn read(paths: &[PathBuf]) -> Result<Vec<PolicyText>, CliError> {
    policy_dir::read(paths, Trust::Anyone).map_err(|error| {
        let exit = if error.is_content() { Exit::Invalid } else { Exit::Usage };
        CliError::new(exit, error)
    })
}

pub(in crate::cli) fn parse_time(text: &str) -> Result<i64, time::InvalidTime> {
    time::parse(text)
}

/// The documents in force, and their trust domain.
pub(super) fn in_force(socket: &Path, output: &mut Output) -> Result<(Vec<PolicyText>, String), CliError> {
    let (files, trust_domain) = match live::ask(socket, &Request::Policy)? {
        Reply::Policy { files, trust_domain } => (files, trust_domain),
        other => return Err(live::unexpected(&other)),
    };
    if let Reply::Overrides { overrides } = live::ask(socket, &Request::Overrides)?
        && !overrides.is_empty()
        && !output.quiet
    {
        let overrides = count(overrides.len(), "override");
        output.talk(&format!("{overrides} in force are no part of this: `eastwall overrides`"));
    }
    Ok((files.into_iter().map(|(name, text)| PolicyText { name, text }).collect(), trust_domain))
}

/// Shows findings for people.
pub(super) fn show(files: &[PolicyText], findings: &[Finding], output: &mut Output) -> Result<(), CliError> {
    let sources: Sources<'_> = files.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
    let text = render(findings, &sources, output.color);
    output.write(&text)
}

pub(super) fn records(findings: &[Finding]) -> Result<Vec<Value>, CliError> {
    let record = |finding| serde_json::to_value(FindingRecord::from(finding)).map_err(anyhow::Error::from);
    Ok(findings.iter().map(record).collect::<Result<_, _>>()?)
}

/// Shows why a set cannot be used, for commands that need one.
pub(in crate::cli) fn refuse(
    files: &[PolicyText],
    findings: &[Finding],
    output: &mut Output,
) -> Result<Exit, CliError> {
    if output.for_people() {
        show(files, findings, output)?;
        let summary = refusal(files, findings);
        output.write(&summary)?;
    } else {
        let items = records(findings)?;
        output.machine(json!({"ok": false, "findings": items.clone()}), items)?;
    }
    Ok(Exit::Invalid)
}

/// Returns the last line of a refusal.
pub(super) fn refusal(files: &[PolicyText], findings: &[Finding]) -> String {
    let code = findings.first().map_or("E01", |finding| finding.code.name());
    let errors = count(findings.len(), "error");
    let files = count(files.len(), "file");
    format!("{errors} in {files}. Nothing was applied. More: eastwall explain {code}\n")
}

/// Returns `1 file`, `2 files`.
pub(in crate::cli) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
