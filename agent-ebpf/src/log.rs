//! What the programs themselves say, for whoever works on them.
//!
//! Twice off: without the feature `kernel-log` nothing of it is compiled, and with it the level is a constant
//! that the agent writes before the programs are loaded. At 0 the verifier finds the branch that is never
//! taken, neither follows it nor keeps it, and removes `line`.

use agent_common::verdict::Decision;

use crate::judge::Case;

/// Says what the denial of a packet is made of, in numbers: every one, the repeats that events only count
/// as well.
///
/// To be called before a report is made and not inside it, where no stack is left. In connect and sendmsg
/// there is none to begin with.
#[inline(always)]
pub fn denial(case: &Case, decision: &Decision) {
    #[cfg(feature = "kernel-log")]
    if aya_log_ebpf::macro_support::level_enabled(aya_log_ebpf::macro_support::Level::Debug) {
        line(case, decision);
    }
    #[cfg(not(feature = "kernel-log"))]
    let _ = (case, decision);
}

#[cfg(feature = "kernel-log")]
#[inline(never)]
fn line(case: &Case, decision: &Decision) {
    aya_log_ebpf::debug!(
        &(),
        target: "kernel",
        "denial: hook {}, reason {}, rule {}, protocol {}, port {}, cgroup {}, local {:x}, peer {:x}",
        case.hook,
        decision.reason as u8,
        decision.rule.0,
        case.proto,
        case.target_port(),
        case.cgroup,
        case.slot.id.0,
        case.peer.id.0
    );
}
