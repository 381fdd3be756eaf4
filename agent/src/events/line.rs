//! One line of a denial for people: `eastwall flows`.
//!
//! Source: policy.md, section 16. The text is visible ASCII, so it is as safe on a terminal as in a file.

use super::{
    escape::{NAME_CHARS_MAX, escape},
    record::{DenyEvent, End, Kind, Outcome, UnixMillis},
    words,
};

/// The heads of the columns.
#[must_use]
pub fn header() -> String {
    columns(["TIME", "FROM", "TO", "PORT", "VERDICT", "MODE", "RULE", "REASON"])
}

/// Returns the line: time of day (UTC), caller, callee, port, verdict, mode, rule and reason.
#[must_use]
pub fn line(event: &DenyEvent) -> String {
    let verdict = match event.outcome {
        Outcome::Denied => "DENY",
        Outcome::WouldDeny => "would",
        Outcome::Cut => "cut",
    };
    let reason = match event.kind {
        Kind::Repeat { window_ms } => format!("{}  x{} in {}s", event.reason.name(), event.count, window_ms / 1000),
        Kind::First | Kind::Cut => event.reason.name().to_owned(),
    };
    columns([
        &time_of_day(event.time),
        &end(&event.source),
        &end(&event.target),
        &words::port_word(event),
        verdict,
        event.mode.map_or("-", |mode| mode.name()),
        &visible(&event.rule_ref.id),
        &reason,
    ])
}

/// `web (10.1.4.7)`, `web`, or `ip/10.90.3.3` for an end without a name.
fn end(end: &End) -> String {
    match (&end.service, end.addr) {
        (Some(service), Some(addr)) => format!("{} ({addr})", visible(service)),
        (None, Some(addr)) => format!("ip/{addr}"),
        (Some(_) | None, None) => visible(&words::who(end)),
    }
}

/// Names from policy have passed a check, not the rule of [`super::escape`].
fn visible(name: &str) -> String {
    escape(name.as_bytes(), NAME_CHARS_MAX).text
}

fn time_of_day(time: UnixMillis) -> String {
    let seconds = time.0 / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn columns([time, from, to, port, verdict, mode, rule, reason]: [&str; 8]) -> String {
    format!("{time:<8}  {from:<26}  {to:<26}  {port:<10}  {verdict:<7}  {mode:<7}  {rule:<16}  {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::testing;

    #[test]
    fn a_denial_is_one_line_under_its_heads() {
        let line = line(&testing::event());
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            [
                "06:03:22",
                "web",
                "(10.244.1.23)",
                "payments-db",
                "(10.244.2.17)",
                "tcp/5432",
                "DENY",
                "enforce",
                "default",
                "no-rule"
            ]
        );
        assert_eq!(header().find("PORT"), line.find("tcp/"), "the columns stand under their heads");
    }

    #[test]
    fn repeats_say_how_many_and_a_stranger_is_an_address() {
        let mut event = testing::event();
        event.kind = Kind::Repeat { window_ms: 10_000 };
        event.count = 14;
        event.source.service = None;
        event.outcome = Outcome::WouldDeny;
        let line = line(&event);
        assert!(
            line.contains("ip/10.244.1.23 ") && line.contains(" would ") && line.ends_with("no-rule  x14 in 10s"),
            "{line}"
        );
    }

    #[test]
    fn no_name_reaches_the_terminal_raw() {
        let mut event = testing::event();
        event.rule_ref.id = "a\x1b[2J".into();
        event.source.service = Some("p\u{430}y\n".into());
        assert!(line(&event).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
}
