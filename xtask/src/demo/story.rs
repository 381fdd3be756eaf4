//! What the steps share: the shop, the agent, the results so far, and how they are printed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    agent::{self, Agent},
    call::{Call, Outcome},
    events::{self, Events},
    hosts::Hosts,
    place::Place,
    policy_file::{PolicyFile, Ports},
    shop::Shop,
};
use crate::workspace::Workspace;

/// The demo while it is told.
pub struct Story<'a> {
    /// Where everything is.
    pub place: &'a Place,
    /// The services.
    pub shop: Shop,
    /// The agent.
    pub agent: Agent,
    /// The policy that the demo edits.
    pub policy: PolicyFile,
    /// The events file.
    pub events: Events,
    /// The hosts of the second act, once they are there.
    pub hosts: Option<Hosts>,
    allowed: u32,
    refused: u32,
    rows: Vec<Row>,
}

/// A line of the summary.
struct Row {
    name: &'static str,
    result: String,
    took: Duration,
}

impl<'a> Story<'a> {
    /// Begins.
    pub fn new(place: &'a Place, shop: Shop, agent: Agent, policy: PolicyFile) -> Self {
        let events = Events::of(&place.shop());
        Self { place, shop, agent, policy, events, hosts: None, allowed: 0, refused: 0, rows: Vec::new() }
    }

    /// Tells one step; `work` returns what the summary says about it.
    ///
    /// # Errors
    ///
    /// Those of `work`, with the step in front.
    pub fn step(
        &mut self,
        name: &'static str,
        about: &str,
        work: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<()> {
        let number = self.rows.len() + 1;
        outln!("\n{number:<2} {name}: {about}");
        let start = Instant::now();
        let result = work(self).with_context(|| format!("step {number}, {name}, did not end as it should"))?;
        self.rows.push(Row { name, result, took: start.elapsed() });
        Ok(())
    }

    /// Makes a call that must work.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn works(&mut self, call: Call) -> Result<Outcome> {
        self.worked(call, call.make(self.place, self.shop.ports)?)
    }

    /// Takes down what came of a call that must have worked.
    ///
    /// # Errors
    ///
    /// It did not.
    pub fn worked(&mut self, call: Call, outcome: Outcome) -> Result<Outcome> {
        if !outcome.works {
            bail!("{call} by {} should work, and it says: {}", call.tool(), outcome.text);
        }
        self.allowed += 1;
        print(call, "works", &outcome);
        Ok(outcome)
    }

    /// Makes a call that must not work.
    ///
    /// # Errors
    ///
    /// It works.
    pub fn refused(&mut self, call: Call) -> Result<Outcome> {
        self.was_refused(call, call.make(self.place, self.shop.ports)?)
    }

    /// Takes down what came of a call that must not have worked.
    ///
    /// # Errors
    ///
    /// It did.
    pub fn was_refused(&mut self, call: Call, outcome: Outcome) -> Result<Outcome> {
        if outcome.works {
            bail!("{call} by {} should be refused, and it answers: {}", call.tool(), outcome.text);
        }
        self.refused += 1;
        print(call, "refused", &outcome);
        Ok(outcome)
    }

    /// Waits for the record of a call and prints it in two lines: what, and why.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn record(&self, skip: usize, code: &str, call: Call) -> Result<Value> {
        self.record_in(&self.events, skip, code, call)
    }

    /// As [`Self::record`], in the file of another host.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn record_in(&self, events: &Events, skip: usize, code: &str, call: Call) -> Result<Value> {
        let wanted = |record: &Value| events::code(record) == code && events::is_about(record, call);
        let record = events.wait(skip, &format!("`{code}` for {call}"), wanted)?;
        outln!("   event    {}", events::text(&record, "message"));
        Ok(record)
    }

    /// Prints what was done, under the heading of the step.
    pub fn say(&self, line: &str) {
        outln!("   {line}");
    }

    /// Prints the table of all steps.
    pub fn summary(&self) {
        outln!("\nSummary: {} calls worked that had to, {} were refused that had to be", self.allowed, self.refused);
        for (index, row) in self.rows.iter().enumerate() {
            outln!("  {:>2}  {:<22} {:>5} ms  {}", index + 1, row.name, row.took.as_millis(), row.result);
        }
        outln!();
    }
}

fn print(call: Call, word: &str, outcome: &Outcome) {
    let pair = call.to_string();
    outln!("   {word:<8} {pair:<22}  {:<9}  {} ({} ms)", call.tool(), outcome.short(), outcome.took.as_millis());
}

/// Returns what to try while the demo is left running.
pub fn how_to_explore(workspace: &Workspace, place: &Place, ports: Ports) -> String {
    let program = format!("{} --socket {}", agent::binary(workspace).display(), place.shop().socket().display());
    let debug = place.cgroup_of("debug");
    let cart = ports.cart;
    format!(
        "The shop and the agent go on. Some commands to try:\n  \
         alias eastwall='{program}'\n  \
         eastwall status\n  \
         eastwall identities\n  \
         eastwall map dump\n  \
         eastwall flows --denied --follow &\n  \
         sh -c 'echo 0 > {debug}/cgroup.procs; exec redis-cli -p {cart} ping'   # as debug\n  \
         eastwall policy apply {policy}\n\
         Everything of the demo is in {dir}. `cargo xtask demo --clean` removes it.",
        debug = debug.display(),
        policy = place.dir.join("policy/shop.yaml").display(),
        dir = place.dir.display(),
    )
}
