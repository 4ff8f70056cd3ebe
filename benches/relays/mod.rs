//! A minimal relay for each runtime: what the first connection sends is copied, message by
//! message, to all others.
//!
//! All are built alike. Each subscriber has an outbox and one send in flight; what is relayed
//! meanwhile makes the next one. While any outbox is full, nothing more is read.

mod ours;
mod tasks;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{BufRead, Write, stdin, stdout};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::thread;

use rustix::time::ClockId;

use super::measure::cpu_ns;

/// Bytes of each message; it has no frame.
pub(crate) const MESSAGE_BYTES: usize = 128;
/// Bytes of one read.
const CHUNK_BYTES: usize = 64 * 1024;
/// An outbox with more is full.
const OUTBOX_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    Ours,
    TokioUring,
    Glommio,
}

impl Runtime {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::TokioUring, Self::Glommio];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::TokioUring => "tokio-uring",
            Self::Glommio => "glommio",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|runtime| runtime.name() == name)
    }
}

/// Says its port, then relays until the publisher ends. To each line on standard input it says
/// how much CPU time the process has used.
pub(crate) fn run(runtime: Runtime, subscribers: usize) {
    thread::spawn(|| {
        for _ in stdin().lock().lines() {
            say(cpu_ns(ClockId::ProcessCPUTime));
        }
    });
    match runtime {
        Runtime::Ours => ours::run(subscribers),
        Runtime::TokioUring => tasks::run_on_tokio_uring(subscribers),
        Runtime::Glommio => tasks::run_on_glommio(subscribers),
    }
}

fn say(what: impl std::fmt::Display) {
    let mut out = stdout().lock();
    // Who asked may have gone.
    let _ = writeln!(out, "{what}").and_then(|()| out.flush());
}

/// What is still to be sent to each subscriber.
#[derive(Debug, Default)]
struct Outboxes {
    boxes: Vec<Vec<u8>>,
    /// How many are full.
    full: usize,
}

impl Outboxes {
    fn new(subscribers: usize) -> Self {
        Self { boxes: vec![Vec::new(); subscribers], full: 0 }
    }

    fn relay(&mut self, chunk: &[u8]) {
        // As a broker does it that knows nothing of runs.
        for message in chunk.chunks(MESSAGE_BYTES) {
            self.boxes.iter_mut().for_each(|outbox| outbox.extend_from_slice(message));
        }
        self.full = self.boxes.iter().filter(|outbox| outbox.len() >= OUTBOX_BYTES_MAX).count();
    }

    /// Takes what there is for one subscriber; an empty buffer is left in its place.
    fn take(&mut self, subscriber: usize, empty: Vec<u8>) -> Vec<u8> {
        let taken = std::mem::replace(&mut self.boxes[subscriber], empty);
        self.full -= usize::from(taken.len() >= OUTBOX_BYTES_MAX);
        taken
    }
}

/// Outboxes between tasks of one thread.
#[derive(Debug)]
struct Shared {
    outboxes: Outboxes,
    writers: Vec<Option<Waker>>,
    reader: Option<Waker>,
}

impl Shared {
    fn new(subscribers: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            outboxes: Outboxes::new(subscribers),
            writers: vec![None; subscribers],
            reader: None,
        }))
    }

    /// Relays a chunk, then waits until no outbox is full.
    async fn relay(shared: &RefCell<Self>, chunk: &[u8]) {
        {
            let mut shared = shared.borrow_mut();
            shared.outboxes.relay(chunk);
            shared.writers.iter_mut().filter_map(Option::take).for_each(Waker::wake);
        }
        poll_fn(|context| {
            let mut shared = shared.borrow_mut();
            if shared.outboxes.full == 0 {
                return Poll::Ready(());
            }
            shared.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits for something for one subscriber, and takes it in exchange for an empty buffer.
    async fn next(shared: &RefCell<Self>, subscriber: usize, empty: Vec<u8>) -> Vec<u8> {
        let mut empty = Some(empty);
        poll_fn(|context| {
            let mut shared = shared.borrow_mut();
            if shared.outboxes.boxes[subscriber].is_empty() {
                shared.writers[subscriber] = Some(context.waker().clone());
                return Poll::Pending;
            }
            let taken = shared.outboxes.take(subscriber, empty.take().unwrap_or_default());
            if shared.outboxes.full == 0
                && let Some(reader) = shared.reader.take()
            {
                reader.wake();
            }
            Poll::Ready(taken)
        })
        .await
    }
}
