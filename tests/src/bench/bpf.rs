//! The few system calls of bpf(2) that only a benchmark makes.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use anyhow::Context as _;

use crate::lab::{
    Cgroup, Foreign,
    foreign::{Hook, WORDS, bpf, fd, new_fd},
};

/// Directions of a packet program: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Attach {
    /// `BPF_CGROUP_INET_INGRESS`
    Ingress = 0,
    /// `BPF_CGROUP_INET_EGRESS`
    Egress = 1,
}

/// A packet program that lets everything pass and does nothing else: what the hook itself costs.
#[derive(Debug)]
pub struct Empty(Foreign);

impl Empty {
    /// Loads it and attaches it to a cgroup, until it is dropped.
    pub fn attach(cgroup: &Cgroup, attach: Attach) -> anyhow::Result<Self> {
        // r0 = 1; exit.
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let hook = Hook { kind: CGROUP_SKB, attach: attach as u32 };
        Ok(Self(Foreign::on_cgroup(cgroup, hook, &code)?))
    }

    /// How often it ran and for how long in all, ns, while statistics were on.
    pub fn runs(&self) -> anyhow::Result<(f64, f64)> {
        Ok((fd_info(self.0.as_fd(), "run_cnt")?, fd_info(self.0.as_fd(), "run_time_ns")?))
    }
}

/// Keeps the kernel's statistics about programs on. They cost about as much as a small program.
#[derive(Debug)]
pub struct Statistics {
    _fd: OwnedFd,
}

impl Statistics {
    /// Turns them on until it is dropped.
    pub fn on() -> anyhow::Result<Self> {
        let mut attr = [0_u64; WORDS];
        Ok(Self { _fd: new_fd(bpf(cmd::ENABLE_STATS, &mut attr).context("turn on statistics about programs")?)? })
    }
}

/// How many programs are attached to a cgroup in a direction.
pub fn attached(cgroup: &Cgroup, attach: Attach) -> anyhow::Result<u32> {
    let mut attr = [0_u64; WORDS];
    attr[0] = fd(cgroup.as_fd()) | u64::from(attach as u32) << 32;
    bpf(cmd::PROG_QUERY, &mut attr).context("count the attached programs")?;
    // prog_cnt is at 24.
    Ok(u32::try_from(attr[3] & u64::from(u32::MAX))?)
}

/// A number that the kernel shows about an open object.
pub fn fd_info(object: BorrowedFd<'_>, name: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/self/fdinfo/{}", object.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
    value.with_context(|| format!("{path} has no `{name}`"))
}

/// `BPF_PROG_TYPE_CGROUP_SKB`
const CGROUP_SKB: u32 = 8;

/// `enum bpf_cmd`
mod cmd {
    pub const PROG_QUERY: i64 = 16;
    pub const ENABLE_STATS: i64 = 32;
}
