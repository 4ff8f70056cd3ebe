//! Messages of clients: to subscribers at once, and to streams for what has a QoS.

use super::requests::{self, ApiReply, MqttAsk, MqttHolder, MqttRequest, ReadMessage};
use super::retained::{self, Kept};
use super::{Mqtt, Work, fail, release_replies, reply, streams};
use crate::api::headers;
use crate::auth::grants::is_reserved_subject;
use crate::client::messages;
use crate::core::Core;
use crate::delivery::publish;
use crate::interest::ids::{AccountId, ConnId};
use crate::proto::encode;
use crate::proto::mqtt::{MqttError, MqttPublish, Qos, puback, pubcomp, pubrec, topic};
use crate::run::{Content, Run};
use crate::session::{MESSAGE_PREFIX, PUBLISH_HEADER, publish_headers};

/// Code of the error about a subject that has its maximum of messages.
const SUBJECT_IS_FULL: u16 = 10077;
const SUBJECT: &str = "Nmqtt-Subject";

/// A message on its way to its receivers.
#[derive(Debug, Clone, Copy)]
struct MqttMessage<'a> {
    /// The subject, mapped.
    subject: &'a [u8],
    qos: Qos,
    retain: bool,
    payload: &'a [u8],
    /// Sequence of a released message in its stream; 0 for others.
    released: u64,
}

/// The answer to a message.
#[derive(Debug, Clone, Copy)]
struct MqttAnswer<'a> {
    /// The packet; empty if there is none.
    packet: &'a [u8],
    /// Steps beside those of the message's own that it waits for.
    more: u8,
}

impl MqttMessage<'_> {
    /// Returns the headers with which the message is stored: one that is released is stored once,
    /// however often that is tried.
    fn stored_headers(&self, mut headers: Vec<u8>) -> Vec<u8> {
        if self.released > 0 {
            headers::add(&mut headers, "Nats-Msg-Id", format!("q2-{}", self.released));
        }
        headers
    }
}

pub(super) fn on_publish(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, packet: &MqttPublish<'_>) {
    if packet.qos == 2 && core.settings.mqtt.as_ref().is_some_and(|mqtt| mqtt.rejects_qos2) {
        return fail(core, id, MqttError("QoS 2 is rejected"));
    }
    let Some(subject) = topic::subject_of_topic(packet.topic) else {
        return fail(core, id, MqttError("the topic is invalid"));
    };
    let headers = stored_headers(packet, &subject);
    let Some(conn) = core.conns.get(id) else { return };
    let bytes_max = conn.payload_bytes_max(&core.settings.limits);
    if headers.len() + packet.payload.len() > bytes_max {
        return fail(core, id, MqttError("Maximum Payload Violation"));
    }
    let mapped = messages::map(core, id, &subject);
    let subject = mapped.as_ref().map_or(&subject[..], |mapped| &mapped.subject);
    let &MqttPublish { qos, retain, payload, .. } = packet;
    let message = MqttMessage { subject, qos, retain, payload, released: 0 };
    match qos {
        2 => store_once(mqtt, core, id, packet, &headers),
        1 => {
            let answer = MqttAnswer { packet: &puback(packet.id), more: 0 };
            deliver(mqtt, core, id, &message, answer);
        }
        _ => {
            deliver(mqtt, core, id, &message, MqttAnswer { packet: b"", more: 0 });
        }
    }
}

/// Returns the headers of a message: of QoS 2 with all that is needed to release it.
fn stored_headers(packet: &MqttPublish<'_>, subject: &[u8]) -> Vec<u8> {
    if packet.qos < 2 {
        return publish_headers(packet.qos);
    }
    let flags = packet.qos << 1 | u8::from(packet.retain);
    let mut block = format!("NATS/1.0\r\n{PUBLISH_HEADER}:2{flags:x}\r\n{SUBJECT}:").into_bytes();
    block.extend_from_slice(subject);
    block.extend_from_slice(b"\r\n\r\n");
    block
}

/// Stores a message of QoS 2 until it is released.
fn store_once(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    packet: &MqttPublish<'_>,
    headers: &[u8],
) {
    let Some((account, subject)) = place(core, id, packet.id) else { return };
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    let Some(client) = client else { return };
    let number = client.replies.push(&pubrec(packet.id), 1, packet.payload.len());
    let request = MqttRequest { subject: &subject, headers, body: packet.payload };
    requests::ask(
        mqtt,
        core,
        MqttHolder { conn: id, account },
        MqttAsk::StoredOnce(number),
        &request,
    );
}

/// Returns the account of a client, and the subject of its message with a packet id.
fn place(core: &Core, id: ConnId, packet: u16) -> Option<(AccountId, Vec<u8>)> {
    let conn = core.conns.get(id)?;
    let client = conn.mqtt.as_ref()?;
    Some((conn.account, format!("$MQTT.qos2.in.{}.{packet}", client.id).into_bytes()))
}

/// Whether a message was not stored because it is there already.
pub(super) fn is_there(reply: &ApiReply) -> bool {
    reply.code() == SUBJECT_IS_FULL || reply.text().starts_with("maximum messages per subject")
}

/// Publishes a message, and stores it if it has to be. `answer` follows when that is done, and
/// after so many more steps. Returns the number of the answer; `None` if it waits for nothing.
fn deliver(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    message: &MqttMessage<'_>,
    MqttAnswer { packet, more }: MqttAnswer<'_>,
) -> Option<u64> {
    let &MqttMessage { subject, qos, retain, payload, .. } = message;
    let may = may_publish(core, id, subject);
    let headers = publish_headers(qos);
    if may {
        let content = Content::new(&headers, payload);
        publish::publish(core, id, &Run::of(content.publish(subject, None)));
    }
    let conn = core.conns.get_mut(id).filter(|conn| conn.is_open())?;
    let holder = MqttHolder { conn: id, account: conn.account };
    let user = conn.connect.user.clone();
    let waits = more + if may { u8::from(qos > 0) + u8::from(retain) } else { 0 };
    if waits == 0 {
        if !packet.is_empty() {
            reply(core, id, packet);
        }
        return None;
    }
    let number = conn.mqtt.as_mut()?.replies.push(packet, waits, payload.len());
    if may && retain {
        let kept = Kept { subject, qos, payload, user: &user };
        retained::keep(mqtt, core, holder, &kept, MqttAsk::Stored(number));
        if payload.is_empty() {
            // What is retained next must not be removed with what was before.
            mqtt.begin(core, id, Work::Drain);
        }
    }
    if may && qos > 0 {
        let subject = [MESSAGE_PREFIX.as_bytes(), subject].concat();
        let headers = message.stored_headers(headers);
        let request = MqttRequest { subject: &subject, headers: &headers, body: payload };
        requests::ask(mqtt, core, holder, MqttAsk::Stored(number), &request);
    }
    Some(number)
}

fn may_publish(core: &mut Core, id: ConnId, subject: &[u8]) -> bool {
    let is_system = |core: &Core, account| core.accounts.system == Some(account);
    let Some(account) = core.conns.get(id).map(|conn| conn.account) else { return false };
    let is_reserved = is_reserved_subject(subject, is_system(core, account));
    let now = core.times.now;
    let Some(conn) = core.conns.get_mut(id) else { return false };
    if !is_reserved && messages::may_publish(conn, subject, false, now) {
        return true;
    }
    let name = encode::go_quoted(subject);
    tracing::error!("{} - Publish Violation - Subject {name}", conn.label());
    false
}

/// Releases a message of QoS 2.
pub(super) fn on_pubrel(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, packet: u16) {
    let Some((account, place)) = place(core, id, packet) else { return };
    mqtt.begin(core, id, Work::Release);
    let subject = requests::api(core, &format!("STREAM.MSG.GET.{}", streams::QOS2_IN));
    let wanted = String::from_utf8_lossy(&place);
    let body = serde_json::json!({ "last_by_subj": wanted }).to_string();
    let request = MqttRequest { subject: &subject, headers: b"", body: body.as_bytes() };
    requests::ask(mqtt, core, MqttHolder { conn: id, account }, MqttAsk::Release(packet), &request);
}

/// Takes the message that is to be released, if it is there.
pub(super) fn on_found(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    packet: u16,
    found: Option<&ReadMessage>,
) {
    if !matches!(mqtt.works.get(&id), Some(Work::Release)) {
        return;
    }
    match found {
        Some(found) => release(mqtt, core, id, packet, found),
        None => reply(core, id, &pubcomp(packet)),
    }
    release_replies(mqtt, core, id);
    if matches!(mqtt.works.get(&id), Some(Work::Release)) {
        mqtt.finish(id);
    }
}

/// Publishes a message that is released, and deletes it. Only then may its packet id be used again:
/// a message is known by it.
fn release(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, packet: u16, found: &ReadMessage) {
    let Some(subject) = headers::value(&found.headers, SUBJECT) else {
        // Without it the next PUBREL comes to an end.
        ask_to_remove(mqtt, core, id, MqttAsk::Nothing, found.sequence);
        return requests::end(core, id, "a message of QoS 2 has no subject");
    };
    let flags = headers::value(&found.headers, PUBLISH_HEADER).unwrap_or_default();
    let flags = flags.get(1).and_then(|digit| char::from(*digit).to_digit(16)).unwrap_or(0);
    let mapped = messages::map(core, id, subject);
    let message = MqttMessage {
        subject: mapped.as_ref().map_or(subject, |mapped| &mapped.subject),
        qos: 2,
        retain: flags & 1 == 1,
        payload: &found.body,
        released: found.sequence,
    };
    let answer = MqttAnswer { packet: &pubcomp(packet), more: 1 };
    let Some(number) = deliver(mqtt, core, id, &message, answer) else { return };
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    if client.is_some_and(|client| client.replies.remove_last(number, found.sequence)) {
        remove(mqtt, core, id, number, found.sequence);
    }
}

/// Deletes a message of QoS 2 that is released, for which the answer with a number waits.
pub(super) fn remove(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, number: u64, sequence: u64) {
    ask_to_remove(mqtt, core, id, MqttAsk::Deleted(number), sequence);
}

fn ask_to_remove(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, what: MqttAsk, sequence: u64) {
    let Some(account) = core.conns.get(id).map(|conn| conn.account) else { return };
    let subject = requests::api(core, &format!("STREAM.MSG.DELETE.{}", streams::QOS2_IN));
    let body = serde_json::json!({ "seq": sequence, "no_erase": true }).to_string();
    let request = MqttRequest { subject: &subject, headers: b"", body: body.as_bytes() };
    requests::ask(mqtt, core, MqttHolder { conn: id, account }, what, &request);
}
