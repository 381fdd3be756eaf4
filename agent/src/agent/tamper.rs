//! Looks a few times a second whether everything in the kernel is as it was left, and puts it back.
//!
//! What stands is never taken for granted: somebody with rights of their own may have detached a link, put a program
//! before ours, or removed a pin. Each such act is a record, a number of `status`, and while it is not repaired a
//! problem.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Bound,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use agent_common::layout::{IdentSlot, names::map};
use anyhow::Result;
use tracing::{info, warn};

use super::core::Core;
use crate::{
    clock,
    config::Config,
    control::wire::{ProgramOfOthers, Tampering},
    datapath::{self, Act, DatapathError, Device, Finding, Neighbour, Object, Place, ProgramInfo},
    events::{
        escape::{KERNEL_NAME_CHARS_MAX, PATH_CHARS_MAX, escape},
        record::{ForeignProgram, Now, Record, TamperEvent, TamperedDevice, UnixMillis, new_uid},
        words,
    },
    identity::devices::Owned,
};

/// Problem of `status`.
const PROBLEM: &str = "tampering";
/// Between two looks, at least.
const APART_NS: u64 = 200_000_000;
/// At most: what is promised is a second.
const APART_MAX_NS: u64 = 500_000_000;
/// A host of so many devices that a look takes long is not looked at all the time: that many times as long it rests.
const REST: u64 = 10;
/// Labels, and addresses, that are compared at each look.
const COMPARED: usize = 64;
/// In the run directory: in which boot and network namespace an agent attached its programs, and nobody took them off on
/// purpose.
const MARKER: &str = "attached";

/// What was found so far.
#[derive(Default)]
pub(super) struct Upkeep {
    found: BTreeMap<&'static str, u64>,
    repaired: u64,
    last: Option<(u64, String)>,
    /// When a look ended that found everything as it should be, or put back.
    good: Now,
    next_ns: u64,
    looks: u64,
    looks_ns: u64,
    /// What could not be put back yet: when it was seen last as it should be, and why.
    broken: BTreeMap<(Object, Act), (Option<UnixMillis>, String)>,
    /// The cgroup and the address that were compared last.
    compared: (u64, [u8; 16]),
}

impl Upkeep {
    /// How long until the next look.
    pub(super) const fn wait_ns(&self, now: u64) -> u64 {
        self.next_ns.saturating_sub(now)
    }

    /// As `status` shows it.
    pub(super) fn shown(&self, now: u64) -> Tampering {
        Tampering {
            found: self.found.iter().map(|(act, count)| ((*act).to_owned(), *count)).collect(),
            repaired: self.repaired,
            last: self.last.as_ref().map(|(_, message)| message.clone()),
            last_seconds_ago: self.last.as_ref().map(|(at, _)| now.saturating_sub(*at) / 1_000_000_000),
            verified_ms_ago: now.saturating_sub(self.good.boot_ns) / 1_000_000,
            looks: self.looks,
            looks_us: self.looks_ns / 1_000,
        }
    }
}

impl Core {
    /// Looks if it is time.
    pub(super) fn keep_up(&mut self) {
        let now = clock::now();
        if self.upkeep.wait_ns(now.boot_ns) > 0 {
            return;
        }
        if self.upkeep.good == Now::default() {
            // The first look: everything has just been attached.
            self.upkeep.good = now;
        }
        self.look_and_put_back();
        let ended = clock::now().boot_ns;
        let took = ended.saturating_sub(now.boot_ns);
        self.upkeep.looks += 1;
        self.upkeep.looks_ns += took;
        self.upkeep.next_ns = ended + (took * REST).clamp(APART_NS, APART_MAX_NS);
    }

    fn look_and_put_back(&mut self) {
        let mut look = self.datapath.look();
        let is_gone = |finding: &Finding| finding.object.device().is_some() && finding.act == Act::Detached;
        if look.findings.iter().any(is_gone) && self.devices_changed() {
            // A device that came back under the same index has no program either, and may be another's.
            self.look_at_devices();
            look = self.datapath.look();
        }
        let found: Vec<(Object, Act)> = look.findings.iter().map(|finding| (finding.object, finding.act)).collect();
        // Whatever was broken and is found no longer was put right by others, or is gone.
        self.upkeep.broken.retain(|what, _| found.contains(what));
        for finding in &look.findings {
            // Before anything changes: a program that nobody holds may be gone afterwards.
            let programs = finding.others.iter().map(|&id| foreign(datapath::describe(id))).collect();
            let result = self.datapath.put_back(finding);
            self.report(finding, programs, Some(self.upkeep.good.wall), result);
        }
        if let Err(e) = self.compare() {
            look.blind.push(format!("{:#}", anyhow::Error::from(e)));
        }
        let mut problems = look.blind;
        problems.extend(self.upkeep.broken.iter().map(|((object, act), (_, error))| {
            format!("NOT as it should be: {object} is {}, and cannot be put back: {error}", act.name())
        }));
        if problems.is_empty() {
            self.upkeep.good = clock::now();
        }
        self.tell(PROBLEM, (!problems.is_empty()).then(|| problems.join("; ")));
    }

    /// Compares who owns each device, and a part of the labels and addresses, with what was written, in turns.
    fn compare(&mut self) -> Result<(), DatapathError> {
        let last_good = Some(self.upkeep.good.wall);
        let changed = |name| Finding { act: Act::Changed, object: Object::Map(name), others: Vec::new() };
        let owners = self.watch.owners();
        let devices: Vec<(Device, u64)> = owners
            .devices
            .values()
            .map(|Owned { device: of, cgroup }| {
                (Device { index: of.index, netns: of.netns, hardware: of.hardware }, *cgroup)
            })
            .collect();
        let (cgroup, address) = self.upkeep.compared;
        let later = (Bound::Excluded(address), Bound::Unbounded);
        let addresses: Vec<([u8; 16], u64)> =
            owners.addresses.range(later).take(COMPARED).map(|(address, cgroup)| (*address, *cgroup)).collect();
        let later = (Bound::Excluded(cgroup), Bound::Unbounded);
        let labels: Vec<(u64, IdentSlot)> =
            self.labels.cgroups.range(later).take(COMPARED).map(|(id, slot)| (*id, *slot)).collect();
        // What is behind the last is begun again.
        self.upkeep.compared = (
            labels.get(COMPARED - 1).map_or(0, |(id, _)| *id),
            addresses.get(COMPARED - 1).map_or([0; 16], |(address, _)| *address),
        );
        for (device, cgroup) in devices {
            if !self.datapath.is_guarded(&device, cgroup)? {
                let result = self.datapath.guard_device(&device, cgroup);
                self.report(&changed(map::DEV_OWNER), Vec::new(), last_good, result);
            }
        }
        for (address, cgroup) in addresses {
            if self.datapath.owner_of(&address)? != Some(cgroup) {
                let result = self.datapath.own_address(&address, cgroup);
                self.report(&changed(map::ADDR_OWNER), Vec::new(), last_good, result);
            }
        }
        for (id, slot) in labels {
            let is_wrong = match self.datapath.label_of(id)? {
                Some(found) => found != slot,
                // The kernel forgets a cgroup a moment before the agent does.
                None => matches!(self.roster.learn(id), Ok(Some(_))),
            };
            if is_wrong {
                let result = self.datapath.label(id, slot).map_err(Into::into);
                self.report(&changed(map::CGRP_IDENT), Vec::new(), last_good, result);
            }
        }
        Ok(())
    }

    /// Tells what was gone when this agent came, and is there again: single links, or all pins.
    pub(super) fn tell_unpinned(&mut self, programs: &[&'static str], all: bool) {
        let links = programs.iter().map(|&program| Object::Link(Place { program, device: None }));
        for object in links.chain(all.then_some(Object::Pins)) {
            let finding = Finding { act: Act::Unpinned, object, others: Vec::new() };
            self.report(&finding, Vec::new(), None, Ok(()));
        }
    }

    /// Counts an act, and tells of it: once, and again when what could not be put back is.
    fn report(
        &mut self,
        finding: &Finding,
        programs: Vec<ForeignProgram>,
        last_good: Option<UnixMillis>,
        result: Result<(), DatapathError>,
    ) {
        let (what, now) = ((finding.object, finding.act), clock::now());
        let error = result.err().map(|e| format!("{:#}", anyhow::Error::from(e)));
        let before = self.upkeep.broken.remove(&what);
        let is_new = before.is_none();
        let last_good = before.map_or(last_good, |(last_good, _)| last_good);
        if is_new {
            *self.upkeep.found.entry(finding.act.name()).or_default() += 1;
        }
        match &error {
            None => self.upkeep.repaired += 1,
            Some(error) => drop(self.upkeep.broken.insert(what, (last_good, error.clone()))),
        }
        if !is_new && error.is_some() {
            return;
        }
        let device = finding.object.device().map(|index| {
            let owned = self.watch.owners().devices.get(&index);
            let name = owned.map(|owned| escape(owned.device.name.as_bytes(), KERNEL_NAME_CHARS_MAX).text);
            TamperedDevice { index, name: name.filter(|name| !name.is_empty()) }
        });
        let event = TamperEvent {
            uid: new_uid(now.wall),
            time: now.wall,
            act: finding.act.name(),
            object: finding.object.to_string(),
            device,
            programs,
            last_good,
            error,
        };
        let message = words::tamper_message(&event);
        match event.error {
            None => info!("{message}"),
            Some(_) => warn!("{message}"),
        }
        self.upkeep.last = Some((now.boot_ns, message));
        self.pipeline.submit(&now, Record::Tamper(event));
    }
}

/// Says whether an agent attached its programs in this boot, and nobody took them off on purpose.
pub(super) fn was_marked(config: &Config, boot_id: &str) -> bool {
    marked(config).is_some_and(|(boot, _)| boot == boot_id)
}

/// The boot and the network namespace that are marked.
fn marked(config: &Config) -> Option<(String, u64)> {
    let text = fs::read_to_string(config.run_directory().join(MARKER)).ok()?;
    let (boot, netns) = text.split_once(' ')?;
    Some((boot.to_owned(), netns.parse().ok()?))
}

/// Says whether programs are attached from another network namespace than the caller's, as far as that is known.
#[must_use]
pub fn ran_elsewhere(config: &Config) -> bool {
    own_netns().is_ok_and(|own| marked(config).is_some_and(|(_, netns)| netns != own))
}

fn own_netns() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Notes that programs are attached.
pub(super) fn mark(config: &Config, boot_id: &str) -> io::Result<()> {
    fs::write(config.run_directory().join(MARKER), format!("{boot_id} {}", own_netns()?))
}

/// Forgets that programs were attached: they are taken off on purpose.
///
/// # Errors
///
/// If there is a mark that cannot be removed.
pub fn unmark(config: &Config) -> io::Result<()> {
    match fs::remove_file(config.run_directory().join(MARKER)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Core {
    /// Programs of others at guarded devices, at the guarded cgroup and at those below it.
    pub(super) fn programs_of_others(&self) -> Result<Vec<ProgramOfOthers>> {
        let row = |device: Option<u32>, place: &str, other: Neighbour| {
            let ForeignProgram { id, name, tag, loaded_by } = foreign(other.program);
            let (place, hook) = (place.to_owned(), other.hook.to_owned());
            ProgramOfOthers { device, place, hook, before: other.before, id, name, tag, loaded_by }
        };
        let mut rows = Vec::new();
        for (index, owned) in &self.watch.owners().devices {
            let name = escape(owned.device.name.as_bytes(), KERNEL_NAME_CHARS_MAX).text;
            rows.extend(self.datapath.neighbours_at_device(*index)?.into_iter().map(|n| row(Some(*index), &name, n)));
        }
        let hierarchy = self.roster.hierarchy();
        let mut paths: Vec<&str> = self.roster.nodes().map(|node| node.path.as_str()).collect();
        paths.push(&self.config.scope);
        paths.sort_unstable();
        paths.dedup();
        for path in paths {
            // One that is gone meanwhile has no programs.
            let Ok(cgroup) = File::open(hierarchy.dir(path)) else { continue };
            // Those of the cgroups above run at the guarded one, too.
            let effective = path == self.config.scope;
            let place = escape(path.as_bytes(), PATH_CHARS_MAX).text;
            let neighbours = self.datapath.neighbours_at_cgroup(cgroup.as_fd(), effective)?;
            rows.extend(neighbours.into_iter().map(|n| row(None, &place, n)));
        }
        Ok(rows)
    }
}

fn foreign(info: ProgramInfo) -> ForeignProgram {
    let name = escape(&info.name, KERNEL_NAME_CHARS_MAX).text;
    ForeignProgram { id: info.id, name, tag: info.tag_text(), loaded_by: info.uid }
}
