//! Starting and not starting: what an operator types, and what one line says when it cannot be.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::broker::wire::Wire;
use crate::broker::{Broker, http, is_nats_server, server_command, shard_counts};

#[test]
fn the_version_flag_prints_the_version_and_ends() {
    for flag in ["-v", "--version", "-version"] {
        let output = run(&[flag]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(": v") && said.lines().count() == 1, "{said:?}");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn the_help_flag_prints_the_flags_and_ends() {
    for flag in ["-h", "--help"] {
        let output = run(&[flag]);
        let said = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&said).contains("--port"));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn the_page_about_tls_the_manual_and_the_completions_are_printed() {
    if is_nats_server() {
        return;
    }
    for (args, wanted) in [
        (&["--help_tls"][..], "TLS_AES_128_GCM_SHA256"),
        (&["man"], ".TH shardcast 1"),
        (&["completions", "bash"], "complete -F"),
        (&["completions", "fish"], "complete -c shardcast"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(wanted), "{args:?}: {said}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
    let output = run(&["completions", "csh"]);
    assert!(errors(&output).contains("bash, zsh, fish"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_service_manager_hears_of_the_start_each_reload_and_the_end() {
    if is_nats_server() {
        return;
    }
    let dir = tempfile::tempdir().expect("a scratch directory");
    let (socket, config) = (dir.path().join("notify"), dir.path().join("c.conf"));
    let manager = UnixDatagram::bind(&socket).expect("bound");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let hear = || {
        let mut datagram = [0; 512];
        let len = manager.recv(&mut datagram).expect("within the time");
        String::from_utf8_lossy(&datagram[..len]).into_owned()
    };
    for last in [Signal::TERM, Signal::USR2] {
        std::fs::write(&config, "max_payload: 1000\n").expect("written");
        let mut server = Command::new(server_command());
        server.args(["-a", "127.0.0.1", "-p", "-1", "-c"]).arg(&config);
        let mut child = server.env("NOTIFY_SOCKET", &socket).spawn().expect("it runs");
        let pid = Pid::from_child(&child);
        let tell = |signal| kill_process(pid, signal).expect("it lives");
        assert!(hear().starts_with("READY=1\n"));
        // A failed reload ends, too.
        for text in ["max_payload: 2000\n", "max_payload: x\n"] {
            std::fs::write(&config, text).expect("written");
            tell(Signal::HUP);
            let reloading = hear();
            let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
            assert!(time.trim().parse::<u64>().is_ok(), "{reloading}");
            assert!(hear().starts_with("READY=1\n"));
        }
        tell(last);
        assert!(hear().starts_with("STOPPING=1\nSTATUS="));
        assert!(child.wait().expect("it ends").success());
        while manager.set_nonblocking(true).is_ok() && manager.recv(&mut [0; 512]).is_ok() {}
        manager.set_nonblocking(false).expect("set");
    }
}

#[test]
fn a_flag_that_does_not_exist_is_named() {
    let output = run(&["--no-such-flag"]);
    assert!(errors(&output).contains("no-such-flag"), "{output:?}");
    // The original exits with 0 here.
    assert!(is_nats_server() || output.status.code() == Some(1), "{output:?}");
}

#[test]
fn a_port_in_use_is_one_clear_line_and_exit_status_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["-a", "127.0.0.1", "-p", &port]);
    let said = errors(&output);
    let complaints = said.lines().filter(|line| line.contains("in use")).count();
    assert_eq!(complaints, 1, "{said}");
    assert!(!said.contains("Server is ready"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_mistake_in_the_configuration_is_shown_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wrong.conf");
    for text in ["port: -1\nnosuch: 1\n", "port: -1\na: }\n", "a: {\n"] {
        std::fs::write(&path, text).unwrap();
        let output = run(&["-c", &path.display().to_string()]);
        let said = errors(&output);
        let place = said.contains("wrong.conf:2:") || said.contains("line 2:");
        assert!(place && said.trim().lines().count() == 1, "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
    let output = run(&["-c", "/no/such/file.conf"]);
    assert!(errors(&output).contains("/no/such/file.conf"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_pid_file_and_the_log_file_are_what_test_harnesses_read() {
    let dir = tempfile::tempdir().unwrap();
    let (pid, log) = (dir.path().join("server.pid"), dir.path().join("server.log"));
    let mut server = Command::new(server_command());
    server.args(["-a", "127.0.0.1", "-p", "-1", "-P"]).arg(&pid).arg("-l").arg(&log);
    let mut child = server.spawn().unwrap();
    let ready = (0..1_000_000).any(|_| {
        std::thread::yield_now();
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("Server is ready"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(ready, "{text}");
    assert!(text.contains(" client connections on 127.0.0.1:"), "{text}");
    assert_eq!(std::fs::read_to_string(&pid).unwrap(), child.id().to_string());
}

#[test]
fn the_banner_names_what_the_server_is() {
    for &shards in shard_counts() {
        let broker = Broker::start(shards, &[]);
        let banner = broker.banner();
        for text in ["Starting ", "  Version:  ", "  Name:     ", "  ID:       N"] {
            assert!(banner.contains(text), "{text:?} is not in\n{banner}");
        }
        if !is_nats_server() {
            for text in ["tier", "shard"] {
                assert!(banner.to_lowercase().contains(text), "{text:?} is not in\n{banner}");
            }
        }
        let last = banner.lines().last().unwrap_or_default();
        assert!(last.ends_with("[INF] Server is ready"), "{last}");
    }
}

#[test]
fn more_shards_than_any_machine_here_has_cores_work() {
    let broker = Broker::start(if is_nats_server() { 1 } else { 32 }, &[]);
    let mut wires: Vec<Wire> = (0..64).map(|_| Wire::connect(&broker)).collect();
    for wire in &mut wires {
        wire.send(b"SUB wide 1\r\n");
        wire.sync();
    }
    for at in 0..64 {
        wires[at].send(b"PUB wide 2\r\nhi\r\n");
        for wire in &mut wires {
            wire.expect(b"MSG wide 1 2\r\nhi\r\n");
        }
    }
}

#[test]
fn without_files_left_connections_wait_their_turn_and_the_server_does_not_spin() {
    for &shards in shard_counts() {
        let config = "ping_interval: \"1s\"\nping_max: 100\n";
        let mut broker = Broker::with_few_files(shards, config, 100);
        let mut witness = Wire::connect(&broker);
        // More than the server can have; the kernel holds the rest.
        let crowd: Vec<_> = (0..150).map(|_| Wire::ungreeted(&broker)).collect();
        witness.sync();
        // The next PING of the server marks the time in which a spinning one would have spun.
        let before = broker.cpu_ticks();
        witness.expect(b"PING\r\n");
        witness.send(b"PONG\r\n");
        let spent = broker.cpu_ticks() - before;
        assert!(spent < 50, "{spent} ticks of 10 ms in about a second with nothing to do");
        // As the first leave, the last come in.
        let mut last = crowd.into_iter().skip(100).collect::<Vec<_>>();
        for wire in &mut last {
            assert!(wire.line().starts_with("INFO {"));
        }
        drop(last);
        broker.kill();
    }
}

#[test]
fn a_killed_server_is_followed_by_another_on_its_port_at_once() {
    for &shards in shard_counts() {
        let mut broker = Broker::start(shards, &[]);
        let port = broker.port();
        for _ in 0..10 {
            // Connections with output in flight are what a dying ring has to give up.
            let mut wires: Vec<Wire> = (0..20).map(|_| Wire::connect(&broker)).collect();
            for wire in &mut wires {
                wire.send(b"SUB a 1\r\nPUB a 1\r\nx\r\nPING\r\n");
            }
            broker.restart();
            assert_eq!(broker.port(), port);
        }
    }
}

/// Runs the program to its end, which must come by itself.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(server_command()).args(args);
    command.output().expect("timeout(1) is there")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is told of parts that are configured and not there.
const ABSENT: [(&str, &str); 1] = [(
    "proxies { trusted: [{key: NCQZNSP23RJLKZCEOUBZ3YD23BMDEC4FQ6TUTKREFMMINLJWT7IAPUIA}] }",
    "the proxy of a client is not checked",
)];

#[test]
fn a_part_that_is_configured_and_not_there_is_an_error_in_the_log_and_in_a_check() {
    if is_nats_server() {
        return;
    }
    let lines: Vec<&str> = ABSENT.iter().map(|(line, _)| *line).collect();
    let config = lines.join("\n");
    let broker = Broker::with_config(1, &config);
    let banner = broker.banner();
    let dir = tempfile::tempdir().expect("a scratch directory");
    let path = dir.path().join("c.conf");
    std::fs::write(&path, &config).expect("written");
    let mut check = Command::new(server_command());
    let output = check.args(["-t", "-c"]).arg(&path).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for (number, (line, misses)) in (1..).zip(ABSENT) {
        let key = line.split([' ', ':']).next().expect("a key");
        let wanted = format!("{number}:1: {key} is not supported yet and has no effect: ");
        let logged = banner.lines().find(|logged| logged.contains(&wanted));
        let logged = logged.unwrap_or_else(|| panic!("{key} is not in {banner}"));
        assert!(logged.contains("[ERR]") && logged.contains(misses), "{logged}");
        let told = said.lines().find(|told| told.contains(&wanted));
        assert!(told.is_some_and(|told| told.contains(misses)), "{key} is not in {said}");
    }
    let quiet = Broker::with_config(1, "jetstream: disabled\n");
    assert!(!quiet.banner().contains("[ERR]"), "{}", quiet.banner());
}

#[test]
fn one_server_has_a_directory_of_streams_and_a_probe_finds_it_well() {
    if is_nats_server() {
        return;
    }
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = dir.path().to_str().expect("text");
    let broker = Broker::start(2, &["-m", "-1", "-js", "-sd", store]);
    for path in ["/healthz", "/healthz?js-enabled-only=true", "/healthz?account=$G"] {
        assert_eq!(http::get(&broker, path).0, 200, "{path}");
    }
    for line in ["Starting JetStream", "  Store Directory: \"", "  API Level:       5"] {
        assert!(broker.banner().contains(line), "{line}: {}", broker.banner());
    }
    let second = run(&["-p", "-1", "-js", "-sd", store]);
    assert!(!second.status.success());
    assert!(errors(&second).contains("another server has"), "{}", errors(&second));
    for off in ["", "jetstream: false\n", "jetstream { enabled: false }\n"] {
        let broker = Broker::with_config(1, &format!("http: \"127.0.0.1:-1\"\n{off}"));
        assert_eq!(http::get(&broker, "/healthz").0, 200, "{off}");
        assert!(!broker.banner().contains("JetStream"), "{}", broker.banner());
    }
}
