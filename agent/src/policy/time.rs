//! Times as policy writes them: RFC 3339 with a zone.

use jiff::Timestamp;

/// Why a text is no time.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTime {
    /// Not RFC 3339.
    #[error("write it as `2036-01-31T00:00:00Z`")]
    Form(#[source] jiff::Error),
    /// More than RFC 3339 allows.
    #[error("write the offset alone, as in `2036-01-31T00:00:00+01:00`")]
    ZoneName,
}

/// Returns the seconds since the Unix epoch, fractions cut off so that it is never later than written.
///
/// # Errors
///
/// [`InvalidTime`].
pub fn parse(text: &str) -> Result<i64, InvalidTime> {
    if text.contains('[') {
        return Err(InvalidTime::ZoneName);
    }
    let time: Timestamp = text.parse().map_err(InvalidTime::Form)?;
    // The library cuts towards zero, which is later before 1970.
    Ok(if time.subsec_nanosecond() < 0 { time.as_second().saturating_sub(1) } else { time.as_second() })
}

/// Writes seconds since the Unix epoch in UTC. What lies beyond the year 9999 is written as a number.
#[must_use]
pub fn format(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("@{seconds}"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_zone_and_never_later_than_written() {
        assert_eq!(parse("1970-01-01T00:00:10Z").unwrap(), 10);
        assert_eq!(parse("1970-01-01T01:00:10.999+01:00").unwrap(), 10);
        assert_eq!(parse("1969-12-31T23:59:59.5Z").unwrap(), -1);
        assert_eq!(format(10), "1970-01-01T00:00:10Z");
    }

    #[test]
    fn a_time_without_a_zone_is_refused() {
        for text in ["2036-01-31", "2036-01-31T00:00:00", "tomorrow", "", "2036-01-31T00:00:00+01:00[Europe/Paris]"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
