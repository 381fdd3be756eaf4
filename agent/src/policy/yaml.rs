//! YAML as a tree that remembers where everything stands.
//!
//! The tree keeps duplicate keys and numbers as they were written, so that [`super::file`] can refuse
//! or read them with their place. What policy files must not use (anchors, aliases, unknown tags,
//! deep nesting) is refused here.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, MergeKeyPolicy, NonFiniteFloatPolicy, Spanned};

/// Levels of nesting that a file may have. A policy needs nine.
const DEPTH_MAX: usize = 32;
/// Nodes and scalars that a file of the largest size can hold, each at least one byte and a separator.
const NODES_MAX: usize = super::file::FILE_BYTES_MAX;

/// Where a node stands in its file.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct At {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// Characters to underline; 0 for a block.
    pub width: u32,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub at: At,
    /// What it is.
    pub value: Value,
}

/// What stands at a place.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, or `null`.
    Null,
    /// Text; numbers and booleans as they were written.
    Text(String),
    /// In the order of the file.
    List(Vec<Node>),
    /// In the order of the file, duplicates included.
    Map(Vec<(Node, Node)>),
}

/// Why a text is no YAML of the kind that policy files may hold.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidYaml {
    /// Where, as far as it is known.
    pub at: At,
    /// What the parser says, lower case, no full stop.
    pub message: String,
}

/// Reads all documents of a file; empty documents are left out.
///
/// # Errors
///
/// [`InvalidYaml`] with the first place that cannot be read.
pub fn parse(text: &str) -> Result<Vec<Node>, InvalidYaml> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        reject_unsupported_tags: true,
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: NODES_MAX.saturating_mul(2),
            max_total_scalar_bytes: NODES_MAX,
        },
    };
    let mut nodes: Vec<Node> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let at = error.location().map(|location| At::from(&location)).unwrap_or_default();
        InvalidYaml { at, message: message(&error) }
    })?;
    let lines = Lines::new(text);
    nodes.iter_mut().for_each(|node| restore(node, &lines));
    Ok(nodes)
}

/// Returns what the parser says, without the place, which a finding shows by itself.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(before, _)| before);
    if text.contains("Anchors") || text.contains("Aliases") {
        return "anchors and aliases are not allowed: every rule must read the same where it stands".to_owned();
    }
    if text.contains("Depth") {
        return format!("nested deeper than {DEPTH_MAX} levels");
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// The lines of a text, for taking numbers as they were written.
struct Lines<'a>(Vec<&'a str>);

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.trim_start_matches('\u{feff}').lines().collect())
    }

    fn slice(&self, at: At) -> Option<String> {
        let line = self.0.get(usize::try_from(at.line).ok()?.checked_sub(1)?)?;
        let skip = usize::try_from(at.column).ok()?.checked_sub(1)?;
        Some(line.chars().skip(skip).take(usize::try_from(at.width).ok()?).collect())
    }
}

/// Replaces what the parser made of numbers by what the file says: `1.10` stays `1.10`.
fn restore(node: &mut Node, lines: &Lines<'_>) {
    match &mut node.value {
        Value::Null => {}
        Value::Text(text) => {
            if let Some(written) = text.strip_prefix(NUMBER).and_then(|_| lines.slice(node.at)) {
                *text = written;
            } else if let Some(parsed) = text.strip_prefix(NUMBER) {
                *text = parsed.to_owned();
            }
        }
        Value::List(items) => items.iter_mut().for_each(|item| restore(item, lines)),
        Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            restore(key, lines);
            restore(value, lines);
        }),
    }
}

/// Marks text that the parser took for a number or boolean. YAML forbids the character in a file.
const NUMBER: char = '\0';

impl From<&Location> for At {
    fn from(location: &Location) -> Self {
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self { line: narrow(location.line()), column: narrow(location.column()), width: narrow(location.span().len()) }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: At::from(&spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl AnyValue {
    fn number<E>(n: impl fmt::Display) -> Result<Value, E> {
        Ok(Value::Text(format!("{NUMBER}{n}")))
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        // A quoted escape can still write it.
        if text.contains(NUMBER) {
            return Err(E::custom("text may not hold the character NUL"));
        }
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Self::number(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Self::number(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Self::number(value)
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Self::number(value)
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Self::number(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Self::number(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Node, Node>()? {
            entries.push((key, value));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Node {
        let mut nodes = parse(text).unwrap();
        assert_eq!(nodes.len(), 1, "{text}");
        nodes.remove(0)
    }

    fn texts(node: &Node) -> Vec<&str> {
        let Value::List(items) = &node.value else { panic!("{node:?}") };
        items
            .iter()
            .map(|item| match &item.value {
                Value::Text(text) => text.as_str(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn scalars_stay_as_they_were_written() {
        let node = only("[no, 1.10, 0x1F, 007, true, 2036-01-31T00:00:00Z, '5', 99999999999999999999999]");
        assert_eq!(
            texts(&node),
            ["no", "1.10", "0x1F", "007", "true", "2036-01-31T00:00:00Z", "5", "99999999999999999999999"]
        );
    }

    #[test]
    fn places_count_characters_and_survive_a_byte_order_mark() {
        for text in ["a: [é, b, 12]\r\n", "\u{feff}a: [é, b, 12]\r\n"] {
            let Value::Map(entries) = only(text).value else { panic!() };
            let Value::List(items) = &entries[0].1.value else { panic!() };
            assert_eq!(items[1].at, At { line: 1, column: 8, width: 1 });
            assert_eq!(items[2].value, Value::Text("12".to_owned()), "{text:?}");
        }
    }

    #[test]
    fn duplicates_and_merge_keys_are_kept_for_the_reader() {
        let Value::Map(entries) = only("{a: 1, a: 2, <<: {b: c}}").value else { panic!() };
        assert_eq!(entries.len(), 3);
    }

    #[test]
    fn what_a_policy_may_not_use_is_refused_with_its_place() {
        for (text, line, part) in [
            ("a: &x 1", 1, "aliases"),
            ("\na: *x", 2, "alias"),
            ("a: !foo b", 1, "tag"),
            ("a: [", 1, "unclosed"),
            ("a: \"\\0\"", 1, "NUL"),
            (&format!("a: {}{}", "[".repeat(40), "]".repeat(40)), 1, "levels"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains(part) && error.at.line == line, "{text}: {error:?}");
        }
    }

    #[test]
    fn empty_documents_are_left_out() {
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("---\n# nothing\n---\na: b\n---\n").unwrap().len(), 1);
    }
}
