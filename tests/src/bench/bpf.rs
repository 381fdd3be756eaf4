//! The few system calls of bpf(2) that only a benchmark makes.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;

use crate::lab::Cgroup;

/// Where a packet program is attached.
#[derive(Clone, Copy, Debug)]
pub enum Point<'a> {
    /// A cgroup.
    Cgroup(&'a Cgroup),
    /// A device of the caller's network namespace, by index: TCX.
    Device(u32),
}

/// Directions of a packet program.
#[derive(Clone, Copy, Debug)]
pub enum Attach {
    /// To the sockets of a cgroup; from a device to the host.
    Ingress,
    /// The other way.
    Egress,
}

impl Point<'_> {
    /// `target_fd` or `target_ifindex`.
    fn target(self) -> u64 {
        match self {
            Self::Cgroup(cgroup) => fd(cgroup.as_fd()),
            Self::Device(index) => u64::from(index),
        }
    }

    /// `enum bpf_attach_type`.
    const fn kind(self, attach: Attach) -> u64 {
        match (self, attach) {
            (Self::Cgroup(_), Attach::Ingress) => 0,
            (Self::Cgroup(_), Attach::Egress) => 1,
            (Self::Device(_), Attach::Ingress) => 46,
            (Self::Device(_), Attach::Egress) => 47,
        }
    }
}

/// A packet program that lets everything pass and does nothing else: what the hook itself costs.
#[derive(Debug)]
pub struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Loads it and attaches it, until it is dropped.
    pub fn attach(point: Point<'_>, attach: Attach) -> anyhow::Result<Self> {
        // What is returned lets a packet go on: 1 of a cgroup, TCX_NEXT, which is -1, of a device.
        let (kind, pass) = match point {
            Point::Cgroup(_) => (CGROUP_SKB, 1),
            Point::Device(_) => (SCHED_CLS, 0xffff_ffff),
        };
        // r0 = pass; exit.
        let code: [u64; 2] = [pass << 32 | 0xb7, 0x95];
        let licence = c"GPL";
        let mut attr = [0_u64; WORDS];
        attr[0] = kind | 2 << 32;
        attr[1] = code.as_ptr().addr() as u64;
        attr[2] = licence.as_ptr().addr() as u64;
        if kind == CGROUP_SKB {
            // expected_attach_type is at 68.
            attr[8] = point.kind(attach) << 32;
        }
        let program = new_fd(bpf(cmd::PROG_LOAD, &mut attr).context("load an empty program")?)?;
        attr = [0; WORDS];
        attr[0] = fd(program.as_fd()) | point.target() << 32;
        attr[1] = point.kind(attach);
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

/// How many programs are attached in a direction.
pub fn attached(point: Point<'_>, attach: Attach) -> anyhow::Result<u32> {
    let mut attr = [0_u64; WORDS];
    attr[0] = point.target() | point.kind(attach) << 32;
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
/// `BPF_PROG_TYPE_SCHED_CLS`
const SCHED_CLS: u64 = 3;
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
