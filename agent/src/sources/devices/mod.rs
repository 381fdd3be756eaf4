//! The host's network devices, the addresses behind them and the ways to those, as rtnetlink tells them.
//!
//! An id of a network namespace (`nsid`) is a number that one namespace has for another. It is given
//! again when that one is gone. So what was read is one picture only if nothing has [`Devices::changed`]
//! since before the first question.
//!
//! Source: rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/net_namespace.h.

mod decode;
mod notices;

use std::{
    ffi::OsString,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    sync::{Mutex, PoisonError},
};

use netlink_packet_core::{DecodeError, DefaultNla, NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
    route::{RouteAttribute, RouteMessage},
};
use notices::Notices;

use crate::netlink::Requests;

/// Most devices that are listed. A count, far above what one host has.
const LINKS_MAX: usize = 1 << 16;

/// Most addresses of one network namespace, for each family. A count: who may add addresses to a
/// namespace can add millions.
const ADDRESSES_MAX: usize = 1 << 12;

/// Most addresses of the host itself, for each family: a proxy for services gives it one for each of them.
const OWN_ADDRESSES_MAX: usize = 1 << 13;

/// How often a list is asked for that changes while the kernel writes it.
const TRIES_MAX: usize = 8;

/// One network device of the namespace that [`Devices`] was opened in, or of another that it was asked about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its index, which no other device has while this one lives.
    pub index: u32,
    /// Its name now. Any bytes but `/`, `:` and spaces: a device can come back from a workload that named it.
    pub name: OsString,
    /// What the kernel calls its kind: `veth`, `netkit`, `bridge`. None: a device of a driver, such as `lo`.
    pub kind: Option<String>,
    /// It is the namespace's loopback device.
    pub is_loopback: bool,
    /// The id of the namespace that its other end is in. None: it has none, or it is in this one.
    pub peer_netns: Option<i32>,
    /// The index of the bridge, bond or VRF that it is a port of.
    pub controller: Option<u32>,
    /// The index of its other end, in the namespace where that is.
    pub peer: Option<u32>,
    /// Its Ethernet address. None: it has none, or one of another length.
    pub address: Option<[u8; 6]>,
}

/// Why the kernel does not tell.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// No socket.
    #[error("open a netlink socket for network devices")]
    Open {
        /// Why.
        source: io::Error,
    },
    /// Addresses that change in the namespace of a workload would go unnoticed.
    #[error("hear of changes in the network namespaces of workloads; this needs CAP_NET_BROADCAST")]
    Broadcast {
        /// Why.
        source: io::Error,
    },
    /// The kernel refused, or its answer cannot be read.
    #[error("ask the kernel for {what}")]
    Ask {
        /// What was asked.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// There is no such namespace any more.
    #[error("no network namespace has the id {nsid} here: it is gone, or was never seen from here")]
    NoNamespace {
        /// The id.
        nsid: i32,
    },
    /// It changes all the time.
    #[error("ask the kernel for {what}: they changed while it listed them, {TRIES_MAX} times in a row")]
    Unsteady {
        /// What was asked.
        what: String,
    },
    /// More than anybody means to have.
    #[error("ask the kernel for {what}: there are more than {max}")]
    TooMany {
        /// What was asked.
        what: String,
        /// How many are read.
        max: usize,
    },
    /// The notices cannot be read.
    #[error("hear what changed of the network devices")]
    Notices {
        /// Why.
        source: io::Error,
    },
}

/// A view of one network namespace: that of the thread which opened it, whoever asks.
///
/// Its descriptor is readable when something changed.
#[derive(Debug)]
pub struct Devices {
    requests: Mutex<Requests>,
    notices: Notices,
}

impl Devices {
    /// Opens a view of the calling thread's network namespace. What changes from now on is heard.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Open`], [`DevicesError::Broadcast`].
    pub fn open() -> Result<Self, DevicesError> {
        let notices = Notices::open()?;
        let requests = Mutex::new(
            Requests::open(None).and_then(Requests::strict).map_err(|source| DevicesError::Open { source })?,
        );
        Ok(Self { requests, notices })
    }

    /// Lists every device of the namespace.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Ask`], [`DevicesError::Unsteady`], [`DevicesError::TooMany`].
    pub fn links(&self) -> Result<Vec<Link>, DevicesError> {
        let mut message = LinkMessage::default();
        // Counters are not wanted, and they are the greater part of each device.
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let what = "the network devices";
        let failed = |source| DevicesError::Ask { what: what.to_owned(), source };
        self.list(what, LINKS_MAX, &RouteNetlinkMessage::GetLink(message), failed, |body| decode::link(body).map(Some))
    }

    /// Lists the IPv4 and IPv6 addresses of a namespace, but not those of its loopback device. An address
    /// that is being checked for a duplicate is there already.
    ///
    /// This needs CAP_NET_ADMIN over that namespace.
    ///
    /// # Errors
    ///
    /// [`DevicesError::NoNamespace`] if none has that id (any more); else as [`Self::links`].
    pub fn addresses(&self, nsid: i32) -> Result<Vec<IpAddr>, DevicesError> {
        self.addresses_of(Some(nsid), ADDRESSES_MAX)
    }

    /// Lists the IPv4 and IPv6 addresses of the namespace itself, with those of its loopback device.
    ///
    /// # Errors
    ///
    /// As [`Self::links`].
    pub fn own_addresses(&self) -> Result<Vec<IpAddr>, DevicesError> {
        self.addresses_of(None, OWN_ADDRESSES_MAX)
    }

    fn addresses_of(&self, nsid: Option<i32>, max: usize) -> Result<Vec<IpAddr>, DevicesError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            message.attributes = nsid.into_iter().map(AddressAttribute::TargetNetNsId).collect();
            let what = nsid.map_or_else(
                || "the addresses of the host".to_owned(),
                |nsid| format!("the addresses of network namespace {nsid}"),
            );
            let failed = |source: io::Error| match (source.raw_os_error(), nsid) {
                (Some(libc::EINVAL), Some(nsid)) => DevicesError::NoNamespace { nsid },
                _ => DevicesError::Ask { what: what.clone(), source },
            };
            let message = RouteNetlinkMessage::GetAddress(message);
            let read = |body: &[u8]| decode::address(body, family, nsid);
            found.append(&mut self.list(&what, max, &message, failed, read)?);
        }
        Ok(found)
    }

    /// Lists every device of another namespace.
    ///
    /// # Errors
    ///
    /// [`DevicesError::NoNamespace`] if none has that id (any more); else as [`Self::links`].
    pub fn links_in(&self, nsid: i32) -> Result<Vec<Link>, DevicesError> {
        let mut message = LinkMessage::default();
        let there = DefaultNla::new(libc::IFLA_TARGET_NETNSID, nsid.to_ne_bytes().to_vec());
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]), LinkAttribute::Other(there)];
        let what = format!("the devices of network namespace {nsid}");
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EINVAL) => DevicesError::NoNamespace { nsid },
            _ => DevicesError::Ask { what: what.clone(), source },
        };
        let message = RouteNetlinkMessage::GetLink(message);
        let read = |body: &[u8]| decode::link_in(body, nsid).map(Some);
        self.list(&what, LINKS_MAX, &message, failed, read)
    }

    /// Returns the id of another namespace, or None if it has none here. One that a device of this
    /// namespace leads to has one.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Ask`], also if the descriptor is no network namespace.
    pub fn nsid(&self, netns: BorrowedFd<'_>) -> Result<Option<i32>, DevicesError> {
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned())];
        self.one(&RouteNetlinkMessage::GetNsId(message), decode::nsid)
            .map_err(|source| DevicesError::Ask { what: "the id of a network namespace".to_owned(), source })
    }

    /// Gives another namespace an id if it has none here, and returns it. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    ///
    /// As [`Self::nsid`].
    pub fn give_nsid(&self, netns: BorrowedFd<'_>) -> Result<Option<i32>, DevicesError> {
        let mut message = NsidMessage::default();
        // Any that is free.
        message.attributes = vec![NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()), NsidAttribute::Id(-1)];
        match self.ask(&RouteNetlinkMessage::NewNsId(message), NLM_F_ACK, |_| Ok(())) {
            // It has one.
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(DevicesError::Ask { what: "an id for a network namespace".to_owned(), source: e })
            }
            _ => self.nsid(netns),
        }
    }

    /// Returns the index of the device by which the namespace reaches an address, as routes and rules are
    /// now; its own addresses are reached by loopback. None: by no device, for want of a route or because
    /// the route says so.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Ask`].
    pub fn way_to(&self, addr: IpAddr) -> Result<Option<u32>, DevicesError> {
        let mut message = RouteMessage::default();
        (message.header.address_family, message.header.destination_prefix_length) = match addr {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.attributes = vec![RouteAttribute::Destination(addr.into())];
        match self.one(&RouteNetlinkMessage::GetRoute(message), decode::way) {
            Ok(index) => Ok(index),
            // No route, or one that is `unreachable`, `prohibit` or `blackhole`: IPv4 says it so.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(DevicesError::Ask { what: format!("the way to {addr}"), source }),
        }
    }

    /// Says whether a device, address, route or id changed since the last call, here or in a namespace that
    /// has an id here, or whether notices of that were lost. Does not wait.
    ///
    /// Ask until it says no: only then is nothing left to be heard, and the descriptor no longer readable.
    /// One change makes several notices, so look at what is there behind the last of them.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Notices`].
    pub fn changed(&self) -> Result<bool, DevicesError> {
        self.notices.take().map_err(|source| DevicesError::Notices { source })
    }

    fn list<T>(
        &self,
        what: &str,
        max: usize,
        question: &RouteNetlinkMessage,
        failed: impl Fn(io::Error) -> DevicesError,
        read: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<T>, DevicesError> {
        for _ in 0..TRIES_MAX {
            let (mut found, mut count) = (Vec::new(), 0_usize);
            let steady = self.ask(question, NLM_F_DUMP, |body| {
                if let Some(item) = read(body)? {
                    count += 1;
                    if count <= max {
                        found.push(item);
                    }
                }
                Ok(())
            });
            let steady = steady.map_err(&failed)?;
            if count > max {
                return Err(DevicesError::TooMany { what: what.to_owned(), max });
            }
            if steady {
                return Ok(found);
            }
        }
        Err(DevicesError::Unsteady { what: what.to_owned() })
    }

    /// Asks what has one answer.
    fn one<T>(
        &self,
        question: &RouteNetlinkMessage,
        read: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
    ) -> io::Result<Option<T>> {
        let mut found = None;
        self.ask(question, NLM_F_ACK, |body| {
            found = read(body)?;
            Ok(())
        })?;
        Ok(found)
    }

    fn ask(
        &self,
        question: &RouteNetlinkMessage,
        how: u16,
        take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> io::Result<bool> {
        // Whoever panicked left at most an answer behind, and that is skipped.
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.ask_route(question, how, take)
    }
}

impl AsFd for Devices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }
}
