//! Resident memory of a process that holds a policy, the kernel side and many labelled cgroups.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use agent_common::id::IdentityId;
use anyhow::Context as _;
use eastwall::{
    datapath::{Capacity, Datapath, DatapathConfig, Pins},
    memory,
    policy::{
        compile::{self, CompileInput},
        load,
    },
};

use super::{
    Effort,
    place::Places,
    report::{Report, Row, Target},
    sample::Spread,
    synthetic,
};

const EDGES: usize = 10_000;
const CGROUPS: u64 = 1_000;

/// Starts a process of its own, since this one has held much more before.
pub fn measure(places: &Places, _: Effort, report: &mut Report) -> anyhow::Result<()> {
    let config = places.config(places.lab.cgroup());
    fs::create_dir(&config.run)?;
    let output = Command::new(std::env::current_exe()?)
        .arg("hold")
        .args([&config.cgroup, &config.pins, &config.run])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start a process that holds a policy")?;
    Pins::remove_all(&config.pins)?;
    let text = String::from_utf8(output.stdout)?;
    anyhow::ensure!(output.status.success(), "it ended with {}", output.status);
    let mib = |name: &str| -> anyhow::Result<f64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib: Option<f64> = value.and_then(|v| v.trim().trim_end_matches(" kB").parse().ok());
        Ok(kib.with_context(|| format!("no {name}"))? / 1024.0)
    };
    let note = format!("{:.1} MiB of its own, {:.1} MiB of files", mib("RssAnon")?, mib("RssFile")?);
    let name = format!("resident, {EDGES} edges, {CGROUPS} cgroups");
    report.add(Row::new(name, Spread::exactly(mib("VmRSS")?), "MiB").note(note));
    let row = Row::new("at its peak, a policy replaced by another", Spread::exactly(mib("VmHWM")?), "MiB");
    report.add(row.target(Target::AtMost(64.0)));
    Ok(())
}

/// The process: `bench hold CGROUP PINS RUN`.
pub fn hold(args: &[String]) -> anyhow::Result<()> {
    let [cgroup, pins, run] = args else { anyhow::bail!("usage: bench hold CGROUP PINS RUN") };
    memory::give_back_what_is_free();
    let text = synthetic::text(EDGES);
    let compiled = || {
        let loaded = load::load(&[("bench.yaml", &text)]).ok().context("read a policy")?;
        let state = compile::compile(&loaded.policy, &CompileInput::default()).ok().context("compile a policy")?;
        anyhow::Ok((loaded, state))
    };
    let (loaded, state) = compiled()?;
    let workloads = loaded.policy.workloads.values().map(|w| w.id.number());
    let names: Vec<IdentityId> = workloads.collect();
    // No cgroup has such a number: ids count up from 1.
    let cgroups = (0..CGROUPS).zip(names.iter().cycle()).map(|(n, &id)| (1 << 40 | n, id));
    let identities = synthetic::identities(cgroups);
    let mut datapath = Datapath::load(DatapathConfig {
        cgroup: Path::new(cgroup).to_owned(),
        pins: Path::new(pins).to_owned(),
        run: Path::new(run).to_owned(),
        fast_refusal: true,
        devices: false,
        host: false,
        tcx: true,
        kernel_log: false,
        capacity: Capacity::default(),
    })?;
    let prepared = datapath.prepare(&state, synthetic::settings(), &identities)?;
    datapath.flip(&prepared)?;
    datapath.settle()?;
    // The one in force is held until the other one is.
    let (next, next_state) = compiled()?;
    let prepared = datapath.prepare(&next_state, synthetic::settings(), &identities)?;
    datapath.flip(&prepared)?;
    drop((loaded, state));
    datapath.settle()?;
    let status = fs::read("/proc/self/status")?;
    std::io::Write::write_all(&mut std::io::stdout(), &status)?;
    drop((next, next_state, identities, datapath));
    Ok(())
}
