//! The programs on the host's side of workloads' devices: TCX links, pinned like those of cgroups. Where the kernel has
//! no TCX, filters of `clsact`; the pin is then of the program, and says at which device there is one.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd},
};

use agent_common::{
    id::Epoch,
    layout::{DeviceEntry, HOST_OWNER, is_of_device, names::program},
};
use aya::{Ebpf, programs::SchedClassifier};

use super::{
    Datapath, DatapathError,
    links::{Link, Place, pin_name},
};
use crate::datapath::{
    clsact,
    pins::Held,
    sys::{self, Side},
    table::TableError,
};

/// The host's side of a workload's device, or a device of the host, in the caller's network namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Device {
    /// Its index there, which no other device has while this one lives.
    pub index: u32,
    /// The network namespace at its other end, by its id there; of a device of the host 0.
    pub netns: i32,
    /// The Ethernet address at its other end, as [`agent_common::layout::hardware`] has it. Frames from another are
    /// denied; 0 is not known, and all of them are. Of a device of the host its own; 0 is that it has no Ethernet.
    pub hardware: u64,
}

impl Device {
    /// What the programs know of it, as one of the workload of a cgroup.
    const fn entry(&self, cgroup: u64) -> DeviceEntry {
        DeviceEntry { cgroup, hardware: self.hardware, netns: self.netns.cast_unsigned(), reserved: 0 }
    }
}

impl Datapath {
    /// Judges what leaves and enters a workload by a device from now on: before everything else that is
    /// attached there. `cgroup` is one of the workload's; what it is labelled as, under the policy in force
    /// and every later one, is the device's identity. With [`HOST_OWNER`] for a cgroup, what processes of the host send
    /// there past their sockets is judged by their own.
    ///
    /// Programs that an earlier agent attached are replaced in place. Connections that are older than the programs
    /// are found by the workload's sockets, and judged like any other.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] with the program that failed; the device must then not be called guarded.
    pub fn guard_device(&mut self, device: &Device, cgroup: u64) -> Result<(), DatapathError> {
        // First, because a device without an owner is left alone by the programs.
        let before = self.dev_owner.get(&device.index)?;
        let entry = device.entry(cgroup);
        self.dev_owner.put(&device.index, &entry)?;
        if before.is_none_or(|before| before.cgroup != cgroup || before.netns != entry.netns) {
            self.forget_flows(device.index)?;
        }
        if before.is_some_and(|before| before != entry) {
            self.drop_recent()?;
        }
        for &program in programs_of(cgroup) {
            let place = Place { program, device: Some(device.index) };
            if !self.has_tcx {
                self.put_filter(place, device.index)?;
            } else if !self.adopt(place)? {
                self.attach_to_device(program, device.index)?;
                // Of an agent that was told to do without TCX.
                clsact::remove(program, device.index).map_err(|e| DatapathError::program("detach", program, e))?;
            }
        }
        // It was the host's and is lent to a workload, or the reverse.
        let changes = before.is_some_and(|before| programs_of(before.cgroup) != programs_of(cgroup));
        for program in program::DEVICES.into_iter().filter(|name| !programs_of(cgroup).contains(name)) {
            // Or it was tried before, and failed.
            if changes || self.links.contains_key(&Place { program, device: Some(device.index) }) {
                self.take_off_device(program, device.index)?;
            }
        }
        Ok(())
    }

    /// The programs that belong at a device, by its owner; none at one that is not guarded.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub(super) fn programs_at(&self, index: u32) -> Result<&'static [&'static str], TableError> {
        Ok(self.dev_owner.get(&index)?.map_or(&[], |owner| programs_of(owner.cgroup)))
    }

    fn take_off_device(&mut self, program: &'static str, index: u32) -> Result<(), DatapathError> {
        if !self.has_tcx {
            clsact::remove(program, index).map_err(|e| DatapathError::program("detach", program, e))?;
        }
        self.take_off(Place { program, device: Some(index) })
    }

    /// Says whether the programs know a device as one of the workload of a cgroup.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn is_guarded(&self, device: &Device, cgroup: u64) -> Result<bool, TableError> {
        Ok(self.dev_owner.get(&device.index)? == Some(device.entry(cgroup)))
    }

    /// Returns who has an address: a cgroup of the workload; 0 is no one workload, none nobody.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn owner_of(&self, addr: &[u8; 16]) -> Result<Option<u64>, TableError> {
        self.addr_owner.get(addr)
    }

    /// Attaches a program to a device, before all others there, by a link of its own.
    pub(super) fn attach_to_device(&mut self, name: &'static str, index: u32) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::program("attach", name, source);
        let link = sys::attach_first(self.program(name)?, index, Side::of(name)).map_err(failed)?;
        self.hold(Place { program: name, device: Some(index) }, link)
    }

    /// Puts a program at a device by a filter of `clsact`, before all others there and in the place of the one that is
    /// there.
    pub(super) fn put_filter(&mut self, place: Place, index: u32) -> Result<(), DatapathError> {
        let failed = |verb, source| DatapathError::program(verb, place.program, source);
        let program = self.program(place.program)?.try_clone_to_owned().map_err(|e| failed("hold", e))?;
        let mut _before = None;
        if !self.links.contains_key(&place) {
            // A link that an earlier agent left goes when the filter stands.
            let path = self.pins.link(&pin_name(place));
            _before = Held::open(path.clone()).map_err(|e| failed("open the pin of", e))?;
            // First, so that there is never a filter which nobody knows about.
            let mut held = Held::new(program.try_clone().map_err(|e| failed("hold", e))?, path);
            held.pin()?;
            self.links.insert(place, Link { held, id: clsact::LINK });
        }
        clsact::put(program.as_fd(), place.program, index).map_err(|e| failed("attach", e))
    }

    /// Ends that: the device is another's, or gone. A device that is not guarded is no error.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] with the program that is still attached.
    pub fn release_device(&mut self, index: u32) -> Result<(), DatapathError> {
        for program in program::DEVICES {
            self.take_off_device(program, index)?;
        }
        self.dev_owner.remove(&index)?;
        self.forget_flows(index)?;
        Ok(self.drop_recent()?)
    }

    /// Lets every CPU forget what it saw pass a device. After the flow table has forgotten it: what a program that runs
    /// right now has read there before, it notes under the turn that it has begun with.
    fn drop_recent(&self) -> Result<(), TableError> {
        let turn = self.recent_turn.get(&0)?.unwrap_or_default();
        self.recent_turn.put(&0, &turn.wrapping_add(1))
    }

    /// Forgets the flows of a device and of all who share it, so that nobody goes on with those of another workload.
    fn forget_flows(&self, index: u32) -> Result<(), TableError> {
        let owners: Vec<u64> =
            self.flow_quota.keys()?.into_iter().filter(|&owner| is_of_device(owner, index)).collect();
        if owners.is_empty() {
            return Ok(());
        }
        for key in self.flows.keys()? {
            if is_of_device(key.owner, index) {
                self.flows.remove(&key)?;
            }
        }
        for owner in owners {
            self.flow_quota.remove(&owner)?;
        }
        Ok(())
    }

    /// Returns the devices that have an owner, by index.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn guarded_devices(&self) -> Result<BTreeMap<u32, DeviceEntry>, DatapathError> {
        Ok(self.dev_owner.all()?)
    }

    /// Says who has an address, IPv4 mapped: `cgroup` is one of the workload, 0 is no one workload. What was
    /// decided under the epoch in force stays: see [`Datapath::ask_again`].
    ///
    /// # Errors
    ///
    /// [`DatapathError`]; what was said before stays.
    pub fn own_address(&self, addr: &[u8; 16], cgroup: u64) -> Result<(), DatapathError> {
        Ok(self.addr_owner.put(addr, &cgroup)?)
    }

    /// Ends that: the address is whatever policy says about it.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn disown_address(&self, addr: &[u8; 16]) -> Result<(), DatapathError> {
        self.addr_owner.remove(addr)?;
        Ok(())
    }

    /// Returns who has which address.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn owned_addresses(&self) -> Result<BTreeMap<[u8; 16], u64>, DatapathError> {
        Ok(self.addr_owner.all()?)
    }

    /// Lets every flow be decided again at its next packet, by the policy in force.
    ///
    /// # Errors
    ///
    /// [`TableError`]; what was decided before then stays.
    pub fn ask_again(&mut self) -> Result<Epoch, TableError> {
        let epoch = self.in_force.again();
        self.epoch.put(&0, &u64::from(epoch.0))?;
        self.in_force = epoch;
        Ok(epoch)
    }
}

/// The programs at a device of an owner.
const fn programs_of(cgroup: u64) -> &'static [&'static str] {
    if cgroup == HOST_OWNER { &[program::TC_HOST] } else { &program::DEVICE }
}

/// Says whether the kernel has TCX: one that has it says that there is no such device, which is a device's largest index.
pub(super) fn has_tcx(ebpf: &Ebpf) -> Result<bool, DatapathError> {
    let asked = sys::attach_first(program(ebpf, program::TC_FROM)?, i32::MAX.cast_unsigned(), Side::Ingress);
    Ok(!asked.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL)))
}

fn program<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, DatapathError> {
    let failed = |source| DatapathError::Program { verb: "find", program: name, source };
    let program = ebpf.program(name).ok_or_else(|| failed("it is not in the object".into()))?;
    let program: &SchedClassifier = program.try_into().map_err(|e| failed(Box::new(e)))?;
    Ok(program.fd().map_err(|e| failed(Box::new(e)))?.as_fd())
}
