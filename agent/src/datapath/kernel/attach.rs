//! Loads the programs and attaches them, or puts them under the links of an earlier agent.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use agent_common::layout::names::{boot, program};
use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use super::{Datapath, DatapathConfig, DatapathError, links::Place};
use crate::datapath::sys;

impl Datapath {
    /// Says whether an earlier agent's programs are attached.
    #[must_use]
    pub fn was_attached(&self) -> bool {
        program::ALL.iter().any(|name| self.pins.link(name).exists())
    }

    /// Returns the programs of an earlier agent that have no pin any more, so that they do not run.
    #[must_use]
    pub fn unpinned(&self) -> Vec<&'static str> {
        let wanted = program::ALL.into_iter().filter(|name| is_wanted(&self.config, name));
        wanted.filter(|name| !self.pins.link(name).exists()).collect()
    }

    /// Attaches every program, or puts it under the link that is there already.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] with the first program that failed; those before it stay attached, and the
    /// caller must not say "enforcing".
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        for name in program::ALL {
            let place = Place { program: name, device: None };
            if !is_wanted(&self.config, name) {
                self.take_off(place)?;
            } else if attach_type(name).is_none() || !self.adopt(place)? {
                // A tracing link takes no other program: the new one is attached beside the old, and
                // its pin renamed over the old pin. For a moment both run, which changes nothing.
                self.attach_to_cgroup(name)?;
            }
        }
        Ok(())
    }

    /// Attaches a program to the guarded cgroup, or to all if it is one of tracing, by a link of its own.
    pub(super) fn attach_to_cgroup(&mut self, name: &'static str) -> Result<(), DatapathError> {
        let link = attach_program(self.program(name)?, name, &self.config.cgroup)?;
        self.hold(Place { program: name, device: None }, link)
    }

    /// Takes programs off the guarded cgroup, by name.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] with the pin that cannot be removed.
    pub fn detach(&mut self, programs: &[&'static str]) -> Result<(), DatapathError> {
        programs.iter().try_for_each(|program| self.take_off(Place { program, device: None }))
    }

    /// Returns the programs that should be attached and are not.
    #[must_use]
    pub fn missing_links(&self) -> Vec<&'static str> {
        program::ALL
            .into_iter()
            .filter(|name| is_wanted(&self.config, name))
            .filter(|&program| !self.links.contains_key(&Place { program, device: None }))
            .collect()
    }

    /// Returns how many programs are attached to the guarded cgroup.
    #[must_use]
    pub fn links(&self) -> u64 {
        self.links.keys().map(|place| u64::from(place.device.is_none())).sum()
    }
}

/// Where at a cgroup a program is attached, of `enum bpf_attach_type`; `None` is one of tracing, for all cgroups.
pub(super) fn attach_type(name: &str) -> Option<u32> {
    match name {
        program::INGRESS | boot::IN => Some(0),
        program::EGRESS | boot::OUT => Some(1),
        program::SOCK_CREATE => Some(2),
        program::CONNECT4 => Some(10),
        program::CONNECT6 => Some(11),
        program::SENDMSG4 => Some(14),
        program::SENDMSG6 => Some(15),
        program::SETSOCKOPT => Some(22),
        _ => None,
    }
}

/// Says whether a program of the cgroup is to be attached.
fn is_wanted(config: &DatapathConfig, name: &str) -> bool {
    (config.fast_refusal || !is_fast_refusal(name)) && (config.host || name != program::SETSOCKOPT)
}

const fn is_fast_refusal(name: &str) -> bool {
    matches!(name.as_bytes(), b"ew_connect4" | b"ew_connect6" | b"ew_sendmsg4" | b"ew_sendmsg6")
}

/// How often a load is tried that the kernel gave up halfway.
const LOAD_TRIES: u32 = 10;

/// Loads the programs that can be attached: the kernel takes half a second to check each. Returns their numbers.
pub(super) fn load_programs(
    ebpf: &mut Ebpf,
    config: &DatapathConfig,
) -> Result<BTreeMap<&'static str, u32>, DatapathError> {
    let btf = Btf::from_sys_fs().map_err(|e| DatapathError::Load(e.into()))?;
    let of_cgroup = program::ALL.into_iter().filter(|name| is_wanted(config, name));
    let of_devices = program::DEVICES
        .into_iter()
        .filter(|name| config.host || *name != program::TC_HOST)
        .chain([program::TC_CLOSED])
        .filter(|_| config.devices);
    let mut numbers = BTreeMap::new();
    for name in of_cgroup.chain(of_devices) {
        let program = load_program(ebpf, name, &btf)?;
        let info = sys::program_info(program).map_err(|e| DatapathError::program("load", name, e))?;
        numbers.insert(name, info.id);
    }
    Ok(numbers)
}

/// Loads a program of an object.
pub(in crate::datapath) fn load_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    btf: &Btf,
) -> Result<BorrowedFd<'a>, DatapathError> {
    let failed = |source| DatapathError::Program { verb: "load", program: name, source };
    let program = ebpf.program_mut(name).ok_or_else(|| failed("it is not in the object".into()))?;
    again(|| load(name, program, btf), was_interrupted).map_err(|e| failed(Box::new(e)))?;
    Ok(program.fd().map_err(|e| failed(Box::new(e)))?.as_fd())
}

/// Attaches a program to a cgroup, or to all if it is one of tracing. It comes off when the link is closed, unless that is
/// pinned.
pub(in crate::datapath) fn attach_program(
    program: BorrowedFd<'_>,
    name: &'static str,
    cgroup: &Path,
) -> Result<OwnedFd, DatapathError> {
    let link = match attach_type(name) {
        Some(attach_type) => {
            let cgroup = File::open(cgroup).map_err(|e| DatapathError::Cgroup(cgroup.to_owned(), e))?;
            sys::attach_to_cgroup(program, cgroup.as_fd(), attach_type)
        }
        None => sys::attach_to_tracepoint(program),
    };
    link.map_err(|e| DatapathError::program("attach", name, e))
}

fn load(name: &str, program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSkb(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        Program::BtfTracePoint(p) => {
            let is_mkdir = matches!(name, program::CGROUP_MKDIR | boot::MKDIR);
            p.load(if is_mkdir { "cgroup_mkdir" } else { "cgroup_release" }, btf)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Loads, and again if the load was interrupted, for a bounded number of times.
fn again<E>(mut load: impl FnMut() -> Result<(), E>, was_interrupted: impl Fn(&E) -> bool) -> Result<(), E> {
    let mut tries = 1;
    loop {
        match load() {
            Err(error) if was_interrupted(&error) && tries < LOAD_TRIES => tries += 1,
            other => return other,
        }
    }
}

/// EAGAIN says nothing about the program: the verifier stopped because a signal waited for this thread.
/// On a busy machine that happens to loads that take long.
fn was_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(kind: io::ErrorKind, until: u32) -> (u32, bool) {
        let mut tries = 0;
        let load = || {
            tries += 1;
            if tries < until { Err(kind) } else { Ok(()) }
        };
        let loaded = again(load, |kind| *kind == io::ErrorKind::WouldBlock);
        (tries, loaded.is_ok())
    }

    #[test]
    fn a_load_that_was_interrupted_is_tried_again_and_a_refused_one_is_not() {
        assert_eq!(tries(io::ErrorKind::WouldBlock, 1), (1, true));
        assert_eq!(tries(io::ErrorKind::WouldBlock, 4), (4, true));
        assert_eq!(tries(io::ErrorKind::WouldBlock, u32::MAX), (LOAD_TRIES, false));
        assert_eq!(tries(io::ErrorKind::PermissionDenied, 2), (1, false));
    }
}
