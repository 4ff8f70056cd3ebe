//! Messages for clients of MQTT: a run becomes PUBLISH packets in the outbox of the client.
//!
//! A subscription is live, and takes what is published as QoS 0; or it is that of a consumer, and
//! takes stored messages of QoS 1 and 2 with packet ids. A client with filters of QoS 1 and 2 has
//! both, and each message comes one way only.
//!
//! Packets of QoS 0 are equal for all clients: a run is written once ([`RunPackets`]), and copied
//! to its receivers or shared by them.

use crate::api::headers;
use crate::consumer::AckSubject;
use crate::core::Core;
use crate::core::conn::Conn;
use crate::delivery::deliver;
use crate::interest::ids::Publisher;
use crate::interest::taps::TapId;
use crate::interest::targets::Member;
use crate::output::{Outbox, Segment, Spares};
use crate::proto::mqtt::{MqttPublish, Qos, pubrel, topic};
use crate::proto::{Publish, route};
use crate::run::{COPY_RUN_BYTES_MAX, Content, Message, Run};
use crate::session::flights::{ConsumerDelivery, FlightId, ReleaseWay};
use crate::session::{Arrival, MESSAGE_PREFIX, RELEASE_HEADER, published_qos, released_ack, trace};

/// The messages that a live subscription takes.
#[derive(Debug, Clone, Copy)]
struct LiveWish {
    /// Whether it takes messages that have a QoS: else a consumer delivers them.
    takes_qos: bool,
    /// Whether it takes topics that begin with `$`.
    takes_system: bool,
}

/// The packets of a run with QoS 0, each written for the first client that takes it.
#[derive(Debug, Default)]
pub(super) struct RunPackets {
    /// Packets by what is wished for.
    written: [Option<Segment>; 4],
}

impl RunPackets {
    /// Adds the packets that are wished for to an outbox.
    fn push(&mut self, run: &Run<'_>, wish: LiveWish, outbox: &mut Outbox, spares: &mut Spares) {
        // Nearly always these are all.
        let wish = LiveWish {
            takes_qos: wish.takes_qos || !run.has_headers(),
            takes_system: wish.takes_system
                || (!run.has_stored && run.subject().first() != Some(&b'$')),
        };
        let at = usize::from(wish.takes_qos) | usize::from(wish.takes_system) << 1;
        let segment = self.written[at].get_or_insert_with(|| {
            spares.segment(|out| live_packets(run, wish, |packet| packet.write(out)))
        });
        match segment.len() {
            0 => {}
            len if len >= COPY_RUN_BYTES_MAX => outbox.push_shared(segment, 0..len),
            _ => {
                outbox.push(spares, |out| out.extend_from_slice(segment));
            }
        }
    }

    /// Gives the memory back; what is on its way stays.
    pub(super) fn end(self, spares: &mut Spares) {
        self.written.into_iter().flatten().for_each(|segment| spares.keep_segment(segment));
    }
}

/// Makes the packets of a run with QoS 0 that are wished for.
fn live_packets(run: &Run<'_>, wish: LiveWish, mut take: impl FnMut(&MqttPublish<'_>)) {
    let (mut topic, mut of): (_, &[u8]) = (Vec::new(), b"");
    for message in &run.messages {
        let publish = delivered(message);
        let is_other_way = !wish.takes_qos && published_qos(publish.header_block()) > 0;
        if is_other_way || (!wish.takes_system && publish.subject.first() == Some(&b'$')) {
            continue;
        }
        // Messages of streams may have different subjects.
        if publish.subject != of {
            topic.clear();
            of = publish.subject;
            topic::write_topic(of, &mut topic);
        }
        let payload = publish.body();
        take(&MqttPublish { topic: &topic, id: 0, qos: 0, dup: false, retain: false, payload });
    }
}

/// Returns a message as its receivers see it.
fn delivered<'a>(message: &Message<'a>) -> Publish<'a> {
    match message.is_stored() {
        true => route::delivered(&message.publish),
        false => message.publish,
    }
}

/// Delivers a run to a client of MQTT.
pub(super) fn deliver(core: &mut Core, run: &Run<'_>, member: Member, packets: &mut RunPackets) {
    let Some(conn) = core.conns.at_mut(member.conn) else { return };
    let sid = core.subs[member.sub as usize].sid();
    let arrival = conn.mqtt.as_ref().and_then(|client| client.session.arrival(sid));
    match arrival {
        Some(Arrival::Live { qos, is_reserved }) => {
            let wish = LiveWish { takes_qos: qos == 0, takes_system: !is_reserved };
            packets.push(run, wish, &mut conn.outbox, &mut core.spares);
            if core.settings.tracing.is_some() {
                live_packets(run, wish, |packet| trace_packet(conn, packet));
            }
        }
        Some(arrival) => deliver_stored(core, run, member, arrival),
        None => return,
    }
    deliver::account_for(core, member, run, run.len(), false);
}

/// Delivers messages of a consumer to a client of MQTT.
fn deliver_stored(core: &mut Core, run: &Run<'_>, member: Member, arrival: Arrival) {
    let pending_max = core.settings.mqtt.as_ref().map_or(0, |mqtt| mqtt.ack_pending_max);
    let Some(conn) = core.conns.at_mut(member.conn) else { return };
    let sid = core.subs[member.sub as usize].sid();
    let (account, publisher) = (conn.account, Publisher { shard: core.shard, conn: conn.id });
    // Subjects of acknowledgements.
    let mut unread: Vec<&[u8]> = Vec::new();
    let is_traced = core.settings.tracing.is_some();
    let spares = &mut core.spares;
    let mut writer = PacketWriter { conn, spares, sid, is_traced };
    for message in &run.messages {
        let publish = delivered(message);
        match arrival {
            Arrival::Stored { is_reserved, .. }
                if !may_read(writer.conn, sid, &publish, is_reserved) =>
            {
                unread.extend(publish.reply);
            }
            Arrival::Stored { qos, .. } => writer.stored(&publish, qos, pending_max.into()),
            Arrival::Release => unread.extend(writer.release(&publish)),
            Arrival::Live { .. } => {}
        }
    }
    for ack in unread {
        let content = Content::new(b"", b"");
        let run = Run::of(content.publish(ack, Some(ack)));
        core.input.mqtt.push(UNREAD, account, publisher, &run);
    }
}

/// The tap of messages that are acknowledged unread.
pub(crate) const UNREAD: TapId = TapId(TapId::OF_MQTT);

/// Whether a stored message may be sent: wildcards do not match topics that begin with `$`, a
/// filter may be wider than what is denied to its user, and a message of QoS 2 may have been taken.
fn may_read(conn: &Conn, sid: &[u8], publish: &Publish<'_>, is_reserved: bool) -> bool {
    let subject = publish.subject.strip_prefix(MESSAGE_PREFIX.as_bytes()).unwrap_or_default();
    let permissions = conn.permissions().filter(|permissions| permissions.filters_deliveries());
    !(is_reserved && subject.first() == Some(&b'$'))
        && permissions.is_none_or(|permissions| permissions.may_receive(subject, None))
        && !was_taken(conn, sid, publish)
}

/// Whether a client has acknowledged a message of QoS 2 and waits for its end.
fn was_taken(conn: &Conn, sid: &[u8], publish: &Publish<'_>) -> bool {
    let Some(client) = conn.mqtt.as_ref() else { return false };
    ack_of(publish)
        .is_some_and(|(_, about)| client.session.flights.landed(sid, about.sequence).is_some())
}

/// Writes packets into the outbox of a client.
struct PacketWriter<'a> {
    conn: &'a mut Conn,
    spares: &'a mut Spares,
    /// The sid of the subscription.
    sid: &'a [u8],
    /// Whether the log gets each packet.
    is_traced: bool,
}

impl PacketWriter<'_> {
    fn stored(&mut self, publish: &Publish<'_>, qos: Qos, pending_max: usize) {
        let qos = qos.min(published_qos(publish.header_block()));
        let Some(subject) = publish.subject.strip_prefix(MESSAGE_PREFIX.as_bytes()) else { return };
        let Some((ack, about)) = ack_of(publish) else { return };
        let Some(client) = self.conn.mqtt.as_mut().filter(|_| qos > 0) else { return };
        let delivery = ConsumerDelivery {
            sid: self.sid,
            sequence: about.sequence,
            count: about.deliveries,
            ack,
            qos,
        };
        // What is not sent now comes again.
        let Some(flight) = client.session.flights.begin(&delivery, pending_max) else { return };
        let mut topic = Vec::with_capacity(subject.len());
        topic::write_topic(subject, &mut topic);
        let (FlightId { id, dup }, payload) = (flight, publish.body());
        let packet = MqttPublish { topic: &topic, id, qos, dup, retain: false, payload };
        if self.is_traced {
            trace_packet(self.conn, &packet);
        }
        self.conn.outbox.push(self.spares, |out| packet.write(out));
    }

    /// Sends a PUBREL. Returns the subject by which its message is to be acknowledged, if it was
    /// not known: an earlier connection may have ended before it could do that.
    fn release<'m>(&mut self, publish: &Publish<'m>) -> Option<&'m [u8]> {
        let headers = publish.header_block();
        let id = headers::value(headers, RELEASE_HEADER).and_then(headers::number);
        let id = id.and_then(|id| u16::try_from(id).ok()).filter(|id| *id > 0)?;
        let (ack, _) = ack_of(publish)?;
        let message_ack = released_ack(headers);
        let session = &mut self.conn.mqtt.as_mut()?.session;
        let way = session.on_release(id, ack, message_ack);
        if way != ReleaseWay::Displaced {
            if self.is_traced {
                tracing::trace!("{} - ->> [{}]", self.conn.label(), trace::answer(&pubrel(id)));
            }
            self.conn.outbox.push(self.spares, |out| out.extend(pubrel(id)));
        }
        (way != ReleaseWay::Known && !message_ack.is_empty()).then_some(message_ack)
    }
}

fn trace_packet(conn: &Conn, packet: &MqttPublish<'_>) {
    tracing::trace!("{} - ->> [{}]", conn.label(), trace::of_publish(packet));
}

/// Returns the subject by which a consumer's message is acknowledged, and what it says.
fn ack_of<'a>(publish: &Publish<'a>) -> Option<(&'a [u8], AckSubject<'a>)> {
    let ack = publish.reply?;
    Some((ack, AckSubject::parse(ack)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Piece;

    const ALL: LiveWish = LiveWish { takes_qos: true, takes_system: true };

    /// Returns the batches of clients with these wishes.
    fn taken(wire: &[u8], wishes: &[LiveWish]) -> Vec<Vec<Piece>> {
        let (run, mut packets, mut spares) =
            (Run::read(wire), RunPackets::default(), Spares::default());
        let batch = |wish: &LiveWish| {
            let mut outbox = Outbox::default();
            packets.push(&run, *wish, &mut outbox, &mut spares);
            outbox.take(&mut spares).unwrap_or_default()
        };
        let batches: Vec<Vec<Piece>> = wishes.iter().map(batch).collect();
        packets.end(&mut spares);
        for batch in &batches {
            spares.keep_batch(batch.clone());
        }
        batches
    }

    fn bytes(batch: &[Piece]) -> Vec<u8> {
        batch.iter().flat_map(|piece| piece.bytes().to_vec()).collect()
    }

    #[test]
    fn a_long_run_is_written_once_and_shared_by_all_clients() {
        let wire = [&b"PUB a.b 600\r\n"[..], &[b'x'; 600], b"\r\n"].concat().repeat(2);
        let batches = taken(&wire, &[ALL, LiveWish { takes_qos: false, takes_system: false }]);
        let segments = batches.iter().map(|batch| match &batch[..] {
            [Piece::Shared { segment, .. }] => segment,
            other => panic!("{other:?}"),
        });
        let segments: Vec<&Segment> = segments.collect();
        assert!(std::rc::Rc::ptr_eq(segments[0], segments[1]));
        let one = [&b"\x30\xdd\x04\0\x03a/b"[..], &[b'x'; 600]].concat();
        assert_eq!(bytes(&batches[0]), one.repeat(2));
    }

    #[test]
    fn a_client_takes_what_no_consumer_delivers_to_it_and_what_its_wildcard_matches() {
        let header = "NATS/1.0\r\nNmqtt-Pub: 1\r\n\r\n";
        let (head, all) = (header.len(), header.len() + 1);
        let wire = format!("PUB a 1\r\nx\r\nHPUB a {head} {all}\r\n{header}y\r\n");
        let few = LiveWish { takes_qos: false, ..ALL };
        let batches = taken(wire.as_bytes(), &[ALL, few, ALL]);
        let (first, second) = (&b"\x30\x04\0\x01ax"[..], &b"\x30\x04\0\x01ay"[..]);
        assert_eq!(bytes(&batches[0]), [first, second].concat());
        assert_eq!((bytes(&batches[1]), &batches[2].len()), (first.to_vec(), &1));
        let batches =
            taken(b"PUB $a.b 1\r\nx\r\n", &[LiveWish { takes_system: false, ..ALL }, ALL]);
        assert!(batches[0].is_empty());
        assert_eq!(bytes(&batches[1]), b"\x30\x07\0\x04$a/bx");
    }
}
