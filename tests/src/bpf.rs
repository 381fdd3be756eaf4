//! The few system calls of bpf(2) that only a benchmark or an intruder makes.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;

/// Directions of a packet program.
#[derive(Clone, Copy, Debug)]
pub enum Attach {
    /// To the sockets of a cgroup; from a device to the host.
    Ingress,
    /// The other way.
    Egress,
}

/// Where programs are attached.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// A device of this network namespace, by index: TCX.
    Device(u32),
    /// A cgroup.
    Cgroup(BorrowedFd<'a>),
}

impl At<'_> {
    /// `target_fd` or `target_ifindex`.
    fn target(self) -> u64 {
        match self {
            Self::Device(index) => u64::from(index),
            Self::Cgroup(cgroup) => fd(cgroup),
        }
    }

    /// `enum bpf_attach_type`.
    const fn kind(self, attach: Attach) -> u32 {
        match (self, attach) {
            (Self::Cgroup(_), Attach::Ingress) => 0,
            (Self::Cgroup(_), Attach::Egress) => 1,
            (Self::Device(_), Attach::Ingress) => 46,
            (Self::Device(_), Attach::Egress) => 47,
        }
    }
}

/// Hooks of a cgroup that see no packets: name, kind of program, `enum bpf_attach_type`.
const SOCKET_HOOKS: [(&str, Kind, u32); 6] = [
    ("sock_create", Kind::CgroupSock, 2),
    ("connect4", Kind::CgroupSockAddr, 10),
    ("connect6", Kind::CgroupSockAddr, 11),
    ("sendmsg4", Kind::CgroupSockAddr, 14),
    ("sendmsg6", Kind::CgroupSockAddr, 15),
    ("setsockopt", Kind::CgroupSockopt, 22),
];

/// Attaches a program that lets everything pass to each hook of a cgroup that sees no packets, until what is returned is
/// dropped.
pub fn attach_empty_to_sockets(cgroup: BorrowedFd<'_>) -> anyhow::Result<Vec<Empty>> {
    SOCKET_HOOKS
        .iter()
        .map(|&(name, kind, attach)| {
            let program = load(kind, attach, 1, name)?;
            let link = link(program.as_fd(), At::Cgroup(cgroup), attach, 0).with_context(|| format!("at {name}"))?;
            Ok(Empty { program, _link: link })
        })
        .collect()
}

/// A program that lets everything pass and does nothing else: what the hook itself costs.
#[derive(Debug)]
pub struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Loads one for packets and attaches it, until it is dropped.
    pub fn attach(at: At<'_>, attach: Attach) -> anyhow::Result<Self> {
        // What is returned lets a packet go on: 1 of a cgroup, TCX_NEXT, which is -1, of a device.
        let program = match at {
            At::Cgroup(_) => load(Kind::CgroupSkb, at.kind(attach), 1, "empty")?,
            At::Device(_) => load(Kind::SchedCls, 0, -1, "empty")?,
        };
        let link = link(program.as_fd(), at, at.kind(attach), 0)?;
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
pub fn attached(at: At<'_>, attach: Attach) -> anyhow::Result<u32> {
    let mut attr = [0_u64; WORDS];
    attr[0] = at.target() | u64::from(at.kind(attach)) << 32;
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

/// Kinds of programs: `enum bpf_prog_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Kind {
    /// `BPF_PROG_TYPE_SCHED_CLS`
    SchedCls = 3,
    /// `BPF_PROG_TYPE_XDP`
    Xdp = 6,
    /// `BPF_PROG_TYPE_CGROUP_SKB`
    CgroupSkb = 8,
    /// `BPF_PROG_TYPE_CGROUP_SOCK`
    CgroupSock = 9,
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
    CgroupSockAddr = 18,
    /// `BPF_PROG_TYPE_CGROUP_SOCKOPT`
    CgroupSockopt = 25,
}

/// Loads a program that returns a number and does nothing else. A name has at most 15 bytes.
pub fn load(kind: Kind, attach: u32, returns: i32, name: &str) -> anyhow::Result<OwnedFd> {
    // r0 = returns; exit.
    load_code(kind, attach, &[u64::from(returns.cast_unsigned()) << 32 | 0xb7, 0x95], name)
}

/// Loads a program, instruction by instruction.
pub fn load_code(kind: Kind, attach: u32, code: &[u64], name: &str) -> anyhow::Result<OwnedFd> {
    let licence = c"GPL";
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let mut attr = [0_u64; WORDS];
    attr[0] = u64::from(kind as u32) | u64::try_from(code.len())? << 32;
    attr[1] = code.as_ptr().addr() as u64;
    attr[2] = licence.as_ptr().addr() as u64;
    // prog_name is at 48, expected_attach_type at 68.
    for (word, bytes) in attr[6..].iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    attr[8] = u64::from(attach) << 32;
    new_fd(bpf(cmd::PROG_LOAD, &mut attr).context("load a program")?)
}

/// `BPF_TCX_INGRESS` of `enum bpf_attach_type`.
pub const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`
pub const TCX_EGRESS: u32 = 47;

/// Puts a program of XDP at a device of this network namespace, in the generic form, which every device can.
pub fn attach_xdp(program: BorrowedFd<'_>, index: u32) -> anyhow::Result<OwnedFd> {
    // `BPF_XDP`, `XDP_FLAGS_SKB_MODE`
    link(program, At::Device(index), 37, 1 << 1)
}

/// Says whether this kernel has TCX: one that has says that there is no device of the largest index.
///
/// # Panics
///
/// If it takes no program at all.
#[must_use]
pub fn has_tcx() -> bool {
    let program = load(Kind::SchedCls, 0, 0, "asks").expect("load a program");
    let error = link(program.as_fd(), At::Device(i32::MAX.cast_unsigned()), TCX_INGRESS, 0).expect_err("no device");
    error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) != Some(libc::EINVAL)
}

/// Puts a program at a device of this network namespace, before all others there or behind them.
pub fn attach_to_device(program: BorrowedFd<'_>, index: u32, attach: u32, first: bool) -> anyhow::Result<OwnedFd> {
    // `BPF_F_BEFORE`, `BPF_F_AFTER`
    link(program, At::Device(index), attach, if first { 1 << 3 } else { 1 << 4 })
}

/// Attaches a program until what is returned is closed.
pub fn link(program: BorrowedFd<'_>, at: At<'_>, attach: u32, flags: u32) -> anyhow::Result<OwnedFd> {
    let mut attr = [0; WORDS];
    attr[0] = fd(program) | at.target() << 32;
    attr[1] = u64::from(attach) | u64::from(flags) << 32;
    new_fd(bpf(cmd::LINK_CREATE, &mut attr).context("attach a program")?)
}

/// Detaches what a link attaches, and leaves the link.
pub fn detach(link: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut attr = [0; WORDS];
    attr[0] = fd(link);
    bpf(cmd::LINK_DETACH, &mut attr).context("detach a link").map(drop)
}

/// Puts another program under a link.
pub fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut attr = [0; WORDS];
    attr[0] = fd(link) | fd(program) << 32;
    bpf(cmd::LINK_UPDATE, &mut attr).context("put another program under a link").map(drop)
}

/// Opens the program under a link.
pub fn program_of(link: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    // `struct bpf_link_info`: type, id, number of the program.
    let mut info = [0_u32; 3];
    let mut attr = [0; WORDS];
    attr[0] = fd(link) | 12 << 32;
    attr[1] = info.as_mut_ptr().addr() as u64;
    bpf(cmd::OBJ_GET_INFO_BY_FD, &mut attr).context("ask about a link")?;
    attr = [0; WORDS];
    attr[0] = u64::from(info[2]);
    new_fd(bpf(cmd::PROG_GET_FD_BY_ID, &mut attr).context("open a program")?)
}

/// The names of the programs of a place, in the order in which they run.
pub fn names(at: At<'_>, attach: u32) -> anyhow::Result<Vec<String>> {
    let mut programs = [0_u32; 64];
    let mut attr = [0_u64; WORDS];
    attr[0] = at.target() | u64::from(attach) << 32;
    attr[2] = programs.as_mut_ptr().addr() as u64;
    attr[3] = 64;
    bpf(cmd::PROG_QUERY, &mut attr).context("list programs")?;
    let count = usize::try_from(attr[3] & u64::from(u32::MAX))?;
    programs[..count].iter().map(|&id| name(id)).collect()
}

/// The name of a program by its number.
pub fn name(program: u32) -> anyhow::Result<String> {
    let mut attr = [0_u64; WORDS];
    attr[0] = u64::from(program);
    let program = new_fd(bpf(cmd::PROG_GET_FD_BY_ID, &mut attr).context("open a program")?)?;
    // The name is at 64, 16 bytes.
    let mut info = [0_u8; 80];
    attr = [0; WORDS];
    attr[0] = fd(program.as_fd()) | 80 << 32;
    attr[1] = info.as_mut_ptr().addr() as u64;
    bpf(cmd::OBJ_GET_INFO_BY_FD, &mut attr).context("ask about a program")?;
    let name = info[64..].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

const WORDS: usize = 20;

/// `enum bpf_cmd`
mod cmd {
    pub const PROG_LOAD: i64 = 5;
    pub const PROG_GET_FD_BY_ID: i64 = 13;
    pub const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub const PROG_QUERY: i64 = 16;
    pub const LINK_CREATE: i64 = 28;
    pub const LINK_UPDATE: i64 = 29;
    pub const ENABLE_STATS: i64 = 32;
    pub const LINK_DETACH: i64 = 34;
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
