//! `/metrics`: figures as text for Prometheus.
//!
//! First the numbers of `/varz` by the names that the exporter for nats-server gives them, with
//! both of its prefixes, so that dashboards made for it work. Then ours, `shardcast_*`. All are
//! sums that shards keep anyway: what a scrape costs does not grow with the connections.

use std::fmt::{Display, Write};
use std::ops::RangeInclusive;

use chrono::DateTime;
use serde_json::Value;

use super::varz::Varz;
use super::{MonitorState, jsz, process};
use crate::engine::{AccountFigures, Dropped, LaneFigures, Traffic};
use crate::measure::Histogram;
use crate::shard::Figures;

/// The content type of the text format for Prometheus.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Prefixes of the exporter's names: its default, and that of its Helm chart.
const PREFIXES: [&str; 2] = ["gnatsd_varz", "nats_varz"];
/// Text fields that become labels.
const LABELS: [&str; 4] = ["server_id", "server_name", "version", "name"];
const TIMES: [&str; 2] = ["start", "config_load_time"];
/// Ends of names that are left out: those that the exporter omits, and our own part of `/varz`.
const NOT_TOLD: [&str; 4] = [
    "_varz_cluster_tls_timeout",
    "_varz_cluster_cluster_port",
    "_varz_cluster_auth_timeout",
    "_varz_shardcast",
];
const NS_PER_S: f64 = 1e9;

/// A figure: its name, its help text, and its value.
type Row<F, T> = (&'static str, &'static str, fn(&F) -> T);

const COUNTERS: [Row<Figures, u64>; 18] = [
    ("turns_total", "Rounds of the shard's loop.", |shard| shard.reactor.turns),
    ("system_calls_total", "Calls of io_uring_enter.", |shard| shard.reactor.enters),
    ("completions_total", "Completions reported by the kernel.", |shard| shard.reactor.completions),
    ("wakeups_sent_total", "Times the shard had to wake another one.", |shard| shard.rings),
    ("wakeups_received_total", "Turns for which another thread woke the shard.", |shard| {
        shard.reactor.woken
    }),
    ("connections_accepted_total", "Connections accepted, for all shards.", |shard| {
        shard.report.accepted
    }),
    ("connections_throttled_total", "Connections refused by rate_limits.", |shard| {
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
    ("stale_connections_total", "Connections closed because no PING was answered.", |shard| {
        shard.report.stats.stale_connections.total()
    }),
    (
        "queue_messages_lost_total",
        "Queue messages lost because the last member of their group left.",
        |shard| shard.report.stats.queue_msgs_lost,
    ),
    ("garbled_runs_total", "Unreadable runs from other shards.", |shard| {
        shard.report.stats.garbled_runs
    }),
    (
        "stream_records_lost_total",
        "Records of streams that damage to the disk has cost, at most.",
        |shard| shard.report.stats.lost_stream_records,
    ),
    (
        "stream_write_failures_total",
        "Times at which the disk was full or failed, so that streams could not be written.",
        |shard| shard.report.stats.stream_write_failures,
    ),
    ("sends_total", "Sends completed by the kernel.", |shard| shard.reactor.sent_bytes.count()),
    ("sent_bytes_total", "Bytes accepted by the kernel.", |shard| shard.reactor.sent_bytes.sum()),
];

const GAUGES: [Row<Figures, usize>; 5] = [
    ("connections", "Open connections.", |shard| shard.report.conns),
    (
        "connections_back_pressured",
        "Connections whose reading is paused: a lane is full, or their subscribers are behind.",
        |shard| shard.braked_conns,
    ),
    ("subscriptions", "Subscriptions of the shard's connections.", |shard| {
        shard.report.subscriptions
    }),
    ("cached_subjects", "Subjects in the cache of receivers.", |shard| {
        shard.report.cached_subjects
    }),
    ("pending_bytes", "Output queued or in the kernel; shared bytes count once.", |shard| {
        shard.output_bytes
    }),
];

/// A histogram of each shard, the powers of two that bound the shown buckets, and its unit.
struct HistogramMetric {
    name: &'static str,
    help: &'static str,
    bounds: RangeInclusive<u32>,
    unit: f64,
    of: fn(&Figures) -> &Histogram,
}

const DISTRIBUTIONS: [HistogramMetric; 3] = [
    HistogramMetric {
        name: "turn_seconds",
        help: "Time of a turn with work, without the time in the kernel.",
        bounds: 8..=30,
        unit: NS_PER_S,
        of: |shard| &shard.turn_ns,
    },
    HistogramMetric {
        name: "receive_to_send_seconds",
        help: "Time from the arrival of the oldest input to the send that answers it.",
        bounds: 8..=34,
        unit: NS_PER_S,
        of: |shard| &shard.delay_ns,
    },
    HistogramMetric {
        name: "send_bytes",
        help: "Bytes of a completed send.",
        bounds: 4..=20,
        unit: 1.0,
        of: |shard| &shard.reactor.sent_bytes,
    },
];

const LANE_COUNTERS: [Row<LaneFigures, u64>; 2] = [
    ("lane_records_total", "Records for another shard; a run of messages counts as one.", |lane| {
        lane.records
    }),
    ("lane_bytes_total", "Bytes of these records.", |lane| lane.bytes),
];

const LANE_GAUGES: [Row<LaneFigures, usize>; 2] = [
    (
        "lane_waiting_records",
        "Records not taken yet by the other shard; many runs are one.",
        |lane| lane.waiting_records,
    ),
    ("lane_waiting_bytes", "Bytes waiting for room on the lane.", |lane| lane.waiting_bytes),
];

/// A figure of an account: its name, its kind, its help text, and its value.
type AccountRow = (&'static str, &'static str, &'static str, fn(&AccountFigures) -> u64);

const ACCOUNTS: [AccountRow; 7] = [
    ("connections", "gauge", "Open connections.", |account| account.conns as u64),
    ("leaf_connections", "gauge", "Open leaf connections.", |account| account.leaves as u64),
    ("subscriptions", "gauge", "Subscriptions.", |account| account.subscriptions as u64),
    ("messages_received_total", "counter", "Messages from its connections.", |account| {
        account.traffic.in_msgs
    }),
    ("messages_sent_total", "counter", "Messages to its connections.", |account| {
        account.traffic.out_msgs
    }),
    ("received_bytes_total", "counter", "Payload bytes from its connections.", |account| {
        account.traffic.in_bytes
    }),
    ("sent_bytes_total", "counter", "Payload bytes to its connections.", |account| {
        account.traffic.out_bytes
    }),
];

/// Renders the page.
pub(super) fn render(state: &MonitorState, figures: &[Figures], cpu: f64) -> String {
    let mut page = Exposition::default();
    let varz = serde_json::to_value(Varz::new(state, figures, cpu)).unwrap_or_default();
    PREFIXES.iter().for_each(|prefix| page.varz(prefix, &varz));
    for (name, value) in jsz::metrics(state) {
        page.family(name, "gauge", "JetStream, as the exporter for nats-server names it.");
        page.sample(name, &[], value);
    }
    page.process(state);
    page.server(state, figures);
    page.shards(figures);
    page.lanes(figures);
    page.accounts(figures);
    page.links(state);
    page.text
}

/// Text in the format for Prometheus: families of samples.
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family, which samples follow.
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

    /// Adds the fields of `/varz` as the exporter does: every number is a gauge, and so is a time,
    /// in milliseconds; the server's names are labels. A field of an object has the object's name
    /// before its own.
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

    /// Adds the figures that Prometheus has for every process, by its names.
    fn process(&mut self, state: &MonitorState) {
        let memory = process::memory();
        let mut row = |name: &str, kind, help, value: &dyn Display| {
            self.family(name, kind, help);
            self.sample(name, &[], value);
        };
        let help = "Processor time of the process, user and system, in seconds.";
        row("process_cpu_seconds_total", "counter", help, &process::used_s());
        let help = "Memory that is in RAM.";
        row("process_resident_memory_bytes", "gauge", help, &memory.resident_bytes);
        let help = "Addresses that are mapped.";
        row("process_virtual_memory_bytes", "gauge", help, &memory.virtual_bytes);
        let help = "The time of the start, in seconds since 1970.";
        row("process_start_time_seconds", "gauge", help, &state.started_at.timestamp());
        if let Some(count) = process::open_files() {
            row("process_open_fds", "gauge", "Open files; each connection is one.", &count);
        }
        if let Some(max) = process::open_files_max() {
            row("process_max_fds", "gauge", "The limit of open files.", &max);
        }
    }

    fn server(&mut self, state: &MonitorState, figures: &[Figures]) {
        let tier = figures.iter().map(|shard| shard.tier).min();
        let tier = tier.map_or_else(String::new, |tier| tier.to_string());
        let version = env!("CARGO_PKG_VERSION");
        self.family("shardcast_info", "gauge", "The version; the value is always 1.");
        self.sample("shardcast_info", &[("version", version), ("tier", &tier)], 1);
        self.family("shardcast_shards", "gauge", "Shards started.");
        self.sample("shardcast_shards", &[], state.reporter.shards());
        let help = "Shards that answered this request in time.";
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
        let help = "Messages dropped for clients that were behind.";
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
    fn distribution(&mut self, distribution: &HistogramMetric, figures: &[Figures]) {
        let HistogramMetric { name, help, bounds, unit, of } = distribution;
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

    /// Adds figures of each account, summed over the shards.
    fn accounts(&mut self, figures: &[Figures]) {
        let accounts = figures.iter().flat_map(|shard| shard.accounts.iter().cloned());
        let accounts = AccountFigures::summed(accounts);
        for (name, kind, help, value) in ACCOUNTS {
            let name = format!("shardcast_account_{name}");
            self.family(&name, kind, help);
            for account in &accounts {
                self.sample(&name, &[("account", &account.name)], value(account));
            }
        }
    }

    /// Adds figures of the connections to other servers.
    #[expect(clippy::cast_precision_loss, reason = "a time needs no more digits")]
    fn links(&mut self, state: &MonitorState) {
        let links = LinkRow::all(state);
        let mut family =
            |name: &str, kind: &str, help: &str, value: &dyn Fn(&LinkRow) -> Option<f64>| {
                let name = format!("shardcast_link_{name}");
                self.family(&name, kind, help);
                for link in &links {
                    let id = link.id.to_string();
                    let labels = [("kind", link.kind), ("remote", &*link.remote), ("id", &id)];
                    if let Some(value) = value(link) {
                        self.sample(&name, &labels, value);
                    }
                }
            };
        let help = "Round trip to the other server; none before the first PING.";
        family("rtt_seconds", "gauge", help, &|link| {
            (link.rtt_ns > 0).then_some(link.rtt_ns as f64 / NS_PER_S)
        });
        family("pending_bytes", "gauge", "Output for it that waits.", &|link| {
            link.pending_bytes.map(|bytes| bytes as f64)
        });
        family("messages_received_total", "counter", "Messages from it.", &|link| {
            Some(link.traffic.in_msgs as f64)
        });
        family("messages_sent_total", "counter", "Messages to it.", &|link| {
            Some(link.traffic.out_msgs as f64)
        });
        family("received_bytes_total", "counter", "Payload bytes from it.", &|link| {
            Some(link.traffic.in_bytes as f64)
        });
        family("sent_bytes_total", "counter", "Payload bytes to it.", &|link| {
            Some(link.traffic.out_bytes as f64)
        });
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

/// A figure of a connection to another server.
struct LinkRow {
    kind: &'static str,
    id: u64,
    remote: String,
    /// Nanoseconds; 0 before the first measurement.
    rtt_ns: u64,
    /// Output that waits; `None` if it is not counted.
    pending_bytes: Option<usize>,
    traffic: Traffic,
}

impl LinkRow {
    /// Returns the connections to members and other clusters, which are few. Leaf nodes may be as
    /// many as clients: `/varz` has their number.
    fn all(state: &MonitorState) -> Vec<Self> {
        let routes = state.reporter.routes(false).into_iter().map(|route| Self {
            kind: "route",
            id: route.rid,
            remote: route.remote_name,
            rtt_ns: route.rtt_ns,
            pending_bytes: Some(route.pending_bytes),
            traffic: route.traffic,
        });
        let gateways = state.reporter.gateways(false).into_iter().map(|gateway| Self {
            kind: if gateway.is_outbound { "gateway_out" } else { "gateway_in" },
            id: gateway.rid,
            remote: gateway.cluster,
            rtt_ns: gateway.rtt_ns,
            pending_bytes: Some(gateway.pending_bytes),
            traffic: gateway.traffic,
        });
        routes.chain(gateways).collect()
    }
}

/// Returns the shard's number, as a label.
fn number(shard: &Figures) -> String {
    shard.report.shard.0.to_string()
}

/// Escapes a label's value for quotes.
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
