//! Formats of times, durations and numbers, as nats-server writes them.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::Serializer;

/// Serializes a number; a whole one without a point.
#[expect(clippy::cast_possible_truncation, reason = "only numbers are cast that are whole")]
pub(super) fn number<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        serializer.serialize_i64(*number as i64)
    } else {
        serializer.serialize_f64(*number)
    }
}

/// Formats a time by RFC 3339 with nanoseconds.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Returns the time `ns` nanoseconds after `start`.
pub(super) fn after(start: DateTime<Utc>, ns: u64) -> DateTime<Utc> {
    start + TimeDelta::nanoseconds(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// Returns the nanoseconds from `start` to `at`; 0 if `at` is earlier.
pub(super) fn ns_between(start: DateTime<Utc>, at: DateTime<Utc>) -> u64 {
    (at - start).num_nanoseconds().and_then(|ns| u64::try_from(ns).ok()).unwrap_or(0)
}

/// Formats the time from `from` to `to` as `1y2d3h4m5s`, without leading parts that are 0.
pub(super) fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    let seconds = (to - from).num_seconds().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let parts = [
        (days / 365, 'y', i64::MAX),
        (days, 'd', 365),
        (hours, 'h', 24),
        (minutes, 'm', 60),
        (seconds, 's', 60),
    ];
    let parts = parts.iter().filter(|(whole, unit, _)| *whole > 0 || *unit == 's');
    parts.map(|(whole, unit, modulus)| format!("{}{unit}", whole % modulus)).collect()
}

/// Formats a round trip in the largest unit in which it is at least 1.
pub(super) fn round_trip(ns: u64) -> String {
    match ns {
        0 => "0s".to_owned(),
        1..1000 => format!("{ns}ns"),
        _ => format!("{:?}", Duration::from_micros(ns / 1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_begin_with_their_first_part_that_is_not_zero() {
        let start = DateTime::UNIX_EPOCH;
        let lasting = |seconds: i64| between(start, start + TimeDelta::seconds(seconds));
        assert_eq!(lasting(0), "0s");
        assert_eq!(lasting(61), "1m1s");
        assert_eq!(lasting(3600), "1h0m0s");
        assert_eq!(lasting(366 * 86_400 + 3 * 3600 + 4 * 60 + 5), "1y1d3h4m5s");
        assert_eq!(lasting(-3), "0s");
    }

    #[test]
    fn round_trips_are_microseconds_at_the_finest() {
        assert_eq!(round_trip(0), "0s");
        assert_eq!(round_trip(278_499), "278µs");
        assert_eq!(round_trip(1_234_567), "1.234ms");
    }

    #[test]
    fn times_have_nine_digits_behind_the_point() {
        let time_of = after(DateTime::UNIX_EPOCH, 1_500_000_007);
        assert_eq!(time(time_of), "1970-01-01T00:00:01.500000007Z");
    }
}
