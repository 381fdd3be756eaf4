//! `eastwall doctor`.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json, to_value};

use super::{
    exit::{CliError, Exit},
    output::Output,
};
use crate::{
    control::{
        client,
        wire::{ProgramOfOthers, Reply, Request},
    },
    doctor::{
        Finding, Holders, Outcome, Program, examine, holders,
        who_dropped::{self, AgentSaid, Clue, Foreign, Tuple, Weight},
    },
};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Say who dropped a flow instead, `10.9.0.1 10.9.1.2:tcp/443`: what is evidence, and what is only suspect
    #[arg(long, num_args = 2, value_names = ["FROM", "TO:PORT"])]
    who_dropped: Vec<String>,
}

pub(super) fn run(args: &DoctorArgs, socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    match args.who_dropped.as_slice() {
        [from, to] => {
            let tuple = Tuple::parse(from, to).map_err(|e| CliError::new(Exit::Usage, anyhow::Error::from(e)))?;
            who_dropped(&tuple, socket, output)
        }
        _ => doctor(socket, output),
    }
}

/// Looks at the host and at the agent; the answer is "no" if something keeps eastwall from enforcing.
fn doctor(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let mut findings = vec![agent(socket)];
    findings.extend(programs(socket));
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

/// Programs of others where eastwall's are. Those behind ours see only what passes, and may drop that.
fn programs(socket: &Path) -> Vec<Finding> {
    let Ok(Reply::Programs { programs }) = client::ask(socket, &Request::Programs) else { return Vec::new() };
    if programs.is_empty() {
        let found = "none of others at guarded devices and cgroups";
        return vec![Finding::new(Outcome::Ok, "programs", found, "")];
    }
    let finding = |(said, before)| {
        let (outcome, fix) = match before {
            true => (
                Outcome::Warn,
                "it decides before eastwall, which moves before it within a second; stop who puts it there",
            ),
            false => (Outcome::Ok, ""),
        };
        Finding::new(outcome, "programs", said, fix)
    };
    said(&programs, &holders()).into_iter().zip(programs.iter().map(|program| program.before)).map(finding).collect()
}

/// Programs as sentences, with who holds them.
fn said(programs: &[ProgramOfOthers], holders: &Holders) -> Vec<String> {
    let said = |program: &ProgramOfOthers| {
        let ProgramOfOthers { place, hook, before, device, id, name, tag, loaded_by } = program;
        let order = match (device, before) {
            (None, _) => "beside",
            (Some(_), true) => "BEFORE",
            (Some(_), false) => "behind",
        };
        if *id == 0 {
            return format!("{place} {hook}: a filter {name}, {order} eastwall's");
        }
        let program = Program { id: *id, name, tag, loaded_by: *loaded_by };
        program.sentence(&format!("{place} {hook}"), order, holders)
    };
    programs.iter().map(said).collect()
}

/// Says what is known about a flow; the answer is "no" if something drops it for sure.
fn who_dropped(tuple: &Tuple, socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let holders = holders();
    let clues = who_dropped::look(tuple, &ask_agent(tuple, socket, &holders), &holders);
    if output.for_people() {
        let row = |clue: &Clue| vec![clue.weight.to_string(), clue.layer.to_owned(), clue.found.clone()];
        let rows: Vec<Vec<String>> = clues.iter().map(row).collect();
        output.table(&["WEIGHT", "LAYER", "FOUND"], &rows, "nothing was looked at")?;
    } else {
        let items: Vec<Value> = clues.iter().map(to_value).collect::<Result<_, _>>().map_err(anyhow::Error::from)?;
        output.machine(json!({"flow": tuple.to_string(), "clues": items.clone()}), items)?;
    }
    let dropped = clues.iter().any(|clue| clue.weight == Weight::Evidence);
    Ok(if dropped { Exit::No } else { Exit::Done })
}

fn ask_agent(tuple: &Tuple, socket: &Path, holders: &Holders) -> AgentSaid {
    let mut said = AgentSaid::default();
    match client::stream(socket, &Request::Recent) {
        Ok(replies) => said.denials.extend(replies.filter_map(|reply| match reply {
            Ok(Reply::Denial { record, .. }) => Some(record),
            _ => None,
        })),
        Err(e) => {
            said.silent = Some(format!("the agent says nothing: {e}"));
            return said;
        }
    }
    let (from, to) = (format!("ip/{}", tuple.from), format!("ip/{}:{}", tuple.to, tuple.port_word()));
    match client::ask(socket, &Request::Explain { from, to }) {
        Ok(Reply::Explained { text, allowed, .. }) => {
            said.policy = Some((allowed, text.lines().next().unwrap_or_default().to_owned()));
        }
        Ok(Reply::Refused { message, .. }) => said.silent = Some(format!("the agent explains nothing: {message}")),
        _ => {}
    }
    if let Ok(Reply::Programs { programs }) = client::ask(socket, &Request::Programs) {
        let sentences = self::said(&programs, holders);
        let foreign = |(program, said): (&ProgramOfOthers, String)| Foreign { device: program.device, said };
        said.programs = programs.iter().zip(sentences).map(foreign).collect();
    }
    said
}
