//! The Community ID of a flow: one name for it in every tool that sees its packets.
//!
//! Source: Community ID flow hashing, version 1; events.md, section 6.

use std::net::IpAddr;

use agent_common::flow::proto;

/// What tells two flows apart on the wire.
///
/// Addresses may be IPv4-mapped: they are unmapped first, else a dual-stack socket has another id
/// than its packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tuple {
    /// Sender of the first packet.
    pub source: IpAddr,
    /// Its receiver.
    pub target: IpAddr,
    /// IP protocol on the wire.
    pub proto: u8,
    /// Source and target port, if the protocol has ports and both are known.
    pub ports: Option<(u16, u16)>,
    /// ICMP type and code, if it is ICMP.
    pub icmp: Option<(u8, u8)>,
}

/// Returns the id, or `None` if the tuple is not complete: a connect hook knows no source port.
///
/// `seed` must equal that of the other tools that watch this network; 0 is their default.
#[must_use]
pub fn community_id(seed: u16, tuple: &Tuple) -> Option<String> {
    let (first, second) = match tuple.proto {
        proto::TCP | proto::UDP | proto::SCTP => tuple.ports.map(|(s, t)| (Some(s), Some(t)))?,
        // As the reference has it, type and code stand in for the ports.
        proto::ICMP | proto::ICMPV6 => tuple.icmp.map(|(t, c)| (Some(u16::from(t)), Some(u16::from(c))))?,
        // The reference names ports for the protocols above only; the others hash without.
        _ => (None, None),
    };
    let (source, target) = (tuple.source.to_canonical(), tuple.target.to_canonical());
    // The error says that the families differ, which no packet on a wire can do.
    community_id::calculate_community_id(seed, source, target, first, second, tuple.proto, false).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Row {
        case: String,
        proto: u8,
        src: IpAddr,
        dst: IpAddr,
        sport: Option<u16>,
        dport: Option<u16>,
        icmp_type: Option<u8>,
        icmp_code: Option<u8>,
        #[serde(default)]
        seed: u16,
        id: String,
    }

    #[test]
    fn three_other_implementations_give_the_same_id() {
        let lines = include_str!("../../tests/samples/community-id.jsonl").lines();
        assert_eq!(lines.clone().count(), 25);
        for line in lines {
            let row: Row = serde_json::from_str(line).unwrap();
            let tuple = Tuple {
                source: row.src,
                target: row.dst,
                proto: row.proto,
                ports: row.sport.zip(row.dport),
                icmp: row.icmp_type.zip(row.icmp_code),
            };
            assert_eq!(community_id(row.seed, &tuple), Some(row.id), "{}", row.case);
        }
    }

    #[test]
    fn an_incomplete_tuple_has_no_id() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let tuple = Tuple { source: v4, target: v4, proto: proto::TCP, ports: None, icmp: None };
        assert_eq!(community_id(0, &tuple), None, "no source port");
        assert_eq!(community_id(0, &Tuple { proto: proto::ICMP, ..tuple }), None, "no type");
        let v6 = Tuple { target: "fd00::1".parse().unwrap(), ports: Some((1, 2)), ..tuple };
        assert_eq!(community_id(0, &v6), None, "two families");
    }
}
