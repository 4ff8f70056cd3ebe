//! The dashboard, the alerts and `/metrics` with a real Prometheus, and its promtool.
//!
//! Without them the test is skipped, unless `CI` is `true`: `apt-get install prometheus`.
//! `SHARDCAST_TEST_PROMETHEUS` names a directory with other programs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait for a process")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::wire::Wire;
use crate::broker::{PATIENCE, http, is_nats_server};
use crate::metrics::{complete_broker, queries};

/// A Prometheus that is killed when dropped.
struct Prometheus {
    process: Child,
    port: u16,
}

impl Prometheus {
    fn start(program: &Path, config: &Path, data: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, port }
    }

    /// The data of an answer of its interface; none if it gives an error, or does not answer yet.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        (body["status"] == "success").then(|| body["data"].clone())
    }

    /// What a query yields.
    fn query(&self, query: &str) -> Option<Vec<Value>> {
        let mut encoded = form_urlencoded::Serializer::new(String::new());
        let query = encoded.append_pair("query", query).finish();
        Some(self.ask(&format!("query?{query}"))?["result"].as_array()?.clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The directory with `prometheus` and `promtool`; none where there is none and none is required.
fn programs() -> Option<PathBuf> {
    let wanted = std::env::var_os("SHARDCAST_TEST_PROMETHEUS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = wanted.into_iter().chain(std::env::split_paths(&path));
    let found = directories.find(|directory| {
        ["prometheus", "promtool"].iter().all(|one| directory.join(one).exists())
    });
    if found.is_none() {
        let required = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!required, "there is no Prometheus: `apt-get install prometheus`");
        println!("skipped: there is no Prometheus; `apt-get install prometheus`");
    }
    found
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_real_prometheus_scrapes_us_and_answers_every_query_of_dashboard_and_alerts() {
    if is_nats_server() {
        return;
    }
    let Some(programs) = programs() else { return };
    let alerts = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/alerts.yml");
    let checked = Command::new(programs.join("promtool")).args(["check", "rules", alerts]).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let (broker, _store) = complete_broker();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{alerts}']\n\
         scrape_configs:\n- job_name: shardcast\n  static_configs: [{{targets: \
         ['127.0.0.1:{}']}}]\n",
        http::port(&broker)
    );
    std::fs::write(&config, text).unwrap();
    let prometheus =
        Prometheus::start(&programs.join("prometheus"), &config, &dir.path().join("data"));
    until("a scrape", || {
        let up = prometheus.query("up{job=\"shardcast\"}").unwrap_or_default();
        up.first().is_some_and(|up| up["value"][1] == "1")
    });
    let mut publisher = Wire::connect(&broker);
    until("a rate", || {
        publisher.send(b"PUB a 1\r\nx\r\n");
        publisher.sync();
        let query = "sum(rate(shardcast_messages_received_total[1m])) > 0";
        prometheus.query(query).is_some_and(|found| !found.is_empty())
    });
    let mut empty = Vec::new();
    for query in queries().iter().filter(|query| !query.starts_with("label_values(")) {
        let filled = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
        let found = prometheus.query(&filled).unwrap_or_else(|| panic!("refused: {filled}"));
        // Nothing is wrong, and there are no other servers.
        let is_alert = !query.contains("$instance");
        if found.is_empty() && !is_alert && !query.contains("shardcast_link_") {
            empty.push(filled);
        }
    }
    assert_eq!(empty, [""; 0], "the dashboard has panels that stay empty");
    until("all rules are evaluated", || {
        let rules = prometheus.ask("rules").unwrap_or_default();
        let groups = rules["groups"].as_array().cloned().unwrap_or_default();
        let rules: Vec<&Value> =
            groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        rules.len() >= 10 && rules.iter().all(|rule| rule["health"] == "ok")
    });
}
