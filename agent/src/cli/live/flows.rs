//! `eastwall flows`: denials that were, and as they happen.

use std::{collections::VecDeque, path::Path, time::Duration};

use agent_common::verdict::Reason;
use clap::{Args, builder::PossibleValuesParser};
use serde_json::{Value, json};

use super::{failed, overrides::duration, refusal};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::{Output, escape},
    },
    clock,
    control::{
        client,
        wire::{Reply, Request},
    },
    events::line,
};

/// Modes that tell of a denial; `observe` does not.
const MODES: [&str; 2] = ["audit", "enforce"];

/// Every reason, so that a wrong letter is no filter that nothing passes.
fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.name()))
}

#[derive(Debug, Args)]
pub(crate) struct FlowsArgs {
    /// Denials, would-be denials and cuts: the only flows that are kept one by one
    #[arg(long)]
    denied: bool,
    /// Go on with what happens until interrupted; what was before is left out, unless --since asks for it
    #[arg(short, long)]
    follow: bool,
    /// Only what happened in the last 30s, 5m, 2h; the agent keeps the newest 1024
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// The newest N of what was; with --follow, end after so many
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Only from these callers: a name, or `ip/203.0.113.9`
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Filters")]
    from: Vec<String>,
    /// Only to these callees: a name, or `ip/203.0.113.9`
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Filters")]
    to: Vec<String>,
    /// Only to these ports, `tcp/443`
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', help_heading = "Filters")]
    port: Vec<String>,
    /// Only by these rules
    #[arg(long, value_name = "RULE,...", value_delimiter = ',', help_heading = "Filters")]
    rule: Vec<String>,
    /// Only for these reasons, `no-rule`
    #[arg(long, value_name = "REASON,...", value_delimiter = ',', value_parser = reasons(), help_heading = "Filters")]
    #[arg(hide_possible_values = true)]
    reason: Vec<String>,
    /// Only in these modes
    #[arg(long, value_name = "MODE,...", value_delimiter = ',', value_parser = MODES, help_heading = "Filters")]
    mode: Vec<String>,
    /// Not from these callers
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Filters")]
    not_from: Vec<String>,
    /// Not to these callees
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Filters")]
    not_to: Vec<String>,
    /// Not to these ports
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', help_heading = "Filters")]
    not_port: Vec<String>,
    /// Not by these rules
    #[arg(long, value_name = "RULE,...", value_delimiter = ',', help_heading = "Filters")]
    not_rule: Vec<String>,
    /// Not for these reasons
    #[arg(long, value_name = "REASON,...", value_delimiter = ',', value_parser = reasons(), help_heading = "Filters")]
    #[arg(hide_possible_values = true)]
    not_reason: Vec<String>,
    /// Not in these modes
    #[arg(long, value_name = "MODE,...", value_delimiter = ',', value_parser = MODES, help_heading = "Filters")]
    not_mode: Vec<String>,
}

/// Shows denials.
pub(crate) fn flows(socket: &Path, args: &FlowsArgs, output: &mut Output) -> Result<Exit, CliError> {
    let oldest = args.since.map(|since| u128::from(clock::now().wall.0).saturating_sub(since.as_millis()));
    if args.follow { follow(socket, args, oldest, output) } else { recent(socket, args, oldest, output) }
}

fn recent(socket: &Path, args: &FlowsArgs, oldest: Option<u128>, output: &mut Output) -> Result<Exit, CliError> {
    let mut shown = VecDeque::new();
    for reply in client::stream(socket, &Request::Recent).map_err(failed)? {
        match refusal(reply.map_err(failed)?)? {
            Reply::Denial { record, line } if wanted(args, oldest, &record) => {
                shown.push_back((record, line));
                if args.count.is_some_and(|n| shown.len() > n) {
                    shown.pop_front();
                }
            }
            Reply::Denial { .. } => {}
            other => return Err(super::unexpected(&other)),
        }
    }
    if !output.for_people() {
        let records: Vec<Value> = shown.into_iter().map(|(record, _)| record).collect();
        output.machine(json!({"flows": records.clone()}), records)?;
        return Ok(Exit::Done);
    }
    if shown.is_empty() && !output.quiet {
        output.talk("no denial that is still known is like this; older ones are in the events file");
        return Ok(Exit::Done);
    }
    if output.headers() {
        output.write(&format!("{}\n", line::header()))?;
    }
    let text: String = shown.iter().map(|(_, line)| format!("{}\n", escape(line))).collect();
    output.write(&text)?;
    Ok(Exit::Done)
}

fn follow(socket: &Path, args: &FlowsArgs, oldest: Option<u128>, output: &mut Output) -> Result<Exit, CliError> {
    let mut shown = 0;
    if output.for_people() && output.headers() && !output.quiet {
        output.talk(&line::header());
    }
    for reply in client::stream(socket, &Request::Follow { known: oldest.is_some() }).map_err(failed)? {
        match refusal(reply.map_err(failed)?)? {
            Reply::Denial { record, line } => {
                if !wanted(args, oldest, &record) {
                    continue;
                }
                if output.for_people() {
                    output.write(&format!("{}\n", escape(&line)))?;
                } else {
                    output.one_of_a_stream(&record)?;
                }
                shown += 1;
                if args.count.is_some_and(|n| shown >= n) {
                    return Ok(Exit::Done);
                }
            }
            Reply::Missed { count: 0 } => {}
            Reply::Missed { count } => {
                output.talk(&format!("{count} denials came too fast to be shown; they are in the events file"));
            }
            other => return Err(super::unexpected(&other)),
        }
    }
    Ok(Exit::Done)
}

fn wanted(args: &FlowsArgs, oldest: Option<u128>, record: &Value) -> bool {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let end = |end: &str| {
        let address = format!("ip/{}", text(&format!("/{end}/ip")));
        vec![text(&format!("/{end}/svc_name")), text(&format!("/{end}/uid")), address]
    };
    let number = record.pointer("/dst_endpoint/port").and_then(Value::as_u64);
    let protocol = text("/connection_info/protocol_name");
    let port = number.map_or_else(|| protocol.clone(), |number| format!("{protocol}/{number}"));
    let filters = [
        (&args.from, &args.not_from, end("src_endpoint")),
        (&args.to, &args.not_to, end("dst_endpoint")),
        (&args.port, &args.not_port, vec![port, protocol]),
        (&args.rule, &args.not_rule, vec![text("/firewall_rule/uid")]),
        (&args.reason, &args.not_reason, vec![text("/status_code")]),
        (&args.mode, &args.not_mode, vec![text("/unmapped/eastwall/mode")]),
    ];
    let time = record.get("time").and_then(Value::as_u64).map(u128::from);
    let is_new = oldest.is_none_or(|oldest| time.is_some_and(|time| time >= oldest));
    is_new
        && filters.iter().all(|(only, not, are)| {
            (only.is_empty() || only.iter().any(|word| are.contains(word)))
                && !not.iter().any(|word| are.contains(word))
        })
}
