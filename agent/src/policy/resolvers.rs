//! Whom the built-in `dns` lets every workload ask: addresses that a human wrote, or a text in the form of
//! resolv.conf(5).

use std::{fmt, net::IpAddr};

use agent_common::{
    addr::{Addr, of_octets},
    builtin::RESOLVERS_MAX,
};
use serde::Deserialize;

use super::ask::octets;

/// The resolvers of a node: at most [`RESOLVERS_MAX`] addresses, none twice, IPv4 never mapped.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(try_from = "Vec<IpAddr>")]
pub struct Resolvers(Vec<IpAddr>);

/// Why a list is none of resolvers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidResolvers {
    /// It names nobody.
    #[error("an empty list names no resolver; leave it out to take those of the host, or write `dns: false`")]
    Empty,
    /// It names too many.
    #[error("{0} resolvers, and {RESOLVERS_MAX} are the most")]
    TooMany(usize),
    /// Nobody can be asked there.
    #[error("`{0}` is no address of a resolver; name the one that workloads send to, such as 127.0.0.53")]
    Address(IpAddr),
}

impl TryFrom<Vec<IpAddr>> for Resolvers {
    type Error = InvalidResolvers;

    fn try_from(written: Vec<IpAddr>) -> Result<Self, Self::Error> {
        if written.is_empty() {
            return Err(InvalidResolvers::Empty);
        }
        if let Some(&address) = written.iter().find(|address| !can_be_asked(**address)) {
            return Err(InvalidResolvers::Address(address));
        }
        let mut all = Self::default();
        let left_out = written.iter().filter(|&&address| !all.add(address)).count();
        if left_out > 0 { Err(InvalidResolvers::TooMany(all.0.len() + left_out)) } else { Ok(all) }
    }
}

impl Resolvers {
    /// Reads a text in the form of resolv.conf(5), with what is wrong in it: file, line, and what was done.
    #[must_use]
    pub fn of_resolv_conf(file: &str, text: &str) -> (Self, Vec<String>) {
        let (mut all, mut problems) = (Self::default(), Vec::new());
        for (number, line) in (1_usize..).zip(text.lines()) {
            let mut words = line.split_ascii_whitespace();
            if words.next() != Some("nameserver") {
                continue;
            }
            let written = words.next().unwrap_or_default();
            // A link-local address may say on which interface: `fe80::1%eth0`.
            let address = written.split('%').next().and_then(|address| address.parse().ok());
            match address.filter(|&address| can_be_asked(address)) {
                Some(address) if all.add(address) => {}
                Some(address) => problems.push(format!(
                    "{file}:{number}: `{address}` is one resolver too many, {RESOLVERS_MAX} are the most; no workload may \
                     ask it without a rule"
                )),
                None => problems.push(format!(
                    "{file}:{number}: `{}` is no address of a resolver; it is left out",
                    written.escape_debug()
                )),
            }
        }
        (all, problems)
    }

    /// Says whether there was room for it, or it is there already.
    fn add(&mut self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if !self.0.contains(&address) {
            if self.0.len() == RESOLVERS_MAX {
                return false;
            }
            self.0.push(address);
        }
        true
    }

    /// The addresses, as they were written.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0
    }

    /// As the maps hold them: unused entries are zero.
    #[must_use]
    pub fn table(&self) -> [Addr; RESOLVERS_MAX] {
        let mut table = [[0; 2]; RESOLVERS_MAX];
        for (entry, address) in table.iter_mut().zip(&self.0) {
            *entry = of_octets(octets(*address));
        }
        table
    }
}

impl fmt::Display for Resolvers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "nobody".to_owned() } else { listed(&self.0) }.as_str())
    }
}

/// Addresses in the order of their list, for people.
#[must_use]
pub fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

const fn can_be_asked(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.to_canonical().is_unspecified() && !address.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use agent_common::addr::mapped;

    use super::*;

    fn list(addresses: &[&str]) -> Result<Resolvers, InvalidResolvers> {
        addresses.iter().map(|address| address.parse().unwrap()).collect::<Vec<IpAddr>>().try_into()
    }

    #[test]
    fn a_list_is_taken_whole_or_refused() {
        let all = list(&["10.0.0.53", "::ffff:10.0.0.53", "fd00::53"]).unwrap();
        assert_eq!(all.to_string(), "10.0.0.53, fd00::53", "none twice");
        assert_eq!(list(&[]), Err(InvalidResolvers::Empty));
        for wrong in ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.251", "ff02::fb", "255.255.255.255"] {
            assert_eq!(list(&["10.0.0.53", wrong]), Err(InvalidResolvers::Address(wrong.parse().unwrap())));
        }
        let many: Vec<String> = (1..=9).map(|n| format!("10.0.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(list(&many[..8]).unwrap().addresses().len(), 8);
        assert_eq!(list(&many), Err(InvalidResolvers::TooMany(9)));
    }

    #[test]
    fn resolv_conf_is_read_line_by_line_and_what_is_wrong_names_its_line() {
        let text = "# nameserver 10.0.0.1\nsearch a.example\nnameserver 127.0.0.53\n  nameserver\tfe80::1%eth0 # x\n\
                    nameservers 10.0.0.2\nnameserver\nnameserver 10.0.0.x\nnameserver 0.0.0.0\nnameserver 127.0.0.53\n";
        let (all, problems) = Resolvers::of_resolv_conf("/etc/resolv.conf", text);
        assert_eq!(all, list(&["127.0.0.53", "fe80::1"]).unwrap());
        let places: Vec<&str> = problems.iter().filter_map(|p| p.split(": ").next()).collect();
        assert_eq!(places, ["/etc/resolv.conf:6", "/etc/resolv.conf:7", "/etc/resolv.conf:8"], "{problems:?}");
        assert!(problems[1].contains("`10.0.0.x` is no address"), "{problems:?}");
        let many: String = (1..=9).map(|n| format!("nameserver 10.0.0.{n}\n")).collect();
        let (all, problems) = Resolvers::of_resolv_conf("r", &many);
        assert_eq!(all.addresses().len(), 8);
        assert!(problems[0].starts_with("r:9: `10.0.0.9` is one resolver too many") && problems.len() == 1);
        assert_eq!(Resolvers::of_resolv_conf("r", ""), (Resolvers::default(), vec![]));
    }

    #[test]
    fn the_table_holds_what_programs_compare() {
        let table = list(&["10.0.0.53", "fd00::53"]).unwrap().table();
        assert_eq!(table[0], mapped(u32::from_ne_bytes([10, 0, 0, 53])));
        let bytes = [table[1][0].to_ne_bytes(), table[1][1].to_ne_bytes()].concat();
        assert_eq!(bytes, "fd00::53".parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(table[2..], [[0; 2]; 6]);
    }
}
