//! May the verdict in a socket's storage still be used?

use crate::{id::BootSeconds, layout::SockState};

/// Returns the seal over the verdict in `state`.
///
/// Two CPUs can write one socket's storage at once. The seal is stored last and covers every field
/// that a packet is compared with, so a mixture of two verdicts fits no seal but by a chance of 2⁻⁶⁴
/// for each attempt. `secret` is drawn by the agent for every load: a workload cannot look for a
/// mixture that fits.
#[inline(always)]
#[must_use]
pub fn seal(state: &SockState, secret: u64) -> u64 {
    let (hi, lo) = halves(&state.peer_addr);
    let ports = (state.peer_port as u64) << 48 | (state.local_port as u64) << 32 | state.epoch as u64;
    let rest = (state.valid_until as u64) << 32 | (state.role as u64) << 8 | state.proto as u64;
    let mut x = secret ^ hi;
    x = mix(x) ^ lo;
    x = mix(x) ^ ports;
    x = mix(x) ^ rest;
    // 0 is what untouched storage holds, so it never seals anything.
    mix(x) | 1
}

/// Says whether the verdict in `state` was made whole, under `epoch`, and has not run out.
#[inline(always)]
#[must_use]
pub fn holds(state: &SockState, epoch: u32, now: impl FnOnce() -> BootSeconds, secret: u64) -> bool {
    state.epoch == epoch && state.seal == seal(state, secret) && (state.valid_until == 0 || now().0 < state.valid_until)
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), shortened by one round: a bijection,
/// so it loses nothing of what is put in.
#[inline(always)]
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 27)
}

#[inline(always)]
fn halves(addr: &[u8; 16]) -> (u64, u64) {
    let n = u128::from_ne_bytes(*addr);
    ((n >> 64) as u64, (n & 0xffff_ffff_ffff_ffff) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(peer: u8, port: u16) -> SockState {
        let mut state = SockState { peer_addr: [peer; 16], peer_port: port, epoch: 7, ..SockState::default() };
        state.seal = seal(&state, 99);
        state
    }

    #[test]
    fn a_verdict_holds_only_under_its_epoch_and_before_its_end() {
        let mut state = sealed(1, 53);
        assert!(holds(&state, 7, || BootSeconds(0), 99));
        assert!(!holds(&state, 8, || BootSeconds(0), 99), "another epoch");
        assert!(!holds(&state, 7, || BootSeconds(0), 98), "another load");
        state.valid_until = 10;
        state.seal = seal(&state, 99);
        assert!(holds(&state, 7, || BootSeconds(9), 99));
        assert!(!holds(&state, 7, || BootSeconds(10), 99), "run out");
        assert!(!holds(&SockState::default(), 0, || BootSeconds(0), 99), "untouched storage");
    }

    #[test]
    fn a_mixture_of_two_verdicts_holds_for_neither() {
        let (a, b) = (sealed(1, 53), sealed(2, 5432));
        for mixed in [
            SockState { peer_port: b.peer_port, ..a },
            SockState { peer_addr: b.peer_addr, ..a },
            SockState { seal: b.seal, ..a },
            SockState { local_port: 1, ..a },
            SockState { role: 1, ..a },
            SockState { valid_until: 1, ..a },
        ] {
            assert!(!holds(&mixed, 7, || BootSeconds(0), 99), "{mixed:?}");
        }
    }
}
