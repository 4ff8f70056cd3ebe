//! Replays recorded dialogues with nats-server, byte for byte, against the broker.
//!
//! The corpus and `replay.py` live beside the repository in `../shared/conformance`; our own
//! transcripts, in the same format, in `tests/transcripts`, those of JetStream, which
//! `replay_js.py` replays, in `tests/jetstream`. Without Python or the corpus the tests
//! say so and pass, except under `CI`, where nothing may be left out unseen. Each number of shards
//! is tried on one tier; CI tries all of them on all tiers (`-- --ignored`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::broker::{has_original, is_nats_server, server_command};

/// So many failed cases, at most, are tried again alone.
const ALONE_MAX: usize = 2;

#[test]
fn every_transcript_replays_with_one_shard_on_the_base_tier() {
    replay(1, "base");
}

#[test]
#[ignore = "CI has the time for all of them"]
fn every_transcript_replays_with_two_shards_on_the_base_tier() {
    replay(2, "base");
}

#[test]
#[ignore = "CI has the time for all of them"]
fn every_transcript_replays_with_four_shards_on_the_base_tier() {
    replay(4, "base");
}

#[test]
#[ignore = "CI has the time for all of them"]
fn every_transcript_replays_with_one_shard_on_the_rings_tier() {
    replay(1, "rings");
}

#[test]
fn every_transcript_replays_with_two_shards_on_the_rings_tier() {
    replay(2, "rings");
}

#[test]
#[ignore = "CI has the time for all of them"]
fn every_transcript_replays_with_four_shards_on_the_rings_tier() {
    replay(4, "rings");
}

#[test]
#[ignore = "CI has the time for all of them"]
fn every_transcript_replays_with_one_shard_on_the_taskrun_tier() {
    replay(1, "taskrun");
}

#[test]
#[ignore = "CI has the time for all of them"]
fn every_transcript_replays_with_two_shards_on_the_taskrun_tier() {
    replay(2, "taskrun");
}

#[test]
fn every_transcript_replays_with_four_shards_on_the_taskrun_tier() {
    replay(4, "taskrun");
}

#[test]
fn transcripts_of_jetstream_replay_with_one_shard() {
    replay_streams(1);
}

#[test]
#[ignore = "CI has the time for all of them"]
fn transcripts_of_jetstream_replay_with_two_shards() {
    replay_streams(2);
}

#[test]
#[ignore = "CI has the time for all of them"]
fn transcripts_of_jetstream_replay_with_four_shards() {
    replay_streams(4);
}

/// Replays both corpora of JetStream; panics when a case differs.
fn replay_streams(shards: u32) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (replayer, corpus) = (shared(root).join("replay_js.py"), shared(root).join("jetstream"));
    let own = root.join("tests/jetstream");
    if !corpus.exists() {
        assert!(std::env::var_os("CI").is_none(), "CI requires conformance");
        eprintln!("skipped: transcripts of JetStream: {} is not here", corpus.display());
        return;
    }
    let mut spawn = format!("'{}' -a 127.0.0.1 -p {{port}} -c {{config}}", server_command());
    if !is_nats_server() {
        spawn += &format!(" --shards {shards} --no-pin --seating round-robin");
    }
    let run = |more: &[&str]| {
        let output = Command::new("python3")
            .arg(&replayer)
            .args(["--replay", &spawn, "--jobs", "4", "--timeout", "8"])
            .args(more)
            .args([&corpus, &own])
            .stdin(Stdio::null())
            .output()
            .expect("python3 runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = run(&[]);
    let failed: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("FAIL ")).collect();
    assert!(passed(&said) > 100, "{said}");
    assert!(failed.len() <= ALONE_MAX, "{failed:?}\n{said}");
    for title in failed {
        let name = title.split_once(": ").map_or(title, |(_file, name)| name);
        let alone = run(&["--only", &glob_of(name)]);
        assert!(!alone.contains("FAIL "), "{said}\nalone:\n{alone}");
    }
}

/// Replays both corpora; panics with what the replayer printed when a case differs.
fn replay(shards: u32, tier: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = root.join("tests/transcripts");
    let (replayer, corpus) = match corpus(root) {
        Ok(found) => found,
        Err(missing) => {
            assert!(std::env::var_os("CI").is_none(), "{missing}, but CI requires conformance");
            // Straight to the terminal: a passing test's own output is not shown.
            std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("skipped: conformance, {shards} shards, tier {tier}: {missing}\n")
                    .as_bytes(),
            )
            .ok();
            return;
        }
    };
    let mut spawn = format!("'{}' -a 127.0.0.1 -p {{port}} -c {{config}}", server_command());
    if !is_nats_server() {
        // The clients of a case follow one another: each is on another shard.
        spawn += &format!(" --shards {shards} --seating round-robin --uring-tier {tier}");
    }
    let run = |more: &[&str]| {
        let output = Command::new("python3")
            .arg(&replayer)
            .args(["--spawn", &spawn, "--jobs", "2", "--timeout", "5"])
            .args(["--ports", &ports(shards, tier)])
            .args(more)
            .args([&corpus, &own])
            .stdin(Stdio::null())
            .output()
            .expect("python3 was there a moment ago");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let all_passed = output.status.success() && passed(&said) > 0;
        (all_passed, said + &String::from_utf8_lossy(&output.stderr))
    };
    let (all_passed, said) = run(&[]);
    println!("{said}");
    if all_passed {
        return;
    }
    // Cases share a server, and none waits until the server has seen the end of the connections of
    // the case before it: with several shards on a busy machine one of those may still be
    // subscribed. On a server of its own a case has no such excuse.
    let failed: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("FAIL ")).collect();
    assert!((1..=ALONE_MAX).contains(&failed.len()), "{said}");
    for title in failed {
        let name = title.split_once(": ").map_or(title, |(_file, name)| name);
        let (passes, alone) = run(&["--only", &glob_of(name)]);
        assert!(passes, "{said}\nalone:\n{alone}");
        println!("passes on a server of its own: {title}");
    }
}

/// A pattern, as the replayer takes them, that matches `name` only.
fn glob_of(name: &str) -> String {
    let literal = |c: char| if "*?[".contains(c) { format!("[{c}]") } else { c.to_string() };
    name.chars().map(literal).collect()
}

/// Where its servers listen: below the ports that the kernel gives to whoever asks for any. One of
/// those could be taken before the server has come up.
fn ports(shards: u32, tier: &str) -> String {
    let tier = ["base", "rings", "taskrun", "links"].iter().position(|known| *known == tier);
    let variant = shards * 4 + u32::try_from(tier.expect("a known tier")).unwrap_or(0);
    let low = 10_000 + variant * 1000 + std::process::id() % 10 * 100;
    format!("{low}-{}", low + 99)
}

#[test]
fn the_probe_of_leaf_nodes_passes_with_one_shard() {
    probe("leaf_probe.py", 1);
}

#[test]
#[ignore = "CI has the time for all of them"]
fn the_probe_of_leaf_nodes_passes_with_two_shards() {
    probe("leaf_probe.py", 2);
}

#[test]
#[ignore = "CI has the time for all of them"]
fn the_probe_of_leaf_nodes_passes_with_four_shards() {
    probe("leaf_probe.py", 4);
}

#[test]
fn the_probe_of_mqtt_passes_with_two_shards() {
    probe("mqtt_probe.py", 2);
}

#[test]
#[ignore = "CI has the time for all of them"]
fn the_probe_of_mqtt_passes_with_one_shard() {
    probe("mqtt_probe.py", 1);
}

#[test]
#[ignore = "CI has the time for all of them"]
fn the_probe_of_mqtt_passes_with_four_shards() {
    probe("mqtt_probe.py", 4);
}

/// Runs a probe of links between servers, with a nats-server at the other side if that is here;
/// panics with what the probe printed when a check fails.
fn probe(name: &str, shards: u32) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let probe = shared(root).join("links").join(name);
    let is_here = corpus(root).is_ok() && probe.exists();
    if !is_here || is_nats_server() {
        assert!(std::env::var_os("CI").is_none() || is_here, "CI requires conformance");
        return;
    }
    let server = format!("'{}' -c {{config}} --shards {shards}", server_command());
    let mut command = Command::new("python3");
    // No transcript is replayed with three shards: those ports are free for the other probe.
    let ports = match (name, shards) {
        ("mqtt_probe.py", 1) => ports(3, "base"),
        ("mqtt_probe.py", 2) => ports(3, "rings"),
        ("mqtt_probe.py", _) => ports(3, "taskrun"),
        _ => ports(shards, "links"),
    };
    command.arg(&probe).args(["--server", &server, "--ports", &ports]);
    if has_original() {
        command.args(["--real", "nats-server -c {config}"]);
    }
    let output = command.stdin(Stdio::null()).output().expect("python3 was there a moment ago");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    assert!(output.status.success() && passed(&said) > 0, "{said}");
}

/// Where the replayer and its corpus are, or what is missing.
fn corpus(root: &Path) -> Result<(PathBuf, PathBuf), String> {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        return Err("python3 is not here".to_owned());
    }
    let shared = shared(root);
    let (replayer, corpus) = (shared.join("replay.py"), shared.join("client"));
    for path in [&replayer, &corpus] {
        if !path.exists() {
            return Err(format!("{} is not here", path.display()));
        }
    }
    Ok((replayer, corpus))
}

/// Beside the repository, or where `SHARDCAST_CONFORMANCE` says.
pub(crate) fn shared(root: &Path) -> PathBuf {
    match std::env::var_os("SHARDCAST_CONFORMANCE") {
        Some(path) => PathBuf::from(path),
        None => root.join("../shared/conformance"),
    }
}

/// The number in the replayer's last line, `N passed, N failed`.
fn passed(said: &str) -> u32 {
    let last = said.lines().last().unwrap_or_default();
    last.split_once(" passed").and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}
