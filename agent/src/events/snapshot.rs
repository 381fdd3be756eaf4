//! The names behind the numbers: what the agent knew under each epoch.
//!
//! An event is explained by the policy of its own epoch. The ring may hold events of the epoch
//! before for as long as its reader sleeps, so a few epochs are kept.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use agent_common::{
    flow::Flow,
    id::{Epoch, IdentityId, RuleNumber},
};

use super::record::{PolicyRef, RuleRef};

/// Epochs whose names are kept. An event older than that keeps its numbers and has no names.
pub const EPOCHS_KEPT: usize = 8;

/// Answers which rule came nearest to allowing a flow, and the one thing that differs.
pub type NearestRule = Arc<dyn Fn(&Flow) -> Option<String> + Send + Sync>;

/// What one epoch calls things.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Number of the epoch.
    pub epoch: Epoch,
    /// Its policy set.
    pub policy: Option<PolicyRef>,
    /// Names of identities and sets.
    pub names: BTreeMap<IdentityId, Name>,
    /// Rules; the number of a rule is its index + 1.
    pub rules: Vec<RuleRef>,
    /// The nearest rule, for denials by default.
    pub nearest: Option<NearestRule>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, policy, names, rules, nearest: _ } = self;
        f.debug_struct("Snapshot")
            .field("epoch", epoch)
            .field("policy", policy)
            .field("names", names)
            .field("rules", rules)
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Returns the rule with a number, if the epoch has it.
    #[must_use]
    pub fn rule(&self, number: RuleNumber) -> Option<&RuleRef> {
        let index = usize::try_from(number.0).ok()?.checked_sub(1)?;
        self.rules.get(index)
    }
}

/// The name of an identity.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name {
    /// For people: the path of the SPIFFE ID, the name of an external, the members of a set joined by `+`.
    pub short: String,
    /// The SPIFFE ID; a set has none.
    pub spiffe: Option<String>,
    /// An external: outside the fleet.
    pub is_external: bool,
}

/// Where a cgroup runs. The strings are foreign bytes; `enrich` escapes them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// Path from the root of the hierarchy.
    pub cgroup_path: Vec<u8>,
    /// systemd unit.
    pub unit: Option<Vec<u8>>,
    /// Container id.
    pub container: Option<String>,
}

/// The names of the last epochs, and the places of this moment.
///
/// Cheap to clone, so that a `watch` channel can carry it.
#[derive(Clone, Debug, Default)]
pub struct Snapshots {
    /// Newest first.
    epochs: VecDeque<Arc<Snapshot>>,
    /// By cgroup id. A cgroup id is never reused within a boot, so these need no epoch.
    places: Arc<HashMap<u64, Place>>,
}

impl Snapshots {
    /// Adds the names of an epoch, or replaces them if the epoch is known.
    pub fn install(&mut self, snapshot: Arc<Snapshot>) {
        self.epochs.retain(|old| old.epoch != snapshot.epoch);
        self.epochs.push_front(snapshot);
        self.epochs.truncate(EPOCHS_KEPT);
    }

    /// Replaces the places.
    pub fn set_places(&mut self, places: Arc<HashMap<u64, Place>>) {
        self.places = places;
    }

    /// Returns the names of an epoch.
    #[must_use]
    pub fn of(&self, epoch: Epoch) -> Option<&Snapshot> {
        self.epochs.iter().find(|snapshot| snapshot.epoch == epoch).map(AsRef::as_ref)
    }

    /// Returns the names installed last.
    #[must_use]
    pub fn newest(&self) -> Option<&Snapshot> {
        self.epochs.front().map(AsRef::as_ref)
    }

    /// Returns the name that an identity has in an epoch, else the newest it has.
    ///
    /// An identity number is made from its name alone, so another epoch cannot mean another identity.
    #[must_use]
    pub fn name(&self, epoch: Option<Epoch>, id: IdentityId) -> Option<&Name> {
        let own = epoch.and_then(|epoch| self.of(epoch));
        own.into_iter().chain(self.epochs.iter().map(AsRef::as_ref)).find_map(|snapshot| snapshot.names.get(&id))
    }

    /// Returns where a cgroup runs.
    #[must_use]
    pub fn place(&self, cgroup: u64) -> Option<&Place> {
        self.places.get(&cgroup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_epochs_are_kept_and_the_oldest_goes_first() {
        let mut snapshots = Snapshots::default();
        for n in 1..=10 {
            snapshots.install(Arc::new(Snapshot { epoch: Epoch(n), ..Snapshot::default() }));
        }
        assert_eq!(snapshots.newest().unwrap().epoch, Epoch(10));
        assert!(snapshots.of(Epoch(3)).is_some() && snapshots.of(Epoch(2)).is_none());
    }

    #[test]
    fn a_rule_number_counts_from_one() {
        let rules = vec![RuleRef::default_deny()];
        let snapshot = Snapshot { rules, ..Snapshot::default() };
        assert!(snapshot.rule(RuleNumber(0)).is_none());
        assert!(snapshot.rule(RuleNumber(1)).is_some());
        assert!(snapshot.rule(RuleNumber(2)).is_none());
        assert!(snapshot.rule(RuleNumber::BUILTIN_DNS).is_none());
    }
}
