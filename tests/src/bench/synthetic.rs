//! Policies of any size: text as people write it, and the compiled form.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

use agent_common::{
    id::IdentityId,
    layout::{EdgeEntry, EdgeKey, IdentSlot, PrefixKey, Range, Settings, ident_flags, level},
    verdict::Mode,
};
use eastwall::{datapath::Identities, policy::map_state::MapState};

/// Who calls whom beside the many that only fill the maps: everything within the range of
/// [`IdentityId`]s that no random number is in.
pub const CALLER: IdentityId = IdentityId(1001);
/// See [`CALLER`].
pub const CALLEE: IdentityId = IdentityId(1002);

/// A compiled policy with this many edges; among them [`CALLER`] to [`CALLEE`], and [`CALLER`] to each
/// of `more`, every protocol and port.
pub fn compiled(edges: usize, more: &[IdentityId]) -> MapState {
    let pairs = std::iter::once(CALLEE).chain(more.iter().copied()).map(|to| EdgeKey { from: CALLER, to });
    let mut state = MapState { rule_ids: vec!["bench".to_owned()], ..MapState::default() };
    state.edges.extend(pairs.map(|key| (key, any_port())));
    let mut random = Random(edges as u64);
    while state.edges.len() < edges {
        let mut id = || IdentityId(random.next() & !IdentityId::SET_BIT | 1 << 62);
        let key = EdgeKey { from: id(), to: id() };
        state.edges.insert(key, any_port());
    }
    state
}

/// As [`compiled`], and this many addresses of workloads of other hosts are known.
pub fn compiled_with_addresses(edges: usize, addresses: u32) -> MapState {
    let mut state = compiled(edges, &[]);
    for n in 0..addresses {
        // 172.16.0.0/12 has room for a million of them.
        let addr = Ipv4Addr::from_bits(0xac10_0000 + n).to_ipv6_mapped().octets();
        state.prefixes.insert(PrefixKey { bits: 128, addr }, IdentityId(1 << 61 | u64::from(n)));
    }
    state
}

fn any_port() -> EdgeEntry {
    let mut entry = EdgeEntry { count: 1, ..EdgeEntry::default() };
    entry.ranges[0] = Range { flags: level::ALLOW, hi: u16::MAX, rule: 1, ..Range::default() };
    entry
}

/// Enforced in both directions.
pub const fn slot(id: IdentityId) -> IdentSlot {
    let mode = Mode::Enforce as u8;
    IdentSlot { id, ingress_mode: mode, egress_mode: mode, on_deny: 0, flags: ident_flags::LABELLED, endpoint: 0 }
}

/// Cgroups by id.
pub fn identities(cgroups: impl IntoIterator<Item = (u64, IdentityId)>) -> Identities {
    Identities { cgroups: cgroups.into_iter().map(|(cgroup, id)| (cgroup, slot(id))).collect(), uids: BTreeMap::new() }
}

/// Without limits that a benchmark would run into.
pub fn settings() -> Settings {
    Settings { event_burst: 100, event_per_second: 100, flow_quota: u32::MAX, ..Settings::default() }
}

/// A policy file with this many edges: each of many callees has one rule, for a group of callers.
pub fn text(edges: usize) -> String {
    let callers = if edges < 10_000 { 10 } else { 100 };
    let callees = edges / callers;
    let mut text = String::from(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: bench }\nspec:\n  \
         trustDomain: bench.example\n  workloads:\n",
    );
    let mut workload = |name: String| {
        // Writing to a string does not fail.
        let _ =
            writeln!(text, "    - {{ name: {name}, select: {{ cgroup: \"/{name}\" }}, ports: {{ http: tcp/8080 }} }}");
    };
    (0..callers).for_each(|i| workload(format!("caller-{i}")));
    (0..callees).for_each(|i| workload(format!("callee-{i}")));
    let members: Vec<String> = (0..callers).map(|i| format!("caller-{i}")).collect();
    let _ = writeln!(text, "  groups:\n    - {{ name: callers, members: [{}] }}\n  allow:", members.join(", "));
    for i in 0..callees {
        let _ = writeln!(text, "    - {{ from: callers, to: callee-{i}, ports: [http] }}");
    }
    text
}

/// SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
mod tests {
    use eastwall::policy::{compile, load};

    use super::*;

    #[test]
    fn a_policy_has_as_many_edges_as_were_asked_for() {
        assert_eq!(compiled(1000, &[IdentityId(2000)]).edges.len(), 1000);
        for edges in [1_000, 20_000] {
            let loaded = load::load(&[("bench.yaml", &text(edges))]).unwrap();
            let map = compile::compile(&loaded.policy, &compile::CompileInput::default()).unwrap();
            assert_eq!(map.edges.len(), edges);
        }
    }
}
