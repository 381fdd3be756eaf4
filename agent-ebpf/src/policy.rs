//! The compiled policy as the pinned maps hold it.

use agent_common::{
    addr::Addr,
    builtin,
    decide::{Clock, PolicyMap, decide},
    flow::{Direction, Flow},
    id::{BootSeconds, IdentityId, RuleNumber},
    layout::{EdgeEntry, EdgeKey, Settings, SpillEntry},
    verdict::{Decision, Reason},
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_map_lookup_elem};

use crate::maps::{EDGES, EPOCH, RULE_STATS, SETTINGS, SPILL};

/// One side of the policy maps.
pub struct KernelPolicy {
    side: u32,
}

impl PolicyMap for KernelPolicy {
    #[inline(always)]
    fn edge(&self, key: &EdgeKey) -> Option<&EdgeEntry> {
        let inner = EDGES.get(self.side)?;
        // SAFETY: an inner map of `edges`; the entry is not written while its side is in use.
        unsafe {
            bpf_map_lookup_elem(core::ptr::from_ref(inner).cast_mut().cast(), core::ptr::from_ref(key).cast())
                .cast::<EdgeEntry>()
                .as_ref()
        }
    }

    #[inline(always)]
    fn spill(&self, index: u32) -> Option<&SpillEntry> {
        SPILL.get_value(self.side, &index).map(|words| {
            // SAFETY: an entry in words.
            unsafe { &*core::ptr::from_ref(words).cast() }
        })
    }
}

/// The boot clock.
struct BootClock;

impl Clock for BootClock {
    #[inline(always)]
    fn boot_seconds(&self) -> BootSeconds {
        // SAFETY: no arguments, no state.
        BootSeconds((unsafe { bpf_ktime_get_boot_ns() } / 1_000_000_000) as u32)
    }
}

/// Returns the seconds on the boot clock.
#[inline(always)]
pub fn boot_seconds() -> u32 {
    BootClock.boot_seconds().0
}

/// Returns the epoch in force. Read once in a run of a program, before anything else of the policy.
/// 0 = no policy has ever been applied.
#[inline(always)]
pub fn epoch() -> u32 {
    match EPOCH.get(0) {
        // SAFETY: written by the agent with one store; volatile so that it is read once.
        Some(epoch) => (unsafe { core::ptr::read_volatile(epoch) }) as u32,
        None => 0,
    }
}

/// Returns the switches of a side.
#[inline(always)]
pub fn settings(side: u32) -> Option<&'static Settings> {
    SETTINGS.get(side)
}

/// Decides a flow under one epoch and counts the hit of the rule. Says whether the built-in `dns` may allow
/// it all the same.
#[inline(always)]
pub fn decide_counted(flow: &Flow, epoch: u32, out: &mut Decision) -> bool {
    let question = Question {
        from: flow.from.0,
        to: flow.to.0,
        port: u32::from(flow.port),
        proto: u16::from(flow.proto),
        direction: flow.direction as u16,
    };
    let mut answer = Answer::default();
    let said = ew_decide(&raw const question, &raw mut answer, epoch);
    *out = Decision {
        allow: said & ALLOW != 0,
        reason: Reason::from_u8(said as u8).unwrap_or(Reason::Internal),
        rule: RuleNumber(answer.rule),
        valid_until: BootSeconds(answer.valid_until),
    };
    said & MAY_BE_DNS != 0
}

/// Bits of what [`ew_decide`] returns, above the reason. Without them it is a denial.
const ALLOW: u32 = 1 << 8;
/// See [`ALLOW`].
const MAY_BE_DNS: u32 = 1 << 9;

/// A flow in integers: what crosses the border of a function that the verifier checks by itself.
#[repr(C)]
pub struct Question {
    from: u64,
    to: u64,
    port: u32,
    proto: u16,
    direction: u16,
}

/// The rest of a decision, which does not fit into what is returned. Few bytes: the stack of the callers is short.
#[derive(Default)]
#[repr(C)]
pub struct Answer {
    rule: u32,
    valid_until: u32,
}

/// Global, so that the verifier checks the decision once and not for every state of every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_decide(question: *const Question, answer: *mut Answer, epoch: u32) -> u32 {
    // SAFETY: the verifier knows the sizes behind both pointers, and that they may be null.
    let (Some(question), Some(answer)) = (unsafe { question.as_ref() }, unsafe { answer.as_mut() }) else {
        return 0;
    };
    let side = epoch & 1;
    let direction = if question.direction == 0 { Direction::Egress } else { Direction::Ingress };
    let flow = Flow {
        from: IdentityId(question.from),
        to: IdentityId(question.to),
        proto: question.proto as u8,
        port: question.port as u16,
        direction,
    };
    let decision = decide(&KernelPolicy { side }, &flow, &BootClock);
    if let Some(settings) = settings(side)
        && decision.rule.0 <= settings.rules
        && let Some(stat) = RULE_STATS.get_ptr_mut(settings.stats_base.wrapping_add(decision.rule.0))
    {
        // SAFETY: this CPU's share; a program that interrupts this one may add to it in between, which
        // loses one hit of a statistic and nothing else.
        unsafe {
            (*stat).decisions += 1;
            (*stat).last_ns = bpf_ktime_get_coarse_ns();
        }
    }
    answer.rule = decision.rule.0;
    answer.valid_until = decision.valid_until.0;
    let allow = if decision.allow { ALLOW } else { 0 };
    let may_be_dns = if builtin::may_be_dns(&decision, &flow) { MAY_BE_DNS } else { 0 };
    u32::from(decision.reason as u8) | allow | may_be_dns
}

/// Says whether an address is one of a resolver of this node.
#[inline(always)]
pub fn is_resolver(addr: &Addr, epoch: u32) -> bool {
    ew_is_resolver(addr[0], addr[1], epoch) != 0
}

/// Global and by value: checked once, and nothing of it is on the stack of a caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_is_resolver(first: u64, second: u64, epoch: u32) -> u32 {
    settings(epoch & 1).map_or(0, |settings| u32::from(builtin::is_resolver(&[first, second], &settings.resolvers)))
}
