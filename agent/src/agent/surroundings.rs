//! What a node knows beside its policy and compiles into it: read with every policy, and followed while one is in force.

use std::sync::Arc;

use tracing::info;

use super::core::Core;
use crate::policy::{map_state::MapState, model::Policy, peers::Peers, resolvers::Resolvers};

/// Problem of `status`.
const DEAF: &str = "the policy knows externals by DNS names, and no resolver of this node is known whose answers would tell \
                    their addresses: name them in `dnsResolvers`";

/// Whom others are, as far as no policy says it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Surroundings {
    /// The resolvers of this node, if anybody asks for them.
    pub resolvers: Resolvers,
    /// Whether the built-in `dns` lets every workload ask them.
    pub built_in: bool,
    /// Workloads of other hosts.
    pub peers: Peers,
}

impl Surroundings {
    /// Those of a policy that was compiled with them.
    #[must_use]
    pub fn of(state: &MapState) -> Self {
        let built_in = !state.resolvers.addresses().is_empty();
        Self { resolvers: state.answers.clone(), built_in, peers: state.peers.clone() }
    }
}

impl Core {
    /// Those of a policy that is in force, or will be.
    pub(super) fn read_surroundings(&mut self, policy: &Policy) -> Surroundings {
        let built_in = self.config.dns;
        let names = policy.externals.values().any(|external| !external.dns.is_empty());
        let resolvers = if built_in || names { self.read_resolvers() } else { Resolvers::default() };
        let deaf = names && resolvers.addresses().is_empty();
        self.tell("dns", deaf.then(|| DEAF.to_owned()));
        Surroundings { resolvers, built_in, peers: self.read_peers() }
    }

    /// Puts others in force. They must be the same twice: a file that is being written may be read half.
    pub(super) fn follow_surroundings(&mut self) {
        let policy = Arc::clone(&self.candidate.policy);
        let found = self.read_surroundings(&policy);
        let Surroundings { resolvers, peers, .. } = &found;
        let MapState { answers: resolvers_before, peers: peers_before, .. } = &*self.state;
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
