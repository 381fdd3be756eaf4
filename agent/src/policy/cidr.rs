//! Address ranges: how they are written, and what lies in them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use super::model::Cidr;

/// Why a text is no address range.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidCidr {
    /// Not `address/length`.
    #[error("`{0}` is not an address range; write `198.51.100.0/24` or `2001:db8::/32`")]
    Form(String),
    /// The length is not one that the family has.
    #[error("the prefix length of `{0}` must be a number from 0 to {1}")]
    Length(String, u8),
    /// A bit behind the prefix is set.
    #[error("`{written}` has bits set behind the prefix; write `{meant}`")]
    HostBits {
        /// As it stood.
        written: String,
        /// With those bits cleared.
        meant: Cidr,
    },
}

impl Cidr {
    /// Reads a range. An IPv4 range in its IPv6 form becomes IPv4.
    ///
    /// # Errors
    ///
    /// [`InvalidCidr`]. A bare address is refused: whether a host or a network was meant is not guessed.
    pub fn parse(text: &str) -> Result<Self, InvalidCidr> {
        let form = || InvalidCidr::Form(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(form)?;
        let addr: IpAddr = addr.parse().map_err(|_| form())?;
        let bits: u8 = if addr.is_ipv4() { 32 } else { 128 };
        let length = || InvalidCidr::Length(text.to_owned(), bits);
        if prefix.is_empty() || !prefix.bytes().all(|c| c.is_ascii_digit()) {
            return Err(length());
        }
        let prefix: u8 = prefix.parse().ok().filter(|&n| n <= bits).ok_or_else(length)?;
        let range = match addr.to_canonical() {
            IpAddr::V4(v4) if addr.is_ipv6() && prefix >= 96 => Self { addr: v4.into(), prefix: prefix - 96 },
            _ => Self { addr, prefix },
        };
        let meant = Self { addr: range.first(), ..range };
        if meant.addr != range.addr {
            return Err(InvalidCidr::HostBits { written: text.to_owned(), meant });
        }
        Ok(range)
    }

    /// Says whether an address lies in the range. IPv4 in its IPv6 form is IPv4.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.addr.is_ipv4() == addr.is_ipv4() && Self { addr, prefix: self.prefix }.first() == self.addr
    }

    /// Says whether every address of `other` lies in this range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.addr)
    }

    /// Returns the address with the bits behind the prefix cleared.
    fn first(&self) -> IpAddr {
        match self.addr {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                Ipv4Addr::from(u32::from(v4) & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(0);
                std::net::Ipv6Addr::from(u128::from(v6) & mask).into()
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written_back() {
        for text in ["0.0.0.0/0", "198.51.100.128/25", "192.0.2.1/32", "::/0", "2001:db8::/32", "fd00::1/128"] {
            assert_eq!(Cidr::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Cidr::parse("::ffff:10.0.0.0/104").unwrap().to_string(), "10.0.0.0/8");
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["10.0.0.1", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "x/8", "fd00::/129", "/8"] {
            assert!(matches!(Cidr::parse(text), Err(InvalidCidr::Form(_) | InvalidCidr::Length(..))), "{text}");
        }
        assert_eq!(Cidr::parse("10.1.0.0/8").unwrap_err().to_string().split("write ").nth(1), Some("`10.0.0.0/8`"));
    }

    #[test]
    fn a_range_holds_its_ends_and_no_neighbour() {
        let range = Cidr::parse("198.51.100.128/25").unwrap();
        let holds = |text: &str| range.contains(text.parse().unwrap());
        assert!(holds("198.51.100.128") && holds("198.51.100.255") && holds("::ffff:198.51.100.200"));
        assert!(!holds("198.51.100.127") && !holds("198.51.101.0") && !holds("::c633:6480"));
        assert!(!Cidr::parse("::/0").unwrap().contains("10.0.0.1".parse().unwrap()));
        assert!(Cidr::parse("0.0.0.0/0").unwrap().covers(&range) && !range.covers(&Cidr::parse("0.0.0.0/0").unwrap()));
    }
}
