//! Filters of `clsact`: what somebody with rights of their own does with them, and a look at them by tc(8).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, ensure};
use eastwall::netlink::Requests;

use crate::bpf::{self, TCX_INGRESS};

/// A filter that asks a program of somebody else, until it is dropped.
#[derive(Debug)]
pub struct Filter {
    requests: Requests,
    head: Vec<u8>,
}

/// Where among filters.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Of the first priority, where the newest is asked before all others.
    First,
    /// Of the first priority, which has no room for filters about all protocols then.
    FirstForIpv4,
    /// Of the second priority.
    Behind,
}

/// Types and flags of messages: linux/rtnetlink.h, linux/netlink.h.
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

impl Filter {
    /// Adds one at a device of this network namespace.
    pub fn add(program: BorrowedFd<'_>, index: u32, attach: u32, place: Place) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let head = head(index, attach, place, NEXT.fetch_add(1, Ordering::Relaxed));
        let mut requests = Requests::open(None)?;
        let qdisc = [0, index, 0xffff_0000, 0xffff_fff1, 0].map(u32::to_ne_bytes).concat();
        let qdisc = [qdisc, attribute(KIND, b"clsact\0")].concat();
        match requests.ask(NEW_QDISC, CREATE | EXCLUSIVE | ACK, &qdisc, |_| Ok(())) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).context("add clsact"),
            _ => {}
        }
        put(&mut requests, &head, CREATE | EXCLUSIVE, program, "intruder").context("add a filter")?;
        Ok(Self { requests, head })
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // It may have gone with its device.
        let body = [self.head.clone(), attribute(KIND, b"bpf\0")].concat();
        let _ = self.requests.ask(DELETE_FILTER, ACK, &body, |_| Ok(()));
    }
}

/// Puts another program under the filter of the first priority that has a handle, which keeps its name.
pub fn replace(program: BorrowedFd<'_>, index: u32, attach: u32, handle: u32, name: &str) -> anyhow::Result<()> {
    let head = head(index, attach, Place::First, handle);
    put(&mut Requests::open(None)?, &head, CREATE | REPLACE, program, name).context("replace a filter")
}

/// What tc(8) shows of a filter that asks a program.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shown {
    /// Its handle.
    pub handle: u32,
    /// The name of its program, as the kernel has it.
    pub program: String,
}

/// Lists the filters on one side of a device, in the order in which they are asked.
pub fn shown(device: &str, attach: u32) -> anyhow::Result<Vec<Shown>> {
    let text = tc(&format!("filter show dev {device} {}", side(attach)))?;
    let after = |line: &str, word: &str| Some(line.split_once(word)?.1.split(' ').next()?.to_owned());
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((handle, id)) = after(line, " handle 0x").zip(after(line, " id ")) else { continue };
        let handle = u32::from_str_radix(&handle, 16).with_context(|| format!("read a handle in {line}"))?;
        let program = bpf::name(id.parse().with_context(|| format!("read a number in {line}"))?)?;
        found.push(Shown { handle, program });
    }
    Ok(found)
}

/// Runs tc(8) in this network namespace.
pub fn tc(words: &str) -> anyhow::Result<String> {
    let output = process::Command::new("tc").args(words.split(' ')).output().context("start tc")?;
    ensure!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The side of a device in the words of tc(8).
#[must_use]
pub const fn side(attach: u32) -> &'static str {
    if attach == TCX_INGRESS { "ingress" } else { "egress" }
}

/// Attributes: linux/rtnetlink.h, linux/pkt_cls.h.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const FD: u16 = 6;
const NAME: u16 = 7;
const FLAGS: u16 = 8;

fn put(requests: &mut Requests, head: &[u8], flags: u16, program: BorrowedFd<'_>, name: &str) -> anyhow::Result<()> {
    let fd = attribute(FD, &program.as_raw_fd().to_ne_bytes());
    // 1: what the program returns is what becomes of the packet.
    let options = [fd, attribute(NAME, &[name.as_bytes(), &[0]].concat()), attribute(FLAGS, &1_u32.to_ne_bytes())];
    let body = [head, &attribute(KIND, b"bpf\0"), &attribute(OPTIONS, &options.concat())].concat();
    requests.ask(NEW_FILTER, flags | ACK, &body, |_| Ok(()))?;
    Ok(())
}

/// `struct tcmsg`.
fn head(index: u32, attach: u32, place: Place, handle: u32) -> Vec<u8> {
    let parent: u32 = if attach == TCX_INGRESS { 0xffff_fff2 } else { 0xffff_fff3 };
    // `ETH_P_ALL`, `ETH_P_IP`
    let (priority, protocol): (u32, u16) = match place {
        Place::First => (1, 3),
        Place::FirstForIpv4 => (1, 0x0800),
        Place::Behind => (2, 3),
    };
    let info = priority << 16 | u32::from(protocol.to_be());
    [0, index, handle, parent, info].map(u32::to_ne_bytes).concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("a short attribute");
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
