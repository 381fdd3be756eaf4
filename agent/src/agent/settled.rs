//! Whether a call that was denied, because nobody knew whose the other end was, may pass now that it is known.

use agent_common::flow::{Direction, Flow, proto};

use crate::{
    clock,
    events::record::{DenyEvent, Now},
    policy::{ask::octets, map_state::MapState},
};

/// Asks the policy in force. An echo is told in any case: its target is no port.
pub(super) fn settles(event: &DenyEvent, state: &MapState, now: &Now) -> bool {
    let (Some(peer), Some(asked), Some(port)) = (event.peer().addr, event.target.addr, event.target.port) else {
        return false;
    };
    let id = state.peer_of(&octets(peer));
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
