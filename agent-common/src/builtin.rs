//! Built-ins that a rule can beat: policy is asked first, then these.

use crate::{
    addr::Addr,
    flow::{Direction, Flow, proto},
    id::RuleNumber,
    verdict::{Decision, Reason},
};

/// Most resolvers of one node.
pub const RESOLVERS_MAX: usize = 8;
/// Where resolvers listen.
pub const DNS_PORT: u16 = 53;

/// Says whether the built-in `dns` may allow what policy has denied: what is left are its two ends,
/// [`counts`] and [`is_resolver`].
///
/// It ranks below every rule, so it is for flows that no rule matched; a rule that has expired matches nothing.
/// Who is `unknown` is denied for that and never gets here.
#[inline(always)]
#[must_use]
pub const fn may_be_dns(denied: &Decision, flow: &Flow) -> bool {
    !denied.allow
        && matches!(denied.reason, Reason::NoRule | Reason::Expired)
        && flow.port == DNS_PORT
        && matches!(flow.proto, proto::UDP | proto::TCP)
}

/// Says whether the caller is a workload of this host. At an exit it always is; at a door only if its socket
/// is known, `is_here`: an address alone may be anybody's, and no built-in opens a resolver to everybody.
#[inline(always)]
#[must_use]
pub const fn counts(direction: Direction, is_here: bool) -> bool {
    matches!(direction, Direction::Egress) || is_here
}

/// Says whether the address that is asked, at whichever end, is a resolver's. An unused entry is zero and
/// equals no address, not even the unspecified one.
#[inline(always)]
#[must_use]
pub fn is_resolver(asked: &Addr, resolvers: &[Addr; RESOLVERS_MAX]) -> bool {
    let mut found = false;
    for resolver in resolvers {
        found |= resolver[0] == asked[0] && resolver[1] == asked[1];
    }
    found && (asked[0] | asked[1]) != 0
}

/// Returns the decision with the built-in `dns` taken into account.
#[must_use = "a decision that nobody reads is a packet that nobody judged"]
pub fn with_dns(
    decision: Decision,
    flow: &Flow,
    asked: &Addr,
    caller_is_here: bool,
    resolvers: &[Addr; RESOLVERS_MAX],
) -> Decision {
    if may_be_dns(&decision, flow) && counts(flow.direction, caller_is_here) && is_resolver(asked, resolvers) {
        Decision::builtin(RuleNumber::BUILTIN_DNS)
    } else {
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{addr::mapped, id::IdentityId};

    const RESOLVER: Addr = mapped(u32::from_ne_bytes([10, 0, 0, 53]));
    const ANOTHER: Addr = mapped(u32::from_ne_bytes([10, 0, 0, 54]));
    const V6: Addr = [0x0dfd, 0x3500_0000_0000_0000];
    const NO_RULE: Decision = Decision::deny(Reason::NoRule);

    const FLOW: Flow = Flow {
        from: IdentityId(300),
        to: IdentityId::WORLD,
        proto: proto::UDP,
        port: 53,
        direction: Direction::Egress,
    };

    fn resolvers() -> [Addr; RESOLVERS_MAX] {
        let mut all = [[0; 2]; RESOLVERS_MAX];
        (all[0], all[7]) = (RESOLVER, V6);
        all
    }

    fn allows(decision: Decision, flow: Flow, asked: Addr, here: bool) -> bool {
        let after = with_dns(decision, &flow, &asked, here, &resolvers());
        assert!(after == decision || after == Decision::builtin(RuleNumber::BUILTIN_DNS));
        after.allow
    }

    #[test]
    fn both_protocols_and_families_pass_and_any_other_port_protocol_or_address_does_not() {
        for asked in [RESOLVER, V6] {
            assert!(allows(NO_RULE, FLOW, asked, false));
            assert!(allows(NO_RULE, Flow { proto: proto::TCP, ..FLOW }, asked, false));
            for port in [0, 52, 54, 5353] {
                assert!(!allows(NO_RULE, Flow { port, ..FLOW }, asked, false));
            }
            for proto in [0, proto::ICMP, proto::SCTP, proto::UDPLITE] {
                assert!(!allows(NO_RULE, Flow { proto, ..FLOW }, asked, false));
            }
        }
        assert!(!allows(NO_RULE, FLOW, ANOTHER, false));
        assert!(!allows(NO_RULE, FLOW, [RESOLVER[0], V6[1]], false));
        assert!(!allows(NO_RULE, FLOW, [0; 2], false), "an unused entry is no resolver");
    }

    #[test]
    fn only_what_no_rule_matched_is_allowed() {
        for &reason in Reason::ALL {
            let wanted = matches!(reason, Reason::NoRule | Reason::Expired);
            assert_eq!(allows(Decision::deny(reason), FLOW, RESOLVER, true), wanted, "{reason:?}");
        }
        let by_rule = Decision { rule: RuleNumber(7), ..Decision::builtin(RuleNumber(7)) };
        assert_eq!(with_dns(by_rule, &FLOW, &RESOLVER, true, &resolvers()), by_rule, "the rule stays named");
    }

    #[test]
    fn a_door_opens_for_callers_of_this_host_alone() {
        let door = Flow { direction: Direction::Ingress, ..FLOW };
        assert!(allows(NO_RULE, door, RESOLVER, true));
        assert!(!allows(NO_RULE, door, RESOLVER, false));
    }
}
