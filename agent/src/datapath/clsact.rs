//! Programs at devices on kernels without TCX, before Linux 6.6: filters below the queueing discipline `clsact`.
//!
//! Asked by the index of a device: its name may be another device's by then. A filter of ours is known by its priority,
//! handle and name together; what is not ours is never changed. The discipline itself stays, because others may use it.
//!
//! Source: tc-bpf(8), linux/rtnetlink.h, linux/pkt_cls.h.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use agent_common::layout::names::program;
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NlasIterator, parse_string,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::sys::Side;
use crate::netlink::Requests;

/// Types of messages.
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;

/// `struct tcmsg`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Head {
    family: u8,
    pad: [u8; 3],
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

/// The discipline's own numbers; its two sides are parents of filters.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Before all others.
const PRIORITY: u32 = 1;
/// A number that nobody else takes by chance: the first letters of the name.
const HANDLE: u32 = 0x6577;
/// The priority, and `ETH_P_ALL` in the order of the network.
const INFO: u32 = PRIORITY << 16 | 3_u16.to_be() as u32;

/// Attributes of a filter, and of its options if it is a program.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const FD: u16 = 6;
const NAME: u16 = 7;
const FLAGS: u16 = 8;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// What the program returns is what becomes of the packet.
const DIRECT: u32 = 1;

/// How often a list is asked for that changes meanwhile.
const TRIES: usize = 5;

/// Puts a program at its side of a device of the caller's network namespace, or in the place of ours of that name: no
/// packet meets neither of them.
///
/// # Errors
///
/// What the kernel said. AlreadyExists: somebody else's filter is in that place.
pub fn put(program: BorrowedFd<'_>, name: &str, ifindex: u32) -> io::Result<()> {
    let side = Side::of(name);
    let mut requests = Requests::open(None)?;
    if let Some(Filter { name: Some(other), .. }) = there(&mut requests, ifindex, side)?.filter(|f| !f.is(name)) {
        let text = format!("the filter `{other}` of somebody else has the place of ours at its device");
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let qdisc = Head { parent: CLSACT, handle: CLSACT_HANDLE, info: 0, ..head(ifindex, side) };
    let body = message(qdisc, &[text(KIND, "clsact")]);
    match requests.ask(NEW_QDISC, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &body, |_| Ok(())) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let fd = DefaultNla::new(FD, program.as_raw_fd().to_ne_bytes().to_vec());
    let options = [fd, text(NAME, name), DefaultNla::new(FLAGS, DIRECT.to_ne_bytes().to_vec())];
    let options = DefaultNla::new(OPTIONS | NESTED, emit(&options.as_slice()));
    let body = message(head(ifindex, side), &[text(KIND, "bpf"), options]);
    requests.ask(NEW_FILTER, NLM_F_CREATE | NLM_F_ACK, &body, |_| Ok(())).map(drop)
}

/// Takes our program of that name off a device. False: it is not there, nor may the device be.
///
/// # Errors
///
/// What the kernel said.
pub fn remove(name: &str, ifindex: u32) -> io::Result<bool> {
    let side = Side::of(name);
    let mut requests = Requests::open(None)?;
    if !there(&mut requests, ifindex, side)?.is_some_and(|filter| filter.is(name)) {
        return Ok(false);
    }
    let body = message(head(ifindex, side), &[text(KIND, "bpf")]);
    match requests.ask(DELETE_FILTER, NLM_F_ACK, &body, |_| Ok(())) {
        Ok(_) => Ok(true),
        // It went with its device.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Says whether our program of that name is at a device.
///
/// # Errors
///
/// What the kernel said.
pub fn is_there(name: &str, ifindex: u32) -> io::Result<bool> {
    Ok(there(&mut Requests::open(None)?, ifindex, Side::of(name))?.is_some_and(|filter| filter.is(name)))
}

/// Takes the filter off that a pin of this name speaks of, if it speaks of one and there is one.
///
/// # Errors
///
/// What the kernel said.
pub fn remove_pinned(pin: &str) -> io::Result<()> {
    for name in program::DEVICE {
        let index = pin.strip_prefix(name).and_then(|rest| rest.strip_prefix('_')).and_then(|index| index.parse().ok());
        if let Some(index) = index {
            remove(name, index)?;
        }
    }
    Ok(())
}

/// What is at our place.
struct Filter {
    kind: String,
    name: Option<String>,
}

impl Filter {
    fn is(&self, name: &str) -> bool {
        self.kind == "bpf" && self.name.as_deref() == Some(name)
    }
}

/// Returns the filter of our priority and handle.
fn there(requests: &mut Requests, ifindex: u32, side: Side) -> io::Result<Option<Filter>> {
    // All of that side: for a list the kernel takes neither handle nor name.
    let body = message(Head { handle: 0, info: 0, ..head(ifindex, side) }, &[]);
    for _ in 0..TRIES {
        let mut found = None;
        let steady = requests.ask(GET_FILTER, NLM_F_DUMP, &body, |part| {
            if let Some(filter) = read(part)? {
                found = Some(filter);
            }
            Ok(())
        })?;
        if steady {
            return Ok(found);
        }
    }
    Err(io::Error::other("the filters of a device change all the time"))
}

fn read(part: &[u8]) -> Result<Option<Filter>, DecodeError> {
    let Ok((head, rest)) = Head::read_from_prefix(part) else {
        return Err("a filter ends within its head".into());
    };
    if head.handle != HANDLE || head.info != INFO {
        return Ok(None);
    }
    let (mut kind, mut name) = (String::new(), None);
    for attribute in NlasIterator::new(rest) {
        let attribute = attribute?;
        match attribute.kind() {
            KIND => kind = parse_string(attribute.value())?,
            OPTIONS => {
                for option in NlasIterator::new(attribute.value()) {
                    let option = option?;
                    if option.kind() == NAME {
                        name = Some(parse_string(option.value())?);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some(Filter { kind, name }))
}

const fn head(ifindex: u32, side: Side) -> Head {
    let parent = match side {
        Side::Ingress => INGRESS,
        Side::Egress => EGRESS,
    };
    Head { family: 0, pad: [0; 3], ifindex, handle: HANDLE, parent, info: INFO }
}

fn text(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), &[0]].concat())
}

fn message(head: Head, attributes: &[DefaultNla]) -> Vec<u8> {
    [head.as_bytes(), &emit(&attributes)].concat()
}

fn emit(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(head: Head, kind: &str, options: &[DefaultNla]) -> Option<Filter> {
        read(&message(head, &[text(KIND, kind), DefaultNla::new(OPTIONS | NESTED, emit(&options))])).unwrap()
    }

    #[test]
    fn ours_is_known_by_priority_handle_and_name() {
        let ours = head(7, Side::Ingress);
        assert!(filter(ours, "bpf", &[text(NAME, "ew_tc_from")]).unwrap().is("ew_tc_from"));
        assert!(!filter(ours, "bpf", &[text(NAME, "ew_tc_to")]).unwrap().is("ew_tc_from"));
        assert!(!filter(ours, "u32", &[]).unwrap().is("ew_tc_from"));
        assert!(filter(Head { handle: 1, ..ours }, "bpf", &[text(NAME, "ew_tc_from")]).is_none());
        assert!(filter(Head { info: INFO + (1 << 16), ..ours }, "bpf", &[text(NAME, "ew_tc_from")]).is_none());
    }

    #[test]
    fn a_filter_that_ends_early_is_an_error() {
        let whole = message(head(7, Side::Egress), &[text(KIND, "bpf")]);
        for len in [0, 19, 23] {
            assert!(read(&whole[..len]).is_err(), "{len} bytes");
        }
    }
}
