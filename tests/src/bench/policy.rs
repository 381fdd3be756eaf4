//! From a policy file to the maps: time and memory.

use std::time::Instant;

use agent_common::layout::{EdgeEntry, EdgeKey};
use anyhow::Context as _;
use eastwall::{
    datapath::{MapKind, Table},
    policy::{compile, load, map_state::MapState},
};

use super::{
    EDGES, Effort,
    place::{Place, Places},
    report::{Report, Row, Target},
    sample::{Spread, as_f64},
    synthetic,
};
use crate::bpf::fd_info;

/// Measures reading, compiling, filling, flipping, and the bytes of an edge.
pub fn measure(places: &Places, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    for (edges, name) in [(1_000, "1k"), (100_000, "100k"), (1_000_000, "1M")] {
        let text = synthetic::text(edges);
        let (mut read, mut compiled) = (Vec::new(), Vec::new());
        for _ in 0..effort.pick(1, if edges > EDGES { 3 } else { 10 }) {
            let start = Instant::now();
            let loaded = load::load(&[("bench.yaml", &text)]).ok().context("read a policy")?;
            read.push(ms_since(start));
            let start = Instant::now();
            let input = compile::CompileInput::default();
            let state = compile::compile(&loaded.policy, &input).ok().context("compile a policy")?;
            compiled.push(ms_since(start));
            anyhow::ensure!(state.edges.len() == edges, "{} edges, not {edges}", state.edges.len());
        }
        report.add(Row::new(format!("read and check a policy, {name} edges"), Spread::of(read), "ms"));
        report.add(Row::new(format!("compile, {name} edges"), Spread::of(compiled), "ms"));
    }
    kernel(places, effort, report)?;
    for (edges, name) in [(10_000, "10k"), (EDGES, "100k"), (1_000_000, "1M")] {
        let row = Row::new(format!("memory of an edge, {name} edges"), Spread::exactly(bytes(edges)?), "B");
        report.add(row.target(Target::AtMost(160.0)));
    }
    Ok(())
}

fn kernel(places: &Places, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let mut place = Place::new(places, 10, None)?;
    place.attach()?;
    for (edges, name, target) in [(EDGES, "100k", Some(Target::AtMost(300.0))), (1_000_000, "1M", None)] {
        let state = synthetic::compiled(edges, &[]);
        let identities = synthetic::identities([]);
        let (mut fills, mut flips, mut settles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.pick(2, if edges > EDGES { 3 } else { 20 }) {
            let start = Instant::now();
            let prepared = place.datapath.prepare(&state, synthetic::settings(), &identities)?;
            fills.push(ms_since(start));
            let start = Instant::now();
            place.datapath.flip(&prepared)?;
            flips.push(ms_since(start));
            let start = Instant::now();
            place.datapath.settle()?;
            settles.push(ms_since(start));
        }
        let row = Row::new(format!("fill the idle side, {name} edges"), Spread::of(fills), "ms");
        report.add(match target {
            Some(target) => row.target(target),
            None => row,
        });
        let row = Row::new(format!("flip, {name} edges"), Spread::of(flips), "ms");
        report.add(row.target(Target::AtMost(1.0)));
        report.add(Row::new(format!("wait for the old side, {name} edges"), Spread::of(settles), "ms"));
    }
    Ok(())
}

/// What the kernel charges for a side with this many edges, by edge.
fn bytes(edges: usize) -> anyhow::Result<f64> {
    let MapState { edges: elements, .. } = synthetic::compiled(edges, &[]);
    let table: Table<EdgeKey, EdgeEntry> = Table::create(MapKind::Hash, u32::try_from(edges)?, NO_PREALLOC, "edges")?;
    table.put_all(&elements)?;
    Ok(fd_info(std::os::fd::AsFd::as_fd(table.fd()), "memlock")? / as_f64(edges))
}

/// As the sides of `edges` are made.
const NO_PREALLOC: u32 = 1;

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
