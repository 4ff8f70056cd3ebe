//! What else a server is: a store, one of two that are linked, a broker for MQTT. Each is tried
//! with our broker and, where it is there, with nats-server.

use crate::program::{error_of, json_of, nats_server, perf_with};
use crate::real_server;
use serde_json::Value;

const WINDOW: &str = "--warmup 50ms --duration 2s";

/// Our broker and the original.
fn servers(options: &str) -> Vec<String> {
    let original = nats_server("servers are compared");
    let original = original.map(|program| format!("{program} -a 127.0.0.1 -p {{port}}"));
    let all = real_server().into_iter().chain(original);
    all.map(|server| format!("{server}{options}")).collect()
}

/// What `arguments` report of `server`.
fn run(arguments: &str, server: &str) -> Value {
    let output = perf_with(arguments, &["--json", "-", "--server", server]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments} on {server}: {said} {}", error_of(&output));
    json_of(&output)
}

fn count(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[test]
fn what_is_published_and_put_is_acknowledged_and_watched() {
    for server in servers(" -js -sd {store}") {
        for how in ["--of publish", "--of publish --outstanding 64 --requesters 3", "--of put"] {
            let report = run(&format!("rtt {WINDOW} {how}"), &server);
            assert!(count(&report, "replies") > 0, "{how} on {server}: {report}");
            assert_eq!(report["missing"], 0);
        }
        let how = format!("rtt {WINDOW} --of put --outstanding 64 --watchers 2");
        let report = run(&how, &server);
        assert!(count(&report, "watched") > 0, "{server}: {report}");
        assert_eq!(report["missing"], 0);
        let report = run(&format!("rtt {WINDOW} --of get --outstanding 16"), &server);
        assert!(count(&report, "replies") > 0, "{server}: {report}");
    }
}

#[test]
fn a_stream_is_read_again_and_again_in_both_ways() {
    for server in servers(" -js -sd {store}") {
        for how in
            ["--by fetch", "--by fetch --acked --batch 100", "--by push", "--by push --acked"]
        {
            let report = run(&format!("read {WINDOW} --messages 3000 {how}"), &server);
            assert!(count(&report, "read") > 0, "{how} on {server}: {report}");
            assert_eq!(report["miscounted"], 0, "{how} on {server}");
        }
    }
}

#[test]
fn a_server_that_stores_nothing_is_told_with_what_to_do() {
    for server in servers("") {
        let output = perf_with(&format!("rtt {WINDOW} --of publish"), &["--server", &server]);
        assert_eq!(output.status.code(), Some(1), "{server}");
        assert!(error_of(&output).contains("$JS.API"), "{}", error_of(&output));
    }
}

#[test]
fn messages_and_replies_cross_each_kind_of_link() {
    let all = servers("");
    let mut pairs = all.clone();
    if let [ours, theirs] = &all[..] {
        pairs.push(format!("{ours} && {theirs}"));
    }
    for pair in &pairs {
        for link in ["route", "leaf", "gateway"] {
            let load = format!("throughput {WINDOW} --link {link} --subs 3 --verify");
            let report = run(&load, pair);
            assert!(count(&report, "delivered") > 0, "{link}, {pair}: {report}");
            assert_eq!(report["missing"], 0);
            let report = run(&format!("rtt {WINDOW} --link {link}"), pair);
            assert!(count(&report, "replies") > 0, "{link}, {pair}: {report}");
        }
    }
}

#[test]
fn mqtt_is_spoken_with_either_quality_of_service() {
    for server in servers(" -js -sd {store}") {
        for how in ["--mqtt 0 --subs 3", "--mqtt 1 --subs 2 --window 16KiB --write 2KiB"] {
            let report = run(&format!("throughput {WINDOW} --verify {how}"), &server);
            assert!(count(&report, "delivered") > 0, "{how} on {server}: {report}");
            assert_eq!(report["missing"], 0);
        }
        let report = run(&format!("rtt {WINDOW} --of mqtt --outstanding 8"), &server);
        assert!(count(&report, "replies") > 0, "{server}: {report}");
        let report = run("idle --conns 100 --settle 100ms --mqtt", &server);
        assert_eq!(count(&report, "opened"), 100);
    }
}
