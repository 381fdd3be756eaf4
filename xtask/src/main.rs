//! Everything a developer or CI runs: `cargo xtask <what>`.
//!
//! `ci` is exactly what CI runs. Nothing here imports the crates it builds and checks.

mod bench;
mod ci;
mod deb;
mod demo;
mod fuzz;
mod gaps;
mod licences;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::workspace::Workspace;

/// Everything a developer or CI runs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find what is missing on this machine and install it, each at its pinned version
    Setup {
        /// What the machine is wanted for
        #[arg(default_value = "all")]
        scope: Scope,
    },
    /// Run the tests; what they need is set up first
    Test {
        /// Which tests
        #[arg(default_value = "all")]
        scope: Scope,
    },
    /// Run the tests that prove the gaps, and print which test proves which
    Gaps {
        /// Numbers of gaps; all if none is named
        numbers: Vec<u16>,
    },
    /// See it work: a small shop of real programs, guarded step by step; as root
    Demo(demo::Options),
    /// Run the fuzz targets; what they need is set up first
    Fuzz {
        /// How long each target runs
        #[arg(long, default_value_t = fuzz::SECONDS_SHORT)]
        seconds: u32,
        /// Which targets; all if none is named
        targets: Vec<String>,
    },
    /// Measure what it costs, and compare with what is promised; as root
    Bench {
        /// A sanity run: too short for numbers to be published
        #[arg(long)]
        quick: bool,
        /// Fail if a number misses its target
        #[arg(long)]
        check: bool,
        /// Which parts: programs, traffic, devices, policy, memory, or a kind of traffic such as tcp-rr; all if none is named
        parts: Vec<String>,
    },
    /// Check what neither the compiler nor clippy can: who may import whom, long files, loose ends
    Tidy,
    /// Check that every dependency has an accepted licence and comes from an accepted place
    Licences,
    /// Run a command under another kernel, in a machine of its own; as root
    Vm(vm::Options),
    /// Build the Debian package and check what is in it
    Deb,
    /// Run all that CI runs: format, clippy, tidy, licences, tests, package
    Ci,
}

/// A part of the tests, and with it what a machine must have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Scope {
    /// Tests without privileges; the kernel programs are left out
    Host,
    /// Tests that load kernel programs and open real sockets; as root
    Kernel,
    /// Both, and a short run of each fuzz target
    All,
}

impl Scope {
    /// Says whether the fuzz targets are run.
    const fn has_fuzz(self) -> bool {
        matches!(self, Self::All)
    }

    /// Says whether the kernel programs are built and loaded.
    const fn has_kernel(self) -> bool {
        match self {
            Self::Host => false,
            Self::Kernel | Self::All => true,
        }
    }
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::find()?;
    let done = match task {
        Task::Vm(options) => return vm::run(&workspace, &options),
        Task::Setup { scope } => setup::run(&workspace, scope),
        Task::Test { scope } => test::run(&workspace, scope),
        Task::Gaps { numbers } => gaps::run(&workspace, &numbers),
        Task::Demo(options) => demo::run(&workspace, &options),
        Task::Fuzz { seconds, targets } => fuzz::run(&workspace, seconds, &targets),
        Task::Bench { quick, check, parts } => bench::run(&workspace, quick, check, &parts),
        Task::Tidy => tidy::run(&workspace),
        Task::Licences => licences::run(&workspace),
        Task::Deb => deb::run(&workspace),
        Task::Ci => ci::run(&workspace),
    };
    done.map(|()| ExitCode::SUCCESS)
}
