//! Durations in the configuration file: `250ms`, `1m30s`, `1.5h`.

const UNITS_NS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

/// Parses a duration into nanoseconds; fails with the reason.
pub(in crate::config) fn parse_ns(text: &str) -> Result<i64, String> {
    let invalid = |why: &str| format!("invalid duration \"{text}\": {why}, as in \"1m30s\"");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid("expected a number and a unit"));
    }
    let mut total_ns = 0.0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_len);
        let number: f64 = number.parse().map_err(|_| invalid("expected a number"))?;
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let Some((_, unit_ns)) = UNITS_NS.iter().find(|(name, _)| *name == unit) else {
            return Err(invalid("expected a unit of ns, us, ms, s, m or h"));
        };
        total_ns += number * unit_ns;
        rest = after;
    }
    if total_ns >= 9.2e18 {
        return Err(invalid("expected less than 292 years"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
    let total_ns = total_ns.round() as i64;
    Ok(if negative { -total_ns } else { total_ns })
}

/// Converts `ns` to milliseconds, rounded away from zero, so that nothing but zero becomes zero.
pub(in crate::config) fn ns_to_ms(ns: i64) -> i64 {
    let whole = ns / 1_000_000;
    if ns % 1_000_000 == 0 { whole } else { whole + ns.signum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let cases = [
            ("250ms", 250_000_000),
            ("2s", 2_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("50us", 50_000),
            ("50µs", 50_000),
            ("-1s", -1_000_000_000),
            ("0", 0),
        ];
        for (text, ns) in cases {
            assert_eq!(parse_ns(text), Ok(ns), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_reason() {
        for text in ["", "3", "s", "-", "1x", "1..5s", "1s2", "999999999h", "1 s"] {
            assert!(parse_ns(text).is_err(), "{text}");
        }
    }

    #[test]
    fn less_than_a_millisecond_is_not_nothing() {
        assert_eq!(ns_to_ms(1), 1);
        assert_eq!(ns_to_ms(-1), -1);
        assert_eq!(ns_to_ms(0), 0);
        assert_eq!(ns_to_ms(2_000_000), 2);
    }
}
