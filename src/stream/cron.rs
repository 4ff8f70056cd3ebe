//! Times by pattern: once, every so often, or by six fields as of cron.

use chrono::{DateTime, Datelike, Days, Months, NaiveDateTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

use super::time::{self, SECOND};

/// Years in which a pattern has to have a time.
const YEARS_MAX: i32 = 5;

/// The next time of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// Nanoseconds since 1970.
    pub(super) at: i64,
    /// Whether there are times after it.
    pub(super) repeats: bool,
}

/// Returns the first time of a pattern after `from`; one that is before `now` is skipped if others
/// follow. `None` if it is no pattern, or has no time.
pub(super) fn next_time(pattern: &str, zone: Option<Tz>, from: i64, now: i64) -> Option<Due> {
    if let Some(text) = pattern.strip_prefix("@at ") {
        let at = time::parse_rfc3339(text).filter(|_| zone.is_none())?;
        return Some(Due { at, repeats: false });
    }
    if let Some(text) = pattern.strip_prefix("@every ") {
        let every = time::parse_duration(text).filter(|_| zone.is_none())?;
        if every < SECOND.cast_signed() {
            return None;
        }
        let after = |time: i64| rounded(time).saturating_add(every);
        let at = after(from);
        return Some(Due { at: if at < now { after(now) } else { at }, repeats: true });
    }
    let pattern = match pattern {
        "@yearly" | "@annually" => "0 0 0 1 1 *",
        "@monthly" => "0 0 0 1 * *",
        "@weekly" => "0 0 0 * * 0",
        "@daily" | "@midnight" => "0 0 0 * * *",
        "@hourly" => "0 0 * * * *",
        pattern => pattern,
    };
    let cron = Cron::parse(pattern)?;
    let zone = zone.unwrap_or(Tz::UTC);
    let at = cron.after(from, zone)?;
    let at = if at < now { cron.after(rounded(now), zone)? } else { at };
    Some(Due { at, repeats: true })
}

/// The nearest whole second.
fn rounded(time: i64) -> i64 {
    let second = SECOND.cast_signed();
    time.saturating_add(second / 2).div_euclid(second).saturating_mul(second)
}

/// Bounds of a field, and names of its values from the first on.
struct CronField {
    first: u32,
    last: u32,
    names: &'static [&'static str],
}

const NO_NAMES: &[&str] = &[];
const MONTHS: &[&str] =
    &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [CronField; 6] = [
    CronField { first: 0, last: 59, names: NO_NAMES },
    CronField { first: 0, last: 59, names: NO_NAMES },
    CronField { first: 0, last: 23, names: NO_NAMES },
    CronField { first: 1, last: 31, names: NO_NAMES },
    CronField { first: 1, last: 12, names: MONTHS },
    CronField { first: 0, last: 6, names: WEEKDAYS },
];

/// Values of a field.
#[derive(Debug, Clone, Copy, Default)]
struct Values {
    bits: u64,
    /// Whether any value is one, because a star says so.
    is_any: bool,
}

impl Values {
    fn has(self, value: u32) -> bool {
        self.bits >> value & 1 == 1
    }
}

impl CronField {
    fn parse(&self, text: &str) -> Option<Values> {
        let mut values = Values::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let one = self.range(part)?;
            values.bits |= one.bits;
            values.is_any |= one.is_any;
        }
        Some(values)
    }

    /// Reads `value`, `value-value` or `*`, each with `/step` or without.
    fn range(&self, text: &str) -> Option<Values> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (text, None),
        };
        let (first, last, is_star) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (self.first, self.last, true),
            Some((first, last)) => (self.value(first)?, self.value(last)?, false),
            None => {
                let value = self.value(range)?;
                (value, if step.is_some() { self.last } else { value }, false)
            }
        };
        let step = step.unwrap_or(1);
        if first < self.first || last > self.last || first > last || step == 0 {
            return None;
        }
        let all = (first..=last).step_by(usize::try_from(step).ok()?);
        let bits = all.fold(0, |bits, value| bits | 1 << value);
        Some(Values { bits, is_any: is_star && step == 1 })
    }

    fn value(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|name| text.eq_ignore_ascii_case(name));
        match named {
            Some(at) => Some(self.first + u32::try_from(at).ok()?),
            None => number(text),
        }
    }
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// A pattern of seconds, minutes, hours, days of the month, months, and weekdays.
#[derive(Debug)]
struct Cron {
    second: Values,
    minute: Values,
    hour: Values,
    day: Values,
    month: Values,
    weekday: Values,
}

impl Cron {
    fn parse(text: &str) -> Option<Self> {
        let texts: Vec<&str> = text.split_whitespace().collect();
        if texts.len() != FIELDS.len() {
            return None;
        }
        let mut values = [Values::default(); FIELDS.len()];
        for ((slot, field), text) in values.iter_mut().zip(&FIELDS).zip(texts) {
            *slot = field.parse(text)?;
        }
        let [second, minute, hour, day, month, weekday] = values;
        Some(Self { second, minute, hour, day, month, weekday })
    }

    /// The first time after `from` in nanoseconds since 1970.
    fn after(&self, from: i64, zone: Tz) -> Option<i64> {
        let start = DateTime::from_timestamp(from.div_euclid(SECOND.cast_signed()) + 1, 0)?;
        let mut local = start.with_timezone(&zone).naive_local();
        let last_year = local.year() + YEARS_MAX;
        loop {
            local = self.next_local(local, last_year)?;
            // Of a time that comes twice that one which is not over; one that never comes is
            // left out.
            let times = zone.from_local_datetime(&local);
            let all = [times.earliest(), times.latest()].into_iter().flatten();
            if let Some(time) = all.map(|time| time.with_timezone(&Utc)).find(|at| *at >= start) {
                return time.timestamp_nanos_opt();
            }
            local += TimeDelta::seconds(1);
        }
    }

    /// The first local time at `time` or after it that fits.
    fn next_local(&self, mut time: NaiveDateTime, last_year: i32) -> Option<NaiveDateTime> {
        while time.year() <= last_year {
            if !self.month.has(time.month()) {
                let month = time.date().with_day(1)?.checked_add_months(Months::new(1))?;
                time = month.and_hms_opt(0, 0, 0)?;
            } else if !self.fits_day(time) {
                let day = time.date().checked_add_days(Days::new(1))?;
                time = day.and_hms_opt(0, 0, 0)?;
            } else if !self.hour.has(time.hour()) {
                time = time.with_minute(0)?.with_second(0)? + TimeDelta::hours(1);
            } else if !self.minute.has(time.minute()) {
                time = time.with_second(0)? + TimeDelta::minutes(1);
            } else if !self.second.has(time.second()) {
                time += TimeDelta::seconds(1);
            } else {
                return Some(time);
            }
        }
        None
    }

    /// Whether the day of the month and the weekday fit: both if one is any, else one of them.
    fn fits_day(&self, time: NaiveDateTime) -> bool {
        let by_day = self.day.has(time.day());
        let by_weekday = self.weekday.has(time.weekday().num_days_from_sunday());
        match self.day.is_any || self.weekday.is_any {
            true => by_day && by_weekday,
            false => by_day || by_weekday,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        time::parse_rfc3339(text).unwrap()
    }

    fn next(pattern: &str, zone: Option<Tz>, from: &str) -> Option<String> {
        next_time(pattern, zone, at(from), at(from)).map(|due| time::rfc3339(due.at))
    }

    #[test]
    fn patterns_have_the_times_that_they_say() {
        let from = "2024-02-28T23:59:58.5Z";
        let cases = [
            ("* * * * * *", "2024-02-28T23:59:59Z"),
            ("*/15 * * * * *", "2024-02-29T00:00:00Z"),
            ("0 30 4 * * *", "2024-02-29T04:30:00Z"),
            ("0 0 0 29 feb *", "2024-02-29T00:00:00Z"),
            ("0 0 12 * * MON-fri/2", "2024-03-01T12:00:00Z"),
            ("0 0 0 13 * 5", "2024-03-01T00:00:00Z"),
            ("5,10 0 0 31 * *", "2024-03-31T00:00:05Z"),
            ("@hourly", "2024-02-29T00:00:00Z"),
            ("@weekly", "2024-03-03T00:00:00Z"),
            ("@yearly", "2025-01-01T00:00:00Z"),
            ("@every 10s", "2024-02-29T00:00:09Z"),
            ("@at 2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ];
        for (pattern, expected) in cases {
            assert_eq!(next(pattern, None, from).as_deref(), Some(expected), "{pattern}");
        }
        for pattern in [
            "",
            "x",
            "* * * * *",
            "60 * * * * *",
            "* * * 0 * *",
            "5-1 * * * * *",
            "*/0 * * * * *",
            "0 0 0 30 2 *",
            "@at yesterday",
            "@every 500ms",
            "@every",
        ] {
            assert_eq!(next(pattern, None, from), None, "{pattern}");
        }
    }

    #[test]
    fn a_zone_shifts_times_and_those_that_its_clock_skips_do_not_come() {
        let berlin = Some(Tz::Europe__Berlin);
        let summer = next("0 0 12 * * *", berlin, "2024-07-01T00:00:00Z");
        assert_eq!(summer.as_deref(), Some("2024-07-01T10:00:00Z"));
        // From 2:00 to 3:00 there is no time on that day.
        let skipped = next("0 30 2 * * *", berlin, "2024-03-31T00:00:00Z");
        assert_eq!(skipped.as_deref(), Some("2024-04-01T00:30:00Z"));
        assert_eq!(next("@every 1s", berlin, "2024-07-01T00:00:00Z"), None);
        assert_eq!(next("@at 2024-07-01T00:00:00Z", berlin, "2024-07-01T00:00:00Z"), None);
    }

    #[test]
    fn times_that_went_by_unused_come_once() {
        let (from, now) = (at("2024-01-01T00:00:00Z"), at("2024-01-01T01:00:00Z"));
        let due = |pattern| next_time(pattern, None, from, now).unwrap();
        let expected = Due { at: at("2024-01-01T01:00:10Z"), repeats: true };
        assert_eq!(due("@every 10s"), expected);
        assert_eq!(due("10 * * * * *"), expected);
        assert!(!due("@at 2024-01-01T00:30:00Z").repeats);
    }
}
