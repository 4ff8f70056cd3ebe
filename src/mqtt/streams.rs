//! The streams of an account that keep the state of MQTT.

use serde_json::{Value, json};

use super::requests::{self, ApiReply, MqttAsk, MqttHolder, MqttRequest, STREAM_EXISTS};
use super::{Mqtt, open};
use crate::core::Core;
use crate::interest::ids::{AccountId, ConnId};

pub(super) const MESSAGES: &str = "$MQTT_msgs";
pub(super) const SESSIONS: &str = "$MQTT_sess";
pub(super) const RETAINED: &str = "$MQTT_rmsgs";
pub(super) const QOS2_IN: &str = "$MQTT_qos2in";
pub(super) const RELEASES: &str = "$MQTT_out";

/// The streams of an account.
#[derive(Debug)]
pub(super) enum AccountStreams {
    /// All are there.
    Ready,
    /// Some are being made.
    Making {
        /// Requests without an answer.
        left: usize,
        /// Connections whose sessions wait for the streams.
        waiting: Vec<ConnId>,
        /// The first fault.
        fault: Option<String>,
    },
}

/// Goes on when the streams of the account are there, which are made if need be.
pub(super) fn need(mqtt: &mut Mqtt, core: &mut Core, account: AccountId, conn: ConnId) {
    match mqtt.streams.get_mut(&account) {
        Some(AccountStreams::Ready) => return open::load(mqtt, core, conn),
        Some(AccountStreams::Making { waiting, .. }) => return waiting.push(conn),
        None => {}
    }
    let wanted = configs(core);
    let making = AccountStreams::Making { left: wanted.len(), waiting: vec![conn], fault: None };
    mqtt.streams.insert(account, making);
    for (name, config) in wanted {
        let subject = requests::api(core, &format!("STREAM.CREATE.{name}"));
        let body = config.to_string();
        let request = MqttRequest { subject: &subject, body: body.as_bytes(), headers: b"" };
        requests::ask(mqtt, core, MqttHolder { conn, account }, MqttAsk::Stream, &request);
    }
}

/// Returns the configurations of the streams, by name.
fn configs(core: &Core) -> Vec<(&'static str, Value)> {
    let replicas = core.settings.mqtt.as_ref().map_or(0, |mqtt| mqtt.replicas).max(1);
    let sessions = format!("{}>", open::sessions_prefix(core));
    let of = |name: &str, subject: &str, more: Value| {
        let mut config = json!({
            "name": name, "subjects": [subject], "storage": "file", "retention": "limits",
            "num_replicas": replicas,
        });
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        config
    };
    let last_only = || json!({ "max_msgs_per_subject": 1 });
    let while_wanted = || json!({ "retention": "interest" });
    let once = json!({
        "max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": true,
    });
    vec![
        (SESSIONS, of(SESSIONS, &sessions, last_only())),
        (MESSAGES, of(MESSAGES, "$MQTT.msgs.>", while_wanted())),
        (QOS2_IN, of(QOS2_IN, "$MQTT.qos2.in.>", once)),
        (RELEASES, of(RELEASES, "$MQTT.out.>", while_wanted())),
        (RETAINED, of(RETAINED, "$MQTT.rmsgs.>", last_only())),
    ]
}

/// Takes the answer about a stream.
pub(super) fn on_made(mqtt: &mut Mqtt, core: &mut Core, account: AccountId, reply: &ApiReply) {
    let Some(AccountStreams::Making { left, fault, .. }) = mqtt.streams.get_mut(&account) else {
        return;
    };
    *left -= 1;
    // Whoever has made the stream before has had reasons for its configuration.
    if !reply.is_ok() && reply.code() != STREAM_EXISTS {
        fault.get_or_insert_with(|| reply.text().to_owned());
    }
    if *left > 0 {
        return;
    }
    let Some(AccountStreams::Making { waiting, fault, .. }) = mqtt.streams.remove(&account) else {
        return;
    };
    if let Some(fault) = fault {
        for conn in waiting {
            requests::end(core, conn, &fault);
        }
        return;
    }
    mqtt.streams.insert(account, AccountStreams::Ready);
    for conn in waiting {
        open::load(mqtt, core, conn);
    }
}
