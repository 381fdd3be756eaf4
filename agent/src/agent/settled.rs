//! Whether a call that was denied, because nobody knew whose the other end was, may pass now that it is known.

use agent_common::{
    flow::{Direction, Flow, proto},
    id::IdentityId,
};

use crate::{
    clock,
    events::record::{DenyEvent, Now},
    policy::{ask::octets, map_state::MapState},
};

/// Asks the policy in force. `here` says which workload of this host has an address. An echo is told in any case: its
/// target is no port.
pub(super) fn settles(
    event: &DenyEvent,
    here: impl Fn(&[u8; 16]) -> Option<IdentityId>,
    state: &MapState,
    now: &Now,
) -> bool {
    let (Some(peer), Some(asked), Some(port)) = (event.peer().addr, event.target.addr, event.target.port) else {
        return false;
    };
    let peer = octets(peer);
    let id = here(&peer).unwrap_or_else(|| state.peer_of(&peer));
    if id.is_unknown() || !matches!(event.proto, proto::TCP | proto::UDP) {
        return false;
    }
    let local = event.local().id;
    let (from, to) = match event.direction {
        Direction::Egress => (local, id),
        Direction::Ingress => (id, local),
    };
    let flow = Flow { from, to, proto: event.proto, port, direction: event.direction };
    state.decide_at(&flow, &[], asked, false, &clock::seconds_of(now.boot_ns)).allow
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use agent_common::layout::PrefixKey;

    use super::*;
    use crate::{
        events::{record::End, testing},
        policy::{
            compile::{CompileInput, compile},
            load::load,
        },
    };

    const TEXT: &str = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: d }\nspec:\n  trustDomain: t\n  \
                        workloads:\n    - { name: web, select: { cgroup: /a } }\n    - { name: db, select: { cgroup: /b } }\n  \
                        allow: [{ from: web, to: db, ports: [tcp/5432] }]\n";

    #[test]
    fn a_call_is_settled_by_whoever_has_the_address_now_and_by_what_policy_says_of_him() {
        let policy = load(&[("d.yaml", TEXT)]).unwrap().policy;
        let mut state = compile(&policy, &CompileInput::default()).unwrap();
        let [web, db] = ["web", "db"].map(|name| policy.identity_of(name).unwrap());
        let address: IpAddr = "10.9.0.1".parse().unwrap();
        let end = |addr: IpAddr, port, id| End { addr: Some(addr), port: Some(port), id, ..testing::event().source };
        let event = DenyEvent {
            source: end(address, 40_000, IdentityId::UNKNOWN),
            target: end("10.9.1.2".parse().unwrap(), 5432, db),
            direction: Direction::Ingress,
            proto: proto::TCP,
            ..testing::event()
        };
        let settles = |event: &DenyEvent, here: Option<IdentityId>, state: &MapState| {
            super::settles(event, |addr| here.filter(|_| *addr == octets(address)), state, &testing::now())
        };
        let key = PrefixKey { bits: 128, addr: octets(address) };
        state.prefixes.insert(key, IdentityId::UNKNOWN);
        assert!(!settles(&event, None, &state), "nobody knows yet");
        assert!(settles(&event, Some(web), &state), "a workload of this host");
        assert!(!settles(&event, Some(db), &state), "another one, which may not call");
        state.prefixes.insert(key, web);
        assert!(settles(&event, None, &state), "a workload of another host");
        assert!(!settles(&DenyEvent { proto: proto::UDP, ..event.clone() }, None, &state));
        let other = DenyEvent { target: end("10.9.1.2".parse().unwrap(), 5433, db), ..event };
        assert!(!settles(&other, None, &state));
    }
}
