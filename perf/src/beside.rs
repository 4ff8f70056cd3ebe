//! What goes on beside round trips: floods, and crowds of connections that come all at once.

use crate::client::{Conn, Target};
use crate::clock::Ticker;
use crate::fault::Outcome;
use crate::probe::LOOK_NS;
use crate::requests::{RoundTrips, respond};
use rustix::process::setpriority_process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The "nice" value of threads that take only what is left.
const LOWEST_PRIORITY: i32 = 19;
/// What a flooding connection writes at once, in bytes.
const FLOOD_BYTES: usize = 64 * 1024;

/// Real floods and storms come from other hosts: the calling thread takes only what whoever is
/// measured leaves of its CPU.
fn give_way() {
    // Where it is not allowed the times are those with a busy host.
    let _ = setpriority_process(None, LOWEST_PRIORITY);
}

/// Publishes on all flooding connections until it is `over`.
pub(crate) async fn flood(target: &Target, plan: &RoundTrips, over: &AtomicBool) -> Outcome<()> {
    give_way();
    let publish = format!(
        "PUB perf.flood {0}\r\n{1}\r\n",
        plan.payload_bytes,
        "x".repeat(plan.payload_bytes)
    );
    let batch = publish.repeat((FLOOD_BYTES / publish.len()).max(1)).into_bytes();
    let mut conns = Vec::new();
    for number in 0..plan.flooders {
        conns.push(Conn::open(target, number).await?.0);
    }
    let mut tasks = Vec::new();
    for conn in &conns {
        let (conn, mut batch) = (conn.clone(), batch.clone());
        tasks.push(tokio_uring::spawn(async move {
            // It ends when its connection is shut down.
            while let Ok(written) = conn.write(batch).await {
                batch = written;
            }
        }));
        let conn = conns[tasks.len() - 1].clone();
        drop(tokio_uring::spawn(async move { respond(&conn).await }));
    }
    let mut ticker = Ticker::new()?;
    while !over.load(Ordering::Relaxed) {
        ticker.wait_ns(LOOK_NS).await?;
    }
    conns.iter().for_each(Conn::shut_down);
    for task in tasks {
        // It was aborted if there is an error, which is an end as well.
        let _ = task.await;
    }
    Ok(())
}

/// Opens all connections at once, closes them when all are ready, and begins again until it is
/// `over`, as clients do whose server or network was gone; counts in `storms` how often.
pub(crate) async fn storms(
    target: &Target,
    count: usize,
    over: &AtomicBool,
    storms: &AtomicU64,
) -> Outcome<()> {
    give_way();
    while !over.load(Ordering::Relaxed) {
        let open = |number| {
            let target = target.clone();
            tokio_uring::spawn(async move { Conn::open(&target, number).await })
        };
        let opening: Vec<_> = (0..count).map(open).collect();
        let mut conns = Vec::new();
        for task in opening {
            // It was aborted only if the whole ring ends.
            if let Ok(opened) = task.await {
                conns.push(opened?.0);
            }
        }
        conns.iter().for_each(Conn::shut_down);
        storms.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
