//! The cgroups of the scope and who they are: facts from the kernel, labels from the resolver.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use agent_common::layout::IdentSlot;

use crate::{
    events::snapshot::Place,
    identity::{
        cgroup_path::PathFacts,
        resolver::{CgroupNode, Labels, Resolver},
    },
    sources::cgroup::{CgroupError, Hierarchy},
};

/// What is known about the cgroups of the scope.
pub struct Roster {
    hierarchy: Hierarchy,
    scope: String,
    /// By id. One that is removed stays until the kernel says that no socket refers to it.
    nodes: BTreeMap<u64, CgroupNode>,
}

impl Roster {
    /// Starts with nothing; [`Roster::walk`] fills it.
    #[must_use]
    pub const fn new(hierarchy: Hierarchy, scope: String) -> Self {
        Self { hierarchy, scope, nodes: BTreeMap::new() }
    }

    /// Where the hierarchy is mounted.
    #[must_use]
    pub const fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Looks at the whole tree; returns how many cgroups are new.
    ///
    /// # Errors
    ///
    /// [`CgroupError`] if the scope itself cannot be read.
    pub fn walk(&mut self) -> Result<usize, CgroupError> {
        let found = self.hierarchy.walk(&self.scope)?;
        let before = self.nodes.len();
        self.nodes.extend(found.into_iter().map(|node| (node.id, node)));
        Ok(self.nodes.len() - before)
    }

    /// Learns of one cgroup; returns it and its ancestors in the scope, or `None` if it is gone already
    /// or outside.
    ///
    /// # Errors
    ///
    /// [`CgroupError`].
    pub fn learn(&mut self, id: u64) -> Result<Option<Vec<CgroupNode>>, CgroupError> {
        let chain = self.hierarchy.chain_of(id, &self.scope)?;
        if chain.is_empty() {
            return Ok(None);
        }
        self.nodes.extend(chain.iter().cloned().map(|node| (node.id, node)));
        Ok(Some(chain))
    }

    /// Forgets a cgroup that the kernel has released.
    pub fn forget(&mut self, id: u64) {
        self.nodes.remove(&id);
    }

    /// Labels all of them, parents before children.
    #[must_use]
    pub fn labels(&self, resolver: &Resolver) -> Labels {
        let mut nodes: Vec<CgroupNode> = self.nodes.values().cloned().collect();
        nodes.sort_by(|a, b| a.path.cmp(&b.path));
        resolver.resolve(&nodes)
    }

    /// The cgroups, for `identities`.
    pub fn nodes(&self) -> impl Iterator<Item = &CgroupNode> {
        self.nodes.values()
    }

    /// Where each cgroup runs, for events.
    #[must_use]
    pub fn places(&self) -> Arc<HashMap<u64, Place>> {
        Arc::new(self.nodes.iter().map(|(&id, node)| (id, place(node))).collect())
    }
}

/// Only slots that say something are worth comparing.
#[must_use]
pub fn changed(old: &BTreeMap<u64, IdentSlot>, new: &BTreeMap<u64, IdentSlot>) -> bool {
    old.iter().any(|(id, slot)| new.get(id).is_some_and(|n| n.id != slot.id))
}

fn place(node: &CgroupNode) -> Place {
    // A path that gives no facts still names the cgroup.
    let facts = PathFacts::parse(&node.path).unwrap_or_default();
    Place {
        cgroup_path: node.path.clone().into_bytes(),
        unit: facts.unit.map(String::into_bytes),
        container: facts.container,
    }
}
