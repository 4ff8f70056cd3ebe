//! One connection: its phase, its requests, and its output.

use std::sync::Arc;

use crate::auth::grants::Grants;
use crate::auth::token_users::Pass;
use crate::auth::user::Peer;
use crate::core::close::Reason;
use crate::core::flushes::Outgoing;
use crate::core::input::Input;
use crate::core::liveness::Liveness;
use crate::core::login::LoginState;
use crate::core::settings::Limits;
use crate::core::timers::{Deadline, Deadlines};
use crate::interest::account_settings::GLOBAL;
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::reach::Kind;
use crate::interest::subscription::SubKey;
use crate::link::Link;
use crate::measure::{NEVER, Traffic};
use crate::output::Outbox;
use crate::output::lag::Lag;
use crate::proto::Connect;
use crate::session::MqttClient;
use crate::subject::Parted;
use crate::transport::{Credentials, Layers, Transport};

/// Time that an error has to reach its client before the connection is closed, in nanoseconds.
pub(super) const FLUSH_NS: u64 = 100_000_000;

/// The phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The operations of the connection are handled.
    Open,
    /// Nothing more is read from the connection; queued output is still sent, until the deadline.
    Flushing {
        /// The deadline, in nanoseconds since the start.
        until: u64,
    },
    /// Nothing is sent any more; only the removal of the connection's subscriptions delays the
    /// close.
    Closing {
        /// Whether the batch in flight is dropped, too.
        abort: bool,
    },
    /// The reactor is closing the connection.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) peer: Peer,
    pub(crate) transport: Transport,
    pub(crate) phase: Phase,
    pub(crate) account: AccountId,
    pub(crate) login: LoginState,
    /// Layers between the wire and the protocol.
    pub(crate) layers: Layers,
    /// State of a connection to another server; `None` for a client.
    pub(crate) link: Option<Box<Link>>,
    /// State of a client of MQTT; `None` for other connections.
    pub(crate) mqtt: Option<Box<MqttClient>>,
    /// Fields of all CONNECTs so far.
    pub(crate) connect: Box<Connect>,
    pub(crate) input: Input,
    pub(crate) subs: Parted<SubKey>,
    pub(crate) takes: Takes,
    pub(crate) outbox: Outbox,
    pub(crate) outgoing: Outgoing,
    /// Epoch of the last record that the connection caused on another shard.
    pub(crate) staged_epoch: u64,
    pub(crate) lag: Lag,
    pub(crate) deadlines: Deadlines,
    pub(crate) liveness: Liveness,
    pub(crate) traffic: Traffic,
}

/// Whether messages are delivered to a connection, and whether each needs checks.
#[derive(Debug)]
pub(crate) struct Takes {
    is_plain: bool,
    is_leaving: bool,
    is_doomed: bool,
}

impl Takes {
    /// Whether deliveries can skip the checks of permissions, echo and phase.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Whether the connection's subscriptions are being removed; they receive nothing any more.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// Whether the connection's output is over `max_pending`.
    pub(crate) fn is_doomed(&self) -> bool {
        self.is_doomed
    }

    /// Notes that the connection's output is over `max_pending`: it is cut after the run, and
    /// receives nothing more.
    pub(crate) fn doom(&mut self) {
        (self.is_doomed, self.is_plain) = (true, false);
    }
}

impl Conn {
    pub(crate) fn new(id: ConnId, peer: Peer, now: u64) -> Self {
        Self {
            id,
            peer,
            transport: Transport::Tcp,
            phase: Phase::Open,
            account: AccountId::GLOBAL,
            login: LoginState::default(),
            layers: Layers::default(),
            link: None,
            mqtt: None,
            connect: Box::default(),
            input: Input::default(),
            subs: Parted::default(),
            takes: Takes { is_plain: true, is_leaving: false, is_doomed: false },
            outbox: Outbox::default(),
            outgoing: Outgoing::new(now),
            staged_epoch: 0,
            lag: Lag::default(),
            deadlines: Deadlines::default(),
            liveness: Liveness::new(now),
            traffic: Traffic::default(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether nothing is sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. } | Phase::Closed)
    }

    /// Whether queued output is sent, and nothing after that.
    pub(crate) fn is_flushing(&self) -> bool {
        matches!(self.phase, Phase::Flushing { .. })
    }

    /// Begins or ends the removal of the connection's subscriptions, to which nothing is delivered
    /// meanwhile.
    pub(crate) fn set_leaving(&mut self, is_leaving: bool) {
        self.takes.is_leaving = is_leaving;
        self.review();
    }

    /// Whether messages may still be delivered to the connection.
    pub(crate) fn takes_deliveries(&self) -> bool {
        self.is_open() && !self.takes.is_leaving && !self.takes.is_doomed
    }

    /// Returns the time of the connection's last input, or of the last message delivered to it, in
    /// nanoseconds since the start.
    pub(crate) fn last_active_ns(&self) -> u64 {
        self.liveness.last_active.max(self.outgoing.last_delivered())
    }

    /// Whether anything depends on the amount of pending output.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.lag.matters() || self.input.brakes.own
    }

    /// Returns the kind of the connection's other end.
    pub(crate) fn kind(&self) -> Kind {
        self.link.as_ref().map_or(Kind::Client, |link| link.kind())
    }

    /// Returns the bound of unsent output, in bytes; beyond, the connection is a slow consumer.
    pub(crate) fn pending_bytes_max(&self, limits: &Limits) -> usize {
        self.link.as_ref().map_or(limits.pending_bytes_max, |link| link.pending_bytes_max)
    }

    /// Whether the connection has a seat among the clients of the server: it came to one of their
    /// ports.
    pub(crate) fn has_seat_of_clients(&self) -> bool {
        match &self.link {
            None => true,
            Some(link) => {
                let is_accepted = link.dialed.is_none();
                self.transport == Transport::LeafWebSocket && is_accepted
            }
        }
    }

    pub(crate) fn permissions(&self) -> Option<&Grants> {
        self.login.user().and_then(|user| user.permissions.as_ref())
    }

    /// Returns the claims of the user's token, for a login by token.
    pub(crate) fn pass(&self) -> Option<&Pass> {
        self.login.user().and_then(|user| user.pass.as_ref())
    }

    /// Returns the bound of header and payload of one message, in bytes, by server, account and
    /// user.
    pub(crate) fn payload_bytes_max(&self, server: &Limits) -> usize {
        let user = self.pass().and_then(|pass| pass.payload_bytes_max);
        let own = [self.login.payload_bytes_max(), user].into_iter().flatten();
        own.fold(server.payload_bytes_max, usize::min)
    }

    /// Returns the number of places in tables of interest that name the connection.
    pub(crate) fn interests(&self) -> usize {
        self.subs.len() + self.link.as_ref().map_or(0, |link| link.remote.len())
    }

    /// Returns the bound of the connection's subscriptions by server (0: none), account and user.
    pub(crate) fn subscriptions_max(&self, server: &Limits) -> usize {
        let user = self.pass().and_then(|pass| pass.subscriptions_max);
        let all = (server.subscriptions_max > 0).then_some(server.subscriptions_max);
        let own = [all, self.login.subscriptions_max(), user];
        own.into_iter().flatten().min().unwrap_or(usize::MAX)
    }

    /// Recomputes whether deliveries to the connection need checks, and the time at which its user
    /// expires.
    pub(crate) fn review(&mut self) {
        let expiry = self.pass().map_or(NEVER, Pass::ends);
        self.deadlines.arm(Deadline::Expiry, expiry);
        let checked =
            self.permissions().is_some_and(|p| p.filters_deliveries() || p.allows_responses());
        self.takes.is_plain =
            self.takes_deliveries() && self.connect.echo && !checked && self.mqtt.is_none();
    }

    /// Makes the connection one of MQTT.
    pub(crate) fn begin_mqtt(&mut self, transport: Transport) {
        (self.transport, self.mqtt) = (transport, Some(Box::default()));
        self.review();
    }

    /// Logs the end of the connection with its reason.
    pub(crate) fn log_end(&self, reason: Reason) {
        let (label, noun, reason) = (self.label(), self.kind().noun(), reason.text());
        match self.link {
            Some(_) => tracing::info!("{label} - {noun} connection closed: {reason}"),
            None => tracing::debug!("{label} - {noun} connection closed: {reason}"),
        }
    }

    /// Returns the name of the connection's account.
    pub(crate) fn account_name(&self) -> Arc<str> {
        match self.login.user() {
            Some(user) => Arc::clone(&user.account_name),
            None => GLOBAL.into(),
        }
    }

    /// Returns the name of the connection in the log, as nats-server writes it.
    pub(crate) fn label(&self) -> String {
        let Peer { cid, ip, .. } = &self.peer;
        let mut label = match self.transport {
            Transport::Leaf => format!("{} - lid:{cid}", self.peer.address()),
            Transport::LeafWebSocket => format!("{} - lid_ws:{cid}", self.peer.address()),
            _ if self.link.is_some() => {
                let name = self.kind().number_noun();
                format!("{} - {name}:{cid}", self.peer.address())
            }
            Transport::Tcp => format!("{} - cid:{cid}", self.peer.address()),
            Transport::Unix(Credentials { pid, uid, .. }) => {
                format!("{ip} - pid:{pid} uid:{uid} - cid:{cid}")
            }
            Transport::WebSocket => format!("{} - wid:{cid}", self.peer.address()),
            Transport::Mqtt => format!("{} - mid:{cid}", self.peer.address()),
            Transport::MqttWebSocket => format!("{} - mid_ws:{cid}", self.peer.address()),
        };
        if self.login.has_connected() && self.link.is_none() {
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
            if let Some(user) = self.login.user()
                && let Some(name) = &user.name
            {
                label.push_str(&format!(" - \"{}/user:{name}\"", user.account_name));
            }
        }
        label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound of the memory of an idle connection, besides CONNECT in a box of its own.
    #[test]
    fn a_connection_takes_at_most_696_bytes_besides_what_it_points_to() {
        assert!(size_of::<Conn>() <= 696, "{} bytes", size_of::<Conn>());
    }
}
