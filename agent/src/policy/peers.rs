//! Workloads of other hosts, by the addresses under which this one meets them.
//!
//! An address that several workloads share, because they use the network of their host, carries all their names: what
//! one of them may do passes here, and what one of them may not does not. The exit on their own host knows better.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Deserialize;

use super::model::Cidr;

/// Who is where on other hosts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peers {
    /// Address -> the workloads there, by name. IPv4 never mapped.
    addresses: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Where workloads are and nobody else: an address in there that is nobody's is `unknown`.
    ranges: BTreeSet<Cidr>,
}

/// Most ranges of a file. A count.
pub const RANGES_MAX: usize = 1 << 10;

/// Most addresses of a file. A count: as many as the kernel side holds prefixes for beside those of externals.
pub const ADDRESSES_MAX: usize = 1 << 15;

/// A file as somebody wrote it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    peers: Vec<Entry>,
    #[serde(default)]
    ranges: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    workload: String,
    addresses: Vec<IpAddr>,
}

/// Why a text says nothing about peers.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct InvalidPeers {
    /// Name of the file.
    pub file: String,
    /// From 1; 0 = nobody knows.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    /// What.
    pub message: String,
}

impl Peers {
    /// Reads a text; `file` is for messages.
    ///
    /// # Errors
    ///
    /// [`InvalidPeers`] with the first thing that is wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, InvalidPeers> {
        let wrong = |line, column, message| InvalidPeers { file: file.to_owned(), line, column, message };
        if text.trim().is_empty() {
            return Err(wrong(0, 0, "it is empty; write `peers: []` for none".to_owned()));
        }
        let options = serde_saphyr::options! { with_snippet: false };
        let File { peers, ranges } = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
            let (line, column) = e.location().map_or((0, 0), |at| (at.line(), at.column()));
            let said = e.to_string();
            let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(before, _)| before);
            wrong(line, column, said.to_owned())
        })?;
        let mut all = Self::default();
        for Entry { workload, addresses } in peers {
            for address in addresses {
                let address = address.to_canonical();
                if let Some(why) = why_not(address) {
                    return Err(wrong(0, 0, format!("`{address}` of `{workload}` {why}")));
                }
                all.addresses.entry(address).or_default().insert(workload.clone());
            }
        }
        for range in ranges {
            let range = Cidr::parse(&range).map_err(|e| wrong(0, 0, format!("of `ranges`: {e}")))?;
            if range.prefix == 0 {
                return Err(wrong(
                    0,
                    0,
                    format!("of `ranges`: `{range}` is everybody, not the workloads of some hosts"),
                ));
            }
            all.ranges.insert(range);
        }
        for (what, n, most) in
            [("addresses", all.addresses.len(), ADDRESSES_MAX), ("ranges", all.ranges.len(), RANGES_MAX)]
        {
            if n > most {
                return Err(wrong(0, 0, format!("{n} {what}, and {most} are the most")));
            }
        }
        Ok(all)
    }

    /// Each address with the workloads there, in order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &BTreeSet<String>)> {
        self.addresses.iter().map(|(address, names)| (*address, names))
    }

    /// The ranges in which workloads are and nobody else, in order.
    pub fn ranges(&self) -> impl Iterator<Item = &Cidr> {
        self.ranges.iter()
    }

    /// Says whether only workloads have such an address.
    #[must_use]
    pub fn is_in_range(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// The workloads at an address; none if there is nobody known.
    #[must_use]
    pub fn names(&self, address: IpAddr) -> Option<&BTreeSet<String>> {
        self.addresses.get(&address)
    }

    /// How many addresses there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Says whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ranges.is_empty()
    }
}

/// Why an address is none of another host.
fn why_not(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    match () {
        () if address.is_loopback() => Some("is an address of this host: who is there is known by its socket"),
        () if address.is_unspecified() || address.is_multicast() || broadcast => Some("is no address of one host"),
        () if link_local => Some("means another host on every link"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        Peers::parse("peers.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn an_address_carries_the_names_of_all_who_are_there() {
        let text = "peers:\n  - { workload: web, addresses: [10.0.0.1, \"fd00::1\"] }\n  - { workload: db, addresses: \
                    [10.0.0.1, \"::ffff:10.0.0.2\"] }\n";
        let peers = Peers::parse("peers.yaml", text).unwrap();
        let found: Vec<(String, String)> = peers
            .iter()
            .map(|(a, names)| (a.to_string(), names.iter().cloned().collect::<Vec<_>>().join("+")))
            .collect();
        let expected = [("10.0.0.1", "db+web"), ("10.0.0.2", "db"), ("fd00::1", "web")];
        assert_eq!(found, expected.map(|(a, n)| (a.to_owned(), n.to_owned())));
        assert!(Peers::parse("peers.yaml", "peers: []\n").unwrap().is_empty());
    }

    #[test]
    fn a_range_is_where_workloads_are_and_nobody_else() {
        let peers = Peers::parse("peers.yaml", "peers: []\nranges: [10.9.0.0/16, \"fd09::/48\"]\n").unwrap();
        let is_in = |address: &str| peers.is_in_range(address.parse().unwrap());
        assert!(is_in("10.9.255.1") && is_in("::ffff:10.9.0.1") && is_in("fd09::1"));
        assert!(!is_in("10.10.0.1") && !is_in("fd0a::1"));
        assert!(said("peers: []\nranges: [10.9.0.1/16]\n").contains("write `10.9.0.0/16`"));
        assert!(said("peers: []\nranges: [10.9.0.1]\n").contains("not an address range"));
        assert!(said("peers: []\nranges: [0.0.0.0/0]\n").contains("is everybody"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        assert!(said("peers:\n  - { workload: web, adresses: [] }\n").starts_with("peers.yaml:2:"));
        assert!(said("peers:\n  - { workload: web, addresses: [10.0.0.300] }\n").contains("invalid IP address"));
        assert!(said("").contains("peers: []"));
        for (address, why) in [
            ("127.0.0.1", "known by its socket"),
            ("\"::1\"", "known by its socket"),
            ("0.0.0.0", "no address of one host"),
            ("224.0.0.1", "no address of one host"),
            ("\"fe80::1\"", "on every link"),
        ] {
            let message = said(&format!("peers:\n  - {{ workload: web, addresses: [{address}] }}\n"));
            assert!(message.contains(why), "{message}");
        }
    }
}
