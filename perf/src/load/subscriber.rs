//! Subscribing connections: each counts what it is sent, and looks at it as far as is asked.
//!
//! In an open loop, and with TLS, each is a task on its thread's tokio-uring. In a closed loop
//! the readers are what a fast server waits for: once they stand, a thread's connections are
//! handed over to the broker's own reactor, which reads all of them into a few chunks that stay
//! in the cache, many with one system call.

use super::{HEARTBEAT_NS, Job, Pace, STOP, Share, dealt, go_home, heartbeat, listen};
use crate::client::{Conn, Inbox, closed, with_ring};
use crate::fault::{Fault, Outcome};
use crate::wire::{Scanned, Scanner, Stamp};
use shardcast::output::Piece;
use shardcast::uring::{Event, Reactor, ReactorOptions, SocketId, TurnWait, ZeroCopy};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// All read buffers of a thread's tasks together, when the user gives no size.
const READ_BUFFERS_BYTES: usize = 8 << 20;
/// As much is put behind an operation that a chunk's end has cut, until it is complete.
const COMPLETION_BYTES: usize = 512;

/// Runs the subscribing connections of one thread.
pub(super) fn subscribers(job: &Arc<Job>, index: usize) -> Share {
    let mine =
        dealt(job.plan.workload.subs, job.plan.sub_threads.min(job.plan.workload.subs), index);
    let share = Rc::new(RefCell::new(Share::new()));
    let (conns, in_bulk) = (mine.len(), !matches!(job.plan.pace, Pace::Open { .. }));
    let outcome = with_ring(conns, async {
        let opened = open_all(job, mine, &share).await?;
        if in_bulk && opened.iter().all(|(conn, ..)| !conn.is_secret()) {
            return Ok(Some(opened));
        }
        work_in_tasks(job, opened, &share).await.map(|()| None)
    })
    .and_then(|opened| opened.map_or(Ok(()), |opened| read_in_bulk(job, opened)));
    outcome.unwrap_or_else(|fault| job.stage.fail(fault));
    share.replace(Share::new())
}

/// A connection, its socket, what has arrived, and the subscriber; nobody for an idle one.
type Opened = (Conn, TcpStream, Inbox, Option<Subscriber>);

async fn open_all(
    job: &Arc<Job>,
    mine: Vec<usize>,
    share: &Rc<RefCell<Share>>,
) -> Outcome<Vec<Opened>> {
    let buffer_bytes = match job.plan.read_buffer_bytes {
        0 => (READ_BUFFERS_BYTES / mine.len().max(1)).clamp(16 << 10, 256 << 10),
        given => given,
    };
    let mut opened = Vec::new();
    for number in mine {
        if job.plan.workload.idle_between {
            let (idle, _, socket) = Conn::open_with_socket(&job.far, number).await?;
            opened.push((idle, socket, Inbox::new(16 << 10), None));
        }
        opened.push(Subscriber::open(job, number, buffer_bytes, Rc::clone(share)).await?);
    }
    Ok(opened)
}

async fn work_in_tasks(
    job: &Arc<Job>,
    opened: Vec<Opened>,
    share: &Rc<RefCell<Share>>,
) -> Outcome<()> {
    let (mut conns, mut tasks) = (Vec::new(), Vec::new());
    for (conn, _, inbox, subscriber) in opened {
        conns.push(conn.clone());
        match subscriber {
            None => tasks.push(tokio_uring::spawn(listen(Arc::clone(job), conn, Rc::default()))),
            Some(subscriber) => {
                tasks.push(tokio_uring::spawn(subscriber.work(conn, inbox)));
                job.stage.ready.fetch_add(1, Ordering::Release);
            }
        }
    }
    let late = |ns| share.borrow_mut().receive_lag.saturating_record(ns);
    heartbeat(&job.stage, late).await?;
    go_home(&conns, tasks).await;
    Ok(())
}

/// A connection that the reactor reads.
struct Reading {
    subscriber: Option<Subscriber>,
    /// For connections without a subscriber.
    scanner: Scanner,
    /// The head of an operation that a chunk's end has cut.
    cut: Vec<u8>,
    /// What has to be answered behind the answer in flight.
    owed: Vec<u8>,
    answering: bool,
    name: String,
}

impl Reading {
    /// Goes through what has come in.
    fn take(&mut self, mut bytes: &[u8]) -> Outcome<()> {
        while !self.cut.is_empty() && !bytes.is_empty() {
            let held = self.cut.len();
            let more = bytes.len().min(COMPLETION_BYTES);
            self.cut.extend_from_slice(&bytes[..more]);
            let cut = std::mem::take(&mut self.cut);
            let used = self.scan(&cut)?;
            if used < held {
                bytes = &bytes[more..];
                self.cut = cut;
                self.cut.drain(..used);
            } else {
                bytes = &bytes[used - held..];
            }
        }
        let used = self.scan(bytes)?;
        self.cut.extend_from_slice(&bytes[used..]);
        Ok(())
    }

    fn scan(&mut self, bytes: &[u8]) -> Outcome<usize> {
        let seen = match &mut self.subscriber {
            Some(subscriber) => subscriber.take(bytes)?,
            None => self.scanner.scan(bytes, |_| {})?,
        };
        self.owed.extend_from_slice(&seen.owed);
        Ok(seen.used)
    }
}

/// Reads everything that comes to plain connections, until the run stops.
fn read_in_bulk(job: &Arc<Job>, opened: Vec<Opened>) -> Outcome<()> {
    let broken = |error: &dyn std::fmt::Display| {
        let remedy = "ask `shardcast doctor` what this host lacks";
        Fault::new(format!("subscribers cannot be read ({error})"), remedy)
    };
    let mut options = ReactorOptions::default();
    if job.plan.read_buffer_bytes > 0 {
        options.chunk_bytes = u32::try_from(job.plan.read_buffer_bytes).unwrap_or(u32::MAX);
    }
    let mut reactor = Reactor::new(&options).map_err(|e| broken(&e))?;
    let mut readings = HashMap::new();
    for (conn, socket, inbox, subscriber) in opened {
        let (name, scanner, cut) = (conn.name().to_owned(), conn.scanner(0), Vec::new());
        let counts = usize::from(subscriber.is_some());
        let mut reading =
            Reading { subscriber, scanner, cut, owed: Vec::new(), answering: false, name };
        reading.take(inbox.bytes())?;
        let id = reactor.adopt(socket.into(), ZeroCopy::Never);
        reactor.read(id);
        readings.insert(id, reading);
        job.stage.ready.fetch_add(counts, Ordering::Release);
    }
    let mut events = Vec::new();
    while job.stage.phase() < STOP {
        let wait = TurnWait::For(Duration::from_nanos(HEARTBEAT_NS));
        reactor.turn(wait, &mut events).map_err(|e| broken(&e))?;
        for event in events.drain(..) {
            on_event(event, &mut reactor, &mut readings)?;
        }
    }
    Ok(())
}

fn on_event(
    event: Event,
    reactor: &mut Reactor,
    readings: &mut HashMap<SocketId, Reading>,
) -> Outcome<()> {
    let (socket, lost) = match event {
        Event::Received { socket, chunk } => {
            if let Some(reading) = readings.get_mut(&socket) {
                let taken = reading.take(reactor.bytes(&chunk));
                taken.map_err(|fault| fault.at(&reading.name))?;
            }
            reactor.recycle(chunk);
            (socket, None)
        }
        Event::Sent { socket, batch, .. } => {
            if let Some(reading) = readings.get_mut(&socket).filter(|_| batch.is_some()) {
                reading.answering = false;
            }
            (socket, None)
        }
        Event::Ended { socket, error: None } => {
            (socket, Some("the server closed the connection".to_owned()))
        }
        Event::Ended { socket, error: Some(e) } => (socket, Some(format!("reading failed ({e})"))),
        Event::SendFailed { socket, error, .. } => {
            (socket, Some(format!("writing failed ({error})")))
        }
        _ => return Ok(()),
    };
    let Some(reading) = readings.get_mut(&socket) else { return Ok(()) };
    if let Some(what) = lost {
        return Err(closed(&what).at(&reading.name));
    }
    if !reading.owed.is_empty() && !reading.answering {
        let answer = std::mem::take(&mut reading.owed);
        reading.answering = true;
        reactor.send(socket, vec![Piece::Own(answer)].into());
    }
    Ok(())
}

struct Subscriber {
    job: Arc<Job>,
    number: usize,
    scanner: Scanner,
    share: Rc<RefCell<Share>>,
    /// Messages that have come.
    count: u64,
    /// The latest sequence number of each publisher.
    latest: Vec<Option<u32>>,
}

impl Subscriber {
    async fn open(
        job: &Arc<Job>,
        number: usize,
        buffer_bytes: usize,
        share: Rc<RefCell<Share>>,
    ) -> Outcome<Opened> {
        let workload = &job.plan.workload;
        let (conn, info, socket) = Conn::open_with_socket(&job.far, number).await?;
        let wire_bytes = workload.payload_bytes + workload.header_bytes;
        if workload.header_bytes > 0 && !info.headers {
            return Err(Fault::new("the server has no headers", "leave --headers out"));
        }
        if info.max_payload > 0 && wire_bytes > info.max_payload {
            return Err(Fault::new(
                format!("{wire_bytes} bytes exceed max_payload {}", info.max_payload),
                "lower --payload or raise the server's max_payload",
            ));
        }
        let timed = matches!(job.plan.pace, Pace::Open { .. });
        let prefix = match (workload.verify, timed) {
            (true, _) => Stamp::BYTES,
            (false, true) => Stamp::TIME_BYTES,
            (false, false) => 0,
        };
        let queue = workload.queue(number);
        let mut wire = Vec::new();
        for (at, filter) in workload.filters(number).iter().enumerate() {
            let sid = workload.sid(number, at);
            conn.dialect().push_sub(filter, queue.as_deref(), sid, &mut wire);
        }
        wire.extend_from_slice(conn.dialect().ping());
        conn.write(wire).await?;
        let (mut inbox, mut scanner) = (Inbox::new(buffer_bytes), conn.scanner(prefix));
        conn.await_pong(&mut inbox, &mut scanner).await?;
        let (job, latest) = (Arc::clone(job), vec![None; workload.pubs]);
        Ok((conn, socket, inbox, Some(Self { job, number, scanner, share, count: 0, latest })))
    }

    async fn work(mut self, conn: Conn, mut inbox: Inbox) {
        let job = Arc::clone(&self.job);
        let outcome: Outcome<()> = async {
            loop {
                conn.fill(&mut inbox).await?;
                let seen = self.take(inbox.bytes())?;
                inbox.consume(seen.used);
                conn.answer(seen.owed).await?;
            }
        }
        .await;
        outcome.unwrap_or_else(|fault| job.stage.fail(fault));
    }

    /// Counts the messages that begin in `bytes`, and looks at their stamps if that is wanted.
    fn take(&mut self, bytes: &[u8]) -> Outcome<Scanned> {
        let Self { job, scanner, share, count, latest, .. } = self;
        let stage = &job.stage;
        let timed = matches!(job.plan.pace, Pace::Open { .. });
        let verify = job.plan.workload.verify;
        let broadcast = job.plan.workload.is_broadcast();
        let seen = if timed || verify {
            let now_ns = if timed { stage.clock.now_ns() } else { 0 };
            let share = &mut *share.borrow_mut();
            scanner.scan(bytes, |message| {
                *count += 1;
                let stamp = Stamp::from_prefix(message.prefix);
                if timed && stage.in_window(stamp.intended_ns) {
                    share.latency.saturating_record(now_ns.saturating_sub(stamp.intended_ns));
                }
                if verify && !in_order(latest, stamp, broadcast) {
                    share.disordered += 1;
                }
            })?
        } else {
            scanner.scan(bytes, |_| *count += 1)?
        };
        stage.delivered[self.number].0.store(self.count, Ordering::Relaxed);
        Ok(seen)
    }
}

/// Whether `stamp` follows its publisher's latest one: directly, when every message comes here.
fn in_order(latest: &mut [Option<u32>], stamp: Stamp, broadcast: bool) -> bool {
    let Some(latest) = latest.get_mut(stamp.publisher as usize) else {
        return false;
    };
    let follows = match *latest {
        None => !broadcast || stamp.sequence == 0,
        Some(before) => {
            let step = stamp.sequence.wrapping_sub(before);
            if broadcast { step == 1 } else { (1..1 << 31).contains(&step) }
        }
    };
    *latest = Some(stamp.sequence);
    follows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_chunks_end_makes_no_difference() {
        let mut wire = b"PING\r\n".to_vec();
        for payload in [0, 1, 600, 3] {
            wire.extend_from_slice(format!("MSG a 1 {payload}\r\n").as_bytes());
            wire.extend_from_slice(&b"PING\r\n".repeat(200)[..payload]);
            wire.extend_from_slice(b"\r\nPING\r\n");
        }
        for step in 1..wire.len() {
            let (scanner, name) = (Scanner::new(Stamp::BYTES), String::new());
            let (subscriber, cut) = (None, Vec::new());
            let mut reading =
                Reading { subscriber, scanner, cut, owed: Vec::new(), answering: false, name };
            for chunk in wire.chunks(step) {
                reading.take(chunk).unwrap();
            }
            assert_eq!((reading.owed.len() / 6, reading.cut.len()), (5, 0), "in steps of {step}");
        }
    }

    #[test]
    fn order_means_the_next_number_when_every_message_comes() {
        let stamp = |sequence| Stamp { intended_ns: 0, publisher: 0, sequence };
        let mut latest = vec![None];
        assert!(in_order(&mut latest, stamp(0), true));
        assert!(in_order(&mut latest, stamp(1), true));
        assert!(!in_order(&mut latest, stamp(3), true));
        assert!(in_order(&mut latest, stamp(9), false));
        assert!(!in_order(&mut latest, stamp(8), false));
        let elsewhere = Stamp { publisher: 1, ..stamp(0) };
        assert!(!in_order(&mut latest, elsewhere, false));
    }
}
