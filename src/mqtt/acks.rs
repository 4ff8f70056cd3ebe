//! Packets that end deliveries to a client.

use super::requests::{self, MqttAsk, MqttHolder, MqttRequest};
use super::{Mqtt, reply};
use crate::api::headers;
use crate::core::Core;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::ids::{AccountId, ConnId};
use crate::proto::mqtt::pubrel;
use crate::session::flights::ReleaseId;
use crate::session::{RELEASE_HEADER, RELEASED_ACK_HEADER, Session};

/// Tells a consumer that a message was taken; an empty subject is that of none.
pub(super) fn acknowledge(core: &mut Core, account: AccountId, ack: &[u8]) {
    if !ack.is_empty() {
        let message = InnerMessage { subject: ack, reply: b"", headers: b"", body: b"" };
        inside::publish(core, account, &message);
    }
}

/// Acknowledges a message that is not sent: if the client has it, its PUBREL is forgotten only when
/// that is confirmed.
pub(super) fn on_unread(mqtt: &mut Mqtt, core: &mut Core, holder: MqttHolder, ack: &[u8]) {
    let client = core.conns.get(holder.conn).and_then(|conn| conn.mqtt.as_ref());
    match client.and_then(|client| client.session.landed(ack)) {
        Some(release) => settle(mqtt, core, holder.conn, release, ack),
        None => acknowledge(core, holder.account, ack),
    }
}

pub(super) fn on_puback(core: &mut Core, id: ConnId, packet: u16) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let account = conn.account;
    let ack = conn.mqtt.as_mut().and_then(|client| client.session.flights.end(packet));
    acknowledge(core, account, &ack.unwrap_or_default());
}

/// Stores a PUBREL, which the client gets until it answers. How its message is acknowledged is
/// stored with it: whoever opens the session after a crash does that before anything is delivered.
pub(super) fn on_pubrec(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, packet: u16) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let account = conn.account;
    let Some(client) = &mut conn.mqtt else { return };
    let session = &mut client.session;
    let has_releases = session.releases.is_some();
    let Some(ack) = session.flights.ack_of_exact(packet).filter(|_| has_releases) else {
        // Nothing here needs the packet any more; the client does.
        return reply(core, id, &pubrel(packet));
    };
    let mut headers = format!("NATS/1.0\r\n{RELEASE_HEADER}:{packet}\r\n\r\n").into_bytes();
    if !ack.is_empty() {
        headers::add(&mut headers, RELEASED_ACK_HEADER, ack);
    }
    if session.flights.is_releasing(packet) {
        return; // Its PUBREL goes when it is stored.
    }
    session.flights.release(packet);
    let subject = release_subject(session);
    let request = MqttRequest { subject: subject.as_bytes(), headers: &headers, body: b"" };
    let holder = MqttHolder { conn: id, account };
    requests::ask(mqtt, core, holder, MqttAsk::Released(packet), &request);
}

/// Returns the subject of the PUBRELs of a session.
pub(super) fn release_subject(session: &Session) -> String {
    format!("$MQTT.out.pubrel.{}", session.hash)
}

/// Ends the delivery of a message whose PUBREL is stored.
pub(super) fn on_released(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, packet: u16) {
    if let Some(client) = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut()) {
        client.session.flights.land(packet);
    }
    settle_stored(mqtt, core, id, packet);
}

/// Has a consumer confirm that a message was taken, whose PUBREL is not forgotten before.
pub(super) fn settle(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, release: ReleaseId, ack: &[u8]) {
    let Some(conn) = core.conns.get(id) else { return };
    let (account, client) = (conn.account, conn.mqtt.as_ref());
    let has_consumer = client.is_some_and(|client| client.session.delivery_of(ack).is_some());
    let holder = MqttHolder { conn: id, account };
    if inside::has_receivers(core, account, ack, None) && !ack.is_empty() {
        let request = MqttRequest { subject: ack, ..MqttRequest::default() };
        requests::ask(mqtt, core, holder, MqttAsk::Settled(release), &request);
    } else if has_consumer {
        // The member of the cluster that has the consumer cannot be reached now.
        requests::watch(mqtt, core, holder, MqttAsk::Settled(release));
    } else {
        // Without its consumer the message does not come again.
        on_settled(core, id, &release);
    }
}

/// Has a consumer confirm that the message with a packet id was taken, whose PUBREL is stored.
fn settle_stored(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, packet: u16) {
    let client = core.conns.get(id).and_then(|conn| conn.mqtt.as_ref());
    let unsettled = client.and_then(|client| client.session.flights.unsettled(packet));
    match unsettled.map(|(release, ack)| (release, Box::<[u8]>::from(ack))) {
        Some((release, ack)) => settle(mqtt, core, id, release, &ack),
        None => on_settled(core, id, &ReleaseId::alone(packet)),
    }
}

/// Asks a consumer again that has not confirmed in time: with a PUBREL that is forgotten too early
/// the message would be taken twice.
pub(super) fn settle_again(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, release: &ReleaseId) {
    let client = core.conns.get(id).and_then(|conn| conn.mqtt.as_ref());
    let unsettled = client.and_then(|client| client.session.flights.unsettled(release.packet));
    match unsettled.map(|(found, ack)| (found == *release, Box::<[u8]>::from(ack))) {
        Some((true, ack)) => settle(mqtt, core, id, release.clone(), &ack),
        // Another message has the packet id now.
        Some((false, _)) => {}
        None => on_settled(core, id, release),
    }
}

/// Notes that the consumer of a message has confirmed that it was taken, or is gone.
pub(super) fn on_settled(core: &mut Core, id: ConnId, release: &ReleaseId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let account = conn.account;
    let ack = conn.mqtt.as_mut().and_then(|client| client.session.flights.settle(release));
    acknowledge(core, account, &ack.unwrap_or_default());
}

pub(super) fn on_pubcomp(core: &mut Core, id: ConnId, packet: u16) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let account = conn.account;
    let ack = conn.mqtt.as_mut().and_then(|client| client.session.flights.complete(packet));
    acknowledge(core, account, &ack.unwrap_or_default());
}
