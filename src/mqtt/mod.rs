//! MQTT clients: their packets, and their state in JetStream.
//!
//! - `open`: CONNECT, the login, the session that is opened; `close`: what is left at the end
//! - `subscribe`: SUBSCRIBE and UNSUBSCRIBE; `retained`: messages that were kept for new filters
//! - `publish`: messages in all three qualities; `acks`: packets that end deliveries
//! - `requests`: requests to JetStream, and their answers; `streams`: the streams of an account
//!
//! **State.** As in nats-server all state is in streams of the client's account (`$MQTT_msgs`,
//! `$MQTT_sess`, `$MQTT_rmsgs`, `$MQTT_qos2in`, `$MQTT_out`), and a filter of QoS 1 or 2 is a
//! durable consumer. This room is a client of the API like any other: requests are inner publishes,
//! and answers come by one tap per account and shard. It stores nothing itself.
//!
//! **Order.** A packet that needs an answer of JetStream holds back the client's input
//! (`Held::Mqtt`), with one [`Work`] per connection. Messages do not: their acknowledgements stand
//! in `session::replies`, and leave in order. So do PINGRESPs: what they follow is done.
//!
//! **Deliveries** are those of subscriptions: `delivery::mqtt` writes the packets.
//!
//! **Bounds.** Requests are bounded by the packets that wait for them: one for each connection
//! that is held, and messages as `session::replies` bounds them; each has a deadline. Those of a
//! connection that has ended stay until then, and their answers find nobody.

#![forbid(unsafe_code)]

mod acks;
mod close;
pub(crate) mod open;
mod publish;
mod requests;
mod retained;
mod streams;
mod subscribe;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use crate::core::close::Reason;
use crate::core::input::{Held, Operations, Taken};
use crate::core::timers::Deadline;
use crate::core::{Core, announce};
use crate::interest::cost::OPERATION_WORK;
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::reach::{Kind, Via};
use crate::interest::taps::TapId;
use crate::interest::{Change, Wanted};
use crate::proto::mqtt::{
    self, Framed, MqttError, MqttPacket, MqttPublish, PINGRESP, PacketLimits,
};
use crate::run::Run;
use crate::run::tapped::TapRun;
use crate::session::{ClientPhase, trace};

use open::SessionOpening;
use requests::{MqttHolder, MqttRequests};
use retained::Fetches;
use streams::AccountStreams;
use subscribe::{RestoredSub, Subscribing, Unsubscribing};

/// Rounds of answers in one turn: an answer may lead to the next request.
pub(crate) const ROUNDS_MAX: usize = 4;
/// Connections that wait in vain for a client id, at most.
const JAILED_MAX: usize = 1024;

/// The packet of a connection that waits for answers.
#[derive(Debug)]
enum Work {
    /// CONNECT.
    Open(SessionOpening),
    /// SUBSCRIBE.
    Subscribe(Subscribing),
    /// UNSUBSCRIBE.
    Unsubscribe(Unsubscribing),
    /// The subscriptions of a session that goes on, behind CONNACK.
    Restore(VecDeque<RestoredSub>),
    /// PUBREL.
    Release,
    /// A packet that is handled when no answer to a packet before waits.
    Drain,
}

/// An id of a client, in its account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ClientKey {
    account: AccountId,
    id: Rc<str>,
}

/// The clients of MQTT of a shard.
#[derive(Debug, Default)]
pub(crate) struct Mqtt {
    taps: BTreeMap<AccountId, Vec<AccountTap>>,
    last_tap: u32,
    requests: MqttRequests,
    streams: BTreeMap<AccountId, AccountStreams>,
    clients: BTreeMap<ClientKey, ConnId>,
    /// Times at which clients were taken over, in nanoseconds since the start of the process.
    swaps: BTreeMap<ClientKey, u64>,
    /// Connections to be closed because their ids change hands too fast, with the times.
    jailed: VecDeque<(u64, ConnId)>,
    works: BTreeMap<ConnId, Work>,
    /// Connections whose filters wait for their turn.
    unfinished: VecDeque<ConnId>,
    fetches: Fetches,
    /// Connections whose input goes on.
    resumed: BTreeSet<ConnId>,
}

/// A tap of an account.
#[derive(Debug)]
struct AccountTap {
    tap: TapId,
    filter: String,
}

/// The tap of messages that are acknowledged unread.
pub(crate) use crate::delivery::mqtt::UNREAD;

impl Mqtt {
    /// Takes answers in the accounts that are configured now.
    pub(crate) fn tap_accounts(&mut self, core: &mut Core) {
        let is_on = core.settings.mqtt.is_some();
        let accounts: BTreeSet<AccountId> =
            core.settings.accounts.all.iter().map(|(id, ..)| *id).filter(|_| is_on).collect();
        let gone = self.taps.keys().copied().filter(|id| !accounts.contains(id));
        for account in gone.collect::<Vec<_>>() {
            self.streams.remove(&account);
            for AccountTap { tap, filter } in self.taps.remove(&account).unwrap_or_default() {
                let change = core.accounts.at(account).interest.remove_tap(filter.as_bytes(), tap);
                tell(core, account, filter.as_bytes(), change);
            }
        }
        for account in accounts {
            if self.taps.contains_key(&account) {
                continue;
            }
            let own = format!("{}>", requests::own_prefix(core));
            let filters = [own, requests::TAKEOVERS.to_owned()];
            let taps = filters.map(|filter| {
                self.last_tap += 1;
                let tap = TapId(TapId::OF_MQTT + self.last_tap);
                let change = core.accounts.at(account).interest.add_tap(filter.as_bytes(), tap);
                tell(core, account, filter.as_bytes(), change);
                AccountTap { tap, filter }
            });
            self.taps.insert(account, Vec::from(taps));
        }
    }

    /// Handles answers that have come, and connections that have ended.
    pub(crate) fn turn(&mut self, core: &mut Core) {
        let queue = core.input.mqtt.take();
        for run in queue.runs() {
            for message in queue.messages(run) {
                self.on_message(core, run, &message);
            }
        }
        core.input.mqtt.reuse(queue);
        while let Some(request) = self.requests.failed.pop() {
            requests::on_failed(self, core, &request);
        }
        for ended in std::mem::take(&mut core.endings.mqtt) {
            close::on_ended(self, core, ended);
        }
        core.settle_deliveries();
    }

    fn on_message(
        &mut self,
        core: &mut Core,
        run: &TapRun,
        message: &crate::run::tapped::TapMessage<'_>,
    ) {
        if run.tap == UNREAD {
            let ack = message.reply.split(|byte| *byte == b'@').next().unwrap_or_default();
            let holder = MqttHolder { conn: run.publisher.conn, account: run.account };
            return acks::on_unread(self, core, holder, ack);
        }
        let prefix = requests::own_prefix(core);
        match message.subject.strip_prefix(prefix.as_bytes()) {
            Some(own) => requests::on_own(self, core, run.account, own, message),
            None => open::on_takeover(self, core, run.account, message.body),
        }
    }

    /// Whether anything has come or ended.
    pub(crate) fn has_work(&self, core: &Core) -> bool {
        !core.input.mqtt.is_empty()
            || !core.endings.mqtt.is_empty()
            || !self.requests.failed.is_empty()
            || !self.resumed.is_empty()
    }

    /// Takes the connections whose input goes on.
    pub(crate) fn take_resumed(&mut self) -> BTreeSet<ConnId> {
        std::mem::take(&mut self.resumed)
    }

    /// Does what is due, and what has waited for its turn.
    pub(crate) fn tick(&mut self, core: &mut Core) {
        for at in 0..self.unfinished.len() {
            if at > 0 && !core.budget.has_left() {
                break;
            }
            let Some(id) = self.unfinished.pop_front() else { break };
            subscribe::advance(self, core, id);
        }
        while let Some(request) = self.requests.pop_overdue(core.times.now) {
            requests::on_failed(self, core, &request);
        }
        while self.jailed.front().is_some_and(|(due, _)| *due <= core.times.now) {
            let Some((_, id)) = self.jailed.pop_front() else { return };
            core.fail(id, None, Reason::Protocol("Duplicate Client ID"));
        }
    }

    /// Returns the time at which [`Self::tick`] is needed next, in nanoseconds since the start of
    /// the process.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let jailed = self.jailed.front().map(|(due, _)| *due);
        let unfinished = (!self.unfinished.is_empty()).then_some(0);
        [self.requests.next_due(), jailed, unfinished].into_iter().flatten().min()
    }

    /// Lets a packet wait for answers, and the client's input behind it.
    fn begin(&mut self, core: &mut Core, id: ConnId, work: Work) {
        self.works.insert(id, work);
        core.hold(id, Held::Mqtt);
    }

    /// Ends the wait of a packet.
    fn finish(&mut self, id: ConnId) {
        self.works.remove(&id);
        self.resumed.insert(id);
    }
}

/// Informs other shards and servers of a change of interest.
fn tell(core: &mut Core, account: AccountId, filter: &[u8], change: Change) {
    let wanted = Wanted { filter, queue: None };
    if let Some(members) = change.announce {
        announce::announce_own(core, account, Via::CLIENTS, wanted, members);
    }
    announce::tell_servers(core, account, wanted, change);
}

/// Ends a client that has been silent for as long as it may.
pub(crate) fn on_silence(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let silence_ns_max = conn.mqtt.as_ref().map_or(0, |client| client.silence_ns_max);
    if silence_ns_max == 0 {
        return;
    }
    let due = conn.liveness.last_active.saturating_add(silence_ns_max);
    if due > core.times.now {
        return conn.deadlines.arm(Deadline::Ping, due);
    }
    tracing::debug!("{} - Stale Client Connection - Closing", conn.label());
    core.monitor.stats.stale_connections.add(Kind::Client);
    core.fail(id, None, Reason::Protocol("Stale Connection"));
}

/// Ends a connection that has broken the protocol.
fn fail(core: &mut Core, id: ConnId, error: MqttError) {
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {error}", conn.label());
    }
    let reason = match error.0 {
        "Maximum Payload Violation" => "Maximum Message Payload Exceeded",
        _ => "Protocol Violation",
    };
    core.fail(id, None, Reason::Protocol(reason));
}

/// The operations of a client of MQTT.
pub(crate) struct MqttOperations<'s>(pub(crate) &'s mut Mqtt);

impl<'a> Operations<'a> for MqttOperations<'_> {
    fn take(&mut self, core: &mut Core, id: ConnId, bytes: &'a [u8], _: &mut Run<'a>) -> Taken {
        if !core.may_go_on(id) {
            return Taken::Nothing;
        }
        let Some(limits) = limits(core, id) else { return Taken::Ended };
        if limits.is_first && bytes.starts_with(b"GET ") {
            let why =
                MqttError("HTTP request on the port of MQTT; WebSocket has a port of its own");
            fail(core, id, why);
            return Taken::Ended;
        }
        match mqtt::parse(bytes, limits) {
            Ok(Framed::Packet { packet, used }) => {
                if let Some(conn) = core.conns.get_mut(id) {
                    conn.liveness.last_active = core.times.now;
                }
                core.budget.spend(OPERATION_WORK);
                if let Some(tracing) = core.settings.tracing
                    && let Some(conn) = core.conns.get(id)
                {
                    tracing::trace!("{} - <<- [{}]", conn.label(), trace::packet(&packet));
                    if let MqttPacket::Publish(MqttPublish { payload, .. }) = packet {
                        tracing.payload(conn, payload);
                    }
                }
                let is_taken = on_packet(self.0, core, id, packet);
                core.settle_deliveries();
                match is_taken {
                    true => Taken::after(core, id, used),
                    false => Taken::Nothing,
                }
            }
            Ok(Framed::Needs(bytes)) => Taken::Needs(bytes),
            Err(error) => {
                fail(core, id, error);
                Taken::Ended
            }
        }
    }

    fn flush(&mut self, _: &mut Core, _: ConnId, _: &mut Run<'a>) {}
}

/// Bytes of a packet beside its payload, at most: the fixed header, topic, packet id, and lengths.
const TOPIC_BYTES_MAX: usize = 5 + 2 + 65_535 + 2;

/// Returns the bounds of the next packet; `None` if none is to be read.
fn limits(core: &Core, id: ConnId) -> Option<PacketLimits> {
    let conn = core.conns.get(id).filter(|conn| conn.is_open())?;
    let client = conn.mqtt.as_ref()?;
    let payload_bytes_max = conn.payload_bytes_max(&core.settings.limits);
    let is_first = client.phase == ClientPhase::Silent;
    let more = if is_first { 0 } else { TOPIC_BYTES_MAX };
    Some(PacketLimits { bytes_max: payload_bytes_max.saturating_add(more), is_first })
}

/// Handles a packet; `false` if it has to wait.
fn on_packet(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, packet: MqttPacket<'_>) -> bool {
    let Some(client) = core.conns.get(id).and_then(|conn| conn.mqtt.as_ref()) else { return true };
    let (is_first, waits) = (client.phase == ClientPhase::Silent, !client.replies.is_empty());
    let is_full = client.replies.is_full();
    let must_wait = match packet {
        MqttPacket::Subscribe(_) | MqttPacket::Unsubscribe(_) | MqttPacket::PubRel(_) => waits,
        MqttPacket::Publish(_) | MqttPacket::PubRec(_) | MqttPacket::PingReq => is_full,
        MqttPacket::Disconnect => waits,
        MqttPacket::Connect(_) | MqttPacket::PubAck(_) | MqttPacket::PubComp(_) => false,
    };
    if must_wait {
        mqtt.begin(core, id, Work::Drain);
        return false;
    }
    match packet {
        MqttPacket::Connect(body) if is_first => open::on_connect(mqtt, core, id, body),
        MqttPacket::Connect(_) => fail(core, id, MqttError("second CONNECT")),
        MqttPacket::Publish(packet) => publish::on_publish(mqtt, core, id, &packet),
        MqttPacket::PubAck(packet) => acks::on_puback(core, id, packet),
        MqttPacket::PubRec(packet) => acks::on_pubrec(mqtt, core, id, packet),
        MqttPacket::PubRel(packet) => publish::on_pubrel(mqtt, core, id, packet),
        MqttPacket::PubComp(packet) => acks::on_pubcomp(core, id, packet),
        MqttPacket::Subscribe(filters) => subscribe::on_subscribe(mqtt, core, id, filters),
        MqttPacket::Unsubscribe(filters) => subscribe::on_unsubscribe(mqtt, core, id, filters),
        MqttPacket::PingReq => reply(core, id, &PINGRESP),
        MqttPacket::Disconnect => {
            if let Some(client) = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut()) {
                client.will = None;
            }
            core.fail(id, None, Reason::ClientClosed);
        }
    }
    true
}

/// Sends a packet that is no message.
fn say(core: &mut Core, id: ConnId, packet: &[u8]) {
    if core.settings.tracing.is_some()
        && let Some(conn) = core.conns.get(id)
    {
        tracing::trace!("{} - ->> [{}]", conn.label(), trace::answer(packet));
    }
    core.confirm(id, |out| out.extend_from_slice(packet));
}

/// Sends an answer behind those that wait.
fn reply(core: &mut Core, id: ConnId, packet: &[u8]) {
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    match client {
        Some(client) if !client.replies.is_empty() => {
            client.replies.push(packet, 0, 0);
        }
        Some(_) => say(core, id, packet),
        None => {}
    }
}

/// Notes that a message is stored for which an answer waits, and sends what waits no more.
fn on_stored(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, number: u64) {
    let Some(client) = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut()) else { return };
    if let Some(sequence) = client.replies.on_stored(number) {
        publish::remove(mqtt, core, id, number, sequence);
    }
    release_replies(mqtt, core, id);
}

/// Sends the answers that wait no more.
fn release_replies(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    loop {
        let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
        let Some(client) = client else { return };
        let Some(packet) = client.replies.pop() else { break };
        // A message of QoS 0 that is retained has its place among the answers, and none of its own.
        if !packet.is_empty() {
            say(core, id, &packet);
        }
    }
    let client = core.conns.get(id).and_then(|conn| conn.mqtt.as_ref());
    if client.is_some_and(|client| client.replies.is_empty())
        && matches!(mqtt.works.get(&id), Some(Work::Drain))
    {
        mqtt.finish(id);
    }
}
