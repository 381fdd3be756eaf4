//! One thing that is wrong with a policy, and its two forms: for people and for machines.

use std::collections::BTreeMap;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

pub use super::codes::Code;
use super::{model::Place, yaml::At};

/// A place in a file, and how much of the line is meant.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Mark {
    /// Where it begins.
    pub place: Place,
    /// Characters to underline; 0 underlines one.
    pub width: u32,
}

impl Mark {
    /// Returns the place of `at` in a file.
    #[must_use]
    pub fn new(file: &str, at: At) -> Self {
        Self { place: Place { file: file.to_owned(), line: at.line, column: at.column }, width: at.width }
    }
}

/// What is wrong, where, and what to do about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The kind.
    pub code: Code,
    /// What is wrong: lower case, no full stop, user input in backticks.
    pub message: String,
    /// Where; absent if it concerns the set as a whole.
    pub at: Option<Mark>,
    /// Beside the caret: the fix, as near as it is known.
    pub label: Option<String>,
    /// What to write instead of the marked text, if that is certain enough to be offered to a machine.
    pub suggestion: Option<String>,
    /// Other places that take part, each with what it is.
    pub also: Vec<(Mark, String)>,
    /// What to do, if the label does not say it.
    pub help: Option<String>,
}

impl Finding {
    /// Returns a finding at a place.
    #[must_use]
    pub fn new(code: Code, at: Mark, message: impl Into<String>) -> Self {
        Self { at: Some(at), ..Self::general(code, message) }
    }

    /// Returns a finding about the set as a whole.
    #[must_use]
    pub fn general(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), at: None, label: None, suggestion: None, also: Vec::new(), help: None }
    }

    /// Adds the text beside the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds another place.
    #[must_use]
    pub fn also(mut self, at: Mark, what: impl Into<String>) -> Self {
        self.also.push((at, what.into()));
        self
    }

    /// Adds "did you mean", if one of `names` is near to `written`. A name may come with its place.
    #[must_use]
    pub fn did_you_mean<'a>(mut self, written: &str, names: impl IntoIterator<Item = (&'a str, Option<Mark>)>) -> Self {
        if let Some((name, at)) = nearest(written, names) {
            let place = at.map(|at| format!(" ({})", at.place)).unwrap_or_default();
            self.label = Some(format!("did you mean `{name}`{place}?"));
            self.suggestion = Some(name.to_owned());
        }
        self
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Returns the name that was most probably meant, if one is near enough.
pub(super) fn nearest<'a, T>(written: &str, names: impl IntoIterator<Item = (&'a str, T)>) -> Option<(&'a str, T)> {
    // The distance takes time in the product of the lengths, so long input is not compared at all.
    if written.len() > 128 {
        return None;
    }
    names
        .into_iter()
        .filter(|(name, _)| name.len() <= 128)
        .map(|(name, at)| (strsim::damerau_levenshtein(written, name), name, at))
        .filter(|&(distance, name, _)| distance <= written.len().max(name.len()).div_ceil(3) && distance < name.len())
        .min_by_key(|&(distance, name, _)| (distance, name))
        .map(|(_, name, at)| (name, at))
}

/// The texts of the files that findings point into, by name.
pub type Sources<'a> = BTreeMap<&'a str, &'a str>;

/// Renders findings for people, one after the other.
///
/// What a file says is shown with control characters replaced, so that it cannot move the cursor.
#[must_use]
pub fn render(findings: &[Finding], sources: &Sources<'_>, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for finding in findings {
        out.extend(renderer.render(&report(finding, sources)).chars().map(visible));
        out.push('\n');
    }
    out
}

/// Replaces what the renderer leaves as it is and a terminal does not: C1 controls, of which U+009B
/// begins a command as ESC `[` does.
const fn visible(c: char) -> char {
    match c {
        '\u{80}'..='\u{9f}' => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}

fn report<'a>(finding: &'a Finding, sources: &Sources<'a>) -> Vec<Group<'a>> {
    let level = if finding.code.is_error() { Level::ERROR } else { Level::WARNING };
    let mut group = Group::with_title(level.primary_title(finding.message.as_str()).id(finding.code.name()));
    if let Some(at) = &finding.at {
        group = add_place(group, at, finding.label.as_deref(), true, sources);
    }
    for (at, what) in &finding.also {
        group = add_place(group, at, Some(what), false, sources);
    }
    if let Some(help) = &finding.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    vec![group]
}

fn add_place<'a>(
    group: Group<'a>,
    at: &'a Mark,
    label: Option<&'a str>,
    primary: bool,
    sources: &Sources<'a>,
) -> Group<'a> {
    let file = at.place.file.as_str();
    let Some((line, range)) = sources.get(file).and_then(|text| line_of(text, at)) else {
        let mut origin = Origin::path(file);
        if at.place.line > 0 {
            origin = origin.line(at.place.line as usize).char_column(at.place.column as usize);
        }
        let group = group.element(origin);
        return match label {
            Some(label) => group.element(Level::NOTE.message(label)),
            None => group,
        };
    };
    let kind = if primary { AnnotationKind::Primary } else { AnnotationKind::Context };
    let annotation = kind.span(range).label(label);
    let snippet = Snippet::source(line).path(file).line_start(at.place.line as usize).annotation(annotation);
    group.element(snippet)
}

/// Returns the line of a mark and the bytes of it that are meant.
fn line_of<'a>(text: &'a str, at: &Mark) -> Option<(&'a str, std::ops::Range<usize>)> {
    let line = text.trim_start_matches('\u{feff}').lines().nth(at.place.line.checked_sub(1)? as usize)?;
    let byte = |chars: u32| line.char_indices().nth(chars as usize).map_or(line.len(), |(i, _)| i);
    let skip = at.place.column.saturating_sub(1);
    Some((line, byte(skip)..byte(skip.saturating_add(at.width.max(1)))))
}

/// A finding as machines read it. `schemaVersion` stands in the document around it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingRecord<'a> {
    code: &'static str,
    severity: &'static str,
    message: &'a str,
    #[serde(flatten)]
    at: Option<PlaceRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    also: Vec<AlsoRecord<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PlaceRecord<'a> {
    file: &'a str,
    line: u32,
    column: u32,
    end_column: u32,
}

#[derive(Debug, Serialize)]
struct AlsoRecord<'a> {
    #[serde(flatten)]
    at: PlaceRecord<'a>,
    message: &'a str,
}

impl<'a> From<&'a Mark> for PlaceRecord<'a> {
    fn from(at: &'a Mark) -> Self {
        let Place { file, line, column } = &at.place;
        Self { file, line: *line, column: *column, end_column: column.saturating_add(at.width) }
    }
}

impl<'a> From<&'a Finding> for FindingRecord<'a> {
    fn from(finding: &'a Finding) -> Self {
        let Finding { code, message, at, label, suggestion, also, help } = finding;
        Self {
            code: code.name(),
            severity: if code.is_error() { "error" } else { "warning" },
            message,
            at: at.as_ref().map(PlaceRecord::from),
            label: label.as_deref(),
            suggestion: suggestion.as_deref(),
            help: help.as_deref(),
            also: also.iter().map(|(at, message)| AlsoRecord { at: PlaceRecord::from(at), message }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "allow:\n  - { from: chekout, to: cart }\n";

    fn finding() -> Finding {
        let at = Mark::new("shop.yaml", At { line: 2, column: 13, width: 7 });
        let checkout = Mark::new("shop.yaml", At { line: 21, column: 13, width: 8 });
        Finding::new(Code::E03, at, "no workload, external or group is called `chekout`")
            .did_you_mean("chekout", [("catalog", None), ("checkout", Some(checkout)), ("cart", None)])
    }

    #[test]
    fn a_wrong_letter_is_shown_with_caret_and_suggestion() {
        let sources = Sources::from([("shop.yaml", TEXT)]);
        assert_eq!(
            render(&[finding()], &sources, false),
            "error[E03]: no workload, external or group is called `chekout`
 --> shop.yaml:2:13
  |
2 |   - { from: chekout, to: cart }
  |             ^^^^^^^ did you mean `checkout` (shop.yaml:21:13)?
"
        );
    }

    #[test]
    fn a_place_without_its_text_is_still_named() {
        let shown = render(&[finding()], &Sources::new(), false);
        assert!(shown.contains("shop.yaml:2:13"), "{shown}");
    }

    #[test]
    fn control_characters_of_a_file_do_not_reach_the_terminal() {
        let text = "a: \u{1b}[2J\u{202e}x\u{9b}2J";
        let finding = Finding::new(Code::E01, Mark::new("f", At { line: 1, column: 4, width: 3 }), "bad `\u{1b}[2J`");
        let shown = render(&[finding], &Sources::from([("f", text)]), false);
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{shown:?}");
    }

    #[test]
    fn the_machine_form_is_flat_and_stable() {
        let json = serde_json::to_string(&FindingRecord::from(&finding())).unwrap();
        assert_eq!(
            json,
            r#"{"code":"E03","severity":"error","message":"no workload, external or group is called `chekout`","#
                .to_owned()
                + r#""file":"shop.yaml","line":2,"column":13,"endColumn":20,"#
                + r#""label":"did you mean `checkout` (shop.yaml:21:13)?","suggestion":"checkout"}"#
        );
    }

    #[test]
    fn nothing_is_suggested_for_a_name_that_resembles_none() {
        let finding = Finding::general(Code::E03, "x").did_you_mean("zzzzzz", [("web", None), ("db", None)]);
        assert_eq!(finding.label, None);
        assert_eq!(
            Finding::general(Code::E03, "x").did_you_mean("wbe", [("web", None)]).suggestion.as_deref(),
            Some("web")
        );
    }
}
