//! Requests to JetStream, each with its answer or its deadline.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Mqtt, Work, acks, open, publish, retained, streams, subscribe};
use crate::core::Core;
use crate::core::close::Reason;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::ids::{AccountId, ConnId};
use crate::run::tapped::TapMessage;
use crate::session::flights::ReleaseId;

/// Filter of the news that a client has come, of all servers and shards.
pub(super) const TAKEOVERS: &str = "$MQTT.JSA.*.SP.*";

/// Code of the error about a message that is not there.
const NO_MESSAGE: u16 = 10037;
/// Codes of the errors about a message that was to be removed and is not there.
const NOT_REMOVED: [u16; 3] = [NO_MESSAGE, 10043, 10057];
/// Codes of the errors about a record that somebody else has stored meanwhile.
const STALE_RECORD: [u16; 2] = [10071, 10164];
/// Code of the error about a stream of that name with another configuration.
pub(super) const STREAM_EXISTS: u16 = 10058;

/// The purpose of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MqttAsk {
    /// A stream of an account is made.
    Stream,
    /// The record of a session is read.
    Session,
    /// Something of an earlier session is deleted.
    Cleared,
    /// The record of a session is stored.
    Saved,
    /// A consumer for the filter at this place of a SUBSCRIBE is made.
    Consumer(usize),
    /// A consumer of retained messages is made, by its number.
    Fetch(u64),
    /// A message is stored for which the answer with this number waits.
    Stored(u64),
    /// A message is stored, or is there already, for which the answer with this number waits.
    StoredOnce(u64),
    /// A message is deleted for which the answer with this number waits.
    Deleted(u64),
    /// A message that is to be released with this packet id is read.
    Release(u16),
    /// A PUBREL with this packet id is stored.
    Released(u16),
    /// The consumer of the message of this PUBREL confirms its acknowledgement.
    Settled(ReleaseId),
    /// The next PUBREL is read that an earlier connection of the session has stored.
    Outstanding,
    /// Nothing depends on it.
    Nothing,
}

/// A connection with its account, in which its state is.
#[derive(Debug, Clone, Copy)]
pub(super) struct MqttHolder {
    pub(super) conn: ConnId,
    pub(super) account: AccountId,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct MqttAsked {
    pub(super) conn: ConnId,
    pub(super) account: AccountId,
    pub(super) what: MqttAsk,
    /// A random number that the answer has to name.
    secret: u64,
    /// The deadline, in nanoseconds since the start of the process.
    due: u64,
}

/// Requests that wait for their answers.
#[derive(Debug, Default)]
pub(super) struct MqttRequests {
    /// Requests by number: the oldest is due first.
    waiting: BTreeMap<u64, MqttAsked>,
    last: u64,
    /// Requests that nobody takes.
    pub(super) failed: Vec<MqttAsked>,
}

impl MqttRequests {
    pub(super) fn next_due(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(_, asked)| asked.due)
    }

    /// Takes a request that has had no answer in time.
    pub(super) fn pop_overdue(&mut self, now: u64) -> Option<MqttAsked> {
        if self.next_due()? > now {
            return None;
        }
        self.waiting.pop_first().map(|(_, asked)| asked)
    }
}

/// A message to a stream or to the API.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MqttRequest<'a> {
    pub(super) subject: &'a [u8],
    pub(super) headers: &'a [u8],
    pub(super) body: &'a [u8],
}

/// Returns the beginning of subjects of all shards of this server.
pub(super) fn node_prefix(core: &Core) -> String {
    format!("$MQTT.JSA.{}-", core.settings.node)
}

/// Returns the beginning of subjects of this shard, which ends in a dot.
pub(super) fn own_prefix(core: &Core) -> String {
    format!("{}{}.", node_prefix(core), core.shard.0)
}

/// Returns a subject of the API.
pub(super) fn api(core: &Core, rest: &str) -> Vec<u8> {
    let domain = core.settings.mqtt.as_ref().and_then(|mqtt| mqtt.domain.as_deref());
    match domain {
        Some(domain) => format!("$JS.{domain}.API.{rest}"),
        None => format!("$JS.API.{rest}"),
    }
    .into_bytes()
}

/// Sends a request for a connection, in an account.
pub(super) fn ask(
    mqtt: &mut Mqtt,
    core: &mut Core,
    MqttHolder { conn, account }: MqttHolder,
    what: MqttAsk,
    request: &MqttRequest<'_>,
) {
    let timeout_ns = core.settings.mqtt.as_ref().map_or(0, |mqtt| mqtt.api_timeout_ns);
    let (due, secret) = (core.times.now.saturating_add(timeout_ns), core.random.rng.u64(..));
    let asked = MqttAsked { conn, account, what, secret, due };
    if !inside::has_receivers(core, account, request.subject, None) {
        return mqtt.requests.failed.push(asked);
    }
    mqtt.requests.last += 1;
    let number = mqtt.requests.last;
    mqtt.requests.waiting.insert(number, asked);
    let reply = format!("{}R.{number}.{secret:x}", own_prefix(core));
    let MqttRequest { subject, headers, body } = *request;
    inside::publish(
        core,
        account,
        &InnerMessage { subject, reply: reply.as_bytes(), headers, body },
    );
}

/// Sets a deadline for something that takes more than one answer.
pub(super) fn watch(
    mqtt: &mut Mqtt,
    core: &Core,
    MqttHolder { conn, account }: MqttHolder,
    what: MqttAsk,
) {
    let timeout_ns = core.settings.mqtt.as_ref().map_or(0, |mqtt| mqtt.api_timeout_ns);
    mqtt.requests.last += 1;
    let due = core.times.now.saturating_add(timeout_ns);
    mqtt.requests
        .waiting
        .insert(mqtt.requests.last, MqttAsked { conn, account, what, secret: 0, due });
}

/// The parts of answers that matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ApiReply {
    error: Option<ApiFault>,
    /// Sequence of a message that was stored.
    pub(super) seq: u64,
    /// Messages that a new consumer is to deliver.
    pub(super) num_pending: u64,
    message: Option<FoundMessage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiFault {
    err_code: u16,
    description: String,
}

/// A message that was read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FoundMessage {
    seq: u64,
    hdrs: String,
    data: String,
}

/// A message that was read, decoded.
#[derive(Debug)]
pub(super) struct ReadMessage {
    pub(super) sequence: u64,
    pub(super) headers: Vec<u8>,
    pub(super) body: Vec<u8>,
}

impl ApiReply {
    /// Code of the error; 0 if there is none.
    pub(super) fn code(&self) -> u16 {
        self.error.as_ref().map_or(0, |error| error.err_code)
    }

    /// Text of the error.
    pub(super) fn text(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.description)
    }

    pub(super) fn is_ok(&self) -> bool {
        self.error.is_none()
    }

    /// Returns the message that was read; `None` if there is none.
    pub(super) fn message(&self) -> Option<ReadMessage> {
        let found = self.message.as_ref()?;
        let decode = |text: &str| STANDARD.decode(text).ok();
        let (headers, body) = (decode(&found.hdrs)?, decode(&found.data)?);
        Some(ReadMessage { sequence: found.seq, headers, body })
    }

    fn is_no_message(&self) -> bool {
        self.code() == NO_MESSAGE
    }
}

/// Takes a message to a subject of this shard.
pub(super) fn on_own(
    mqtt: &mut Mqtt,
    core: &mut Core,
    account: AccountId,
    subject: &[u8],
    message: &TapMessage<'_>,
) {
    // Anybody may send to these subjects: the secret is what only JetStream has heard.
    if let Some(answered) = subject.strip_prefix(b"M.").and_then(Answered::read) {
        return retained::on_message(mqtt, core, account, answered, message);
    }
    let answered = subject.strip_prefix(b"R.").and_then(Answered::read);
    let Some(Answered { number, secret }) = answered else { return };
    let asked = mqtt.requests.waiting.get(&number);
    if !asked.is_some_and(|asked| asked.account == account && asked.secret == secret) {
        return;
    }
    let Some(asked) = mqtt.requests.waiting.remove(&number) else { return };
    let reply: ApiReply = serde_json::from_slice(message.body).unwrap_or_else(|_| ApiReply {
        error: Some(ApiFault { err_code: u16::MAX, description: "invalid answer".to_owned() }),
        ..ApiReply::default()
    });
    on_answer(mqtt, core, &asked, &reply);
}

/// The request that a message answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    pub(super) number: u64,
    pub(super) secret: u64,
}

impl Answered {
    /// Reads the end of a subject.
    fn read(text: &[u8]) -> Option<Self> {
        let (number, secret) = std::str::from_utf8(text).ok()?.split_once('.')?;
        let secret = u64::from_str_radix(secret, 16).ok()?;
        Some(Self { number: number.parse().ok()?, secret })
    }
}

fn on_answer(mqtt: &mut Mqtt, core: &mut Core, asked: &MqttAsked, reply: &ApiReply) {
    let MqttAsked { conn, account, ref what, .. } = *asked;
    match *what {
        MqttAsk::Stream => streams::on_made(mqtt, core, account, reply),
        MqttAsk::Session if reply.is_ok() || reply.is_no_message() => {
            open::on_session(mqtt, core, conn, reply.message().as_ref());
        }
        MqttAsk::Cleared => open::on_cleared(mqtt, core, conn),
        MqttAsk::Saved if reply.is_ok() => on_saved(mqtt, core, conn, reply.seq),
        MqttAsk::Saved
            if STALE_RECORD.contains(&reply.code()) && open::load_again(mqtt, core, conn) => {}
        MqttAsk::Outstanding if reply.is_ok() || reply.is_no_message() => {
            open::on_outstanding(mqtt, core, conn, reply.message().as_ref());
        }
        MqttAsk::Settled(ref release) => acks::on_settled(core, conn, release),
        MqttAsk::Consumer(at) => subscribe::on_consumer(mqtt, core, conn, at, reply),
        MqttAsk::Fetch(number) => retained::on_made(mqtt, core, number, reply),
        MqttAsk::Stored(number) if reply.is_ok() => super::on_stored(mqtt, core, conn, number),
        MqttAsk::StoredOnce(number) if reply.is_ok() || publish::is_there(reply) => {
            super::on_stored(mqtt, core, conn, number);
        }
        MqttAsk::Release(packet) if reply.is_ok() || reply.is_no_message() => {
            publish::on_found(mqtt, core, conn, packet, reply.message().as_ref());
        }
        MqttAsk::Released(packet) if reply.is_ok() => acks::on_released(mqtt, core, conn, packet),
        MqttAsk::Deleted(number) if reply.is_ok() || NOT_REMOVED.contains(&reply.code()) => {
            super::on_stored(mqtt, core, conn, number);
        }
        MqttAsk::Nothing => {}
        MqttAsk::Session
        | MqttAsk::Saved
        | MqttAsk::Stored(_)
        | MqttAsk::StoredOnce(_)
        | MqttAsk::Outstanding
        | MqttAsk::Release(_)
        | MqttAsk::Deleted(_)
        | MqttAsk::Released(_) => {
            end(core, conn, reply.text());
        }
    }
}

/// Goes on with the packet for which a session was stored.
fn on_saved(mqtt: &mut Mqtt, core: &mut Core, conn: ConnId, sequence: u64) {
    let client = core.conns.get_mut(conn).and_then(|conn| conn.mqtt.as_mut());
    let Some(client) = client else { return };
    client.session.sequence = sequence;
    match mqtt.works.get(&conn) {
        Some(Work::Open(_)) => open::on_saved(mqtt, core, conn),
        Some(Work::Subscribe(_)) => subscribe::on_saved(mqtt, core, conn),
        Some(Work::Unsubscribe(_)) => subscribe::on_unsubscribed(mqtt, core, conn),
        _ => {}
    }
}

/// Takes the failure of a request: no answer has come in time, or nobody takes it.
pub(super) fn on_failed(mqtt: &mut Mqtt, core: &mut Core, asked: &MqttAsked) {
    match asked.what {
        MqttAsk::Nothing => {}
        MqttAsk::Fetch(number) => retained::on_overdue(mqtt, core, number),
        MqttAsk::Settled(ref release) => acks::settle_again(mqtt, core, asked.conn, release),
        MqttAsk::Stream => {
            let text = "no answer of JetStream".to_owned();
            let fault = ApiFault { err_code: u16::MAX, description: text };
            let reply = ApiReply { error: Some(fault), ..ApiReply::default() };
            streams::on_made(mqtt, core, asked.account, &reply);
        }
        _ => end(core, asked.conn, "no answer of JetStream"),
    }
}

/// Ends a connection whose state cannot be kept.
pub(super) fn end(core: &mut Core, id: ConnId, why: &str) {
    if let Some(conn) = core.conns.get(id).filter(|conn| conn.is_open()) {
        tracing::error!("{} - MQTT state cannot be kept: {why}", conn.label());
    }
    core.fail(id, None, Reason::Protocol("Protocol Violation"));
}
