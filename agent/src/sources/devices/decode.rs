//! The parts of the kernel's messages that are wanted. What is not wanted is not read: its bytes may be
//! newer than the library that could read it, or a name that is no UTF-8.

use std::{ffi::OsString, net::IpAddr, os::unix::ffi::OsStringExt as _};

use netlink_packet_core::{DecodeError, Emitable, parse_i32, parse_u32};
use netlink_packet_route::{
    AddressFamily,
    address::AddressHeader,
    link::{LinkFlags, LinkHeader},
    nsid::NsidHeader,
    route::{RouteHeader, RouteType},
};

use super::Link;
use crate::netlink::{attributes, text};

/// linux/if_link.h.
const IFLA_INFO_KIND: u16 = 1;
/// linux/if_addr.h.
const IFA_TARGET_NETNSID: u16 = 10;
/// linux/net_namespace.h.
const NETNSA_NSID: u16 = 1;
/// What stands there for a namespace that has no id (`NETNSA_NSID_NOT_ASSIGNED`).
const NOT_ASSIGNED: i32 = -1;
/// The index of the loopback device of every namespace (include/net/flow.h, `LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Reads a device of another namespace than the one that was asked in.
pub(super) fn link_in(body: &[u8], nsid: i32) -> Result<Link, DecodeError> {
    let mut namespace = None;
    attributes(body, LinkHeader::parse(body)?.buffer_len(), |attribute, value| {
        if attribute == libc::IFLA_TARGET_NETNSID {
            namespace = Some(parse_i32(value)?);
        }
        Ok(())
    })?;
    if namespace != Some(nsid) {
        return Err("a device of another network namespace than was asked for".into());
    }
    link(body)
}

/// Reads a device.
pub(super) fn link(body: &[u8]) -> Result<Link, DecodeError> {
    let header = LinkHeader::parse(body)?;
    let mut name = None;
    let (mut kind, mut peer_netns, mut controller) = (None, None, None);
    let (mut peer, mut address) = (None, None);
    attributes(body, header.buffer_len(), |attribute, value| {
        match attribute {
            libc::IFLA_IFNAME => name = Some(OsString::from_vec(text(value).to_vec())),
            libc::IFLA_ADDRESS => address = value.try_into().ok(),
            libc::IFLA_LINK => peer = Some(parse_u32(value)?),
            libc::IFLA_MASTER => controller = Some(parse_u32(value)?),
            libc::IFLA_LINK_NETNSID => peer_netns = Some(parse_i32(value)?),
            libc::IFLA_LINKINFO => {
                attributes(value, 0, |attribute, value| {
                    if attribute == IFLA_INFO_KIND {
                        kind = Some(String::from_utf8_lossy(text(value)).into_owned());
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    })?;
    let name = name.ok_or("a network device without a name")?;
    let is_loopback = header.flags.contains(LinkFlags::Loopback);
    Ok(Link { index: header.index, name, kind, is_loopback, peer_netns, controller, peer, address })
}

/// Reads an address, of a namespace or, without an id, of this one. None: one of another's loopback device, or of another
/// family, which a kernel without the one that was asked for answers with.
pub(super) fn address(body: &[u8], family: AddressFamily, nsid: Option<i32>) -> Result<Option<IpAddr>, DecodeError> {
    let header = AddressHeader::parse(body)?;
    let (mut local, mut address, mut namespace) = (None, None, None);
    attributes(body, header.buffer_len(), |attribute, value| {
        match attribute {
            libc::IFA_LOCAL => local = Some(ip(value)?),
            libc::IFA_ADDRESS => address = Some(ip(value)?),
            IFA_TARGET_NETNSID => namespace = Some(parse_i32(value)?),
            _ => {}
        }
        Ok(())
    })?;
    if namespace != nsid {
        return Err("an address of another network namespace than was asked for".into());
    }
    if header.family != family || nsid.is_some() && header.index == LOOPBACK {
        return Ok(None);
    }
    // Where both are given, the other is the far end of a point-to-point device.
    local.or(address).map(Some).ok_or_else(|| "an address without its bytes".into())
}

/// Reads the id of a namespace.
pub(super) fn nsid(body: &[u8]) -> Result<Option<i32>, DecodeError> {
    let header = NsidHeader::parse(body)?;
    let mut id = None;
    attributes(body, header.buffer_len(), |attribute, value| {
        if attribute == NETNSA_NSID {
            id = Some(parse_i32(value)?);
        }
        Ok(())
    })?;
    let id = id.ok_or("a network namespace without its id")?;
    Ok((id != NOT_ASSIGNED).then_some(id))
}

/// Reads by which device a route goes. None: by none.
pub(super) fn way(body: &[u8]) -> Result<Option<u32>, DecodeError> {
    let header = RouteHeader::parse(body)?;
    let mut device = None;
    attributes(body, header.buffer_len(), |attribute, value| {
        if attribute == libc::RTA_OIF {
            device = Some(parse_u32(value)?);
        }
        Ok(())
    })?;
    // IPv6 has a device in these, too.
    let goes = !matches!(header.kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit);
    Ok(device.filter(|_| goes))
}

fn ip(value: &[u8]) -> Result<IpAddr, DecodeError> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(value).map(IpAddr::from);
    v4.or(v6).map_err(|_| DecodeError::invalid_ip_address(value.len()))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;
    use netlink_packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        nsid::{NsidAttribute, NsidMessage},
        route::{RouteAttribute, RouteMessage},
    };
    use proptest::prelude::*;

    use super::*;

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn device(attributes: Vec<LinkAttribute>) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = 12;
        message.attributes = attributes;
        bytes(&message)
    }

    #[test]
    fn a_device_is_read_with_what_it_has() {
        let read = link(&device(vec![
            LinkAttribute::Mtu(1500),
            LinkAttribute::IfName("nk0".to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Netkit)]),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::Controller(3),
            LinkAttribute::Link(7),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ]));
        let expected = Link {
            is_loopback: false,
            index: 12,
            name: "nk0".into(),
            kind: Some("netkit".to_owned()),
            peer_netns: Some(0),
            controller: Some(3),
            peer: Some(7),
            address: Some([2, 0, 0, 0, 0, 1]),
        };
        assert_eq!(read.unwrap(), expected);
        let read = link(&device(vec![LinkAttribute::IfName("lo".to_owned())])).unwrap();
        let none = Link {
            is_loopback: false,
            index: 12,
            name: "lo".into(),
            kind: None,
            peer_netns: None,
            controller: None,
            peer: None,
            address: None,
        };
        assert_eq!(read, none);
        // As long as those of other kinds of links are.
        let infiniband = device(vec![
            LinkAttribute::IfName("ib0".to_owned()),
            LinkAttribute::Address(vec![0; 20]),
            LinkAttribute::Other(DefaultNla::new(libc::IFLA_TARGET_NETNSID, 5_i32.to_ne_bytes().to_vec())),
        ]);
        assert_eq!(link_in(&infiniband, 5).unwrap().address, None);
        link_in(&infiniband, 6).unwrap_err();
        link(&device(vec![])).unwrap_err();
    }

    #[test]
    fn a_name_may_be_any_bytes_and_so_may_what_is_not_wanted() {
        let raw = |kind, value: &[u8]| LinkAttribute::Other(DefaultNla::new(kind, value.to_vec()));
        let read = link(&device(vec![
            raw(libc::IFLA_IFNAME, b"\xff\"\n\xfe\0"),
            raw(libc::IFLA_IFALIAS, b"\xff\xfe"),
            raw(libc::IFLA_STATS, b"short"),
            raw(libc::IFLA_LINKINFO, &bytes(&DefaultNla::new(2, b"of a kind nobody knows".to_vec()))),
        ]));
        assert_eq!(read.unwrap().name, OsString::from_vec(b"\xff\"\n\xfe".to_vec()));
    }

    fn given(family: AddressFamily, index: u32, attributes: Vec<AddressAttribute>) -> Vec<u8> {
        let mut message = AddressMessage::default();
        message.header.family = family;
        message.header.index = index;
        message.attributes = attributes;
        bytes(&message)
    }

    #[test]
    fn an_address_is_the_near_end_in_the_namespace_that_was_asked_for() {
        let [near, far] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let six: IpAddr = "fd00::1".parse().unwrap();
        let here = || AddressAttribute::TargetNetNsId(5);
        let (v4, v6) = (AddressFamily::Inet, AddressFamily::Inet6);
        // A label that no library can read is the workload's to choose.
        let label = AddressAttribute::Other(DefaultNla::new(3, b"\xff\0".to_vec()));
        let both = vec![AddressAttribute::Address(far), AddressAttribute::Local(near), label, here()];
        assert_eq!(address(&given(v4, 2, both.clone()), v4, Some(5)).unwrap(), Some(near));
        assert_eq!(
            address(&given(v6, 2, vec![here(), AddressAttribute::Address(six)]), v6, Some(5)).unwrap(),
            Some(six)
        );
        assert_eq!(address(&given(v4, LOOPBACK, both.clone()), v4, Some(5)).unwrap(), None);
        assert_eq!(address(&given(v4, 2, both.clone()), v6, Some(5)).unwrap(), None, "a kernel without IPv6");
        address(&given(v4, 2, both.clone()), v4, Some(6)).unwrap_err();
        address(&given(v4, 2, both), v4, None).unwrap_err();
        let own = |index| address(&given(v4, index, vec![AddressAttribute::Local(near)]), v4, None).unwrap();
        assert_eq!((own(2), own(LOOPBACK)), (Some(near), Some(near)), "of this namespace all count");
        address(&given(v4, 2, vec![AddressAttribute::Local(near)]), v4, Some(5)).unwrap_err();
        address(&given(v4, 2, vec![here()]), v4, Some(5)).unwrap_err();
        let odd = AddressAttribute::Other(DefaultNla::new(libc::IFA_LOCAL, vec![10, 0, 0]));
        address(&given(v4, 2, vec![odd, here()]), v4, Some(5)).unwrap_err();
    }

    #[test]
    fn a_namespace_without_an_id_has_none() {
        let message = |attributes| {
            let mut message = NsidMessage::default();
            message.attributes = attributes;
            bytes(&message)
        };
        assert_eq!(nsid(&message(vec![NsidAttribute::Id(0)])).unwrap(), Some(0));
        assert_eq!(nsid(&message(vec![NsidAttribute::Id(NOT_ASSIGNED)])).unwrap(), None);
        nsid(&message(vec![])).unwrap_err();
    }

    #[test]
    fn a_route_that_drops_goes_nowhere() {
        let message = |kind, attributes| {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = attributes;
            bytes(&message)
        };
        let by = || vec![RouteAttribute::Oif(4)];
        assert_eq!(way(&message(RouteType::Unicast, by())).unwrap(), Some(4));
        assert_eq!(way(&message(RouteType::Local, by())).unwrap(), Some(4));
        assert_eq!(way(&message(RouteType::Unicast, vec![])).unwrap(), None);
        for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit] {
            assert_eq!(way(&message(kind, by())).unwrap(), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_nothing_panics(body: Vec<u8>) {
            let _ = (link(&body), address(&body, AddressFamily::Inet, Some(0)), nsid(&body), way(&body));
        }
    }
}
