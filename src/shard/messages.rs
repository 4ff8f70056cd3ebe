//! Messages between shards and the other threads.

use crate::shard::{GatewayOrder, RouteOrder};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::cluster::ClientUrls;
use crate::config::{self, Seating};
use crate::engine::{
    AccountFigures, AccountId, CalloutAnswer, ClientOrder, ClosedConn, ConnEvent, ConnId,
    ConnSnapshot, CredentialCheck, Excess, FarHalf, GatewaySnapshot, InterestStats, LaneFigures,
    LeafSnapshot, LoginNews, MessageTrace, NewGateway, NewLeaf, NewRoute, Page, Peer, Question,
    RouteSnapshot, ServerRequest, ShardId, Stats, StreamFigures, SubSnapshot, Transport,
    UsageFigures,
};
use crate::host::Tier;
use crate::measure::Histogram;
use crate::ocsp::PeerQuestion;
use crate::uring::{self, Waker};

/// Messages to a shard from the control thread and from the shard that accepts; `S` is a socket
/// that no reactor has adopted.
pub enum Control<S = OwnedFd> {
    /// A new connection to serve.
    Adopt {
        /// The connected socket.
        socket: S,
        /// The number, address and port of the client.
        peer: Peer,
        /// The transport of the connection.
        transport: Transport,
        /// Whether the client may stay; if not, it is told of too many connections and closed.
        admitted: bool,
    },
    /// A new connection to another server.
    AdoptRoute {
        /// The connected socket.
        socket: S,
        /// The number, address and port of the other server.
        peer: Peer,
        /// Properties of the new route.
        route: NewRoute,
    },
    /// A new connection to another cluster.
    AdoptGateway {
        /// The connected socket.
        socket: S,
        /// The number, address and port of the other server.
        peer: Peer,
        /// Properties of the new gateway.
        gateway: NewGateway,
    },
    /// An order about gateways.
    Gateway(GatewayOrder),
    /// A new leaf connection, accepted or dialled.
    AdoptLeaf {
        /// The connected socket.
        socket: S,
        /// The number, address and port of the other server.
        peer: Peer,
        /// Properties of the new connection.
        leaf: NewLeaf,
    },
    /// An order to close the leaf connection of this number, which the server has dialled.
    CloseLeaf(u64),
    /// An order about routes.
    Route(RouteOrder),
    /// Options that have changed.
    Reload(Arc<config::Options>),
    /// An order about a client; the answer is whether the shard has a client with this number.
    Client {
        /// The client's number.
        cid: u64,
        /// The order to carry out.
        order: ClientOrder,
        /// The sender of the answer.
        to: Sender<bool>,
    },
    /// An order to close connections, because there are too many.
    Shed {
        /// The numbers of connections to close.
        cids: RangeInclusive<u64>,
        /// The connections of which there are too many.
        excess: Excess,
    },
    /// Listeners on which to accept connections, for all shards.
    Open(Vec<Listener<S>>),
    /// Lame duck mode: no new connections, and clients closed one after the other.
    LameDuck {
        /// The time until the first client is closed.
        grace: Duration,
        /// The time from the first client closed to the last.
        spread: Duration,
    },
    /// An order to flush, close all connections and end.
    Stop,
    /// A message of the server itself to publish.
    Publish {
        /// The account of the message.
        account: AccountId,
        /// The subject of the message.
        subject: Box<[u8]>,
        /// The reply subject; empty if there is none.
        reply: Box<[u8]>,
        /// The header block; empty if there is none.
        header: Box<[u8]>,
        /// The payload of the message.
        payload: Box<[u8]>,
    },
    /// A measurement of another server, of a request of this shard.
    FarHalf {
        /// The number of the request's answer.
        id: u64,
        /// The measurement.
        half: Box<FarHalf>,
    },
    /// News about a login that waits.
    Login {
        /// The connection of the client.
        conn: ConnId,
        /// The news.
        news: LoginNews,
    },
    /// A request for the shard's report.
    Report(Sender<ShardReport>),
    /// A request for the shard's figures.
    Figures(Sender<Figures>),
    /// A request for the figures of the accounts.
    Accounts(Sender<Vec<AccountFigures>>),
    /// A request for a page of the open connections.
    Conns {
        /// The slot at which the page begins.
        from: u64,
        /// The sender of the answer.
        to: Sender<Page<ConnSnapshot>>,
    },
    /// A request for a page of the subscriptions.
    Subs {
        /// The slot at which the page begins.
        from: u64,
        /// The sender of the answer.
        to: Sender<Page<SubSnapshot>>,
    },
    /// A request for a page of the shard's streams.
    Streams {
        /// The number of the stream at which the page begins.
        from: u64,
        /// Whether the consumers of each stream are included.
        with_consumers: bool,
        /// The sender of the answer.
        to: Sender<Page<StreamFigures>>,
    },
    /// A request for the use of JetStream by accounts.
    StreamUsage(Sender<Vec<UsageFigures>>),
    /// A request for the registered routes.
    Routes {
        /// Whether the interest of each peer is included.
        with_interest: bool,
        /// The sender of the answer.
        to: Sender<Vec<RouteSnapshot>>,
    },
    /// A request for the registered gateways.
    Gateways {
        /// Whether the interest of each peer is included.
        with_interest: bool,
        /// The sender of the answer.
        to: Sender<Vec<GatewaySnapshot>>,
    },
    /// A request for the leaf connections.
    Leaves {
        /// Whether the interest of each other end is included.
        with_interest: bool,
        /// The sender of the answer.
        to: Sender<Vec<LeafSnapshot>>,
    },
    /// A request for a page of the connections that have ended.
    Closed {
        /// Connections that ended before the page begins.
        from: u64,
        /// The sender of the answer.
        to: Sender<Page<ClosedConn>>,
    },
}

/// Messages from shards to the thread of the system account.
#[derive(Debug)]
pub enum News {
    /// An event of a connection.
    Event(ConnEvent),
    /// A request to the server from a client of the system account.
    Request(ServerRequest),
    /// The report on a traced message.
    Trace(Box<MessageTrace>),
    /// An account that a login needs and that is not known.
    Wanted {
        /// The shard that waits.
        shard: ShardId,
        /// The connection of the client.
        conn: ConnId,
        /// The public key of the account.
        account: Box<str>,
    },
    /// A question about the certificate of a peer.
    PeerQuestion {
        /// The shard that waits.
        shard: ShardId,
        /// The connection of the peer.
        conn: ConnId,
        /// The question.
        question: Box<PeerQuestion>,
    },
    /// The answer about a peer, with the events about it.
    PeerStatus {
        /// The shard that waits.
        shard: ShardId,
        /// The connection of the peer.
        conn: ConnId,
        /// Whether the status is good enough.
        is_good: bool,
        /// Events for the system account.
        events: Vec<PeerEvent>,
    },
    /// The token of an account, or the reason why there is none.
    Fetched {
        /// The public key of the account.
        account: Box<str>,
        /// The token, not yet checked.
        token: Result<String, String>,
    },
    /// A change of the server's options or state.
    Change,
    /// The end of the server.
    Stop,
}

/// An event about the certificate of a peer.
#[derive(Debug)]
pub struct PeerEvent {
    /// The end of the subject, behind the server's id.
    pub subject: &'static str,
    /// The type of the event, in words of its schema.
    pub kind: &'static str,
    /// The members of the event.
    pub members: serde_json::Map<String, serde_json::Value>,
}

/// News that may wait; more is dropped.
const NEWS_MAX: usize = 4096;
/// Bytes that limit the requests among the news: a request may have this many, divided by the news
/// that wait and itself.
pub(super) const REQUESTS_BYTES: usize = 64 * 1024 * 1024;
/// Bytes that limit the traces among the news, by the same rule: all together take at most nine
/// times as many.
pub(super) const TRACES_BYTES: usize = 16 * 1024 * 1024;

/// The queue of [`News`]: at most 4096 wait.
#[derive(Debug, Clone)]
pub struct NewsQueue {
    /// The end of the shards and other senders.
    pub to: Sender<News>,
    /// The end of the system account's thread.
    pub from: Receiver<News>,
}

impl NewsQueue {
    /// An empty queue.
    pub fn new() -> Self {
        let (to, from) = bounded(NEWS_MAX);
        Self { to, from }
    }
}

impl Default for NewsQueue {
    fn default() -> Self {
        Self::new()
    }
}

/// Events of a shard that the control thread has to know of.
#[derive(Debug)]
pub enum Outcome {
    /// The end of the last client after lame duck mode began.
    Drained,
    /// A shard that cannot go on, with the error.
    Failed(String),
}

/// A shard's state and counters.
#[derive(Debug, Clone, Copy)]
pub struct ShardReport {
    /// The shard that reports.
    pub shard: ShardId,
    /// The shard's counters.
    pub stats: Stats,
    /// Connections that the shard has accepted, for itself and others.
    pub accepted: u64,
    /// Accepted connections that were rejected because they were over the configured rate.
    pub throttled: u64,
    /// Open connections of the shard.
    pub conns: usize,
    /// Subscriptions of the shard's connections.
    pub subscriptions: usize,
    /// Subjects in the shard's cache of receivers.
    pub cached_subjects: usize,
    /// Counters of changes and lookups of the shard's subscriptions.
    pub interest: InterestStats,
}

/// Figures of a whole shard, none of them counted per connection.
#[derive(Debug, Clone)]
pub struct Figures {
    /// The shard's state and counters.
    pub report: ShardReport,
    /// The time of the figures, in nanoseconds since the start.
    pub at_ns: u64,
    /// The tier of io_uring that the shard uses.
    pub tier: Tier,
    /// Processor time that the shard's thread has used.
    pub cpu: Duration,
    /// The reactor's counters.
    pub reactor: uring::Counters,
    /// Nanoseconds of each turn that had work, without the time in the kernel.
    pub turn_ns: Histogram,
    /// Nanoseconds from the arrival of the oldest input that a send answers to, on any shard, to
    /// the end of the turn that sends it.
    pub delay_ns: Histogram,
    /// Bytes of output that are queued or with the kernel; bytes that connections share count once.
    pub output_bytes: usize,
    /// Connections that are not read from because of back-pressure.
    pub braked_conns: usize,
    /// Wake-ups of other shards, for records or for room.
    pub rings: u64,
    /// The accounts on the shard.
    pub accounts: Vec<AccountFigures>,
    /// Addresses at which clients may connect, as INFO shows them.
    pub client_urls: ClientUrls,
    /// Lanes of the shard, each with its destination.
    pub lanes: Vec<(ShardId, LaneFigures)>,
}

/// Connections of each shard, from which the shard of the next one is chosen.
#[derive(Debug)]
pub struct ShardSeats {
    taken: Vec<AtomicUsize>,
    seating: Seating,
    /// The shard of the last connection.
    last: AtomicUsize,
    /// The number of the last connection.
    number: AtomicU64,
}

impl ShardSeats {
    /// Seats of `shards` shards without connections.
    pub fn new(shards: usize, seating: Seating) -> Self {
        let taken = (0..shards).map(|_| AtomicUsize::new(0)).collect();
        Self { taken, seating, last: AtomicUsize::new(shards - 1), number: AtomicU64::new(0) }
    }

    /// Returns a number for a new connection, from 1.
    pub fn number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Connections on all shards.
    pub fn all(&self) -> usize {
        self.taken.iter().map(|taken| taken.load(Ordering::SeqCst)).sum()
    }

    /// Takes a seat on the shard whose turn it is. Only one thread does.
    pub(super) fn take(&self) -> usize {
        let at = match self.seating {
            Seating::Fewest => {
                let taken = self.taken.iter().enumerate();
                let fewest = taken.min_by_key(|(_, taken)| taken.load(Ordering::SeqCst));
                fewest.map_or(0, |(at, _)| at)
            }
            Seating::RoundRobin => (self.last.load(Ordering::SeqCst) + 1) % self.taken.len(),
        };
        self.last.store(at, Ordering::SeqCst);
        self.taken[at].fetch_add(1, Ordering::SeqCst);
        at
    }

    pub(super) fn leave(&self, shard: ShardId) {
        self.taken[shard.index()].fetch_sub(1, Ordering::SeqCst);
    }
}

/// The sender and the waker by which other threads reach a shard.
pub struct Address<S = OwnedFd, W = Waker> {
    /// The sender of messages to the shard.
    pub control: Sender<Control<S>>,
    /// The waker of the shard.
    pub waker: W,
}

impl<S, W: Clone> Clone for Address<S, W> {
    fn clone(&self) -> Self {
        Self { control: self.control.clone(), waker: self.waker.clone() }
    }
}

impl Address {
    /// Sends a message to the shard, unless it has ended.
    pub fn send(&self, control: Control) {
        if self.control.send(control).is_ok() {
            self.waker.wake();
        }
    }
}

/// Questions and answers for the thread that asks services about clients.
#[derive(Debug)]
pub enum CalloutNews {
    /// A question to be asked.
    Question {
        /// The shard that waits for the decision.
        shard: ShardId,
        /// The connection of the client.
        conn: ConnId,
        /// The question.
        question: Box<Question>,
        /// The deadline; the client is sent away if the decision takes longer.
        by: Instant,
    },
    /// An answer to be judged.
    Answer(CalloutAnswer),
}

/// Bytes that limit questions and answers that wait: one may have this many, divided by those that
/// wait and itself.
pub(super) const CALLOUTS_BYTES: usize = 64 * 1024 * 1024;

/// A credential check for another thread.
pub struct CheckRequest {
    /// The shard that waits for the outcome.
    pub shard: ShardId,
    /// The connection that has sent the credentials.
    pub conn: ConnId,
    /// The check.
    pub check: CredentialCheck,
    /// The deadline; the connection is closed if the check takes longer.
    pub by: Instant,
}

/// A socket that connections are accepted on.
#[derive(Debug)]
pub struct Listener<S = OwnedFd> {
    /// The listening socket.
    pub socket: S,
    /// The kind of the listener.
    pub door: Door,
}

/// The kind of a listener, by its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// Clients over TCP.
    Tcp,
    /// Clients of the same machine, at the path of a Unix socket.
    Unix(Box<str>),
    /// Clients over WebSocket.
    WebSocket,
    /// Leaf nodes.
    Leaf,
    /// Clients of MQTT.
    Mqtt,
}
