//! Programs of others where ours are attached.

use std::os::fd::BorrowedFd;

use agent_common::layout::names::program;

use super::{Datapath, DatapathError};
use crate::{
    datapath::{
        clsact,
        sys::{self, Listed, ProgramInfo, Target},
    },
    netlink::Requests,
};

/// Hooks of a cgroup that connections and packets pass: a number of `enum bpf_attach_type`, and its name.
const HOOKS: [(u32, &str); 11] = [
    (0, "ingress"),
    (1, "egress"),
    (2, "sock_create"),
    (3, "sock_ops"),
    (8, "bind4"),
    (9, "bind6"),
    (10, "connect4"),
    (11, "connect6"),
    (14, "sendmsg4"),
    (15, "sendmsg6"),
    (22, "setsockopt"),
];

/// A program of others at a place of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Neighbour {
    /// What it sees: `ingress` of a device is what leaves the workload behind it.
    pub hook: &'static str,
    /// Whether it runs before ours and may decide instead. Of a cgroup none may: every program there is asked.
    pub before: bool,
    /// What the kernel says of it. A filter of another kind has the number 0, and its kind for a name.
    pub program: ProgramInfo,
}

impl Datapath {
    /// Lists the programs of others at a guarded device; none if it is gone.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn neighbours_at_device(&self, index: u32) -> Result<Vec<Neighbour>, DatapathError> {
        let mut found = Vec::new();
        for &name in self.programs_at(index)? {
            let hook = if name == program::TC_FROM { "ingress" } else { "egress" };
            let failed = |e| DatapathError::program("list what runs beside", name, e);
            let Some(mut listed) = self.listed_at_device(&mut None, name, index).map_err(failed)? else {
                return Ok(Vec::new());
            };
            if self.has_tcx {
                // Filters are asked behind all of TCX.
                let mut requests = Requests::open(None).map_err(failed)?;
                listed.extend(clsact::listed(&mut requests, name, index).map_err(failed)?);
            }
            let is_ours = |one: &Listed| self.is_ours(one.program);
            let ours = listed.iter().position(is_ours).unwrap_or(listed.len());
            for (at, other) in listed.into_iter().enumerate().filter(|(_, one)| !is_ours(one)) {
                let program = match other.program {
                    0 => ProgramInfo { name: other.kind.into_bytes(), ..ProgramInfo::default() },
                    id => sys::describe(id),
                };
                found.push(Neighbour { hook, before: at < ours, program });
            }
        }
        Ok(found)
    }

    /// Lists the programs of others at a cgroup; `effective` = with those of the cgroups above it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn neighbours_at_cgroup(
        &self,
        cgroup: BorrowedFd<'_>,
        effective: bool,
    ) -> Result<Vec<Neighbour>, DatapathError> {
        let mut found = Vec::new();
        for (attach_type, hook) in HOOKS {
            let listed = sys::query(Target::Cgroup(cgroup, effective), attach_type)
                .map_err(|e| DatapathError::program("list what runs beside", program::EGRESS, e))?;
            let others = listed.iter().map(|one| one.program).filter(|id| !self.is_ours(*id));
            found.extend(others.map(|id| Neighbour { hook, before: false, program: sys::describe(id) }));
        }
        Ok(found)
    }

    fn is_ours(&self, program: u32) -> bool {
        self.numbers.values().any(|number| *number == program)
    }
}
