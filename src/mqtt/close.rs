//! What is left to do when the connection of a client has ended: the will, and the session.

use super::open::SessionNews;
use super::requests::{self, MqttAsk, MqttHolder, MqttRequest};
use super::retained::{self, Kept};
use super::{ClientKey, Mqtt, open, streams};
use crate::auth::grants::is_reserved_subject;
use crate::core::Core;
use crate::delivery::inside::{self, InnerMessage};
use crate::proto::mqtt::topic;
use crate::session::{ClientPhase, EndedClient, KeptWill, MESSAGE_PREFIX, publish_headers};

pub(super) fn on_ended(mqtt: &mut Mqtt, core: &mut Core, mut ended: EndedClient) {
    let (id, account) = (ended.conn, ended.account);
    mqtt.works.remove(&id);
    mqtt.resumed.remove(&id);
    let key = ClientKey { account, id: ended.client.id.clone() };
    if mqtt.clients.get(&key) == Some(&id) {
        mqtt.clients.remove(&key);
    }
    if ended.client.phase != ClientPhase::In {
        return;
    }
    if let Some(will) = ended.client.will.take() {
        send_will(mqtt, core, &ended, &will);
    }
    let session = &ended.client.session;
    if !ended.client.is_clean {
        // What comes again has to come with the same packet ids, also to whoever takes over.
        if (session.flights.are_kept() || session.has_stored_flights)
            && let Some(news) = SessionNews::of(core, &ended.client)
        {
            news.store(mqtt, core, MqttHolder { conn: id, account }, MqttAsk::Nothing);
        }
        return;
    }
    // Whoever has taken over does the rest.
    if ended.client.is_taken_over {
        return;
    }
    open::clear(mqtt, core, MqttHolder { conn: id, account }, session, &MqttAsk::Nothing);
    if session.sequence > 0 {
        let subject = requests::api(core, &format!("STREAM.MSG.DELETE.{}", streams::SESSIONS));
        let body = serde_json::json!({ "seq": session.sequence, "no_erase": true }).to_string();
        let request = MqttRequest { subject: &subject, headers: b"", body: body.as_bytes() };
        requests::ask(mqtt, core, MqttHolder { conn: id, account }, MqttAsk::Nothing, &request);
    }
}

/// Publishes the will of a client whose connection has broken.
fn send_will(mqtt: &mut Mqtt, core: &mut Core, ended: &EndedClient, will: &KeptWill) {
    let (id, account) = (ended.conn, ended.account);
    let Some(subject) = topic::subject_of_topic(&will.topic) else { return };
    let mappings = core.accounts.at(account).mappings.as_ref();
    let mapped = mappings.and_then(|mappings| mappings.map(&subject, &mut core.random.rng));
    let subject = mapped.as_ref().map_or(&subject[..], |mapped| &mapped.subject);
    let permissions = ended.user.as_ref().and_then(|user| user.permissions.as_ref());
    let is_reserved = is_reserved_subject(subject, core.accounts.system == Some(account));
    if is_reserved || permissions.is_some_and(|permissions| !permissions.may_publish(subject)) {
        let (client, subject) = (&ended.client.id, crate::proto::encode::go_quoted(subject));
        return tracing::error!("MQTT client {client:?} - Publish Violation - Subject {subject}");
    }
    let headers = publish_headers(will.qos);
    let body = &will.payload;
    inside::publish(core, account, &InnerMessage { subject, reply: b"", headers: &headers, body });
    if will.retain {
        let user = ended.user.as_ref().and_then(|user| user.name.as_deref()).unwrap_or_default();
        let kept = Kept { subject, qos: will.qos, payload: body, user };
        retained::keep(mqtt, core, MqttHolder { conn: id, account }, &kept, MqttAsk::Nothing);
    }
    if will.qos > 0 {
        let subject = [MESSAGE_PREFIX.as_bytes(), subject].concat();
        let request = MqttRequest { subject: &subject, headers: &headers, body };
        requests::ask(mqtt, core, MqttHolder { conn: id, account }, MqttAsk::Nothing, &request);
    }
}
