//! SPIFFE IDs and the numbers made from them.

use std::fmt;

use agent_common::id::IdentityId;
use sha2::{Digest as _, Sha256};

/// A SPIFFE ID in canonical form: `spiffe://` + trust domain in lower case + path.
///
/// Source: SPIFFE-ID specification, section 2; policy.md, "Names".
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId(String);

/// Why a string is no SPIFFE ID.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// The scheme.
    #[error("it does not begin with `spiffe://`")]
    Scheme,
    /// The trust domain.
    #[error("the trust domain must be 1 to 255 of `a-z 0-9 . _ -`")]
    TrustDomain,
    /// A path segment.
    #[error("path segments must be `A-Z a-z 0-9 . _ -`, none empty, none `.` or `..`")]
    Path,
    /// The whole.
    #[error("it is longer than 2048 bytes")]
    Length,
}

impl SpiffeId {
    /// Reads a whole SPIFFE ID; scheme and trust domain may be in upper case.
    ///
    /// # Errors
    ///
    /// [`InvalidSpiffeId`], naming the first part that is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidSpiffeId> {
        if text.len() > 2048 {
            return Err(InvalidSpiffeId::Length);
        }
        let scheme = text.get(..9).ok_or(InvalidSpiffeId::Scheme)?;
        if !scheme.eq_ignore_ascii_case("spiffe://") {
            return Err(InvalidSpiffeId::Scheme);
        }
        let (domain, path) = match text[9..].split_once('/') {
            Some((domain, path)) => (domain, Some(path)),
            None => (&text[9..], None),
        };
        let domain = domain.to_ascii_lowercase();
        let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
        if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(legal) {
            return Err(InvalidSpiffeId::TrustDomain);
        }
        if let Some(path) = path {
            path.split('/').try_for_each(segment)?;
            return Ok(Self(format!("spiffe://{domain}/{path}")));
        }
        Ok(Self(format!("spiffe://{domain}")))
    }

    /// Returns the identity with this path in a trust domain.
    ///
    /// # Errors
    ///
    /// As [`SpiffeId::parse`].
    pub fn new(trust_domain: &str, path: &str) -> Result<Self, InvalidSpiffeId> {
        Self::parse(&format!("spiffe://{trust_domain}/{path}"))
    }

    /// The canonical form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its leading `/`; empty if there is none.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0[9..].split_once('/').map_or("", |(_, path)| path)
    }

    /// Returns the number: the first 8 bytes of SHA-256, big-endian, top bit cleared; hashed again
    /// with a suffix while it lands among the reserved ones.
    #[must_use]
    pub fn number(&self) -> IdentityId {
        IdentityId(hashed(self.0.as_bytes()) & !IdentityId::SET_BIT)
    }
}

/// Returns the number of a set of identities that share an address: top bit set.
///
/// Shape: `members` sorted and without duplicates.
#[must_use]
pub fn set_number(kind: &str, members: &[IdentityId]) -> IdentityId {
    let mut bytes = kind.as_bytes().to_vec();
    for member in members {
        bytes.push(0);
        bytes.extend(member.0.to_be_bytes());
    }
    IdentityId(hashed(&bytes) | IdentityId::SET_BIT)
}

fn hashed(bytes: &[u8]) -> u64 {
    let mut bytes = bytes.to_vec();
    loop {
        let digest = Sha256::digest(&bytes);
        let n = digest.iter().take(8).fold(0_u64, |n, &b| n << 8 | u64::from(b));
        if n & !IdentityId::SET_BIT >= IdentityId::FIRST_HASHED {
            return n;
        }
        bytes.push(b'+');
    }
}

fn segment(segment: &str) -> Result<(), InvalidSpiffeId> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    match segment {
        "" | "." | ".." => Err(InvalidSpiffeId::Path),
        s if s.bytes().all(legal) => Ok(()),
        _ => Err(InvalidSpiffeId::Path),
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trust_domain_is_lowered_and_the_path_kept() {
        let id = SpiffeId::parse("SPIFFE://Shop.Example.COM/Web").unwrap();
        assert_eq!(id.as_str(), "spiffe://shop.example.com/Web");
        assert_eq!(id.path(), "Web");
        assert_ne!(id.number(), SpiffeId::new("shop.example.com", "web").unwrap().number());
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        for (text, error) in [
            ("http://a/b", InvalidSpiffeId::Scheme),
            ("spiffe:/", InvalidSpiffeId::Scheme),
            ("spiffe:///b", InvalidSpiffeId::TrustDomain),
            ("spiffe://a:80/b", InvalidSpiffeId::TrustDomain),
            ("spiffe://a/", InvalidSpiffeId::Path),
            ("spiffe://a//b", InvalidSpiffeId::Path),
            ("spiffe://a/../b", InvalidSpiffeId::Path),
            ("spiffe://a/b?c", InvalidSpiffeId::Path),
            ("spiffe://a/b%20c", InvalidSpiffeId::Path),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(error), "{text}");
        }
        assert_eq!(SpiffeId::parse(&format!("spiffe://a/{}", "b".repeat(2048))), Err(InvalidSpiffeId::Length));
    }

    #[test]
    fn numbers_are_stable_and_sets_are_marked() {
        let web = SpiffeId::new("shop.example.com", "web").unwrap().number();
        assert_eq!(web.0, 0x0021_97f5_a4ca_2450);
        assert!(!web.is_set() && set_number("names", &[web]).is_set());
    }
}
