//! Times and durations in texts: RFC 3339 as Go writes it, and Go's durations.

use std::fmt::Write as _;

use chrono::DateTime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;
/// The text of a time that there is not.
pub const NO_TIME: &str = "0001-01-01T00:00:00Z";
const DAY_SECONDS: i64 = 86_400;

/// A time in nanoseconds since 1970, written as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(pub i64);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        parse_rfc3339(&text).map(Self).ok_or_else(|| serde::de::Error::custom("not a time"))
    }
}

/// Returns the time in nanoseconds since 1970; before 1677 and after 2262 the nearest one.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    // A space in place of the T is none of Go's forms.
    if text.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    let far = if time.timestamp() < 0 { i64::MIN } else { i64::MAX };
    Some(time.timestamp_nanos_opt().unwrap_or(far))
}

/// Returns a time in nanoseconds since 1970 as text, in UTC, with up to nine decimals.
pub fn rfc3339(nanoseconds: i64) -> String {
    let seconds = nanoseconds.div_euclid(SECOND.cast_signed());
    let fraction = nanoseconds.rem_euclid(SECOND.cast_signed());
    let (days, of_day) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let mut text = String::with_capacity(30);
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if fraction > 0 {
        let _ = write!(text, ".{fraction:09}");
        text.truncate(text.trim_end_matches('0').len());
    }
    text.push('Z');
    text
}

/// Returns the time of a message as text; the zero time if it is 0.
pub fn rfc3339_or_none(nanoseconds: u64) -> String {
    match i64::try_from(nanoseconds) {
        Ok(0) => NO_TIME.to_owned(),
        Ok(nanoseconds) => rfc3339(nanoseconds),
        Err(_) => rfc3339(i64::MAX),
    }
}

/// Year, month and day of a day since 1970: years of this reckoning begin in March, so that a leap
/// day is the last one.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Returns the nanoseconds of a duration as Go reads it: `1h30m`, `1.5s`, `-2ms`, `0`.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (is_negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let end = behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            scale /= 10;
            total = total.checked_add(scale * i64::from(digit - b'0'))?;
        }
        rest = behind;
    }
    Some(if is_negative { -total } else { total })
}

/// Returns a duration in nanoseconds as Go writes it: `1m0s`, `1.5s`, `100ms`, `0s`.
pub fn duration(nanoseconds: u64) -> String {
    if nanoseconds < SECOND {
        let (unit, divisor) = match nanoseconds {
            0 => return "0s".to_owned(),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return with_fraction(nanoseconds, divisor, unit);
    }
    let (minutes, rest) = (nanoseconds / SECOND / 60, nanoseconds % (60 * SECOND));
    let seconds = with_fraction(rest, SECOND, "s");
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

fn with_fraction(number: u64, divisor: u64, unit: &str) -> String {
    let (whole, mut rest) = (number / divisor, number % divisor);
    let mut text = whole.to_string();
    if rest > 0 {
        text.push('.');
        let mut scale = divisor;
        while rest > 0 {
            scale /= 10;
            let _ = write!(text, "{}", rest / scale);
            rest %= scale;
        }
    }
    text.push_str(unit);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_they_were_read_without_trailing_zeros() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2026-11-29T11:55:29.123456789Z",
            "2024-02-29T23:59:59.5Z",
            "2000-03-01T00:00:00.000000001Z",
            "1969-12-31T23:59:59.9Z",
            "2100-02-28T12:00:00Z",
        ] {
            assert_eq!(rfc3339(parse_rfc3339(text).unwrap()), text);
        }
        let other = "2026-11-29T13:55:29.120+02:00";
        assert_eq!(rfc3339(parse_rfc3339(other).unwrap()), "2026-11-29T11:55:29.12Z");
        for wrong in ["", "soon", "2026-11-29", "2026-11-29 11:55:29Z", "2026-13-01T00:00:00Z"] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
        assert_eq!(rfc3339_or_none(0), NO_TIME);
    }

    #[test]
    fn every_day_of_four_centuries_is_the_one_of_the_calendar() {
        for days in -80_000..80_000_i64 {
            let date = DateTime::from_timestamp(days * DAY_SECONDS, 0).unwrap();
            let (year, month, day) = civil(days);
            let text = format!("{year:04}-{month:02}-{day:02}");
            assert_eq!(date.format("%Y-%m-%d").to_string(), text);
        }
    }

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, nanoseconds) in [
            ("0s", 0),
            ("1ns", 1),
            ("1.5µs", 1_500),
            ("100ms", 100_000_000),
            ("1s", 1_000_000_000),
            ("1m0s", 60_000_000_000),
            ("1h30m0s", 5_400_000_000_000),
            ("1h0m0.5s", 3_600_500_000_000),
        ] {
            assert_eq!(duration(nanoseconds), text);
            assert_eq!(parse_duration(text), Some(nanoseconds.cast_signed()));
        }
        assert_eq!(parse_duration("-1.5h"), Some(-5_400_000_000_000));
        assert_eq!(parse_duration("1h30m"), Some(5_400_000_000_000));
        assert_eq!(parse_duration(".5s"), Some(500_000_000));
        for wrong in ["", "1", "s", "1x", "-", "1s2", ".s", "1..5s", "soon", " 1s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }
}
