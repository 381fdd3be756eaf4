//! Who dropped a flow? What is known about it on this host, layer by layer, and how sure that is.

mod denials;
mod nft;
mod route;
mod sockets;
mod tuple;
mod xdp;

use std::fmt;

use serde::Serialize;
use serde_json::Value;

pub use self::tuple::{InvalidTuple, Tuple};
use super::Holders;

/// How sure a clue is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// It happened to this flow, or happens to each packet of it.
    Evidence,
    /// It could drop this flow. Whether it did is not known.
    Suspect,
    /// Looked at: it lets this flow pass, or does not concern it.
    Cleared,
    /// Could not be looked at.
    Unknown,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evidence => "EVIDENCE",
            Self::Suspect => "suspect",
            Self::Cleared => "cleared",
            Self::Unknown => "unknown",
        })
    }
}

/// Something that is known about a flow.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Clue {
    /// How sure it is.
    pub weight: Weight,
    /// Whose doing it is: `eastwall`, `routing`, `nftables`, `programs`, `socket`.
    pub layer: &'static str,
    /// What was found.
    pub found: String,
}

impl Clue {
    fn new(weight: Weight, layer: &'static str, found: impl Into<String>) -> Self {
        Self { weight, layer, found: found.into() }
    }
}

/// What the agent said about a flow.
#[derive(Clone, Debug, Default)]
pub struct AgentSaid {
    /// The newest denials, as OCSF records.
    pub denials: Vec<Value>,
    /// Whether policy allows the flow now, and why.
    pub policy: Option<(bool, String)>,
    /// Programs of others, each with where it is attached.
    pub programs: Vec<Foreign>,
    /// Why it said less than it could.
    pub silent: Option<String>,
}

/// A program that is not eastwall's.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// The index of the device that it is at; `None` = it is at a cgroup.
    pub device: Option<u32>,
    /// Where it is and what it is.
    pub said: String,
}

/// Looks at all layers of this host; `holders` are those of programs. The surest clues come first.
#[must_use]
pub fn look(tuple: &Tuple, said: &AgentSaid, holders: &Holders) -> Vec<Clue> {
    let way = route::look(tuple);
    let mut clues = denials::look(tuple, said);
    clues.extend(way.clues);
    clues.extend(programs(said, &way.devices));
    clues.extend(xdp::look(&way.devices, holders));
    clues.extend(nft::look(tuple));
    clues.extend(sockets::look(tuple));
    clues.sort_by_key(|clue| clue.weight);
    clues
}

/// Programs of others on the way. A device that the flow does not pass clears those that are there.
fn programs(said: &AgentSaid, way: &[u32]) -> Vec<Clue> {
    let on_the_way = |foreign: &&Foreign| foreign.device.is_none_or(|device| way.contains(&device));
    let clues: Vec<Clue> = said
        .programs
        .iter()
        .filter(on_the_way)
        .map(|foreign| Clue::new(Weight::Suspect, "programs", foreign.said.clone()))
        .collect();
    if clues.is_empty() && said.silent.is_none() {
        let found = "no program of others at the devices that eastwall guards on the way, nor in the guarded cgroup";
        return vec![Clue::new(Weight::Cleared, "programs", found)];
    }
    clues
}
