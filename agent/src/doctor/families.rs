//! Address families that move data past every hook: named, so that nobody takes them for covered.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{Finding, Outcome};

/// Family, a socket type it may have, and what keeps a service from using it.
const FAMILIES: [(&str, AddressFamily, SocketType); 10] = [
    ("AF_UNIX", AddressFamily::UNIX, SocketType::STREAM),
    ("AF_PACKET", AddressFamily::PACKET, SocketType::RAW),
    ("AF_VSOCK", AddressFamily::VSOCK, SocketType::STREAM),
    ("AF_TIPC", AddressFamily::TIPC, SocketType::STREAM),
    ("AF_RDS", AddressFamily::RDS, SocketType::SEQPACKET),
    ("AF_CAN", AddressFamily::CAN, SocketType::RAW),
    ("AF_BLUETOOTH", AddressFamily::BLUETOOTH, SocketType::SEQPACKET),
    ("AF_ALG", AddressFamily::from_raw(38), SocketType::SEQPACKET),
    ("AF_XDP", AddressFamily::from_raw(44), SocketType::RAW),
    ("AF_SMC", AddressFamily::from_raw(43), SocketType::STREAM),
];

pub(super) fn examine() -> Vec<Finding> {
    FAMILIES.iter().filter_map(|&(name, family, kind)| openable(name, family, kind)).collect()
}

fn openable(name: &'static str, family: AddressFamily, kind: SocketType) -> Option<Finding> {
    let flags = SocketFlags::CLOEXEC;
    // A family that this kernel lacks needs no row; one that asks for rights exists.
    match socket_with(family, kind, flags, None) {
        Ok(_) | Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => Some(Finding::new(
            Outcome::NotCovered,
            name,
            "sockets of this family can be opened and are seen by no hook",
            "in the unit of a service that needs none: RestrictAddressFamilies=AF_INET AF_INET6",
        )),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_sockets_are_named_as_not_covered() {
        let findings = examine();
        assert!(findings.iter().any(|f| f.check == "AF_UNIX" && f.outcome == Outcome::NotCovered));
    }
}
