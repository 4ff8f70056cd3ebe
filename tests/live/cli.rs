//! The executable as those who start it see it: arguments, streams, files, signals, exit status.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_shardcast");

/// What a run that ends by itself leaves behind.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = Command::new(PROGRAM).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Asserts that a run fails with exactly one line on standard error, and returns it.
fn refused(args: &[&str]) -> String {
    let (code, stdout, stderr) = run(args);
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(stdout, "");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().to_owned()
}

/// A server that logs to standard error. Killed when dropped, should a test fail.
struct Server {
    process: Child,
    log: BufReader<ChildStderr>,
    /// Everything logged so far.
    lines: Vec<String>,
}

impl Server {
    /// Starts on a free port of this machine and waits until the server is ready.
    fn start(args: &[&str]) -> Self {
        let mut server = Self::spawn(args);
        server.wait_for("Server is ready");
        server
    }

    fn spawn(args: &[&str]) -> Self {
        Self::spawn_by(Command::new(PROGRAM), args)
    }

    fn spawn_by(mut command: Command, args: &[&str]) -> Self {
        command.args(["-a", "127.0.0.1", "-p", "-1"]).args(args);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        Self { process, log, lines: Vec::new() }
    }

    /// The same with permissions that nobody's habits take away from.
    fn spawn_with_mask(args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0 && exec \"$@\"", "sh", PROGRAM]);
        Self::spawn_by(command, args)
    }

    /// Reads the log up to a line that contains `text`, and returns that line.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let length = self.log.read_line(&mut line).unwrap();
            assert_ne!(length, 0, "the log ended without {text:?}: {:#?}", self.lines);
            self.lines.push(line.trim_end().to_owned());
            if line.contains(text) {
                return line.trim_end().to_owned();
            }
        }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn port(&self) -> u16 {
        let line = self.lines.iter().find(|line| line.contains("client connections on")).unwrap();
        line.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Waits for the end, and returns the exit status and the rest of the log.
    fn end(mut self) -> (Option<i32>, String) {
        wait_until(|| self.process.try_wait().unwrap().is_some());
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.process.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already unless the test has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for something that another process does, and fails if it takes too long.
#[expect(clippy::disallowed_methods, reason = "there is nothing to block on")]
fn wait_until(mut done: impl FnMut() -> bool) {
    const ATTEMPTS_MAX: usize = 2000;
    for _ in 0..ATTEMPTS_MAX {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("waited too long");
}

fn file(dir: &Path, content: &str) -> String {
    let path = dir.join("c.conf");
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_doctor_prints_a_table_and_ends_with_the_worst_verdict() {
    let (code, table, stderr) = run(&["doctor"]);
    assert_eq!(stderr, "");
    let has = |word: &str| table.lines().any(|line| line.starts_with(word));
    // Tips do not count.
    let worst = if has("FAIL  ") { 2 } else { i32::from(has("warn  ")) };
    assert_eq!(code, Some(worst), "{table}");
    for check in ["kernel", "io_uring", "locked memory", "CPU quota", "net.core.somaxconn"] {
        assert!(table.lines().any(|line| line[4..].trim_start().starts_with(check)), "{table}");
    }
    let mends = table.lines().filter(|line| line.trim_start().starts_with("mend: ")).count();
    let is_bad = |line: &&str| ["tip ", "warn ", "FAIL "].iter().any(|bad| line.starts_with(bad));
    let bad = table.lines().filter(is_bad);
    assert_eq!(bad.count(), mends, "{table}");
}

#[test]
fn the_doctors_json_says_the_same() {
    let (code, json, _) = run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rank = |verdict: &serde_json::Value| {
        ["pass", "advise", "warn", "fail"].iter().position(|word| verdict == word).unwrap()
    };
    let findings = report["findings"].as_array().unwrap();
    let worst = findings.iter().map(|finding| rank(&finding["verdict"])).max().unwrap();
    assert_eq!(rank(&report["verdict"]), worst);
    assert_eq!(code, Some(i32::try_from(worst).unwrap().saturating_sub(1)));
    for finding in findings {
        let is_bad = rank(&finding["verdict"]) > 0;
        assert_eq!((finding["costs"].is_string(), finding["mend"].is_string()), (is_bad, is_bad));
    }
}

#[test]
fn the_doctor_looks_at_a_running_broker_and_packs_what_a_report_needs() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "http: \"127.0.0.1:-1\" # hush\nlog_file: \"broker.log\"\n\
         authorization { user: ann, password: hush }\n",
    );
    let mut command = Command::new(PROGRAM);
    command.current_dir(dir.path()).args(["-a", "127.0.0.1", "-p", "-1", "-c", &config]);
    let broker = Server::of(command);
    let log = dir.path().join("broker.log");
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    wait_until(|| logged().contains("Server is ready"));
    let monitor = logged()
        .lines()
        .find_map(|line| Some(line.split_once("Starting http monitor on ")?.1.to_owned()));
    let monitor = format!("http://{}", monitor.unwrap());
    let pid = broker.pid().to_string();
    let archive = dir.path().join("bundle.tar.gz");
    let store = dir.path().to_str().unwrap();
    let bundle = archive.to_str().unwrap();
    let args =
        ["doctor", "--pid", &pid, "--disk", store, "--bundle", bundle, "--monitoring", &monitor];
    let (code, table, stderr) = run(&args);
    assert!(matches!(code, Some(0..=2)), "{code:?} {stderr}");
    for check in ["its open files", "its memory", "its shards", "disk: commit", "disk: write"] {
        assert!(table.lines().any(|line| line[4..].trim_start().starts_with(check)), "{table}");
    }
    assert!(table.contains("shard-0"), "{table}");
    assert!(stderr.starts_with("written: "), "{stderr}");
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);

    let file = fs::File::open(&archive).unwrap();
    let mut parts = std::collections::BTreeMap::new();
    for part in tar::Archive::new(flate2::read::GzDecoder::new(file)).entries().unwrap() {
        let mut part = part.unwrap();
        let name = part.path().unwrap().display().to_string();
        let mut text = String::new();
        part.read_to_string(&mut text).unwrap();
        assert!(!text.contains("hush"), "{name}: {text}");
        parts.insert(name.strip_prefix("shardcast-bundle/").unwrap().to_owned(), text);
    }
    assert_eq!(
        parts["config.conf"].lines().nth(2),
        Some("authorization { user: ann, password: *** }")
    );
    assert!(parts["log.txt"].contains("Server is ready"), "{}", parts["log.txt"]);
    assert!(parts["process/cmdline"].contains("-p -1"));
    assert!(parts["process/threads"].contains("(shard-0)"));
    assert!(parts["host/proc-meminfo"].contains("MemTotal"));
    let varz: serde_json::Value = serde_json::from_str(&parts["pages/varz"]).unwrap();
    assert_eq!(varz["auth_required"], true);
    assert!(parts["pages/connz-closed"].contains("\"connections\""));
    assert!(parts["pages/metrics"].contains("shardcast_info"));
    assert_eq!(parts["doctor.txt"], table);

    let (code, _, stderr) = run(&["doctor", "--pid", "4194305"]);
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("no process 4194305"), "{stderr}");
}

#[test]
fn a_doctor_called_wrongly_does_not_look_like_a_verdict() {
    for args in [&["doctor", "--jsno"][..], &["doctor", "no-such-card"]] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (Some(3), ""), "{stderr}");
        assert!(!stderr.is_empty());
    }
    assert_eq!(run(&["doctor", "--help"]).0, Some(0));
    let (code, _, stderr) = run(&["-p", "1", "doctor"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("none of the server's flags"), "{stderr}");
}

#[test]
fn the_version_is_printed_by_flag_and_by_word() {
    let commit = match shardcast::GIT_COMMIT {
        "not set" => String::new(),
        commit => format!(" [{commit}]"),
    };
    let wanted = format!("shardcast: v{}{commit}\n", env!("CARGO_PKG_VERSION"));
    for arg in ["-v", "--version", "version"] {
        assert_eq!(run(&[arg]), (Some(0), wanted.clone(), String::new()), "{arg}");
    }
}

#[test]
fn the_usage_page_goes_to_standard_output() {
    for arg in ["-h", "--help", "help"] {
        let (code, stdout, stderr) = run(&[arg]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arg}");
        assert!(stdout.contains("Usage: shardcast [options]"), "{stdout}");
        assert!(stdout.contains("--shards"), "{stdout}");
    }
}

#[test]
fn a_mistake_on_the_command_line_is_one_line_and_exit_status_1() {
    let hint = "shardcast: unknown flag --prot; did you mean --port? -h lists all flags";
    assert_eq!(refused(&["--prot", "1"]), hint);
    assert_eq!(refused(&["foo"]), "shardcast: unrecognized command: \"foo\"");
    assert!(refused(&["-p", "x"]).starts_with("shardcast: invalid value \"x\" for --port"));
    assert!(refused(&["completions"]).ends_with("as in \"completions bash\""));
    assert!(refused(&["-t"]).contains("--config"));
}

#[test]
fn a_good_file_passes_the_check_with_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "max_payload: 1MB\n");
    let (code, stdout, stderr) = run(&["-t", "-c", &path]);
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    let start = format!("shardcast: configuration file {path} is valid (sha256:");
    assert!(stderr.starts_with(&start), "{stderr}");
}

#[test]
fn a_bad_file_is_refused_with_the_place_in_the_check_and_at_start() {
    let dir = tempfile::tempdir().unwrap();
    for (content, place) in [
        ("port: 1\n  nosuch: 1\n", ":2:3: unknown field \"nosuch\""),
        ("port: 4222\nmax_payload: { this is wrong", ":2:24: expected a new line"),
        ("tls { cert_match: a }", ":1:7: cert_match is not supported yet"),
    ] {
        let path = file(dir.path(), content);
        for args in [&["-t", "-c", &path][..], &["-c", &path][..]] {
            let line = refused(args);
            assert!(line.starts_with(&format!("shardcast: {path}{place}")), "{line}");
        }
    }
    assert!(refused(&["-c", "/dev/null/c"]).contains("cannot read /dev/null/c: Not a"));
}

#[test]
fn the_check_fails_for_warnings_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "ping_interval: 1\n");
    assert!(refused(&["-t", "-c", &path]).contains("write \"1s\""));
}

#[test]
fn a_port_in_use_is_fatal_and_said_on_standard_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, stderr) = run(&["-a", "127.0.0.1", "-p", &port]);
    assert_eq!(code, Some(1));
    let wanted = format!("[FTL] Error listening on port: 127.0.0.1:{port}, \"Address already");
    assert!(stderr.contains(&wanted), "{stderr}");

    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let line = refused(&["-a", "127.0.0.1", "-p", &port, "-l", log.to_str().unwrap()]);
    assert!(line.starts_with("shardcast: Error listening on port"), "{line}");
    assert!(fs::read_to_string(log).unwrap().contains(&wanted));
}

#[test]
fn a_host_that_does_not_exist_is_fatal() {
    let (code, _, stderr) = run(&["-a", "no.such.host.invalid", "-p", "-1"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("[FTL] Error listening on port: no.such.host.invalid:0"), "{stderr}");
}

#[test]
fn a_free_port_is_named_before_the_server_is_ready_and_accepts() {
    let server = Server::start(&["-n", "emma"]);
    TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let log = server.lines.join("\n");
    for text in ["Starting shardcast", "  Version:  ", "  Name:     emma", "  ID:       N"] {
        assert!(log.contains(&format!("[INF] {text}")), "{text}\n{log}");
    }
    assert!(log.contains("  Shards:   "), "{log}");
    assert!(log.contains("  io_uring: "), "{log}");
    assert!(server.lines.last().unwrap().ends_with("[INF] Server is ready"), "{log}");
}

#[test]
fn flags_win_over_the_file_which_is_named_with_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "port: 1\nserver_name: file\nauthorization { token: t }\n");
    let server = Server::start(&["-c", &path, "-n", "flag"]);
    assert_ne!(server.port(), 1);
    let log = server.lines.join("\n");
    assert!(log.contains("  Name:     flag"), "{log}");
    assert!(log.contains("[WRN] Plaintext passwords detected, use nkeys or bcrypt"), "{log}");
    assert!(log.contains(&format!("Using configuration file: {path} (sha256:")), "{log}");
}

#[test]
fn log_lines_begin_with_the_process_id_and_the_time() {
    let mut server = Server::start(&["--logtime_utc"]);
    let line = server.lines.pop().unwrap();
    let rest = line.strip_prefix(&format!("[{}] ", server.pid())).unwrap();
    // 2026/11/21 08:05:53.928619 [INF] …
    let (time, text) = rest.split_at("2026/11/21 08:05:53.928619".len());
    let shape = time.replace(|c: char| c.is_ascii_digit(), "0");
    assert_eq!(shape, "0000/00/00 00:00:00.000000");
    assert_eq!(text, " [INF] Server is ready");
}

#[test]
fn the_time_can_be_left_out() {
    let server = Server::start(&["-T=false"]);
    let wanted = format!("[{}] [INF] Server is ready", server.pid());
    assert_eq!(server.lines.last(), Some(&wanted));
}

#[test]
fn the_pid_file_stays_and_the_ports_file_goes() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let dir_arg = dir.path().to_str().unwrap();
    let server = Server::start(&["-P", pid_file.to_str().unwrap(), "--ports_file_dir", dir_arg]);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), server.pid().to_string());
    let ports_file = dir.path().join(format!("shardcast_{}.ports", server.pid()));
    let ports = fs::read_to_string(&ports_file).unwrap();
    assert_eq!(ports, format!("{{\"nats\":[\"nats://127.0.0.1:{}\"]}}", server.port()));
    server.signal(Signal::INT);
    assert_eq!(server.end().0, Some(0));
    assert!(pid_file.exists());
    assert!(!ports_file.exists());
}

#[test]
fn files_are_for_those_for_whom_nats_server_makes_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let config = file(dir.path(), &trusting_a_directory(&path("accounts")));
    let (log, pid) = (path("log"), path("pid"));
    let args = ["-c", &config, "-l", log.to_str().unwrap(), "-P", pid.to_str().unwrap()];
    let server = Server::spawn_with_mask(&args);
    wait_until(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("Server is ready")));
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        [mode("log"), mode("pid"), mode("accounts")].map(|mode| format!("{mode:o}")),
        ["640", "600", "700"]
    );
    server.signal(Signal::TERM);
    assert_eq!(server.end().0, Some(0));
}

/// A file that has the accounts of a new operator in this directory.
fn trusting_a_directory(directory: &Path) -> String {
    let key = nkeys::KeyPair::new_operator().public_key();
    format!("trusted_keys: {key}\nresolver {{ type: full, dir: \"{}\" }}\n", directory.display())
}

#[test]
fn clients_come_in_last_when_the_files_that_tell_of_the_server_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    // Whoever writes it waits for a reader.
    let made = Command::new("mkfifo").arg(&pid_file).status().unwrap();
    assert!(made.success());
    let port = free_port();
    let (port_arg, dir_arg) = (port.to_string(), dir.path().to_str().unwrap());
    let args = ["-p", &port_arg, "-P", pid_file.to_str().unwrap(), "--ports_file_dir", dir_arg];
    let mut server = Server::spawn(&args);
    server.wait_for("io_uring: tier");
    let error = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), server.pid().to_string());
    wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(dir.path().join(format!("shardcast_{}.ports", server.pid())).exists());
    server.wait_for("Server is ready");
}

/// A port that is free at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn clients_that_neither_read_nor_close_do_not_delay_the_end() {
    let server = Server::start(&["--shards", "2"]);
    let clients: Vec<TcpStream> =
        (0..8).map(|_| TcpStream::connect(("127.0.0.1", server.port())).unwrap()).collect();
    for mut client in &clients {
        let mut info = [0; 5];
        client.read_exact(&mut info).unwrap();
        client.write_all(b"CONNECT {}\r\nSUB a 1\r\nPING\r\n").unwrap();
    }
    server.signal(Signal::TERM);
    let (status, said) = server.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(!said.contains("queued output was not taken"), "it waits for clients: {said}");
    drop(clients);
}

#[test]
fn clients_that_are_owed_something_and_take_nothing_are_given_up_and_counted() {
    const PAYLOAD: usize = 1 << 20;
    let server = Server::start(&["--shards", "1"]);
    let connect = || TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let mut reader = connect();
    rustix::net::sockopt::set_socket_recv_buffer_size(&reader, 4096).unwrap();
    reader.write_all(b"CONNECT {}\r\nSUB a 1\r\nPING\r\n").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"PONG\r\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    let mut publisher = connect();
    publisher.write_all(b"CONNECT {\"verbose\":false}\r\n").unwrap();
    for _ in 0..16 {
        publisher.write_all(format!("PUB a {PAYLOAD}\r\n").as_bytes()).unwrap();
        publisher.write_all(&vec![b'x'; PAYLOAD]).unwrap();
        publisher.write_all(b"\r\n").unwrap();
    }
    publisher.write_all(b"PING\r\n").unwrap();
    let mut lines = BufReader::new(&publisher).lines();
    assert!(lines.any(|line| line.unwrap() == "PONG"));
    server.signal(Signal::TERM);
    let (status, said) = server.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("Closed 1 connections"), "{said}");
}

#[test]
fn with_too_few_files_the_remedy_is_to_allow_more() {
    for files_max in 5..=16 {
        let script = format!("ulimit -n {files_max} && exec \"$@\"");
        let mut command = Command::new("timeout");
        command.args(["5", "sh", "-c", &script, "sh", PROGRAM, "-a", "127.0.0.1", "-p", "-1"]);
        command.args(["--shards", "2"]).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        for line in lines {
            said.push(line);
            if said.iter().any(|line| line.contains("Server is ready")) {
                let pid = Pid::from_raw(process.id().try_into().unwrap()).unwrap();
                let _ = kill_process(pid, Signal::TERM);
                break;
            }
        }
        let _ = process.wait();
        let last = said.last().unwrap();
        assert!(
            last.contains("Server is ready") || last.contains("ulimit -n"),
            "{files_max}: {last}"
        );
    }
}

#[test]
fn the_flags_with_which_the_clients_own_tests_start_a_server_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let jetstream = format!("jetstream {{ store_dir: {:?} }}\nserver_tags: [a]\n", path("js"));
    let config = file(dir.path(), &jetstream);
    // Routes that lead to nobody: to ports where nobody but this test could listen.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = format!("nats-route://{}", nobody.local_addr().unwrap());
    for flags in [
        format!(
            "--store_dir {} -P {} --routes {route},{route} --cluster nats://127.0.0.1:-1 \
             --cluster_name N -n NAME",
            path("store"),
            path("pid")
        ),
        format!("-config {config} -user u -pass p -DV"),
        format!("-auth t -cluster nats://127.0.0.1:-1 -cluster_name N -routes {route}"),
        "--user=u --pass=p".to_owned(),
        format!("--cluster_listen nats://127.0.0.1:-1 --cluster_name N --config {config}"),
        format!("--debug --server_name N --store_dir={}", path("other")),
    ] {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let server = Server::start(&flags);
        TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        server.signal(Signal::TERM);
        assert_eq!(server.end().0, Some(0), "{flags:?}");
    }
}

#[test]
fn the_ports_file_names_every_kind_of_port() {
    let dir = tempfile::tempdir().unwrap();
    let text = "http: \"127.0.0.1:-1\"\nwebsocket { host: 127.0.0.1, port: -1, no_tls: true }\n\
                cluster { name: C, listen: \"127.0.0.1:-1\" }\nserver_tags: [a, b]\n\
                leafnodes { listen: \"127.0.0.1:-1\" }\n";
    let (config, dir_arg) = (file(dir.path(), text), dir.path().to_str().unwrap());
    let server = Server::start(&["-c", &config, "--ports_file_dir", dir_arg]);
    let ports_file = dir.path().join(format!("shardcast_{}.ports", server.pid()));
    let ports: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&ports_file).unwrap()).unwrap();
    for (kind, scheme) in
        [("nats", "nats"), ("monitoring", "http"), ("cluster", "nats"), ("websocket", "ws")]
    {
        let url = ports[kind][0].as_str().unwrap_or_default();
        let port = url.strip_prefix(&format!("{scheme}://127.0.0.1:")).unwrap_or_default();
        let port = port.parse().unwrap_or_else(|_| panic!("{kind}: {ports}"));
        TcpStream::connect(("127.0.0.1", port)).unwrap();
    }
}

#[test]
fn a_pid_file_that_cannot_be_written_is_fatal() {
    let (code, rest) = Server::spawn(&["-P", "/dev/null/pid"]).end();
    assert_eq!(code, Some(1));
    assert!(rest.contains("[FTL] Could not write pidfile /dev/null/pid"), "{rest}");
}

#[test]
fn signals_stop_the_server_with_status_0() {
    for (signal, name) in [(Signal::TERM, "terminated"), (Signal::INT, "interrupt")] {
        let server = Server::start(&[]);
        server.signal(signal);
        let (code, rest) = server.end();
        assert_eq!(code, Some(0), "{rest}");
        let texts: Vec<&str> =
            rest.lines().filter_map(|line| line.split_once("[INF] ")).map(|(_, t)| t).collect();
        let trapped = format!("Trapped \"{name}\" signal");
        assert_eq!(texts, [trapped.as_str(), "Initiating Shutdown...", "Server Exiting.."]);
    }
}

#[test]
fn lame_duck_mode_without_clients_ends_at_once_with_status_0() {
    let server = Server::start(&[]);
    let (code, _, stderr) = run(&["--signal", &format!("ldm={}", server.pid())]);
    assert_eq!(code, Some(0), "{stderr}");
    let (code, rest) = server.end();
    assert_eq!(code, Some(0), "{rest}");
    assert!(rest.contains("Entering lame duck mode, stop accepting new clients"), "{rest}");
}

#[test]
fn a_signal_finds_its_server_by_the_pid_file() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let pid_file = pid_file.to_str().unwrap();
    let server = Server::start(&["-P", pid_file]);
    assert_eq!(run(&["-sl", &format!("quit={pid_file}")]).0, Some(0));
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn the_log_file_is_opened_again_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let (log, moved) = (dir.path().join("log"), dir.path().join("moved"));
    let server = Server::spawn(&["-l", log.to_str().unwrap()]);
    let contains = |text| fs::read_to_string(&log).unwrap_or_default().contains(text);
    wait_until(|| contains("Server is ready"));
    fs::rename(&log, &moved).unwrap();
    server.signal(Signal::USR1);
    wait_until(|| contains("File log re-opened"));
    server.signal(Signal::TERM);
    assert_eq!(server.end(), (Some(0), String::new()));
    assert!(fs::read_to_string(&log).unwrap().ends_with("Server Exiting..\n"));
    assert!(!fs::read_to_string(&moved).unwrap().contains("Server Exiting.."));
}

#[test]
fn a_restarted_server_has_its_old_port_at_once() {
    let server = Server::start(&[]);
    let port = server.port().to_string();
    let client = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.end().0, Some(0));
    let again = Server::start(&["--port", &port]);
    assert_eq!(again.port().to_string(), port);
    drop(client);
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        dir.path(),
        "proxies { trusted: [{key: NCQZNSP23RJLKZCEOUBZ3YD23BMDEC4FQ6TUTKREFMMINLJWT7IAPUIA}] }\n\
         prof_port: 1\n",
    );
    let server = Server::start(&["-c", &path]);
    let count = |level: &str| server.lines.iter().filter(|line| line.contains(level)).count();
    // Whole parts that clients may count on are more than that.
    assert_eq!((count("[WRN]"), count("[ERR]")), (1, 1), "{:#?}", server.lines);
}

#[test]
fn ipv6_can_be_listened_on() {
    let mut server = Server::spawn(&["--addr", "::1"]);
    let line = server.wait_for("client connections on");
    assert!(line.contains("client connections on [::1]:"), "{line}");
}

#[test]
fn without_a_file_there_is_nothing_to_reload_and_without_a_log_file_nothing_to_reopen() {
    let mut server = Server::start(&[]);
    server.signal(Signal::HUP);
    let line = server.wait_for("Failed to reload server configuration");
    assert!(line.contains("can only reload config when a file is provided using -c"), "{line}");
    server.signal(Signal::USR1);
    server.wait_for("File log re-open ignored, not a file logger");
}

#[test]
fn log_lines_can_be_json() {
    let mut server = Server::spawn(&["--log_format", "json"]);
    let line = server.wait_for("Server is ready");
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(object["level"], "INF");
    assert_eq!(object["message"], "Server is ready");
    assert_eq!(object["pid"], server.pid());
    assert!(object["time"].as_str().unwrap().ends_with('Z'), "{line}");
}

#[test]
fn the_log_can_go_to_the_system_log_of_another_machine() {
    let log = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("udp://{}", log.local_addr().unwrap());
    let server = Server::spawn(&["-r", &url]);
    let mut bytes = [0; 2000];
    let tag = format!(" shardcast[{}]: ", server.pid());
    loop {
        let length = log.recv(&mut bytes).unwrap();
        let message = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(message.starts_with("<29>") && message.contains(&tag), "{message}");
        if message.ends_with("]: Server is ready\n") {
            break;
        }
    }
    server.signal(Signal::TERM);
    assert_eq!(server.end(), (Some(0), String::new()));
    assert!(refused(&["-r", "nowhere"]).contains("udp://host:port or tcp://host:port"));
}

#[test]
fn a_trace_shows_messages_cut_at_their_limit_and_no_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "max_traced_msg_len: 5\n");
    let mut server = Server::start(&["-V", "-c", &path]);
    let mut client = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let connect = "CONNECT {\"verbose\":false,\"headers\":true,\"pass\":\"hush\"}\r\nSUB foo 1\r\n";
    client.write_all(connect.as_bytes()).unwrap();
    client.write_all(b"HPUB foo 12 23\r\nNATS/1.0\r\n\r\nhello world\r\n").unwrap();
    server.wait_for("<<- [CONNECT {");
    server.wait_for(" - <<- [HPUB foo 12 23]");
    server.wait_for(" - <<- MSG_PAYLOAD: [\"NATS/...\"]");
    server.wait_for(" - ->> [HMSG foo 1 12 23]");
    server.wait_for(" - ->> MSG_PAYLOAD: [\"NATS/...\"]");
    let log = server.lines.join("\n");
    assert!(log.contains("\"pass\":\"[REDACTED]\"") && !log.contains("hush"), "{log}");
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_client_and_tells_of_what_was_dropped() {
    let mut server = Server::start(&["-V"]);
    let mut client = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    client.write_all(b"CONNECT {\"verbose\":false}\r\n").unwrap();
    // Two lines in the log for each; the queue has room for 65,536.
    let publishes = b"PUB foo 1\r\nx\r\n".repeat(50_000);
    client.write_all(&publishes).unwrap();
    client.write_all(b"PING\r\n").unwrap();
    let mut answers = BufReader::new(client.try_clone().unwrap()).lines();
    assert!(answers.any(|line| line.unwrap() == "PONG"));
    drop(client);
    let line = server.wait_for(" log lines dropped: the queue of the log was full");
    assert!(line.contains("[WRN] "), "{line}");
}
