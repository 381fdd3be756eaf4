//! Externals as prefixes: the longest prefix that holds an address names everyone it belongs to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use agent_common::layout::PrefixKey;

use crate::policy::model::{Cidr, External};

/// The prefix of IPv4 in its IPv6 form, `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
const IPV4: (u128, u32) = (0xffff << 32, 96);

/// The names of externals that one address belongs to; empty = it was cut out of all of them.
pub(super) type Names = BTreeSet<String>;

/// What one prefix adds for the addresses below it.
#[derive(Clone, Default)]
struct Below {
    inside: Names,
    cut_out: Names,
}

impl Below {
    fn names(&self) -> Names {
        self.inside.difference(&self.cut_out).cloned().collect()
    }
}

/// Returns what each prefix stands for. A prefix that says the same as the one around it is left out.
pub(super) fn split<'a>(externals: impl Iterator<Item = &'a External>) -> BTreeMap<PrefixKey, Names> {
    let mut written: BTreeMap<(u128, u32), Below> = BTreeMap::new();
    for external in externals {
        for cidr in &external.cidrs {
            written.entry(bits_of(cidr)).or_default().inside.insert(external.name.clone());
        }
        for cidr in &external.except {
            written.entry(bits_of(cidr)).or_default().cut_out.insert(external.name.clone());
        }
    }
    // A short IPv6 range holds the IPv6 form of every IPv4 address, and means none of them.
    written.entry(IPV4).or_default();
    let mut prefixes = BTreeMap::new();
    // Prefixes nest or lie apart, so in the order of (address, length) the ones around a prefix are
    // those still open when it comes.
    let mut around: Vec<((u128, u32), Below)> = Vec::new();
    for (prefix, own) in written {
        while around.last().is_some_and(|(outer, _)| !holds(*outer, prefix)) {
            around.pop();
        }
        let outer = around.last().map(|(_, below)| below.names()).unwrap_or_default();
        let mut below = match around.last() {
            Some((_, below)) if prefix != IPV4 => below.clone(),
            _ => Below::default(),
        };
        below.inside.extend(own.inside);
        below.cut_out.extend(own.cut_out);
        let names = below.names();
        if names != outer {
            prefixes.insert(PrefixKey { bits: prefix.1, addr: prefix.0.to_be_bytes() }, names);
        }
        around.push((prefix, below));
    }
    prefixes
}

/// A range as the maps hold it.
pub(super) fn key(cidr: &Cidr) -> PrefixKey {
    let (addr, bits) = bits_of(cidr);
    PrefixKey { bits, addr: addr.to_be_bytes() }
}

/// Says whether every address of a prefix lies in a range.
pub(super) fn covers(range: &Cidr, prefix: &PrefixKey) -> bool {
    let (outer, inner) = (bits_of(range), (u128::from_be_bytes(prefix.addr), prefix.bits));
    outer.1 <= inner.1 && holds(outer, inner)
}

fn bits_of(cidr: &Cidr) -> (u128, u32) {
    match cidr.addr {
        IpAddr::V4(v4) => (mapped(v4), 96 + u32::from(cidr.prefix)),
        IpAddr::V6(v6) => (u128::from(v6), u32::from(cidr.prefix)),
    }
}

fn mapped(addr: Ipv4Addr) -> u128 {
    IPV4.0 | u128::from(u32::from(addr))
}

fn holds(outer: (u128, u32), inner: (u128, u32)) -> bool {
    let mask = u128::MAX.checked_shl(128 - outer.1).unwrap_or(0);
    outer.1 <= inner.1 && inner.0 & mask == outer.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::spiffe::SpiffeId, policy::model::Place};

    fn external(name: &str, cidrs: &[&str], except: &[&str]) -> External {
        let read = |list: &[&str]| list.iter().map(|text| Cidr::parse(text).unwrap()).collect();
        let id = SpiffeId::new("t", name).unwrap();
        External {
            name: name.to_owned(),
            id,
            cidrs: read(cidrs),
            except: read(except),
            dns: vec![],
            place: Place::default(),
        }
    }

    fn table(externals: &[External]) -> Vec<(u32, String)> {
        let join = |names: Names| names.into_iter().collect::<Vec<_>>().join("+");
        split(externals.iter()).into_iter().map(|(key, names)| (key.bits, join(names))).collect()
    }

    #[test]
    fn nested_ranges_carry_all_names_and_exceptions_none() {
        let wide = external("wide", &["10.0.0.0/8"], &["10.1.0.0/16"]);
        let deep = external("deep", &["10.1.2.0/24", "10.2.0.0/16"], &[]);
        assert_eq!(
            table(&[wide, deep]),
            [(104, "wide".to_owned()), (112, String::new()), (112, "deep+wide".to_owned()), (120, "deep".to_owned()),]
        );
    }

    #[test]
    fn a_range_of_the_whole_of_ipv6_names_no_ipv4_address() {
        assert_eq!(table(&[external("six", &["::/0"], &[])]), [(0, "six".to_owned()), (96, String::new())]);
        let both = [external("six", &["::/0"], &[]), external("four", &["0.0.0.0/0"], &[])];
        assert_eq!(table(&both), [(0, "six".to_owned()), (96, "four".to_owned())]);
    }

    #[test]
    fn what_says_nothing_new_is_left_out() {
        assert_eq!(table(&[external("a", &["10.0.0.0/8", "10.1.0.0/16"], &[])]), [(104, "a".to_owned())]);
        assert_eq!(table(&[]), []);
    }
}
