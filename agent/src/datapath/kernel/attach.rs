//! Loads the programs and attaches them, or puts them under the links of an earlier agent.

use std::{fs::File, io, os::fd::AsFd as _};

use agent_common::layout::names::program;
use aya::{
    Btf, Ebpf,
    programs::{CgroupAttachMode, Program, ProgramError, links::FdLink},
};

use super::{Datapath, DatapathConfig, DatapathError};
use crate::datapath::sys;

impl Datapath {
    /// Says whether an earlier agent's programs are attached.
    #[must_use]
    pub fn was_attached(&self) -> bool {
        program::ALL.iter().any(|name| self.pins.link(name).exists())
    }

    /// Attaches every program, or puts it under the link that is there already.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] with the first program that failed; those before it stay attached, and the
    /// caller must not say "enforcing".
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        let cgroup =
            File::open(&self.config.cgroup).map_err(|e| DatapathError::Cgroup(self.config.cgroup.clone(), e))?;
        for name in program::ALL {
            let pin = self.pins.link(name);
            let failed = |verb, source| DatapathError::Program { verb, program: name, source };
            if !self.config.fast_refusal && is_fast_refusal(name) {
                if pin.exists() {
                    std::fs::remove_file(&pin).map_err(|e| failed("detach", Box::new(e)))?;
                }
                continue;
            }
            let program =
                self.ebpf.program_mut(name).ok_or_else(|| failed("find", "it is not in the object".into()))?;
            if matches!(program, Program::BtfTracePoint(_)) {
                // A tracing link takes no other program: the new one is attached beside the old, and
                // its pin renamed over the old pin. For a moment both run, which changes nothing.
                let link = attach_new(program, &cgroup).map_err(|e| failed("attach", e))?;
                let aside = self.pins.link(&format!("{name}_new"));
                // Left by an agent that died here.
                let _ = std::fs::remove_file(&aside);
                drop(link.pin(&aside).map_err(|e| failed("pin the link of", Box::new(e)))?);
                std::fs::rename(&aside, &pin).map_err(|e| failed("rename the pin of", Box::new(e)))?;
                continue;
            }
            if let Some(link) = sys::open_pin(&pin).map_err(|e| failed("open the link of", Box::new(e)))? {
                let new = program.fd().map_err(|e| failed("find", Box::new(e)))?.as_fd();
                sys::link_update(link.as_fd(), new).map_err(|e| failed("replace", Box::new(e)))?;
                continue;
            }
            let link = attach_new(program, &cgroup).map_err(|e| failed("attach", e))?;
            drop(link.pin(&pin).map_err(|e| failed("pin the link of", Box::new(e)))?);
        }
        Ok(())
    }

    /// Returns the programs that should be attached and are not.
    #[must_use]
    pub fn missing_links(&self) -> Vec<&'static str> {
        program::ALL
            .into_iter()
            .filter(|name| self.config.fast_refusal || !is_fast_refusal(name))
            .filter(|name| !self.pins.link(name).exists())
            .collect()
    }

    /// Returns how many programs are attached.
    #[must_use]
    pub fn links(&self) -> u64 {
        program::ALL.iter().map(|name| u64::from(self.pins.link(name).exists())).sum()
    }
}

const fn is_fast_refusal(name: &str) -> bool {
    matches!(name.as_bytes(), b"ew_connect4" | b"ew_connect6" | b"ew_sendmsg4" | b"ew_sendmsg6")
}

/// How often a load is tried that the kernel gave up halfway.
const LOAD_TRIES: u32 = 10;

/// Loads the programs that can be attached: the kernel takes half a second to check each.
pub(super) fn load_programs(ebpf: &mut Ebpf, config: &DatapathConfig) -> Result<(), DatapathError> {
    let btf = Btf::from_sys_fs().map_err(|e| DatapathError::Load(e.into()))?;
    let of_cgroup = program::ALL.into_iter().filter(|name| config.fast_refusal || !is_fast_refusal(name));
    let of_devices = program::DEVICE.into_iter().filter(|_| config.devices);
    for name in of_cgroup.chain(of_devices) {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| DatapathError::Program {
            verb: "load",
            program: name,
            source,
        };
        let program = ebpf.program_mut(name).ok_or_else(|| failed("it is not in the object".into()))?;
        again(|| load_program(name, program, &btf), was_interrupted).map_err(|e| failed(Box::new(e)))?;
    }
    Ok(())
}

fn load_program(name: &str, program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSkb(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        Program::BtfTracePoint(p) => {
            p.load(if name == program::CGROUP_MKDIR { "cgroup_mkdir" } else { "cgroup_release" }, btf)
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

fn attach_new(program: &mut Program, cgroup: &File) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSkb(p) => {
            let direction = p.expected_attach_type().ok_or("its section names no direction")?;
            let id = p.attach(cgroup, direction, mode)?;
            p.take_link(id)?.try_into()?
        }
        Program::CgroupSock(p) => {
            let id = p.attach(cgroup, mode)?;
            p.take_link(id)?.try_into()?
        }
        Program::CgroupSockAddr(p) => {
            let id = p.attach(cgroup, mode)?;
            p.take_link(id)?.try_into()?
        }
        Program::BtfTracePoint(p) => {
            let id = p.attach()?;
            p.take_link(id)?.into()
        }
        _ => return Err("it is of another type".into()),
    })
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
