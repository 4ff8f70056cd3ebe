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

/// Time that an error has to reach its client before the connection is closed, in nanoseconds.
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
    /// Whether the client had sent a CONNECT before.
    pub(super) again: bool,
    /// Whether the check has succeeded; the login takes effect when the earlier subscriptions
    /// are gone.
    pub(super) holds: bool,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) peer: Peer,
    pub(super) transport: Transport,
    pub(super) phase: Phase,
    /// Set while only the removal of subscriptions delays the close; true for an abort, which
    /// drops the batch in flight.
    pub(super) closing: Option<bool>,
    pub(super) account: AccountId,
    /// Limits of the account, beside those of the server.
    pub(super) limits: AccountLimits,
    /// Whether the connection has a seat of its account.
    pub(super) seated: bool,
    /// User of the connection, once the login has succeeded or none is needed.
    pub(super) user: Option<Rc<User>>,
    /// Login whose credentials are being checked off the shard.
    pub(super) claim: Option<Claim>,
    pub(super) checks: Option<Box<Checks>>,
    /// Layers between the wire and the protocol.
    pub(super) layers: Layers,
    /// State of a route; `None` for a client.
    pub(super) route: Option<Box<Route>>,
    /// Names in the client's certificate, if logins depend on them.
    pub(super) cert_names: Option<Box<certificate::Names>>,
    /// Whether the first INFO was sent.
    pub(super) informed: bool,
    /// Fields of all CONNECTs so far.
    pub(super) connect: Box<Connect>,
    pub(super) connected: bool,
    /// Whether a PING has come after CONNECT; from then on INFO may be sent again.
    pub(super) greeted: bool,
    /// Head of an operation that has not wholly arrived, or input that waits (`waits`).
    pub(super) partial: Vec<u8>,
    /// Length at which `partial` is worth parsing again, in bytes.
    pub(super) need_bytes: usize,
    /// Whether `partial` is input that waits for its turn.
    pub(super) waits: bool,
    /// Whether it stands in line with waiting input.
    pub(super) in_line: bool,
    /// Set when the stream has ended, or reading failed, behind input that waits.
    pub(super) ended: Option<bool>,
    pub(super) subs: Parted<SubKey>,
    /// Whether its subscriptions are being removed; they receive nothing any more.
    pub(super) is_leaving: bool,
    /// Whether its output is over `max_pending`: it is cut after the run and receives nothing
    /// more.
    pub(super) is_doomed: bool,
    pub(super) outbox: Outbox,
    /// Whether there is output to flush.
    pub(super) dirty: bool,
    /// Whether it is in the queue for early flushes, and in the one for the others.
    pub(super) flush_queued: [bool; 2],
    /// Whether deliveries can skip the checks of permissions, echo and phase.
    pub(super) plain: bool,
    /// Epoch of the last record that it caused on another shard.
    pub(super) staged_epoch: u64,
    pub(super) brakes: Brakes,
    pub(super) pace: Pace,
    /// Waits of publishers that this connection's backlog is part of.
    pub(super) waited_by: BTreeSet<u64>,
    /// Pending output at which it counts as caught up, in bytes.
    pub(super) relief_bytes: usize,
    /// Whether a publisher has waited for it in vain: no publisher waits for it until it has
    /// caught up.
    pub(super) slow: bool,
    pub(super) timing: Timing,
    pub(super) traffic: Traffic,
    /// Pauses of its input because most receivers of a run were behind.
    pub(super) stalls: u64,
    /// Messages for this connection dropped by overflow policies.
    pub(super) dropped: Dropped,
}

/// Reasons not to read from a connection.
#[derive(Debug, Default)]
pub(super) struct Brakes {
    /// Full lanes that it feeds.
    pub(super) lanes: ShardSet,
    /// Shards with most receivers of its messages behind.
    pub(super) behind: ShardSet,
    /// Too much input before its step of the handshake.
    pub(super) in_line: bool,
    /// Credentials being checked.
    pub(super) claims: bool,
    /// Input over the configured rate.
    pub(super) pace: bool,
    /// Too much output pending of its own messages to itself.
    pub(super) own: bool,
    /// Too much input waiting for its turn.
    pub(super) turn: bool,
    /// Too many requests undecided.
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

    /// Kind of the connection, as the log names it.
    pub(super) fn noun(&self) -> &'static str {
        if self.route.is_some() { "Router" } else { "Client" }
    }

    /// Bound of unsent output, in bytes; beyond, the connection is a slow consumer.
    pub(super) fn pending_bytes_max(&self, limits: &Limits) -> usize {
        self.route.as_ref().map_or(limits.pending_bytes_max, |route| route.pending_bytes_max)
    }

    pub(super) fn permissions(&self) -> Option<&Permissions> {
        self.user.as_ref().and_then(|user| user.permissions.as_ref())
    }

    /// Claims of the user's token, for a login by token.
    pub(super) fn pass(&self) -> Option<&Pass> {
        self.user.as_ref().and_then(|user| user.pass.as_ref())
    }

    /// Bound of header and payload of one message, in bytes, by server, account and user.
    pub(super) fn payload_bytes_max(&self, server: &Limits) -> usize {
        let user = self.pass().and_then(|pass| pass.payload_bytes_max);
        let own = [self.limits.payload_bytes_max, user].into_iter().flatten();
        own.fold(server.payload_bytes_max, usize::min)
    }

    /// Places in tables of interest that name it.
    pub(super) fn interests(&self) -> usize {
        self.subs.len() + self.route.as_ref().map_or(0, |route| route.wishes.len())
    }

    /// Bound of its subscriptions by server (0: none), account and user.
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

    /// Logs the end of the connection with its reason.
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

    /// Name of the connection in the log, as nats-server writes it.
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
