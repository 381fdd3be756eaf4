//! What a node knows beside its policy and compiles into it: read with every policy, and followed while one is in force.

use tracing::info;

use super::core::Core;
use crate::policy::{map_state::MapState, peers::Peers, resolvers::Resolvers};

/// Whom others are, as far as no policy says it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Surroundings {
    /// The resolvers of this node.
    pub resolvers: Resolvers,
    /// Workloads of other hosts.
    pub peers: Peers,
}

impl Surroundings {
    /// Those of a policy that was compiled with them.
    #[must_use]
    pub fn of(state: &MapState) -> Self {
        Self { resolvers: state.resolvers.clone(), peers: state.peers.clone() }
    }
}

impl Core {
    pub(super) fn read_surroundings(&mut self) -> Surroundings {
        Surroundings { resolvers: self.read_resolvers(), peers: self.read_peers() }
    }

    /// Puts others in force. They must be the same twice: a file that is being written may be read half.
    pub(super) fn follow_surroundings(&mut self) {
        let found = self.read_surroundings();
        let Surroundings { resolvers, peers } = &found;
        let MapState { resolvers: resolvers_before, peers: peers_before, .. } = &*self.state;
        let (other_resolvers, other_peers) = (resolvers != resolvers_before, peers != peers_before);
        if !other_resolvers && !other_peers {
            self.surroundings_seen = None;
            return;
        }
        if self.surroundings_seen.as_ref() != Some(&found) {
            self.surroundings_seen = Some(found);
            return;
        }
        if other_resolvers {
            info!(before = %resolvers_before, now = %resolvers, "the resolvers of this node have changed");
        }
        if other_peers {
            info!(before = peers_before.len(), now = peers.len(), "the workloads of other hosts have changed");
        }
        let rules = self.overrides.rules();
        let failed = self.swap(self.candidate.clone(), &rules).err();
        let problem = failed.map(|e| {
            let (resolvers, addresses) = (&found.resolvers, found.peers.len());
            format!("put the resolvers {resolvers} and {addresses} addresses of other hosts in force: {e:#}")
        });
        self.tell("surroundings", problem);
    }
}
