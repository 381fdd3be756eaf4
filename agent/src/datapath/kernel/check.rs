//! Do the maps say what was written to them? Read back from the side that waits for the flip, so that what
//! is wrong is never in force.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use agent_common::{
    decide::{PolicyMap, decide},
    flow::Flow,
    id::{BootSeconds, IdentityId},
    layout::{EdgeEntry, EdgeKey, PrefixKey, SpillEntry, names::map},
    verdict::Decision,
};

use super::{Datapath, DatapathError, Identities, Prepared};
use crate::{
    datapath::{sys, table::TableError},
    policy::{dns_name, map_state::MapState},
};

/// What a self-check asks.
#[derive(Clone, Debug)]
pub struct Questions<'a> {
    /// The policy as it was compiled.
    pub state: &'a MapState,
    /// The labels as they were written.
    pub identities: &'a Identities,
    /// Flows; both must decide them alike.
    pub flows: &'a [Flow],
    /// Addresses, 16 bytes, IPv4 mapped; both must name them alike.
    pub addresses: &'a [[u8; 16]],
    /// When.
    pub now: BootSeconds,
}

/// Cgroups that are looked at.
const CGROUPS_MAX: usize = 1_000;

impl Datapath {
    /// Compares a prepared side with what it was made from, by samples; returns how many answers agreed.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Differs`] with the first answer that does not.
    pub fn check(&self, prepared: &Prepared, asked: &Questions<'_>) -> Result<usize, DatapathError> {
        let side = prepared.epoch.side();
        for (name, outer, inner) in [
            (map::EDGES, &self.edges, prepared.edges.fd()),
            (map::SPILL, &self.spill, prepared.spill.fd()),
            (map::ADDR_EXT, &self.addr_ext, prepared.prefixes.fd()),
            (map::DNS_NAMES, &self.dns_names, prepared.dns_names.fd()),
        ] {
            let id = sys::map_id(inner.as_fd()).map_err(|source| TableError { map: name, verb: "look at", source })?;
            // What user space reads from a map of maps is the id of the inner map.
            same(|| format!("the side {side} of `{name}`"), &Some(id), &outer.get(&side)?)?;
        }
        same(|| format!("the settings of the side {side}"), &Some(prepared.settings), &self.settings.get(&side)?)?;
        let copy = ReadBack::of(prepared, asked.flows)?;
        for flow in asked.flows {
            let (wanted, found) = (decide(asked.state, flow, &asked.now), decide(&copy, flow, &asked.now));
            let name = |id| asked.state.names.get(&id).map_or("somebody", String::as_str);
            let what = || format!("{} -> {} proto-{}/{}", name(flow.from), name(flow.to), flow.proto, flow.port);
            let say = |decision| say(asked.state, decision);
            same_said(what, wanted == found, || (say(wanted), say(found)))?;
        }
        for address in asked.addresses {
            let key = PrefixKey { bits: 128, addr: *address };
            let found = prepared.prefixes.get(&key)?.map_or(IdentityId::WORLD, |entry| entry.id);
            let what = || format!("the address {}", std::net::Ipv6Addr::from(*address).to_canonical());
            same(what, &asked.state.peer_of(address), &found)?;
        }
        for (name, externals) in &asked.state.dns_names {
            same(
                || format!("the DNS name `{}`", dns_name::written(name)),
                &Some(*externals),
                &prepared.dns_names.get(name)?,
            )?;
        }
        let step = asked.identities.cgroups.len().div_ceil(CGROUPS_MAX).max(1);
        let mut cgroups = 0;
        for (cgroup, slot) in asked.identities.cgroups.iter().step_by(step) {
            // One that was released meanwhile has no entry, and who has none is unknown.
            let Some(entry) = self.cgrp_ident.get(cgroup)? else { continue };
            same(|| format!("the cgroup {cgroup}"), slot, &entry.slots[side as usize])?;
            cgroups += 1;
        }
        Ok(asked.flows.len() + asked.addresses.len() + asked.state.dns_names.len() + cgroups)
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: impl Fn() -> String, wanted: &T, found: &T) -> Result<(), DatapathError> {
    same_said(what, wanted == found, || (format!("{wanted:?}"), format!("{found:?}")))
}

fn same_said(
    what: impl Fn() -> String,
    is_same: bool,
    both: impl Fn() -> (String, String),
) -> Result<(), DatapathError> {
    if is_same {
        return Ok(());
    }
    let (wanted, found) = both();
    Err(DatapathError::Differs { what: what(), wanted, found })
}

fn say(state: &MapState, decision: Decision) -> String {
    let verb = if decision.allow { "allowed" } else { "denied" };
    let rule = usize::try_from(decision.rule.0).ok().and_then(|n| n.checked_sub(1));
    match (rule.and_then(|n| state.rule_ids.get(n)), decision.rule.0) {
        (Some(id), _) => format!("{verb} by rule `{id}`"),
        (None, 0) => format!("{verb} by default"),
        (None, number) => format!("{verb} by a rule {number}, which does not exist"),
    }
}

/// The entries that some flows ask for, as the kernel returns them.
struct ReadBack {
    edges: BTreeMap<EdgeKey, EdgeEntry>,
    spill: BTreeMap<u32, SpillEntry>,
}

impl ReadBack {
    fn of(prepared: &Prepared, flows: &[Flow]) -> Result<Self, TableError> {
        let (mut edges, mut spill) = (BTreeMap::new(), BTreeMap::new());
        let any = IdentityId::ANY;
        let mut keys: Vec<EdgeKey> = flows
            .iter()
            .flat_map(|f| [(f.from, f.to), (f.from, any), (any, f.to), (any, any)])
            .map(|(from, to)| EdgeKey { from, to })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let Some(entry) = prepared.edges.get(&key)? else { continue };
            // An index beyond the array has no entry; `decide` denies then.
            if let Ok(Some(ranges)) = prepared.spill.get(&entry.spill) {
                spill.insert(entry.spill, ranges);
            }
            edges.insert(key, entry);
        }
        Ok(Self { edges, spill })
    }
}

impl PolicyMap for ReadBack {
    fn edge(&self, key: &EdgeKey) -> Option<&EdgeEntry> {
        self.edges.get(key)
    }

    fn spill(&self, index: u32) -> Option<&SpillEntry> {
        self.spill.get(&index)
    }
}
