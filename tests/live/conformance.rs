//! Replays recorded dialogues with nats-server, byte for byte, against the broker.
//!
//! The corpus and `replay.py` live beside the repository in `../shared/conformance`; our own
//! transcripts, in the same format, in `tests/transcripts`. Without Python or the corpus the tests
//! say so and pass, except under `CI`, where nothing may be left out unseen. Each number of shards
//! is tried on one tier; CI tries all of them on all tiers (`-- --ignored`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::broker::{is_nats_server, server_command};

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
    let tier = ["base", "rings", "taskrun"].iter().position(|known| *known == tier);
    let variant = shards * 3 + u32::try_from(tier.expect("a known tier")).unwrap_or(0);
    let low = 10_000 + variant * 1000 + std::process::id() % 10 * 100;
    format!("{low}-{}", low + 99)
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
fn shared(root: &Path) -> PathBuf {
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
