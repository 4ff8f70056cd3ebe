//! What shards and the other threads say to one another.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::cluster::{ClientUrls, Part};
use crate::config::{self, Seating};
use crate::engine::{
    AccountFigures, AccountId, ClosedConn, ConnEvent, ConnId, ConnSnapshot, InterestStats,
    LaneFigures, MessageTrace, NewRoute, Page, Peer, Proof, RouteSnapshot, ServerRequest, ShardId,
    Stats, SubSnapshot, Transport,
};
use crate::host::Tier;
use crate::measure::Histogram;
use crate::proto::route::RouteInfo;
use crate::uring::{self, Waker};

/// What the control thread, and the shard that accepts, tell a shard; `S` is a socket that no
/// reactor has adopted.
pub enum Control<S = OwnedFd> {
    /// Serve this connection.
    Adopt {
        /// The connected socket.
        socket: S,
        /// Who is at its other end.
        peer: Peer,
        /// What carries it.
        transport: Transport,
        /// False: tell it that there are too many, and close it.
        admitted: bool,
    },
    /// Take this connection to another server.
    AdoptRoute {
        /// The connected socket.
        socket: S,
        /// Who is at its other end.
        peer: Peer,
        /// What is known of it.
        route: NewRoute,
    },
    /// Do this about routes.
    Route(RouteOrder),
    /// The options have changed.
    Reload(Arc<config::Options>),
    /// Do this to a client; say whether there is one with this number.
    Client {
        /// Its number.
        cid: u64,
        /// What to do.
        order: ClientOrder,
        /// Where the answer goes.
        to: Sender<bool>,
    },
    /// There are too many connections: close those with numbers up to this.
    Shed {
        /// The highest number that is closed.
        cid_max: u64,
        /// Only those of this account.
        account: Option<AccountId>,
    },
    /// Accept connections there, for all shards.
    Open(Vec<Listener<S>>),
    /// Accept no more; send clients away, the first after `grace`, all within `spread` after it.
    LameDuck {
        /// Until the first is closed.
        grace: Duration,
        /// From the first to the last.
        spread: Duration,
    },
    /// Flush, close and end.
    Stop,
    /// Publish a message of the server itself.
    Publish {
        /// In this account.
        account: AccountId,
        /// On this subject.
        subject: Box<[u8]>,
        /// Answered there; empty: nowhere.
        reply: Box<[u8]>,
        /// Saying this.
        payload: Box<[u8]>,
    },
    /// What a client has shown of itself was checked.
    Proven {
        /// Whose.
        conn: ConnId,
        /// It is true.
        holds: bool,
    },
    /// Say how things are.
    Report(Sender<Report>),
    /// Say how it works.
    Figures(Sender<Figures>),
    /// Say how the accounts are.
    Accounts(Sender<Vec<AccountFigures>>),
    /// Show a page of the open connections.
    Conns {
        /// The slot it begins at.
        from: u64,
        /// Where it goes.
        to: Sender<Page<ConnSnapshot>>,
    },
    /// Show a page of the subscriptions.
    Subs {
        /// The slot it begins at.
        from: u64,
        /// Where it goes.
        to: Sender<Page<SubSnapshot>>,
    },
    /// Show the registered routes.
    Routes {
        /// Also what each peer wants.
        wishes: bool,
        /// Where they go.
        to: Sender<Vec<RouteSnapshot>>,
    },
    /// Show a page of the connections that have ended.
    Closed {
        /// How many ended before it begins.
        from: u64,
        /// Where it goes.
        to: Sender<Page<ClosedConn>>,
    },
}

/// What the system account may have done to one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientOrder {
    /// Close it.
    Kick,
    /// Tell it that the server would rather have it elsewhere.
    LameDuck,
}

/// What a shard does about routes, its own or not.
#[derive(Debug, Clone)]
pub enum RouteOrder {
    /// The peer of this route may stay, for what goes over this one of its connections.
    Register(u64, Part),
    /// This route is not needed.
    Close(u64),
    /// The peer of this route has to answer now.
    Ask(u64),
    /// Others need this route's place, and its peer has not said who it is.
    TurnAway(u64),
    /// This route is configured no more.
    Remove(u64),
    /// What the peer of this route has said is heard; it may say more.
    HearOn(u64),
    /// Tell the peer of this route of another server.
    Gossip(u64, Box<RouteInfo>),
    /// Clients may also connect there.
    Urls(ClientUrls),
    /// The cluster is called that.
    Name {
        /// The name.
        name: String,
        /// It was made up.
        is_dynamic: bool,
    },
}

/// What shards tell whoever speaks for the server in the system account.
#[derive(Debug)]
pub enum News {
    /// Something happened to a connection.
    Event(ConnEvent),
    /// Somebody asks.
    Request(ServerRequest),
    /// This became of a traced message.
    Trace(Box<MessageTrace>),
    /// Options or state of the server have changed.
    Change,
    /// The server ends.
    Stop,
}

/// How much of it may wait; what does not fit is dropped.
pub const NEWS_MAX: usize = 4096;
/// What bounds the requests among it: each may be so long, divided by how many things wait.
pub(super) const REQUESTS_BYTES: usize = 64 * 1024 * 1024;
/// What bounds the traces among it: all together take at most nine times as many bytes.
pub(super) const TRACES_BYTES: usize = 16 * 1024 * 1024;

/// What the control thread has to know of a shard's fate.
#[derive(Debug)]
pub enum Outcome {
    /// The last client is gone after the announcement that the server ends.
    Drained,
    /// The shard cannot go on.
    Failed(String),
}

/// How things are on a shard.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Which.
    pub shard: ShardId,
    /// Its counters.
    pub stats: Stats,
    /// Connections it has accepted, for itself and others.
    pub accepted: u64,
    /// Of these, those turned away because they came too soon after others.
    pub throttled: u64,
    /// Open connections.
    pub conns: usize,
    /// Subscriptions of its connections.
    pub subscriptions: usize,
    /// Subjects whose receivers it remembers.
    pub cached_subjects: usize,
    /// How they came, went and were looked up.
    pub interest: InterestStats,
}

/// How a shard works: what is counted for the whole of it, never for a connection.
#[derive(Debug, Clone)]
pub struct Figures {
    /// How things are.
    pub report: Report,
    /// When this was so, in nanoseconds since the start.
    pub at_ns: u64,
    /// What of io_uring it uses.
    pub tier: Tier,
    /// Processor time that its thread has used.
    pub cpu: Duration,
    /// What its reactor has done.
    pub reactor: uring::Counters,
    /// Nanoseconds of each turn with something to do, without the time in the kernel.
    pub turn_ns: Histogram,
    /// Nanoseconds from the arrival of the oldest input that a send answers to, on whatever
    /// shard, to the end of the turn that sends it.
    pub delay_ns: Histogram,
    /// Bytes of output that are queued or with the kernel; what connections share counts once.
    pub output_bytes: usize,
    /// Connections that are not read from because of back-pressure.
    pub braked_conns: usize,
    /// How often it had to wake another shard for records or for room.
    pub rings: u64,
    /// The accounts on it.
    pub accounts: Vec<AccountFigures>,
    /// Where clients may connect, as INFO tells them.
    pub client_urls: ClientUrls,
    /// Its lanes, each with the shard it goes to.
    pub lanes: Vec<(ShardId, LaneFigures)>,
}

/// How many connections each shard has: where the next one goes.
#[derive(Debug)]
pub struct Seats {
    taken: Vec<AtomicUsize>,
    seating: Seating,
    /// Where the last one went.
    last: AtomicUsize,
}

impl Seats {
    /// No connection anywhere.
    pub fn new(shards: usize, seating: Seating) -> Self {
        let taken = (0..shards).map(|_| AtomicUsize::new(0)).collect();
        Self { taken, seating, last: AtomicUsize::new(shards - 1) }
    }

    /// Connections on all shards.
    pub fn all(&self) -> usize {
        self.taken.iter().map(|taken| taken.load(Ordering::SeqCst)).sum()
    }

    /// Takes a seat on the shard whose turn it is. One thread does.
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

/// How others reach a shard.
pub struct Address<S = OwnedFd, W = Waker> {
    /// What it is told.
    pub control: Sender<Control<S>>,
    /// What wakes it.
    pub waker: W,
}

impl<S, W: Clone> Clone for Address<S, W> {
    fn clone(&self) -> Self {
        Self { control: self.control.clone(), waker: self.waker.clone() }
    }
}

impl Address {
    /// Tells the shard something, unless it has ended.
    pub fn send(&self, control: Control) {
        if self.control.send(control).is_ok() {
            self.waker.wake();
        }
    }
}

/// Credentials that are to be checked elsewhere.
pub struct Check {
    /// The shard that waits for the outcome.
    pub shard: ShardId,
    /// Whose they are.
    pub conn: ConnId,
    /// What is to hold.
    pub proof: Proof,
    /// The connection is cut if it takes longer.
    pub by: Instant,
}

/// A socket that connections are accepted on.
#[derive(Debug)]
pub struct Listener<S = OwnedFd> {
    /// The listening socket.
    pub socket: S,
    /// What comes in there.
    pub door: Door,
}

/// What comes in at a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// Clients over TCP.
    Tcp,
    /// Clients of this machine, at this path.
    Unix(Box<str>),
    /// Clients over WebSocket.
    WebSocket,
}
