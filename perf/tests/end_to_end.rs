//! The program as its users run it: against fake servers that misbehave on purpose, and against
//! our broker.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

#[path = "end_to_end/kinds.rs"]
mod kinds;
mod program;

use program::{error_of, json_of, nats_server, perf, perf_with};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const INFO: &[u8] = b"INFO {\"version\":\"0\",\"headers\":true,\"max_payload\":1048576} \r\n";

/// How a fake server misbehaves.
#[derive(Clone, Copy, Default)]
struct Manners {
    /// Stops reading for so long, once, at this publish.
    stall: Option<(u64, Duration)>,
    /// Closes the connection at this publish.
    dies_at: Option<u64>,
    /// Forgets this publish.
    forgets: Option<u64>,
    /// Says this and closes, when CONNECT comes.
    refuses: Option<&'static str>,
}

/// Starts a server that passes every publish on to every subscription; gives its port.
fn fake_server(manners: Manners) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Small, and inherited: a server that does not read is soon felt by who writes.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).unwrap();
    let port = listener.local_addr().unwrap().port();
    let subscribers: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let subscribers = Arc::clone(&subscribers);
            // A client that goes away ends its thread with an error, as it should.
            thread::spawn(move || serve(stream, &subscribers, manners));
        }
    });
    port
}

fn serve(
    stream: TcpStream,
    subscribers: &Mutex<Vec<TcpStream>>,
    manners: Manners,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    writer.write_all(INFO)?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut published) = (String::new(), 0);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let (Some(text), true) = (manners.refuses, line.starts_with("CONNECT")) {
            return writer.write_all(format!("-ERR '{text}'\r\n").as_bytes());
        }
        if line.starts_with("PING") {
            writer.write_all(b"PONG\r\n")?;
        } else if line.starts_with("SUB ") {
            subscribers.lock().unwrap().push(writer.try_clone()?);
        } else if line.starts_with("PUB ") {
            let size: usize = line.split_whitespace().last().unwrap().parse().unwrap();
            let mut payload = vec![0; size + 2];
            reader.read_exact(&mut payload)?;
            published += 1;
            if manners.dies_at == Some(published) {
                return stream_end(&writer, subscribers);
            }
            if let Some((at, length)) = manners.stall
                && at == published
            {
                thread::sleep(length);
            }
            if manners.forgets == Some(published) {
                continue;
            }
            let message = [format!("MSG perf.0 1 {size}\r\n").as_bytes(), &payload].concat();
            for mut subscriber in subscribers.lock().unwrap().iter() {
                subscriber.write_all(&message)?;
            }
        }
    }
}

fn stream_end(publisher: &TcpStream, subscribers: &Mutex<Vec<TcpStream>>) -> std::io::Result<()> {
    for stream in subscribers.lock().unwrap().iter().chain([publisher]) {
        stream.shutdown(std::net::Shutdown::Both)?;
    }
    Ok(())
}

/// One second at 1000/s; the server stops reading for 200 ms in the middle. The 200 messages that
/// were meant for the stall wait between 0 and 200 ms, so the slowest 20 % spread evenly over that.
fn assert_a_stall_shows(payload: &str) {
    let port = fake_server(Manners {
        stall: Some((500, Duration::from_millis(200))),
        ..Manners::default()
    });
    let output = perf(&format!(
        "latency --url 127.0.0.1:{port} --rate 1000 --warmup 100ms --duration 1s \
         --lag-max 1s --verify --json - --payload {payload}"
    ));
    let report = json_of(&output);
    let latency = |name: &str| report["latency_us"][name].as_f64().unwrap() / 1e3;
    assert_eq!(report["latency_us"]["count"], 1000);
    assert_eq!(report["missing"], 0);
    assert!(latency("p50") < 50.0, "{report}");
    assert!((60.0..180.0).contains(&latency("p90")), "{report}");
    assert!((150.0..300.0).contains(&latency("p99")), "{report}");
    assert!((180.0..400.0).contains(&latency("max")), "{report}");
    assert!(output.status.success(), "{}", error_of(&output));
}

#[test]
fn a_server_that_stalls_for_200_ms_shows_at_the_right_percentiles() {
    assert_a_stall_shows("128");
}

#[test]
fn a_stall_that_blocks_the_publisher_shows_just_the_same() {
    // 13 MB are meant for the stall, which is more than the sockets hold: the publisher cannot
    // write, and a tool that counts from the real send time would see nothing of that.
    assert_a_stall_shows("64KiB");
}

#[test]
fn what_was_meant_for_the_window_counts_though_it_can_only_be_sent_behind_it() {
    let port = fake_server(Manners {
        stall: Some((800, Duration::from_millis(600))),
        ..Manners::default()
    });
    let output = perf(&format!(
        "latency --url 127.0.0.1:{port} --rate 1000 --warmup 100ms --duration 1s \
         --lag-max 1s --verify --json - --payload 64KiB"
    ));
    let report = json_of(&output);
    assert_eq!(report["latency_us"]["count"], 1000, "{report}");
    assert_eq!(report["missing"], 0);
}

#[test]
fn a_message_that_is_lost_makes_the_run_invalid_and_is_counted() {
    let port = fake_server(Manners { forgets: Some(150), ..Manners::default() });
    let output = perf(&format!(
        "latency --url 127.0.0.1:{port} --rate 1000 --warmup 50ms --duration 300ms \
         --lag-max 1s --verify --json -"
    ));
    let report = json_of(&output);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(report["missing"], 1);
    let faults = report["invalid"].to_string();
    assert!(faults.contains("1 deliveries are missing"), "{faults}");
    assert!(faults.contains("1 deliveries were out of order"), "{faults}");
}

#[test]
fn a_server_that_dies_is_told_in_one_line_with_the_missing_count() {
    let port = fake_server(Manners { dies_at: Some(100), ..Manners::default() });
    let output = perf(&format!("latency --url 127.0.0.1:{port} --rate 1000 --duration 2s"));
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("deliveries are missing"), "{error}");
    assert!(error.contains("the server's log"), "{error}");
}

#[test]
fn an_error_from_the_server_is_told_with_what_to_do() {
    let port =
        fake_server(Manners { refuses: Some("Authorization Violation"), ..Manners::default() });
    let output = perf(&format!("throughput --url 127.0.0.1:{port}"));
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("Authorization Violation") && error.contains("--creds"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for command in ["throughput", "latency", "rtt", "connect"] {
        let output = perf(&format!("{command} --url nats://127.0.0.1:{port}"));
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(error.contains(&port.to_string()) && error.contains("--server"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn options_that_do_not_go_together_are_refused_before_anything_starts() {
    for (arguments, remedy) in [
        ("latency --payload 4", "--payload 8"),
        ("throughput --subs 2 --fanout 3", "--fanout"),
        ("latency --rate 0", "--rate"),
        ("compare --server nats-server", "{port}"),
        ("throughput --subject a.*", "--subject"),
        ("rtt --requesters 0", "--requesters"),
    ] {
        let output = perf(arguments);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        assert!(error.contains(remedy), "{arguments}: {error}");
    }
}

/// The server to try everything with: the command in `SHARDCAST_PERF_SERVER`; else our broker, as
/// the workspace's `cargo test` builds it beside this program; else nats-server. With none of them
/// the tests that need one say so and end, but in CI they fail.
fn real_server() -> Option<String> {
    if let Ok(command) = std::env::var("SHARDCAST_PERF_SERVER") {
        return Some(command);
    }
    let broker = Path::new(env!("CARGO_BIN_EXE_shardcast-perf")).with_file_name("shardcast");
    if broker.exists() {
        return Some(format!("'{}' -a 127.0.0.1 -p {{port}} --shards 2", broker.display()));
    }
    let server = nats_server("the broker is not built");
    server.map(|program| format!("{program} -a 127.0.0.1 -p {{port}}"))
}

#[test]
fn the_smoke_suite_runs_on_a_real_server_and_writes_its_files() {
    let Some(server) = real_server() else { return };
    let original = nats_server("servers are compared");
    let other = original.map(|program| format!("{program} -a 127.0.0.1 -p {{port}}"));
    let other = other.as_ref().unwrap_or(&server);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_shardcast-perf"))
        .args(["compare", "--suite", "smoke", "--runs", "1"])
        .args(["--server", &format!("a={server}"), "--server", &format!("b={other}")])
        .arg("--json")
        .arg(file("out.json"))
        .arg("--hgrm")
        .arg(file("out.hgrm"))
        .arg("--plot")
        .arg(file("out.svg"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", error_of(&output));
    assert!(output.stderr.is_empty(), "no progress in a pipe: {}", error_of(&output));
    let report: Value = serde_json::from_slice(&std::fs::read(file("out.json")).unwrap()).unwrap();
    for row in report["rows"].as_array().unwrap() {
        for entry in row["servers"].as_array().unwrap() {
            assert!(entry["per_s"]["median"].as_f64().unwrap() > 0.0, "{row}");
            let missing = &entry["runs"][0]["missing"];
            assert!(missing.is_null() || missing == 0, "{row}");
        }
    }
    let hgrm = std::fs::read_to_string(file("out.1-2-2-k-s.a.hgrm")).unwrap();
    assert!(hgrm.contains("1.000000000000") && hgrm.contains("#[Max"), "{hgrm}");
    assert!(std::fs::read_to_string(file("out.svg")).unwrap().contains("<svg"));
}

#[test]
fn a_broker_is_compared_with_itself_for_each_number_of_shards() {
    let Some(server) = real_server() else { return };
    if !server.contains("--shards 2") {
        println!("skipped: the server has no shards");
        return;
    }
    let server = server.replace("--shards 2", "--shards {shards} -m {monitor}");
    let report = {
        let output = Command::new(env!("CARGO_BIN_EXE_shardcast-perf"))
            .args(["compare", "--shards", "1,2", "--runs", "1", "--duration", "300ms"])
            .args(["--with", "--warmup 50ms", "--json", "-", "--server", &format!("a={server}")])
            .arg("pairs: throughput --pubs 4 --subs 4 --subjects 4 --own-subjects --verify")
            .arg("requests: rtt --requesters 4 --responders 4 --warmup 50ms")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", error_of(&output));
        json_of(&output)
    };
    let commands: Vec<&str> =
        report["commands"].as_array().unwrap().iter().map(|c| c[0].as_str().unwrap()).collect();
    assert_eq!(commands, ["a 1", "a 2"]);
    for row in report["rows"].as_array().unwrap() {
        let crossed =
            |at: usize| row["servers"][at]["counted"]["records_per_delivery"].as_f64().unwrap();
        assert_eq!(crossed(0), 0.0, "{row}");
        assert!(crossed(1) > 0.0, "nothing crosses: {row}");
    }
}

#[test]
fn round_trips_and_storms_run_on_a_real_server() {
    let Some(server) = real_server() else { return };
    let run = |arguments: &str| {
        let output = perf_with(arguments, &["--json", "-", "--server", &server]);
        assert!(output.status.success(), "{arguments}: {}", error_of(&output));
        json_of(&output)
    };
    for how in ["", "--responders 0", "--requesters 3 --rate 900"] {
        let report = run(&format!("rtt --warmup 50ms --duration 300ms {how}"));
        assert!(report["rtt_us"]["count"].as_u64().unwrap() > 20, "{how}: {report}");
    }
    assert_eq!(run("connect --conns 200")["ready_us"]["count"], 200);
    let subs = run("subs --count 5000 --settle 100ms");
    assert_eq!(subs["made"], 5000);
    assert!(subs["server_bytes_each"].as_f64().unwrap() > 0.0, "{subs}");
    let idle = run("idle --conns 200 --settle 100ms");
    assert!(idle["server_bytes_each"].as_f64().unwrap() > 0.0, "{idle}");
}

#[test]
fn the_ceiling_is_measured_alone_and_as_one_more_server() {
    for how in ["--subs 3", "--payload 16 --headers 32", "--subs 30 --payload 16KiB --batch 1MiB"] {
        let output = perf(&format!("ceiling --warmup 50ms --duration 500ms --json - {how}"));
        assert!(output.status.success(), "{how}: {}", error_of(&output));
        let report = json_of(&output);
        assert!(report["delivered"].as_u64().unwrap() > 1000, "{how}: {report}");
        assert!(report["per_server_cpu_s"].as_f64().unwrap() > 0.0, "{how}: {report}");
    }
    let output = perf("ceiling --subjects 2");
    assert!(error_of(&output).contains("--subjects"), "{}", error_of(&output));

    let Some(server) = real_server() else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_shardcast-perf"))
        .args(["compare", "--ceiling", "--runs", "1", "--duration", "500ms"])
        .args(["--with", "--warmup 50ms", "--server", &format!("a={server}")])
        .args(["fan-out: throughput --subs 3", "queue: throughput --subs 3 --queue-groups 1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", error_of(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let cells = |name: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(&format!("| {name}"))).unwrap();
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    assert_eq!(cells("scenario")[2..5], ["a", "ceiling", "a/ceiling"]);
    let part: f64 = cells("fan-out")[4].parse().unwrap();
    assert!(part > 0.0, "{text}");
    assert_eq!(cells("queue")[3..5], ["–", "–"], "{text}");
}

#[test]
fn a_server_that_waits_for_a_subscriber_that_stalls_is_found_out() {
    let run = |stalled: u32| {
        let port = fake_server(Manners::default());
        perf(&format!(
            "throughput --url nats://127.0.0.1:{port} --payload 64KiB --subs 2 --warmup 50ms \
             --duration 2s --json - --stalled {stalled}"
        ))
    };
    let output = run(0);
    assert!(output.status.success(), "{}", error_of(&output));
    let output = run(1);
    assert!(!output.status.success());
    let said = error_of(&output) + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("the server waits for subscribers that do not read"), "{said}");
}

#[test]
fn a_soak_samples_each_round_and_finds_no_fault_in_a_real_server() {
    let Some(server) = real_server() else { return };
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("soak.svg");
    let arguments = "soak --total 3s --warmup 50ms --duration 500ms --flood 300ms --storm 50 \
                     --subs 4 --stalled 1 --churn 200 --rate 500 --json - --plot";
    let output = perf_with(arguments, &[picture.to_str().unwrap(), "--server", &server]);
    assert!(output.status.success(), "{}", error_of(&output));
    let report = json_of(&output);
    let samples = report["samples"].as_array().unwrap();
    assert!(!samples.is_empty());
    for sample in samples {
        for figure in ["rss_bytes", "files", "steady_per_s", "flood_per_s", "storm_per_s"] {
            assert!(sample[figure].as_f64().unwrap() > 0.0, "{figure}: {sample}");
        }
        assert!(sample["latency_us"]["p999"].as_f64().unwrap() > 0.0, "{sample}");
    }
    assert!(std::fs::read_to_string(picture).unwrap().contains("p99.9"));
}

#[test]
fn a_soak_with_accounts_reloads_and_pushes_tokens_to_either_server() {
    let original = nats_server("it is administered beside ours");
    let original = original.map(|program| format!("{program} -a 127.0.0.1 -p {{port}}"));
    for server in [real_server(), original].into_iter().flatten() {
        let arguments = "soak --total 1s --warmup 50ms --duration 200ms --flood 100ms --storm 10 \
                         --rate 200 --accounts 50 --reloads 2 --pushes 5 --json -";
        let output = perf_with(arguments, &["--server", &server]);
        assert!(output.status.success(), "{server}: {}", error_of(&output));
        let report = json_of(&output);
        let sample = &report["samples"][0];
        assert!(sample["rss_bytes"].as_u64().unwrap() > 0, "{sample}");
        assert!(sample["steady_per_s"].as_f64().unwrap() > 0.0, "{sample}");
        let administered = &sample["administered"];
        assert_eq!((&administered["reloads"], &administered["pushes"]), (&2.into(), &5.into()));
    }
    let output = perf("soak --total 1s --accounts 10 --url nats://127.0.0.1:1");
    assert!(error_of(&output).contains("--accounts does not go with"), "{}", error_of(&output));
}

#[test]
fn a_soak_names_the_round_and_the_part_of_it_in_which_a_server_fails() {
    // It serves the connections of the first part only.
    let port = fake_server(Manners::default());
    let output = perf(&format!(
        "soak --url nats://127.0.0.1:{port} --total 1s --warmup 50ms --duration 300ms --storm 5 \
         --flood 100ms --rate 500 --json -"
    ));
    assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
    assert!(error_of(&output).contains("round 1, flood"), "{}", error_of(&output));
}

#[test]
fn ctrl_c_prints_what_there_is_and_stops_the_server() {
    let Some(server) = real_server() else { return };
    let mut child = Command::new(env!("CARGO_BIN_EXE_shardcast-perf"))
        .args(["throughput", "--warmup", "100ms", "--duration", "60s", "--json", "-"])
        .args(["--server", &server])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    thread::sleep(Duration::from_millis(1500));
    let pid = rustix::process::Pid::from_child(&child);
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let server = std::fs::read_to_string(children).unwrap().trim().to_owned();
    assert!(!server.is_empty());
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(!Path::new(&format!("/proc/{server}")).exists(), "it runs on");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["interrupted"], true);
    assert!(report["delivered"].as_u64().unwrap() > 0, "{report}");
}
