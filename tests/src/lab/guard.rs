//! The kernel side alone: the programs and maps that the agent would load, without the agent.

use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};

use agent_common::{
    id::Epoch,
    layout::{DenyCounter, DenyKey, DenyRecord, DenyStat, IdentSlot, Settings},
};
use anyhow::Context as _;
use eastwall::{
    datapath::{Capacity, Datapath, DatapathConfig, DatapathError, Identities, netns_cookie, ring::Ring},
    identity::resolver::Resolver,
    policy::{
        compile::{CompileInput, compile},
        load::load,
        map_state::MapState,
        model::Rule,
        resolvers::Resolvers,
    },
    sources::cgroup::Hierarchy,
};
use rustix::{
    mount::{MountFlags, mount},
    time::{ClockId, clock_gettime},
};
use tempfile::TempDir;
use zerocopy::FromBytes as _;

use super::{Denials, Lab, Namespace, NetNs, Party, magic, wants_tcx};

/// Longer than any program takes from its first counter to its last.
const SETTLED: Duration = Duration::from_secs(2);

/// What can be different from the usual.
#[derive(Clone, Debug)]
pub struct GuardOptions {
    /// The connect and sendmsg hooks. Without them only the boundary holds.
    pub fast_refusal: bool,
    /// The programs for devices.
    pub devices: bool,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Denials of one workload that are reported before they are folded.
    pub event_burst: u32,
    /// How fast that many are earned again.
    pub event_per_second: u32,
    /// Entries of the flow table that one cgroup may hold.
    pub flow_quota: u32,
    /// Whom the built-in `dns` lets every workload ask.
    pub resolvers: Resolvers,
    /// Whose answers name externals.
    pub answers: Resolvers,
    /// Cookie of the network namespace that is the host's.
    pub host_netns: u64,
    /// Addresses that one external may have by DNS.
    pub dns_quota: u32,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self {
            fast_refusal: true,
            devices: false,
            capacity: Capacity::default(),
            event_burst: 1 << 30,
            event_per_second: 0,
            flow_quota: 1 << 20,
            resolvers: Resolvers::default(),
            answers: Resolvers::default(),
            host_netns: 0,
            dns_quota: 1_000,
        }
    }
}

/// The kernel programs at work on the cgroup of a lab, with a policy that the test flips.
///
/// Their pins are on a bpffs that only a mount namespace of this guard has: dropping it detaches them.
pub struct Guard {
    /// Declared first, so dropped first: it holds the pins.
    datapath: Datapath,
    events: Ring,
    options: GuardOptions,
    scope: String,
    hierarchy: Hierarchy,
    seen: [u64; DenyCounter::COUNT as usize],
    mounts: Namespace,
    _dir: TempDir,
}

impl Guard {
    /// Loads the programs and attaches them to the cgroup of a lab. No policy is in force: everything
    /// is unknown and denied.
    ///
    /// # Panics
    ///
    /// If the kernel refuses a program.
    #[must_use]
    pub fn attach(lab: &Lab, options: GuardOptions) -> Self {
        let mut guard = Self::load(lab, options);
        guard.reattach().expect("attach the programs");
        guard
    }

    /// As [`Self::attach`], without attaching.
    ///
    /// # Panics
    ///
    /// If the kernel refuses a program.
    #[must_use]
    pub fn load(lab: &Lab, options: GuardOptions) -> Self {
        Self::try_load(lab, options).expect("load the programs")
    }

    fn try_load(lab: &Lab, options: GuardOptions) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("eastwall-lab-")?;
        let bpf = dir.path().join("bpf");
        fs::create_dir(&bpf)?;
        let mounts = Namespace::mount(|| {
            mount("bpf", &bpf, "bpf", MountFlags::empty(), Some(c"mode=700")).context("mount a bpffs")
        })?;
        let config = DatapathConfig {
            cgroup: lab.cgroup().dir().to_owned(),
            pins: bpf.join("eastwall"),
            run: dir.path().to_owned(),
            fast_refusal: options.fast_refusal,
            devices: options.devices,
            host: false,
            tcx: wants_tcx(),
            kernel_log: false,
            capacity: options.capacity,
        };
        let mut datapath = mounts.run(|| Datapath::load(config))?;
        let events = datapath.take_events().context("take the ring of denials")?;
        let scope = lab.cgroup().path().to_owned();
        let (hierarchy, seen) = (Hierarchy::find()?, Default::default());
        Ok(Self { datapath, events, options, scope, hierarchy, seen, mounts, _dir: dir })
    }

    /// Attaches the programs, or puts them under the links that are there.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn reattach(&mut self) -> Result<(), DatapathError> {
        self.mounts.run(|| self.datapath.attach())
    }

    /// Takes programs away, by their names. They may run for a moment longer.
    ///
    /// # Panics
    ///
    /// If a pin cannot be removed.
    pub fn detach(&mut self, programs: &[&'static str]) {
        self.mounts.run(|| self.datapath.detach(programs)).expect("take programs away");
    }

    /// The kernel side.
    #[must_use]
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Takes every flow from the flow table: by then all have been idle for too long.
    ///
    /// # Panics
    ///
    /// If the table cannot be read or written.
    pub fn forget_flows(&self) {
        self.datapath.sweep_flows(u32::MAX / 2).expect("empty the flow table");
    }

    /// Runs `work` on the kernel side, where its pins can be seen.
    pub fn inside<T: Send>(&mut self, work: impl FnOnce(&mut Datapath) -> T + Send) -> T {
        self.mounts.run(|| work(&mut self.datapath))
    }

    /// Sets the resolvers of the built-in `dns`, for policies to come.
    pub fn resolvers(&mut self, resolvers: Resolvers) {
        self.options.resolvers = resolvers;
    }

    /// Sets whose answers name externals, and the network that is the host's, for policies to come.
    ///
    /// # Panics
    ///
    /// If the kernel has no number for a network.
    pub fn answers(&mut self, resolvers: Resolvers, host: &NetNs, quota: u32) {
        self.options.answers = resolvers;
        self.options.host_netns = host.run(netns_cookie).expect("ask for the cookie of a network namespace");
        self.options.dns_quota = quota;
    }

    /// Puts a policy in force, and labels every cgroup of the lab by it. When this returns, no packet
    /// is judged by another one.
    ///
    /// # Panics
    ///
    /// If the text is no policy, or the kernel refuses it.
    pub fn apply(&mut self, text: &str) -> Epoch {
        self.apply_with(text, &[])
    }

    /// As [`Self::apply`], under rules of `revoke` and `break-glass`.
    ///
    /// # Panics
    ///
    /// As [`Self::apply`].
    pub fn apply_with(&mut self, text: &str, overrides: &[Rule]) -> Epoch {
        let policy = load(&[("lab.yaml", text)]).map(|loaded| loaded.policy);
        let policy = policy.unwrap_or_else(|findings| panic!("no policy: {findings:#?}\n{text}"));
        let input = CompileInput {
            boot_to_unix: boot_to_unix(),
            overrides,
            resolvers: Some(&self.options.resolvers),
            answers: Some(&self.options.answers),
            peers: None,
        };
        let map = compile(&policy, &input);
        let map = map.unwrap_or_else(|findings| panic!("not compiled: {findings:#?}\n{text}"));
        let resolver = Resolver::new(&policy, "lab").expect("a policy that loads gives labels");
        let cgroups = self.hierarchy.walk(&self.scope).expect("walk the cgroups of a lab");
        let labels = resolver.resolve(&cgroups);
        assert_eq!(labels.ambiguous, [], "one workload a cgroup");
        let identities = Identities { cgroups: labels.cgroups, uids: labels.uids };
        self.put_in_force(&map, &identities).expect("put a policy in force")
    }

    /// Puts compiled entries in force.
    ///
    /// # Errors
    ///
    /// What the kernel side says; then nothing has changed.
    pub fn put_in_force(&mut self, map: &MapState, identities: &Identities) -> Result<Epoch, DatapathError> {
        let settings = Settings {
            unknown_mode: map.unknown_mode.map_or(0, |mode| mode as u8),
            event_burst: self.options.event_burst,
            event_per_second: self.options.event_per_second,
            flow_quota: self.options.flow_quota,
            resolvers: map.resolvers.table(),
            host_netns: self.options.host_netns,
            dns_resolvers: map.answers.table(),
            dns_quota: if map.dns_names.is_empty() { 0 } else { self.options.dns_quota },
            ..Settings::default()
        };
        let prepared = self.datapath.prepare(map, settings, identities)?;
        let epoch = self.datapath.flip(&prepared)?;
        self.datapath.settle()?;
        Ok(epoch)
    }

    /// Labels one cgroup at once; None takes its label away.
    ///
    /// # Panics
    ///
    /// If there is no room.
    pub fn label(&self, cgroup: u64, slot: Option<IdentSlot>) {
        self.datapath.label(cgroup, slot.unwrap_or_default()).expect("label a cgroup");
    }

    /// Returns what was denied since the last look, and begins a new window: the next denial of every
    /// kind is a first one again. Checks the books. What a kernel says of its own links is left out.
    ///
    /// # Panics
    ///
    /// If a denial is not accounted for exactly once.
    pub fn denials(&mut self) -> Denials {
        let mut denials = self.look();
        let end = Instant::now() + SETTLED;
        while let Err(why) = denials.balance() {
            assert!(Instant::now() < end, "{why}");
            denials.extend(self.look());
        }
        denials.leave_out_the_kernels();
        denials
    }

    /// As [`Self::denials`], after every packet that is under way to `receiver`, in whatever namespace it is yet.
    ///
    /// # Panics
    ///
    /// As [`Self::denials`].
    pub fn denials_up_to(&mut self, receiver: &Party) -> Denials {
        // The marks of a witness come by behind everything that was sent before.
        let _ = receiver.watch(&magic()).arrived();
        self.denials()
    }

    /// As [`Self::denials`], also while more denials come, when the books cannot balance.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    pub fn look(&mut self) -> Denials {
        let mut denials = Denials::default();
        self.events.drain(|bytes| {
            denials.records.push(DenyRecord::read_from_bytes(bytes).expect("a record has the size of its layout"));
        });
        let counts = self.datapath.deny_counts().expect("read the counters");
        denials.counts = std::array::from_fn(|i| counts[i] - self.seen[i]);
        self.seen = counts;
        denials.repeated(self.repeats());
        let folded = self.datapath.deny_folded();
        for key in folded.keys().expect("list folded denials") {
            denials.folded += folded.take(&key).expect("take folded denials").map_or(0, |stat| stat.count);
        }
        denials
    }

    /// Takes the table of repeats out.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    pub fn repeats(&self) -> Vec<(DenyKey, DenyStat)> {
        let table = self.datapath.deny_seen();
        let keys = table.keys().expect("list repeats");
        keys.into_iter().filter_map(|key| Some((key, table.take(&key).expect("take repeats")?))).collect()
    }
}

/// What must be added to the boot clock to get Unix time, in seconds, rounded up.
fn boot_to_unix() -> i64 {
    let unix = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    let boot = clock_gettime(ClockId::Boottime);
    i64::try_from(unix.as_secs()).unwrap_or(i64::MAX) + 1 - boot.tv_sec
}
