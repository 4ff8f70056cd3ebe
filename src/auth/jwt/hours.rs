//! The hours of the day at which a user may be connected.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeZone};
use chrono_tz::Tz;
use serde::Deserialize;

/// A daily range of hours, each time as `15:04:05`; a range that ends before it begins ends on the
/// next day.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Hours {
    /// The first second within the range.
    pub start: String,
    /// The first second after the range.
    pub end: String,
}

/// Returns the end of the first of `ranges` that contains `now`, both in seconds since 1970.
///
/// Returns `None` if no range contains it, or if one of them is not a time of day.
pub fn stay_until(ranges: &[Hours], zone: Tz, now: i64) -> Option<i64> {
    let today = DateTime::from_timestamp(now, 0)?.with_timezone(&zone).date_naive();
    let time = |text: &str| NaiveTime::parse_from_str(text, "%H:%M:%S").ok();
    let ranges: Option<Vec<_>> =
        ranges.iter().map(|range| Some((time(&range.start)?, time(&range.end)?))).collect();
    let until = |(start, end): (NaiveTime, NaiveTime)| {
        let yesterday = today.checked_sub_days(Days::new(1))?;
        [today, yesterday].into_iter().find_map(|day| {
            let last = if end < start { day.checked_add_days(Days::new(1))? } else { day };
            let (from, to) = (instant(zone, day, start)?, instant(zone, last, end)?);
            (from <= now && now < to).then_some(to)
        })
    };
    ranges?.into_iter().find_map(until)
}

/// Returns the first instant at which clocks of `zone` show this time, in seconds since 1970; if
/// they skip it, an hour later.
fn instant(zone: Tz, day: NaiveDate, time: NaiveTime) -> Option<i64> {
    let local = day.and_time(time);
    let hour = chrono::TimeDelta::hours(1);
    let shown = |local| zone.from_local_datetime(&local).earliest();
    shown(local).or_else(|| shown(local + hour)).map(|at| at.timestamp())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hours(start: &str, end: &str) -> Hours {
        Hours { start: start.to_owned(), end: end.to_owned() }
    }

    fn at(text: &str) -> i64 {
        text.parse::<DateTime<chrono::Utc>>().unwrap().timestamp()
    }

    #[test]
    fn who_is_here_may_stay_until_the_range_ends() {
        let office = [hours("08:00:00", "12:00:00"), hours("13:00:00", "17:30:00")];
        let until = |now: &str| stay_until(&office, Tz::UTC, at(now));
        assert_eq!(until("2026-03-01T07:59:59Z"), None);
        assert_eq!(until("2026-03-01T08:00:00Z"), Some(at("2026-03-01T12:00:00Z")));
        assert_eq!(until("2026-03-01T12:00:00Z"), None);
        assert_eq!(until("2026-03-01T17:29:59Z"), Some(at("2026-03-01T17:30:00Z")));
    }

    #[test]
    fn a_night_goes_on_to_the_next_day_and_is_the_zones_own() {
        let night = [hours("22:00:00", "06:00:00")];
        let zone: Tz = "America/New_York".parse().unwrap();
        let until = |now: &str| stay_until(&night, zone, at(now));
        // Five hours behind in winter.
        assert_eq!(until("2026-01-02T02:59:59Z"), None);
        assert_eq!(until("2026-01-02T03:00:00Z"), Some(at("2026-01-02T11:00:00Z")));
        assert_eq!(until("2026-01-02T10:59:59Z"), Some(at("2026-01-02T11:00:00Z")));
        // The night in which clocks skip an hour is shorter.
        assert_eq!(until("2026-03-08T05:00:00Z"), Some(at("2026-03-08T10:00:00Z")));
        // A range may begin in the hour that is skipped.
        let skipped = [hours("02:30:00", "05:00:00")];
        assert!(stay_until(&skipped, zone, at("2026-03-08T07:30:00Z")).is_some());
    }

    #[test]
    fn what_is_no_time_lets_nobody_in() {
        for (start, end) in [("x", "23:00:00"), ("00:00:00", ""), ("25:00:00", "26:00:00")] {
            assert_eq!(stay_until(&[hours(start, end)], Tz::UTC, 0), None);
        }
        assert_eq!(stay_until(&[], Tz::UTC, 0), None);
    }

    proptest! {
        #[test]
        fn nobody_stays_longer_than_a_day_or_is_sent_away_at_once(
            start in 0_u32..86_400, end in 0_u32..86_400, now in 0_i64..4_000_000_000
        ) {
            let text = |s: u32| format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
            let (range, zone) = ([hours(&text(start), &text(end))], Tz::Europe__Berlin);
            if let Some(until) = stay_until(&range, zone, now) {
                prop_assert!(now < until && until - now <= 25 * 3600);
            }
        }
    }
}
