//! `/metrics` and `/shardz`: the form of what is told, and that it is true.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, http, is_nats_server, shard_counts};
use serde_json::Value;

const ARGS: &[&str] = &["-m", "-1"];

/// What a scrape says, taken apart; panics where Prometheus would refuse it or be misled.
struct Scrape {
    kinds: BTreeMap<String, String>,
    /// Name, labels in the order of their names, figure.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Scrape {
    fn of(broker: &Broker) -> Self {
        let (status, head, body) = http::get(broker, "/metrics");
        assert_eq!(status, 200, "{body}");
        let kind = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
        assert!(head.contains(kind), "{head}");
        Self::parse(&body)
    }

    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line ends");
        let mut scrape = Self { kinds: BTreeMap::new(), samples: Vec::new() };
        let (mut help, mut family) = (String::new(), String::new());
        let mut seen = HashSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').expect("HELP has words");
                assert!(!words.is_empty() && !words.contains('\\'), "{line}");
                help = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("TYPE has a kind");
                assert_eq!(name, help, "HELP and TYPE stand together");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let before = scrape.kinds.insert(name.to_owned(), kind.to_owned());
                assert!(before.is_none(), "{name} is told twice");
                family = name.to_owned();
            } else {
                let (name, labels, figure) = sample(line);
                let suffix = name.strip_prefix(&*family).expect("a family before its samples");
                let of_histogram = scrape.kinds[&family] == "histogram";
                let suffixes: &[&str] =
                    if of_histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.contains(&suffix), "{line} in {family}");
                assert!(seen.insert((name.clone(), labels.clone())), "twice: {line}");
                scrape.samples.push((name, labels, figure));
            }
        }
        scrape
    }

    /// The figures of that name, all of them together.
    fn sum(&self, name: &str) -> f64 {
        let of_name = self.samples.iter().filter(|(other, ..)| other == name);
        let figures: Vec<f64> = of_name.map(|(.., figure)| *figure).collect();
        assert!(!figures.is_empty(), "there is no {name}");
        figures.iter().sum()
    }

    fn check_histograms(&self) {
        let histograms = self.kinds.iter().filter(|(_, kind)| *kind == "histogram");
        for (name, _) in histograms {
            let part = |suffix: &str| {
                let whole = format!("{name}{suffix}");
                self.samples.iter().filter(move |(other, ..)| *other == whole)
            };
            let mut series: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
            for (_, labels, count) in part("_bucket") {
                let mut labels = labels.clone();
                let bound = labels.remove("le").expect("a bucket has a bound");
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
                series.entry(labels).or_default().push((bound, *count));
            }
            assert!(!series.is_empty(), "{name} has no buckets");
            for (labels, buckets) in series {
                let rises = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
                assert!(buckets.windows(2).all(rises), "{name} {labels:?}: {buckets:?}");
                let (last, all) = buckets[buckets.len() - 1];
                assert!(last.is_infinite(), "{name} ends with +Inf");
                let counted = part("_count").find(|(_, other, _)| *other == labels);
                assert_eq!(counted.expect("a count").2, all, "{name} {labels:?}");
                let sum = part("_sum").find(|(_, other, _)| *other == labels);
                assert!(sum.expect("a sum").2 >= 0.0);
            }
        }
    }
}

/// A line with a figure.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (name, figure) = line.rsplit_once(' ').expect("a figure");
    let (name, labels) = match name.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').expect("an end of labels")),
        None => (name, ""),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    assert!(name.chars().all(word) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
    // None of our labels has a comma or a quote in it.
    let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
        let (label, value) = label.split_once("=\"").expect("a value in quotes");
        assert!(label.chars().all(word), "{line}");
        let value = value.strip_suffix('"').expect("an end of quotes");
        assert!(!value.contains(['"', '\\']), "{line}");
        (label.to_owned(), value.to_owned())
    });
    (name.to_owned(), labels.collect(), figure.parse().expect("a number"))
}

/// A publisher and three subscribers, who have had `count` messages of five bytes each.
fn traffic(broker: &Broker, count: usize) -> Vec<Wire> {
    let mut wires: Vec<Wire> = (0..4).map(|_| Wire::connect(broker)).collect();
    for subscriber in &mut wires[1..] {
        subscriber.send(b"SUB a 1\r\n");
        subscriber.sync();
    }
    for _ in 0..count {
        wires[0].send(b"PUB a 5\r\nhello\r\n");
        wires[0].sync();
    }
    for subscriber in &mut wires[1..] {
        subscriber.expect(&b"MSG a 1 5\r\nhello\r\n".repeat(count));
    }
    wires
}

#[test]
fn every_figure_has_its_help_and_type_and_says_what_has_happened() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        let broker = Broker::start(shards, ARGS);
        let before = Scrape::of(&broker);
        let _wires = traffic(&broker, 10);
        let after = Scrape::of(&broker);
        after.check_histograms();
        let grown = |name: &str| after.sum(name) - before.sum(name);
        for (name, wanted) in [
            ("shardcast_messages_received_total", 10.0),
            ("shardcast_messages_received_bytes_total", 50.0),
            ("shardcast_messages_delivered_total", 30.0),
            ("shardcast_messages_delivered_bytes_total", 150.0),
            ("shardcast_connections", 4.0),
            ("shardcast_connections_accepted_total", 4.0),
            ("shardcast_subscriptions", 3.0),
            ("gnatsd_varz_in_msgs", 10.0),
            ("nats_varz_out_bytes", 150.0),
            ("nats_varz_connections", 4.0),
        ] {
            assert_eq!(grown(name), wanted, "{name} with {shards} shards");
        }
        // Each synchronisation was a send, and none was shorter than PONG.
        let sends = grown("shardcast_send_bytes_count");
        assert!(sends >= 10.0, "{sends} sends");
        assert_eq!(sends, grown("shardcast_sends_total"));
        assert!(grown("shardcast_sent_bytes_total") >= 5.0 * sends);
        assert!(grown("shardcast_receive_to_send_seconds_count") >= sends);
        for name in [
            "shardcast_turns_total",
            "shardcast_turn_seconds_count",
            "shardcast_turn_seconds_sum",
            "shardcast_receive_to_send_seconds_sum",
            "shardcast_system_calls_total",
            "shardcast_completions_total",
            "shardcast_wakeups_received_total",
            "shardcast_cpu_seconds_total",
        ] {
            assert!(grown(name) > 0.0, "{name} has not moved");
        }
        assert_eq!(after.sum("shardcast_shards_answering"), f64::from(shards));
        assert_eq!(after.sum("shardcast_slow_consumers_total"), 0.0);
    }
}

#[test]
fn each_lane_counts_what_goes_over_it() {
    if is_nats_server() {
        return;
    }
    let broker = Broker::start(2, ARGS);
    let _wires = traffic(&broker, 10);
    let scrape = Scrape::of(&broker);
    let lanes: BTreeSet<_> = scrape
        .samples
        .iter()
        .filter(|(name, ..)| name == "shardcast_lane_records_total")
        .map(|(_, labels, _)| (labels["from"].clone(), labels["to"].clone()))
        .collect();
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    assert_eq!(lanes, BTreeSet::from([pair("0", "1"), pair("1", "0")]));
    // Two subscribers of each shard announced `a` once, and ten messages crossed.
    assert!(scrape.sum("shardcast_lane_records_total") >= 12.0);
    assert!(scrape.sum("shardcast_lane_bytes_total") >= 50.0);
    assert_eq!(scrape.sum("shardcast_lane_waiting_records"), 0.0);
    assert!(scrape.sum("shardcast_wakeups_sent_total") > 0.0);
}

#[test]
fn a_scrape_has_as_much_to_tell_of_many_connections_as_of_none() {
    if is_nats_server() {
        return;
    }
    let broker = Broker::start(2, ARGS);
    let names = || {
        let samples = Scrape::of(&broker).samples.into_iter();
        samples.map(|(name, labels, _)| (name, labels)).collect::<Vec<_>>()
    };
    let before = names();
    let _wires: Vec<Wire> = (0..300).map(|_| Wire::connect(&broker)).collect();
    assert_eq!(names(), before);
}

#[test]
fn the_exporters_dashboard_finds_its_figures() {
    if is_nats_server() {
        return;
    }
    let broker = Broker::start(1, ARGS);
    let scrape = Scrape::of(&broker);
    let id = http::json(&broker, "/varz")["server_id"].as_str().unwrap().to_owned();
    for field in [
        "cpu",
        "mem",
        "in_bytes",
        "in_msgs",
        "out_bytes",
        "out_msgs",
        "connections",
        "subscriptions",
        "slow_consumers",
    ] {
        for prefix in ["gnatsd", "nats"] {
            let name = format!("{prefix}_varz_{field}");
            assert_eq!(scrape.kinds[&name], "gauge", "{name}");
            let (_, labels, _) =
                scrape.samples.iter().find(|(other, ..)| *other == name).expect("a sample");
            assert_eq!(*labels, BTreeMap::from([("server_id".to_owned(), id.clone())]));
        }
    }
}

#[test]
fn what_the_exporter_makes_of_varz_is_there() {
    if is_nats_server() {
        return;
    }
    let config = "http: 127.0.0.1:-1\ncluster { name: C, listen: \"127.0.0.1:-1\" }\n";
    let broker = Broker::with_config(2, config);
    let varz = http::json(&broker, "/varz");
    let start = chrono::DateTime::parse_from_rfc3339(varz["start"].as_str().unwrap()).unwrap();
    let scrape = Scrape::of(&broker);
    for prefix in ["gnatsd", "nats"] {
        let sum = |field: &str| scrape.sum(&format!("{prefix}_varz_{field}"));
        // A time is told in milliseconds.
        assert_eq!(sum("start"), start.timestamp_millis() as f64);
        for kind in ["clients", "routes", "gateways", "leafs"] {
            assert_eq!(sum(&format!("slow_consumer_stats_{kind}")), 0.0);
            assert_eq!(sum(&format!("stale_connection_stats_{kind}")), 0.0);
        }
        for (field, figure) in [
            ("config_load_time", start.timestamp_millis() as f64),
            ("cluster_pool_size", 3.0),
            ("cluster_name", 1.0),
            ("http_req_stats_varz", 1.0),
            ("http_req_stats_metrics", 1.0),
            ("disk_io_wait_stats_waits", 0.0),
        ] {
            assert_eq!(sum(field), figure, "{prefix} {field}");
        }
        for left_out in ["cluster_tls_timeout", "cluster_cluster_port", "shardcast_version"] {
            assert!(!scrape.kinds.contains_key(&format!("{prefix}_varz_{left_out}")), "{left_out}");
        }
    }
}

/// A broker that has everything that our dashboard asks for.
pub(crate) fn complete_broker() -> (Broker, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().display();
    let config = format!("http: \"127.0.0.1:-1\"\njetstream {{ store_dir: \"{store}\" }}\n");
    (Broker::with_config(2, &config), dir)
}

fn tuning(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tuning/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The queries of the dashboard, and those of the alerts.
pub(crate) fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&tuning("grafana.json")).unwrap();
    let mut queries = Vec::new();
    collect_queries(&dashboard, &mut queries);
    assert!(queries.len() > 30, "{queries:?}");
    let alerts = tuning("alerts.yml");
    let alerts = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    queries.extend(alerts.map(str::to_owned));
    queries
}

#[test]
fn our_dashboard_and_alerts_ask_for_nothing_that_is_not_there() {
    if is_nats_server() {
        return;
    }
    let (broker, _dir) = complete_broker();
    let scrape = Scrape::of(&broker);
    let is_there = |name: &str| {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        scrape.kinds.contains_key(name)
            || family.is_some_and(|family| {
                scrape.kinds.get(family).is_some_and(|kind| kind == "histogram")
            })
    };
    for query in &queries() {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let prefixes = ["shardcast_", "process_", "jetstream_"];
        let ours: Vec<&str> =
            words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect();
        assert!(!ours.is_empty(), "{query}");
        for name in ours {
            assert!(is_there(name), "{name} is not in /metrics: {query}");
        }
        // Shard 0 of one server is not shard 0 of another.
        for by in query.split(" by (").skip(1) {
            let by = by.split(')').next().unwrap();
            assert!(by.contains("instance") || by == "account", "{query}");
        }
    }
}

#[test]
fn a_scrape_has_what_prometheus_has_of_every_process() {
    if is_nats_server() {
        return;
    }
    let broker = Broker::start(1, ARGS);
    let scrape = Scrape::of(&broker);
    assert!(scrape.sum("process_resident_memory_bytes") > 1e6);
    let (resident, mapped) = ("process_resident_memory_bytes", "process_virtual_memory_bytes");
    assert!(scrape.sum(mapped) > scrape.sum(resident));
    assert!(scrape.sum("process_cpu_seconds_total") > 0.0);
    assert!(scrape.sum("process_start_time_seconds") > 1.7e9);
    let _wires: Vec<Wire> = (0..10).map(|_| Wire::connect(&broker)).collect();
    let now = Scrape::of(&broker);
    assert!(now.sum("process_open_fds") >= scrape.sum("process_open_fds") + 10.0);
    assert!(now.sum("process_max_fds") > now.sum("process_open_fds"));
    assert_eq!(now.sum("shardcast_account_connections"), 10.0);
}

#[test]
fn links_to_other_servers_are_told_with_their_lag() {
    if is_nats_server() {
        return;
    }
    let config = |routes: &str| {
        format!(
            "http: \"127.0.0.1:-1\"\ncluster {{ name: C, listen: \"127.0.0.1:-1\"\n\
             pool_size: -1\n{routes} }}\n"
        )
    };
    let mut first = Broker::with_config(1, &config(""));
    let routes = format!("routes: [\"nats://127.0.0.1:{}\"]", first.route_port());
    let second = Broker::with_config(1, &config(&routes));
    let deadline = Instant::now() + PATIENCE;
    let scrape = loop {
        let scrape = Scrape::of(&second);
        if scrape.samples.iter().any(|(name, ..)| name == "shardcast_link_rtt_seconds") {
            break scrape;
        }
        assert!(Instant::now() < deadline, "no route is measured");
        std::thread::sleep(Duration::from_millis(20));
    };
    let name = "shardcast_link_pending_bytes";
    let (_, labels, bytes) = scrape.samples.iter().find(|(other, ..)| other == name).unwrap();
    assert_eq!((labels["kind"].as_str(), *bytes), ("route", 0.0));
    assert!(scrape.sum("shardcast_link_rtt_seconds") > 0.0);
}

fn collect_queries(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(text) if key == "expr" => into.push(text.clone()),
                    Value::String(text) if text.starts_with("label_values(") => {
                        into.push(text.clone());
                    }
                    _ => collect_queries(field, into),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|one| collect_queries(one, into)),
        _ => {}
    }
}

#[test]
fn a_shard_that_polls_takes_turns_without_the_kernel_and_another_does_not() {
    if is_nats_server() {
        return;
    }
    // Every look for work that found none is a turn that did not enter the kernel.
    let idle_turns = |broker: &Broker| {
        let shard = http::json(broker, "/shardz")["shards"][0].clone();
        let count = |name: &str| shard[name].as_u64().unwrap();
        count("turns").saturating_sub(count("system_calls"))
    };
    let broker = Broker::start(1, &["-m", "-1", "--busy-poll", "1m"]);
    Wire::connect(&broker).sync();
    assert!((0..10_000).any(|_| idle_turns(&broker) > 100_000), "it sleeps");
    let broker = Broker::start(1, &["-m", "-1"]);
    Wire::connect(&broker).sync();
    assert!((0..10).all(|_| idle_turns(&broker) < 1000), "it does not sleep");
}

#[test]
fn shardz_agrees_with_metrics() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        let broker = Broker::start(shards, ARGS);
        let _wires = traffic(&broker, 10);
        let shardz = http::json(&broker, "/shardz");
        let list = shardz["shards"].as_array().unwrap();
        assert_eq!((list.len(), &shardz["shards_started"]), (shards as usize, &shards.into()));
        let sum =
            |field: &str| list.iter().map(|shard| shard[field].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("in_msgs"), sum("out_msgs")), (10, 30));
        assert_eq!((sum("connections"), sum("subscriptions")), (4, 3));
        for (at, shard) in list.iter().enumerate() {
            assert_eq!(shard["shard"], at);
            assert_eq!(shard["lanes"].as_array().unwrap().len(), shards as usize - 1);
            let buckets = shard["turn"]["buckets"].as_array().unwrap();
            assert!(buckets.iter().any(|count| count.as_u64() > Some(0)), "{shard}");
            assert!(shard["at_ns"].as_u64() > Some(0));
        }
    }
}
