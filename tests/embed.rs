//! The server inside another program: what `docs/embedding.md` promises.
//!
//! An executable of its own, because these tests look at the whole process: its threads, open
//! files, signals and log.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use shardcast::Server;

/// The longest time that anything may take here.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the port for clients, and the INFO it began with.
fn enter(port: u16, connect: &str) -> (BufReader<TcpStream>, String) {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut conn = BufReader::new(stream);
    let mut info = String::new();
    conn.read_line(&mut info).unwrap();
    write!(conn.get_mut(), "CONNECT {connect}\r\nPING\r\n").unwrap();
    (conn, info)
}

/// The next line; the server's own PINGs come at any time.
fn line(conn: &mut BufReader<TcpStream>) -> String {
    loop {
        let mut line = String::new();
        conn.read_line(&mut line).unwrap();
        if line != "PING\r\n" {
            return line;
        }
    }
}

/// What a login is answered.
fn login(port: u16, connect: &str) -> String {
    line(&mut enter(port, &format!("{{\"verbose\":false,{connect}}}")).0)
}

fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Names of this process's threads that belong to servers, and its open files.
fn threads() -> Vec<String> {
    let ours = [
        "shard",
        "monitor",
        "system",
        "credentials",
        "callouts",
        "cluster",
        "gateway",
        "leaf",
        "ocsp",
        "resolver",
    ];
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| ours.iter().any(|ours| name.starts_with(ours))).collect()
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The part of a line of `/proc/self/status` or `/proc/self/limits` after its name.
fn of_process(file: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

/// One test, because each of its parts looks at the whole process.
#[test]
fn a_server_leaves_the_process_as_it_was() {
    let caught = of_process("status", "SigCgt:");
    let files_max = of_process("limits", "Max open files");
    let text = "http: \"127.0.0.1:-1\"\ncluster { name: c, listen: \"127.0.0.1:-1\" }\n\
                leafnodes { listen: \"127.0.0.1:-1\" }\n\
                gateway { name: c, listen: \"127.0.0.1:-1\" }\n\
                websocket { listen: \"127.0.0.1:-1\", no_tls: true }";
    // What is made once for the whole process, such as a resolver's state, is made now.
    Server::builder().config_text(text).start().unwrap().stop().unwrap();
    until("all threads have ended", || threads().is_empty());
    let files = open_files();
    for shards in [1, 2, 1] {
        let server = Server::builder().config_text(text).shards(shards).start().unwrap();
        let ports = server.ports().clone();
        for port in [ports.monitoring, ports.cluster, ports.leaf, ports.gateway, ports.websocket] {
            TcpStream::connect(("127.0.0.1", port.unwrap())).unwrap();
        }
        assert_eq!(login(ports.client, "\"name\":\"a\""), "PONG\r\n");
        let count = threads().iter().filter(|name| name.starts_with("shard-")).count();
        assert_eq!(count, shards);
        assert_eq!(of_process("status", "SigCgt:"), caught, "no signal is handled");
        assert_eq!(of_process("limits", "Max open files"), files_max, "no limit is raised");
        server.stop().unwrap();
        // A port that is free can be bound at once.
        TcpListener::bind(("127.0.0.1", ports.client)).unwrap();
    }
    until("all threads have ended", || threads().is_empty());
    until("all files are closed", || open_files() <= files);

    // A start that fails late leaves nothing either, and says why.
    let nowhere = "ports_file_dir: \"/nonexistent\"\nhttp: \"127.0.0.1:-1\"";
    let error = Server::builder().config_text(nowhere).start().err().unwrap().to_string();
    assert!(error.contains("/nonexistent"), "{error}");
    until("all threads have ended", || threads().is_empty());
    until("all files are closed", || open_files() <= files);

    // Nobody has installed a subscriber; the program's own is still free to be.
    struct Nothing;
    impl tracing::Subscriber for Nothing {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            false
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {}
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    tracing::subscriber::set_global_default(Nothing).unwrap();

    servers_of_one_process_are_strangers_to_each_other();
    a_reload_is_told_whether_it_is_in_force();
    lame_duck_mode_ends_the_server_and_whoever_waits_for_it();
    streams_outlive_their_server();
}

fn servers_of_one_process_are_strangers_to_each_other() {
    let open = Server::builder().name("open").start().unwrap();
    let named = Server::builder().name("named").user("ann", "pw").start().unwrap();
    let token = Server::builder().config_text("port: 1").port(0).token("t").start().unwrap();
    assert_eq!(open.client_url(), format!("nats://127.0.0.1:{}", open.ports().client));
    let (mut heard, info) = enter(open.ports().client, "{\"verbose\":false}");
    assert!(info.contains("\"server_name\":\"open\""), "{info}");
    heard.get_mut().write_all(b"SUB a 1\r\nPING\r\n").unwrap();
    assert_eq!([line(&mut heard), line(&mut heard)], ["PONG\r\n", "PONG\r\n"]);
    let port = named.ports().client;
    assert_eq!(login(port, "\"user\":\"ann\",\"pass\":\"pw\""), "PONG\r\n");
    assert!(login(port, "\"user\":\"ann\",\"pass\":\"x\"").contains("Authorization Violation"));
    assert_eq!(login(token.ports().client, "\"auth_token\":\"t\""), "PONG\r\n");
    let ann = "{\"verbose\":false,\"user\":\"ann\",\"pass\":\"pw\"}";
    let (mut elsewhere, _) = enter(port, ann);
    elsewhere.get_mut().write_all(b"PUB a 1\r\nx\r\nPING\r\n").unwrap();
    assert_eq!([line(&mut elsewhere), line(&mut elsewhere)], ["PONG\r\n", "PONG\r\n"]);
    drop((named, token));
    heard.get_mut().write_all(b"PUB a 1\r\ny\r\n").unwrap();
    assert_eq!([line(&mut heard), line(&mut heard)], ["MSG a 1 1\r\n", "y\r\n"]);
    // A second server does not get the port of the first, and the first does not mind.
    let error = Server::builder().port(open.ports().client).start().err().unwrap().to_string();
    assert!(error.contains("choose another port"), "{error}");
    assert!(open.is_running());
    open.stop().unwrap();
    assert_eq!(line(&mut heard), "", "the server has closed it");
}

fn a_reload_is_told_whether_it_is_in_force() {
    let user = "\"user\":\"ann\",\"pass\":\"pw\"";
    let text = |password: &str| {
        format!("authorization {{ users: [{{user: ann, password: \"{password}\"}}] }}")
    };
    let server = Server::builder().config_text(text("old")).start().unwrap();
    let port = server.ports().client;
    assert!(login(port, user).contains("Authorization Violation"));
    server.reload_text(text("pw")).unwrap();
    assert_eq!(login(port, user), "PONG\r\n");
    let error = server.reload_text("authorization {").err().unwrap().to_string();
    assert!(error.contains("configuration"), "{error}");
    let error = server.reload_text("no_such_key: 1").err().unwrap().to_string();
    assert!(error.contains("no_such_key"), "{error}");
    assert_eq!(login(port, user), "PONG\r\n");
    server.stop().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.conf");
    fs::write(&path, text("old")).unwrap();
    let server = Server::builder().config_file(&path).start().unwrap();
    fs::write(&path, text("pw")).unwrap();
    server.reload().unwrap();
    assert_eq!(login(server.ports().client, user), "PONG\r\n");
    // A text holds until the file is read again.
    server.reload_text(text("other")).unwrap();
    assert!(login(server.ports().client, user).contains("Authorization Violation"));
    server.reload().unwrap();
    assert_eq!(login(server.ports().client, user), "PONG\r\n");
    let crowd = Server::builder().shards(usize::MAX).start().err().unwrap().to_string();
    assert!(crowd.contains("--shards"), "{crowd}");
    let bare = Server::builder().start().unwrap();
    assert!(bare.reload().unwrap_err().to_string().contains("when a file is provided"));
}

fn lame_duck_mode_ends_the_server_and_whoever_waits_for_it() {
    let server = Server::builder().start().unwrap();
    let (mut client, _) = enter(server.ports().client, "{\"verbose\":false,\"protocol\":1}");
    assert_eq!(line(&mut client), "PONG\r\n");
    server.lame_duck();
    let mut heard = line(&mut client);
    while !heard.contains("\"ldm\":true") {
        assert_ne!(heard, "", "the client is told before it is closed");
        heard = line(&mut client);
    }
    assert!(server.is_running());
    // The client knows that it is to go, and goes.
    drop(client);
    server.wait().unwrap();
}

fn streams_outlive_their_server() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |port: u16, subject: &str, payload: &str| {
        let (mut conn, _) = enter(port, "{\"verbose\":false}");
        assert_eq!(line(&mut conn), "PONG\r\n");
        let len = payload.len();
        write!(conn.get_mut(), "SUB r 1\r\nPUB {subject} r {len}\r\n{payload}\r\n").unwrap();
        line(&mut conn);
        line(&mut conn)
    };
    let server = Server::builder().jetstream(dir.path()).start().unwrap();
    let stream = "{\"name\":\"S\",\"subjects\":[\"s\"]}";
    let answer = ask(server.ports().client, "$JS.API.STREAM.CREATE.S", stream);
    assert!(answer.contains("\"did_create\":true"), "{answer}");
    let answer = ask(server.ports().client, "s", "kept");
    assert!(answer.contains("\"seq\":1"), "{answer}");
    // One server at a time has the directory, also in one process.
    let error = Server::builder().jetstream(dir.path()).start().err().unwrap().to_string();
    assert!(error.contains("jetstream"), "{error}");
    server.stop().unwrap();
    let server = Server::builder().jetstream(dir.path()).shards(2).start().unwrap();
    let answer = ask(server.ports().client, "$JS.API.STREAM.INFO.S", "");
    assert!(answer.contains("\"messages\":1"), "{answer}");
}

#[test]
fn the_examples_do_what_they_say() {
    // Beside the directory of this executable, where cargo has put them.
    let directory: PathBuf = std::env::current_exe().unwrap();
    let directory = directory.parent().unwrap().parent().unwrap().join("examples");
    for (example, arguments, wanted) in [
        ("in_a_test", &[][..], "HELLO\n"),
        ("own_login", &[], "news.today: it works\na stranger: refused\n"),
        ("fan_out", &["6", "200"], "200 messages became 1200 on two servers in "),
    ] {
        let done = Command::new(directory.join(example)).args(arguments).output();
        let done = done.unwrap_or_else(|error| {
            panic!("{example}: {error}; `cargo test` builds it, or `cargo build --examples`")
        });
        let (said, failed) = (String::from_utf8(done.stdout).unwrap(), done.stderr);
        assert!(done.status.success(), "{example}: {}", String::from_utf8_lossy(&failed));
        assert!(said.starts_with(wanted), "{example}: {said}");
    }
}

#[test]
fn the_library_shows_what_is_promised_to_stay_and_hides_the_rest() {
    let text = include_str!("../src/lib.rs");
    let mut shown = Vec::new();
    let mut before = "";
    for line in text.lines() {
        if line.starts_with("pub ") && before != "#[doc(hidden)]" {
            shown.push(line.split(" = ").next().unwrap());
        }
        before = line;
    }
    let promised = [
        "pub use config::StartError;",
        "pub use embed::{Server, ServerBuilder, ServerPorts};",
        "pub const VERSION: &str",
        "pub const NATS_VERSION: &str",
        "pub const JETSTREAM_API_LEVEL: u32",
        "pub const GIT_COMMIT: &str",
    ];
    assert_eq!(shown, promised);
    let page = include_str!("../docs/embedding.md");
    for line in include_str!("../src/embed.rs").lines() {
        let name = line.trim().strip_prefix("pub fn ").map(|rest| rest.split('(').next().unwrap());
        let name = name.map(|name| name.split('<').next().unwrap());
        assert!(name.is_none_or(|name| page.contains(&format!("`{name}`"))), "{line}");
    }
}
