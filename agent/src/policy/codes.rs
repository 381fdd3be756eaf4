//! The codes of findings: what `check` can say about a policy. Numbers are never reused.

macro_rules! codes {
    ($($variant:ident $title:literal $explanation:literal,)+) => {
        /// A kind of finding: `E` refuses the set, `W` does not.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[allow(missing_docs, reason = "the title beside each code is its documentation")]
        pub enum Code { $($variant,)+ }

        impl Code {
            /// Every code, errors first.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name, `E03`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// What it is about, in a few words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// Why it is refused or warned about, and what to do.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)+ }
            }

            /// Reads a name in either case.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.name().eq_ignore_ascii_case(name))
            }
        }
    };
}

impl Code {
    /// Says whether the set is refused.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.name().starts_with('E')
    }
}

codes! {
    E01 "unknown or unsupported field or kind, or unreadable YAML"
        "A policy is read strictly, because a field that is skipped makes a rule wider than its author wrote. \
         Unknown fields, duplicate keys, anchors, aliases, merge keys, unknown tags, files over 4 MiB and \
         features that this version does not have are refused.\n\
         Fields of your own may begin with `x-`.",
    E02 "duplicate or reserved name, or duplicate rule id"
        "Workloads, externals and groups share one namespace over all files; document names and rule ids are \
         unique too. `any`, `world`, `unknown`, `nodes`, `kube-apiserver` and everything under `ns/`, `unit/`, \
         `container/`, `user/`, `node/`, `ip/` and `pod/` is reserved.\n\
         Two rules with the same action, ends and ports get the same id: delete one or give it an `id`.",
    E03 "unknown name"
        "`from`, `to`, `members` and `tests` may name declared workloads, externals and groups, the reserved names \
         `any` and `world`, and derived names such as `unit/nginx.service`. A name that nobody carries would make \
         a rule that never matches: for a deny that is a hole.",
    E04 "bad SPIFFE ID, or trust domains that disagree"
        "A name is a path in the trust domain: segments of `A-Z a-z 0-9 . _ -` separated by `/`, none empty, none \
         `.` or `..`. A full ID begins with `spiffe://`. All documents of a set must agree on `trustDomain`.",
    E05 "bad port, or a port name that the target does not have"
        "Ports are written `tcp/443`, `tcp/8000-8015`, `udp/53`, `sctp/38412`, `tcp/any`, `icmp/echo`, `any`, or as a \
         port name of `to`. The protocol is never implied. If `to` is a group, every member must have the name.",
    E06 "empty list, map, text or selector"
        "Empty never means everything. Leave the field out, or write what is meant: `ports: [any]`.",
    E07 "groups that contain each other"
        "The members of a group are workloads, externals and other groups, but following them must end.",
    E08 "selectors that overlap"
        "Every endpoint has exactly one identity. Two workloads that match one endpoint would give it two, and the \
         answer would depend on an order that nobody wrote.",
    E09 "deny to an external known by DNS names"
        "Not every address of a DNS name is known, so a deny could be passed by. Deny addresses, or allow less.",
    E10 "rule that has already expired"
        "An expired rule matches nothing. Delete it or move its `expires`; `--allow-expired` lets it stay.",
    E11 "override without an end"
        "An override stands above policy, so it always ends, an allow within 24 hours.",
    E12 "two documents with `defaults`"
        "Documents have no order, so at most one of them may carry `defaults`.",
    E13 "two names with the same identity number"
        "Identities are numbered by a hash, and two of this set met. Rename one of them.",
    E14 "test that failed"
        "A line of `tests:` says what must be allowed or denied, and the policy says otherwise. Change the rules, or \
         the test if what it promised is no longer wanted.",
    E15 "rule or edge that expands over a limit"
        "A rule may open at most 100,000 edges, and one edge may hold at most 19 port ranges once every rule that \
         applies to it is counted. Use ranges instead of single ports, or split the group.",
    E16 "policy that does not fit the maps"
        "The maps have a fixed capacity, and everything is counted before the first write. Raise the capacity in \
         agent.yaml, or make the policy smaller.",
    E17 "bad address range"
        "A range is written `198.51.100.0/24` or `2001:db8::/32`, with no bit set behind the prefix. `except` must lie \
         inside `cidrs`.",
    E18 "bad DNS name"
        "A name is written `api.partner.example`, and `*.partner.example` means all names below `partner.example`, but not \
         itself. At most four externals may have names that mean the same one.",
    W01 "allow that a deny covers completely"
        "The rule never allows anything, because deny beats allow. Delete it, or narrow the deny.",
    W02 "edge that another rule opens as well"
        "Deleting either rule closes nothing. Keep the one whose owner and reason are right.",
    W03 "rule without owner, reason and ticket"
        "Nobody will know whether it can go. `--require owner,ticket` makes this an error.",
    W04 "`any` or `world` as source of an enforced workload"
        "The door of the workload is closed, and this rule opens it for everyone.",
    W05 "allow for every port"
        "`ports: [any]` opens every port of every protocol. Name the ports that are used.",
    W06 "workload without any rule"
        "Once it is enforced it can neither call nor be called.",
    W07 "rule that expires within 14 days"
        "When it ends its flows are cut. Renew it or be ready.",
    W08 "broad address range"
        "A range shorter than /16 (IPv4) or /48 (IPv6) names many parties by one name.",
    W09 "address range that overlaps managed addresses"
        "An external never names a labelled workload, so the rule does not do for those addresses what it says.",
    W10 "workload with no `only` test"
        "`only` is the one assertion that catches a caller added by a later edit.",
    W11 "enforced workload behind a Service that hides the source"
        "Callers arrive from a node's address and borrow that node's identities.",
    W12 "guard-rail that is not effective yet"
        "`from` shares an address with an allowed caller, and its own exit is not enforced.",
    W13 "workload that enforces while sockets without a label do not"
        "Set `defaults.unknownMode: enforce` once everything is labelled.",
    W14 "upper case in a trust domain"
        "Trust domains are compared in lower case here, but implementations differ. Write lower case.",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_is_left_unexplained() {
        for &code in Code::ALL {
            assert_eq!(Code::parse(&code.name().to_lowercase()), Some(code));
            assert!(!code.title().is_empty() && code.explanation().len() > 40, "{code:?}");
        }
        assert_eq!(Code::parse("E99"), None);
        assert!(Code::E01.is_error() && !Code::W01.is_error());
    }
}
