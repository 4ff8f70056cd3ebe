//! Retained messages: kept by subject, and sent for new filters.
//!
//! For each filter a consumer for the last message of each subject is made, which lives until it
//! has delivered: no shard has a copy of what is retained.

use std::collections::BTreeMap;

use serde_json::json;

use super::requests::{self, Answered, ApiReply, MqttAsk, MqttHolder, MqttRequest};
use super::subscribe::Granted;
use super::{Mqtt, streams, subscribe};
use crate::api::headers;
use crate::core::Core;
use crate::interest::ids::{AccountId, ConnId};
use crate::proto::mqtt::{MqttPublish, Qos, topic};
use crate::run::tapped::TapMessage;
use crate::session::{FilterSid, Session};

/// The beginning of subjects of retained messages.
pub(super) const PREFIX: &str = "$MQTT.rmsgs.";
const TOPIC: &str = "Nmqtt-RTopic";
const FLAGS: &str = "Nmqtt-RFlags";
const ORIGIN: &str = "Nmqtt-ROrigin";
const SOURCE: &str = "Nmqtt-RSource";

/// Retained messages on their way, by numbers of consumers.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    all: BTreeMap<u64, Fetch>,
    last: u64,
}

/// The retained messages for a filter.
#[derive(Debug)]
struct Fetch {
    conn: ConnId,
    account: AccountId,
    /// Name of the consumer.
    name: String,
    /// A random number that messages have to name.
    secret: u64,
    /// The sid of the filter's subscription.
    sid: Box<[u8]>,
    wish: Wish,
    /// Messages that are to come, once that is known.
    left: Option<u64>,
    /// `left` at the last look whether some have come.
    seen: Option<u64>,
}

/// The filter that retained messages are for.
#[derive(Debug, Clone, Copy)]
struct Wish {
    /// The QoS of the filter.
    qos: Qos,
    /// Whether the filter does not match topics that begin with `$`.
    is_reserved: bool,
}

/// A message to be retained.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'a> {
    pub(super) subject: &'a [u8],
    pub(super) qos: Qos,
    pub(super) payload: &'a [u8],
    /// Name of the publisher's user; empty if it has none.
    pub(super) user: &'a str,
}

/// Retains a message in place of the one before; an empty one removes that.
pub(super) fn keep(
    mqtt: &mut Mqtt,
    core: &mut Core,
    holder: MqttHolder,
    kept: &Kept<'_>,
    what: MqttAsk,
) {
    let subject = [PREFIX.as_bytes(), kept.subject].concat();
    if kept.payload.is_empty() {
        let filter = String::from_utf8_lossy(&subject);
        let body = json!({ "filter": filter }).to_string();
        let subject = requests::api(core, &format!("STREAM.PURGE.{}", streams::RETAINED));
        let request = MqttRequest { subject: &subject, headers: b"", body: body.as_bytes() };
        return requests::ask(mqtt, core, holder, what, &request);
    }
    let mut shown = Vec::new();
    topic::write_topic(kept.subject, &mut shown);
    let flags = format!("{:x}", kept.qos << 1 | 1);
    let origin = crate::session::hash_of(core.settings.server_name());
    let mut block = b"NATS/1.0\r\n".to_vec();
    for (name, value) in [
        (TOPIC, &shown[..]),
        (FLAGS, flags.as_bytes()),
        (ORIGIN, origin.as_bytes()),
        (SOURCE, kept.user.as_bytes()),
    ] {
        if !value.is_empty() {
            block.extend_from_slice(name.as_bytes());
            block.push(b':');
            block.extend(value.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')));
            block.extend_from_slice(b"\r\n");
        }
    }
    block.extend_from_slice(b"\r\n");
    let request = MqttRequest { subject: &subject, headers: &block, body: kept.payload };
    requests::ask(mqtt, core, holder, what, &request);
}

/// Has the retained messages for a filter sent.
pub(super) fn fetch(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, filter: &Granted) {
    let Some(account) = core.conns.get(id).map(|conn| conn.account) else { return };
    let is_reserved = topic::begins_with_wildcard(&filter.subject);
    for FilterSid { sid, subject } in Session::sids(&filter.subject) {
        mqtt.fetches.last += 1;
        let number = mqtt.fetches.last;
        let name =
            format!("{}_{}_{}_{number}", streams::RETAINED, core.settings.node, core.shard.0);
        let secret = core.random.rng.u64(..);
        let deliver = format!("{}M.{number}.{secret:x}", requests::own_prefix(core));
        let wanted = [PREFIX.as_bytes(), subject].concat();
        let body = json!({
            "stream_name": streams::RETAINED,
            "config": {
                "name": name, "deliver_subject": deliver, "mem_storage": true,
                "deliver_policy": "last_per_subject", "ack_policy": "none",
                "replay_policy": "instant", "filter_subject": String::from_utf8_lossy(&wanted),
            },
        })
        .to_string();
        let fetch = Fetch {
            conn: id,
            account,
            name: name.clone(),
            secret,
            sid,
            wish: Wish { qos: filter.code, is_reserved },
            left: None,
            seen: None,
        };
        mqtt.fetches.all.insert(number, fetch);
        let rest = format!("CONSUMER.CREATE.{}.{name}", streams::RETAINED);
        let subject = requests::api(core, &rest);
        let request = MqttRequest { subject: &subject, headers: b"", body: body.as_bytes() };
        requests::ask(
            mqtt,
            core,
            MqttHolder { conn: id, account },
            MqttAsk::Fetch(number),
            &request,
        );
    }
}

/// Takes the answer about a consumer of retained messages.
pub(super) fn on_made(mqtt: &mut Mqtt, core: &mut Core, number: u64, reply: &ApiReply) {
    let Some(fetch) = mqtt.fetches.all.get_mut(&number) else { return };
    // Messages may have come before the answer.
    let come = fetch.left.map_or(0, |left| left.wrapping_neg());
    let left = reply.num_pending.saturating_sub(come);
    fetch.left = Some(left);
    let holder = MqttHolder { conn: fetch.conn, account: fetch.account };
    if !reply.is_ok() || left == 0 {
        end(mqtt, core, number);
    } else {
        // What is deleted meanwhile does not come.
        fetch.seen = Some(left);
        requests::watch(mqtt, core, holder, MqttAsk::Fetch(number));
    }
}

/// Goes on waiting for retained messages, if some have come since the last look.
pub(super) fn on_overdue(mqtt: &mut Mqtt, core: &mut Core, number: u64) {
    let Some(fetch) = mqtt.fetches.all.get_mut(&number) else { return };
    if fetch.left.is_none() || fetch.left == fetch.seen {
        return end(mqtt, core, number);
    }
    fetch.seen = fetch.left;
    let holder = MqttHolder { conn: fetch.conn, account: fetch.account };
    requests::watch(mqtt, core, holder, MqttAsk::Fetch(number));
}

/// Takes a retained message.
pub(super) fn on_message(
    mqtt: &mut Mqtt,
    core: &mut Core,
    account: AccountId,
    answered: Answered,
    message: &TapMessage<'_>,
) {
    let Answered { number, secret } = answered;
    let fetch = mqtt.fetches.all.get_mut(&number);
    let fetch = fetch.filter(|fetch| fetch.account == account && fetch.secret == secret);
    let Some(fetch) = fetch else { return };
    let left = fetch.left.unwrap_or(0).wrapping_sub(1);
    fetch.left = Some(left);
    send(core, fetch, message);
    if left == 0 {
        end(mqtt, core, number);
    }
}

/// Sends a retained message to a client.
fn send(core: &mut Core, fetch: &Fetch, message: &TapMessage<'_>) {
    let Fetch { conn: id, wish, .. } = *fetch;
    // nats-server removes messages by empty ones.
    if message.body.is_empty() {
        return;
    }
    let Some(topic) = headers::value(message.headers, TOPIC) else { return };
    let flags = headers::value(message.headers, FLAGS).unwrap_or_default();
    let flags = str::from_utf8(flags).ok().and_then(|text| u8::from_str_radix(text, 16).ok());
    let qos = (flags.unwrap_or(0) >> 1 & 3).min(wish.qos).min(2);
    if wish.is_reserved && topic.first() == Some(&b'$') {
        return;
    }
    let source = headers::value(message.headers, SOURCE).unwrap_or_default();
    if !may_still(core, source, topic) || !may_hear(core, id, topic) {
        return;
    }
    if qos == 2 && core.settings.mqtt.as_ref().is_some_and(|mqtt| mqtt.rejects_qos2) {
        return;
    }
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    let Some(client) = client else { return };
    let packet =
        if qos > 0 { client.session.flights.begin_retained(&fetch.sid, qos) } else { Some(0) };
    // With all packet ids in use nothing more can be on its way.
    let Some(packet) = packet else { return };
    let packet =
        MqttPublish { topic, id: packet, qos, dup: false, retain: true, payload: message.body };
    core.reply(id, |out| packet.write(out));
    if let Some(conn) = core.conns.get_mut(id) {
        conn.traffic.out_msgs += 1;
        conn.traffic.out_bytes += message.body.len() as u64;
    }
}

/// Whether a client may hear of a topic: its filter may be wider than what is denied.
fn may_hear(core: &Core, id: ConnId, topic: &[u8]) -> bool {
    let permissions = core.conns.get(id).and_then(|conn| conn.permissions());
    let subject = topic::subject_of_topic(topic);
    match (permissions, subject) {
        (Some(permissions), Some(subject)) => permissions.may_receive(&subject, None),
        _ => true,
    }
}

/// Whether the user who has published a message may still do so, by the configuration of now.
fn may_still(core: &Core, user: &[u8], shown: &[u8]) -> bool {
    let Ok(user) = str::from_utf8(user) else { return true };
    let login = core.settings.auth.logins.users.get(user);
    let permissions = login.and_then(|login| login.user.permissions.as_ref());
    let subject = topic::subject_of_topic(shown);
    match (permissions, subject) {
        (Some(permissions), Some(subject)) => permissions.may_publish(&subject),
        _ => true,
    }
}

/// Ends the sending of retained messages for one subject, and deletes the consumer.
pub(super) fn end(mqtt: &mut Mqtt, core: &mut Core, number: u64) {
    let Some(fetch) = mqtt.fetches.all.remove(&number) else { return };
    let rest = format!("CONSUMER.DELETE.{}.{}", streams::RETAINED, fetch.name);
    let subject = requests::api(core, &rest);
    let request = MqttRequest { subject: &subject, ..MqttRequest::default() };
    requests::ask(
        mqtt,
        core,
        MqttHolder { conn: fetch.conn, account: fetch.account },
        MqttAsk::Nothing,
        &request,
    );
    subscribe::on_fetched(mqtt, core, fetch.conn);
}
