//! Addresses that answers of resolvers gave to externals: what the programs noted.

use agent_common::layout::AddrNames;

use super::Datapath;
use crate::{
    datapath::table::TableError,
    reconcile::dns_names::{Known, Left},
};

impl Datapath {
    /// Returns every address that has a name, or had one that running flows may still need.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn dns_addresses(&self) -> Result<Known, TableError> {
        self.dns_addrs.all()
    }

    /// Returns the names of one address, 16 bytes, IPv4 mapped.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn dns_names(&self, address: &[u8; 16]) -> Result<Option<AddrNames>, TableError> {
        self.dns_addrs.get(address)
    }

    /// Forgets what of `known` is not left, unless an answer has told it again meanwhile. Sets the count of each external
    /// right.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn forget_dns(&self, known: &Known, left: &Left) -> Result<(), TableError> {
        for (address, names) in &left.changed {
            if self.dns_addrs.get(address)?.as_ref() != known.get(address) {
                continue;
            }
            if *names == AddrNames::default() {
                self.dns_addrs.remove(address)?;
            } else {
                self.dns_addrs.put(address, names)?;
            }
        }
        for name in self.dns_used.keys()? {
            match left.used.get(&name) {
                Some(count) => self.dns_used.put(&name, count)?,
                None => drop(self.dns_used.remove(&name)?),
            }
        }
        Ok(())
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
