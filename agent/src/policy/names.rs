//! What a name in a policy can stand for.

use std::net::IpAddr;

use agent_common::id::IdentityId;

use super::model::Policy;
use crate::identity::spiffe::{InvalidSpiffeId, SpiffeId};

/// Everyone but `unknown`.
pub const ANY: &str = "any";
/// An address outside every known range.
pub const WORLD: &str = "world";
/// What has no identity yet; no rule can name it.
pub const UNKNOWN: &str = "unknown";
/// First segments of derived names that this version gives to endpoints.
pub const DERIVED: [&str; 4] = ["unit", "container", "user", "node"];

/// A name by its form alone; whether it is declared is not looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Form {
    /// `any`.
    Any,
    /// `world`.
    World,
    /// `unknown`.
    Unknown,
    /// A name that endpoints carry without being declared.
    Derived,
    /// `ip/203.0.113.9`, in tests only.
    Address(Option<IpAddr>),
    /// A word of the language that this version cannot honour.
    Unsupported,
    /// Anything else.
    Plain,
}

impl Form {
    /// Reads the form of a name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match name {
            ANY => return Self::Any,
            WORLD => return Self::World,
            UNKNOWN => return Self::Unknown,
            "nodes" | "kube-apiserver" => return Self::Unsupported,
            _ => {}
        }
        match name.split_once('/') {
            Some(("ip", address)) => Self::Address(address.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())),
            Some(("ns" | "pod", _)) => Self::Unsupported,
            Some((first, _)) if DERIVED.contains(&first) => Self::Derived,
            _ => Self::Plain,
        }
    }
}

/// Returns the name in the form that is compared, and its identity: a path in the trust domain, or
/// the whole ID if it lies in another one.
///
/// # Errors
///
/// [`InvalidSpiffeId`]; an ID without a path names nobody.
pub fn canonical(trust_domain: &str, written: &str) -> Result<(String, SpiffeId), InvalidSpiffeId> {
    let is_full = written.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("spiffe://"));
    let id = if is_full { SpiffeId::parse(written)? } else { SpiffeId::new(trust_domain, written)? };
    if id.path().is_empty() {
        return Err(InvalidSpiffeId::Path);
    }
    let inside = id.as_str()[9..].split_once('/').is_some_and(|(domain, _)| domain == trust_domain);
    let name = if inside { id.path().to_owned() } else { id.as_str().to_owned() };
    Ok((name, id))
}

impl Policy {
    /// Returns the number that a single party carries. Groups, and names that are no SPIFFE path, have
    /// none.
    ///
    /// Shape: `any` is the wildcard, `world` its reserved number, all else is hashed.
    #[must_use]
    pub fn identity_of(&self, name: &str) -> Option<IdentityId> {
        match name {
            ANY => return Some(IdentityId::ANY),
            WORLD => return Some(IdentityId::WORLD),
            _ => {}
        }
        if let Some(workload) = self.workloads.get(name) {
            return Some(workload.id.number());
        }
        if let Some(external) = self.externals.get(name) {
            return Some(external.id.number());
        }
        match Form::of(name) {
            Form::Derived => canonical(&self.trust_domain, name).ok().map(|(_, id)| id.number()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_id_and_its_path_are_one_name() {
        let td = "shop.example.com";
        assert_eq!(canonical(td, "pay/api").unwrap(), canonical(td, "SPIFFE://Shop.Example.com/pay/api").unwrap());
        assert_eq!(canonical(td, "spiffe://other/x").unwrap().0, "spiffe://other/x");
        assert_eq!(canonical(td, "spiffe://other"), Err(InvalidSpiffeId::Path));
        assert_eq!(canonical(td, "a//b"), Err(InvalidSpiffeId::Path));
    }

    #[test]
    fn a_name_is_told_by_its_form() {
        assert_eq!(Form::of("unit/nginx.service"), Form::Derived);
        assert_eq!(Form::of("unit"), Form::Plain);
        assert_eq!(Form::of("ip/::ffff:10.0.0.1"), Form::Address(Some("10.0.0.1".parse().unwrap())));
        assert_eq!(Form::of("ip/x"), Form::Address(None));
        assert_eq!(Form::of("ns/shop/sa/web"), Form::Unsupported);
    }
}
