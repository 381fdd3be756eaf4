//! Findings as SARIF 2.1.0, which code hosts and editors show beside the line.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::{Value, json};

use crate::policy::finding::{Code, Finding, Mark};

/// Returns the log of one run. Columns count Unicode code points, and the end is behind the last.
pub(super) fn log(errors: &[Finding], warnings: &[Finding]) -> Value {
    let results = errors.iter().map(|finding| result("error", finding));
    let results: Vec<Value> = results.chain(warnings.iter().map(|finding| result("warning", finding))).collect();
    let codes: BTreeSet<Code> = errors.iter().chain(warnings).map(|finding| finding.code).collect();
    let rules: Vec<Value> = codes.into_iter().map(rule).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "eastwall", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn rule(code: Code) -> Value {
    json!({
        "id": code.name(),
        "shortDescription": {"text": code.title()},
        "fullDescription": {"text": code.explanation()},
    })
}

fn result(level: &str, finding: &Finding) -> Value {
    let Finding { code, message, at, label, suggestion: _, also, help } = finding;
    let text: Vec<&str> =
        [Some(message), label.as_ref(), help.as_ref()].into_iter().flatten().map(String::as_str).collect();
    let related: Vec<Value> = also
        .iter()
        .map(|(mark, what)| {
            let mut location = location(mark);
            location["message"] = json!({"text": what});
            location
        })
        .collect();
    json!({
        "ruleId": code.name(),
        "level": level,
        "message": {"text": text.join("\n")},
        "locations": at.iter().map(location).collect::<Vec<_>>(),
        "relatedLocations": related,
    })
}

fn location(mark: &Mark) -> Value {
    let Mark { place, width } = mark;
    json!({"physicalLocation": {
        "artifactLocation": {"uri": uri(&place.file)},
        "region": {
            "startLine": place.line,
            "startColumn": place.column,
            "endColumn": place.column.saturating_add((*width).max(1)),
        },
    }})
}

/// A path as a reference of RFC 3986: what it does not know is percent-encoded.
fn uri(path: &str) -> String {
    path.bytes().fold(String::new(), |mut uri, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => uri.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(uri, "%{byte:02X}")),
        }
        uri
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_reference() {
        assert_eq!(uri("./policy/a b%:\u{e4}.yaml"), "./policy/a%20b%25%3A%C3%A4.yaml");
    }
}
