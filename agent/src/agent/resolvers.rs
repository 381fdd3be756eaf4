//! The resolvers of the built-in `dns`: read with every policy, and followed while one is in force.

use std::io;

use tracing::{info, warn};

use super::core::Core;
use crate::{
    policy::resolvers::Resolvers,
    sources::{resolv_conf, trust::shown},
};

/// Problem of `status`.
const PROBLEM: &str = "resolvers";

impl Core {
    /// The resolvers as the settings or the host name them now. What is wrong with the host's list is a problem of
    /// `status`; if it cannot be read, those in force stay.
    pub(super) fn read_resolvers(&mut self) -> Resolvers {
        if !self.config.dns {
            return Resolvers::default();
        }
        if let Some(resolvers) = &self.config.dns_resolvers {
            return resolvers.clone();
        }
        let file = shown(&self.config.resolv_conf);
        let (resolvers, problem) = match resolv_conf::read(&self.config.resolv_conf) {
            Ok(text) => {
                let (resolvers, problems) = Resolvers::of_resolv_conf(&file, &text);
                (resolvers, problems.join("; "))
            }
            Err(e) => (self.state.resolvers.clone(), unread(&file, &e, &self.state.resolvers)),
        };
        if problem.is_empty() {
            self.problems.remove(PROBLEM);
        } else if self.problems.get(PROBLEM) != Some(&problem) {
            warn!("{problem}");
            self.problems.insert(PROBLEM, problem);
        }
        resolvers
    }

    /// Puts other resolvers in force. They must be the same twice: a file that is being written may be read half.
    pub(super) fn follow_resolvers(&mut self) {
        let found = self.read_resolvers();
        if found == self.state.resolvers {
            self.resolvers_seen = None;
            return;
        }
        if self.resolvers_seen.as_ref() != Some(&found) {
            self.resolvers_seen = Some(found);
            return;
        }
        info!(before = %self.state.resolvers, now = %found, "the resolvers of this node have changed");
        let rules = self.overrides.rules();
        match self.swap(self.candidate.clone(), &rules) {
            Ok(_) => drop(self.problems.remove("dns")),
            Err(e) => drop(self.problems.insert("dns", format!("put the resolvers {found} in force: {e:#}"))),
        }
    }
}

fn unread(file: &str, e: &io::Error, in_force: &Resolvers) -> String {
    format!(
        "read the resolvers of this node from `{file}`: {e}; the built-in `dns` lets workloads ask {in_force}. Name them in \
         `dnsResolvers`, or write `dns: false`"
    )
}
