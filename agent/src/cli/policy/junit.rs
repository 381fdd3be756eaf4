//! Outcomes of tests as JUnit XML, which every CI system reads.

use std::fmt::Write as _;

use crate::cli::output::escape;

/// One test.
pub(super) struct Case {
    /// The file it stands in.
    pub(super) file: String,
    /// Its line, from 1.
    pub(super) line: u32,
    /// What it promises.
    pub(super) name: String,
    /// What is not as promised; empty = it passed.
    pub(super) failures: Vec<String>,
}

/// Returns the document for the tests of a policy.
pub(super) fn document(policy: &str, cases: &[Case]) -> String {
    let failed = cases.iter().filter(|case| !case.failures.is_empty()).count();
    let counts = format!("tests=\"{}\" failures=\"{failed}\" errors=\"0\"", cases.len());
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"eastwall\" {counts}>\n  \
         <testsuite name=\"{}\" {counts} skipped=\"0\">\n",
        xml(policy)
    );
    for Case { file, line, name, failures } in cases {
        let file = xml(file);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "    <testcase classname=\"{file}\" name=\"{}\" file=\"{file}\" line=\"{line}\" time=\"0\"",
            xml(name)
        );
        let Some(first) = failures.first() else {
            text.push_str("/>\n");
            continue;
        };
        let all = failures.join("\n");
        let _ = write!(text, ">\n      <failure message=\"{}\">{}</failure>\n", xml(first), xml_lines(&all));
        text.push_str("    </testcase>\n");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

/// Text that is safe between quotes: XML 1.0 has no way to write most control characters.
fn xml(text: &str) -> String {
    let mut safe = String::new();
    for c in escape(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

fn xml_lines(text: &str) -> String {
    text.lines().map(xml).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_written_ends_an_attribute_or_an_element() {
        assert_eq!(xml("a\"<b>&\u{1b}\u{ffff}"), "a&quot;&lt;b&gt;&amp;\\u{1b}\u{fffd}");
        let case = Case { file: "p.yaml".into(), line: 3, name: "a only [b]".into(), failures: vec!["x<y".into()] };
        let text = document("shop", &[case]);
        assert!(text.contains("<failure message=\"x&lt;y\">x&lt;y</failure>"), "{text}");
    }
}
