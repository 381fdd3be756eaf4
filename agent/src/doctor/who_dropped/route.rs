//! Where the host's routes send a flow, and whether they send it anywhere.

use std::{io, net::IpAddr};

use netlink_packet_core::{Emitable as _, NLM_F_ACK, parse_u32};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::{Clue, Tuple, Weight};
use crate::netlink::{Requests, attributes};

const LAYER: &str = "routing";

/// What the routes say about a flow.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) clues: Vec<Clue>,
    /// Devices that it comes in by and goes out by, by index.
    pub(super) devices: Vec<u32>,
}

/// One route, as the kernel answers for an address.
struct Found {
    kind: RouteType,
    device: Option<u32>,
}

pub(super) fn look(tuple: &Tuple) -> Way {
    match try_look(tuple) {
        Ok(way) => way,
        Err(e) => {
            let clues = vec![Clue::new(Weight::Unknown, LAYER, format!("the kernel cannot be asked for routes: {e}"))];
            Way { clues, devices: Vec::new() }
        }
    }
}

fn try_look(tuple: &Tuple) -> io::Result<Way> {
    let mut requests = Requests::open(None)?;
    let mut way = Way::default();
    let mut clue = |weight, found: String| way.clues.push(Clue::new(weight, LAYER, found));
    let back = ask(&mut requests, tuple.from, None);
    let local = matches!(&back, Ok(Some(found)) if found.kind == RouteType::Local);
    let by = back.as_ref().ok().and_then(Option::as_ref).and_then(|found| found.device).filter(|_| !local);
    if let Some(why) = refused(&back) {
        clue(Weight::Evidence, format!("replies to {} have no way: {why}", tuple.from));
    }
    let there = ask(&mut requests, tuple.to, None);
    let stays = matches!(&there, Ok(Some(found)) if found.kind == RouteType::Local);
    let (family, switch) = match tuple.to {
        IpAddr::V4(_) => ("IPv4", "/proc/sys/net/ipv4/ip_forward"),
        IpAddr::V6(_) => ("IPv6", "/proc/sys/net/ipv6/conf/all/forwarding"),
    };
    let is_off = || std::fs::read_to_string(switch).is_ok_and(|value| value.trim() == "0");
    let forth = ask(&mut requests, tuple.to, Some((tuple.from, by)));
    if by.is_some() && !stays && is_off() {
        // The kernel finds no route either, then.
        clue(Weight::Evidence, format!("this host forwards no {family}: {switch} is 0"));
    } else if let Some(why) = refused(&forth) {
        clue(Weight::Evidence, format!("{} is not reached from {}: {why}", tuple.to, tuple.from));
    } else {
        clue(Weight::Cleared, format!("there is a route from {} to {}", tuple.from, tuple.to));
    }
    let out = forth.or(there).ok().flatten();
    way.devices.extend(out.and_then(|found| found.device));
    way.devices.extend(by);
    Ok(way)
}

/// Why a lookup leads nowhere, as people say it.
fn refused(answer: &io::Result<Option<Found>>) -> Option<String> {
    let said = match answer {
        Ok(Some(Found { kind: RouteType::Unreachable, .. })) => "an `unreachable` route",
        Ok(Some(Found { kind: RouteType::Prohibit, .. })) => "a `prohibit` route",
        Ok(Some(Found { kind: RouteType::BlackHole, .. })) => "a `blackhole` route",
        Ok(Some(_)) => return None,
        Ok(None) => "no route",
        Err(e) => match e.raw_os_error() {
            Some(libc::ENETUNREACH) => "no route",
            Some(libc::EHOSTUNREACH) => "an `unreachable` route, or no route",
            Some(libc::EACCES) => "a `prohibit` route",
            Some(libc::EINVAL) => "a `blackhole` route, or an address that no packet may have",
            Some(libc::EXDEV) => "the source is expected at another device (rp_filter)",
            _ => return Some(e.to_string()),
        },
    };
    Some(said.to_owned())
}

/// Looks an address up; `from` is where the packet comes from, and by which device unless it is from this host.
fn ask(requests: &mut Requests, to: IpAddr, from: Option<(IpAddr, Option<u32>)>) -> io::Result<Option<Found>> {
    let (family, bits) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes = vec![RouteAttribute::Destination(to.into())];
    if let Some((from, by)) = from {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(from.into()));
        message.attributes.extend(by.map(RouteAttribute::Iif));
    }
    let mut found = None;
    requests.ask_route(&RouteNetlinkMessage::GetRoute(message), NLM_F_ACK, |answer| {
        let header = RouteHeader::parse(answer)?;
        let mut device = None;
        attributes(answer, header.buffer_len(), |attribute, value| {
            if attribute == libc::RTA_OIF {
                device = Some(parse_u32(value)?);
            }
            Ok(())
        })?;
        found = Some(Found { kind: header.kind, device });
        Ok(())
    })?;
    Ok(found)
}
