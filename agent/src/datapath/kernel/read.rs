//! What the programs wrote: denials, hits, flows, events, runs.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use agent_common::{
    id::RuleNumber,
    layout::{DenyCounter, DenyKey, DenyStat, FlowKey, FlowState, RuleStat, SockState, idle_limit, names::map},
};
use aya::maps::RingBuf;

use super::{Datapath, DatapathError, Runs};
use crate::datapath::{
    log::KernelLog,
    ring::Ring,
    sys,
    table::{Table, TableError},
};

/// Adds up the shares of all CPUs in a map of counters.
pub(super) fn sums(counts: &Table<u32, u64>, cpus: usize) -> Result<[u64; DenyCounter::COUNT as usize], TableError> {
    let mut sums = [0; DenyCounter::COUNT as usize];
    for (index, sum) in (0_u32..).zip(&mut sums) {
        *sum = counts.get_per_cpu(&index, cpus)?.iter().sum();
    }
    Ok(sums)
}

impl Datapath {
    /// Returns the sums of the denials, indexed by [`DenyCounter`].
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn deny_counts(&self) -> Result<[u64; DenyCounter::COUNT as usize], TableError> {
        sums(&self.deny_counts, self.cpus)
    }

    /// Returns the hits of the policy in force, by rule number.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn hits(&self) -> Result<BTreeMap<RuleNumber, RuleStat>, TableError> {
        let side = self.in_force.side();
        let Some(settings) = self.settings.get(&side)? else {
            return Ok(BTreeMap::new());
        };
        let mut hits = BTreeMap::new();
        for rule in 0..=settings.rules {
            let shares = self.rule_stats.get_per_cpu(&(settings.stats_base + rule), self.cpus)?;
            let stat = shares.iter().fold(RuleStat::default(), |sum, share| RuleStat {
                decisions: sum.decisions + share.decisions,
                last_ns: sum.last_ns.max(share.last_ns),
            });
            if stat.decisions != 0 {
                hits.insert(RuleNumber(rule), stat);
            }
        }
        Ok(hits)
    }

    /// The table of repeats, for the windows of the event pipeline.
    #[must_use]
    pub const fn deny_seen(&self) -> &Table<DenyKey, DenyStat> {
        &self.deny_seen
    }

    /// The table of denials beyond the budget.
    #[must_use]
    pub const fn deny_folded(&self) -> &Table<[u64; 2], DenyStat> {
        &self.deny_folded
    }

    /// Forgets flows that are idle and sets every owner's count right; returns how many are left.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn sweep_flows(&self, now_tick: u32) -> Result<u64, TableError> {
        let owners = forget_idle(&self.flows, now_tick)?;
        for owner in self.flow_quota.keys()? {
            match owners.get(&owner) {
                Some(count) => self.flow_quota.put(&owner, count)?,
                None => drop(self.flow_quota.remove(&owner)?),
            }
        }
        Ok(owners.values().sum())
    }

    /// Returns how many flows the table holds.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn flow_count(&self) -> Result<usize, TableError> {
        Ok(self.flows.keys()?.len())
    }

    /// Takes the ring of denials; once.
    #[must_use]
    pub fn take_events(&mut self) -> Option<Ring> {
        self.take_ring(map::EVENTS)
    }

    /// Takes the ring of cgroups made and released; once.
    #[must_use]
    pub fn take_cgroup_events(&mut self) -> Option<Ring> {
        self.take_ring(map::CGROUP_EVENTS)
    }

    /// Takes the ring of calls that are to be answered for a door; once.
    #[must_use]
    pub fn take_resets(&mut self) -> Option<Ring> {
        self.take_ring(map::RESETS)
    }

    /// Lets a raw socket of this process answer for doors: what it sends is judged as theirs.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn let_answer(&self, socket: BorrowedFd<'_>) -> Result<(), TableError> {
        let sockets: Table<i32, SockState> = Table::open(&self.pins.map(map::SOCKETS), map::SOCKETS)?;
        let fd = socket.as_raw_fd();
        let stored = sockets.get(&fd)?.unwrap_or_default();
        sockets.put(&fd, &SockState { answers: 1, ..stored })
    }

    /// Takes what the programs say; once, and only if they were loaded to say something.
    #[must_use]
    pub fn take_log(&mut self) -> Option<KernelLog> {
        if self.config.kernel_log { KernelLog::of(&mut self.ebpf) } else { None }
    }

    /// A loaded program, to be run on packets without traffic ([`crate::datapath::test_run`]).
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, DatapathError> {
        let failed = |source| DatapathError::Program { verb: "find", program: name, source };
        let program = self.ebpf.program(name).ok_or_else(|| failed("it is not in the object".into()))?;
        Ok(program.fd().map_err(|e| failed(Box::new(e)))?.as_fd())
    }

    /// Runs a program on a packet over loopback, without traffic; returns (code, ns).
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn test_run(&self, name: &'static str, frame: &[u8], repeat: u32) -> Result<(u32, u32), DatapathError> {
        let failed = |source| DatapathError::Program { verb: "run", program: name, source };
        let run = sys::test_run(self.program(name)?, frame, 0, repeat).map_err(|e| failed(Box::new(e)))?;
        Ok((run.code, run.duration_ns))
    }

    /// Returns how often and how long a program ran while the kernel kept statistics about programs.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn runs(&self, name: &'static str) -> Result<Runs, DatapathError> {
        let failed = |source| DatapathError::Program { verb: "ask about", program: name, source };
        let program = self.ebpf.program(name).ok_or_else(|| failed("it is not in the object".into()))?;
        let info = program.info().map_err(|e| failed(Box::new(e)))?;
        Ok(Runs { count: info.run_count(), time: info.run_time() })
    }

    fn take_ring(&mut self, name: &str) -> Option<Ring> {
        let map = self.ebpf.take_map(name)?;
        Some(Ring(RingBuf::try_from(map).ok()?))
    }
}

/// Forgets flows that are idle; returns how many each owner has left.
///
/// A program may begin one anew after it was looked at. So what is removed is looked at once more, and put back unless the
/// flow was begun yet again meanwhile.
///
/// # Errors
///
/// [`TableError`].
pub fn forget_idle(flows: &Table<FlowKey, FlowState>, now_tick: u32) -> Result<HashMap<u64, u64>, TableError> {
    // One tick more than the programs allow, so that none is deleted that they would still use. A flow may have been seen
    // later than `now`.
    let is_idle = |state: &FlowState| {
        let idle = now_tick.wrapping_sub(state.last_seen).cast_signed();
        idle > 1 + idle_limit(state.ways).cast_signed()
    };
    let mut owners: HashMap<u64, u64> = HashMap::new();
    for key in flows.keys()? {
        let Some(state) = flows.get(&key)? else { continue };
        if is_idle(&state) {
            let Some(taken) = flows.take(&key)? else { continue };
            if is_idle(&taken) {
                continue;
            }
            flows.insert(&key, &taken)?;
        }
        *owners.entry(key.owner).or_default() += 1;
    }
    Ok(owners)
}
