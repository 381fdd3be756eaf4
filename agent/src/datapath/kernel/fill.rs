//! Policy and labels into the maps: the idle side is filled, one store flips, the old side is freed.

use std::os::fd::{AsFd as _, OwnedFd};

use agent_common::{
    id::Epoch,
    layout::{EdgeEntry, EdgeKey, IdentEntry, IdentSlot, RuleStat, Settings, UidKey, names::map},
};

use super::{Datapath, DatapathError, Identities, Prepared, Side};
use crate::{
    datapath::{
        sys::{self, MapKind},
        table::{Table, TableError},
    },
    policy::{map_state::MapState, plan},
};

/// `BPF_F_NO_PREALLOC` of linux/bpf.h.
const NO_PREALLOC: u32 = 1;

impl Datapath {
    /// Fills the idle side. Until [`Datapath::flip`] no packet notices.
    ///
    /// # Errors
    ///
    /// [`DatapathError::TooLarge`] before anything is written; else what the kernel refused. The side
    /// in force is untouched in either case.
    pub fn prepare(
        &mut self,
        state: &MapState,
        mut settings: Settings,
        identities: &Identities,
    ) -> Result<Prepared, DatapathError> {
        self.check_capacity(state, identities)?;
        let epoch = self.in_force.next();
        let side = epoch.side();
        settings.stats_base = side * (self.config.capacity.rules + 1);
        settings.rules = u32::try_from(state.rule_ids.len()).unwrap_or(u32::MAX);
        self.clear_hits(side)?;

        let room = |needed: usize| u32::try_from(needed.max(64)).unwrap_or(u32::MAX);
        let edges = Table::create(MapKind::Hash, room(state.edges.len()), NO_PREALLOC, map::EDGES)?;
        edges.put_all(&state.edges)?;
        self.edges.put(&side, &edges.raw())?;

        let spill = Table::create(MapKind::Array, self.config.capacity.spills, 0, map::SPILL)?;
        for (index, entry) in (0_u32..).zip(&state.spill) {
            spill.put(&index, entry)?;
        }
        self.spill.put(&side, &spill.raw())?;

        let prefixes = Table::create(MapKind::Trie, room(state.prefixes.len()), NO_PREALLOC, map::ADDR_EXT)?;
        for (prefix, id) in &state.prefixes {
            prefixes.put(prefix, &state.entry(prefix, *id))?;
        }
        self.addr_ext.put(&side, &prefixes.raw())?;

        let dns_names = Table::create(MapKind::Trie, room(state.dns_names.len()), NO_PREALLOC, map::DNS_NAMES)?;
        for (name, externals) in &state.dns_names {
            dns_names.put(name, externals)?;
        }
        self.dns_names.put(&side, &dns_names.raw())?;

        self.settings.put(&side, &settings)?;
        self.fill_identities(side, identities)?;
        Ok(Prepared { epoch, edges, spill, prefixes, dns_names, settings })
    }

    /// Fills the identities of a prepared side again: cgroups came while it was filled.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn refill(&self, prepared: &Prepared, identities: &Identities) -> Result<(), TableError> {
        self.fill_identities(prepared.epoch.side(), identities)
    }

    /// Switches to a prepared side: one store, after which every new verdict is of the new policy. Nobody can write to
    /// its edges any more.
    ///
    /// # Errors
    ///
    /// [`TableError`]; then nothing has changed.
    pub fn flip(&mut self, prepared: &Prepared) -> Result<Epoch, TableError> {
        let inner = [
            Self::closed(map::EDGES, prepared.edges.fd())?,
            Self::closed(map::SPILL, prepared.spill.fd())?,
            Self::closed(map::ADDR_EXT, prepared.prefixes.fd())?,
            Self::closed(map::DNS_NAMES, prepared.dns_names.fd())?,
        ];
        self.epoch.put(&0, &u64::from(prepared.epoch.0))?;
        self.in_force = prepared.epoch;
        self.side = Some(Side { settings: prepared.settings, inner });
        Ok(prepared.epoch)
    }

    /// Closes a map to writers, and holds it.
    fn closed(name: &'static str, map: &OwnedFd) -> Result<(&'static str, u32, OwnedFd), TableError> {
        let failed = |verb| move |source| TableError { map: name, verb, source };
        sys::freeze(map.as_fd()).map_err(failed("close to writers"))?;
        let id = sys::map_id(map.as_fd()).map_err(failed("look at"))?;
        Ok((name, id, map.try_clone().map_err(failed("hold"))?))
    }

    /// The map of maps of a name.
    pub(super) fn outer(&self, name: &str) -> Option<&Table<u32, u32>> {
        match name {
            map::EDGES => Some(&self.edges),
            map::SPILL => Some(&self.spill),
            map::ADDR_EXT => Some(&self.addr_ext),
            map::DNS_NAMES => Some(&self.dns_names),
            _ => None,
        }
    }

    /// Waits until no program runs under the old epoch and frees the old side's edges.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]; the new side is in force all the same.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        let idle = self.in_force.side() ^ 1;
        let empty: Table<EdgeKey, EdgeEntry> = Table::create(MapKind::Hash, 64, NO_PREALLOC, map::EDGES)?;
        // Replacing an inner map returns after a grace period.
        self.edges.put(&idle, &empty.raw())?;
        Ok(())
    }

    /// Labels a cgroup that came after the policy, on both sides.
    ///
    /// # Errors
    ///
    /// [`TableError`]; a full map leaves the cgroup `unknown`.
    pub fn label(&self, cgroup: u64, slot: IdentSlot) -> Result<(), TableError> {
        self.cgrp_ident.put(&cgroup, &IdentEntry { slots: [slot; 2] })
    }

    /// As [`Datapath::label`], for a cgroup narrowed by owner.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn label_uid(&self, key: &UidKey, slot: IdentSlot) -> Result<(), TableError> {
        self.uid_ident.put(key, &IdentEntry { slots: [slot; 2] })
    }

    /// Returns what the side in force says about a cgroup.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn label_of(&self, cgroup: u64) -> Result<Option<IdentSlot>, TableError> {
        let side = self.in_force.side() as usize;
        Ok(self.cgrp_ident.get(&cgroup)?.map(|e| e.slots[side]))
    }

    /// Returns every cgroup that has an entry.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn labelled_cgroups(&self) -> Result<Vec<u64>, TableError> {
        self.cgrp_ident.keys()
    }

    /// Says whether a policy and its labels fit, without writing anything.
    ///
    /// # Errors
    ///
    /// [`DatapathError::TooLarge`].
    pub fn check_capacity(&self, state: &MapState, identities: &Identities) -> Result<(), DatapathError> {
        let Identities { cgroups, uids } = identities;
        Ok(plan::check_capacity(state, cgroups.len(), uids.len(), &self.config.capacity)?)
    }

    /// Parents come before children in the order of the ids only by accident; a cgroup made meanwhile
    /// takes what its parent's entry says, and the caller drains the ring of cgroups before the flip.
    fn fill_identities(&self, side: u32, identities: &Identities) -> Result<(), TableError> {
        let side = side as usize;
        for (&cgroup, &slot) in &identities.cgroups {
            let mut entry = self.cgrp_ident.get(&cgroup)?.unwrap_or_default();
            entry.slots[side] = slot;
            self.cgrp_ident.put(&cgroup, &entry)?;
        }
        // A cgroup that is gone but for its sockets keeps what it was.
        for cgroup in self.cgrp_ident.keys()? {
            if !identities.cgroups.contains_key(&cgroup)
                && let Some(mut entry) = self.cgrp_ident.get(&cgroup)?
            {
                entry.slots[side] = entry.slots[side ^ 1];
                self.cgrp_ident.put(&cgroup, &entry)?;
            }
        }
        for key in self.uid_ident.keys()? {
            if !identities.uids.contains_key(&key)
                && let Some(mut entry) = self.uid_ident.get(&key)?
            {
                entry.slots[side] = IdentSlot::default();
                self.uid_ident.put(&key, &entry)?;
            }
        }
        for (key, &slot) in &identities.uids {
            let mut entry = self.uid_ident.get(key)?.unwrap_or_default();
            entry.slots[side] = slot;
            self.uid_ident.put(key, &entry)?;
        }
        Ok(())
    }

    fn clear_hits(&self, side: u32) -> Result<(), TableError> {
        let old = self.settings.get(&side)?.map_or(0, |s| s.rules);
        let base = side * (self.config.capacity.rules + 1);
        let zero = vec![0; size_of::<RuleStat>() * self.cpus];
        for rule in 0..=old.min(self.config.capacity.rules) {
            let index = base + rule;
            sys::update(self.rule_stats.fd().as_fd(), &index.to_ne_bytes(), &zero).map_err(|source| TableError {
                map: map::RULE_STATS,
                verb: "clear",
                source,
            })?;
        }
        Ok(())
    }
}
