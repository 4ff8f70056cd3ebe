//! Two servers that are linked: what each must be told, and when messages cross.

use crate::client::{Conn, Inbox, Target, with_ring};
use crate::clock::{Clock, Ticker, duration_ns};
use crate::fault::{Fault, Outcome};
use crate::wire::{Scanner, push_sub};
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// What a message may take to cross, from the start of both servers on.
const CROSSING_PATIENCE: Duration = Duration::from_secs(30);
/// How often one is tried.
const TRY_NS: u64 = 5_000_000;

/// Left to themselves servers compress by the time of a round trip, which a busy machine draws out.
const PLAIN: &str = "compression: off";

/// What joins two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub(crate) enum Link {
    /// Routes of one cluster
    Route,
    /// A leaf connection: the near server is the hub
    Leaf,
    /// Gateways of two clusters
    Gateway,
}

impl Link {
    /// The configurations of the near server, where messages are published, and the far one, where
    /// they are heard; each listens for the other on its port.
    pub(crate) fn configs(self, [near, far]: [u16; 2]) -> [String; 2] {
        let listen = |port| format!("listen: \"127.0.0.1:{port}\"");
        match self {
            Self::Route => [
                format!("cluster {{ name: perf, {PLAIN}, {} }}\n", listen(near)),
                format!(
                    "cluster {{ name: perf, {PLAIN}, {}, \
                     routes: [\"nats-route://127.0.0.1:{near}\"] }}\n",
                    listen(far)
                ),
            ],
            Self::Leaf => [
                format!("leafnodes {{ {PLAIN}, {} }}\n", listen(near)),
                format!(
                    "leafnodes {{ remotes: [{{ {PLAIN}, \
                     url: \"nats-leaf://127.0.0.1:{near}\" }}] }}\n"
                ),
            ],
            Self::Gateway => [
                format!("gateway {{ name: near, {} }}\n", listen(near)),
                format!(
                    "gateway {{ name: far, {}, gateways: [{{ name: near, \
                     url: \"nats://127.0.0.1:{near}\" }}] }}\n",
                    listen(far)
                ),
            ],
        }
    }
}

/// Waits until a message crosses from `from` to `to`; what has been subscribed at `to` before is in
/// force at `from` then, for it goes the same way.
pub(crate) fn await_crossing(from: &Target, to: &Target) -> Outcome<()> {
    with_ring(2, cross(from, to))
}

/// The same on a ring.
pub(crate) async fn cross(from: &Target, to: &Target) -> Outcome<()> {
    let ((hearing, ..), (saying, ..)) = (Conn::open(to, 0).await?, Conn::open(from, 0).await?);
    let mut wire = Vec::new();
    push_sub("perf-crossing", None, 1, &mut wire);
    wire.extend_from_slice(b"PING\r\n");
    hearing.write(wire).await?;
    let heard = Rc::new(RefCell::new(None));
    let task = tokio_uring::spawn({
        let (hearing, heard) = (hearing.clone(), Rc::clone(&heard));
        async move {
            let outcome = await_message(&hearing).await;
            *heard.borrow_mut() = Some(outcome);
        }
    });
    let (mut ticker, clock) = (Ticker::new()?, Clock::start());
    while heard.borrow().is_none() && clock.now_ns() < duration_ns(CROSSING_PATIENCE) {
        saying.write(b"PUB perf-crossing 0\r\n\r\n".to_vec()).await?;
        ticker.wait_ns(TRY_NS).await?;
    }
    let outcome = heard.take();
    [hearing, saying].iter().for_each(Conn::shut_down);
    // It ends with its connection.
    let _ = task.await;
    outcome.unwrap_or_else(|| {
        let cause = "no message crosses from one server to the other";
        Err(Fault::new(cause, "try both with the same configurations by hand"))
    })
}

async fn await_message(conn: &Conn) -> Outcome<()> {
    let (mut inbox, mut scanner, mut messages) = (Inbox::new(16 << 10), Scanner::new(0), 0);
    while messages == 0 {
        conn.fill(&mut inbox).await?;
        let seen = scanner.scan(inbox.bytes(), |_| messages += 1)?;
        inbox.consume(seen.used);
        conn.answer(seen.owed).await?;
    }
    Ok(())
}
