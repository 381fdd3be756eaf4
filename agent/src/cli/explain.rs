//! `eastwall explain`: why a flow gets its decision, or what a code means.

use std::path::{Path, PathBuf};

use agent_common::{builtin::DNS_PORT, flow::proto};
use anyhow::anyhow;
use clap::Args;
use serde_json::{Value, json};

use super::{
    exit::{CliError, Exit},
    output::Output,
    policy::set,
};
use crate::{
    clock,
    control::wire::{Reply, Request},
    policy::{
        ask::{self, Asked, unix_moment},
        codes::Code,
        explain::explain,
        model::Party,
        time,
    },
};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// `FROM TO:PORT`, for example `web payments:grpc` or `ip/203.0.113.9 web:tcp/443`; or a code, `E03`
    #[arg(required = true, num_args = 1..=2, value_name = "FROM TO:PORT | CODE")]
    question: Vec<String>,
    /// Answer from policy files instead of the running agent
    #[arg(long, requires = "policy")]
    offline: bool,
    /// Files or directories of the policy
    #[arg(long, value_name = "PATH", num_args = 1..)]
    policy: Vec<PathBuf>,
    /// Answer for this moment, `2036-01-31T00:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = set::parse_time, requires = "policy")]
    at: Option<i64>,
}

pub(super) fn run(args: &ExplainArgs, socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    match args.question.as_slice() {
        [code] => explain_code(code, output),
        [from, to] if !args.policy.is_empty() => explain_flow(args, from, to, output),
        [from, to] if !args.offline => explain_live(socket, from, to, output),
        _ => {
            let message = "which policy? write `--offline --policy PATH`";
            Err(CliError::new(Exit::Usage, anyhow!(message)))
        }
    }
}

/// Asks the agent about the policy in force.
fn explain_live(socket: &Path, from: &str, to: &str, output: &mut Output) -> Result<Exit, CliError> {
    let request = Request::Explain { from: from.to_owned(), to: to.to_owned() };
    match super::live::ask(socket, &request)? {
        Reply::Explained { explanations, text, allowed } => {
            if output.for_people() {
                output.write(&text)?;
            } else {
                let items = explanations.as_array().cloned().unwrap_or_default();
                output.machine(json!({"answers": explanations}), items)?;
            }
            Ok(if allowed { Exit::Done } else { Exit::No })
        }
        other => Err(super::live::unexpected(&other)),
    }
}

fn explain_code(name: &str, output: &mut Output) -> Result<Exit, CliError> {
    let Some(code) = Code::parse(name) else {
        let message = "there is no code `{}`; a flow is asked for as `eastwall explain FROM TO:PORT`";
        return Err(CliError::new(Exit::Usage, anyhow!(message.replace("{}", name))));
    };
    if output.for_people() {
        let text: String = code.explanation().lines().map(wrap).collect();
        output.write(&format!("{}  {}\n\n{text}", code.name(), code.title()))?;
    } else {
        let document = json!({"code": code.name(), "title": code.title(), "explanation": code.explanation()});
        output.machine(document.clone(), [document])?;
    }
    Ok(Exit::Done)
}

/// Breaks a paragraph between words, at a width that is read easily.
fn wrap(paragraph: &str) -> String {
    const WIDTH: usize = 88;
    let mut text = String::new();
    let mut column = 0;
    for word in paragraph.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push('\n');
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
    text
}

fn explain_flow(args: &ExplainArgs, from: &str, to: &str, output: &mut Output) -> Result<Exit, CliError> {
    let files = set::read(&args.policy)?;
    let set = match set::Set::compile(&files, None) {
        Ok(set) => set,
        Err(findings) => return set::refuse(&files, &findings, output),
    };
    let usage = |error| CliError::new(Exit::Usage, anyhow::Error::from(error));
    let from = ask::party(&set.policy, from).map_err(usage)?;
    let (to, ports) = ask::target(&set.policy, to).map_err(usage)?;
    let now = args.at.unwrap_or_else(clock::unix_seconds);
    let asked = Asked { policy: &set.policy, map: &set.map, overrides: &[], now: unix_moment(now) };
    let answers = explain(&asked, &from, &to, &ports);
    let about_dns = matches!(to, Party::Address(_))
        && answers.iter().any(|a| {
            a.rule.is_none()
                && a.range.lo <= DNS_PORT
                && a.range.hi >= DNS_PORT
                && matches!(a.range.proto, 0 | proto::TCP | proto::UDP)
        });
    if about_dns && !output.quiet {
        output.talk(
            "without an agent it is not known which addresses are resolvers of the node, so the built-in `dns` is left out: \
             it lets every workload ask one, udp and tcp 53, where no rule matches",
        );
    }
    let all_allowed = answers.iter().all(|answer| answer.decision.allow);
    if output.for_people() {
        let text: Vec<String> = answers.iter().map(ToString::to_string).collect();
        output.write(&text.join("\n"))?;
    } else {
        let items: Vec<Value> = answers.iter().map(|answer| answer.to_json()).collect();
        output.machine(json!({"at": time::format(now), "answers": items.clone()}), items)?;
    }
    Ok(if all_allowed { Exit::Done } else { Exit::No })
}
