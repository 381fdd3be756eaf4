//! The daemon: builds its parts, connects them, and takes them down in order.

mod answer;
mod checking;
mod core;
mod cutting;
mod devices;
mod in_force;
pub mod inbox;
mod overrides;
mod peers;
mod recent;
mod resets;
mod resolvers;
mod roster;
mod settled;
mod store;
mod surroundings;
mod swap;
mod tamper;

use std::{fs, io, path::Path, sync::Arc, thread};

use anyhow::{Context as _, Result, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use self::{
    core::Core,
    devices::Watch,
    in_force::{Candidate, Refusal},
    inbox::{Input, inbox},
    overrides::Overrides,
    roster::Roster,
    store::Store,
    surroundings::Surroundings,
};
pub use self::{
    core::Shared,
    tamper::{ran_elsewhere, unmark},
};
use crate::{
    clock,
    config::Config,
    control::{bind::ControlSocket, server},
    datapath::{
        Capacity, Datapath, DatapathConfig,
        boot_guard::{BootGuard, Standing},
        netns_cookie, wait_for_running_programs,
    },
    events::{
        ocsf::Node,
        pipeline::{self, Pipeline},
        record::Phase,
        snapshot::Snapshots,
    },
    sinks::{self, FileSink, SinkConfig, Target},
    sources::{cgroup::Hierarchy, devices::Devices, trust},
};

/// Runs the agent until SIGTERM or SIGINT. What is attached stays attached.
///
/// # Errors
///
/// Everything that keeps it from enforcing what it should; what an earlier agent pinned goes on.
pub fn run(config: Config) -> Result<()> {
    let host = config.host.clone().unwrap_or_else(host_name);
    make_directory(config.run_directory(), 0o755)?;
    make_directory(&config.policy_directory, 0o755)?;
    make_directory(&config.state_directory, 0o700)?;
    // What is in them is believed without a further look: locks, overrides, the last complete policy, pins.
    for directory in [config.run_directory(), &config.state_directory] {
        trust::open_directory(directory, 0)?;
    }

    let hierarchy = Hierarchy::find()?;
    if !hierarchy.is_real_root() && config.scope == "/" {
        return Err(anyhow!(
            "the cgroup2 mount is not the root of the hierarchy, so something would be outside of it: run the agent \
             in the host's cgroup namespace, or set `scope`"
        ));
    }
    let mut store = Store::new(&config.state_directory);
    let overrides = Overrides::open(&config.state_directory).context("read the overrides")?;
    let (candidate, problem) = first_policy(&mut store, &config)?;

    let mut datapath = Datapath::load(DatapathConfig {
        cgroup: hierarchy.dir(&config.scope),
        pins: config.pin_directory.clone(),
        run: config.run_directory().to_owned(),
        fast_refusal: config.fast_refusal,
        devices: config.guard_devices,
        host: config.guards_host(),
        tcx: config.tcx,
        kernel_log: config.kernel_log,
        capacity: Capacity {
            edges: config.capacity.edges,
            cgroups: config.capacity.cgroups,
            flows: config.capacity.flows,
            ..Capacity::default()
        },
    })?;
    let adopted = datapath.was_attached();
    // Under the lock of the pins, and before anything is in force: an agent that cannot be spoken to must not
    // begin to enforce.
    let socket = ControlSocket::bind(&config.control_socket, &config.group).context(
        "make the control socket; nothing was attached or changed, since nobody could have told this agent to stop",
    )?;
    let (events, cgroups) = datapath.take_events().zip(datapath.take_cgroup_events()).context("take the rings")?;
    let resets_due = datapath.take_resets().context("take the ring of calls to answer")?;

    let kernel_log = datapath.take_log();

    let node = node(&config, &host);
    let boot_id = node.boot_id.clone();
    let has_others = !datapath.others()?.is_empty();
    let all_unpinned = !adopted && !has_others && tamper::was_marked(&config, &boot_id);
    let (sink, opened) = open_sink(&config, node.clone())?;
    let (pipeline, records) = Pipeline::new(pipeline::Config::default(), opened.ledger.clone());
    let writer = sinks::spawn(sink, records, Box::new(clock::now)).context("start the writer of events")?;
    if !adopted && !has_others {
        // Counters that start at 0 are no loss.
        pipeline.ledger().lock().maps_are_new();
    }

    let (devices, unheard) = open_devices(&config);
    let resolver = candidate.resolver(&host)?;
    let shared = Arc::new(Shared::default());
    let now = clock::now().boot_ns;
    // What is compared with the first policy of this agent: the last one of the agent before.
    let before = if adopted { store.last_complete(&config).ok().flatten() } else { None };
    let before = before
        .and_then(|before| before.compile(&overrides.rules(), clock::boot_to_unix(), &Surroundings::default()).ok());
    let mut core = Core {
        roster: Roster::new(hierarchy, config.scope.clone()),
        host,
        datapath,
        store,
        pipeline: Arc::new(pipeline),
        candidate: candidate.clone(),
        resolver,
        state: before.map(Arc::new).unwrap_or_default(),
        labels: Default::default(),
        overrides,
        snapshots: Snapshots::default(),
        shared: Arc::clone(&shared),
        events,
        cgroups,
        resets_due,
        answers: None,
        kernel_log,
        started_ns: now,
        applied_ns: now,
        adopted,
        has_others,
        problems: Default::default(),
        wall_offset: 0,
        history: Default::default(),
        unresolved: Default::default(),
        watch: Watch::new(devices),
        surroundings_seen: None,
        host_netns: netns_cookie().context("ask for the cookie of the host's network namespace")?,
        dns: Default::default(),
        dns_swept: 0,
        upkeep: Default::default(),
        config,
    };
    let problem = core.start(candidate, all_unpinned)?.or(problem);
    tamper::mark(&core.config, &boot_id).context("note that programs are attached")?;
    // After the start: it puts a good policy in force, which is not the one that people wrote.
    core.problems.extend(problem.map(|p| ("policy", p)));
    core.problems.extend(unheard.map(|p| ("netlink", p)));
    core.lifecycle(Phase::Started {
        adopted,
        previous_boot_last_sequence: opened.previous_boot_last_sequence,
        previous_stop_clean: opened.previous_stop_clean,
    });
    core.relieve_boot_guard();
    serve(core, shared, node, writer, &socket)
}

fn serve(
    mut core: Core,
    shared: Arc<Shared>,
    node: Node,
    writer: sinks::WriterHandle,
    socket: &ControlSocket,
) -> Result<()> {
    let (outside, inside) = inbox().context("make the queue of the reconcile thread")?;
    let (config, pipeline) = (core.config.clone(), Arc::clone(&core.pipeline));
    let mount = core.roster.hierarchy().mount().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("start the control server")?;
    let (looks, looks_no_more) = tokio::sync::oneshot::channel::<()>();
    let reconcile = thread::Builder::new()
        .name("reconcile".to_owned())
        .spawn(move || {
            // Dropped at the end, by whatever that comes: an agent that looks at nothing any more must not live on.
            let _looks = looks;
            core.run(&inside)
        })
        .context("start the reconcile thread")?;

    let served = runtime.block_on(async {
        let access = server::Access { mount, shared, node };
        // Before anybody can see that there is an agent to stop.
        let signals = Signals::listen()?;
        let listener = socket.listen().context("listen at the control socket")?;
        notify("READY=1");
        info!(socket = %config.control_socket.display(), "ready");
        let serving = server::serve(listener, outside.clone(), pipeline, access);
        tokio::select! {
            () = serving => Err(anyhow!("the control server ended")),
            () = signals.heed(&outside, &writer) => Ok(()),
            _ = looks_no_more => Err(anyhow!("the reconcile thread ended")),
        }
    });
    notify("STOPPING=1");
    let _ = outside.send(Input::Stop);
    let ended = reconcile.join().map_err(|_| anyhow!("the reconcile thread panicked; the kernel goes on as it is"))?;
    writer.stop();
    // Why it ended comes before that it did.
    ended.and(served)
}

impl Core {
    /// The first policy of this agent: fill, flip, and only then attach, so that no packet is judged
    /// without a policy. Over an adopted kernel side it is an ordinary swap. Returns what is wrong with
    /// the directory's policy, if the last complete one had to take its place. `all_unpinned`: an agent was here, and
    /// nothing of it is.
    fn start(&mut self, candidate: Candidate, all_unpinned: bool) -> Result<Option<String>> {
        if self.has_others {
            self.datapath.take_over()?;
        }
        self.adopt_devices()?;
        let (name, files) = (candidate.policy.name.clone(), candidate.files.clone());
        let mut problem = None;
        if let Err(e) = self.apply(candidate) {
            let e = e.context(format!("apply the policy `{name}`"));
            match self.store.last_complete(&self.config) {
                Ok(Some(last)) if last.files != files => {
                    self.apply(last)?;
                    warn!("the last complete policy is used: {e:#}");
                    problem = Some(format!("the last complete policy is in force: {e:#}"));
                }
                _ => return Err(e),
            }
        }
        let unpinned = if self.adopted { self.datapath.unpinned() } else { Vec::new() };
        self.datapath.attach()?;
        if self.has_others {
            // From here on what sockets do is judged by this version as well; what came to the others until then:
            wait_for_running_programs();
            self.datapath.take_over()?;
        }
        self.tell_unpinned(&unpinned, all_unpinned);
        // Cgroups made before the tracepoints were attached have no entry: look again, now that every
        // later one has.
        self.roster.walk()?;
        let labels = self.roster.labels(&self.resolver);
        for (&id, &slot) in &labels.cgroups {
            if self.labels.cgroups.get(&id) != Some(&slot) {
                self.datapath.label(id, slot)?;
            }
        }
        self.labels = labels;
        self.install_names();
        self.look_at_devices();
        if self.has_others {
            self.begin_books()?;
        }
        self.cut();
        self.retire_others();
        Ok(problem)
    }

    /// Takes the guard off that stood until there was a policy. What it guards stays silent if that cannot be.
    fn relieve_boot_guard(&mut self) {
        match BootGuard::beside(&self.config.pin_directory).lift() {
            Ok(None) => {}
            Ok(Some(Standing { counts, .. })) => {
                info!(sent = counts.sent, received = counts.received, "took off the boot guard, which had dropped");
                self.lifecycle(Phase::Relieved { dropped: (counts.sent, counts.received) });
            }
            Err(e) => {
                let problem = format!(
                    "take off the boot guard: {:#}. If `eastwall boot-guard show` says that it stands, what it guards stays \
                     silent; write `eastwall boot-guard off --yes`",
                    anyhow!(e)
                );
                warn!("{problem}");
                self.problems.extend([("bootGuard", problem)]);
            }
        }
    }

    /// The counters of this version begin at 0. What both versions have denied since they are attached, at devices too,
    /// counts twice, and is lost once: nothing goes uncounted.
    fn begin_books(&self) -> Result<()> {
        wait_for_running_programs();
        let counts = self.datapath.counts_of_others()?;
        let mut ledger = self.pipeline.ledger().lock();
        match counts {
            Some(counts) => ledger.maps_ended_with(&counts),
            None => ledger.maps_are_new(),
        }
        Ok(())
    }
}

/// The devices of this network namespace. Without them the hooks of sockets hold: that is a problem of `status`, and no
/// reason to enforce nothing.
fn open_devices(config: &Config) -> (Option<Devices>, Option<String>) {
    if !config.guard_devices {
        return (None, None);
    }
    match Devices::open() {
        Ok(devices) => (Some(devices), None),
        Err(e) => {
            let problem = format!(
                "devices of workloads are not guarded, so that what no socket sends is not judged: {:#}; or write \
                 `guardDevices: false`",
                anyhow!(e)
            );
            warn!("{problem}");
            (None, Some(problem))
        }
    }
}

/// The directory's policy; if that is no good, the last complete one and what is wrong.
fn first_policy(store: &mut Store, config: &Config) -> Result<(Candidate, Option<String>)> {
    let wrong = match store.read_policy(config) {
        Ok(candidate) => return Ok((candidate, None)),
        Err(e) => e,
    };
    match store.last_complete(config) {
        Ok(Some(candidate)) => {
            warn!("the last complete policy is used: {wrong:#}");
            Ok((candidate, Some(format!("the last complete policy is in force: {wrong:#}"))))
        }
        Ok(None) => Err(wrong.context(format!("read the policy in `{}`", config.policy_directory.display()))),
        Err(e) => Err(wrong.context(format!("and the last complete policy cannot be used either: {e:#}"))),
    }
}

/// Says whether an error of [`run`] is about the content of the policy.
#[must_use]
pub fn is_policy_error(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Refusal>()
            || answer::is_too_large(error)
            || cause
                .downcast_ref::<crate::sources::policy_dir::ReadPolicyError>()
                .is_some_and(crate::sources::policy_dir::ReadPolicyError::is_content)
    })
}

fn open_sink(config: &Config, node: Node) -> Result<(FileSink, sinks::Opened)> {
    let target = if config.events_file == Path::new("-") {
        Target::Stdout
    } else {
        make_directory(config.events_file.parent().unwrap_or(Path::new("/")), 0o750)?;
        Target::File(config.events_file.clone())
    };
    let position = Some(config.run_directory().join("sequence"));
    FileSink::open(SinkConfig { target, position }, node, &clock::now()).context("open the events file")
}

/// This host, as events name it.
fn node(config: &Config, host: &str) -> Node {
    let read = |path| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    Node {
        hostname: host.to_owned(),
        machine_id: read("/etc/machine-id"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        tenant: config.tenant.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What others tell a running agent by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens from now on: what came before has ended the process.
    fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("listen for SIGHUP")?,
        })
    }

    /// Waits for the one that says to stop.
    async fn heed(mut self, outside: &inbox::Outside, writer: &sinks::WriterHandle) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    writer.reopen();
                    if !outside.send(Input::Reload) {
                        warn!("the reconcile thread is busy; the directory is read again within a second anyway");
                    }
                }
            }
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("make the directory `{}`", path.display()))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Tells the service manager. Without one there is nobody to tell.
fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|s| {
        use std::os::{linux::net::SocketAddrExt as _, unix::ffi::OsStrExt as _};
        match socket.as_bytes() {
            [b'@', name @ ..] => {
                s.send_to_addr(state.as_bytes(), &std::os::unix::net::SocketAddr::from_abstract_name(name)?)
            }
            _ => s.send_to(state.as_bytes(), &socket),
        }
    });
    if let Err(e) = sent {
        log_io("tell the service manager", &e);
    }
}

fn log_io(what: &str, e: &io::Error) {
    warn!("{what}: {e}");
}
