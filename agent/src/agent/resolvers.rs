//! The resolvers of this node: the built-in `dns` lets every workload ask them, and their answers name externals.

use std::io;

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
        if let Some(resolvers) = &self.config.dns_resolvers {
            return resolvers.clone();
        }
        let file = shown(&self.config.resolv_conf);
        let (resolvers, problem) = match resolv_conf::read(&self.config.resolv_conf) {
            Ok(text) => {
                let (resolvers, problems) = Resolvers::of_resolv_conf(&file, &text);
                (resolvers, problems.join("; "))
            }
            Err(e) => (self.state.answers.clone(), unread(&file, &e, &self.state.answers)),
        };
        self.tell(PROBLEM, Some(problem).filter(|problem| !problem.is_empty()));
        resolvers
    }
}

fn unread(file: &str, e: &io::Error, in_force: &Resolvers) -> String {
    format!(
        "read the resolvers of this node from `{file}`: {e}; the built-in `dns` lets workloads ask {in_force}. Name them in \
         `dnsResolvers`, or write `dns: false`"
    )
}
