//! An address as it lies in memory, moved by words of eight bytes.
//!
//! The kernel's target cannot read across word borders, so bytes would be moved one by one.

/// 16 bytes in network order, IPv4 mapped, as two words.
pub type Addr = [u64; 2];

/// Puts two words of four bytes side by side in memory.
#[inline(always)]
#[must_use]
pub const fn pair(first: u32, second: u32) -> u64 {
    let (low, high) = if cfg!(target_endian = "little") { (first, second) } else { (second, first) };
    low as u64 | (high as u64) << 32
}

/// The reverse of [`pair`].
#[inline(always)]
#[must_use]
pub const fn halves(word: u64) -> (u32, u32) {
    let (low, high) = ((word & 0xffff_ffff) as u32, (word >> 32) as u32);
    if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
}

/// Takes over 16 bytes in network order.
#[inline(always)]
#[must_use]
pub const fn of_octets(octets: [u8; 16]) -> Addr {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

/// The third word of a mapped address as it lies in memory: 0x0000ffff in network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// Maps an IPv4 address, given as it lies in memory. RFC 4291, section 2.5.5.2.
#[inline(always)]
#[must_use]
pub const fn mapped(v4: u32) -> Addr {
    [0, pair(MAPPED, v4)]
}

/// Returns the IPv4 address, as it lies in memory, if this is one.
#[inline(always)]
#[must_use]
pub const fn v4(addr: &Addr) -> Option<u32> {
    let (third, fourth) = halves(addr[1]);
    if addr[0] == 0 && third == MAPPED { Some(fourth) } else { None }
}

/// 0.0.0.0, and `::`.
#[inline(always)]
#[must_use]
pub const fn is_unspecified(addr: &Addr) -> bool {
    addr[0] == 0 && (addr[1] == 0 || addr[1] == mapped(0)[1])
}

/// 127.0.0.0/8, and `::1`.
#[inline(always)]
#[must_use]
pub const fn is_loopback(addr: &Addr) -> bool {
    match v4(addr) {
        Some(v4) => v4.to_ne_bytes()[0] == 127,
        None => addr[0] == 0 && addr[1] == 1_u64.to_be(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped_and_found_again() {
        let loopback = u32::from_ne_bytes([127, 0, 0, 1]);
        let [first, second] = mapped(loopback);
        let bytes = [first.to_ne_bytes(), second.to_ne_bytes()].concat();
        assert_eq!(bytes, std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        assert_eq!(of_octets(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets()), [first, second]);
        assert_eq!(v4(&[first, second]), Some(loopback));
        assert_eq!(v4(&[1, second]), None);
        assert_eq!(halves(pair(1, 2)), (1, 2));
    }

    #[test]
    fn loopback_and_no_address_are_what_the_standard_library_says() {
        for text in [
            "127.0.0.1",
            "127.255.0.9",
            "126.0.0.1",
            "128.0.0.1",
            "::1",
            "::",
            "::2",
            "1::1",
            "0.0.0.1",
            "0.0.0.0",
            "1::",
        ] {
            let ip: IpAddr = text.parse().expect("an address");
            let octets = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            assert_eq!(is_loopback(&of_octets(octets)), ip.is_loopback(), "{text}");
            assert_eq!(is_unspecified(&of_octets(octets)), ip.is_unspecified(), "{text}");
        }
    }
}
