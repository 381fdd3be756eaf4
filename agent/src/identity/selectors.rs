//! The `select` keys of policy, compiled: which declared workloads match a cgroup.

use std::collections::{BTreeMap, BTreeSet};

use globset::{Glob, GlobBuilder, GlobMatcher};

use super::ground::Trusted;
use crate::policy::model::{Policy, Selector};

/// Selectors of every workload, for one host.
#[derive(Clone, Debug)]
pub struct Selectors {
    /// Sorted by workload, because policy is.
    all: Vec<Compiled>,
}

/// Why selectors cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("workload `{workload}`: `{glob}` is no glob: {source}")]
pub struct InvalidGlob {
    workload: String,
    glob: String,
    source: globset::Error,
}

#[derive(Clone, Debug)]
struct Compiled {
    workload: String,
    unit: Option<GlobMatcher>,
    container: Option<GlobMatcher>,
    cgroup: Option<GlobMatcher>,
    /// Empty = any.
    uids: Vec<u32>,
}

/// What matches one cgroup.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Matches<'a> {
    /// Workloads that match every owner.
    pub all: BTreeSet<&'a str>,
    /// Workloads that match sockets of one owner only.
    pub by_uid: BTreeMap<u32, BTreeSet<&'a str>>,
}

impl Selectors {
    /// Compiles the selectors that `host` satisfies.
    ///
    /// # Errors
    ///
    /// [`InvalidGlob`], naming the first.
    pub fn new(policy: &Policy, host: &str) -> Result<Self, InvalidGlob> {
        let mut all = Vec::new();
        for workload in policy.workloads.values() {
            let compile = |glob: &String| {
                compile(glob).map_err(|source| InvalidGlob {
                    workload: workload.name.clone(),
                    glob: glob.clone(),
                    source,
                })
            };
            for selector in &workload.select {
                let Selector { systemd_unit, cgroup, container_id, host: host_glob, uids } = selector;
                let here = host_glob.as_ref().map(compile).transpose()?.is_none_or(|glob| glob.is_match(host));
                let compiled = Compiled {
                    workload: workload.name.clone(),
                    unit: systemd_unit.as_ref().map(compile).transpose()?,
                    container: container_id.as_ref().map(compile).transpose()?,
                    cgroup: cgroup.as_ref().map(compile).transpose()?,
                    uids: uids.clone(),
                };
                // `host` and `uid` only narrow: alone they would select everything on the host.
                let names_endpoint =
                    compiled.unit.is_some() || compiled.container.is_some() || compiled.cgroup.is_some();
                if here && names_endpoint {
                    all.push(compiled);
                }
            }
        }
        Ok(Self { all })
    }

    /// Returns the workloads that match the cgroup at `path`.
    ///
    /// `begins` says that an endpoint with these facts begins here. Elsewhere only selectors that name
    /// the path itself can match: what lies inside a unit is that unit, whatever it is called.
    #[must_use]
    pub fn matches(&self, path: &str, facts: Option<&Trusted>, begins: bool) -> Matches<'_> {
        let mut found = Matches::default();
        for selector in &self.all {
            let Compiled { workload, unit, container, cgroup, uids } = selector;
            let holds = (begins || cgroup.is_some())
                && cgroup.as_ref().is_none_or(|glob| glob.is_match(path))
                && fits(unit.as_ref(), facts.and_then(|f| f.unit.as_deref()))
                && fits(container.as_ref(), facts.and_then(|f| f.container.as_deref()));
            if !holds {
                continue;
            }
            if uids.is_empty() {
                found.all.insert(workload);
            }
            for &uid in uids {
                found.by_uid.entry(uid).or_default().insert(workload);
            }
        }
        found
    }
}

fn fits(glob: Option<&GlobMatcher>, value: Option<&str>) -> bool {
    match (glob, value) {
        (None, _) => true,
        (Some(glob), Some(value)) => glob.is_match(value),
        (Some(_), None) => false,
    }
}

/// Says whether a glob can be used, before any host tries to.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_glob(glob: &str) -> Result<(), globset::Error> {
    compile(glob).map(|_| ())
}

/// `*` and `?` do not cross `/`, `**` does. A backslash is a character of unit names, not an escape.
fn compile(glob: &str) -> Result<GlobMatcher, globset::Error> {
    let glob: Glob = GlobBuilder::new(glob).literal_separator(true).backslash_escape(false).build()?;
    Ok(glob.compile_matcher())
}
