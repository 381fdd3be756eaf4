//! Policy + the tree of cgroups -> exactly one identity per cgroup.
//!
//! The walk goes from the top down, and what a cgroup becomes depends on its ancestors alone. So a
//! chain of cgroups from the top to a new one gives the new one the same label as the whole tree.
//!
//! 1. An endpoint begins where root's word for it ends ([`super::ground`]): at a unit or a container.
//!    It is the one declared workload that matches it, else it has a derived name.
//! 2. An endpoint also begins where a selector names the path of a cgroup, wherever that lies.
//! 3. Two declared workloads on one endpoint give neither: it keeps its derived name and is reported.
//! 4. Every other cgroup is what its parent is. The root is `node/<host>`.
//!
//! Source: policy.md, sections 4.1, 4.2 and 6.1.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{
    id::IdentityId,
    layout::{IdentSlot, UidKey, ident_flags},
    verdict::Mode,
};

use super::{
    cgroup_path::segments,
    derived,
    ground::{Ground, Trusted},
    selectors::{InvalidGlob, Selectors},
    spiffe::{InvalidSpiffeId, SpiffeId},
};
use crate::policy::model::{OnDeny, Policy};

/// One cgroup of the host.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct CgroupNode {
    /// Its id: the inode of its directory.
    pub id: u64,
    /// From the root of the hierarchy; the root is `/`.
    pub path: String,
    /// None for the top of the tree.
    pub parent: Option<u64>,
}

/// Gives cgroups their identities under one policy, on one host.
#[derive(Clone, Debug)]
pub struct Resolver {
    selectors: Selectors,
    trust_domain: String,
    node: Identity,
    declared: BTreeMap<String, Identity>,
    derived_mode: Mode,
    derived_on_deny: OnDeny,
}

/// Labels for a tree of cgroups.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels {
    /// By cgroup id.
    pub cgroups: BTreeMap<u64, IdentSlot>,
    /// Other identities for sockets of certain owners in cgroups that have [`ident_flags::ASK_UID`].
    pub uids: BTreeMap<UidKey, IdentSlot>,
    /// Every identity that occurs in `cgroups` and `uids`.
    pub names: BTreeMap<IdentityId, Name>,
    /// Sorted; one finding for each endpoint and owner.
    pub ambiguous: Vec<Ambiguous>,
}

/// The name behind a number.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// In full.
    pub id: SpiffeId,
    /// As rules write it: the name of the workload, or the derived name.
    pub short: String,
}

/// Several declared workloads match one endpoint, so it has none of them.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ambiguous {
    /// Where the endpoint begins.
    pub path: String,
    /// Its cgroup id.
    pub cgroup: u64,
    /// Only sockets of this owner.
    pub uid: Option<u32>,
    /// Names, sorted; two or more.
    pub workloads: Vec<String>,
}

/// Why a policy gives no labels on a host.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// A selector.
    #[error(transparent)]
    Glob(#[from] InvalidGlob),
    /// The trust domain gives no names.
    #[error("trust domain `{trust_domain}`: {source}")]
    TrustDomain {
        /// As the policy has it.
        trust_domain: String,
        /// What is wrong.
        source: InvalidSpiffeId,
    },
}

/// An identity and what comes with it, before it is given to a cgroup.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Identity {
    name: Name,
    ingress_mode: Mode,
    egress_mode: Mode,
    on_deny: OnDeny,
    is_declared: bool,
}

/// What a cgroup is, and hands down.
#[derive(Clone, Debug)]
struct Place {
    ground: Ground,
    identity: Identity,
    /// The cgroup at which the endpoint begins.
    endpoint: u64,
    by_uid: BTreeMap<u32, Identity>,
    /// Workloads that clash here: the same clash is not reported again for each cgroup below.
    clash: BTreeSet<String>,
}

impl Resolver {
    /// Compiles what `policy` says about `host`.
    ///
    /// # Errors
    ///
    /// [`ResolverError`]; nothing may be labelled with such a policy.
    pub fn new(policy: &Policy, host: &str) -> Result<Self, ResolverError> {
        let mode = policy.default_mode.unwrap_or(Mode::Observe);
        let declared = policy.workloads.values().map(|workload| {
            let name = Name { id: workload.id.clone(), short: workload.name.clone() };
            let (ingress_mode, egress_mode) = (workload.ingress_mode, workload.egress_mode);
            let identity = Identity { name, ingress_mode, egress_mode, on_deny: workload.on_deny, is_declared: true };
            (workload.name.clone(), identity)
        });
        let node = derived_name(&policy.trust_domain, derived::node(host))
            .map_err(|source| ResolverError::TrustDomain { trust_domain: policy.trust_domain.clone(), source })?;
        Ok(Self {
            selectors: Selectors::new(policy, host)?,
            trust_domain: policy.trust_domain.clone(),
            node: Identity {
                name: node,
                ingress_mode: mode,
                egress_mode: mode,
                on_deny: policy.default_on_deny,
                is_declared: false,
            },
            declared: declared.collect(),
            derived_mode: mode,
            derived_on_deny: policy.default_on_deny,
        })
    }

    /// Labels every cgroup that hangs together with a top. What does not (its parent vanished during
    /// the walk) has no label and stays `unknown`.
    #[must_use]
    pub fn resolve(&self, cgroups: &[CgroupNode]) -> Labels {
        let known: BTreeSet<u64> = cgroups.iter().map(|c| c.id).collect();
        let mut children: BTreeMap<Option<u64>, Vec<&CgroupNode>> = BTreeMap::new();
        for cgroup in cgroups {
            let parent = cgroup.parent.filter(|p| *p != cgroup.id);
            if parent.is_none_or(|p| known.contains(&p)) {
                children.entry(parent).or_default().push(cgroup);
            }
        }
        let mut labels = Labels::default();
        let mut waiting: Vec<(&CgroupNode, Option<Place>)> =
            children.remove(&None).unwrap_or_default().into_iter().map(|top| (top, None)).collect();
        while let Some((cgroup, parent)) = waiting.pop() {
            let place = self.place(cgroup, parent.as_ref(), &mut labels.ambiguous);
            self.write(cgroup, &place, &mut labels);
            for child in children.remove(&Some(cgroup.id)).unwrap_or_default() {
                waiting.push((child, Some(place.clone())));
            }
        }
        labels.ambiguous.sort();
        labels
    }

    /// Decides what one cgroup is.
    fn place(&self, cgroup: &CgroupNode, parent: Option<&Place>, ambiguous: &mut Vec<Ambiguous>) -> Place {
        let (ground, begins) = match parent {
            Some(parent) => step(&parent.ground, &cgroup.path),
            None => (top_ground(&cgroup.path), false),
        };
        let found = self.selectors.matches(&cgroup.path, ground.facts(), begins);
        let inherited = match parent {
            Some(parent) if !begins => Place { ground: ground.clone(), ..parent.clone() },
            _ => Place {
                identity: self.derived(ground.facts()),
                ground: ground.clone(),
                endpoint: cgroup.id,
                by_uid: BTreeMap::new(),
                clash: BTreeSet::new(),
            },
        };
        let mut report = |uid, workloads: &BTreeSet<&str>| {
            let workloads = workloads.iter().map(|&w| w.to_owned()).collect();
            ambiguous.push(Ambiguous { path: cgroup.path.clone(), cgroup: cgroup.id, uid, workloads });
        };
        let is_new = found.all.iter().next().is_some_and(|&first| {
            found.all.len() > 1 || !inherited.identity.is_declared || inherited.identity.name.short != first
        });
        let mut place = match (found.all.first(), found.all.len()) {
            (Some(&workload), 1) if is_new => Place {
                identity: self.declared[workload].clone(),
                endpoint: cgroup.id,
                by_uid: BTreeMap::new(),
                clash: BTreeSet::new(),
                ..inherited
            },
            (Some(_), 2..) if !is_same(&inherited.clash, &found.all) => {
                report(None, &found.all);
                Place {
                    identity: self.derived(ground.facts()),
                    endpoint: cgroup.id,
                    by_uid: BTreeMap::new(),
                    clash: found.all.iter().map(|&w| w.to_owned()).collect(),
                    ..inherited
                }
            }
            _ => inherited,
        };
        for (&uid, workloads) in &found.by_uid {
            let identity = match (workloads.first(), workloads.len()) {
                (Some(&workload), 1) => self.declared[workload].clone(),
                _ => {
                    let identity = self.derived(ground.facts());
                    // The cgroup above was reported already if this owner clashed there too.
                    if place.by_uid.get(&uid) != Some(&identity) {
                        report(Some(uid), workloads);
                    }
                    identity
                }
            };
            place.by_uid.insert(uid, identity);
        }
        place
    }

    fn write(&self, cgroup: &CgroupNode, place: &Place, labels: &mut Labels) {
        let mut flags = ident_flags::LABELLED;
        // Below open ground the next cgroup may be an endpoint of its own, and an owner's identity hangs
        // on the id of each cgroup. There a new child is `unknown` until it is looked at: it waits, but
        // it never speaks in the name of another.
        let is_endpoint = place.ground.facts().is_some() || place.identity.is_declared;
        if is_endpoint && !place.ground.is_open() && place.by_uid.is_empty() {
            flags |= ident_flags::INHERIT;
        }
        if !place.by_uid.is_empty() {
            flags |= ident_flags::ASK_UID;
        }
        labels.cgroups.insert(cgroup.id, slot(&place.identity, flags, place.endpoint));
        labels.names.insert(place.identity.name.id.number(), place.identity.name.clone());
        for (&uid, identity) in &place.by_uid {
            let key = UidKey { cgroup: cgroup.id, uid, reserved: 0 };
            labels.uids.insert(key, slot(identity, ident_flags::LABELLED | ident_flags::ASK_UID, place.endpoint));
            labels.names.insert(identity.name.id.number(), identity.name.clone());
        }
    }

    fn derived(&self, facts: Option<&Trusted>) -> Identity {
        let name = facts.and_then(derived::of).and_then(|path| derived_name(&self.trust_domain, path).ok());
        Identity {
            name: name.unwrap_or_else(|| self.node.name.clone()),
            ingress_mode: self.derived_mode,
            egress_mode: self.derived_mode,
            on_deny: self.derived_on_deny,
            is_declared: false,
        }
    }
}

fn derived_name(trust_domain: &str, path: String) -> Result<Name, InvalidSpiffeId> {
    Ok(Name { id: SpiffeId::new(trust_domain, &path)?, short: path })
}

fn is_same(clash: &BTreeSet<String>, found: &BTreeSet<&str>) -> bool {
    clash.iter().map(String::as_str).eq(found.iter().copied())
}

/// The ground of a top. If the agent guards a part of the hierarchy, the operator vouches for that part:
/// it counts as a root, unless the way to it says more.
fn top_ground(path: &str) -> Ground {
    let mut ground = Ground::ROOT;
    let mut parent = None;
    for segment in segments(path).into_iter().flatten() {
        ground = ground.step(parent.replace(segment), segment).ground;
    }
    if matches!(ground, Ground::Slice { .. }) { ground } else { Ground::ROOT }
}

fn step(ground: &Ground, path: &str) -> (Ground, bool) {
    let mut segments = path.rsplit('/');
    let name = segments.next().unwrap_or_default();
    let step = ground.step(segments.next(), name);
    (step.ground, step.begins)
}

fn slot(identity: &Identity, flags: u8, endpoint: u64) -> IdentSlot {
    IdentSlot {
        id: identity.name.id.number(),
        ingress_mode: identity.ingress_mode as u8,
        egress_mode: identity.egress_mode as u8,
        on_deny: match identity.on_deny {
            OnDeny::Drop => 0,
            OnDeny::Reset => 1,
        },
        flags: if identity.is_declared { flags | ident_flags::DECLARED } else { flags },
        // The lower half of a cgroup id is unique among the cgroups that exist: it is the kernel's
        // inode number, and the upper half is a generation.
        endpoint: u32::try_from(endpoint & u64::from(u32::MAX)).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
