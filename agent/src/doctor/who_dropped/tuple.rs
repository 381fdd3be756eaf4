//! A flow as people write it: `10.9.0.1 10.9.1.2:tcp/443`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use agent_common::flow::proto;

/// A flow from one address to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tuple {
    /// Who called.
    pub from: IpAddr,
    /// From which port, if that is known.
    pub from_port: Option<u16>,
    /// Who was called.
    pub to: IpAddr,
    /// Number of the protocol.
    pub proto: u8,
    /// At which port; ICMP has none.
    pub to_port: Option<u16>,
}

/// Why a text is no flow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTuple {
    /// No address stands where one must.
    #[error("`{0}` is no address; write `10.9.0.1`, `fd00::1`, with a port `10.9.0.1:40000` or `[fd00::1]:40000`")]
    Address(String),
    /// The target has no port.
    #[error("`{0}` says no protocol; write `{0}:tcp/443`, `:udp/53` or `:icmp`")]
    NoPort(String),
    /// What stands for the port is none.
    #[error("`{0}` is no port; write `tcp/443`, `udp/53` or `icmp`")]
    Port(String),
    /// An IPv4 address does not call an IPv6 address.
    #[error("{from} and {to} are not of one family")]
    Families {
        /// Who called.
        from: IpAddr,
        /// Who was called.
        to: IpAddr,
    },
}

impl Tuple {
    /// Reads `FROM` and `TO:PORT`, as `explain` does but with addresses for names; `ip/` before them may be left out.
    ///
    /// # Errors
    ///
    /// [`InvalidTuple`].
    pub fn parse(from: &str, to: &str) -> Result<Self, InvalidTuple> {
        let (from, from_port) = end(from)?;
        let (addr, port) = match to.rsplit_once(':') {
            Some((addr, port)) if port.contains('/') || port.starts_with("icmp") => (addr, port),
            _ => return Err(InvalidTuple::NoPort(to.to_owned())),
        };
        let (to, extra) = end(addr)?;
        let (proto, to_port) = self::port(port, to)?;
        if extra.is_some() {
            return Err(InvalidTuple::Address(addr.to_owned()));
        }
        if from.is_ipv4() != to.is_ipv4() {
            return Err(InvalidTuple::Families { from, to });
        }
        Ok(Self { from, from_port, to, proto, to_port })
    }

    /// The port of the target, in the words of a rule.
    #[must_use]
    pub fn port_word(&self) -> String {
        let proto = crate::events::words::proto_word(self.proto);
        self.to_port.map_or_else(|| proto.clone(), |port| format!("{proto}/{port}"))
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from_port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.from, port))?,
            None => write!(f, "{}", self.from)?,
        }
        write!(f, " -> {} {}", self.to, self.port_word())
    }
}

/// An address, with a port or without.
fn end(text: &str) -> Result<(IpAddr, Option<u16>), InvalidTuple> {
    let bare = text.strip_prefix("ip/").unwrap_or(text);
    let address = || bare.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let with_port = || bare.parse::<SocketAddr>().map(|addr| (addr.ip(), Some(addr.port())));
    let found = address().map(|addr| (addr, None)).or_else(|_| with_port());
    found.map_err(|_| InvalidTuple::Address(text.to_owned()))
}

fn port(text: &str, to: IpAddr) -> Result<(u8, Option<u16>), InvalidTuple> {
    let wrong = || InvalidTuple::Port(text.to_owned());
    let (word, port) = text.split_once('/').unwrap_or((text, ""));
    let number = match word {
        "icmp" => return Ok((if to.is_ipv4() { proto::ICMP } else { proto::ICMPV6 }, None)),
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "sctp" => proto::SCTP,
        _ => return Err(wrong()),
    };
    Ok((number, Some(port.parse().map_err(|_| wrong())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_read_as_people_write_it() {
        for (from, to, shown) in [
            ("10.9.0.1", "10.9.1.2:tcp/443", "10.9.0.1 -> 10.9.1.2 tcp/443"),
            ("ip/10.9.0.1", "ip/10.9.1.2:udp/53", "10.9.0.1 -> 10.9.1.2 udp/53"),
            ("10.9.0.1:40000", "10.9.1.2:icmp", "10.9.0.1:40000 -> 10.9.1.2 icmp"),
            ("fd00::1", "fd00::2:tcp/443", "fd00::1 -> fd00::2 tcp/443"),
            ("[fd00::1]:40000", "[fd00::2]:tcp/443", "[fd00::1]:40000 -> fd00::2 tcp/443"),
        ] {
            assert_eq!(Tuple::parse(from, to).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_flow_is_refused_with_what_to_write() {
        for (from, to, said) in [
            ("web", "10.9.1.2:tcp/443", "`web` is no address"),
            ("10.9.0.1", "10.9.1.2", "says no protocol"),
            ("10.9.0.1", "10.9.1.2:443", "says no protocol"),
            ("10.9.0.1", "10.9.1.2:tcp/https", "is no port"),
            ("10.9.0.1", "10.9.1.2:quic/443", "is no port"),
            ("10.9.0.1", "10.9.1.2:tcp/70000", "is no port"),
            ("10.9.0.1", "10.9.1.2:1:tcp/443", "is no address"),
            ("10.9.0.1", "fd00::1:tcp/443", "are not of one family"),
        ] {
            let error = Tuple::parse(from, to).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
