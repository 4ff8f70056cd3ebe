//! Packets as the log shows them when everything is traced: without payloads and credentials.

use crate::api::time;
use crate::proto::mqtt::{MqttConnect, MqttFilters, MqttPacket, MqttPublish, connect, topic};

/// Nanoseconds of one and a half seconds.
const SILENCE_NS: u64 = 1_500_000_000;

/// Returns a packet of a client.
pub(crate) fn packet(packet: &MqttPacket<'_>) -> String {
    match packet {
        MqttPacket::Connect(body) => match connect::parse(body) {
            Ok(connect) => format!("CONNECT {}", of_connect(&connect)),
            Err(_) => "CONNECT".to_owned(),
        },
        MqttPacket::Publish(it) => of_publish(it),
        MqttPacket::PubAck(id) => format!("PUBACK pi={id}"),
        MqttPacket::PubRec(id) => format!("PUBREC pi={id}"),
        MqttPacket::PubRel(id) => format!("PUBREL pi={id}"),
        MqttPacket::PubComp(id) => format!("PUBCOMP pi={id}"),
        MqttPacket::Subscribe(all) => format!("SUBSCRIBE [{}] pi={}", filters(*all, true), all.id),
        MqttPacket::Unsubscribe(all) => {
            format!("UNSUBSCRIBE [{}] pi={}", filters(*all, false), all.id)
        }
        MqttPacket::PingReq => "PINGREQ".to_owned(),
        MqttPacket::Disconnect => "DISCONNECT".to_owned(),
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn of_connect(connect: &MqttConnect<'_>) -> String {
    let mut shown = format!("clientID={}", text(connect.id.as_bytes()));
    if connect.keep_alive_s > 0 {
        let silence = u64::from(connect.keep_alive_s) * SILENCE_NS;
        shown.push_str(&format!(" keepAlive={}", time::duration(silence)));
    }
    if let Some(will) = &connect.will {
        let (topic, qos, retain) = (text(will.topic), will.qos, will.retain);
        shown.push_str(&format!(" will=(topic={topic} QoS={qos} retain={retain})"));
    }
    if connect.is_clean {
        shown.push_str(" clean");
    }
    if let Some(user) = connect.user {
        shown.push_str(&format!(" username={}", text(user.as_bytes())));
    }
    if connect.password.is_some_and(|password| !password.is_empty()) {
        shown.push_str(" password=****");
    }
    shown
}

/// Returns a message, in whichever direction it goes.
pub(crate) fn of_publish(it: &MqttPublish<'_>) -> String {
    let (topic, size) = (text(it.topic), it.payload.len());
    let MqttPublish { id, qos, retain, dup, .. } = it;
    let id = if *id > 0 { format!(" pi={id}") } else { String::new() };
    format!("PUBLISH {topic} dup={dup} QoS={qos} retain={retain} size={size}{id}")
}

fn filters(all: MqttFilters<'_>, has_qos: bool) -> String {
    let shown: Vec<String> = all
        .map(|(filter, qos)| {
            let subject = topic::subject_of_filter(filter).unwrap_or_default();
            let qos = if has_qos { format!(" QoS={qos}") } else { String::new() };
            format!("{} ({}){qos}", text(filter), text(&subject))
        })
        .collect();
    shown.join(", ")
}

/// Returns a packet for a client that is no message.
pub(crate) fn answer(packet: &[u8]) -> String {
    let id = |at: usize| match packet.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    let name = match packet.first().map_or(0, |first| first >> 4) {
        2 => {
            let (present, code) = (packet.get(2) == Some(&1), packet.get(3).unwrap_or(&0));
            return format!("CONNACK sp={present} rc={code}");
        }
        4 => "PUBACK",
        5 => "PUBREC",
        6 => "PUBREL",
        7 => "PUBCOMP",
        // A long one has more bytes of length.
        9 => {
            let more = packet[1..].iter().take_while(|byte| **byte & 0x80 != 0).count();
            return format!("SUBACK pi={}", id(2 + more));
        }
        11 => "UNSUBACK",
        _ => return "PINGRESP".to_owned(),
    };
    format!("{name} pi={}", id(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mqtt::{self, ConnectCode, Framed, PacketLimits};

    fn shown(bytes: &[u8]) -> String {
        let limits = PacketLimits { bytes_max: 1000, is_first: false };
        let Ok(Framed::Packet { packet: found, .. }) = mqtt::parse(bytes, limits) else { panic!() };
        packet(&found)
    }

    #[test]
    fn packets_are_shown_as_nats_server_shows_them() {
        let connect =
            b"\x10\x23\0\x04MQTT\x04\xcc\0\x1e\0\x04dev1\0\x06will/t\0\x03bye\0\x01u\0\x01p";
        assert_eq!(
            shown(connect),
            "CONNECT clientID=dev1 keepAlive=45s will=(topic=will/t QoS=1 retain=false) \
             username=u password=****"
        );
        assert_eq!(
            shown(b"\x82\x0d\0\x01\0\x03a/+\x01\0\x02/b\x02"),
            "SUBSCRIBE [a/+ (a.*) QoS=1, /b (/.b) QoS=2] pi=1"
        );
        assert_eq!(shown(b"\xa2\x05\0\x02\0\x01a"), "UNSUBSCRIBE [a (a)] pi=2");
        assert_eq!(
            shown(b"\x3b\x06\0\x01a\0\x07x"),
            "PUBLISH a dup=true QoS=1 retain=true size=1 pi=7"
        );
        assert_eq!(shown(b"\x30\x03\0\x01a"), "PUBLISH a dup=false QoS=0 retain=false size=0");
        assert_eq!(
            (shown(b"\xc0\0"), shown(b"\x62\x02\0\x09")),
            ("PINGREQ".into(), "PUBREL pi=9".into())
        );
    }

    #[test]
    fn answers_are_shown_as_nats_server_shows_them() {
        assert_eq!(answer(&mqtt::connack(ConnectCode::Accepted, true)), "CONNACK sp=true rc=0");
        assert_eq!(answer(&mqtt::puback(258)), "PUBACK pi=258");
        assert_eq!(answer(&mqtt::suback(3, &[0; 200])), "SUBACK pi=3");
        assert_eq!(answer(&mqtt::suback(3, &[0])), "SUBACK pi=3");
        assert_eq!(answer(&mqtt::unsuback(4)), "UNSUBACK pi=4");
        assert_eq!(answer(&mqtt::PINGRESP), "PINGRESP");
    }
}
