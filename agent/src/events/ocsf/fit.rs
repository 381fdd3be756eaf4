//! Keeps a line of a denial within its limit: the longest names are cut first, and the cut is said.

use super::{LINE_BYTES_MAX, Stamp, flow};
use crate::events::record::{DenyEvent, LongField};

/// Shortest name that is still cut. Ten names of this length fit many times over.
const CUT_CHARS_MIN: usize = 64;

/// Appends a denial of at most [`LINE_BYTES_MAX`] bytes, without a newline.
pub fn write_fitting(buffer: &mut Vec<u8>, event: &DenyEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let before = buffer.len();
    flow::write(buffer, event, stamp)?;
    if buffer.len() - before <= LINE_BYTES_MAX {
        return Ok(());
    }
    let mut event = event.clone();
    while buffer.len() - before > LINE_BYTES_MAX && cut_longest(&mut event) {
        buffer.truncate(before);
        flow::write(buffer, &event, stamp)?;
    }
    Ok(())
}

/// Halves the longest name; says whether there was one to halve.
fn cut_longest(event: &mut DenyEvent) -> bool {
    let longest = LongField::ALL.into_iter().max_by_key(|&field| text_of(event, field).map_or(0, |text| text.len()));
    let Some((field, text)) = longest.and_then(|field| Some((field, text_of(event, field)?))) else {
        return false;
    };
    if text.len() <= CUT_CHARS_MIN {
        return false;
    }
    let mut end = text.len() / 2;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(whole_escapes(&text[..end]));
    if !event.truncated.contains(&field) {
        event.truncated.push(field);
    }
    true
}

/// Returns the length of `text` without an escape that its end splits, and without spaces there.
fn whole_escapes(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let length = match (bytes[at], bytes.get(at + 1)) {
            (b'\\', Some(b'x')) => 4,
            (b'\\', _) => 2,
            _ => 1,
        };
        if at + length > bytes.len() {
            break;
        }
        at += length;
    }
    text[..at].trim_end_matches(' ').len()
}

fn text_of(event: &mut DenyEvent, field: LongField) -> Option<&mut String> {
    match field {
        LongField::Comm => event.process.as_mut().map(|process| &mut process.comm),
        LongField::Exe => event.process.as_mut().and_then(|process| process.exe.as_mut()),
        LongField::CgroupPath => event.cgroup_path.as_mut(),
        LongField::SourcePlace => event.source.place.as_mut(),
        LongField::SourceService => event.source.service.as_mut(),
        LongField::SourceSpiffe => event.source.spiffe.as_mut(),
        LongField::TargetPlace => event.target.place.as_mut(),
        LongField::TargetService => event.target.service.as_mut(),
        LongField::TargetSpiffe => event.target.spiffe.as_mut(),
        LongField::RuleTitle => event.rule_ref.title.as_mut(),
        LongField::Nearest => event.nearest.as_mut(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{ocsf::parse, record::UnixMillis, testing};

    #[test]
    fn a_line_of_the_longest_names_stays_within_its_limit_and_says_what_was_cut() {
        let mut event = testing::event();
        let long = |c: &str| Some(c.repeat(2048));
        event.source.spiffe = long("s");
        event.source.service = long("v");
        event.target.spiffe = long("t");
        event.target.service = long("w");
        event.nearest = long("n");
        event.cgroup_path = Some("\\xff".repeat(256));
        event.rule_ref.title = Some("\u{e9}".repeat(2048));
        let stamp = Stamp { node: &testing::node(), sequence: 1, logged: UnixMillis(1) };
        let mut unlimited = Vec::new();
        flow::write(&mut unlimited, &event, &stamp).unwrap();
        assert!(unlimited.len() > LINE_BYTES_MAX, "the limit is needed");
        let mut line = Vec::new();
        write_fitting(&mut line, &event, &stamp).unwrap();
        assert!(line.len() <= LINE_BYTES_MAX, "{}", line.len());
        let read = parse(&line).unwrap().event;
        assert!(read.truncated.contains(&LongField::RuleTitle));
        assert!(read.source.service.unwrap().len() < 2048);
        assert_eq!(read.source.id, event.source.id, "numbers stay");
    }

    #[test]
    fn a_cut_never_splits_an_escape() {
        assert_eq!(whole_escapes("ab\\xf"), 2);
        assert_eq!(whole_escapes("ab\\xff"), 6);
        assert_eq!(whole_escapes("ab\\"), 2);
        assert_eq!(whole_escapes("ab\\\\"), 4);
        assert_eq!(whole_escapes("ab  "), 2);
    }
}
