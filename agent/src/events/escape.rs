//! Makes foreign bytes harmless, once and reversibly.
//!
//! Process names, paths, cgroup and unit names are chosen by whoever runs the workload: they are
//! bytes. Source: events.md, section 9:
//!
//! > Printable ASCII stays. `\` becomes `\\`. Every other byte, and a space at either end, becomes
//! > `\xNN` (lower case).
//!
//! The result is one line of visible ASCII, so no format and no terminal can be broken by a name.

use std::fmt::Write as _;

/// Most characters of the name of a process, a device or a program: 15 bytes, all of them escaped.
pub const KERNEL_NAME_CHARS_MAX: usize = 60;
/// Most characters of the name of a unit, a container, a service.
pub const NAME_CHARS_MAX: usize = 256;
/// Most characters of a path.
pub const PATH_CHARS_MAX: usize = 1024;

/// A foreign string after the rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Escaped {
    /// Visible ASCII, at most the limit long.
    pub text: String,
    /// The limit was reached: the text stands for the beginning of the bytes only.
    pub truncated: bool,
}

/// Why a text was not made by [`escape`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidEscape {
    /// A byte that the rule replaces stands there as it is.
    #[error("the byte at {at} is not printable ASCII")]
    Raw {
        /// Index of the byte.
        at: usize,
    },
    /// A backslash without `\` or `xNN` after it.
    #[error("the backslash at {at} begins neither `\\\\` nor `\\xNN`")]
    Sequence {
        /// Index of the backslash.
        at: usize,
    },
}

/// Returns `bytes` under the rule, at most `chars_max` characters of it.
///
/// A cut never splits an escape, and never ends in a space: that space would read as part of the
/// sentence around the name.
#[must_use]
pub fn escape(bytes: &[u8], chars_max: usize) -> Escaped {
    let mut text = String::with_capacity(bytes.len().min(chars_max));
    for (i, &byte) in bytes.iter().enumerate() {
        let at_edge = i == 0 || i + 1 == bytes.len();
        let before = text.len();
        match byte {
            b'\\' => text.push_str(r"\\"),
            b' ' if at_edge => text.push_str(r"\x20"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => write!(text, "\\x{byte:02x}").expect("writing into a string cannot fail"),
        }
        if text.len() > chars_max {
            text.truncate(before);
            text.truncate(text.trim_end_matches(' ').len());
            return Escaped { text, truncated: true };
        }
    }
    Escaped { text, truncated: false }
}

/// Returns the bytes that a text stands for.
///
/// # Errors
///
/// [`InvalidEscape`], naming the first place that [`escape`] does not write.
pub fn unescape(text: &str) -> Result<Vec<u8>, InvalidEscape> {
    let text = text.as_bytes();
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += match byte {
            b'\\' => match (text.get(at + 1), text.get(at + 2).zip(text.get(at + 3))) {
                (Some(b'\\'), _) => {
                    bytes.push(b'\\');
                    2
                }
                (Some(b'x'), Some((&hi, &lo))) => {
                    let (hi, lo) = hex(hi).zip(hex(lo)).ok_or(InvalidEscape::Sequence { at })?;
                    bytes.push(hi << 4 | lo);
                    4
                }
                _ => return Err(InvalidEscape::Sequence { at }),
            },
            b' '..=b'~' => {
                bytes.push(byte);
                1
            }
            _ => return Err(InvalidEscape::Raw { at }),
        };
    }
    Ok(bytes)
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Row {
        case: String,
        raw_hex: String,
        text: String,
        json: String,
    }

    fn rows() -> Vec<(Row, Vec<u8>)> {
        include_str!("../../tests/samples/hostile-names.jsonl")
            .lines()
            .map(|line| {
                let row: Row = serde_json::from_str(line).unwrap();
                let raw =
                    row.raw_hex.as_bytes().chunks(2).map(|pair| hex(pair[0]).unwrap() << 4 | hex(pair[1]).unwrap());
                let raw = raw.collect();
                (row, raw)
            })
            .collect()
    }

    #[test]
    fn every_hostile_name_reads_as_the_samples_say() {
        let rows = rows();
        assert_eq!(rows.len(), 35);
        for (row, raw) in rows {
            let escaped = escape(&raw, NAME_CHARS_MAX);
            assert_eq!(escaped, Escaped { text: row.text, truncated: false }, "{}", row.case);
            assert_eq!(serde_json::to_string(&escaped.text).unwrap(), row.json, "{}", row.case);
            assert_eq!(unescape(&escaped.text), Ok(raw), "{}", row.case);
        }
    }

    #[test]
    fn a_cut_splits_no_escape_and_ends_in_no_space() {
        let cut = |bytes: &[u8], max| escape(bytes, max).text;
        assert_eq!(cut(b"ab\ncd", 5), "ab");
        assert_eq!(cut(b"ab\ncd", 6), "ab\\x0a");
        assert_eq!(cut(b"a \\b", 3), "a");
        assert_eq!(cut(b"abc", 3), "abc");
        assert!(!escape(b"abc", 3).truncated && escape(b"abcd", 3).truncated);
        assert_eq!(escape(&[0xff; 15], KERNEL_NAME_CHARS_MAX).text.len(), 60);
    }

    #[test]
    fn what_the_rule_never_writes_is_refused() {
        for (text, error) in [
            ("a\nb", InvalidEscape::Raw { at: 1 }),
            ("caf\u{e9}", InvalidEscape::Raw { at: 3 }),
            ("a\\", InvalidEscape::Sequence { at: 1 }),
            ("\\x0", InvalidEscape::Sequence { at: 0 }),
            ("\\x0G", InvalidEscape::Sequence { at: 0 }),
            ("\\n", InvalidEscape::Sequence { at: 0 }),
        ] {
            assert_eq!(unescape(text), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_from_visible_ascii(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let escaped = escape(&raw, usize::MAX);
            prop_assert!(escaped.text.bytes().all(|b| (b' '..=b'~').contains(&b)));
            prop_assert!(!escaped.text.starts_with(' ') && !escaped.text.ends_with(' '));
            prop_assert_eq!(unescape(&escaped.text), Ok(raw));
        }

        #[test]
        fn a_cut_text_is_a_beginning_within_the_limit(
            raw in proptest::collection::vec(any::<u8>(), 0..100),
            max in 0_usize..120,
        ) {
            let escaped = escape(&raw, max);
            prop_assert!(escaped.text.len() <= max);
            let back = unescape(&escaped.text).unwrap();
            prop_assert!(raw.starts_with(&back));
            prop_assert_eq!(escaped.truncated, back.len() < raw.len());
        }
    }
}
