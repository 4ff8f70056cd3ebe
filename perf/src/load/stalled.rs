//! Subscribing connections that nobody reads, filled before anybody else comes: what is between
//! them and the server holds no more, so that the server has to do something about them.

use super::Job;
use crate::client::{Conn, Inbox};
use crate::clock::Ticker;
use crate::fault::{Fault, Outcome};
use crate::wire::{Scanner, push_sub};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Read buffer of such a connection, here for its first PONG, and in the kernel ever after.
const BUFFER_BYTES: usize = 4096;
/// More than a kernel keeps for a socket on the server's side.
const FILL_BYTES: usize = 6 << 20;
const MESSAGE_BYTES: usize = 64 << 10;
/// A server that has not taken so much by then waits for those who do not read.
const FILL_PATIENCE: Duration = Duration::from_secs(5);
const POLL_NS: u64 = 1_000_000;

/// Opens the connections that stall, and publishes to them what nobody reads.
pub(super) async fn open_and_fill(job: &Job) -> Outcome<Vec<TcpStream>> {
    let workload = &job.plan.workload;
    let (mut stalled, mut subjects) = (Vec::new(), BTreeSet::new());
    for number in (0..workload.subs).cycle().take(workload.stalled) {
        let (conn, _, socket) = Conn::open_with_socket(&job.far, number).await?;
        let mut wire = Vec::new();
        for (at, filter) in workload.filters(number).iter().enumerate() {
            push_sub(filter, None, workload.sid(number, at), &mut wire);
        }
        wire.extend_from_slice(b"PING\r\n");
        conn.write(wire).await?;
        conn.await_pong(&mut Inbox::new(BUFFER_BYTES), &mut Scanner::new(0)).await?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES).map_err(|e| {
            Fault::new(format!("the kernel goes on reading ({e})"), "leave --stalled out")
        })?;
        subjects.extend(workload.heard_by(number));
        stalled.push(socket);
    }
    if !stalled.is_empty() {
        fill(job, &subjects).await?;
    }
    Ok(stalled)
}

async fn fill(job: &Job, subjects: &BTreeSet<String>) -> Outcome<()> {
    let (conn, info, _) = Conn::open_with_socket(&job.target, 0).await?;
    let bytes =
        if info.max_payload > 0 { MESSAGE_BYTES.min(info.max_payload) } else { MESSAGE_BYTES };
    let mut wire = Vec::new();
    for subject in subjects {
        for _ in 0..FILL_BYTES.div_ceil(bytes) {
            wire.extend_from_slice(format!("PUB {subject} {bytes}\r\n").as_bytes());
            wire.resize(wire.len() + bytes, b'-');
            wire.extend_from_slice(b"\r\n");
        }
    }
    wire.extend_from_slice(b"PING\r\n");
    let taken = Rc::new(RefCell::new(None));
    let task = tokio_uring::spawn({
        let (conn, taken) = (conn.clone(), Rc::clone(&taken));
        async move {
            let outcome = async {
                conn.write(wire).await?;
                conn.await_pong(&mut Inbox::new(BUFFER_BYTES), &mut Scanner::new(0)).await
            };
            let outcome = outcome.await;
            *taken.borrow_mut() = Some(outcome);
        }
    });
    let (mut ticker, began) = (Ticker::new()?, Instant::now());
    while taken.borrow().is_none() && began.elapsed() < FILL_PATIENCE {
        ticker.wait_ns(POLL_NS).await?;
    }
    let outcome = taken.take();
    super::go_home(&[conn], vec![task]).await;
    outcome.unwrap_or_else(|| {
        Err(Fault::new(
            "the server waits for subscribers that do not read",
            "leave --stalled out: it delivers to nobody meanwhile",
        ))
    })
}
