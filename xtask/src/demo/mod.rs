//! `xtask demo`: a small shop of real programs, guarded by the agent, and then two hosts, told step by step.
//!
//! Every line that the demo prints is the result of a real call, and every result is compared with what
//! it should be: a demo that goes to its end is a test that passed.

/// Prints a line of the story. Whoever reads it may have seen enough and be gone: that is no failure.
macro_rules! outln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout().lock(), $($text)*);
    }};
}

mod agent;
mod call;
mod cgroup;
mod events;
mod hosts;
mod place;
mod policy_file;
mod shop;
mod steps;
mod story;
mod two_hosts;

use anyhow::{Context as _, Error, Result, bail};
use clap::Args;

use self::{place::Place, policy_file::Ports, shop::Shop, story::Story};
use crate::{
    run::{cargo, run as run_command},
    setup,
    workspace::Workspace,
};

#[derive(Args)]
pub struct Options {
    /// Leave the shop and the agent running, and say how to look around
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Only remove what an earlier demo left: processes, cgroups, pins, files
    #[arg(long)]
    clean: bool,
}

/// Sets up what is missing, builds, and tells the story.
///
/// # Errors
///
/// Not root; something cannot be set up; a step did not end as it should.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !setup::machine::is_root() {
        bail!("the demo makes cgroups and loads kernel programs: run it as root");
    }
    let place = Place::find()?;
    if options.clean {
        outln!("{}", if place.clean()? { "the demo is gone" } else { "there is no demo here" });
        return Ok(());
    }
    place.refuse_if_running()?;
    setup::demo(workspace)?;
    run_command(cargo(workspace).args(["build", "--quiet", "--package", "eastwall", "--bins"]))?;
    if place.clean()? {
        outln!("an earlier demo was left behind; it is removed");
    }
    let ports = match tell(workspace, &place) {
        Ok(ports) => ports,
        Err(error) => return Err(after_failure(&place, options.keep, error)),
    };
    if options.keep {
        outln!("{}", story::how_to_explore(workspace, &place, ports));
        return Ok(());
    }
    place.clean().context("clean up")?;
    outln!("All of it is gone again: processes, cgroups, pins, files. `--keep` leaves it running.");
    Ok(())
}

/// Cleans up, or says how to, and returns what to report.
fn after_failure(place: &Place, keep: bool, error: Error) -> Error {
    // The reason is often in there, and the file may be about to go.
    eprintln!("{}", agent::log_tail(place));
    if keep {
        let dir = place.dir.display();
        return error.context(format!("the demo is left as it is in {dir}; `cargo xtask demo --clean` removes it"));
    }
    match place.clean() {
        Ok(_) => error,
        Err(worse) => error.context(format!("and it cannot be cleaned up: {worse:#}")),
    }
}

fn tell(workspace: &Workspace, place: &Place) -> Result<Ports> {
    place.make()?;
    let policy = policy_file::PolicyFile::new(workspace, place)?;
    // The agent first, as on a host: what listens already when it comes is known to the packet hooks only,
    // and a caller that is refused there waits in vain instead of being told.
    let agent = agent::Agent::start(workspace, place, place.shop())?;
    let ports = policy.ports;
    let shop = Shop::open(place, ports)?;
    let mut story = Story::new(place, shop, agent, policy);
    steps::all(workspace, &mut story)?;
    story.summary();
    Ok(ports)
}
