//! The most that sending can reach: deliveries that are prepared beforehand, poured by one thread
//! into as many sockets as there are subscribers, through the broker's own reactor.
//!
//! It runs in a process of its own, so that its CPU is measured as a server's is, and speaks just
//! enough of the protocol for the same subscribers to read from it. In place of publishes it is
//! told how many more messages all may have, by the publisher of a closed loop: as much is under
//! way as with a broker. It parses no publish, looks nothing up and renders nothing: what a
//! broker's figure falls short of this one's is what the broker itself costs.

use crate::cli::PourArgs;
use crate::fault::{Fault, Outcome};
use crate::load::{Pace, Plan};
use crate::wire::{delivery, reply};
use rustix::net::sockopt::set_tcp_nodelay;
use shardcast::output::{Piece, Segment};
use shardcast::uring::{
    Batch, Chunk, Closing, Event, Reactor, ReactorOptions, SocketId, TurnWait, ZeroCopy,
};
use std::collections::HashMap;
use std::net::TcpListener;
use std::rc::Rc;

/// What is sent to a subscriber at once in a comparison, in bytes: which is best depends on the
/// machine's caches and the number of subscribers. Larger ones leave the cache from one subscriber
/// to the next, smaller ones need more operations.
const BATCHES_BYTES: [u64; 3] = [16 * 1024, 64 * 1024, 256 * 1024];

const INFO: &[u8] = b"INFO {\"server_id\":\"ceiling\",\"version\":\"0.0.0\",\"headers\":true,\
    \"max_payload\":1073741824} \r\n";

/// The plans whose best is the ceiling of `plan`, and the commands that pour their deliveries, with
/// `{port}`; none when there is no ceiling.
pub(crate) fn of(plan: &Plan) -> Outcome<Vec<(Plan, String)>> {
    let with_batch = |window_bytes, batch_bytes| {
        let mut plan = Plan { pace: Pace::Poured { window_bytes, batch_bytes }, ..plan.clone() };
        plan.workload.churn_rate = 0.0;
        plan
    };
    let plans = match plan.pace {
        Pace::Closed { window_bytes } => {
            BATCHES_BYTES.map(|batch_bytes| with_batch(window_bytes, batch_bytes)).to_vec()
        }
        Pace::Poured { window_bytes, batch_bytes } => vec![with_batch(window_bytes, batch_bytes)],
        Pace::Open { .. } => Vec::new(),
    };
    let possible = plans.into_iter().filter(|plan| plan.workload.check(plan.pace).is_ok());
    possible.map(|plan| Ok((plan.clone(), command(&plan)?))).collect()
}

fn command(plan: &Plan) -> Outcome<String> {
    let Pace::Poured { window_bytes, batch_bytes } = plan.pace else {
        return Err(Fault::new("nothing is poured", "report this bug"));
    };
    let program = std::env::current_exe()
        .map_err(|e| Fault::new(format!("this program has no path ({e})"), "run it from a file"))?;
    Ok(format!(
        "'{}' pour --port {{port}} --subs {} --payload {} --headers {} --reply {} \
         --batch {batch_bytes} --least {}",
        program.display(),
        plan.workload.subs,
        plan.workload.payload_bytes,
        plan.workload.header_bytes,
        plan.workload.reply_bytes,
        // With a part of the window only, the rest of it is always granted in the end.
        batch_bytes.min(window_bytes / 4)
    ))
}

/// Appends what tells the pouring thread that everybody may have `messages` more.
pub(crate) fn push_grant(messages: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("GRANT {messages}\r\n").as_bytes());
}

/// Pours what is granted, until the last subscriber has gone.
pub(crate) fn pour(args: &PourArgs) -> Outcome<()> {
    let broken = |what: &str, error: &dyn std::fmt::Display| {
        Fault::new(format!("{what} ({error})"), "run the broker: it says what the host lacks")
    };
    let listener = TcpListener::bind(("127.0.0.1", args.port)).map_err(|e| {
        Fault::new(format!("cannot listen on port {} ({e})", args.port), "take another")
    })?;
    let mut reactor =
        Reactor::new(&ReactorOptions::default()).map_err(|e| broken("there is no io_uring", &e))?;
    reactor.listen(listener.into());
    let mut pourer = Pourer {
        reactor,
        args: args.clone(),
        peers: HashMap::new(),
        prepared: HashMap::new(),
        granted: 0,
        is_all_granted: false,
        was_subscribed: false,
    };
    let mut events = Vec::new();
    while !pourer.is_over() {
        pourer
            .reactor
            .turn(TurnWait::Forever, &mut events)
            .map_err(|e| broken("the ring failed", &e))?;
        let granted = (pourer.granted, pourer.is_all_granted);
        events.drain(..).for_each(|event| pourer.on_event(event));
        if (pourer.granted, pourer.is_all_granted) != granted {
            pourer.send_all();
        }
    }
    Ok(())
}

/// A connection that is open.
#[derive(Default)]
struct Peer {
    /// Input without the end of its line.
    input: Vec<u8>,
    /// Answers that wait for the batch in flight.
    answers: Vec<u8>,
    /// What its subscription gets.
    prepared: Option<Rc<Prepared>>,
    /// Messages that have been sent to it, or are being sent.
    sent: u64,
    in_flight: bool,
}

/// Deliveries, one like the other.
struct Prepared {
    segment: Segment,
    /// Bytes of one.
    each: usize,
    /// How many a batch has, about.
    count: u64,
    /// As many are waited for.
    least: u64,
}

struct Pourer {
    reactor: Reactor,
    args: PourArgs,
    peers: HashMap<SocketId, Peer>,
    /// By subject and the length of the sid: the bytes of all sids as long as that are the same, so
    /// that as few as possible want a place in the cache.
    prepared: HashMap<(String, usize), Rc<Prepared>>,
    /// Messages that everybody may have by now.
    granted: u64,
    /// No more will be granted.
    is_all_granted: bool,
    was_subscribed: bool,
}

impl Pourer {
    fn is_over(&self) -> bool {
        self.was_subscribed && self.peers.is_empty()
    }

    fn send_all(&mut self) {
        let all: Vec<SocketId> = self.peers.keys().copied().collect();
        all.into_iter().for_each(|socket| self.send_next(socket, None));
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Accepted { socket, .. } => {
                // Without it the figures are worse, which is all that can happen.
                let _ = set_tcp_nodelay(&socket, true);
                let socket = self.reactor.adopt(socket, ZeroCopy::Never);
                self.reactor.read(socket);
                self.peers.insert(socket, Peer { answers: INFO.to_vec(), ..Peer::default() });
                self.send_next(socket, None);
            }
            Event::Received { socket, chunk } => self.on_received(socket, chunk),
            Event::Sent { socket, batch: Some(batch), .. } => {
                if let Some(peer) = self.peers.get_mut(&socket) {
                    peer.in_flight = false;
                }
                self.send_next(socket, Some(batch));
            }
            Event::Ended { socket, .. } | Event::SendFailed { socket, .. } => {
                if self.peers.remove(&socket).is_some() {
                    self.reactor.close(socket, Closing::Abort);
                }
            }
            Event::AcceptFailed { listener, .. } => self.reactor.accept(listener),
            Event::Sent { .. }
            | Event::Closed { .. }
            | Event::StoppedListening { .. }
            | Event::Disk(_)
            | Event::Woken => {}
        }
    }

    fn on_received(&mut self, socket: SocketId, chunk: Chunk) {
        if let Some(peer) = self.peers.get_mut(&socket) {
            peer.input.extend_from_slice(self.reactor.bytes(&chunk));
            let Self { args, prepared, granted, is_all_granted, was_subscribed, .. } = self;
            let used =
                split_lines(&peer.input, |line| match line.split(' ').collect::<Vec<_>>()[..] {
                    ["GRANT", messages] => *granted += messages.parse().unwrap_or(0),
                    ["PING"] => {
                        peer.answers.extend_from_slice(b"PONG\r\n");
                        // A publisher's last word.
                        *is_all_granted |= *granted > 0;
                    }
                    ["SUB", subject, .., sid] => {
                        let made = prepared
                            .entry((subject.to_owned(), sid.len()))
                            .or_insert_with(|| Rc::new(Prepared::new(args, subject, sid)));
                        peer.prepared = Some(Rc::clone(made));
                        peer.sent = *granted;
                        *was_subscribed = true;
                    }
                    _ => {}
                });
            peer.input.drain(..used);
        }
        self.reactor.recycle(chunk);
        self.send_next(socket, None);
    }

    /// Sends answers, or else deliveries; `home` is the batch that was sent last, to be used again.
    fn send_next(&mut self, socket: SocketId, home: Option<Batch>) {
        let Some(peer) = self.peers.get_mut(&socket).filter(|peer| !peer.in_flight) else {
            return;
        };
        let batch = if !peer.answers.is_empty() {
            vec![Piece::Own(std::mem::take(&mut peer.answers))].into()
        } else if let Some(prepared) = peer.prepared.as_ref()
            && let left = self.granted - peer.sent
            && left >= if self.is_all_granted { 1 } else { prepared.least }
        {
            let messages = prepared.next(left);
            peer.sent += messages;
            let range = 0..prepared.each * usize::try_from(messages).unwrap_or(0);
            let segment = Rc::clone(&prepared.segment);
            let mut batch = home.unwrap_or_default();
            batch.pieces.clear();
            batch.pieces.push(Piece::Shared { segment, range });
            batch
        } else {
            return;
        };
        peer.in_flight = true;
        self.reactor.send(socket, batch);
    }
}

impl Prepared {
    fn new(args: &PourArgs, subject: &str, sid: &str) -> Self {
        let address = format!("{subject} {sid}{}", reply(args.reply));
        let one = delivery(&address, args.payload, args.headers);
        let count = (args.batch / one.len()).max(1);
        let most = count + count.div_ceil(2);
        let least = (args.least / one.len()).max(1) as u64;
        let segment = Rc::new(one.repeat(most));
        Self { segment, each: one.len(), count: count as u64, least }
    }

    /// How many of `left` messages the next batch has: they are divided into equal ones, so that
    /// none is much smaller than the others.
    fn next(&self, left: u64) -> u64 {
        let batches = ((left + self.count / 2) / self.count).max(1);
        left.div_ceil(batches)
    }
}

/// Shows each whole line of `input` without its end; gives how many bytes they have.
fn split_lines(input: &[u8], mut on_line: impl FnMut(&str)) -> usize {
    let used = memchr::memrchr(b'\n', input).map_or(0, |end| end + 1);
    String::from_utf8_lossy(&input[..used]).lines().for_each(&mut on_line);
    used
}
