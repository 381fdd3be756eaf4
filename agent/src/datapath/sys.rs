//! bpf(2) where aya has no wrapper: batches, take, link update. The kernel's `union bpf_attr` by hand.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    thread,
    time::Duration,
};

use agent_common::layout::names::program;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType, netdevice::index_to_name, socket},
};

/// Commands of `enum bpf_cmd`.
mod cmd {
    pub const MAP_CREATE: i64 = 0;
    pub const MAP_LOOKUP_ELEM: i64 = 1;
    pub const MAP_UPDATE_ELEM: i64 = 2;
    pub const MAP_DELETE_ELEM: i64 = 3;
    pub const MAP_GET_NEXT_KEY: i64 = 4;
    pub const OBJ_PIN: i64 = 6;
    pub const OBJ_GET: i64 = 7;
    pub const PROG_TEST_RUN: i64 = 10;
    pub const PROG_GET_FD_BY_ID: i64 = 13;
    pub const MAP_GET_FD_BY_ID: i64 = 14;
    pub const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub const PROG_QUERY: i64 = 16;
    pub const RAW_TRACEPOINT_OPEN: i64 = 17;
    pub const MAP_LOOKUP_AND_DELETE_ELEM: i64 = 21;
    pub const MAP_FREEZE: i64 = 22;
    pub const MAP_UPDATE_BATCH: i64 = 26;
    pub const LINK_CREATE: i64 = 28;
    pub const LINK_UPDATE: i64 = 29;
    pub const LINK_DETACH: i64 = 34;
}

/// Returns the cookie of the caller's network namespace, by which programs know it. Since Linux 5.14.
///
/// # Errors
///
/// What the kernel says.
pub fn netns_cookie() -> io::Result<u64> {
    /// `SO_NETNS_COOKIE` of asm-generic/socket.h.
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    let (mut cookie, mut length) = (0_u64, 8_u32);
    // SAFETY: the kernel writes at most `length` bytes.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if failed == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Waits until every program that runs now has ended: those that begin meanwhile see what was attached before.
///
/// Where the kernel cannot say so, it waits for longer than any program runs.
pub fn wait_for_running_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h, a grace period of RCU, under which these programs run.
    const GLOBAL: i32 = 1;
    // SAFETY: no memory is handed over.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0 {
        thread::sleep(RUN_MAX);
    }
}

/// Longer than a program runs, also where its CPU is not always there.
const RUN_MAX: Duration = Duration::from_millis(100);

/// Size of the attribute that every command here fits in, bytes.
const ATTR_WORDS: usize = 20;

fn bpf(cmd: i64, attr: &mut [u64; ATTR_WORDS]) -> io::Result<i64> {
    // SAFETY: the attribute is initialised and as long as said; what it points to is kept alive by the
    // callers, each of which holds the borrows for the time of the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn element(map: BorrowedFd<'_>, key: u64, value: u64, flags: u64) -> [u64; ATTR_WORDS] {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(map);
    attr[1] = key;
    attr[2] = value;
    attr[3] = flags;
    attr
}

fn fd(fd: BorrowedFd<'_>) -> u64 {
    u64::from(fd.as_raw_fd().cast_unsigned())
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().addr() as u64
}

/// Kinds of `enum bpf_map_type` that are made at run time.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// BPF_MAP_TYPE_HASH
    Hash = 1,
    /// BPF_MAP_TYPE_ARRAY
    Array = 2,
    /// BPF_MAP_TYPE_LPM_TRIE
    Trie = 11,
}

/// Makes a map. Sizes in bytes; `flags` as in `BPF_F_*`.
pub fn create(kind: MapKind, key: usize, value: usize, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let size = |n: usize| u32::try_from(n).map(u64::from).map_err(io::Error::other);
    let mut attr = [0; ATTR_WORDS];
    attr[0] = u64::from(kind as u32) | size(key)? << 32;
    attr[1] = size(value)? | u64::from(entries) << 32;
    attr[2] = u64::from(flags);
    let raw = bpf(cmd::MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(raw).map_err(io::Error::other)?) })
}

/// Returns the number under which the kernel lists a map.
pub fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    // The first two fields of `struct bpf_map_info`: type and id. The kernel gives as much as is asked for.
    let mut info = [0_u32; 2];
    object_info(map, &mut info)?;
    Ok(info[1])
}

/// Reads an element into `value`; false if there is none. Per-CPU maps give one value a CPU, each
/// padded to 8 bytes.
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    absent(bpf(cmd::MAP_LOOKUP_ELEM, &mut element(map, address(key), address(value), 0)))
}

/// Reads and removes an element in one step; false if there is none.
pub fn take(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    absent(bpf(cmd::MAP_LOOKUP_AND_DELETE_ELEM, &mut element(map, address(key), address(value), 0)))
}

/// Writes an element.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    bpf(cmd::MAP_UPDATE_ELEM, &mut element(map, address(key), address(value), 0)).map(drop)
}

/// Writes an element that is not there; false if it is.
pub fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    const NOEXIST: u64 = 1;
    match bpf(cmd::MAP_UPDATE_ELEM, &mut element(map, address(key), address(value), NOEXIST)) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes an element; false if there is none.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    absent(bpf(cmd::MAP_DELETE_ELEM, &mut element(map, address(key), 0, 0)))
}

/// Writes the key after `key` into `next`; false at the end.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let key = key.map_or(0, address);
    absent(bpf(cmd::MAP_GET_NEXT_KEY, &mut element(map, key, address(next), 0)))
}

/// Writes `count` elements that lie one after the other; returns how many were written.
pub fn update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: u32) -> io::Result<u32> {
    let mut attr = [0; ATTR_WORDS];
    attr[2] = address(keys);
    attr[3] = address(values);
    attr[4] = u64::from(count) | fd(map) << 32;
    let done = bpf(cmd::MAP_UPDATE_BATCH, &mut attr);
    let written = u32::try_from(attr[4] & u64::from(u32::MAX)).unwrap_or(0);
    done.map(|_| written)
}

/// Opens a pinned object; `None` if nothing is pinned there.
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = [0; ATTR_WORDS];
    attr[0] = name.as_ptr().addr() as u64;
    match bpf(cmd::OBJ_GET, &mut attr) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(raw) => Ok(Some(unsafe { OwnedFd::from_raw_fd(i32::try_from(raw).map_err(io::Error::other)?) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a map by its number, which is what a map of maps answers; `None` if it is gone.
pub fn open_id(id: u32) -> io::Result<Option<OwnedFd>> {
    open_by_id(cmd::MAP_GET_FD_BY_ID, id)
}

fn open_by_id(cmd: i64, id: u32) -> io::Result<Option<OwnedFd>> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = u64::from(id);
    match bpf(cmd, &mut attr) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(raw) => Ok(Some(unsafe { OwnedFd::from_raw_fd(i32::try_from(raw).map_err(io::Error::other)?) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Closes a map to everybody's writes, root's included, for as long as it lives. Programs may still write.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(map);
    bpf(cmd::MAP_FREEZE, &mut attr).map(drop)
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LinkInfo {
    /// Its number.
    pub id: u32,
    /// The number of the program under it.
    pub program: u32,
    /// Where it is attached: the id of a cgroup or the index of a device; 0 = it was detached. Without a meaning for
    /// links of tracing, which nobody can detach.
    pub target: u64,
}

/// Says whether what is open is a link, and not a program or a map.
pub fn is_link(object: BorrowedFd<'_>) -> io::Result<bool> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    Ok(info.lines().any(|line| line.starts_with("link_id:")))
}

/// Asks about a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    /// `enum bpf_link_type`
    const TCX: u32 = 11;
    // `struct bpf_link_info`: type, id, program, a hole, then what depends on the type.
    let mut info = [0_u32; 8];
    object_info(link, &mut info)?;
    let long = u64::from(info[4]) | u64::from(info[5]) << 32;
    Ok(LinkInfo { id: info[1], program: info[2], target: if info[0] == TCX { u64::from(info[4]) } else { long } })
}

/// What the kernel says about a program.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProgramInfo {
    /// Its number.
    pub id: u32,
    /// As its maker calls it; any bytes.
    pub name: Vec<u8>,
    /// A hash of its instructions.
    pub tag: [u8; 8],
    /// Who loaded it.
    pub uid: u32,
}

impl ProgramInfo {
    /// The tag in hex, as bpftool(8) shows it.
    #[must_use]
    pub fn tag_text(&self) -> String {
        self.tag.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Asks about a program.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    // `struct bpf_prog_info` up to the name.
    let mut info = [0_u32; 20];
    object_info(program, &mut info)?;
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let name = bytes(&info[16..20]).into_iter().take_while(|byte| *byte != 0).collect();
    let tag = bytes(&info[2..4]).try_into().unwrap_or_default();
    Ok(ProgramInfo { id: info[1], name, tag, uid: info[12] })
}

/// Says what the kernel knows of a program, by its number; `None` if it is gone.
///
/// # Errors
///
/// What the kernel says; a user who may not open programs gets EPERM.
pub fn program_by_id(id: u32) -> io::Result<Option<ProgramInfo>> {
    open_program(id)?.map(|program| program_info(program.as_fd())).transpose()
}

/// The same for whoever may open any program: one that is gone has no name.
#[must_use]
pub fn describe(id: u32) -> ProgramInfo {
    program_by_id(id).ok().flatten().unwrap_or_else(|| ProgramInfo { id, ..ProgramInfo::default() })
}

/// Fills `info` with as much as it takes of what the kernel says about an object.
fn object_info(object: BorrowedFd<'_>, info: &mut [u32]) -> io::Result<()> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(object) | u64::try_from(size_of_val(info)).map_err(io::Error::other)? << 32;
    attr[1] = info.as_mut_ptr().addr() as u64;
    bpf(cmd::OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Opens a program by its number; `None` if it is gone.
pub fn open_program(id: u32) -> io::Result<Option<OwnedFd>> {
    open_by_id(cmd::PROG_GET_FD_BY_ID, id)
}

/// Most programs that are listed of one place; the kernel attaches no more than 64.
const LISTED_MAX: usize = 64;

/// Where programs are attached.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A device of the caller's network namespace, by index.
    Device(u32),
    /// A cgroup; with the programs of those above it if asked so.
    Cgroup(BorrowedFd<'a>, bool),
}

/// A program of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// Its number; 0 = it is a filter of another kind.
    pub program: u32,
    /// The number of its link; 0 = it has none, or the kernel does not say.
    pub link: u32,
    /// The kind of a filter; empty = it is none.
    pub kind: String,
}

/// Lists the programs of a place, by a number of `enum bpf_attach_type`, in the order in which they run.
pub fn query(target: Target<'_>, attach_type: u32) -> io::Result<Vec<Listed>> {
    /// `BPF_F_QUERY_EFFECTIVE`
    const EFFECTIVE: u64 = 1;
    let (mut programs, mut links) = ([0_u32; LISTED_MAX], [0_u32; LISTED_MAX]);
    let mut attr = [0; ATTR_WORDS];
    let target_word = match target {
        Target::Device(index) => u64::from(index),
        Target::Cgroup(cgroup, _) => fd(cgroup),
    };
    attr[0] = target_word | u64::from(attach_type) << 32;
    attr[1] = u64::from(matches!(target, Target::Cgroup(_, true))) * EFFECTIVE;
    attr[2] = programs.as_mut_ptr().addr() as u64;
    attr[3] = LISTED_MAX as u64;
    // Of a cgroup it says no links, and refuses to be asked.
    if matches!(target, Target::Device(_)) {
        attr[5] = links.as_mut_ptr().addr() as u64;
    }
    bpf(cmd::PROG_QUERY, &mut attr)?;
    let count = usize::try_from(attr[3] & u64::from(u32::MAX)).unwrap_or(0);
    let listed = |(program, link)| Listed { program, link, kind: String::new() };
    Ok(programs.into_iter().zip(links).take(count).map(listed).collect())
}

/// Says whether there is a device of this index in the caller's network namespace.
pub fn is_device(index: u32) -> io::Result<bool> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    match index_to_name(&socket, index) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Puts another program under a link: no packet meets neither of them.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(link) | fd(program) << 32;
    bpf(cmd::LINK_UPDATE, &mut attr).map(drop)
}

/// Takes off what a link attached, at once, whoever else holds the link. One of tracing cannot be taken off so; that is no
/// error.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(link);
    match bpf(cmd::LINK_DETACH, &mut attr) {
        Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(()),
        done => done.map(drop),
    }
}

/// Sides of a device, of `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Side {
    /// BPF_TCX_INGRESS: what the device takes from the wire, for the host.
    Ingress = 46,
    /// BPF_TCX_EGRESS
    Egress = 47,
}

impl Side {
    /// Where a program stands: what leaves a workload is what the device takes, for the host.
    pub fn of(name: &str) -> Self {
        if name == program::TC_FROM { Self::Ingress } else { Self::Egress }
    }
}

/// `BPF_F_BEFORE` of linux/bpf.h: without another program it means before all of them.
const BEFORE: u64 = 1 << 3;

/// Puts a program at a device of the caller's network namespace, before all others there. It comes off when the link is
/// closed, unless that is pinned.
///
/// By index, where the library takes a name: that may be another device's by then.
pub fn attach_first(program: BorrowedFd<'_>, ifindex: u32, side: Side) -> io::Result<OwnedFd> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(program) | u64::from(ifindex) << 32;
    attr[1] = u64::from(side as u32) | BEFORE << 32;
    new_link(cmd::LINK_CREATE, &mut attr)
}

/// Attaches a program to a cgroup, by a number of `enum bpf_attach_type`. It comes off when the link is closed, unless
/// that is pinned.
///
/// The library does the same, and keeps the descriptor of the link to itself.
pub fn attach_to_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(program) | fd(cgroup) << 32;
    attr[1] = u64::from(attach_type);
    new_link(cmd::LINK_CREATE, &mut attr)
}

/// Attaches a program to the tracepoint that it was loaded for, until the link is closed.
pub fn attach_to_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = [0; ATTR_WORDS];
    attr[1] = fd(program);
    new_link(cmd::RAW_TRACEPOINT_OPEN, &mut attr)
}

fn new_link(cmd: i64, attr: &mut [u64; ATTR_WORDS]) -> io::Result<OwnedFd> {
    let raw = bpf(cmd, attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(raw).map_err(io::Error::other)?) })
}

/// Pins an object where nothing is.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = [0; ATTR_WORDS];
    attr[0] = name.as_ptr().addr() as u64;
    attr[1] = fd(object);
    bpf(cmd::OBJ_PIN, &mut attr).map(drop)
}

/// What a test run of a program returned.
#[derive(Clone, Copy, Debug)]
pub struct TestRun {
    /// The program's return code.
    pub code: u32,
    /// Nanoseconds a run, by the kernel's own clock.
    pub duration_ns: u32,
}

/// Bytes of `struct __sk_buff` up to the end of `ifindex`; the kernel takes what is missing for zero.
const CONTEXT_BYTES: usize = 44;

/// Runs a program on bytes, without traffic, in the caller's cgroup and network namespace.
///
/// Shape: `data` begins with an Ethernet header. `ifindex` is the device that the packet is on; 0 is
/// loopback.
///
/// # Errors
///
/// What the kernel said; EINVAL for bytes that are no packet at all.
pub fn test_run(program: BorrowedFd<'_>, data: &[u8], ifindex: u32, repeat: u32) -> io::Result<TestRun> {
    let mut context = [0; CONTEXT_BYTES];
    context[CONTEXT_BYTES - 4..].copy_from_slice(&ifindex.to_ne_bytes());
    let mut attr = [0; ATTR_WORDS];
    attr[0] = fd(program);
    attr[1] = u64::try_from(data.len()).map_err(io::Error::other)?;
    attr[2] = address(data);
    attr[4] = u64::from(repeat);
    attr[5] = u64::try_from(context.len()).map_err(io::Error::other)?;
    attr[6] = address(&context);
    bpf(cmd::PROG_TEST_RUN, &mut attr)?;
    let low = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
    Ok(TestRun { code: u32::try_from(attr[0] >> 32).unwrap_or(0), duration_ns: low(attr[4] >> 32) })
}

fn absent(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
