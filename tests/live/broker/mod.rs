//! The broker under test, started the way a user starts it, and told apart only by its log.
//!
//! `SHARDCAST_TEST_SERVER` names another server to test instead (nats-server, or another build);
//! `SHARDCAST_TEST_TIER` forces a reactor tier on ours.

#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait for a process")]

pub(crate) mod authority;
pub(crate) mod http;
pub(crate) mod members;
pub(crate) mod namespaces;
pub(crate) mod peers;
pub(crate) mod tokens;
pub(crate) mod wire;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it. Never a measure of speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The server whose behaviour ours follows.
const ORIGINAL: &str = "nats-server";

/// What a server may not do, or where it is.
#[derive(Debug, Clone, Default)]
struct Confines {
    /// It opens no more files than this.
    files_max: Option<u32>,
    /// It is in this network namespace.
    namespace: Option<String>,
    /// Its system trusts the certificates of this file.
    authorities: Option<PathBuf>,
}

/// A running server process, killed when dropped.
pub(crate) struct Broker {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
    port: u16,
    shards: u32,
    program: String,
    args: Vec<String>,
    confines: Confines,
    _dir: Option<TempDir>,
}

impl Broker {
    /// Starts a server on a free port and waits until it says that it is ready.
    pub(crate) fn start(shards: u32, args: &[&str]) -> Self {
        let args = args.iter().map(ToString::to_string).collect();
        Self::start_on(server_command(), "-1", shards, args, None, Confines::default())
    }

    /// The same with a configuration file of this text.
    pub(crate) fn with_config(shards: u32, config: &str) -> Self {
        Self::confined(server_command(), shards, config, Confines::default())
    }

    /// The nats-server on the path, with a configuration file of this text.
    pub(crate) fn original(config: &str) -> Self {
        Self::confined(ORIGINAL.to_owned(), 1, config, Confines::default())
    }

    /// The same of another program.
    pub(crate) fn of_program(program: &str, config: &str) -> Self {
        Self::confined(program.to_owned(), 1, config, Confines::default())
    }

    /// The same with no more than this many open files.
    pub(crate) fn with_few_files(shards: u32, config: &str, files_max: u32) -> Self {
        let confines = Confines { files_max: Some(files_max), ..Confines::default() };
        Self::confined(server_command(), shards, config, confines)
    }

    /// The same in a network namespace.
    pub(crate) fn in_namespace(namespace: &str, shards: u32, config: &str) -> Self {
        let confines = Confines { namespace: Some(namespace.to_owned()), ..Confines::default() };
        Self::confined(server_command(), shards, config, confines)
    }

    /// The same on a system that trusts the certificates of a file.
    pub(crate) fn trusting(authorities: &Path, shards: u32, config: &str) -> Self {
        let confines = Confines { authorities: Some(authorities.into()), ..Confines::default() };
        Self::confined(server_command(), shards, config, confines)
    }

    fn confined(program: String, shards: u32, config: &str, confines: Confines) -> Self {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("broker.conf");
        std::fs::write(&path, config).expect("the configuration is written");
        let args = vec!["-c".to_owned(), path.display().to_string()];
        Self::start_on(program, "-1", shards, args, Some(dir), confines)
    }

    fn start_on(
        program: String,
        port: &str,
        shards: u32,
        args: Vec<String>,
        dir: Option<TempDir>,
        confines: Confines,
    ) -> Self {
        let mut command = confined_command(&program, &confines);
        command.args(["-a", "127.0.0.1", "-p", port]).args(&args);
        if !program.contains(ORIGINAL) {
            command.args(["--shards", &shards.to_string(), "--no-pin"]);
            // Clients that talk to one another are on different shards wherever that can be.
            if std::env::var_os("SHARDCAST_TEST_SERVER").is_none() {
                command.args(["--seating", "round-robin"]);
            }
            if let Ok(tier) = std::env::var("SHARDCAST_TEST_TIER") {
                command.args(["--uring-tier", &tier]);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = follow(&mut child);
        let seen = Vec::new();
        let mut broker =
            Self { child, log, seen, port: 0, shards, program, args, confines, _dir: dir };
        let listening = broker.wait_for_line("Listening for client connections on ");
        let port = listening.trim_end().rsplit(':').next().and_then(|port| port.parse().ok());
        broker.port = port.unwrap_or_else(|| panic!("no port in {listening:?}"));
        broker.wait_for_line("Server is ready");
        broker
    }

    /// Kills the server without warning and starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let (port, args) = (self.port.to_string(), std::mem::take(&mut self.args));
        let dir = self._dir.take();
        let (program, confines) = (self.program.clone(), self.confines.clone());
        *self = Self::start_on(program, &port, self.shards, args, dir, confines);
    }

    /// Ends the process without a word to its clients.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().expect("a killed process can be waited for");
    }

    /// Whether this is nats-server.
    pub(crate) fn is_original(&self) -> bool {
        self.program.contains(ORIGINAL)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The port for routes, as the log names it.
    pub(crate) fn route_port(&mut self) -> u16 {
        self.logged_port("Listening for route connections on ")
    }

    /// The port at the end of a line of the log that contains `text`.
    pub(crate) fn logged_port(&mut self, text: &str) -> u16 {
        let logged = self.seen.iter().find(|line| line.contains(text)).cloned();
        let line = logged.unwrap_or_else(|| self.wait_for_line(text));
        let port = line.trim_end().rsplit(':').next().and_then(|port| port.parse().ok());
        port.unwrap_or_else(|| panic!("no port in {line:?}"))
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the server runs");
    }

    /// Writes another text into the server's configuration file, and does not tell it.
    pub(crate) fn rewrite(&self, config: &str) {
        std::fs::write(&self.args[1], config).expect("the configuration is written");
    }

    /// Gives a server that has a configuration file another one.
    pub(crate) fn reconfigure(&self, config: &str) {
        self.rewrite(config);
        self.signal(Signal::HUP);
    }

    /// The same, and returns the line that says how it went.
    pub(crate) fn reload(&mut self, config: &str) -> String {
        self.reconfigure(config);
        self.wait_for_line(" server configuration")
    }

    /// Waits until a line of the log contains `text`, and returns that line.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("{text:?} is not logged"),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait();
                    panic!("the server ended ({status:?}) before it logged {text:?}");
                }
            }
        }
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                // The log ends with the process that writes it.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the server does not end"),
            }
        }
        self.child.wait().expect("the server can be waited for")
    }

    /// What has been logged and looked at: after the start all lines up to `Server is ready`.
    pub(crate) fn banner(&self) -> String {
        self.seen.join("\n")
    }

    /// The processor time that the process has used, in ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).expect("the server runs");
        // The name, in brackets, may contain blanks; user and system time are 12 fields behind.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    /// The number of open files of the process.
    pub(crate) fn open_files(&self) -> usize {
        self.count_in_proc("fd")
    }

    /// The number of threads of the process.
    pub(crate) fn threads(&self) -> usize {
        self.count_in_proc("task")
    }

    /// The memory that the process holds, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).expect("a number")
    }

    fn count_in_proc(&self, what: &str) -> usize {
        let path = format!("/proc/{}/{what}", self.child.id());
        std::fs::read_dir(path).expect("the server runs").count()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let rest = self.log.iter();
            for line in self.seen.drain(..).chain(rest) {
                eprintln!("server: {line}");
            }
        }
    }
}

/// Runs `test` against a fresh server for each number of shards.
pub(crate) async fn on_each_shard_count(args: &[&str], test: impl AsyncFn(&mut Broker)) {
    for &shards in shard_counts() {
        println!("with {shards} shards");
        let mut broker = Broker::start(shards, args);
        tokio::time::timeout(PATIENCE, test(&mut broker)).await.expect("the test ends");
    }
}

/// The numbers of shards that matter: alone, a pair, and more than this machine may have cores.
pub(crate) fn shard_counts() -> &'static [u32] {
    if is_nats_server() { &[1] } else { &[1, 2, 4] }
}

/// Whether the server under test is the original, which has no flags of ours.
pub(crate) fn is_nats_server() -> bool {
    server_command().contains(ORIGINAL)
}

/// Whether the original can be run beside ours; where everything must hold it has to.
pub(crate) fn has_original() -> bool {
    let found = Command::new(ORIGINAL).arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "{ORIGINAL} is not on the path");
    found
}

/// A nats-server 2.9, if the environment names one; where everything must hold it has to.
pub(crate) fn old_original() -> Option<String> {
    let named = std::env::var("SHARDCAST_NATS_SERVER_2_9").ok();
    let is_there = named.is_some() || std::env::var_os("CI").is_none();
    assert!(is_there, "SHARDCAST_NATS_SERVER_2_9 names no nats-server 2.9");
    named
}

/// The program under test.
pub(crate) fn server_command() -> String {
    std::env::var("SHARDCAST_TEST_SERVER")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_shardcast").to_owned())
}

/// The program under test, by way of others that confine it.
fn confined_command(program: &str, confines: &Confines) -> Command {
    if let Some(namespace) = &confines.namespace {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]);
        return command;
    }
    let Some(files_max) = confines.files_max else {
        let mut command = Command::new(program);
        command.envs(confines.authorities.iter().map(|file| ("SSL_CERT_FILE", file)));
        return command;
    };
    let mut shell = Command::new("sh");
    let script = format!("ulimit -n {files_max} && exec \"$@\"");
    shell.args(["-c", &script, "sh", program]);
    shell
}

/// Reads the log to its end, so that the server never waits for its reader.
fn follow(child: &mut Child) -> Receiver<String> {
    let stderr = child.stderr.take().expect("stderr is piped");
    let (lines, log) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break; // The test is over.
            }
        }
    });
    log
}
