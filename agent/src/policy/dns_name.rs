//! DNS names of externals: how they are written, and what they match.

use std::fmt;

use agent_common::layout::{DNS_TEXT_BYTES, NameKey};

/// A DNS name, or all names below one: `api.partner.example` or `*.partner.example`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct DnsName {
    /// In lower case, without a dot at its end; of `*.partner.example` what follows the star and its dot.
    name: String,
    /// All names below it, and not itself.
    below: bool,
}

/// Longest name, in characters: what is compared, without the end.
const LENGTH_MAX: usize = DNS_TEXT_BYTES - 1;

/// Why a text is no DNS name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidDnsName {
    /// It is an address.
    #[error("`{0}` is an address, which has no DNS name; write it as a range in `cidrs`")]
    Address(String),
    /// A star at another place.
    #[error(
        "`{0}` has a star inside; one stands for all names below another, as the whole first label: `*.partner.example`"
    )]
    Star(String),
    /// A letter beyond ASCII.
    #[error("`{0}` is not written as DNS has it; write the form that begins with `xn--`")]
    Unicode(String),
    /// A label.
    #[error("`{0}` is no DNS name: its labels have 1 to 63 of `a-z 0-9 - _`, as in `api.partner.example`")]
    Label(String),
    /// Its length.
    #[error("`{name}` has {} characters, and {LENGTH_MAX} are the most that are compared", name.len())]
    Long {
        /// As it stood.
        name: String,
    },
}

impl DnsName {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// [`InvalidDnsName`].
    pub fn parse(text: &str) -> Result<Self, InvalidDnsName> {
        let written = || text.to_owned();
        let is_address = text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        if is_address || text.contains('/') {
            return Err(InvalidDnsName::Address(written()));
        }
        if !text.is_ascii() {
            return Err(InvalidDnsName::Unicode(written()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let (name, below) = name.strip_prefix("*.").map_or((name, false), |name| (name, true));
        if name.contains('*') {
            return Err(InvalidDnsName::Star(written()));
        }
        let is_legal = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if !name.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(is_legal)) {
            return Err(InvalidDnsName::Label(written()));
        }
        if name.len() + usize::from(below) > LENGTH_MAX {
            return Err(InvalidDnsName::Long { name: written() });
        }
        Ok(Self { name: name.to_ascii_lowercase(), below })
    }

    /// Says whether a name that somebody asked for, in lower case and without a dot at its end, is meant.
    #[must_use]
    pub fn matches(&self, asked: &str) -> bool {
        if self.below {
            asked.strip_suffix(&self.name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        } else {
            asked == self.name
        }
    }

    /// Says whether every name that `other` means is meant.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self.below, other.below) {
            (false, true) => false,
            (true, true) => self.name == other.name || self.matches(&other.name),
            (_, false) => self.matches(&other.name),
        }
    }

    /// The key under which the kernel side finds it.
    #[must_use]
    pub fn key(&self) -> NameKey {
        let mut key = NameKey::default();
        let end = if self.below { b'.' } else { 0 };
        let text = self.name.bytes().rev().chain([end]);
        for (place, byte) in key.text.iter_mut().zip(text) {
            *place = byte;
        }
        key.bits = u32::try_from(8 * (self.name.len() + 1)).unwrap_or(u32::MAX);
        key
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

/// The reverse of [`DnsName::key`].
#[must_use]
pub fn written(key: &NameKey) -> String {
    let text = key.text.iter().take(key.bits as usize / 8).map(|byte| char::from(*byte));
    let text: String = text.collect::<Vec<_>>().into_iter().rev().collect();
    match text.strip_prefix('\0') {
        Some(name) => name.to_owned(),
        None => format!("*{text}"),
    }
}

#[cfg(test)]
mod tests {
    use agent_common::parse::dns;

    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    #[test]
    fn names_are_read_as_people_write_them() {
        for (text, shown) in [
            ("API.partner.example", "api.partner.example"),
            ("api.partner.example.", "api.partner.example"),
            ("*.Partner.example", "*.partner.example"),
            ("_ldap._tcp.corp", "_ldap._tcp.corp"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(name(text).to_string(), shown);
            assert_eq!(written(&name(text).key()), shown);
        }
    }

    #[test]
    fn what_is_no_name_says_why() {
        let long = format!("{}.example", ["a234567890"; 12].join("."));
        for (text, why) in [
            ("10.0.0.1", "write it as a range in `cidrs`"),
            ("2001:db8::1", "write it as a range"),
            ("[::1]", "write it as a range"),
            ("10.0.0.0/8", "write it as a range"),
            ("*", "has a star inside"),
            ("a.*.example", "has a star inside"),
            ("a*.example", "has a star inside"),
            ("*.*.example", "has a star inside"),
            ("bücher.example", "begins with `xn--`"),
            ("", "is no DNS name"),
            (".", "is no DNS name"),
            ("a..example", "is no DNS name"),
            (".example", "is no DNS name"),
            ("a b.example", "is no DNS name"),
            ("https:", "is no DNS name"),
            (&format!("{}.example", "a".repeat(64)), "is no DNS name"),
            (&long, "139 characters, and 127 are the most"),
        ] {
            let error = DnsName::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_star_means_all_names_below_and_not_the_name_itself() {
        let below = name("*.partner.example");
        for (asked, meant) in [
            ("api.partner.example", true),
            ("a.b.partner.example", true),
            ("partner.example", false),
            (".partner.example", false),
            ("xpartner.example", false),
            ("partner.example.com", false),
        ] {
            assert_eq!(below.matches(asked), meant, "{asked}");
        }
        assert!(name("a.example").matches("a.example") && !name("a.example").matches("b.a.example"));
        assert!(
            below.covers(&name("*.api.partner.example")) && below.covers(&below) && !below.covers(&name("*.example"))
        );
        assert!(!name("api.partner.example").covers(&below) && below.covers(&name("api.partner.example")));
    }

    #[test]
    fn the_key_of_a_name_covers_that_of_what_it_means_and_of_nothing_else() {
        let names =
            ["partner.example", "*.partner.example", "api.partner.example", "*.example", "example", "*.a.example"];
        let asked =
            ["partner.example", "api.partner.example", "b.a.example", "a.example", "example", "xpartner.example"];
        let deep = format!("{}.api.partner.example", ["a234567890"; 15].join("."));
        for asked in asked.into_iter().chain([deep.as_str()]) {
            let mut text = [0; dns::NAME_BYTES];
            text[..asked.len()].copy_from_slice(asked.as_bytes());
            let mut looked_up = NameKey::default();
            dns::key(&text, u32::try_from(asked.len()).unwrap(), &mut looked_up);
            for written in names {
                let key = name(written).key();
                let bytes = key.bits as usize / 8;
                let found = key.bits <= looked_up.bits && key.text[..bytes] == looked_up.text[..bytes];
                assert_eq!(found, name(written).matches(asked), "{written} {asked}");
            }
        }
    }
}
