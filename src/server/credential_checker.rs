//! Checks of credentials on a thread of their own, because a hash may take seconds.

use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::Receiver;

use crate::config::StartError;
use crate::engine::LoginNews;
use crate::shard::{Address, CheckRequest, Control};

/// The niceness by which the thread yields to shards on the same core (1 to 19).
const NICENESS: i32 = 10;

/// Starts the thread, which answers `checks` one by one until all shards have ended.
pub(super) fn start(
    checks: Receiver<CheckRequest>,
    shards: Vec<Address>,
) -> Result<JoinHandle<()>, StartError> {
    let check_all = move || {
        // A thread that is not nice would let logins take more of the shards' time than they
        // should.
        let _ = rustix::process::nice(NICENESS);
        for CheckRequest { shard, conn, check, by } in checks {
            // A late check belongs to a closed connection. A crowd of these must not delay all
            // others.
            if by >= now() {
                shards[shard.index()]
                    .send(Control::Login { conn, news: LoginNews::Checked(check.holds()) });
            }
        }
    };
    std::thread::Builder::new().name("credentials".to_owned()).spawn(check_all).map_err(|error| {
        StartError::new(format!("cannot start a thread for logins: {error}; raise `ulimit -u`"))
    })
}

#[expect(clippy::disallowed_methods, reason = "a thread that no client waits for in vain")]
fn now() -> Instant {
    Instant::now()
}
