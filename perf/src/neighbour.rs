//! A second node of the server's cluster that comes, has clients, and leaves as a lame duck, again
//! and again: those who stay must not notice.

use crate::client::{Access, Conn, Inbox, Target, with_ring};
use crate::clock::{Clock, Ticker, duration_ns};
use crate::fault::{Fault, Outcome};
use crate::probe::LOOK_NS;
use crate::server::{Setup, Started};
use crate::wire::{Scanner, Stamp, push_sub};
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Its clients; each hears everything that the load publishes.
const CLIENTS: usize = 5;
/// Their read buffers, in bytes.
const BUFFER_BYTES: usize = 256 << 10;
/// How long it stays before it is told to leave.
const STAY: Duration = Duration::from_secs(5);
/// How long leaving may take.
const LEAVE_PATIENCE: Duration = Duration::from_secs(180);

/// How a node beside the server is started, and what its clients listen to.
pub(crate) struct Neighbour {
    /// Its command, with `{port}`, and routes to the server.
    pub(crate) command: String,
    /// What gets a client in.
    pub(crate) access: Access,
    /// First token of the load's subjects.
    pub(crate) prefix: String,
}

/// What has become of neighbours.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Visits {
    /// How often one has come, and has left when it was told to.
    pub(crate) left: u64,
    /// Messages that their clients have heard.
    pub(crate) heard: u64,
    /// Messages before which one of the same publisher was missing.
    pub(crate) gaps: u64,
}

impl Neighbour {
    /// Lets it come and go until it is `over`.
    pub(crate) fn come_and_go(&self, over: &AtomicBool, visits: &Mutex<Visits>) -> Outcome<()> {
        while !over.load(Ordering::Relaxed) {
            let mut node = Started::start(&self.command, &self.access, &Setup::default())?;
            let seen = with_ring(CLIENTS, self.visit(&node, over))?;
            node.await_end(LEAVE_PATIENCE)?;
            // Whoever looks at them does not panic.
            if let Ok(mut visits) = visits.lock() {
                visits.left += 1;
                visits.heard += seen.heard;
                visits.gaps += seen.gaps;
            }
        }
        Ok(())
    }

    /// One stay, to the end of the last client's connection.
    async fn visit(&self, node: &Started, over: &AtomicBool) -> Outcome<Visits> {
        let target = Target::local(node.port(), self.access.clone());
        let seen = Rc::new(RefCell::new(Visits::default()));
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let (conn, ..) = Conn::open(&target, number).await?;
            let mut subscribe = Vec::new();
            push_sub(&format!("{}.>", self.prefix), None, 1, &mut subscribe);
            conn.write(subscribe).await?;
            clients.push(tokio_uring::spawn(hear(conn, Rc::clone(&seen))));
        }
        let (mut ticker, clock) = (Ticker::new()?, Clock::start());
        while clock.now_ns() < duration_ns(STAY) && !over.load(Ordering::Relaxed) {
            ticker.wait_ns(LOOK_NS).await?;
        }
        if let Some(early) = clients.iter().position(|client| client.is_finished()) {
            let cause = format!("the neighbour has sent client {early} away before it was to go");
            return Err(Fault::new(cause, "look into its log (a slow consumer?)"));
        }
        node.make_lame_duck();
        let clock = Clock::start();
        while clients.iter().any(|client| !client.is_finished()) {
            if clock.now_ns() > duration_ns(LEAVE_PATIENCE) {
                let remedy = "give it a lame_duck_duration below 3 minutes";
                return Err(Fault::new("the neighbour does not send its clients away", remedy));
            }
            ticker.wait_ns(LOOK_NS).await?;
        }
        for client in clients {
            // It was aborted only if the whole ring ends.
            client.await.unwrap_or(Ok(()))?;
        }
        let seen = *seen.borrow();
        Ok(seen)
    }
}

/// Listens until the connection is closed.
async fn hear(conn: Conn, seen: Rc<RefCell<Visits>>) -> Outcome<()> {
    let (mut inbox, mut scanner) = (Inbox::new(BUFFER_BYTES), Scanner::new(Stamp::BYTES));
    let mut latest = HashMap::new();
    while conn.fill(&mut inbox).await.is_ok() {
        let scanned = {
            let seen = &mut *seen.borrow_mut();
            scanner.scan(inbox.bytes(), |message| {
                let stamp = Stamp::from_prefix(message.prefix);
                seen.heard += 1;
                seen.gaps += u64::from(is_gap(&mut latest, stamp));
            })?
        };
        inbox.consume(scanned.used);
        if conn.answer(scanned.owed).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Whether something is missing before `stamp`. A load begins with number 0, and who listens may
/// have come in the middle of one.
fn is_gap(latest: &mut HashMap<u32, u32>, stamp: Stamp) -> bool {
    let before = latest.insert(stamp.publisher, stamp.sequence);
    stamp.sequence != 0 && before.is_some_and(|before| before.wrapping_add(1) != stamp.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_a_missing_number_of_the_same_publisher() {
        let mut latest = HashMap::new();
        let mut at = |publisher, sequence| {
            is_gap(&mut latest, Stamp { intended_ns: 0, publisher, sequence })
        };
        assert!(!at(0, 7), "it came in the middle");
        assert!(!at(0, 8));
        assert!(!at(1, 3));
        assert!(at(0, 10));
        assert!(at(0, 10), "twice");
        assert!(!at(0, 0), "the next load");
    }
}
