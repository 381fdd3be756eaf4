//! Addresses that answers of resolvers gave to externals: what the programs noted.

use std::collections::BTreeMap;

use agent_common::{id::IdentityId, layout::AddrNames};

use super::Datapath;
use crate::datapath::table::TableError;

/// Seconds for which a name of an address is kept when its answer has run out: so long a flow that began before may be
/// decided again, by another policy.
const KEPT: u32 = 86_400;

/// What a sweep left.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DnsCount {
    /// Addresses that have a name now.
    pub addresses: usize,
    /// Those whose names have all run out.
    pub stale: usize,
}

impl Datapath {
    /// Returns every address that has a name, or had one that running flows may still need.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn dns_addresses(&self) -> Result<BTreeMap<[u8; 16], AddrNames>, TableError> {
        self.dns_addrs.all()
    }

    /// Forgets names that ran out long ago, and of an external that uses up its room those that ran out first. Sets the
    /// count of each external right.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn sweep_dns(&self, now: u32, quota: u32) -> Result<DnsCount, TableError> {
        let mut all = self.dns_addrs.all()?;
        let mut used: BTreeMap<IdentityId, u64> = BTreeMap::new();
        let mut stale: BTreeMap<IdentityId, Vec<(u32, [u8; 16])>> = BTreeMap::new();
        for (address, names) in &all {
            for (name, until) in names.names.iter().zip(names.until).filter(|(name, _)| name.0 != 0) {
                *used.entry(*name).or_default() += 1;
                if until <= now {
                    stale.entry(*name).or_default().push((until, *address));
                }
            }
        }
        for (name, mut stale) in stale {
            stale.sort_unstable();
            // Half of the room is for what comes until the next sweep.
            let over = usize::try_from(used.get(&name).copied().unwrap_or(0).saturating_sub(u64::from(quota / 2)));
            let over = over.unwrap_or(usize::MAX);
            for (_, address) in stale
                .iter()
                .enumerate()
                .filter(|(i, (until, _))| *i < over || until.saturating_add(KEPT) <= now)
                .map(|(_, one)| one)
            {
                let Some(names) = all.get_mut(address) else { continue };
                for (place, until) in names.names.iter_mut().zip(&mut names.until).filter(|(place, _)| **place == name)
                {
                    (*place, *until) = (IdentityId(0), 0);
                }
                if let Some(used) = used.get_mut(&name) {
                    *used -= 1;
                }
                if names.names.iter().all(|name| name.0 == 0) {
                    self.dns_addrs.remove(address)?;
                    all.remove(address);
                } else {
                    self.dns_addrs.put(address, names)?;
                }
            }
        }
        for name in self.dns_used.keys()? {
            match used.get(&name) {
                Some(count) => self.dns_used.put(&name, count)?,
                None => drop(self.dns_used.remove(&name)?),
            }
        }
        let stale = all.values().filter(|names| names.until.iter().all(|until| *until <= now)).count();
        Ok(DnsCount { addresses: all.len() - stale, stale })
    }

    /// Notes what an answer would: that an address has names. For tests of what follows from it.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn note_dns(&self, address: [u8; 16], names: &AddrNames) -> Result<(), TableError> {
        self.dns_addrs.put(&address, names)
    }
}
