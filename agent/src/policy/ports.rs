//! How ports are written: `tcp/443`, `tcp/8000-8015`, `tcp/any`, `icmp/echo`, `any`, or a port name.

use std::{fmt, num::ParseIntError};

use agent_common::flow::proto;

use super::model::{PortRange, PortSpec};

/// The ICMP type of an echo request (RFC 792). Policy writes the IPv4 form for both families.
pub const ICMP_ECHO: u16 = 8;

/// Why a text is no port.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidPort {
    /// The part before `/`.
    #[error("`{0}` is not a protocol; known are tcp, udp, sctp and icmp")]
    Protocol(String),
    /// Not a number that a port can have.
    #[error("`{written}` is not a port; ports are 1 to 65535")]
    Number {
        /// The part that was read.
        written: String,
        /// Why it is no number, unless it is 0.
        #[source]
        source: Option<ParseIntError>,
    },
    /// The range is written backwards.
    #[error("ports `{lo}-{hi}` run backwards; write `{hi}-{lo}`")]
    Reversed {
        /// First.
        lo: u16,
        /// Last.
        hi: u16,
    },
    /// ICMP has one form.
    #[error("the only ICMP message a rule can name is `icmp/echo`")]
    IcmpMessage,
    /// The protocol is never implied.
    #[error("the protocol is missing; write `tcp/{0}` or `udp/{0}`")]
    NoProtocol(String),
    /// Not a port name either.
    #[error("`{0}` is not a port name; names are 1 to 63 of `A-Z a-z 0-9 . _ -`")]
    Name(String),
}

impl PortRange {
    /// Every port of every protocol.
    pub const ANY: Self = Self { proto: 0, lo: 0, hi: u16::MAX };

    /// Says whether a flow with this protocol and port is meant.
    #[must_use]
    pub const fn contains(&self, proto: u8, port: u16) -> bool {
        (self.proto == 0 || self.proto == proto) && self.lo <= port && port <= self.hi
    }

    /// Says whether every flow meant by `other` is meant by this as well.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        (self.proto == 0 || self.proto == other.proto) && self.lo <= other.lo && other.hi <= self.hi
    }
}

/// Reads one entry of a rule's `ports`.
///
/// # Errors
///
/// [`InvalidPort`], which says what to write instead.
pub fn parse(text: &str) -> Result<PortSpec, InvalidPort> {
    if text.contains('/') || text == "any" {
        return parse_range(text).map(PortSpec::Range);
    }
    if text.bytes().all(|c| c.is_ascii_digit() || c == b'-') {
        return Err(InvalidPort::NoProtocol(text.to_owned()));
    }
    check_name(text).map(|()| PortSpec::Named(text.to_owned()))
}

/// Reads ports that are numbers.
///
/// # Errors
///
/// As [`parse`]; a port name is [`InvalidPort::NoProtocol`].
pub fn parse_range(text: &str) -> Result<PortRange, InvalidPort> {
    if text == "any" {
        return Ok(PortRange::ANY);
    }
    let (protocol, ports) = text.split_once('/').ok_or_else(|| InvalidPort::NoProtocol(text.to_owned()))?;
    let proto = match protocol {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "sctp" => proto::SCTP,
        "icmp" if ports == "echo" => {
            return Ok(PortRange { proto: proto::ICMP, lo: ICMP_ECHO, hi: ICMP_ECHO });
        }
        "icmp" => return Err(InvalidPort::IcmpMessage),
        _ => return Err(InvalidPort::Protocol(protocol.to_owned())),
    };
    if ports == "any" {
        return Ok(PortRange { proto, ..PortRange::ANY });
    }
    let (lo, hi) = ports.split_once('-').unwrap_or((ports, ports));
    let (lo, hi) = (number(lo)?, number(hi)?);
    if lo > hi {
        return Err(InvalidPort::Reversed { lo, hi });
    }
    Ok(PortRange { proto, lo, hi })
}

/// Checks the name of a port.
///
/// # Errors
///
/// [`InvalidPort::Name`].
pub fn check_name(name: &str) -> Result<(), InvalidPort> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let numeric = name.bytes().all(|c| c.is_ascii_digit() || c == b'-');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(legal) || numeric || name == "any" {
        return Err(InvalidPort::Name(name.to_owned()));
    }
    Ok(())
}

fn number(text: &str) -> Result<u16, InvalidPort> {
    let invalid = |source| InvalidPort::Number { written: text.to_owned(), source };
    if text.starts_with('+') {
        return Err(invalid(None));
    }
    match text.parse() {
        Ok(0) => Err(invalid(None)),
        Ok(n) => Ok(n),
        Err(error) => Err(invalid(Some(error))),
    }
}

/// The name of a protocol as policy writes it; numbers stand for those it cannot write.
#[must_use]
pub fn proto_name(number: u8) -> String {
    match number {
        0 => "any".to_owned(),
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        other => format!("proto-{other}"),
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = proto_name(self.proto);
        match (self.proto, self.lo, self.hi) {
            (0, 0, u16::MAX) => f.write_str("any"),
            (proto::ICMP, ICMP_ECHO, ICMP_ECHO) => f.write_str("icmp/echo"),
            (_, 0, u16::MAX) => write!(f, "{name}/any"),
            (_, lo, hi) if lo == hi => write!(f, "{name}/{lo}"),
            (_, lo, hi) => write!(f, "{name}/{lo}-{hi}"),
        }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Range(range) => range.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_written_form_is_read_and_written_back() {
        for text in ["http", "tcp/443", "tcp/8000-8015", "udp/53", "sctp/38412", "tcp/any", "icmp/echo", "any"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("tcp/7-7").unwrap().to_string(), "tcp/7");
    }

    #[test]
    fn what_is_no_port_is_refused_with_what_to_write() {
        for (text, part) in [
            ("8080", "write `tcp/8080`"),
            ("tcp/0", "1 to 65535"),
            ("tcp/65536", "1 to 65535"),
            ("tcp/+1", "1 to 65535"),
            ("tcp/", "1 to 65535"),
            ("tcp/1-", "1 to 65535"),
            ("tcp/9094-9092", "write `9092-9094`"),
            ("TCP/80", "known are"),
            ("icmp/any", "icmp/echo"),
            ("ht tp", "port name"),
            ("", "protocol is missing"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_range_covers_what_it_contains() {
        let range = |text| parse_range(text).unwrap();
        assert!(range("any").covers(&range("tcp/any")) && range("tcp/any").covers(&range("tcp/1-9")));
        assert!(!range("tcp/any").covers(&range("any")) && !range("udp/1").covers(&range("tcp/1")));
        assert!(range("tcp/8000-8015").contains(6, 8015) && !range("tcp/8000-8015").contains(6, 8016));
    }
}
