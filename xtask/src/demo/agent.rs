//! The agent of the demo, and its command line.

use std::{
    fs::{self, File},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    hosts::in_network,
    place::{Host, Place},
};
use crate::{run::run as run_command, workspace::Workspace};

/// How long the agent may take until it answers.
const START_MAX: Duration = Duration::from_secs(120);

/// Last lines of the log that a failure shows.
const LOG_LINES: usize = 8;

/// A running agent.
pub struct Agent {
    binary: PathBuf,
    host: Host,
    process: Child,
}

impl Agent {
    /// Starts the agent of a host, the program that was built last, and returns when it answers.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn start(workspace: &Workspace, place: &Place, host: Host) -> Result<Self> {
        let mut settings = json!({
            "scope": host.scope,
            "pinDirectory": host.pins,
            "controlSocket": host.socket(),
            "policyDirectory": host.dir.join("policy.d"),
            "stateDirectory": host.dir.join("state"),
            "eventsFile": host.events(),
        });
        if host.network.is_some() {
            settings["peersFile"] = json!(host.peers());
        }
        // JSON is YAML.
        fs::write(host.config(), format!("{settings:#}\n")).context("write agent.yaml")?;
        let binary = binary(workspace);
        let process = spawn(&binary, &host)?;
        let mut agent = Self { binary, host, process };
        place.record("agent", agent.process.id())?;
        agent.wait()?;
        Ok(agent)
    }

    /// Starts it again on what a killed one left; returns how long that took.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn restart(&mut self, place: &Place) -> Result<Duration> {
        let start = Instant::now();
        self.process = spawn(&self.binary, &self.host)?;
        place.record("agent", self.process.id())?;
        self.wait()?;
        Ok(start.elapsed())
    }

    /// Kills it as `kill -9` does; returns its process id.
    ///
    /// # Errors
    ///
    /// It has ended before.
    pub fn kill(&mut self) -> Result<u32> {
        let id = self.process.id();
        if let Some(status) = self.process.try_wait().context("look at the agent")? {
            bail!("the agent has ended by itself: {status}");
        }
        self.process.kill().context("kill the agent")?;
        self.process.wait().context("wait for the agent")?;
        Ok(id)
    }

    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + START_MAX;
        while UnixStream::connect(self.host.socket()).is_err() {
            if let Some(status) = self.process.try_wait().context("look at the agent")? {
                bail!("the agent of host {} ended: {status}", self.host.name);
            }
            if Instant::now() > end {
                bail!("the agent of host {} does not answer after {} s", self.host.name, START_MAX.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Runs the command line and returns how it ended.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(self.host.socket()).args(arguments).stdin(Stdio::null());
        command.output().with_context(|| format!("start eastwall {}", arguments.join(" ")))
    }

    /// Takes off the kernel what it attached, as `eastwall detach` does. It must not run.
    ///
    /// # Errors
    ///
    /// It ends with anything but 0.
    pub fn detach(&self) -> Result<()> {
        let mut command = in_network(self.host.network, &self.binary.to_string_lossy());
        run_command(command.arg("detach").arg("--yes").arg("--config").arg(self.host.config()).stdout(Stdio::null()))
    }

    /// Runs the command line for a machine, and reads its answer.
    ///
    /// # Errors
    ///
    /// It ends with anything but 0, or answers no JSON.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        let output = self.cli(&all)?;
        if !output.status.success() {
            let talk = String::from_utf8_lossy(&output.stderr);
            bail!("`eastwall {}` ended with {}: {}", arguments.join(" "), output.status, talk.trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("read the answer of {}", arguments.join(" ")))
    }

    /// Returns the status of the agent, which must have no problem.
    ///
    /// # Errors
    ///
    /// It has one.
    pub fn status(&self) -> Result<Value> {
        let status = self.ask(&["status"])?;
        match status["problems"].as_array() {
            Some(problems) if problems.is_empty() => Ok(status),
            _ => bail!("the agent has problems: {}", status["problems"]),
        }
    }
}

/// The program that the checkout builds.
pub fn binary(workspace: &Workspace) -> PathBuf {
    workspace.target.join("debug/eastwall")
}

/// Returns the end of the log of every agent that has one.
pub fn log_tail(place: &Place) -> String {
    let mut tails = String::new();
    for host in place.hosts() {
        let Ok(text) = fs::read_to_string(host.log()) else { continue };
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.len().saturating_sub(LOG_LINES);
        tails += &format!("the last lines of the agent's log, host {}:\n{}\n", host.name, lines[tail..].join("\n"));
    }
    tails
}

fn spawn(binary: &Path, host: &Host) -> Result<Child> {
    let log = File::options().create(true).append(true).open(host.log()).context("open the agent's log")?;
    let mut command = in_network(host.network, &binary.to_string_lossy());
    command.arg("agent").arg("--config").arg(host.config());
    command.stdin(Stdio::null()).stdout(log.try_clone().context("share the agent's log")?).stderr(log);
    // A daemon is in no terminal's foreground: with `--keep` it outlives this process.
    command.process_group(0);
    command.spawn().with_context(|| format!("start {}", binary.display()))
}
