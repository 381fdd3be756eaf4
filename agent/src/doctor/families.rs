//! Address families that move data past every hook: named, so that nobody takes them for covered.

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use super::{Finding, Outcome};

/// The families of linux/socket.h but IPv4 and IPv6, by number.
const FAMILIES: [(u16, &str); 43] = [
    (1, "AF_UNIX"),
    (3, "AF_AX25"),
    (4, "AF_IPX"),
    (5, "AF_APPLETALK"),
    (6, "AF_NETROM"),
    (7, "AF_BRIDGE"),
    (8, "AF_ATMPVC"),
    (9, "AF_X25"),
    (11, "AF_ROSE"),
    (12, "AF_DECnet"),
    (13, "AF_NETBEUI"),
    (14, "AF_SECURITY"),
    (15, "AF_KEY"),
    (16, "AF_NETLINK"),
    (17, "AF_PACKET"),
    (18, "AF_ASH"),
    (19, "AF_ECONET"),
    (20, "AF_ATMSVC"),
    (21, "AF_RDS"),
    (22, "AF_SNA"),
    (23, "AF_IRDA"),
    (24, "AF_PPPOX"),
    (25, "AF_WANPIPE"),
    (26, "AF_LLC"),
    (27, "AF_IB"),
    (28, "AF_MPLS"),
    (29, "AF_CAN"),
    (30, "AF_TIPC"),
    (31, "AF_BLUETOOTH"),
    (32, "AF_IUCV"),
    (33, "AF_RXRPC"),
    (34, "AF_ISDN"),
    (35, "AF_PHONET"),
    (36, "AF_IEEE802154"),
    (37, "AF_CAIF"),
    (38, "AF_ALG"),
    (39, "AF_NFC"),
    (40, "AF_VSOCK"),
    (41, "AF_KCM"),
    (42, "AF_QIPCRTR"),
    (43, "AF_SMC"),
    (44, "AF_XDP"),
    (45, "AF_MCTP"),
];

/// Every type that a socket of such a family may have.
const TYPES: [SocketType; 5] =
    [SocketType::STREAM, SocketType::DGRAM, SocketType::RAW, SocketType::RDM, SocketType::SEQPACKET];

pub(super) fn examine() -> Vec<Finding> {
    let here = FAMILIES.iter().filter(|&&(number, _)| is_here(AddressFamily::from_raw(number)));
    here.map(|&(number, name)| not_covered(number, name)).collect()
}

/// Says whether the kernel has a family, loading its module if there is one, as any process can by the same call. One
/// that wants another protocol, or rights, is there.
fn is_here(family: AddressFamily) -> bool {
    TYPES.iter().any(|&kind| {
        let opened = socket_with(family, kind, SocketFlags::CLOEXEC, None);
        !matches!(opened, Err(Errno::AFNOSUPPORT))
    })
}

fn not_covered(number: u16, name: &'static str) -> Finding {
    let (found, more) = match name {
        "AF_UNIX" => (
            "joins all that share a network namespace, a directory or a descriptor, and is seen by no hook",
            "; keep abstract names apart by PrivateNetwork=yes",
        ),
        "AF_PACKET" => (
            "hears all that its network gets; what it sends is judged at guarded devices alone",
            "; or take CAP_NET_RAW away",
        ),
        _ => ("sockets of this family can be opened and are seen by no hook", ""),
    };
    let fix = format!(
        "in the unit of a service that needs none: RestrictAddressFamilies=~{name}; in a container, a seccomp \
         profile that refuses socket({number}, ...){more}"
    );
    Finding::new(Outcome::NotCovered, name, found, &fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_sockets_are_named_as_not_covered_and_ip_is_not() {
        let findings = examine();
        assert!(findings.iter().any(|f| f.check == "AF_UNIX" && f.outcome == Outcome::NotCovered));
        assert!(!findings.iter().any(|f| f.check.starts_with("AF_INET")));
    }

    #[test]
    fn families_are_sorted_and_told_apart() {
        assert!(FAMILIES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
