//! The few system calls of bpf(2) that only a benchmark makes.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;

use crate::lab::Cgroup;

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
pub struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Loads it and attaches it to a cgroup, until it is dropped.
    pub fn attach(cgroup: &Cgroup, attach: Attach) -> anyhow::Result<Self> {
        // r0 = 1; exit.
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let licence = c"GPL";
        let mut attr = [0_u64; WORDS];
        attr[0] = CGROUP_SKB | 2 << 32;
        attr[1] = code.as_ptr().addr() as u64;
        attr[2] = licence.as_ptr().addr() as u64;
        // expected_attach_type is at 68.
        attr[8] = u64::from(attach as u32) << 32;
        let program = new_fd(bpf(cmd::PROG_LOAD, &mut attr).context("load an empty program")?)?;
        attr = [0; WORDS];
        attr[0] = fd(program.as_fd()) | fd(cgroup.as_fd()) << 32;
        attr[1] = u64::from(attach as u32);
        let link = new_fd(bpf(cmd::LINK_CREATE, &mut attr).context("attach an empty program")?)?;
        Ok(Self { program, _link: link })
    }

    /// How often it ran and for how long in all, ns, while statistics were on.
    pub fn runs(&self) -> anyhow::Result<(f64, f64)> {
        Ok((fd_info(self.program.as_fd(), "run_cnt")?, fd_info(self.program.as_fd(), "run_time_ns")?))
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
const CGROUP_SKB: u64 = 8;
const WORDS: usize = 20;

/// `enum bpf_cmd`
mod cmd {
    pub const PROG_LOAD: i64 = 5;
    pub const PROG_QUERY: i64 = 16;
    pub const LINK_CREATE: i64 = 28;
    pub const ENABLE_STATS: i64 = 32;
}

fn bpf(cmd: i64, attr: &mut [u64; WORDS]) -> io::Result<i64> {
    // SAFETY: the attribute is initialised and as long as said; what it points to lives in the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn new_fd(raw: i64) -> anyhow::Result<OwnedFd> {
    let raw = i32::try_from(raw)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn fd(fd: BorrowedFd<'_>) -> u64 {
    u64::from(fd.as_raw_fd().cast_unsigned())
}
