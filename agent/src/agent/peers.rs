//! Workloads of other hosts.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use tracing::warn;

use super::core::Core;
use crate::{
    policy::peers::Peers,
    sources::{
        policy_dir::{self, Trust},
        trust::shown,
    },
};

/// Problem of `status`.
const PROBLEM: &str = "peers";

impl Core {
    /// The workloads of other hosts as the file names them now. If it cannot be used, those in force stay; at a start,
    /// those of the last file that could.
    pub(super) fn read_peers(&mut self) -> Peers {
        let Some(path) = self.config.peers_file.clone() else {
            return Peers::default();
        };
        let (peers, problem) = match self.try_read_peers(&path) {
            Ok(peers) => {
                let problem = self.undeclared(&peers);
                (peers, problem)
            }
            Err(e) => {
                let last = if self.state.peers.is_empty() { self.store.last_peers() } else { None };
                let problem = format!("the workloads of other hosts stay what they were: {e:#}");
                (last.unwrap_or_else(|| self.state.peers.clone()), Some(problem))
            }
        };
        self.tell(PROBLEM, problem);
        peers
    }

    fn try_read_peers(&self, path: &Path) -> Result<Peers> {
        let text = policy_dir::read_one(path, Trust::ROOT)?.text;
        let peers = Peers::parse(&shown(path), &text)?;
        if peers != self.state.peers
            && let Err(e) = self.store.keep_peers(&text)
        {
            warn!("the workloads of other hosts are not kept for a start at which the file cannot be used: {e}");
        }
        Ok(peers)
    }

    /// Names that policy does not declare, for people: their addresses are `unknown`.
    fn undeclared(&self, peers: &Peers) -> Option<String> {
        let workloads = &self.candidate.policy.workloads;
        let names = peers.iter().flat_map(|(_, names)| names).filter(|name| !workloads.contains_key(*name));
        let names: Vec<&str> = names.map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect();
        (!names.is_empty()).then(|| {
            format!("policy declares no workload `{}`: its addresses on other hosts are `unknown`", names.join("`, `"))
        })
    }
}
