//! The benchmark: what eastwall costs, measured on this machine and held against the promised numbers.
//!
//! ```text
//! programs   ns of one run of a packet program: established flows, first packets, by number of edges
//! traffic    CPU time of a request, a connection, a packet, a byte: attached against detached
//! devices    traffic between two devices with both layers on; ns of their programs by number of known addresses
//! policy     compiling, filling the idle side, the flip, bytes of an edge
//! memory     resident memory of a process that holds it all
//! ```
//!
//! - Everything happens in a lab: its own cgroup, network namespace, and bpffs. Nothing is attached
//!   anywhere else.
//! - What is compared is measured in turns, a short slice of each, so that both sides meet the same
//!   neighbours, clock and heat. CPU time is compared, not wall time: another process on the machine
//!   makes a slice longer, and its CPU time hardly.

mod devices;
mod load;
mod memory;
mod place;
mod policy;
mod programs;
mod report;
mod sample;
mod synthetic;
mod traffic;
mod worker;

use std::path::PathBuf;

use anyhow::Context as _;

use self::{place::Place, report::Report};

/// How much time is spent.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// A sanity run: the same steps, too short for numbers to be published.
    pub quick: bool,
}

impl Effort {
    /// Chooses by effort.
    const fn pick(self, quick: u32, full: u32) -> u32 {
        if self.quick { quick } else { full }
    }
}

/// Parts of the benchmark, by the word on the command line. A pattern of traffic is one as well.
const PARTS: [&str; 5] = ["programs", "traffic", "devices", "policy", "memory"];

/// Runs as `bench [--quick] [--check] [--json FILE] [PART...]`; as `bench load ...` and `bench hold ...`
/// it is one of its own workers.
///
/// # Errors
///
/// A measurement failed, or with `--check` a number missed its target.
pub fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("load") => return load::main(&args[1..]),
        Some("hold") => return memory::hold(&args[1..]),
        _ => {}
    }
    let (mut effort, mut check, mut json, mut parts) = (Effort { quick: false }, false, None, Vec::new());
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--quick" => effort.quick = true,
            "--check" => check = true,
            "--json" => json = Some(PathBuf::from(rest.next().context("`--json` wants a file")?)),
            part if PARTS.contains(&part) || traffic::words().any(|word| word == part) => parts.push(arg),
            _ => {
                let words: Vec<&str> = PARTS.into_iter().chain(traffic::words()).collect();
                anyhow::bail!("usage: bench [--quick] [--check] [--json FILE] [{}]...", words.join("|"))
            }
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let report = place::inside(|places| measure(places, effort, wanted))?;
    report.print()?;
    if let Some(path) = json {
        report.write(&path)?;
    }
    anyhow::ensure!(!check || report.missed() == 0, "{} numbers missed their target", report.missed());
    Ok(())
}

fn measure(places: &place::Places, effort: Effort, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Report> {
    let mut report = Report::new(effort);
    if wanted("programs") {
        step("programs");
        programs::measure(places, effort, &mut report)?;
    }
    let patterns: Vec<&str> = traffic::words().filter(|word| wanted("traffic") || wanted(word)).collect();
    if !patterns.is_empty() {
        step("traffic");
        let mut place = Place::new(places, EDGES, None)?;
        traffic::measure(&mut place, &patterns, effort, &mut report)?;
    }
    if wanted("devices") {
        step("devices");
        devices::measure(places, effort, &mut report)?;
    }
    if wanted("policy") {
        step("policy");
        policy::measure(places, effort, &mut report)?;
    }
    if wanted("memory") {
        step("memory");
        memory::measure(places, effort, &mut report)?;
    }
    Ok(report)
}

/// Edges that are loaded where nothing else is said.
const EDGES: usize = 100_000;

fn step(name: &str) {
    eprintln!("== {name}");
}
