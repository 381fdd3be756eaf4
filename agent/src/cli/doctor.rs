//! `eastwall doctor`.

use std::path::Path;

use serde_json::{Value, json, to_value};

use super::{
    exit::{CliError, Exit},
    output::Output,
};
use crate::{
    control::{
        client,
        wire::{Reply, Request},
    },
    doctor::{Finding, Outcome, examine},
};

/// Looks at the host and at the agent; the answer is "no" if something keeps eastwall from enforcing.
pub(super) fn doctor(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let mut findings = vec![agent(socket)];
    findings.extend(examine());
    if output.for_people() {
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|f| vec![f.outcome.name().to_owned(), f.check.to_owned(), f.found.clone(), f.fix.clone()])
            .collect();
        output.table(&["RESULT", "CHECK", "FOUND", "TO DO"], &rows, "nothing was looked at")?;
    } else {
        let items: Vec<Value> = findings.iter().map(to_value).collect::<Result<_, _>>().map_err(anyhow::Error::from)?;
        output.machine(json!({"findings": items.clone()}), items)?;
    }
    let fails = findings.iter().any(|f| f.outcome == Outcome::Fail);
    Ok(if fails { Exit::No } else { Exit::Done })
}

fn agent(socket: &Path) -> Finding {
    let finding = |outcome, found: String, fix: &str| Finding { outcome, check: "agent", found, fix: fix.to_owned() };
    match client::ask(socket, &Request::Status) {
        Ok(Reply::Status(status)) if status.problems.is_empty() => {
            let found = format!("enforces {}@epoch {} below {}", status.policy, status.epoch, status.scope);
            finding(Outcome::Ok, found, "")
        }
        Ok(Reply::Status(status)) => finding(Outcome::Fail, status.problems.join("; "), "eastwall status"),
        Ok(_) => finding(Outcome::Warn, "it answers, but not to this user".to_owned(), "sudo eastwall doctor"),
        Err(e) => finding(Outcome::Warn, e.to_string(), ""),
    }
}
