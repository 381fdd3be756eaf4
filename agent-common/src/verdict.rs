//! The vocabulary of answers: action, decision, mode, verdict, reason.

use crate::id::{BootSeconds, RuleNumber};

/// What happens to a packet or a system call.
///
/// The numbers are the return codes of cgroup hooks, and zeroed memory denies.
#[must_use = "a verdict that nobody reads is a packet that nobody stopped"]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Verdict {
    /// The packet is dropped, the call fails with EPERM.
    Deny = 0,
    /// It passes.
    Allow = 1,
}

/// What one end does with a denial. Zeroed memory enforces.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Mode {
    /// Denials are dropped and reported.
    Enforce = 0,
    /// Denials pass and are reported as would-be denials.
    Audit = 1,
    /// Denials pass and are not reported.
    Observe = 2,
}

impl Mode {
    /// Reads the number in a map; what is no mode enforces.
    #[must_use]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Audit,
            2 => Self::Observe,
            _ => Self::Enforce,
        }
    }

    /// The word of the policy language.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Observe => "observe",
        }
    }

    /// Applies the mode to a decision. An override-deny binds in every mode, because a revocation
    /// that only reports would be no revocation.
    pub const fn apply(self, decision: &Decision) -> Verdict {
        if decision.allow {
            return Verdict::Allow;
        }
        match (self, decision.reason) {
            (_, Reason::OverrideDeny) | (Self::Enforce, _) => Verdict::Deny,
            (Self::Audit | Self::Observe, _) => Verdict::Allow,
        }
    }

    /// Says whether a denial under this mode becomes an event.
    #[must_use]
    pub const fn reports(self, decision: &Decision) -> bool {
        !decision.allow && (!matches!(self, Self::Observe) || matches!(decision.reason, Reason::OverrideDeny))
    }
}

/// The answer of [`crate::decide::decide`], before any mode is applied.
#[must_use = "a decision that nobody reads is a packet that nobody judged"]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// Whether policy allows the flow.
    pub allow: bool,
    /// Why, if it does not; [`Reason::Allowed`] otherwise.
    pub reason: Reason,
    /// The rule that decided, or [`RuleNumber::DEFAULT`].
    pub rule: RuleNumber,
    /// Until when the decision holds, on the boot clock; 0 = as long as the policy.
    pub valid_until: BootSeconds,
}

impl Decision {
    /// A denial that holds as long as the policy.
    pub const fn deny(reason: Reason) -> Self {
        Self { allow: false, reason, rule: RuleNumber::DEFAULT, valid_until: BootSeconds(0) }
    }

    /// An allow by a built-in, which never expires.
    pub const fn builtin(rule: RuleNumber) -> Self {
        Self { allow: true, reason: Reason::Allowed, rule, valid_until: BootSeconds(0) }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $n:literal $name:literal,)+) => {
        /// Why a flow was denied. Numbers are on the wire and never reused.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $variant = $n,)+ }

        impl Reason {
            /// Every reason, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Reads the number on the wire.
            #[must_use]
            pub const fn from_u8(n: u8) -> Option<Self> {
                match n { $($n => Some(Self::$variant),)+ _ => None }
            }

            /// The one spelling: events, metrics, command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

reasons! {
    /// It was not denied.
    Allowed = 0 "allowed",
    /// No rule matched.
    NoRule = 1 "no-rule",
    /// A deny rule matched.
    DenyRule = 2 "deny-rule",
    /// An override-deny (revoke, quarantine) matched.
    OverrideDeny = 3 "override-deny",
    /// An allow rule matched but for its expiry.
    Expired = 4 "expired",
    /// The local end has no identity yet.
    UnknownSelf = 5 "unknown-self",
    /// The caller, as the door sees it, has no identity.
    UnknownCaller = 6 "unknown-caller",
    /// The callee, as the exit sees it, has no identity.
    UnknownTarget = 7 "unknown-target",
    /// The acting task belongs to another workload that may not make this call.
    TaskMismatch = 10 "task-mismatch",
    /// A reply without a request.
    NoFlow = 13 "no-flow",
    /// A protocol number that no rule can name.
    Protocol = 14 "protocol",
    /// A fragment whose ports cannot be known.
    Fragment = 15 "fragment",
    /// Headers that cannot be read to their end.
    Malformed = 16 "malformed",
    /// A live flow was closed because its rule went away.
    Revoked = 17 "revoked",
    /// The source is not an address or port of the sender.
    SpoofedSource = 18 "spoofed-source",
    /// A table was full or something was missing on our side.
    Internal = 19 "internal",
    /// A frame with a VLAN tag, or of a protocol that is not IP.
    LinkProtocol = 20 "link-protocol",
    /// A frame came by a device of one workload from a socket of another.
    DeviceMismatch = 21 "device-mismatch",
    /// A socket was to send past the programs at devices.
    Bypass = 22 "bypass",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_u8(reason as u8), Some(reason));
        }
        assert_eq!(Reason::from_u8(255), None);
    }

    #[test]
    fn an_override_deny_binds_in_every_mode_and_other_denials_only_when_enforced() {
        for mode in [Mode::Enforce, Mode::Audit, Mode::Observe] {
            assert_eq!(mode.apply(&Decision::deny(Reason::OverrideDeny)), Verdict::Deny);
            let expected = if mode == Mode::Enforce { Verdict::Deny } else { Verdict::Allow };
            assert_eq!(mode.apply(&Decision::deny(Reason::NoRule)), expected);
            assert_eq!(mode.apply(&Decision::builtin(RuleNumber::BUILTIN_SELF)), Verdict::Allow);
        }
        assert_eq!(Mode::from_u8(77), Mode::Enforce);
    }
}
