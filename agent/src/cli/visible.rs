//! Text that shows what is in it: whoever chose a name, a reason or a file name moves no cursor, forges no
//! line and hides nothing, on a terminal or in a file that is shown on one later.
//!
//! Source: security.md, S18.

/// Returns text as one line of visible characters.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        push(&mut escaped, c);
    }
    escaped
}

/// As [`escape`], but lines stay lines. With `color`, so do the sequences that set colours.
#[must_use]
pub fn lines(text: &str, color: bool) -> String {
    let mut visible = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colored = if color { color_sequence(rest) } else { None };
        let taken = match colored {
            Some(sequence) => {
                visible.push_str(sequence);
                sequence.len()
            }
            None if c == '\n' || c == '\t' => {
                visible.push(c);
                1
            }
            None => {
                push(&mut visible, c);
                c.len_utf8()
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    visible
}

/// Returns JSON that means the same and has visible characters only.
#[must_use]
pub fn json(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        // Between strings stand line feeds and nothing else that is hidden.
        if c == '\n' || !is_hidden(c) {
            visible.push(c);
        } else {
            let mut units = [0; 2];
            visible.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    visible
}

/// Says whether a text has something that nobody sees.
#[must_use]
pub fn has_hidden(text: &str) -> bool {
    text.chars().any(|c| c != '\n' && is_hidden(c))
}

fn push(text: &mut String, c: char) {
    if c.is_control() {
        text.extend(c.escape_default());
    } else if is_hidden(c) {
        text.extend(c.escape_unicode());
    } else {
        text.push(c);
    }
}

/// `ESC [ 1 ; 31 m` at the beginning of a text. Concealing is no colour.
fn color_sequence(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    let is_color = parameters[end..].starts_with('m') && parameters[..end].split(';').all(|p| p != "8");
    is_color.then(|| &text[..end + 3])
}

/// Controls, and what changes the order of characters, joins or parts lines, or has no width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
            | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1345f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal obeys, and what it does not show.
    const HOSTILE: [&str; 9] = [
        "\u{1b}[2J\u{1b}[H",
        "\u{9b}2J",
        "a\rb",
        "a\u{7f}\u{8}b",
        "\u{1b}]0;title\u{7}",
        "\u{202e}evil\u{2066}",
        "pay\u{200b}ments\u{feff}",
        "a\u{2028}b",
        "\u{e0041}\u{ad}",
    ];

    fn is_harmless(text: &str) -> bool {
        text.chars().all(|c| c == '\n' || c == '\t' || !is_hidden(c))
    }

    #[test]
    fn plain_text_of_any_language_stays_as_it_is() {
        for text in ["web -> db:5432", "Größe", "支払い", "a b", "naïve ☃", "עברית", "a\\u{1b}"] {
            assert_eq!(escape(text), text);
            assert_eq!(lines(text, false), text);
            assert_eq!(json(text), text);
        }
        assert_eq!(lines("a\tb\nc\n", false), "a\tb\nc\n");
        assert_eq!(escape("a\nb"), "a\\nb");
    }

    #[test]
    fn nothing_hostile_reaches_a_terminal() {
        for text in HOSTILE {
            for shown in [escape(text), lines(text, false), lines(text, true)] {
                assert!(is_harmless(&shown) && shown.contains('\\'), "{shown:?}");
            }
        }
        let all: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
        assert!(is_harmless(&escape(&all)) && is_harmless(&lines(&all, true)));
    }

    #[test]
    fn only_colours_that_were_asked_for_stay_colours() {
        let red = "\u{1b}[1;31mred\u{1b}[0m";
        assert_eq!(lines(red, true), red);
        assert!(is_harmless(&lines(red, false)));
        for other in ["\u{1b}[8mhidden", "\u{1b}[1;8mhidden", "\u{1b}[2J", "\u{1b}[31", "\u{1b}[1A", "\u{1b}[?25lm"] {
            assert!(is_harmless(&lines(other, true)), "{other:?}");
        }
    }

    #[test]
    fn json_means_what_it_meant() {
        let all: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
        for value in [all.as_str()].into_iter().chain(HOSTILE) {
            let document = serde_json::json!({ value: [value] });
            for text in [serde_json::to_string(&document).unwrap(), serde_json::to_string_pretty(&document).unwrap()] {
                let shown = json(&text);
                assert!(is_harmless(&shown) && !shown.contains('\t'));
                assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), document);
            }
        }
    }
}
