//! One connection: how far it has come, what it asked for, what it is owed.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::account_settings::{AccountLimits, GLOBAL};
use super::interest::SubKey;
use super::permissions::{Checks, Permissions};
use super::route::Route;
use super::settings::Limits;
use super::timers::NEVER;
use super::tokens::Pass;
use super::{AccountId, ConnId, Reason, ShardSet};
use crate::auth::ConnectionType;
use crate::auth::certificate;
use crate::measure::{Meter, Rates};
use crate::output::Dropped;
use crate::output::Outbox;
use crate::proto::Connect;
use crate::subject::Parted;
use crate::transport::{Credentials, Layers, Transport};

/// How long an error may take to reach its client before the connection is closed over it.
pub(super) const FLUSH_NS: u64 = 100_000_000;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its operations are handled.
    Open,
    /// Nothing more is read from it; what is queued is still sent, until the deadline.
    Flushing {
        /// Nanoseconds since the start.
        until: u64,
    },
    /// The reactor is closing it.
    Closed,
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Number of the connection over the whole server, from 1.
    pub cid: u64,
    /// The client's address without the port.
    pub ip: Box<str>,
    /// The client's port.
    pub port: u16,
}

impl Peer {
    /// Address and port, as the log writes them.
    pub(super) fn address(&self) -> String {
        let Self { ip, port, .. } = self;
        if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
    }
}

/// Messages and payload bytes in both directions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Messages received.
    pub in_msgs: u64,
    /// Payload bytes received, headers included.
    pub in_bytes: u64,
    /// Messages delivered.
    pub out_msgs: u64,
    /// Payload bytes delivered.
    pub out_bytes: u64,
}

/// A user as its connections see it.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: Option<Box<str>>,
    pub(crate) account: AccountId,
    pub(crate) account_name: Arc<str>,
    pub(crate) permissions: Option<Permissions>,
    /// Of one that came by a token.
    pub(crate) pass: Option<Pass>,
    /// The kinds of connections that it may come by (empty: all).
    pub(crate) connection_types: Vec<ConnectionType>,
}

/// A CONNECT that is not decided yet. What follows it waits.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) user: Rc<User>,
    /// It was not the first.
    pub(super) again: bool,
    /// It holds, and takes effect when what the client subscribed to before is gone.
    pub(super) holds: bool,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) peer: Peer,
    pub(super) transport: Transport,
    pub(super) phase: Phase,
    /// There when only its subscriptions keep it from being closed: whether what is in flight is
    /// dropped.
    pub(super) closing: Option<bool>,
    pub(super) account: AccountId,
    /// What its account allows, besides what everybody is.
    pub(super) limits: AccountLimits,
    /// It counts as one of the account's.
    pub(super) seated: bool,
    /// Set once the credentials are good, or none are needed.
    pub(super) user: Option<Rc<User>>,
    /// Who it is if what it has shown holds, which is being checked elsewhere.
    pub(super) claim: Option<Claim>,
    pub(super) checks: Option<Box<Checks>>,
    /// What is between the wire and its protocol.
    pub(super) layers: Layers,
    /// There if it is a route and no client.
    pub(super) route: Option<Box<Route>>,
    /// Whom its certificate is for, where that decides.
    pub(super) cert_names: Option<Box<certificate::Names>>,
    /// It has had its first INFO.
    pub(super) informed: bool,
    /// What CONNECT said so far.
    pub(super) connect: Box<Connect>,
    pub(super) connected: bool,
    /// A PING came after CONNECT; from then on INFO may be sent again.
    pub(super) greeted: bool,
    /// The head of an operation that has not wholly arrived.
    pub(super) partial: Vec<u8>,
    /// `partial` is worth parsing again at this many bytes.
    pub(super) need_bytes: usize,
    /// `partial` is input that waits to be handled, and not only the head of an operation.
    pub(super) waits: bool,
    /// It is in the line of those whose input waits.
    pub(super) in_line: bool,
    /// Its stream has ended, or reading failed, behind what waits.
    pub(super) ended: Option<bool>,
    pub(super) subs: Parted<SubKey>,
    /// Its subscriptions are being taken out; nothing is delivered to them any more.
    pub(super) is_leaving: bool,
    /// It has more pending than it may, and is about to be cut; nothing more is delivered to it.
    pub(super) is_doomed: bool,
    pub(super) outbox: Outbox,
    /// There is something to be flushed.
    pub(super) dirty: bool,
    /// It is in the queue of those to be flushed soon, and in that of the others.
    pub(super) flush_queued: [bool; 2],
    /// Deliveries need no look at permissions, echo or phase.
    pub(super) plain: bool,
    /// The epoch in which it last caused something on another shard.
    pub(super) staged_epoch: u64,
    pub(super) brakes: Brakes,
    pub(super) pace: Pace,
    /// Waits of publishers that this connection's backlog is part of.
    pub(super) waited_by: BTreeSet<u64>,
    /// The waits are over when no more than this is pending.
    pub(super) relief_bytes: usize,
    /// A publisher has waited for it in vain; it is waited for no more until it has caught up.
    pub(super) slow: bool,
    pub(super) timing: Timing,
    pub(super) traffic: Traffic,
    /// How often it was not read from because those who get its messages were behind.
    pub(super) stalls: u64,
    /// Messages that it has not got because it was behind.
    pub(super) dropped: Dropped,
}

/// Why a connection is not read from.
#[derive(Debug, Default)]
pub(super) struct Brakes {
    /// Lanes it feeds that are full.
    pub(super) lanes: ShardSet,
    /// Shards on which those who get its messages are behind.
    pub(super) behind: ShardSet,
    /// It stands in line for its handshake, and has sent more than that needs.
    pub(super) in_line: bool,
    /// Its credentials are being checked.
    pub(super) claims: bool,
    /// It has sent more than its rate.
    pub(super) pace: bool,
    /// It has to take what it has sent to itself.
    pub(super) own: bool,
    /// Much of its input waits.
    pub(super) turn: bool,
    /// Too many requests wait to be reported on.
    pub(super) requests: bool,
}

impl Brakes {
    pub(super) fn any(&self) -> bool {
        self.holds() || self.in_line || self.claims || self.pace || self.turn
    }

    /// Whether what has been read already has to wait, too.
    pub(super) fn holds(&self) -> bool {
        !self.lanes.is_empty() || !self.behind.is_empty() || self.own || self.requests
    }
}

/// What a connection has used of its rates.
#[derive(Debug, Default)]
pub(super) struct Pace {
    msgs: Meter,
    bytes: Meter,
    /// Messages counted so far.
    msgs_seen: u64,
}

impl Pace {
    /// Counts what has come; says when the next may.
    pub(super) fn take(&mut self, rates: &Rates, bytes: usize, all_msgs: u64, now: u64) -> u64 {
        let msgs = all_msgs - self.msgs_seen;
        self.msgs_seen = all_msgs;
        let take = |meter: &mut Meter, amount, rate| match rate {
            0 => 0,
            rate => meter.take(amount, rate, now),
        };
        let msgs_due = take(&mut self.msgs, msgs, rates.msgs_per_connection);
        msgs_due.max(take(&mut self.bytes, bytes as u64, rates.bytes_per_connection))
    }
}

/// All of them in nanoseconds since the start.
#[derive(Debug)]
pub(super) struct Timing {
    pub(super) opened: u64,
    /// The timer entry that stands for it.
    pub(super) armed: u64,
    pub(super) ping_due: u64,
    /// When it must have proved who it is; with TLS, before that, have done its handshake.
    pub(super) auth_due: u64,
    /// When INFO is sent in clear to a client that has not begun its handshake.
    pub(super) info_due: u64,
    /// When it is read from again after it has sent more than its rate.
    pub(super) read_due: u64,
    /// When its token expires.
    pub(super) expires_due: u64,
    /// When the header of a proxy must be whole.
    pub(super) preface_due: u64,
    /// When it last sent something.
    pub(super) last_active: u64,
    /// The turn in which it last was sent a message.
    pub(super) last_delivered: u64,
    /// When the batch in flight was handed to the kernel.
    pub(super) send_started: u64,
    /// When the oldest input arrived that output which is not yet taken answers to.
    pub(super) oldest_arrived: u64,
    /// When the oldest input arrived that waits.
    pub(super) waits_since: u64,
    pub(super) pings_out: u32,
    pub(super) ping_sent: u64,
    pub(super) rtt: u64,
    pub(super) first_ping_sent: bool,
}

impl Traffic {
    /// Adds that of another connection or shard.
    pub fn add(&mut self, other: &Self) {
        self.in_msgs += other.in_msgs;
        self.in_bytes += other.in_bytes;
        self.out_msgs += other.out_msgs;
        self.out_bytes += other.out_bytes;
    }
}

impl Conn {
    pub(super) fn new(id: ConnId, peer: Peer, now: u64) -> Self {
        Self {
            id,
            peer,
            transport: Transport::Tcp,
            phase: Phase::Open,
            closing: None,
            account: AccountId::GLOBAL,
            limits: AccountLimits::default(),
            seated: false,
            user: None,
            claim: None,
            checks: None,
            layers: Layers::default(),
            route: None,
            cert_names: None,
            informed: false,
            connect: Box::default(),
            connected: false,
            greeted: false,
            partial: Vec::new(),
            need_bytes: 0,
            waits: false,
            in_line: false,
            ended: None,
            subs: Parted::default(),
            is_leaving: false,
            is_doomed: false,
            outbox: Outbox::default(),
            dirty: false,
            flush_queued: [false; 2],
            plain: true,
            staged_epoch: 0,
            brakes: Brakes::default(),
            pace: Pace::default(),
            waited_by: BTreeSet::new(),
            relief_bytes: 0,
            slow: false,
            timing: Timing {
                opened: now,
                armed: NEVER,
                ping_due: NEVER,
                auth_due: NEVER,
                info_due: NEVER,
                read_due: NEVER,
                expires_due: NEVER,
                preface_due: NEVER,
                last_active: now,
                last_delivered: now,
                send_started: 0,
                oldest_arrived: NEVER,
                waits_since: 0,
                pings_out: 0,
                ping_sent: 0,
                rtt: 0,
                first_ping_sent: false,
            },
            traffic: Traffic::default(),
            stalls: 0,
            dropped: Dropped::default(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether anything may still be delivered to it.
    pub(super) fn takes_deliveries(&self) -> bool {
        self.is_open() && !self.is_leaving && !self.is_doomed
    }

    /// Whether anything depends on how much is pending for it.
    pub(super) fn is_waited_for(&self) -> bool {
        self.slow || self.brakes.own || !self.waited_by.is_empty()
    }

    /// What it is called in the log.
    pub(super) fn noun(&self) -> &'static str {
        if self.route.is_some() { "Router" } else { "Client" }
    }

    /// With more than this unsent it is a slow consumer, in bytes.
    pub(super) fn pending_bytes_max(&self, limits: &Limits) -> usize {
        self.route.as_ref().map_or(limits.pending_bytes_max, |route| route.pending_bytes_max)
    }

    pub(super) fn permissions(&self) -> Option<&Permissions> {
        self.user.as_ref().and_then(|user| user.permissions.as_ref())
    }

    /// What its token says of it, if it came by one.
    pub(super) fn pass(&self) -> Option<&Pass> {
        self.user.as_ref().and_then(|user| user.pass.as_ref())
    }

    /// Header and payload bytes of one message from it: what server, account and user allow.
    pub(super) fn payload_bytes_max(&self, server: &Limits) -> usize {
        let user = self.pass().and_then(|pass| pass.payload_bytes_max);
        let own = [self.limits.payload_bytes_max, user].into_iter().flatten();
        own.fold(server.payload_bytes_max, usize::min)
    }

    /// Places in tables of interest that name it.
    pub(super) fn interests(&self) -> usize {
        self.subs.len() + self.route.as_ref().map_or(0, |route| route.wishes.len())
    }

    /// Its subscriptions: what server (0: any number), account and user allow.
    pub(super) fn subscriptions_max(&self, server: &Limits) -> usize {
        let user = self.pass().and_then(|pass| pass.subscriptions_max);
        let all = (server.subscriptions_max > 0).then_some(server.subscriptions_max);
        let own = [all, self.limits.subscriptions_max, user];
        own.into_iter().flatten().min().unwrap_or(usize::MAX)
    }

    /// Recomputes whether deliveries to it need a closer look, and when its user has to go.
    pub(super) fn review(&mut self) {
        self.timing.expires_due = self.pass().map_or(NEVER, Pass::ends);
        let checked =
            self.permissions().is_some_and(|p| p.filters_deliveries() || p.allows_responses());
        self.plain = self.takes_deliveries() && self.connect.echo && !checked;
    }

    /// Says that it ends, and why.
    pub(super) fn log_end(&self, reason: Reason) {
        let (label, noun, reason) = (self.label(), self.noun(), reason.text());
        match self.route {
            Some(_) => tracing::info!("{label} - {noun} connection closed: {reason}"),
            None => tracing::debug!("{label} - {noun} connection closed: {reason}"),
        }
    }

    /// The name of its account.
    pub(super) fn account_name(&self) -> Arc<str> {
        match &self.user {
            Some(user) => Arc::clone(&user.account_name),
            None => GLOBAL.into(),
        }
    }

    /// Its name in the log, as nats-server writes it.
    pub(super) fn label(&self) -> String {
        let Peer { cid, ip, .. } = &self.peer;
        let mut label = match self.transport {
            _ if self.route.is_some() => format!("{} - rid:{cid}", self.peer.address()),
            Transport::Tcp => format!("{} - cid:{cid}", self.peer.address()),
            Transport::Unix(Credentials { pid, uid, .. }) => {
                format!("{ip} - pid:{pid} uid:{uid} - cid:{cid}")
            }
            Transport::WebSocket => format!("{} - wid:{cid}", self.peer.address()),
        };
        if self.connected {
            let connect = &self.connect;
            let mut about = Vec::new();
            if !connect.version.is_empty() {
                about.push(format!("v{}", connect.version));
            }
            about.extend([&connect.lang, &connect.name].into_iter().filter_map(|part| {
                let part: &str = part;
                (!part.is_empty()).then(|| part.to_owned())
            }));
            if !about.is_empty() {
                label.push_str(&format!(" - \"{}\"", about.join(":")));
            }
            if let Some(user) = &self.user
                && let Some(name) = &user.name
            {
                label.push_str(&format!(" - \"{}/user:{name}\"", user.account_name));
            }
        }
        label
    }
}
