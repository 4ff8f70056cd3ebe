//! MQTT 3.1.1: the packets of clients, and those for them. `topic` maps topics and subjects.

pub mod connect;
pub mod topic;

use core::fmt;

pub use connect::{ConnectFault, MqttConnect, MqttWill};

/// Bytes of a fixed header, at most.
const FIXED_HEADER_BYTES_MAX: usize = 5;
/// Filters of one SUBSCRIBE or UNSUBSCRIBE, at most.
pub const FILTERS_MAX: usize = 4096;

/// The first four bits of a packet.
mod kind {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const PUBLISH: u8 = 3;
    pub(super) const PUBACK: u8 = 4;
    pub(super) const PUBREC: u8 = 5;
    pub(super) const PUBREL: u8 = 6;
    pub(super) const PUBCOMP: u8 = 7;
    pub(super) const SUBSCRIBE: u8 = 8;
    pub(super) const UNSUBSCRIBE: u8 = 10;
    pub(super) const PINGREQ: u8 = 12;
    pub(super) const DISCONNECT: u8 = 14;
}

/// A violation of the protocol, which ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MqttError(pub &'static str);

impl fmt::Display for MqttError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A level of service: 0 at most once, 1 at least once, 2 exactly once.
pub type Qos = u8;

/// A packet of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttPacket<'a> {
    /// CONNECT; [`connect::parse`] reads its body.
    Connect(&'a [u8]),
    /// A message.
    Publish(MqttPublish<'a>),
    /// The end of a delivery of QoS 1.
    PubAck(u16),
    /// The first answer to a delivery of QoS 2.
    PubRec(u16),
    /// The release of a message of QoS 2.
    PubRel(u16),
    /// The end of a delivery of QoS 2.
    PubComp(u16),
    /// Filters to subscribe to.
    Subscribe(MqttFilters<'a>),
    /// Filters to unsubscribe from.
    Unsubscribe(MqttFilters<'a>),
    /// A request for PINGRESP.
    PingReq,
    /// The orderly end.
    Disconnect,
}

/// A PUBLISH, of a client or for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MqttPublish<'a> {
    /// The topic: valid UTF-8 without a NUL, not empty.
    pub topic: &'a [u8],
    /// The packet's id; without effect with QoS 0, and 0 if it was read.
    pub id: u16,
    /// The level of service.
    pub qos: Qos,
    /// Whether the message may have been sent before.
    pub dup: bool,
    /// Whether the message is to be retained.
    pub retain: bool,
    /// The payload.
    pub payload: &'a [u8],
}

/// The filters of a SUBSCRIBE or UNSUBSCRIBE, at least one, all well-formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MqttFilters<'a> {
    /// The packet's id.
    pub id: u16,
    /// Whether each filter has a QoS.
    has_qos: bool,
    rest: &'a [u8],
}

impl<'a> Iterator for MqttFilters<'a> {
    type Item = (&'a [u8], Qos);

    fn next(&mut self) -> Option<Self::Item> {
        let (filter, rest) = split_text(self.rest)?;
        let (qos, rest) = match self.has_qos {
            true => rest.split_first()?,
            false => (&0, rest),
        };
        self.rest = rest;
        Some((filter, *qos))
    }
}

/// The beginning of some input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framed<'a> {
    /// A packet of so many bytes.
    Packet {
        /// The packet.
        packet: MqttPacket<'a>,
        /// Bytes of the packet.
        used: usize,
    },
    /// A packet that is whole with so many bytes.
    Needs(usize),
}

/// Bounds of a packet.
#[derive(Debug, Clone, Copy)]
pub struct PacketLimits {
    /// Bytes of the packet, at most.
    pub bytes_max: usize,
    /// Whether the packet has to be a CONNECT.
    pub is_first: bool,
}

/// Reads the packet that `bytes` begin with.
///
/// # Errors
///
/// Returns an error if the bytes break the protocol or the bounds.
pub fn parse(bytes: &[u8], limits: PacketLimits) -> Result<Framed<'_>, MqttError> {
    let Some(&first) = bytes.first() else { return Ok(Framed::Needs(2)) };
    check_first(first, limits.is_first)?;
    let (mut len, mut at) = (0usize, 1);
    loop {
        let Some(&byte) = bytes.get(at) else { return Ok(Framed::Needs(at + 1)) };
        len |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if at == FIXED_HEADER_BYTES_MAX {
            return Err(MqttError("remaining length has more than four bytes"));
        }
    }
    check_len(first >> 4, len)?;
    if at + len > limits.bytes_max {
        return Err(MqttError("Maximum Payload Violation"));
    }
    match bytes.get(at..at + len) {
        Some(body) => Ok(Framed::Packet { packet: packet(first, body)?, used: at + len }),
        None => Ok(Framed::Needs(at + len)),
    }
}

/// Checks the first byte of a packet: its kind, and the flags that are fixed.
fn check_first(first: u8, is_first: bool) -> Result<(), MqttError> {
    let (kind, flags) = (first >> 4, first & 15);
    if is_first && kind != kind::CONNECT {
        return Err(MqttError("the first packet is not CONNECT"));
    }
    let wanted = match kind {
        kind::PUBLISH if flags & 6 == 6 => return Err(MqttError("QoS 3 in PUBLISH")),
        kind::PUBLISH => flags,
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 2,
        kind::CONNECT
        | kind::PUBACK
        | kind::PUBREC
        | kind::PUBCOMP
        | kind::PINGREQ
        | kind::DISCONNECT => 0,
        _ => return Err(MqttError("unknown packet")),
    };
    if flags == wanted { Ok(()) } else { Err(MqttError("invalid flags")) }
}

/// Checks the length of packets that have a fixed one.
fn check_len(kind: u8, len: usize) -> Result<(), MqttError> {
    let is_right = match kind {
        kind::PUBACK | kind::PUBREC | kind::PUBREL | kind::PUBCOMP => len == 2,
        kind::PINGREQ | kind::DISCONNECT => len == 0,
        _ => true,
    };
    if is_right { Ok(()) } else { Err(MqttError("invalid remaining length")) }
}

fn packet(first: u8, body: &[u8]) -> Result<MqttPacket<'_>, MqttError> {
    Ok(match first >> 4 {
        kind::CONNECT => MqttPacket::Connect(body),
        kind::PUBLISH => MqttPacket::Publish(publish(first & 15, body)?),
        kind::PUBACK => MqttPacket::PubAck(packet_id(body)?.0),
        kind::PUBREC => MqttPacket::PubRec(packet_id(body)?.0),
        kind::PUBREL => MqttPacket::PubRel(packet_id(body)?.0),
        kind::PUBCOMP => MqttPacket::PubComp(packet_id(body)?.0),
        kind::SUBSCRIBE => MqttPacket::Subscribe(filters(body, true)?),
        kind::UNSUBSCRIBE => MqttPacket::Unsubscribe(filters(body, false)?),
        kind::PINGREQ => MqttPacket::PingReq,
        _ => MqttPacket::Disconnect,
    })
}

fn publish(flags: u8, body: &[u8]) -> Result<MqttPublish<'_>, MqttError> {
    let (topic, rest) = split_text(body).ok_or(MqttError("topic cut short"))?;
    check_text(topic)?;
    if topic.is_empty() {
        return Err(MqttError("topic is empty"));
    }
    let qos = flags >> 1 & 3;
    let (id, payload) = if qos == 0 { (0, rest) } else { packet_id(rest)? };
    let (dup, retain) = (flags & 8 == 8, flags & 1 == 1);
    Ok(MqttPublish { topic, id, qos, dup, retain, payload })
}

fn filters(body: &[u8], has_qos: bool) -> Result<MqttFilters<'_>, MqttError> {
    let (id, rest) = packet_id(body)?;
    let filters = MqttFilters { id, has_qos, rest };
    let (mut walked, mut count) = (filters, 0);
    while !walked.rest.is_empty() {
        let (filter, qos) = walked.next().ok_or(MqttError("filter cut short"))?;
        check_text(filter)?;
        if filter.is_empty() {
            return Err(MqttError("filter is empty"));
        }
        if qos > 2 {
            return Err(MqttError("QoS over 2 in SUBSCRIBE"));
        }
        count += 1;
    }
    match count {
        0 => Err(MqttError("no filter")),
        count if count > FILTERS_MAX => Err(MqttError("too many filters in one packet")),
        _ => Ok(filters),
    }
}

fn packet_id(body: &[u8]) -> Result<(u16, &[u8]), MqttError> {
    match split_u16(body) {
        Some((0, _)) => Err(MqttError("packet id 0")),
        Some(parts) => Ok(parts),
        None => Err(MqttError("packet id cut short")),
    }
}

fn split_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// Splits off a text that its length in two bytes comes before.
fn split_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = split_u16(bytes)?;
    rest.split_at_checked(usize::from(len))
}

fn check_text(text: &[u8]) -> Result<(), MqttError> {
    if core::str::from_utf8(text).is_err() {
        return Err(MqttError("invalid UTF-8"));
    }
    if text.contains(&0) { Err(MqttError("NUL in a text")) } else { Ok(()) }
}

impl MqttPublish<'_> {
    /// Appends the packet; one that no client can read is left out.
    pub fn write(&self, out: &mut Vec<u8>) {
        /// The highest remaining length.
        const LEN_MAX: usize = 0x0fff_ffff;
        let len = 2 + self.topic.len() + self.payload.len() + if self.qos > 0 { 2 } else { 0 };
        let Ok(topic_len) = u16::try_from(self.topic.len()) else { return };
        if len > LEN_MAX {
            return;
        }
        let flags = u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain);
        out.reserve(len + FIXED_HEADER_BYTES_MAX);
        out.push(kind::PUBLISH << 4 | flags);
        write_len(out, len);
        out.extend_from_slice(&topic_len.to_be_bytes());
        out.extend_from_slice(self.topic);
        if self.qos > 0 {
            out.extend_from_slice(&self.id.to_be_bytes());
        }
        out.extend_from_slice(self.payload);
    }
}

fn write_len(out: &mut Vec<u8>, mut len: usize) {
    loop {
        let [byte, ..] = (len & 0x7f).to_le_bytes();
        len >>= 7;
        if len == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

/// A return code of CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectCode {
    /// The connection is accepted.
    Accepted = 0,
    /// The protocol's level is not 4.
    WrongLevel = 1,
    /// The client id is not allowed.
    WrongId = 2,
    /// The user name is malformed.
    WrongUser = 4,
    /// The credentials are refused.
    NotAuthorized = 5,
    /// A will of QoS 2 where such publishes are rejected.
    Qos2Will = 16,
}

/// Returns CONNACK.
pub fn connack(code: ConnectCode, is_present: bool) -> [u8; 4] {
    [0x20, 2, u8::from(is_present), code as u8]
}

/// Returns PUBACK for a packet.
pub fn puback(id: u16) -> [u8; 4] {
    answer(kind::PUBACK << 4, id)
}

/// Returns PUBREC for a packet.
pub fn pubrec(id: u16) -> [u8; 4] {
    answer(kind::PUBREC << 4, id)
}

/// Returns PUBREL for a packet.
pub fn pubrel(id: u16) -> [u8; 4] {
    answer(kind::PUBREL << 4 | 2, id)
}

/// Returns PUBCOMP for a packet.
pub fn pubcomp(id: u16) -> [u8; 4] {
    answer(kind::PUBCOMP << 4, id)
}

/// Returns UNSUBACK for a packet.
pub fn unsuback(id: u16) -> [u8; 4] {
    answer(0xb0, id)
}

fn answer(first: u8, id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [first, 2, high, low]
}

/// PINGRESP.
pub const PINGRESP: [u8; 2] = [0xd0, 0];

/// Returns SUBACK for a packet, with a code for each of its filters.
pub fn suback(id: u16, codes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x90];
    write_len(&mut out, 2 + codes.len());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(codes);
    out
}

/// The code of a filter that is refused.
pub const REFUSED: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PacketLimits = PacketLimits { bytes_max: 1000, is_first: false };

    fn refusal(bytes: &[u8]) -> &'static str {
        parse(bytes, LIMITS).expect_err("it breaks the protocol").0
    }

    #[test]
    fn where_tcp_cuts_a_packet_never_matters() {
        let samples: [&[u8]; 6] = [
            b"\x30\x04\0\x01ax",
            b"\x34\x06\0\x01a\0\x07x",
            b"\x82\x0a\0\x01\0\x01a\0\0\x01b\x02",
            b"\xa2\x05\0\x01\0\x01a",
            b"\x62\x02\x12\x34",
            b"\xc0\0",
        ];
        for sample in samples {
            let Ok(Framed::Packet { packet, used }) = parse(sample, LIMITS) else {
                panic!("{sample:?}")
            };
            assert_eq!(used, sample.len(), "{packet:?}");
            for cut in 0..sample.len() {
                let Ok(Framed::Needs(need)) = parse(&sample[..cut], LIMITS) else { panic!() };
                assert!(need > cut && need <= sample.len().max(2), "{cut}: {need}");
            }
        }
    }

    #[test]
    fn parts_of_packets_are_where_the_standard_has_them() {
        let Ok(Framed::Packet { packet: MqttPacket::Publish(publish), .. }) =
            parse(b"\x3d\x07\0\x02a/\x12\x34x", LIMITS)
        else {
            panic!()
        };
        let wanted = MqttPublish {
            topic: b"a/",
            id: 0x1234,
            qos: 2,
            dup: true,
            retain: true,
            payload: b"x",
        };
        assert_eq!(publish, wanted);
        let Ok(Framed::Packet { packet: MqttPacket::Subscribe(filters), .. }) =
            parse(b"\x82\x0a\0\x01\0\x01a\0\0\x01b\x02", LIMITS)
        else {
            panic!()
        };
        assert_eq!(filters.id, 1);
        assert_eq!(filters.collect::<Vec<_>>(), [(&b"a"[..], 0), (b"b", 2)]);
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        for (bytes, why) in [
            (&b"\x36\x05\0\x01a\0\x01"[..], "QoS 3 in PUBLISH"),
            (b"\x32\x05\0\x01a\0\0", "packet id 0"),
            (b"\x82\x02\0\x01", "no filter"),
            (b"\x80\x06\0\x01\0\x01a\0", "invalid flags"),
            (b"\xf0\0", "unknown packet"),
            (b"\x30\xff\xff\xff\xff\x01", "remaining length has more than four bytes"),
            (b"\x82\x06\0\x01\0\x01a\x03", "QoS over 2 in SUBSCRIBE"),
            (b"\x30\x02\0\0", "topic is empty"),
            (b"\xc0\x01x", "invalid remaining length"),
            (b"\x40\x03\0\x01x", "invalid remaining length"),
            (b"\x30\x03\0\x01\xff", "invalid UTF-8"),
            (b"\x30\x03\0\x01\0", "NUL in a text"),
            (b"\x30\x03\0\x02a", "topic cut short"),
            (b"\x82\x05\0\x01\0\x01a", "filter cut short"),
            (b"\x30\xe6\x07", "Maximum Payload Violation"),
        ] {
            assert_eq!(refusal(bytes), why, "{bytes:?}");
        }
        let first = PacketLimits { is_first: true, ..LIMITS };
        assert_eq!(parse(b"\xc0", first), Err(MqttError("the first packet is not CONNECT")));
        assert_eq!(parse(b"G", first), Err(MqttError("the first packet is not CONNECT")));
    }

    #[test]
    fn a_message_is_read_back_as_it_was_written() {
        for (qos, len) in [(0, 0), (1, 121), (2, 16_384)] {
            let payload = vec![b'x'; len];
            let packet = MqttPublish {
                topic: b"a/b",
                id: 7,
                qos,
                dup: false,
                retain: true,
                payload: &payload,
            };
            let mut out = Vec::new();
            packet.write(&mut out);
            let limits = PacketLimits { bytes_max: 1 << 20, is_first: false };
            let Ok(Framed::Packet { packet: MqttPacket::Publish(read), used }) =
                parse(&out, limits)
            else {
                panic!()
            };
            assert_eq!(used, out.len());
            let id = if qos == 0 { 0 } else { 7 };
            let (topic, payload) = (&b"a/b"[..], &payload[..]);
            let wanted = MqttPublish { topic, id, qos, dup: false, retain: true, payload };
            assert_eq!(read, wanted);
        }
    }
}
