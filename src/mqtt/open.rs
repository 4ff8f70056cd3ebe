//! CONNECT: the login, and the session that is opened.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::requests::{self, MqttAsk, MqttHolder, MqttRequest, ReadMessage};
use super::{ClientKey, JAILED_MAX, Mqtt, Work, acks, fail, say, streams, subscribe};
use crate::api::headers;
use crate::auth::jwt;
use crate::client::login;
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::timers::Deadline;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::ids::{AccountId, ConnId};
use crate::proto::Connect;
use crate::proto::mqtt::connect::{self, ConnectFault, MqttConnect};
use crate::proto::mqtt::{ConnectCode, MqttError, connack, topic};
use crate::session::record::{self, SessionConsumer};
use crate::session::{self, ClientPhase, MqttClient, Session};

/// Characters of ids that are made here.
const MADE_ID_CHARS: usize = 22;
/// Nanoseconds within which an id that has changed hands does not do so again.
const FLAPPING_NS: u64 = 1_000_000_000;

/// A session that is being opened.
#[derive(Debug, Default)]
pub(super) struct SessionOpening {
    /// Whether state of before is there.
    is_present: bool,
    /// Requests without an answer.
    left: usize,
    /// Times that the record was read, as somebody else has stored it meanwhile.
    tries: usize,
}

/// Times that a record is read, at most.
const TRIES_MAX: usize = 4;

/// The news that a client has come.
#[derive(Debug, Serialize, Deserialize)]
struct Arrived {
    /// The beginning of subjects of the shard that has it.
    from: String,
    id: String,
    since: u64,
    /// Whether an earlier client had to go: the id has changed hands.
    #[serde(default)]
    has_swapped: bool,
}

pub(super) fn on_connect(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, body: &[u8]) {
    let connect = match connect::parse(body) {
        Ok(connect) => connect,
        Err(ConnectFault::Broken(error)) => return fail(core, id, error),
        Err(ConnectFault::Refused(code)) => return refuse(core, id, code),
    };
    if let Some(will) = &connect.will {
        if will.qos == 2 && core.settings.mqtt.as_ref().is_some_and(|mqtt| mqtt.rejects_qos2) {
            return refuse(core, id, ConnectCode::Qos2Will);
        }
        if topic::subject_of_topic(will.topic).is_none() {
            return fail(core, id, MqttError("the will's topic is invalid"));
        }
    }
    let client_id: Rc<str> = match connect.id {
        "" => made_id(core),
        given => given.into(),
    };
    let since = wall(core);
    let Some(conn) = core.conns.get_mut(id) else { return };
    *conn.connect = credentials(&connect, &client_id);
    conn.layers.complete(&mut conn.connect);
    if let Some(client) = &mut conn.mqtt {
        client.connect(&connect, client_id, since);
    }
    if let Some(sentinel) = &core.settings.auth.default_sentinel
        && conn.connect.jwt.is_empty()
    {
        conn.connect.jwt.clone_from(sentinel);
    }
    conn.login.on_connect();
    login::log_in(core, id, false);
    on_login(mqtt, core, id);
}

/// Returns what a client shows, as a CONNECT of the client protocol has it.
fn credentials(connect: &MqttConnect<'_>, id: &str) -> Connect {
    let password = connect.password.and_then(|password| str::from_utf8(password).ok());
    let password = password.unwrap_or_default();
    let is_token = jwt::decode::<jwt::UserClaims>(password).is_ok();
    Connect {
        verbose: false,
        pedantic: false,
        protocol: 0,
        user: connect.user.unwrap_or_default().into(),
        pass: password.into(),
        auth_token: password.into(),
        jwt: if is_token { password.into() } else { Box::default() },
        name: id.into(),
        ..Connect::default()
    }
}

fn made_id(core: &mut Core) -> Rc<str> {
    (0..MADE_ID_CHARS).map(|_| core.random.rng.alphanumeric()).collect::<String>().into()
}

/// Returns the time in nanoseconds since 1970.
fn wall(core: &Core) -> u64 {
    core.settings.epoch_ms.saturating_mul(1_000_000).saturating_add(core.times.now)
}

fn refuse(core: &mut Core, id: ConnId, code: ConnectCode) {
    core.reply(id, |out| out.extend(connack(code, false)));
    core.fail(id, None, Reason::Protocol("Protocol Violation"));
}

/// Opens the session of a client that has logged in; one that has not waits, or is gone.
pub(crate) fn on_login(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    let is_in = conn.login.user().is_some();
    let account = conn.account;
    let Some(client) = conn.mqtt.as_mut().filter(|_| is_in) else { return };
    if client.phase != ClientPhase::LogsIn {
        return;
    }
    client.phase = ClientPhase::Opens;
    match client.silence_ns_max {
        0 => conn.deadlines.disarm(Deadline::Ping),
        silence => conn.deadlines.arm(Deadline::Ping, core.times.now.saturating_add(silence)),
    }
    core.rearm(id);
    mqtt.begin(core, id, Work::Open(SessionOpening::default()));
    streams::need(mqtt, core, account, id);
}

/// Returns the beginning of subjects of sessions, which ends in a dot.
pub(super) fn sessions_prefix(core: &Core) -> String {
    let domain = core.settings.streams.as_ref().and_then(|streams| streams.domain.as_deref());
    match domain {
        Some(domain) => format!("$MQTT.sess.{domain}."),
        None => "$MQTT.sess.".to_owned(),
    }
}

/// Returns a client whose session is being opened, with its account.
fn opening(core: &mut Core, id: ConnId) -> Option<(&mut MqttClient, AccountId)> {
    let conn = core.conns.get_mut(id).filter(|conn| conn.is_open())?;
    let account = conn.account;
    let client = conn.mqtt.as_deref_mut()?;
    (client.phase == ClientPhase::Opens).then_some((client, account))
}

/// Takes the place of an earlier client with the same id, and reads its session.
pub(super) fn load(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some((client, account)) = opening(core, id) else { return };
    let (key, since) = (ClientKey { account, id: client.id.clone() }, client.since);
    let hash = client.session.hash.clone();
    let now = core.times.now;
    let swapped = mqtt.swaps.get(&key).is_some_and(|at| at.saturating_add(FLAPPING_NS) > now);
    if swapped && mqtt.jailed.len() < JAILED_MAX {
        if let Some(conn) = core.conns.get(id) {
            tracing::warn!("{} - client id {:?} changes hands too fast", conn.label(), key.id);
        }
        if let Some((client, _)) = opening(core, id) {
            (client.is_taken_over, client.will) = (true, None);
        }
        return mqtt.jailed.push_back((now.saturating_add(FLAPPING_NS), id));
    }
    if let Some(before) = mqtt.clients.insert(key.clone(), id).filter(|before| *before != id) {
        displace(mqtt, core, &key, before);
    }
    announce(core, &key, since, false);
    read_record(mqtt, core, MqttHolder { conn: id, account }, &hash);
}

/// Has the record of a session read.
fn read_record(mqtt: &mut Mqtt, core: &mut Core, holder: MqttHolder, hash: &str) {
    let subject = requests::api(core, &format!("STREAM.MSG.GET.{}", streams::SESSIONS));
    let wanted = format!("{}{hash}", sessions_prefix(core));
    let body = serde_json::json!({ "last_by_subj": wanted }).to_string();
    let request = MqttRequest { subject: &subject, headers: b"", body: body.as_bytes() };
    requests::ask(mqtt, core, holder, MqttAsk::Session, &request);
}

/// Reads the record of a session once more, which its connection of before has stored meanwhile.
/// Returns whether that is done.
pub(super) fn load_again(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) -> bool {
    let Some(Work::Open(opening)) = mqtt.works.get_mut(&id) else { return false };
    if opening.tries >= TRIES_MAX {
        return false;
    }
    *opening = SessionOpening { tries: opening.tries + 1, ..SessionOpening::default() };
    let Some((client, account)) = self::opening(core, id) else { return false };
    let hash = client.session.hash.clone();
    client.session = Session::default();
    client.session.hash.clone_from(&hash);
    read_record(mqtt, core, MqttHolder { conn: id, account }, &hash);
    true
}

/// Tells all shards and servers that a client has come, or that its id has changed hands.
fn announce(core: &mut Core, key: &ClientKey, since: u64, has_swapped: bool) {
    let from = requests::own_prefix(core);
    let subject = format!("{from}SP.{}", session::hash_of(&key.id));
    let news = Arrived { from, id: key.id.to_string(), since, has_swapped };
    let body = serde_json::to_vec(&news).unwrap_or_default();
    let subject = subject.as_bytes();
    let message = InnerMessage { subject, reply: b"", headers: b"", body: &body };
    inside::publish(core, key.account, &message);
}

/// Closes the connection of a client whose id another one has.
fn displace(mqtt: &mut Mqtt, core: &mut Core, key: &ClientKey, before: ConnId) {
    note_swap(mqtt, core.times.now, key.clone());
    announce(core, key, 0, true);
    if let Some(client) = core.conns.get_mut(before).and_then(|conn| conn.mqtt.as_mut()) {
        (client.is_taken_over, client.will) = (true, None);
    }
    core.fail(before, None, Reason::Protocol("Duplicate Client ID"));
}

/// Notes that an id has changed hands.
fn note_swap(mqtt: &mut Mqtt, now: u64, key: ClientKey) {
    if mqtt.swaps.len() >= JAILED_MAX {
        mqtt.swaps.retain(|_, at| at.saturating_add(FLAPPING_NS) > now);
    }
    if mqtt.swaps.len() < JAILED_MAX {
        mqtt.swaps.insert(key, now);
    }
}

/// Takes the news that a client has come to another shard or server.
pub(super) fn on_takeover(mqtt: &mut Mqtt, core: &mut Core, account: AccountId, body: &[u8]) {
    let Ok(news) = serde_json::from_slice::<Arrived>(body) else { return };
    if news.from == requests::own_prefix(core) {
        return;
    }
    let key = ClientKey { account, id: news.id.into() };
    if news.has_swapped {
        return note_swap(mqtt, core.times.now, key);
    }
    let Some(own) = mqtt.clients.get(&key).copied() else { return };
    let Some(client) = core.conns.get(own).and_then(|conn| conn.mqtt.as_ref()) else { return };
    // Of two that come at once the later one stays. The clocks of two servers are not the same:
    // there whoever is in already came first.
    let is_elsewhere = !news.from.starts_with(&requests::node_prefix(core));
    let own_prefix = requests::own_prefix(core);
    let is_older = (is_elsewhere && client.phase == ClientPhase::In)
        || (client.since, &*own_prefix) < (news.since, &*news.from);
    if is_older {
        displace(mqtt, core, &key, own);
    }
}

/// Takes the session of a client as it was stored, if it was.
pub(super) fn on_session(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    stored: Option<&ReadMessage>,
) {
    let found = stored.and_then(|stored| record::read(&stored.body, stored.sequence));
    let Some((client, account)) = opening(core, id) else { return };
    let Some(found) = found else {
        client.session.sequence = stored.map_or(0, |stored| stored.sequence);
        return save(mqtt, core, id);
    };
    if found.id != *client.id {
        return requests::end(core, id, "another client's id has the same hash");
    }
    if !client.is_clean && !found.was_clean {
        client.session = found.session;
        if let Some(Work::Open(opening)) = mqtt.works.get_mut(&id) {
            opening.is_present = true;
        }
        return read_release(mqtt, core, id, 1);
    }
    client.session.sequence = found.session.sequence;
    let left =
        clear(mqtt, core, MqttHolder { conn: id, account }, &found.session, &MqttAsk::Cleared);
    match mqtt.works.get_mut(&id) {
        Some(Work::Open(opening)) if left > 0 => opening.left = left,
        _ => save(mqtt, core, id),
    }
}

/// Has the next PUBREL of before read, from a sequence on.
fn read_release(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, from: u64) {
    let Some((client, account)) = opening(core, id) else { return };
    if client.session.releases.is_none() {
        return save(mqtt, core, id);
    }
    let wanted = acks::release_subject(&client.session);
    let subject = requests::api(core, &format!("STREAM.MSG.GET.{}", streams::RELEASES));
    let body = serde_json::json!({ "seq": from, "next_by_subj": wanted }).to_string();
    let request = MqttRequest { subject: &subject, headers: b"", body: body.as_bytes() };
    requests::ask(mqtt, core, MqttHolder { conn: id, account }, MqttAsk::Outstanding, &request);
}

/// Takes a PUBREL of before; behind the last one the session is stored. The consumer of its message
/// may not have heard before a crash that the message was taken: if it comes again, it is known.
pub(super) fn on_outstanding(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    found: Option<&ReadMessage>,
) {
    let Some((client, _)) = opening(core, id) else { return };
    let Some(found) = found else { return save(mqtt, core, id) };
    let packet = headers::value(&found.headers, session::RELEASE_HEADER);
    let packet = packet.and_then(headers::number).and_then(|it| u16::try_from(it).ok());
    if let Some(packet @ 1..) = packet {
        let ack = session::released_ack(&found.headers);
        let release = client.session.keep_release(packet, ack);
        acks::settle(mqtt, core, id, release, ack);
    }
    read_release(mqtt, core, id, found.sequence + 1);
}

/// Deletes the consumers of a session. Returns the number of requests for that.
pub(super) fn clear(
    mqtt: &mut Mqtt,
    core: &mut Core,
    holder: MqttHolder,
    session: &Session,
    what: &MqttAsk,
) -> usize {
    let messages = session.consumers.values().map(|consumer| (streams::MESSAGES, &**consumer));
    let releases = session.releases.iter().map(|consumer| (streams::RELEASES, &**consumer));
    let all: Vec<(&str, &SessionConsumer)> = messages.chain(releases).collect();
    for (stream, consumer) in &all {
        let rest = format!("CONSUMER.DELETE.{stream}.{}", consumer.name);
        let subject = requests::api(core, &rest);
        let request = MqttRequest { subject: &subject, ..MqttRequest::default() };
        requests::ask(mqtt, core, holder, what.clone(), &request);
    }
    all.len()
}

/// Takes the end of something of an earlier session.
pub(super) fn on_cleared(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some(Work::Open(opening)) = mqtt.works.get_mut(&id) else { return };
    opening.left = opening.left.saturating_sub(1);
    if opening.left == 0 {
        save(mqtt, core, id);
    }
}

/// Stores the session of a client; its packet goes on when that is done.
pub(super) fn save(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    let (account, Some(client)) = (conn.account, &conn.mqtt) else { return };
    let Some(news) = SessionNews::of(core, client) else { return };
    news.store(mqtt, core, MqttHolder { conn: id, account }, MqttAsk::Saved);
}

/// The record of a session that is to be stored, unless somebody else has done so since it was
/// read.
pub(super) struct SessionNews {
    subject: String,
    headers: String,
    body: Vec<u8>,
}

impl SessionNews {
    /// Returns the record of a client's session.
    pub(super) fn of(core: &Core, client: &MqttClient) -> Option<Self> {
        let settings = core.settings.mqtt.as_ref()?;
        let session = &client.session;
        let origin = &session::hash_of(core.settings.server_name());
        let body = record::write(session, &client.id, client.is_clean, origin, settings);
        let subject = format!("{}{}", sessions_prefix(core), session.hash);
        let headers = match session.sequence {
            0 => String::new(),
            last => format!("NATS/1.0\r\nNats-Expected-Last-Subject-Sequence:{last}\r\n\r\n"),
        };
        Some(Self { subject, headers, body })
    }

    /// Has the record stored.
    pub(super) fn store(
        &self,
        mqtt: &mut Mqtt,
        core: &mut Core,
        holder: MqttHolder,
        what: MqttAsk,
    ) {
        let (subject, headers) = (self.subject.as_bytes(), self.headers.as_bytes());
        requests::ask(
            mqtt,
            core,
            holder,
            what,
            &MqttRequest { subject, headers, body: &self.body },
        );
    }
}

/// Lets a client in whose session is stored.
pub(super) fn on_saved(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some(Work::Open(SessionOpening { is_present, .. })) = mqtt.works.get(&id) else { return };
    let is_present = *is_present;
    let Some((client, _)) = opening(core, id) else { return };
    client.phase = ClientPhase::In;
    say(core, id, &connack(ConnectCode::Accepted, is_present));
    if is_present {
        return subscribe::restore(mqtt, core, id);
    }
    mqtt.finish(id);
}
