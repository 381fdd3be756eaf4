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
    parse_u32,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::sys::{Listed, Side};
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
const PRIORITY: u16 = 1;
/// Numbers that nobody else takes by chance: the first letters of the name, and the one after. Two, because ours gets
/// before others of its priority only anew: of those the newest is asked first.
const HANDLES: [u32; 2] = [0x6577, 0x6578];
/// The priority, and `ETH_P_ALL` in the order of the network.
const INFO: u32 = (PRIORITY as u32) << 16 | 3_u16.to_be() as u32;
/// The link of a filter of ours, in a list of programs: it has none, and those of others are not known.
pub const LINK: u32 = 1;

/// Attributes of a filter, and of its options if it is a program.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const FD: u16 = 6;
const NAME: u16 = 7;
const FLAGS: u16 = 8;
const PROGRAM: u16 = 11;
/// Of a filter: only those of chain 0 are asked by themselves.
const CHAIN: u16 = 11;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// What the program returns is what becomes of the packet.
const DIRECT: u32 = 1;

/// How often a list is asked for that changes meanwhile.
const TRIES: usize = 5;

/// Puts a program at its side of a device of the caller's network namespace, before all others, and in the place of ours
/// of that name: no packet meets neither of them.
///
/// # Errors
///
/// What the kernel said. AlreadyExists: somebody else's filter is in that place.
pub fn put(program: BorrowedFd<'_>, name: &str, ifindex: u32) -> io::Result<()> {
    let side = Side::of(name);
    let mut requests = Requests::open(None)?;
    let there = filters(&mut requests, ifindex, side)?;
    let handle = place(&there, name)?;
    let qdisc = Head { parent: CLSACT, handle: CLSACT_HANDLE, info: 0, ..head(ifindex, side, 0) };
    let body = message(qdisc, &[text(KIND, "clsact")]);
    match requests.ask(NEW_QDISC, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &body, |_| Ok(())) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let fd = DefaultNla::new(FD, program.as_raw_fd().to_ne_bytes().to_vec());
    let options = [fd, text(NAME, name), DefaultNla::new(FLAGS, DIRECT.to_ne_bytes().to_vec())];
    let options = DefaultNla::new(OPTIONS | NESTED, emit(&options.as_slice()));
    let body = message(head(ifindex, side, handle), &[text(KIND, "bpf"), options]);
    requests.ask(NEW_FILTER, NLM_F_CREATE | NLM_F_ACK, &body, |_| Ok(()))?;
    // The one that others got before.
    for old in there.iter().filter(|filter| filter.is(name) && filter.handle != handle) {
        delete(&mut requests, ifindex, side, old.handle)?;
    }
    Ok(())
}

/// Takes our program of that name off a device; that it is not there, nor the device, is no error.
///
/// # Errors
///
/// What the kernel said.
pub fn remove(name: &str, ifindex: u32) -> io::Result<()> {
    let side = Side::of(name);
    let mut requests = Requests::open(None)?;
    for ours in filters(&mut requests, ifindex, side)?.iter().filter(|filter| filter.is(name)) {
        delete(&mut requests, ifindex, side, ours.handle)?;
    }
    Ok(())
}

fn delete(requests: &mut Requests, ifindex: u32, side: Side, handle: u32) -> io::Result<()> {
    let body = message(head(ifindex, side, handle), &[text(KIND, "bpf")]);
    match requests.ask(DELETE_FILTER, NLM_F_ACK, &body, |_| Ok(())) {
        // It went with its device.
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)) => Err(e),
        _ => Ok(()),
    }
}

/// Lists the filters on that side of a device at which a program of this name is, in the order in which they are asked,
/// each with its kind. Ours have [`LINK`]. Nothing is at a device that is gone.
///
/// # Errors
///
/// What the kernel said.
pub fn listed(requests: &mut Requests, name: &str, ifindex: u32) -> io::Result<Vec<Listed>> {
    let filters = filters(requests, ifindex, Side::of(name))?;
    let link = |filter: &Filter| if filter.is(name) { LINK } else { 0 };
    let listed = |filter: Filter| Listed { program: filter.program, link: link(&filter), kind: filter.kind };
    Ok(filters.into_iter().map(listed).collect())
}

/// Takes the filter off that a pin of this name speaks of, if it speaks of one and there is one.
///
/// # Errors
///
/// What the kernel said.
pub fn remove_pinned(pin: &str) -> io::Result<()> {
    for name in program::DEVICES {
        let index = pin.strip_prefix(name).and_then(|rest| rest.strip_prefix('_')).and_then(|index| index.parse().ok());
        if let Some(index) = index {
            remove(name, index)?;
        }
    }
    Ok(())
}

/// What is asked about packets on one side of a device.
#[derive(Debug, Default)]
struct Filter {
    /// With its protocol, as in `struct tcmsg`.
    info: u32,
    handle: u32,
    kind: String,
    name: Option<String>,
    /// The number of its program; 0 = it has none.
    program: u32,
}

impl Filter {
    /// Says whether it is ours of that name.
    fn is(&self, name: &str) -> bool {
        self.info == INFO && HANDLES.contains(&self.handle) && self.kind == "bpf" && self.name.as_deref() == Some(name)
    }
}

/// Returns the handle by which a program comes before all others.
fn place(there: &[Filter], name: &str) -> io::Result<u32> {
    if let Some(first) = there.first().filter(|first| first.is(name)) {
        return Ok(first.handle);
    }
    let taken = |text| Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    let mut same_priority = there.iter().filter(|filter| filter.info >> 16 == u32::from(PRIORITY));
    if let Some(Filter { kind, .. }) = same_priority.clone().find(|other| other.info != INFO || other.kind != "bpf") {
        return taken(format!(
            "a filter `{kind}` of somebody else has the priority {PRIORITY} there, and nothing can come before it: give              it another, or delete it (tc filter del dev NAME ingress|egress pref {PRIORITY})"
        ));
    }
    match HANDLES.into_iter().find(|handle| same_priority.clone().all(|filter| filter.handle != *handle)) {
        Some(handle) => Ok(handle),
        None => {
            let other = same_priority.find(|filter| !filter.is(name)).and_then(|filter| filter.name.clone());
            taken(format!(
                "the filter `{}` of somebody else has the place of ours at its device",
                other.unwrap_or_default()
            ))
        }
    }
}

/// Returns the filters of one side, in the order in which they are asked.
fn filters(requests: &mut Requests, ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
    // All of that side: for a list the kernel takes neither handle nor name.
    let body = message(Head { info: 0, ..head(ifindex, side, 0) }, &[]);
    for _ in 0..TRIES {
        let mut found = Vec::new();
        let steady = requests.ask(GET_FILTER, NLM_F_DUMP, &body, |part| {
            found.extend(read(part)?);
            Ok(())
        })?;
        if steady {
            return Ok(found);
        }
    }
    Err(io::Error::other("the filters of a device change all the time"))
}

/// Reads one of a list. `None`: what filters have in common, or one that is asked only if another says so.
fn read(part: &[u8]) -> Result<Option<Filter>, DecodeError> {
    let Ok((head, rest)) = Head::read_from_prefix(part) else {
        return Err("a filter ends within its head".into());
    };
    let mut filter = Filter { info: head.info, handle: head.handle, ..Filter::default() };
    let mut chain = 0;
    for attribute in NlasIterator::new(rest) {
        let attribute = attribute?;
        match attribute.kind() {
            KIND => filter.kind = parse_string(attribute.value())?,
            CHAIN => chain = parse_u32(attribute.value())?,
            OPTIONS => {
                for option in NlasIterator::new(attribute.value()) {
                    let option = option?;
                    match option.kind() {
                        NAME => filter.name = Some(parse_string(option.value())?),
                        PROGRAM => filter.program = parse_u32(option.value())?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // The options of other kinds have other meanings.
    if filter.kind != "bpf" {
        (filter.name, filter.program) = (None, 0);
    }
    Ok((head.handle != 0 && chain == 0).then_some(filter))
}

const fn head(ifindex: u32, side: Side, handle: u32) -> Head {
    let parent = match side {
        Side::Ingress => INGRESS,
        Side::Egress => EGRESS,
    };
    Head { family: 0, pad: [0; 3], ifindex, handle, parent, info: INFO }
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

    fn of(info: u32, handle: u32, kind: &str, name: &str) -> Filter {
        Filter { info, handle, kind: kind.to_owned(), name: Some(name.to_owned()), program: 7 }
    }

    fn named(handle: u32, name: &str) -> Filter {
        of(INFO, handle, "bpf", name)
    }

    #[test]
    fn ours_is_known_by_priority_handle_and_name() {
        let [ours, _] = HANDLES.map(|handle| head(7, Side::Ingress, handle));
        let program = DefaultNla::new(PROGRAM, 52_u32.to_ne_bytes().to_vec());
        let read = filter(ours, "bpf", &[text(NAME, "ew_tc_from"), program]).unwrap();
        assert!(read.is("ew_tc_from") && read.program == 52);
        assert!(!filter(ours, "bpf", &[text(NAME, "ew_tc_to")]).unwrap().is("ew_tc_from"));
        assert!(!filter(ours, "u32", &[text(NAME, "ew_tc_from")]).unwrap().is("ew_tc_from"));
        let other = |head| filter(head, "bpf", &[text(NAME, "ew_tc_from")]);
        assert!(!other(Head { handle: 1, ..ours }).unwrap().is("ew_tc_from"));
        assert!(!other(Head { info: INFO + (1 << 16), ..ours }).unwrap().is("ew_tc_from"));
        assert!(other(Head { handle: 0, ..ours }).is_none(), "what all of a priority have in common");
    }

    #[test]
    fn a_filter_of_another_chain_is_not_asked_by_itself() {
        let ours = head(7, Side::Ingress, HANDLES[0]);
        let chain = |n: u32| [text(KIND, "bpf"), DefaultNla::new(CHAIN, n.to_ne_bytes().to_vec())];
        assert!(read(&message(ours, &chain(0))).unwrap().is_some());
        assert!(read(&message(ours, &chain(3))).unwrap().is_none());
    }

    #[test]
    fn a_place_before_all_others_is_our_own_or_a_new_one() {
        let [one, two] = HANDLES;
        let place = |there: &[Filter]| place(there, "ours").map_err(|e| e.to_string());
        assert_eq!(place(&[]), Ok(one));
        assert_eq!(place(&[named(two, "ours"), named(5, "other")]), Ok(two), "it is replaced where it is");
        assert_eq!(place(&[named(5, "other"), named(one, "ours")]), Ok(two), "it comes anew, before the other");
        assert_eq!(place(&[named(one, "other")]), Ok(two), "what is not ours stays");
        assert_eq!(place(&[of(2 << 16, one, "u32", "other")]), Ok(one));
        let error = place(&[named(one, "other"), named(two, "more")]).unwrap_err();
        assert!(error.contains("the filter `other` of somebody else"), "{error}");
        let error = place(&[of(INFO, one, "matchall", "")]).unwrap_err();
        assert!(error.contains("`matchall`") && error.contains("pref 1"), "{error}");
        assert!(place(&[of(INFO & !0xffff | 8, one, "bpf", "ipv4 only")]).is_err());
    }

    #[test]
    fn a_filter_that_ends_early_is_an_error() {
        let whole = message(head(7, Side::Egress, HANDLES[0]), &[text(KIND, "bpf")]);
        for len in [0, 19, 23] {
            assert!(read(&whole[..len]).is_err(), "{len} bytes");
        }
    }
}
