//! `/metrics`: figures as text for Prometheus.
//!
//! First the numbers of `/varz` by the names that the exporter for nats-server gives them, with
//! both of its prefixes, so that dashboards made for it work. Then ours, `shardcast_*`. All are
//! sums that shards keep anyway: what a scrape costs does not grow with the connections.

use std::fmt::{Display, Write};
use std::ops::RangeInclusive;

use chrono::DateTime;
use serde_json::Value;

use super::State;
use super::varz::Varz;
use crate::engine::{Dropped, LaneFigures};
use crate::measure::Histogram;
use crate::shard::Figures;

/// The format that is written.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What the exporter's names begin with: its default, and what its Helm chart sets.
const PREFIXES: [&str; 2] = ["gnatsd_varz", "nats_varz"];
/// Fields of text that are shown as labels, and those that are times.
const LABELS: [&str; 4] = ["server_id", "server_name", "version", "name"];
const TIMES: [&str; 2] = ["start", "config_load_time"];
/// What the exporter leaves out, and what is ours.
const NOT_TOLD: [&str; 4] = [
    "_varz_cluster_tls_timeout",
    "_varz_cluster_cluster_port",
    "_varz_cluster_auth_timeout",
    "_varz_shardcast",
];
const NS_PER_S: f64 = 1e9;

/// A figure: its name, what it is, and where it comes from.
type Row<F, T> = (&'static str, &'static str, fn(&F) -> T);

const COUNTERS: [Row<Figures, u64>; 16] = [
    ("turns_total", "Rounds of the shard's loop.", |shard| shard.reactor.turns),
    ("system_calls_total", "Calls of io_uring_enter.", |shard| shard.reactor.enters),
    ("completions_total", "Completions reported by the kernel.", |shard| shard.reactor.completions),
    ("wakeups_sent_total", "Times the shard had to wake another one.", |shard| shard.rings),
    (
        "wakeups_received_total",
        "Turns before which another thread rang the shard's bell.",
        |shard| shard.reactor.woken,
    ),
    ("connections_accepted_total", "Connections accepted, for all shards.", |shard| {
        shard.report.accepted
    }),
    ("connections_throttled_total", "Connections turned away for their rate.", |shard| {
        shard.report.throttled
    }),
    ("messages_received_total", "Messages received from clients.", |shard| {
        shard.report.stats.in_msgs
    }),
    ("messages_received_bytes_total", "Payload bytes received from clients.", |shard| {
        shard.report.stats.in_bytes
    }),
    ("messages_delivered_total", "Messages delivered to clients, each copy counted.", |shard| {
        shard.report.stats.out_msgs
    }),
    ("messages_delivered_bytes_total", "Payload bytes delivered to clients.", |shard| {
        shard.report.stats.out_bytes
    }),
    ("stale_connections_total", "Clients closed because they answered no PING.", |shard| {
        shard.report.stats.stale_connections
    }),
    ("queue_messages_lost_total", "Queue messages whose last member left meanwhile.", |shard| {
        shard.report.stats.queue_msgs_lost
    }),
    ("garbled_runs_total", "Runs from other shards that could not be read.", |shard| {
        shard.report.stats.garbled_runs
    }),
    ("sends_total", "Sends completed by the kernel.", |shard| shard.reactor.sent_bytes.count()),
    ("sent_bytes_total", "Bytes that the kernel took.", |shard| shard.reactor.sent_bytes.sum()),
];

const GAUGES: [Row<Figures, usize>; 5] = [
    ("connections", "Open connections.", |shard| shard.report.conns),
    (
        "connections_back_pressured",
        "Connections not read from for now: a lane is full, or those \
      who get their messages are behind.",
        |shard| shard.braked_conns,
    ),
    ("subscriptions", "Subscriptions of the shard's connections.", |shard| {
        shard.report.subscriptions
    }),
    ("cached_subjects", "Subjects whose receivers are remembered.", |shard| {
        shard.report.cached_subjects
    }),
    (
        "pending_bytes",
        "Output queued or with the kernel; what connections share counts once.",
        |shard| shard.output_bytes,
    ),
];

/// A histogram of each shard, the powers of two that bound the buckets shown, and its unit.
struct Distribution {
    name: &'static str,
    help: &'static str,
    bounds: RangeInclusive<u32>,
    unit: f64,
    of: fn(&Figures) -> &Histogram,
}

const DISTRIBUTIONS: [Distribution; 3] = [
    Distribution {
        name: "turn_seconds",
        help: "Time of a turn with something to do, without the time in the kernel.",
        bounds: 8..=30,
        unit: NS_PER_S,
        of: |shard| &shard.turn_ns,
    },
    Distribution {
        name: "receive_to_send_seconds",
        help: "From the arrival of the oldest input that a send answers to, to that send.",
        bounds: 8..=34,
        unit: NS_PER_S,
        of: |shard| &shard.delay_ns,
    },
    Distribution {
        name: "send_bytes",
        help: "Bytes that a completed send has taken.",
        bounds: 4..=20,
        unit: 1.0,
        of: |shard| &shard.reactor.sent_bytes,
    },
];

const LANE_COUNTERS: [Row<LaneFigures, u64>; 2] = [
    ("lane_records_total", "Records for another shard; a run of messages is one.", |lane| {
        lane.records
    }),
    ("lane_bytes_total", "Bytes of these records.", |lane| lane.bytes),
];

const LANE_GAUGES: [Row<LaneFigures, usize>; 2] = [
    ("lane_waiting_records", "Records that the other shard has not taken yet.", |lane| {
        lane.waiting_records
    }),
    ("lane_waiting_bytes", "Bytes that wait for room on the lane.", |lane| lane.waiting_bytes),
];

/// The page.
pub(super) fn render(state: &State, figures: &[Figures], cpu: f64) -> String {
    let mut page = Exposition::default();
    let varz = serde_json::to_value(Varz::new(state, figures, cpu)).unwrap_or_default();
    PREFIXES.iter().for_each(|prefix| page.varz(prefix, &varz));
    page.server(state, figures);
    page.shards(figures);
    page.lanes(figures);
    page.text
}

/// Text in Prometheus' format: families of samples.
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family; its samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{}\"", escaped(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    /// As the exporter does it: every number is a gauge, and so is a time, in milliseconds; who
    /// the server is are labels. What is in an object has its name before its own.
    fn varz(&mut self, prefix: &str, varz: &Value) {
        let id = varz["server_id"].as_str().unwrap_or_default();
        self.fields(prefix, id, varz);
    }

    fn fields(&mut self, prefix: &str, id: &str, object: &Value) {
        for (field, value) in object.as_object().into_iter().flatten() {
            // Requests are counted by their paths.
            let field = field.trim_start_matches('/');
            let name = format!("{prefix}_{field}");
            let is_told = !field.is_empty() && !NOT_TOLD.iter().any(|end| name.ends_with(end));
            let help = format!("The field {field} of /varz.");
            match value {
                _ if !is_told => {}
                Value::Number(number) => {
                    self.family(&name, "gauge", &help);
                    self.sample(&name, &[("server_id", id)], number);
                }
                Value::String(text) if LABELS.contains(&field) => {
                    self.family(&name, "gauge", &help);
                    self.sample(&name, &[("server_id", id), ("value", text)], 1);
                }
                Value::String(text) if TIMES.contains(&field) => {
                    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
                        self.family(&name, "gauge", &help);
                        self.sample(&name, &[("server_id", id)], time.timestamp_millis());
                    }
                }
                Value::Object(_) => self.fields(&name, id, value),
                _ => {}
            }
        }
    }

    fn server(&mut self, state: &State, figures: &[Figures]) {
        let tier = figures.iter().map(|shard| shard.tier).min();
        let tier = tier.map_or_else(String::new, |tier| tier.to_string());
        let version = env!("CARGO_PKG_VERSION");
        self.family("shardcast_info", "gauge", "What runs; the figure is always 1.");
        self.sample("shardcast_info", &[("version", version), ("tier", &tier)], 1);
        self.family("shardcast_shards", "gauge", "Shards that were started.");
        self.sample("shardcast_shards", &[], state.reporter.shards());
        let help = "Shards that have answered this request in time.";
        self.family("shardcast_shards_answering", "gauge", help);
        self.sample("shardcast_shards_answering", &[], figures.len());
    }

    fn shards(&mut self, figures: &[Figures]) {
        let help = "Processor time of the shard's thread.";
        self.of_each("cpu_seconds_total", "counter", help, figures, |shard| {
            shard.cpu.as_secs_f64()
        });
        for (name, help, value) in COUNTERS {
            self.of_each(name, "counter", help, figures, value);
        }
        for (name, help, value) in GAUGES {
            self.of_each(name, "gauge", help, figures, value);
        }
        let name = "shardcast_slow_consumers_total";
        self.family(name, "counter", "Clients closed because they did not read fast enough.");
        for shard in figures {
            for account in &shard.accounts {
                let labels = [("shard", &*number(shard)), ("account", &*account.name)];
                self.sample(name, &labels, account.slow_consumers);
            }
        }
        let name = "shardcast_overflow_dropped_messages_total";
        let help = "Messages that clients have not got because they were behind.";
        self.family(name, "counter", help);
        for shard in figures {
            let Dropped { newest, oldest, conflated } = shard.report.stats.dropped;
            for (way, count) in
                [("drop_newest", newest), ("drop_oldest", oldest), ("conflate", conflated)]
            {
                self.sample(name, &[("shard", &number(shard)), ("dropped_by", way)], count);
            }
        }
        DISTRIBUTIONS.iter().for_each(|distribution| self.distribution(distribution, figures));
    }

    fn of_each<T: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        figures: &[Figures],
        value: impl Fn(&Figures) -> T,
    ) {
        let name = format!("shardcast_{name}");
        self.family(&name, kind, help);
        for shard in figures {
            self.sample(&name, &[("shard", &number(shard))], value(shard));
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a time needs no more digits")]
    fn distribution(&mut self, distribution: &Distribution, figures: &[Figures]) {
        let Distribution { name, help, bounds, unit, of } = distribution;
        let (bucket, sum, count) = (
            format!("shardcast_{name}_bucket"),
            format!("shardcast_{name}_sum"),
            format!("shardcast_{name}_count"),
        );
        self.family(&format!("shardcast_{name}"), "histogram", help);
        for figures in figures {
            let (histogram, shard) = (of(figures), number(figures));
            for bound in bounds.clone() {
                let up_to: u64 = histogram.buckets()[..=bound as usize].iter().sum();
                let le = ((1_u64 << bound) as f64 / unit).to_string();
                self.sample(&bucket, &[("shard", &shard), ("le", &le)], up_to);
            }
            self.sample(&bucket, &[("shard", &shard), ("le", "+Inf")], histogram.count());
            self.sample(&sum, &[("shard", &shard)], histogram.sum() as f64 / unit);
            self.sample(&count, &[("shard", &shard)], histogram.count());
        }
    }

    fn lanes(&mut self, figures: &[Figures]) {
        for (name, help, value) in LANE_COUNTERS {
            self.of_each_lane(name, "counter", help, figures, value);
        }
        for (name, help, value) in LANE_GAUGES {
            self.of_each_lane(name, "gauge", help, figures, value);
        }
    }

    fn of_each_lane<T: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        figures: &[Figures],
        value: impl Fn(&LaneFigures) -> T,
    ) {
        let name = format!("shardcast_{name}");
        self.family(&name, kind, help);
        for shard in figures {
            for (to, lane) in &shard.lanes {
                let labels = [("from", &*number(shard)), ("to", &*to.0.to_string())];
                self.sample(&name, &labels, value(lane));
            }
        }
    }
}

/// The shard's number, as its label.
fn number(shard: &Figures) -> String {
    shard.report.shard.0.to_string()
}

/// A label's value between quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_end_its_quotes() {
        let mut page = Exposition::default();
        page.sample("a", &[("b", "c\"d\\e\nf"), ("g", "")], 1);
        page.sample("a", &[], 2.5);
        assert_eq!(page.text, "a{b=\"c\\\"d\\\\e\\nf\",g=\"\"} 1\na 2.5\n");
    }
}
