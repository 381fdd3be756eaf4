//! Calls of the clients: who asks whom, with which program, and what came of it.

use std::{
    fmt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{cgroup, place::Place, policy_file::Ports};

/// One call that can be made again and again.
#[derive(Clone, Copy)]
pub struct Call {
    /// The client.
    pub from: &'static str,
    /// The service.
    pub to: &'static str,
}

/// What came of it.
pub struct Outcome {
    /// Whether the program ended with 0.
    pub works: bool,
    /// What it said: its answer, or its complaint.
    pub text: String,
    /// How long it took.
    pub took: Duration,
}

impl Call {
    /// The program that the call is made with.
    pub fn tool(self) -> &'static str {
        match self.to {
            "web" => "curl",
            "cart" => "redis-cli",
            _ => "psql",
        }
    }

    /// Makes the call and waits for its end.
    ///
    /// # Errors
    ///
    /// The program cannot be started; how it ends is an [`Outcome`].
    pub fn make(self, place: &Place, ports: Ports) -> Result<Outcome> {
        self.make_by(&mut self.command(place, ports))
    }

    /// Makes the call by a command and waits for its end.
    ///
    /// # Errors
    ///
    /// As [`Self::make`].
    pub fn make_by(self, command: &mut Command) -> Result<Outcome> {
        let start = Instant::now();
        let output = command.stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("start {}", self.tool()))?;
        let text = if output.status.success() { &output.stdout } else { &output.stderr };
        let mut text = String::from_utf8_lossy(text).trim().to_owned();
        if output.status.code() == Some(124) {
            text = "no answer".to_owned();
        }
        Ok(Outcome { works: output.status.success(), text, took: start.elapsed() })
    }

    fn command(self, place: &Place, ports: Ports) -> Command {
        let dir = place.cgroup_of(self.from);
        match self.to {
            "web" => {
                let mut curl = cgroup::command(&dir, "curl");
                curl.args(["--silent", "--show-error", "--fail", "--max-time", "2"]);
                curl.arg(format!("http://127.0.0.1:{}/", ports.web));
                // A proxy of the machine's owner has no business with the loopback.
                curl.args(["--noproxy", "*"]);
                curl
            }
            "cart" => {
                let mut redis = cgroup::command(&dir, "timeout");
                redis.args(["2", "redis-cli", "-h", "127.0.0.1", "-p", &ports.cart.to_string(), "get", "cart:7"]);
                redis
            }
            _ => psql(&dir, ports, "select count(*) || ' orders' from orders"),
        }
    }
}

/// Returns psql that runs one statement in the cgroup `dir`.
pub fn psql(dir: &std::path::Path, ports: Ports, statement: &str) -> Command {
    let mut psql = cgroup::command(dir, "psql");
    psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]);
    psql.args(["--host", "127.0.0.1", "--port", &ports.orders_db.to_string()]);
    psql.args(["--username", "shop", "--dbname", "postgres", "--command", statement]);
    psql.env("PGCONNECT_TIMEOUT", "2").env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable");
    psql
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

impl Outcome {
    /// The part of the answer that a line has room for.
    pub fn short(&self) -> String {
        let line = self.text.lines().next().unwrap_or_default();
        let last = line.rsplit(": ").next().unwrap_or(line);
        last.trim_matches('"').to_owned()
    }
}
