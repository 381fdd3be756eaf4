//! The strings of a record that can be cut.

/// A string of a record that can reach its limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LongField {
    /// Name of the process.
    Comm,
    /// Path of the program.
    Exe,
    /// Path of the cgroup.
    CgroupPath,
    /// Unit or container of the caller.
    SourcePlace,
    /// Short name of the caller.
    SourceService,
    /// SPIFFE ID of the caller.
    SourceSpiffe,
    /// Unit or container of the callee.
    TargetPlace,
    /// Short name of the callee.
    TargetService,
    /// SPIFFE ID of the callee.
    TargetSpiffe,
    /// Title of the rule.
    RuleTitle,
    /// The nearest rule.
    Nearest,
}

impl LongField {
    /// Every field.
    pub const ALL: [Self; 11] = [
        Self::Comm,
        Self::Exe,
        Self::CgroupPath,
        Self::SourcePlace,
        Self::SourceService,
        Self::SourceSpiffe,
        Self::TargetPlace,
        Self::TargetService,
        Self::TargetSpiffe,
        Self::RuleTitle,
        Self::Nearest,
    ];

    /// Its place in the native format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Comm => "actor.process.name",
            Self::Exe => "actor.process.path",
            Self::CgroupPath => "unmapped.eastwall.cgroup_path",
            Self::SourcePlace => "src_endpoint.name",
            Self::SourceService => "src_endpoint.svc_name",
            Self::SourceSpiffe => "src_endpoint.uid",
            Self::TargetPlace => "dst_endpoint.name",
            Self::TargetService => "dst_endpoint.svc_name",
            Self::TargetSpiffe => "dst_endpoint.uid",
            Self::RuleTitle => "firewall_rule.name",
            Self::Nearest => "unmapped.eastwall.nearest",
        }
    }
}
