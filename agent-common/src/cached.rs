//! May the verdict in a socket's storage still be used?

use crate::{
    addr::Addr,
    id::BootSeconds,
    layout::{SOCKET_REMEMBERS_JIFFIES, SYN_FOLLOWS_JIFFIES, SockState},
};

/// Keys of the seal, drawn by the agent for every load: one for each word that is sealed.
pub type Keys = [u64; 4];

/// The flow that a verdict is about, seen from the socket: ports in host order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tuple {
    /// The other end.
    pub peer_addr: Addr,
    /// Its port.
    pub peer_port: u16,
    /// This end's port; 0 for TCP, whose sockets have one connection at a time, which begins with a SYN.
    pub local_port: u16,
}

/// Returns the seal over a verdict.
///
/// Two CPUs can write one socket's storage at once. The seal is stored last and covers every field
/// of the verdict, so a mixture of two verdicts fits no seal but by a rare chance: of two words that
/// differ, the product with a secret odd key of 64 bits does as well, whatever the other words are, and
/// the sum of four such products is the same for two verdicts with a chance of at most 2⁻⁴⁸ (words are
/// folded first, so that a difference in their upper half reaches the lower). A workload cannot look for
/// a mixture that fits, because it does not know the keys. The four products are independent: the
/// processor makes them side by side.
#[inline(always)]
#[must_use]
pub fn seal(flow: &Tuple, epoch: u32, valid_until: u32, seen: u32, keys: &Keys) -> u64 {
    let ports = (flow.peer_port as u64) << 48 | (flow.local_port as u64) << 32 | epoch as u64;
    let times = (valid_until as u64) << 32 | seen as u64;
    let sum = product(flow.peer_addr[0], keys[0])
        .wrapping_add(product(flow.peer_addr[1], keys[1]))
        .wrapping_add(product(ports, keys[2]))
        .wrapping_add(product(times, keys[3]));
    // 0 is what untouched storage holds, so it never seals anything.
    sum | 1
}

#[inline(always)]
const fn product(word: u64, key: u64) -> u64 {
    (word ^ (word >> 32)).wrapping_mul(key | 1)
}

/// Says whether the verdict in `state` is about `flow`, was made whole, under `epoch`, and has not run out.
#[inline(always)]
#[must_use]
pub fn holds(state: &SockState, flow: &Tuple, epoch: u32, now: impl FnOnce() -> BootSeconds, keys: &Keys) -> bool {
    state.epoch == epoch
        && state.peer_port == flow.peer_port
        && state.local_port == flow.local_port
        && state.peer_addr[0] == flow.peer_addr[0]
        && state.peer_addr[1] == flow.peer_addr[1]
        && state.seal == seal(flow, epoch, state.valid_until, state.seen, keys)
        && (state.valid_until == 0 || now().0 < state.valid_until)
}

/// Says whether a verdict about a flow of the flow table is so new that the table need not be asked: it
/// must see a flow from time to time, or it takes it for idle.
///
/// `jiffies` is the kernel's count of timer interrupts, the cheapest of its clocks: there are 100 to 1000 in
/// a second, so this is at most [`crate::layout::SOCKET_REMEMBERS_TICKS`].
#[inline(always)]
#[must_use]
pub const fn is_fresh(state: &SockState, jiffies: u32) -> bool {
    jiffies.wrapping_sub(state.seen) < SOCKET_REMEMBERS_JIFFIES
}

/// What a socket notes as the time of a connect, for [`just_asked`]: 0 stands for none.
#[inline(always)]
#[must_use]
pub const fn asked_at(jiffies: u32) -> u32 {
    if jiffies == 0 { 1 } else { jiffies }
}

/// Says whether connect asked just now for what a TCP socket remembers, so that a SYN which leaves now needs
/// no judgement of its own. A later one does: its destination may be somebody else's by then.
#[inline(always)]
#[must_use]
pub const fn just_asked(state: &SockState, jiffies: u32) -> bool {
    state.seen != 0 && jiffies.wrapping_sub(state.seen) < SYN_FOLLOWS_JIFFIES
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x8cb9_2ba7_2f3d_8dd7, 0xaef1_7502_108e_f2d9];

    fn flow(peer: u8, port: u16) -> Tuple {
        Tuple { peer_addr: [u64::from_ne_bytes([peer; 8]); 2], peer_port: port, local_port: 40_000 }
    }

    fn sealed(flow: &Tuple, valid_until: u32) -> SockState {
        SockState {
            peer_addr: flow.peer_addr,
            peer_port: flow.peer_port,
            local_port: flow.local_port,
            epoch: 7,
            valid_until,
            seen: 100,
            seal: seal(flow, 7, valid_until, 100, &KEYS),
            ..SockState::default()
        }
    }

    fn holds_at(state: &SockState, flow: &Tuple, epoch: u32, now: u32) -> bool {
        holds(state, flow, epoch, || BootSeconds(now), &KEYS)
    }

    #[test]
    fn a_verdict_holds_only_for_its_flow_under_its_epoch_and_before_its_end() {
        let db = flow(1, 53);
        let state = sealed(&db, 0);
        assert!(holds_at(&state, &db, 7, 0));
        assert!(!holds_at(&state, &db, 8, 0), "another epoch");
        assert!(!holds(&state, &db, 7, || BootSeconds(0), &[1, 2, 3, 4]), "another load");
        for other in [flow(1, 54), flow(2, 53), Tuple { local_port: 1, ..db }] {
            assert!(!holds_at(&state, &other, 7, 0), "{other:?}");
        }
        let limited = sealed(&db, 10);
        assert!(holds_at(&limited, &db, 7, 9));
        assert!(!holds_at(&limited, &db, 7, 10), "run out");
        let nobody = Tuple { peer_addr: [0; 2], peer_port: 0, local_port: 0 };
        assert!(!holds_at(&SockState::default(), &nobody, 0, 0), "untouched storage");
    }

    #[test]
    fn a_mixture_of_two_verdicts_holds_for_neither() {
        let (a, b) = (sealed(&flow(1, 53), 0), sealed(&flow(2, 5432), 9));
        for mixed in [
            SockState { peer_port: b.peer_port, ..a },
            SockState { peer_addr: b.peer_addr, ..a },
            SockState { peer_addr: b.peer_addr, peer_port: b.peer_port, ..a },
            SockState { seal: b.seal, ..a },
            SockState { local_port: 1, ..a },
            SockState { seen: 101, ..a },
            SockState { valid_until: 1, ..a },
        ] {
            let about = Tuple { peer_addr: mixed.peer_addr, peer_port: mixed.peer_port, local_port: mixed.local_port };
            assert!(!holds_at(&mixed, &about, 7, 0), "{mixed:?}");
        }
    }

    #[test]
    fn a_verdict_about_a_flow_of_the_table_is_fresh_for_some_time() {
        let state = sealed(&flow(1, 53), 0);
        assert!(is_fresh(&state, 100));
        assert!(is_fresh(&state, 99 + SOCKET_REMEMBERS_JIFFIES));
        assert!(!is_fresh(&state, 100 + SOCKET_REMEMBERS_JIFFIES));
        assert!(!is_fresh(&state, 99), "what seems to come from the future is old");
    }

    #[test]
    fn only_a_syn_that_follows_its_connect_at_once_is_the_one_that_was_asked_for() {
        let state = sealed(&flow(1, 53), 0);
        assert!(just_asked(&state, 100) && just_asked(&state, 99 + SYN_FOLLOWS_JIFFIES));
        assert!(!just_asked(&state, 100 + SYN_FOLLOWS_JIFFIES) && !just_asked(&state, 99));
        assert!(!just_asked(&SockState { seen: 0, ..state }, 0), "a packet was judged, and no connect");
        for jiffies in [1, 2, 3, u32::MAX - 1, u32::MAX] {
            let asked = SockState { seen: asked_at(jiffies), ..state };
            assert!((0..SYN_FOLLOWS_JIFFIES).all(|later| just_asked(&asked, jiffies.wrapping_add(later))), "{jiffies}");
        }
        assert_ne!(asked_at(0), 0);
    }
}
