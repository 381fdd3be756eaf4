//! The agent under test, with everything that it touches in a place of its own.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    mount::{MountFlags, mount},
    process::{Pid, Signal, kill_process},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Lab, Namespace, NetNs, binary, patience, wants_tcx};

/// How long the agent may take to be ready, to stop or to write an event. Loading programs under an
/// emulated CPU takes its time; nothing waits longer than it must.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// What can be different from the usual configuration.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Name of the binary.
    pub program: &'static str,
    /// The connect and sendmsg hooks, which refuse with EPERM. Without them only the boundary holds.
    pub fast_refusal: bool,
    /// The most capabilities that the agent may have, as setpriv(1) takes them: `+bpf,+net_admin`. None
    /// leaves it all that root has.
    pub capabilities: Option<String>,
    /// More keys of the configuration.
    pub more: Map<String, Value>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { program: "eastwall", fast_refusal: true, capabilities: None, more: Map::new() }
    }
}

/// A running agent that guards the cgroup of a lab.
///
/// Its pins are on a bpffs that only its mount namespace has: when the agent is dropped, so are they,
/// and the programs with them.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    mounts: Namespace,
    dir: TempDir,
    capabilities: Option<String>,
    before: Vec<String>,
    process: Option<Child>,
}

impl Agent {
    /// Starts an agent with one policy file, and returns when it is ready.
    ///
    /// # Panics
    ///
    /// If it does not become ready; with its log.
    #[must_use]
    pub fn start(lab: &Lab, policy: &str, options: &AgentOptions) -> Self {
        let mut agent = Self::prepare(lab, policy, options).expect("prepare an agent");
        agent.restart();
        agent
    }

    /// Makes the place of an agent without starting it: [`Self::restart`] does.
    ///
    /// # Errors
    ///
    /// If its files and its bpffs cannot be made.
    pub fn prepare(lab: &Lab, policy: &str, options: &AgentOptions) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("eastwall-lab-")?;
        for name in ["bpf", "policy.d", "state"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let bpf = dir.path().join("bpf");
        let mounts = Namespace::mount(|| {
            mount("bpf", &bpf, "bpf", MountFlags::empty(), Some(c"mode=700")).context("mount a bpffs")
        })?;
        let capabilities = options.capabilities.clone();
        let agent =
            Self { binary: binary(options.program)?, mounts, dir, capabilities, before: Vec::new(), process: None };
        fs::write(agent.policy_file(), policy)?;
        let mut config = options.more.clone();
        for (key, value) in [
            ("scope", json!(lab.cgroup().path())),
            ("pinDirectory", json!(bpf.join("eastwall"))),
            ("controlSocket", json!(agent.control_socket())),
            ("policyDirectory", json!(agent.path("policy.d"))),
            ("eventsFile", json!(agent.path("events.jsonl"))),
            ("stateDirectory", json!(agent.path("state"))),
            ("fastRefusal", json!(options.fast_refusal)),
            ("tcx", json!(wants_tcx())),
        ] {
            config.entry(key).or_insert(value);
        }
        // JSON is YAML.
        fs::write(agent.path("agent.yaml"), serde_json::to_vec_pretty(&config)?)?;
        Ok(agent)
    }

    /// Starts the agent again, after [`Self::kill`] or [`Self::stop`], on the pins that it left.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the agent runs already");
        let mut command = self.command();
        let child = self.mounts.run(|| command.spawn()).expect("start the agent");
        self.process = Some(child);
        // A socket that a killed agent left answers nobody, so it is no sign of life.
        self.wait("the agent is ready", |agent| UnixStream::connect(agent.control_socket()).is_ok());
    }

    /// As [`Self::restart`], where the agent may as well end; says whether it became ready.
    ///
    /// # Panics
    ///
    /// If it does neither.
    pub fn try_restart(&mut self) -> bool {
        assert!(self.process.is_none(), "the agent runs already");
        let mut command = self.command();
        self.process = Some(self.mounts.run(|| command.spawn()).expect("start the agent"));
        let end = Instant::now() + patience(PATIENCE);
        loop {
            if self.process.as_mut().and_then(|child| child.try_wait().ok().flatten()).is_some() {
                self.process = None;
                return false;
            }
            if UnixStream::connect(self.control_socket()).is_ok() {
                return true;
            }
            assert!(Instant::now() < end, "the agent neither ends nor is ready\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    /// Starts the agent where it must refuse to run, and returns its exit code and what it said.
    ///
    /// # Panics
    ///
    /// If it runs after all.
    #[must_use]
    pub fn refuses_to_start(&mut self) -> (Option<i32>, String) {
        assert!(self.process.is_none(), "the agent runs already");
        let mut command = self.command();
        self.process = Some(self.mounts.run(|| command.spawn()).expect("start the agent"));
        let end = Instant::now() + patience(PATIENCE);
        loop {
            let exit = self.process.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(exit) = exit {
                self.process = None;
                return (exit.code(), self.log());
            }
            let ready = UnixStream::connect(self.control_socket()).is_ok();
            assert!(!ready && Instant::now() < end, "the agent runs\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    /// As [`Self::refuses_to_start`], with what it said this time alone, and also where another program
    /// answers at the socket.
    ///
    /// # Panics
    ///
    /// If it does not end.
    #[must_use]
    pub fn refused(&mut self) -> (Option<i32>, String) {
        assert!(self.process.is_none(), "the agent runs already");
        let before = self.log().len();
        let mut command = self.command();
        let mut child = self.mounts.run(|| command.spawn()).expect("start the agent");
        let end = Instant::now() + patience(PATIENCE);
        loop {
            if let Some(exit) = child.try_wait().expect("wait for the agent") {
                return (exit.code(), self.log()[before..].to_owned());
            }
            if Instant::now() >= end {
                self.process = Some(child);
                panic!("the agent runs\n{}", self.log());
            }
            thread::sleep(LOOK);
        }
    }

    /// From now on the agent runs in another network.
    pub fn live_in(&mut self, netns: &NetNs) {
        self.start_by(&["nsenter", &format!("--net=/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())]);
    }

    /// From now on another program starts the agent and becomes it, with the same process id: `words` are
    /// that program and its arguments, and the command of the agent follows them. Without words it starts itself.
    pub fn start_by(&mut self, words: &[&str]) {
        self.before = words.iter().map(|word| (*word).to_owned()).collect();
    }

    fn command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.path("agent.log")).expect("open a log");
        // Each becomes the next, with the same process id.
        let mut words: Vec<OsString> = self.before.iter().map(OsString::from).collect();
        if let Some(most) = &self.capabilities {
            let bounding = format!("--bounding-set=-all,{most}");
            words.extend(["setpriv", "--no-new-privs", "--inh-caps=-all", &bounding].map(OsString::from));
        }
        words.push(self.binary.clone().into_os_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.arg("agent").arg("--config").arg(self.path("agent.yaml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share a log")).stderr(log);
        command
    }

    /// Replaces the policy and returns when the agent has acknowledged it.
    ///
    /// # Panics
    ///
    /// If the agent refuses it.
    pub fn apply(&self, policy: &str) {
        let output = self.try_apply(policy);
        assert!(output.status.success(), "apply a policy: {output:?}\n{}", self.log());
    }

    /// Asks the agent to take another policy, and returns what the command line said.
    ///
    /// # Panics
    ///
    /// If the command line cannot be run.
    #[must_use]
    pub fn try_apply(&self, policy: &str) -> Output {
        let next = TempDir::new_in(self.dir.path()).expect("make a directory for a policy");
        fs::write(next.path().join("lab.yaml"), policy).expect("write a policy");
        self.cli(&["policy", "apply", &next.path().to_string_lossy()])
    }

    /// Runs a subcommand of the command line against this agent.
    ///
    /// # Panics
    ///
    /// If it cannot be run.
    #[must_use]
    pub fn cli(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.binary);
        command.args(words).arg("--socket").arg(self.control_socket());
        self.mounts.run(|| command.output()).expect("run the command line")
    }

    /// Runs `work` where the agent's pins can be seen.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.mounts.run(work)
    }

    /// Every event so far, oldest first. A line that is still being written is left out.
    ///
    /// # Panics
    ///
    /// If a line is no JSON.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("events.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect()
    }

    /// Waits for an event.
    ///
    /// # Panics
    ///
    /// If none comes that `is_it` accepts.
    pub fn event(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + patience(PATIENCE);
        loop {
            if let Some(event) = self.events().into_iter().find(&is_it) {
                return event;
            }
            assert!(Instant::now() < end, "no event: {what}\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    /// Waits until something holds.
    ///
    /// # Panics
    ///
    /// If it does not, or the agent ends meanwhile.
    pub fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + patience(PATIENCE);
        while !holds(self) {
            let exit = self.process.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(exit.is_none(), "the agent ended ({exit:?}) before this: {what}\n{}", self.log());
            assert!(Instant::now() < end, "not in time: {what}\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    /// Kills the agent as a crash would. Pins stay.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends the agent a signal.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).expect("the agent runs");
        kill_process(pid, signal).expect("send the agent a signal");
    }

    /// Stops the agent and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not run, does not end in time, or ends with an error.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ends();
        assert!(status.success(), "the agent ended with {status}\n{}", self.log());
    }

    /// Waits until the agent has ended.
    ///
    /// # Panics
    ///
    /// If it does not run, or goes on.
    pub fn ends(&mut self) -> ExitStatus {
        let mut child = self.process.take().expect("the agent runs");
        let end = Instant::now() + patience(PATIENCE);
        loop {
            match child.try_wait().expect("wait for the agent") {
                Some(status) => return status,
                None if Instant::now() < end => thread::sleep(LOOK),
                None => {
                    self.process = Some(child);
                    panic!("the agent does not stop\n{}", self.log());
                }
            }
        }
    }

    /// What the agent said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Its id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Where its control socket is.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    /// A file or directory of this agent.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program itself, which is the command line too.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The policy document of this agent. One that is replaced by renaming is never read half.
    #[must_use]
    pub fn policy_file(&self) -> PathBuf {
        self.path("policy.d").join("lab.yaml")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}
