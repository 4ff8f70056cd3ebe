//! MQTT 3.1.1 as far as a load generator needs it, without I/O.

use crate::fault::{Fault, Outcome};
use crate::wire::{Message, Scanned};
use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of packets: the upper half of the first byte.
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const PUBREL: u8 = 6;
const SUBACK: u8 = 9;
const PINGRESP: u8 = 13;

/// A packet that wants an answer, and nothing else.
pub(crate) const PING: &[u8] = &[0xc0, 0];

/// Begins a clean session with an id that no other has, and no keep-alive.
pub(crate) fn connect() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut body = text("MQTT");
    body.extend([4, 2, 0, 0]); // Version 3.1.1, a clean session, no keep-alive.
    body.extend(text(&format!("perf-{}-{number}", std::process::id())));
    packet(0x10, &body)
}

/// Subscribes to what `filter` says in NATS's words.
pub(crate) fn subscribe(filter: &str, qos: u8, id: u16) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(text(&topic(filter)));
    body.push(qos);
    packet(0x82, &body)
}

/// A PUBLISH up to its packet identifier, which it has from QoS 1 on; then comes the payload.
pub(crate) fn publish_head(subject: &str, qos: u8, payload_bytes: usize) -> Vec<u8> {
    let name = text(&topic(subject));
    let id_bytes = if qos > 0 { 2 } else { 0 };
    let mut head = vec![PUBLISH << 4 | qos << 1];
    push_length(name.len() + id_bytes + payload_bytes, &mut head);
    head.extend(name);
    head
}

/// A subject or filter in MQTT's words.
fn topic(subject: &str) -> String {
    let word = |c| match c {
        '.' => '/',
        '*' => '+',
        '>' => '#',
        other => other,
    };
    subject.chars().map(word).collect()
}

fn text(text: &str) -> Vec<u8> {
    let bytes = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&bytes.to_be_bytes(), text.as_bytes()].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    push_length(body.len(), &mut packet);
    packet.extend_from_slice(body);
    packet
}

fn push_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(length % 128).unwrap_or(0);
        length /= 128;
        out.push(low | if length > 0 { 128 } else { 0 });
        if length == 0 {
            return;
        }
    }
}

/// The length that follows the first byte, and how many bytes tell it; nothing when it is cut.
fn length(bytes: &[u8]) -> Outcome<Option<(usize, usize)>> {
    let mut length = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 127) << (7 * at);
        if byte & 128 == 0 {
            return Ok(Some((length, at + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(not_mqtt("a length without end")) }
}

/// Looks at the packet that `rest` begins with. Gives its bytes that have been seen, and those that
/// are still to be skipped; nothing when it has to be shown again with more behind it.
pub(crate) fn step(
    rest: &[u8],
    prefix_bytes: usize,
    seen: &mut Scanned,
    on_message: &mut impl FnMut(Message<'_>),
) -> Outcome<Option<[usize; 2]>> {
    let (kind, flags) = (rest[0] >> 4, rest[0] & 15);
    if kind != PUBLISH && flags != if kind == PUBREL { 2 } else { 0 } {
        return Err(not_mqtt("a packet with flags that its kind does not have"));
    }
    let Some((length, told)) = length(&rest[1..])? else { return Ok(None) };
    let head = 1 + told;
    if kind != PUBLISH {
        let Some(body) = rest.get(head..head + length) else { return Ok(None) };
        other(kind, body, seen)?;
        return Ok(Some([head + length, 0]));
    }
    let acked = rest[0] >> 1 & 3 > 0;
    let Some(name) = rest.get(head..head + 2) else { return Ok(None) };
    let id = head + 2 + usize::from(u16::from_be_bytes([name[0], name[1]]));
    let start = id + if acked { 2 } else { 0 };
    let Some(payload_bytes) = (head + length).checked_sub(start) else {
        return Err(not_mqtt("a topic longer than its packet"));
    };
    let shown = prefix_bytes.min(payload_bytes);
    let Some(prefix) = rest.get(start..start + shown) else { return Ok(None) };
    on_message(Message { line: &rest[..id], prefix });
    if acked {
        seen.owed.extend([PUBACK << 4, 2, rest[id], rest[id + 1]]);
    }
    Ok(Some([start, payload_bytes]))
}

fn other(kind: u8, body: &[u8], seen: &mut Scanned) -> Outcome<()> {
    let refused = |what: &str| {
        let cause = format!("the server refuses to {what} ({body:?})");
        Err(Fault::new(cause, "look into its log, and whether strangers may connect"))
    };
    match (kind, body) {
        (CONNACK, [_, 0]) | (PUBACK, [_, _]) | (PINGRESP, []) => seen.pongs += 1,
        (SUBACK, [_, _, granted @ ..]) if granted.iter().all(|granted| *granted < 3) => {}
        (CONNACK, _) => return refused("connect"),
        (SUBACK, _) => return refused("subscribe"),
        _ => return Err(not_mqtt(&format!("packet {kind} {body:?}"))),
    }
    Ok(())
}

fn not_mqtt(what: &str) -> Fault {
    let cause = format!("the server sent what is not MQTT ({what})");
    Fault::new(cause, "check {mqtt} in the server's command")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Dialect, Renderer, Scanner, Stamp};

    #[test]
    fn where_packets_are_cut_makes_no_difference() {
        let mut wire = vec![0x20, 2, 0, 0, 0x90, 3, 0, 1, 1];
        for (qos, payload_bytes) in [(0, 0), (1, 3), (0, 300), (1, 20_000)] {
            let mut renderer =
                Renderer::of(Dialect::Mqtt(qos), &["a.b".to_owned()], payload_bytes, 0);
            let before = wire.len();
            renderer.push(Stamp { intended_ns: 0x0102, publisher: 3, sequence: 4 }, &mut wire);
            assert_eq!(wire.len() - before, renderer.message_bytes());
        }
        wire.extend([0x40, 2, 0, 9, 0xd0, 0]);
        for cut in 0..wire.len().min(400) {
            let mut scanner = Scanner::of(Dialect::Mqtt(1), 2);
            let (mut held, mut prefixes) = (Vec::new(), Vec::new());
            let (mut owed, mut pongs) = (Vec::new(), 0);
            for part in [&wire[..cut], &wire[cut..]] {
                held.extend_from_slice(part);
                let seen = scanner.scan(&held, |m| prefixes.push(m.prefix.to_vec())).unwrap();
                held.drain(..seen.used);
                owed.extend(seen.owed);
                pongs += seen.pongs;
            }
            assert_eq!(prefixes, [vec![], vec![2, 1], vec![2, 1], vec![2, 1]], "cut at {cut}");
            assert_eq!(owed, [0x40, 2, 0, 1, 0x40, 2, 0, 1], "cut at {cut}");
            assert_eq!((pongs, held.len()), (3, 0), "cut at {cut}");
        }
    }

    #[test]
    fn a_refusal_and_what_is_no_mqtt_are_told() {
        let fault = |wire: &[u8]| {
            Scanner::of(Dialect::Mqtt(0), 0).scan(wire, |_| {}).unwrap_err().to_string()
        };
        assert!(fault(&[0x20, 2, 0, 5]).contains("connect"));
        assert!(fault(&[0x90, 3, 0, 1, 0x80]).contains("subscribe"));
        assert!(fault(b"INFO {}\r\n        ").contains("not MQTT"));
    }

    #[test]
    fn lengths_and_topics_are_those_of_the_specification() {
        for (bytes, told) in [(0, vec![0]), (127, vec![127]), (128, vec![128, 1])] {
            let mut out = Vec::new();
            push_length(bytes, &mut out);
            assert_eq!(out, told);
            assert_eq!(length(&told).unwrap(), Some((bytes, told.len())));
        }
        assert_eq!(topic("perf.*.>"), "perf/+/#");
        assert_eq!(subscribe("a.b", 1, 7), [0x82, 8, 0, 7, 0, 3, b'a', b'/', b'b', 1]);
    }
}
