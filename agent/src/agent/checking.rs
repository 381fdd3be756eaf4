//! What the kernel holds against what the agent believes: `eastwall map check`.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{id::IdentityId, layout::Settings};

use crate::{
    datapath::{Held, Identities},
    policy::{dns_name, map_state::MapState, names},
};

/// What the agent believes is in force.
#[derive(Clone, Copy, Debug)]
pub struct Belief<'a> {
    /// Its epoch.
    pub epoch: u64,
    /// Its compiled form.
    pub state: &'a MapState,
    /// Its switches; where hits are counted is the datapath's affair and not compared.
    pub settings: Settings,
    /// Who is who.
    pub identities: &'a Identities,
}

/// Returns every difference as a line for people, in a stable order.
///
/// A cgroup that the kernel alone knows is none: it may be gone but for its sockets, or have just been made.
#[must_use]
pub fn differences(belief: &Belief<'_>, held: &Held) -> Vec<String> {
    let Belief { epoch, state, settings, identities } = belief;
    let mut lines = Vec::new();
    if held.epoch != *epoch {
        lines.push(format!("epoch: the kernel has {}, and {epoch} is meant", held.epoch));
    }
    let comparable = |s: Settings| Settings { stats_base: 0, rules: 0, ..s };
    if comparable(held.settings) != comparable(*settings) || held.settings.rules as usize != state.rule_ids.len() {
        lines.push(format!("settings: the kernel has {:?}, and {settings:?} is meant", held.settings));
    }
    let name = |id: IdentityId| match state.names.get(&id) {
        _ if id == IdentityId::ANY => names::ANY.to_owned(),
        Some(name) => name.clone(),
        None => format!("{:#x}", id.0),
    };
    let edge = |key: &agent_common::layout::EdgeKey| format!("edges: {} -> {}", name(key.from), name(key.to));
    compare(&state.edges, &held.edges, true, edge, &mut lines);
    let spill =
        |entries: &[agent_common::layout::SpillEntry]| (0..).zip(entries.to_vec()).collect::<BTreeMap<u32, _>>();
    compare(&spill(&state.spill), &spill(&held.spill), true, |i| format!("spill: entry {i}"), &mut lines);
    let prefix = |key: &agent_common::layout::PrefixKey| {
        format!("addr_ext: {}/{}", std::net::Ipv6Addr::from(key.addr), key.bits)
    };
    let prefixes = state.prefixes.iter().map(|(key, id)| (*key, state.entry(key, *id))).collect();
    compare(&prefixes, &held.prefixes, true, prefix, &mut lines);
    let dns_name = |key: &agent_common::layout::NameKey| format!("dns_names: {}", dns_name::written(key));
    compare(&state.dns_names, &held.dns_names, true, dns_name, &mut lines);
    let cgroup = |id: &u64| format!("cgrp_ident: cgroup {id}");
    compare(&identities.cgroups, &held.cgroups, false, cgroup, &mut lines);
    let owner = |key: &agent_common::layout::UidKey| format!("uid_ident: cgroup {}, uid {}", key.cgroup, key.uid);
    compare(&identities.uids, &held.uids, false, owner, &mut lines);
    lines
}

fn compare<K: Ord, V: PartialEq>(
    meant: &BTreeMap<K, V>,
    held: &BTreeMap<K, V>,
    complete: bool,
    name: impl Fn(&K) -> String,
    lines: &mut Vec<String>,
) {
    for key in meant.keys().chain(held.keys()).collect::<BTreeSet<_>>() {
        match (meant.get(key), held.get(key)) {
            (Some(meant), Some(held)) if meant == held => {}
            (Some(_), Some(_)) => lines.push(format!("{} is another one in the kernel", name(key))),
            (Some(_), None) => lines.push(format!("{} is not in the kernel", name(key))),
            (None, Some(_)) if complete => lines.push(format!("{} is in the kernel alone", name(key))),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use agent_common::layout::{EdgeEntry, EdgeKey, IdentSlot};

    use super::*;

    #[test]
    fn whatever_is_missing_other_or_too_much_is_a_line() {
        let key = |n| EdgeKey { from: IdentityId(n), to: IdentityId::ANY };
        let mut state = MapState::default();
        state.edges.insert(key(300), EdgeEntry::default());
        state.edges.insert(key(301), EdgeEntry::default());
        let mut identities = Identities::default();
        identities.cgroups.insert(7, IdentSlot::default());
        let settings = Settings { unknown_mode: 1, ..Settings::default() };
        let belief = Belief { epoch: 4, state: &state, settings, identities: &identities };
        let mut held = Held {
            epoch: 4,
            settings: Settings { stats_base: 99, ..settings },
            edges: state.edges.clone(),
            cgroups: [(7, IdentSlot::default()), (8, IdentSlot::default())].into(),
            ..Held::default()
        };
        assert_eq!(differences(&belief, &held), Vec::<String>::new());
        held.epoch = 5;
        held.settings.unknown_mode = 2;
        held.edges.remove(&key(300));
        held.edges.insert(key(301), EdgeEntry { count: 1, ..EdgeEntry::default() });
        held.edges.insert(key(302), EdgeEntry::default());
        held.cgroups.clear();
        let lines = differences(&belief, &held);
        assert_eq!(lines.len(), 6, "{lines:#?}");
        assert_eq!(
            lines[2..],
            [
                "edges: 0x12c -> any is not in the kernel",
                "edges: 0x12d -> any is another one in the kernel",
                "edges: 0x12e -> any is in the kernel alone",
                "cgrp_ident: cgroup 7 is not in the kernel",
            ]
        );
    }
}
