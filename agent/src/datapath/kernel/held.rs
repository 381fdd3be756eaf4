//! What the side in force holds, read back from the kernel.

use std::collections::BTreeMap;

use agent_common::{
    id::IdentityId,
    layout::{
        AddrEntry, DNS_NAMES_MAX, EdgeEntry, EdgeKey, IdentSlot, NameKey, PrefixKey, Settings, SpillEntry, UidKey,
        names::map,
    },
};
use zerocopy::IntoBytes;

use super::Datapath;
use crate::datapath::table::TableError;

/// The side in force, as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// The epoch that the programs read.
    pub epoch: u64,
    /// Switches.
    pub settings: Settings,
    /// Edges.
    pub edges: BTreeMap<EdgeKey, EdgeEntry>,
    /// Ranges beyond the third, by index, as many as were asked for.
    pub spill: Vec<SpillEntry>,
    /// Prefixes of externals.
    pub prefixes: BTreeMap<PrefixKey, AddrEntry>,
    /// DNS names of externals.
    pub dns_names: BTreeMap<NameKey, [IdentityId; DNS_NAMES_MAX]>,
    /// Cgroups, those that are gone but for their sockets as well.
    pub cgroups: BTreeMap<u64, IdentSlot>,
    /// Narrowing by owner of the socket.
    pub uids: BTreeMap<UidKey, IdentSlot>,
}

/// One element: the map, the key and the value, in hex, byte by byte as they lie in memory.
pub type RawElement = (&'static str, String, String);

impl Datapath {
    /// Reads the side that the kernel says is in force, and the first `spills` entries of `spill`.
    ///
    /// Cost: two calls of the kernel an element.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn held(&self, spills: usize) -> Result<Held, TableError> {
        let epoch = self.epoch.get(&0)?.unwrap_or(0);
        let side = u32::from(epoch & 1 == 1);
        let (edges, spill, prefixes, dns_names) = (
            self.edges.inner::<EdgeKey, EdgeEntry>(&side, map::EDGES)?,
            self.spill.inner::<u32, SpillEntry>(&side, map::SPILL)?,
            self.addr_ext.inner::<PrefixKey, AddrEntry>(&side, map::ADDR_EXT)?,
            self.dns_names.inner::<NameKey, [IdentityId; DNS_NAMES_MAX]>(&side, map::DNS_NAMES)?,
        );
        let spills = u32::try_from(spills).unwrap_or(u32::MAX);
        Ok(Held {
            epoch,
            settings: self.settings.get(&side)?.unwrap_or_default(),
            edges: edges.map(|edges| edges.all()).transpose()?.unwrap_or_default(),
            spill: match spill {
                Some(spill) => (0..spills).map_while(|i| spill.get(&i).transpose()).collect::<Result<_, _>>()?,
                None => Vec::new(),
            },
            prefixes: prefixes.map(|prefixes| prefixes.all()).transpose()?.unwrap_or_default(),
            dns_names: dns_names.map(|names| names.all()).transpose()?.unwrap_or_default(),
            cgroups: self.cgrp_ident.all()?.into_iter().map(|(id, e)| (id, e.slots[side as usize])).collect(),
            uids: self.uid_ident.all()?.into_iter().map(|(key, e)| (key, e.slots[side as usize])).collect(),
        })
    }
}

impl Held {
    /// Returns every element as the kernel has it, in the order of maps and keys.
    #[must_use]
    pub fn raw(&self) -> Vec<RawElement> {
        let Self { epoch, settings, edges, spill, prefixes, dns_names, cgroups, uids } = self;
        let mut raw = vec![
            (map::EPOCH, hex(&0_u32), hex(epoch)),
            (map::SETTINGS, hex(&u32::from(epoch & 1 == 1)), hex(settings)),
        ];
        raw.extend(edges.iter().map(|(key, value)| (map::EDGES, hex(key), hex(value))));
        raw.extend((0_u32..).zip(spill).map(|(key, value)| (map::SPILL, hex(&key), hex(value))));
        raw.extend(prefixes.iter().map(|(key, value)| (map::ADDR_EXT, hex(key), hex(value))));
        raw.extend(dns_names.iter().map(|(key, value)| (map::DNS_NAMES, hex(key), hex(value))));
        raw.extend(cgroups.iter().map(|(key, value)| (map::CGRP_IDENT, hex(key), hex(value))));
        raw.extend(uids.iter().map(|(key, value)| (map::UID_IDENT, hex(key), hex(value))));
        raw
    }
}

fn hex(value: &(impl IntoBytes + zerocopy::Immutable)) -> String {
    value.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}
