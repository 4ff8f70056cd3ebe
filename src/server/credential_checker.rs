//! Checks credentials on a thread of its own: a hash may take seconds, and no shard has those.

use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::Receiver;

use crate::config::StartError;
use crate::shard::{Address, Check, Control};

/// How far the thread steps back behind shards on the same core (1 to 19).
const NICENESS: i32 = 10;

/// Answers `checks` one by one until all shards have ended.
pub(super) fn start(
    checks: Receiver<Check>,
    shards: Vec<Address>,
) -> Result<JoinHandle<()>, StartError> {
    let check_all = move || {
        // Without, logins would only take more of the shards' time than they should.
        let _ = rustix::process::nice(NICENESS);
        for Check { shard, conn, proof, by } in checks {
            // Of a connection that is cut by now: else a crowd of them would keep out all others.
            if by >= now() {
                shards[shard.index()].send(Control::Proven { conn, holds: proof.holds() });
            }
        }
    };
    std::thread::Builder::new().name("proofs".to_owned()).spawn(check_all).map_err(|error| {
        StartError::new(format!("cannot start a thread for logins: {error}; raise `ulimit -u`"))
    })
}

#[expect(clippy::disallowed_methods, reason = "a thread that no client waits for in vain")]
fn now() -> Instant {
    Instant::now()
}
