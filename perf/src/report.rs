//! What the user sees: progress, tables, JSON, percentile files.

use crate::load::{Pace, Plan, Seen};
use crate::monitor::Rates;
use crate::server::Usage;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

/// A line on the terminal that changes; nothing when standard error is no terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    label: String,
    on: bool,
    shown: bool,
    last: Option<(u64, u64)>,
}

impl Progress {
    /// Progress of what `label` names.
    pub(crate) fn new(label: impl Into<String>) -> Self {
        let on = std::io::stderr().is_terminal();
        Self { label: label.into(), on, shown: false, last: None }
    }

    /// Shows that `now_ns` of `end_ns` have passed and `done` items are done.
    pub(crate) fn show(&mut self, now_ns: u64, end_ns: u64, done: u64) {
        if !self.on {
            return;
        }
        let (then_ns, before) = self.last.unwrap_or((0, 0));
        if now_ns.saturating_sub(then_ns) < 200_000_000 {
            return;
        }
        let seconds = |ns: u64| ns as f64 / 1e9;
        let rate = done.saturating_sub(before) as f64 / seconds(now_ns - then_ns);
        let left = seconds(end_ns.saturating_sub(now_ns));
        let line = format!(
            "{}: {}/s, {:.1} s elapsed, {left:.1} s remaining",
            self.label,
            human(rate),
            seconds(now_ns),
        );
        // A terminal that has gone away is no reason to stop measuring.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        self.last = Some((now_ns, done));
        self.shown = true;
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        self.last = None;
    }
}

/// A number with three digits and a unit prefix: `1.23 M`.
pub(crate) fn human(value: f64) -> String {
    for (limit, factor, unit) in [(1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")] {
        if value.abs() >= limit {
            return format!("{}{unit}", three_digits(value / factor));
        }
    }
    three_digits(value)
}

fn three_digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The part of the churn that was asked for which must be reached.
const CHURN_PART_MIN: f64 = 0.9;

/// Latencies at the percentiles that matter, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    /// How many were counted.
    pub(crate) count: u64,
    /// Half were faster.
    pub(crate) p50: f64,
    /// 90 % were faster.
    pub(crate) p90: f64,
    /// 99 % were faster.
    pub(crate) p99: f64,
    /// 99.9 % were faster.
    pub(crate) p999: f64,
    /// 99.99 % were faster.
    pub(crate) p9999: f64,
    /// The slowest.
    pub(crate) max: f64,
    /// The average.
    pub(crate) mean: f64,
}

impl Quantiles {
    /// Summarises a histogram of nanoseconds; nothing when it is empty.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max() as f64 / 1e3,
            mean: histogram.mean() / 1e3,
        })
    }
}

/// One run of one scenario, as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadReport {
    /// What was run.
    pub(crate) plan: Plan,
    /// Length of the measured window, in seconds.
    pub(crate) window_s: f64,
    /// Messages published in the window.
    pub(crate) published: u64,
    /// Messages delivered in the window.
    pub(crate) delivered: u64,
    /// Pairs of SUB and UNSUB per second that the server took, besides.
    pub(crate) churned_per_s: f64,
    /// Messages published per second.
    pub(crate) published_per_s: f64,
    /// Messages delivered per second.
    pub(crate) delivered_per_s: f64,
    /// Payload delivered per second, in 10⁹ bytes.
    pub(crate) gigabytes_per_s: f64,
    /// What the server used in the window.
    pub(crate) server: Option<Usage>,
    /// Deliveries (publishes, when nobody subscribes) per second of the server's CPU.
    pub(crate) per_server_cpu_s: Option<f64>,
    /// What the server counted in the window.
    pub(crate) counted: Option<Rates>,
    /// What this program used in the window.
    pub(crate) generator: Usage,
    /// Nanoseconds of this program's CPU per delivery.
    pub(crate) generator_ns_each: f64,
    /// Latency from the intended send time, in microseconds.
    pub(crate) latency_us: Option<Quantiles>,
    /// How late this program's publishers sent, in microseconds.
    pub(crate) send_lag_us: Option<Quantiles>,
    /// How late this program's subscriber threads woke, in microseconds.
    pub(crate) receive_lag_us: Option<Quantiles>,
    /// Deliveries that never came.
    pub(crate) missing: u64,
    /// Why the figures must not be used; empty when they may.
    pub(crate) invalid: Vec<String>,
    /// Whether the user ended the run early.
    pub(crate) interrupted: bool,
}

impl LoadReport {
    /// Sums up what a run of `plan` showed. `lag_max_us` is how late the generator may be, in
    /// microseconds, at its 99th percentile.
    pub(crate) fn new(plan: &Plan, seen: &Seen, lag_max_us: f64) -> Self {
        let units = if plan.workload.subs > 0 { seen.delivered } else { seen.published } as f64;
        let payload_bytes = plan.workload.payload_bytes + plan.workload.header_bytes;
        let server_cpu_s = seen.server.map(Usage::cpu_s).filter(|s| *s > 0.0);
        let mut report = Self {
            plan: plan.clone(),
            window_s: seen.window_s,
            published: seen.published,
            delivered: seen.delivered,
            churned_per_s: seen.churned as f64 / seen.window_s,
            published_per_s: seen.published as f64 / seen.window_s,
            delivered_per_s: seen.delivered as f64 / seen.window_s,
            gigabytes_per_s: units * payload_bytes as f64 / seen.window_s / 1e9,
            server: seen.server,
            per_server_cpu_s: server_cpu_s.map(|s| units / s),
            counted: seen.counted,
            generator: seen.generator,
            generator_ns_each: seen.generator.cpu_s() * 1e9 / units.max(1.0),
            latency_us: Quantiles::of(&seen.latency),
            send_lag_us: Quantiles::of(&seen.send_lag),
            receive_lag_us: Quantiles::of(&seen.receive_lag),
            missing: seen.missing,
            invalid: Vec::new(),
            interrupted: seen.interrupted,
        };
        report.invalid = report.faults(seen, lag_max_us);
        report
    }

    fn faults(&self, seen: &Seen, lag_max_us: f64) -> Vec<String> {
        let mut faults = Vec::new();
        if seen.missing > 0 {
            faults.push(format!("{} deliveries are missing", seen.missing));
        }
        if seen.surplus > 0 {
            faults.push(format!("{} deliveries came too often", seen.surplus));
        }
        if seen.disordered > 0 {
            faults.push(format!("{} deliveries were out of order", seen.disordered));
        }
        let churn_rate = self.plan.workload.churn_rate;
        if self.churned_per_s < churn_rate * CHURN_PART_MIN && !self.interrupted {
            faults.push(format!(
                "only {} of {} pairs of SUB and UNSUB a second were taken",
                human(self.churned_per_s),
                human(churn_rate)
            ));
        }
        if matches!(self.plan.pace, Pace::Open { .. }) {
            let ends = [("sent", self.send_lag_us), ("received", self.receive_lag_us)];
            for (what, lag) in ends {
                if let Some(lag) = lag.filter(|lag| lag.p99 > lag_max_us) {
                    faults.push(format!(
                        "the generator itself {what} late (p99 {} µs, allowed {lag_max_us} µs): \
                         lower --rate or give it more CPU",
                        three_digits(lag.p99)
                    ));
                }
            }
        }
        faults
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "published  {}/s   delivered {}/s   {:.3} GB/s payload   ({:.2} s)",
            human(self.published_per_s),
            human(self.delivered_per_s),
            self.gigabytes_per_s,
            self.window_s
        );
        if let Some(server) = self.server {
            let _ = writeln!(out, "server     {}", usage_text(&server));
            if let Some(each) = self.per_server_cpu_s {
                let _ = writeln!(out, "           {} deliveries per CPU second", human(each));
            }
        }
        if let Some(counted) = self.counted {
            let _ = writeln!(out, "counted    {}", counted.text());
        }
        let _ = writeln!(
            out,
            "generator  {}, {:.0} ns CPU per delivery",
            usage_text(&self.generator),
            self.generator_ns_each
        );
        let rows = [
            ("latency", self.latency_us),
            ("send lag", self.send_lag_us),
            ("wake lag", self.receive_lag_us.filter(|_| self.latency_us.is_some())),
        ];
        for (name, quantiles) in rows {
            if let Some(q) = quantiles {
                let _ = writeln!(out, "{}", quantiles_text(name, &q));
            }
        }
        if self.churned_per_s > 0.0 {
            let _ = writeln!(out, "churn      {} SUB and UNSUB/s", human(self.churned_per_s));
        }
        for fault in &self.invalid {
            let _ = writeln!(out, "INVALID    {fault}");
        }
        if self.interrupted {
            let _ = writeln!(out, "ended early by the user");
        }
        out
    }
}

/// One line with the percentiles, in microseconds.
pub(crate) fn quantiles_text(name: &str, q: &Quantiles) -> String {
    format!(
        "{name:<10} p50 {}  p90 {}  p99 {}  p99.9 {}  p99.99 {}  max {}  mean {} µs  (n {})",
        three_digits(q.p50),
        three_digits(q.p90),
        three_digits(q.p99),
        three_digits(q.p999),
        three_digits(q.p9999),
        three_digits(q.max),
        three_digits(q.mean),
        q.count
    )
}

/// One line with what a process used.
pub(crate) fn usage_text(usage: &Usage) -> String {
    format!(
        "{:.2} s user + {:.2} s system, {} + {} switches, {:.1} MiB resident",
        usage.user_s,
        usage.system_s,
        usage.switches_voluntary,
        usage.switches_forced,
        usage.rss_bytes as f64 / f64::from(1 << 20)
    )
}

/// A histogram of nanoseconds in HdrHistogram's percentile format, in milliseconds.
pub(crate) fn hgrm(histogram: &Histogram<u64>) -> String {
    const TICKS_PER_HALF_DISTANCE: u32 = 5;
    let ms = |ns: f64| ns / 1e6;
    // Writing to a String cannot fail.
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let value = ms(step.value_iterated_to() as f64);
        let _ = write!(out, "{value:>12.6} {quantile:>2.12} {total:>10}");
        // The last line has no such factor: it would be infinite.
        let _ = match quantile {
            1.0 => writeln!(out),
            _ => writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile)),
        };
    }
    let (mean, deviation) = (ms(histogram.mean()), ms(histogram.stdev()));
    let (max, count) = (ms(histogram.max() as f64), histogram.len());
    let _ = writeln!(out, "#[Mean    = {mean:>12.6}, StdDeviation   = {deviation:>12.6}]");
    let _ = writeln!(out, "#[Max     = {max:>12.6}, Total count    = {count:>12}]");
    let _ =
        writeln!(out, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", histogram.buckets(), 1 << 11);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::histogram;

    #[test]
    fn numbers_have_three_digits_and_a_prefix() {
        assert_eq!(human(1_234_567.0), "1.23 M");
        assert_eq!(human(23_456.0), "23.5 k");
        assert_eq!(human(9_999.0), "9999");
        assert_eq!(human(4.2e9), "4.20 G");
    }

    #[test]
    fn percentiles_are_those_of_the_recorded_times() {
        let mut times = histogram();
        (1..=10_000).for_each(|us| times.record(us * 1000).unwrap());
        let q = Quantiles::of(&times).unwrap();
        let near = |value: f64, wanted: f64| assert!((value / wanted - 1.0).abs() < 0.002);
        near(q.p50, 5_000.0);
        near(q.p90, 9_000.0);
        near(q.p99, 9_900.0);
        near(q.p999, 9_990.0);
        near(q.p9999, 9_999.0);
        near(q.max, 10_000.0);
        near(q.mean, 5_000.5);
        assert_eq!(Quantiles::of(&histogram()), None);
    }

    #[test]
    fn a_percentile_file_ends_with_everything_counted() {
        let mut times = histogram();
        (1..=1000).for_each(|us| times.record(us * 1000).unwrap());
        let text = hgrm(&times);
        assert!(text.trim_start().starts_with("Value     Percentile TotalCount"));
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let fields: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(fields[1..], ["1.000000000000", "1000"]);
        assert!(text.contains("#[Max     ="), "{text}");
    }
}
