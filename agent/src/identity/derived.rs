//! Names for what policy does not declare, so that no event ever says "unknown process".
//!
//! Source: policy.md, section 3. Each function returns a path for [`super::spiffe::SpiffeId::new`]; it
//! is legal whatever the input, and different inputs give different paths.

use sha2::{Digest as _, Sha256};

use super::ground::Trusted;

/// Longest segment that is written as it is, in bytes: NAME_MAX of Linux, so only made-up input is cut.
const SEGMENT_MAX: usize = 255;

/// Digits of a container id in its name. Twelve is what `docker ps` and `podman ps` print.
const CONTAINER_DIGITS: usize = 12;

/// Returns the name of an endpoint that no declared workload matches.
///
/// A login session and everything that a user's own systemd starts is `user/<uid>`: the user can name
/// those units at will. What the system's manager runs in the user's slice keeps its unit.
#[must_use]
pub fn of(facts: &Trusted) -> Option<String> {
    match (&facts.container, &facts.unit, facts.user) {
        (Some(id), _, _) => Some(container(id)),
        (None, Some(unit), Some(uid)) if unit.ends_with(".scope") || unit.starts_with("user@") => Some(user(uid)),
        (None, Some(name), _) => Some(unit(name)),
        (None, None, _) => None,
    }
}

/// Returns `unit/<unit>`; of a template instance `unit/<template>/<instance>`.
#[must_use]
pub fn unit(name: &str) -> String {
    let instance = name.rsplit_once('.').and_then(|(stem, suffix)| {
        let (template, instance) = stem.split_once('@')?;
        (!template.is_empty() && !instance.is_empty()).then(|| (format!("{template}.{suffix}"), instance))
    });
    match instance {
        Some((template, instance)) => format!("unit/{}/{}", segment(&template), segment(instance)),
        None => format!("unit/{}", segment(name)),
    }
}

/// Returns `container/<id>`, the id in its short form.
#[must_use]
pub fn container(id: &str) -> String {
    // An ECS id is told from its siblings by its end, so it is kept whole.
    let short = if id.contains('-') { id } else { id.get(..CONTAINER_DIGITS).unwrap_or(id) };
    format!("container/{}", segment(short))
}

/// Returns `user/<uid>`.
#[must_use]
pub fn user(uid: u32) -> String {
    format!("user/{uid}")
}

/// Returns `node/<host>`: the rest of the host.
#[must_use]
pub fn node(host: &str) -> String {
    format!("node/{}", segment(host))
}

/// Returns `text` as one SPIFFE path segment.
///
/// Foreign characters become `_`, and the segment gets `.h` and 6 hex digits of the SHA-256 of the
/// original, so that two names cannot become one. A legal name that already ends like that gets its
/// own digits too: otherwise it could be written to look like another.
#[must_use]
pub fn segment(text: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_dots = text.chars().all(|c| c == '.');
    if !is_dots && text.len() <= SEGMENT_MAX && text.chars().all(legal) && !looks_escaped(text) {
        return text.to_owned();
    }
    let digest = Sha256::digest(text.as_bytes());
    let kept = text.chars().take(SEGMENT_MAX).map(|c| if legal(c) && !is_dots { c } else { '_' });
    let kept: String = kept.collect();
    format!("{kept}.h{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
}

fn looks_escaped(text: &str) -> bool {
    text.rsplit_once(".h")
        .is_some_and(|(_, end)| end.len() == 6 && end.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::spiffe::SpiffeId;

    #[test]
    fn units_keep_their_names_and_templates_split() {
        assert_eq!(unit("nginx.service"), "unit/nginx.service");
        assert_eq!(unit("postgresql@15-main.service"), "unit/postgresql.service/15-main");
        assert_eq!(unit("getty@.service"), format!("unit/{}", segment("getty@.service")));
        assert!(unit("dev-disk-by\\x2dlabel-swap.swap").starts_with("unit/dev-disk-by_x2dlabel-swap.swap.h"));
        assert!(unit("a@...service").starts_with("unit/a.service/__.h"));
    }

    #[test]
    fn names_that_differ_only_in_foreign_characters_stay_different() {
        let names = ["a:b.service", "a_b.service", "a\\b.service", "a;b.service"].map(unit);
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name}");
        }
    }

    #[test]
    fn a_unit_cannot_be_named_like_the_escaped_form_of_another() {
        let escaped = segment("a:b.service");
        assert_ne!(segment(&escaped), escaped);
    }

    #[test]
    fn sessions_belong_to_the_user_and_system_units_in_the_slice_do_not() {
        let facts = |unit: &str| Trusted { unit: Some(unit.into()), user: Some(1000), ..Trusted::default() };
        assert_eq!(of(&facts("session-3.scope")).unwrap(), "user/1000");
        assert_eq!(of(&facts("user@1000.service")).unwrap(), "user/1000");
        assert_eq!(of(&facts("user-runtime-dir@1000.service")).unwrap(), "unit/user-runtime-dir.service/1000");
        assert_eq!(of(&Trusted::default()), None);
        assert_eq!(container(&"ab".repeat(32)), "container/abababababab");
        assert_eq!(node("db-1"), "node/db-1");
    }

    proptest! {
        #[test]
        fn every_name_is_a_legal_path(text in any::<String>(), uid in any::<u32>()) {
            for path in [unit(&text), container(&text), node(&text), user(uid), unit(&format!("a@{text}.service"))] {
                prop_assert!(SpiffeId::new("example.com", &path).is_ok(), "{}", path);
            }
        }

        #[test]
        fn different_texts_give_different_segments(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(a == b, segment(&a) == segment(&b));
        }
    }
}
