//! Packet ids of messages on their way to a client.
//!
//! Ids go upward from the last one: one that was just given back is not used again at once, as a
//! client might take what comes with it for a message that it has had. What an earlier connection
//! of the session had not acknowledged keeps its ids.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::mqtt::Qos;

/// A message that a client has not acknowledged.
#[derive(Debug, Clone)]
struct Flight {
    /// The sid of the consumer's subscription, and the message's sequence; the sid of the filter,
    /// and the packet id, of one that was retained.
    from: FlightKey,
    qos: Qos,
    /// The subject of the acknowledgement; empty if there is none.
    ack: Box<[u8]>,
}

/// The place of a message in a stream, as a consumer delivers it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlightKey {
    // First, for it nearly always tells two of them apart.
    sequence: u64,
    sid: Box<[u8]>,
}

/// A PUBREL that waits for PUBCOMP.
#[derive(Debug, Default)]
struct Release {
    /// The subject of its acknowledgement; empty while it is not stored.
    ack: Box<[u8]>,
    /// Whether the consumer of the message knows for good that it was taken. Until then PUBREL is
    /// not forgotten: the message would come again.
    is_settled: bool,
    /// Whether PUBCOMP has come.
    is_complete: bool,
    /// The message, once its delivery has ended.
    from: Option<FlightKey>,
    /// The subject of the message's acknowledgement.
    message_ack: Box<[u8]>,
}

/// A PUBREL by its packet id and its message: an answer that comes late may be for a message that
/// had the packet id before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReleaseId {
    pub(crate) packet: u16,
    /// The message, if it has a consumer.
    message: Option<FlightKey>,
}

impl ReleaseId {
    /// A PUBREL whose message has no consumer.
    pub(crate) fn alone(packet: u16) -> Self {
        Self { packet, message: None }
    }
}

/// The message that a stored PUBREL is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReleasedMessage<'a> {
    /// The sid of the consumer's subscription.
    pub(crate) sid: &'a [u8],
    /// Sequence of the message.
    pub(crate) sequence: u64,
    /// The subject of the message's acknowledgement.
    pub(crate) ack: &'a [u8],
}

/// The way of a PUBREL that comes from its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReleaseWay {
    /// The client gets it; it is known.
    Known,
    /// The client gets it; an earlier connection has stored it, and its message is to be settled.
    Kept,
    /// Another message has the packet id now: the client does not get it. Its message is to be
    /// settled.
    Displaced,
}

/// A delivery of a consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConsumerDelivery<'a> {
    /// The sid of the consumer's subscription.
    pub(crate) sid: &'a [u8],
    /// Sequence of the message.
    pub(crate) sequence: u64,
    /// Number of the message's deliveries.
    pub(crate) count: u64,
    /// The subject of the acknowledgement.
    pub(crate) ack: &'a [u8],
    /// The QoS of this delivery: 1 or 2.
    pub(crate) qos: Qos,
}

/// A packet id that a message goes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlightId {
    pub(crate) id: u16,
    /// Whether the message may have been delivered before.
    pub(crate) dup: bool,
}

/// Sequences of messages with their packet ids, by the sids of consumers' subscriptions.
pub(crate) type KeptFlights = BTreeMap<String, Vec<(u64, u16)>>;

/// The packet ids that are in use, and what for. Of a client to which nothing is on its way it
/// takes few bytes.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    publishes: BTreeMap<u16, Flight>,
    ids: BTreeMap<FlightKey, u16>,
    /// Ids of messages that an earlier connection has got, and this one not yet.
    kept: BTreeSet<u16>,
    releases: BTreeMap<u16, Release>,
    last: u16,
}

impl Flights {
    /// Returns the packet id for a delivery: the same as before, if it was delivered before. `None`
    /// if the message is not to be sent now, because too many are on their way, or because its
    /// PUBREC has come.
    pub(crate) fn begin(
        &mut self,
        delivery: &ConsumerDelivery<'_>,
        pending_max: usize,
    ) -> Option<FlightId> {
        let from = FlightKey { sid: delivery.sid.into(), sequence: delivery.sequence };
        let known = self.ids.get(&from).copied();
        if known.is_some_and(|id| self.releases.contains_key(&id)) {
            return None;
        }
        let is_new = known.is_none_or(|id| !self.publishes.contains_key(&id));
        if is_new && self.publishes.len() >= pending_max {
            return None;
        }
        let dup = delivery.count > 1 || known.is_some();
        let id = match known {
            Some(id) => id,
            None => self.next()?,
        };
        self.kept.remove(&id);
        self.ids.insert(from.clone(), id);
        self.publishes.insert(id, Flight { from, qos: delivery.qos, ack: delivery.ack.into() });
        Some(FlightId { id, dup })
    }

    /// Returns a packet id for a retained message, which no consumer knows, for the filter with
    /// this sid.
    pub(crate) fn begin_retained(&mut self, sid: &[u8], qos: Qos) -> Option<u16> {
        let id = self.next()?;
        let from = FlightKey { sid: sid.into(), sequence: id.into() };
        self.publishes.insert(id, Flight { from, qos, ack: Box::default() });
        Some(id)
    }

    /// Returns the lowest packet id behind the last that is free.
    fn next(&mut self) -> Option<u16> {
        // Looking at all of them in vain takes too long to do it for each message.
        if self.publishes.len() + self.releases.len() >= usize::from(u16::MAX) {
            return None;
        }
        for _ in 0..u16::MAX {
            self.last = self.last.checked_add(1).unwrap_or(1);
            let id = self.last;
            let is_free = !self.publishes.contains_key(&id) && !self.releases.contains_key(&id);
            if is_free && !self.kept.contains(&id) {
                return Some(id);
            }
        }
        // What was kept for messages that do not come is of no use to anybody.
        if !self.kept.is_empty() {
            let kept = std::mem::take(&mut self.kept);
            self.ids.retain(|_, id| !kept.contains(id));
            return self.next();
        }
        None
    }

    /// Ends the delivery of a message. Returns the subject of its acknowledgement, if there was
    /// such a packet; empty if no consumer waits for it.
    pub(crate) fn end(&mut self, id: u16) -> Option<Box<[u8]>> {
        let flight = self.publishes.remove(&id)?;
        self.part(&flight.from, id);
        Some(flight.ack)
    }

    /// Ends that a message has a packet id, unless it has another one by now.
    fn part(&mut self, from: &FlightKey, id: u16) {
        if self.ids.get(from) == Some(&id) {
            self.ids.remove(from);
        }
    }

    /// Ends the delivery of a message whose PUBREL is stored; if it comes again before it is
    /// settled, it is known.
    pub(crate) fn land(&mut self, id: u16) {
        let Some(flight) = self.publishes.remove(&id) else { return };
        let release = self.releases.entry(id).or_default();
        (release.from, release.message_ack) = (Some(flight.from), flight.ack);
    }

    /// Returns the PUBREL of a message that is not settled, if it is stored.
    pub(crate) fn landed(&self, sid: &[u8], sequence: u64) -> Option<ReleaseId> {
        if self.releases.is_empty() {
            return None;
        }
        let message = Some(FlightKey { sid: sid.into(), sequence });
        let packet = *self.ids.get(message.as_ref()?)?;
        let release = self.releases.get(&packet).filter(|release| release.from == message)?;
        (!release.is_settled).then_some(ReleaseId { packet, message })
    }

    /// Returns the PUBREL with a packet id whose message is not settled, with the subject of the
    /// message's acknowledgement.
    pub(crate) fn unsettled(&self, packet: u16) -> Option<(ReleaseId, &[u8])> {
        let release = self.releases.get(&packet).filter(|release| !release.is_settled)?;
        let message = Some(release.from.clone()?);
        Some((ReleaseId { packet, message }, &release.message_ack))
    }

    /// Takes over a PUBREL of an earlier connection, with its message, if that has a consumer.
    pub(crate) fn keep_release(
        &mut self,
        packet: u16,
        message: Option<ReleasedMessage<'_>>,
    ) -> ReleaseId {
        self.last = self.last.max(packet);
        // A message that had the packet id before is settled, too, and for itself.
        if let Some(before) = self.releases.remove(&packet).and_then(|release| release.from) {
            self.part(&before, packet);
        }
        let mut release = Release::default();
        if let Some(ReleasedMessage { sid, sequence, ack }) = message {
            let from = FlightKey { sid: sid.into(), sequence };
            if let Some(before) = self.ids.insert(from.clone(), packet)
                && before != packet
            {
                self.kept.remove(&before);
            }
            (release.from, release.message_ack) = (Some(from), ack.into());
        }
        let id = ReleaseId { packet, message: release.from.clone() };
        self.releases.insert(packet, release);
        id
    }

    /// Takes a PUBREL from its stream, with the subject of its acknowledgement and its message, if
    /// that has a consumer.
    pub(crate) fn on_release(
        &mut self,
        packet: u16,
        ack: &[u8],
        message: Option<ReleasedMessage<'_>>,
    ) -> ReleaseWay {
        let is_of = |from: &FlightKey| {
            message.map(|it| *it.sid == *from.sid && it.sequence == from.sequence)
        };
        let release = self.releases.get(&packet);
        let of_release = release.and_then(|release| release.from.as_ref()).and_then(is_of);
        let flight = self.publishes.get(&packet);
        let of_flight = flight.map(|flight| is_of(&flight.from));
        let way = match (release, of_flight) {
            (None, None) if self.is_kept_for_another(packet, message) => ReleaseWay::Displaced,
            (Some(_), None) if of_release == Some(false) => ReleaseWay::Displaced,
            (Some(_), Some(Some(false))) => ReleaseWay::Displaced,
            (Some(_), _) => ReleaseWay::Known,
            // The client has the message twice with one packet id, and takes it once.
            (None, None | Some(Some(true))) => ReleaseWay::Kept,
            (None, Some(_)) => ReleaseWay::Displaced,
        };
        if way == ReleaseWay::Kept {
            self.publishes.remove(&packet);
            self.keep_release(packet, message);
        }
        if way != ReleaseWay::Displaced
            && let Some(release) = self.releases.get_mut(&packet)
        {
            release.ack = ack.into();
            // Without a consumer the message does not come again.
            release.is_settled |= way == ReleaseWay::Kept && message.is_none();
        }
        way
    }

    /// Whether an earlier connection has got another message with a packet id.
    fn is_kept_for_another(&self, packet: u16, message: Option<ReleasedMessage<'_>>) -> bool {
        let has_other = |it: ReleasedMessage<'_>| {
            let key = FlightKey { sid: it.sid.into(), sequence: it.sequence };
            self.ids.get(&key) != Some(&packet)
        };
        self.kept.contains(&packet) && message.is_some_and(has_other)
    }

    /// Returns the subject of the acknowledgement of a message of QoS 2 that is on its way with
    /// this packet id.
    pub(crate) fn ack_of_exact(&self, id: u16) -> Option<&[u8]> {
        self.publishes.get(&id).filter(|flight| flight.qos == 2).map(|flight| &*flight.ack)
    }

    /// Whether PUBREC has come for a packet id, and PUBCOMP not.
    pub(crate) fn is_releasing(&self, id: u16) -> bool {
        self.releases.contains_key(&id)
    }

    /// Notes that a packet id waits for PUBCOMP.
    pub(crate) fn release(&mut self, id: u16) {
        self.releases.entry(id).or_default();
    }

    /// Notes that the consumer of a message knows for good that it was taken. Returns the subject
    /// of the acknowledgement of its PUBREL, if that has ended.
    pub(crate) fn settle(&mut self, id: &ReleaseId) -> Option<Box<[u8]>> {
        let release = self.releases.get_mut(&id.packet).filter(|it| it.from == id.message)?;
        let (was_settled, is_complete) = (release.is_settled, release.is_complete);
        release.is_settled = true;
        if let Some(from) = id.message.as_ref().filter(|_| !was_settled) {
            self.part(from, id.packet);
            self.kept.remove(&id.packet);
        }
        if is_complete { self.complete(id.packet) } else { None }
    }

    /// Ends the wait for PUBCOMP. Returns the subject of the acknowledgement, if there was such a
    /// packet and it can be forgotten.
    pub(crate) fn complete(&mut self, id: u16) -> Option<Box<[u8]>> {
        let release = self.releases.get_mut(&id)?;
        release.is_complete = true;
        if !release.is_settled {
            return None;
        }
        self.releases.remove(&id).map(|release| release.ack)
    }

    /// Forgets the messages of a subscription.
    pub(crate) fn forget(&mut self, sid: &[u8]) {
        self.publishes.retain(|_, flight| &*flight.from.sid != sid);
        let kept = &mut self.kept;
        self.ids.retain(|from, id| {
            let stays = &*from.sid != sid;
            if !stays {
                kept.remove(id);
            }
            stays
        });
    }

    /// Whether there are packet ids that the next connection of the session needs.
    pub(crate) fn are_kept(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Returns the packet ids of messages of consumers, for the next connection of the session.
    pub(crate) fn to_keep(&self) -> KeptFlights {
        let mut all = KeptFlights::new();
        for (from, id) in &self.ids {
            let sid = String::from_utf8_lossy(&from.sid).into_owned();
            all.entry(sid).or_default().push((from.sequence, *id));
        }
        all
    }

    /// Takes over the packet ids of an earlier connection.
    pub(crate) fn keep(&mut self, all: KeptFlights) {
        for (sid, flights) in all {
            for (sequence, id) in flights.into_iter().filter(|(_, id)| *id > 0) {
                let sid = sid.as_bytes().into();
                self.ids.insert(FlightKey { sid, sequence }, id);
                self.kept.insert(id);
                self.last = self.last.max(id);
            }
        }
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(sequence: u64, count: u64) -> ConsumerDelivery<'static> {
        ConsumerDelivery { sid: b"s", sequence, count, ack: b"ack", qos: 2 }
    }

    fn message(sequence: u64) -> ReleasedMessage<'static> {
        ReleasedMessage { sid: b"s", sequence, ack: b"ack" }
    }

    fn release(packet: u16, sequence: u64) -> ReleaseId {
        ReleaseId { packet, message: Some(FlightKey { sid: b"s"[..].into(), sequence }) }
    }

    #[test]
    fn a_message_keeps_its_packet_id_until_it_is_acknowledged() {
        let mut flights = Flights::default();
        let first = Some(FlightId { id: 1, dup: false });
        assert_eq!(flights.begin(&delivery(7, 1), 2), first);
        assert_eq!(flights.begin(&delivery(8, 1), 2), Some(FlightId { id: 2, dup: false }));
        assert_eq!(flights.begin(&delivery(9, 1), 2), None, "two are on their way");
        assert_eq!(flights.begin(&delivery(7, 2), 2), Some(FlightId { id: 1, dup: true }));
        assert_eq!(flights.end(1).as_deref(), Some(&b"ack"[..]));
        assert_eq!(flights.end(1), None);
        assert_eq!(flights.begin(&delivery(9, 1), 2), Some(FlightId { id: 3, dup: false }));
        assert!(flights.end(2).is_some() && flights.end(3).is_some());
        let next = Some(FlightId { id: 4, dup: false });
        assert_eq!(flights.begin(&delivery(10, 1), 2), next, "none is used again at once");
    }

    #[test]
    fn the_next_connection_goes_on_with_the_same_packet_ids() {
        let mut before = Flights::default();
        for sequence in [5, 6, 7] {
            assert!(before.begin(&delivery(sequence, 1), 9).is_some());
        }
        assert!(before.end(2).is_some());
        let mut flights = Flights::default();
        flights.keep(before.to_keep());
        assert_eq!(flights.begin(&delivery(8, 1), 9), Some(FlightId { id: 4, dup: false }));
        assert_eq!(flights.begin(&delivery(7, 1), 9), Some(FlightId { id: 3, dup: true }));
        assert_eq!(flights.begin(&delivery(5, 2), 9), Some(FlightId { id: 1, dup: true }));
        assert_eq!(flights.to_keep()["s"].len(), 3);
        flights.forget(b"s");
        assert!(flights.to_keep().is_empty() && flights.kept.is_empty());
    }

    #[test]
    fn a_packet_id_is_taken_until_pubcomp() {
        let mut flights = Flights::default();
        assert!(flights.begin(&delivery(7, 1), 9).is_some());
        assert_eq!(flights.ack_of_exact(1), Some(&b"ack"[..]));
        flights.release(1);
        assert_eq!(flights.begin(&delivery(7, 2), 9), None, "PUBREC has come");
        assert_eq!(flights.landed(b"s", 7), None);
        flights.land(1);
        assert!(flights.is_releasing(1) && flights.unsettled(1).is_some());
        assert_eq!(flights.landed(b"s", 7), Some(release(1, 7)));
        assert_eq!(flights.begin(&delivery(8, 1), 9), Some(FlightId { id: 2, dup: false }));
        assert_eq!(flights.on_release(1, b"rel", Some(message(7))), ReleaseWay::Known);
        assert_eq!(flights.settle(&release(1, 7)), None);
        assert_eq!(flights.complete(1).as_deref(), Some(&b"rel"[..]));
        assert_eq!(flights.complete(1), None);
    }

    #[test]
    fn a_release_is_not_forgotten_before_its_message_is() {
        let mut flights = Flights::default();
        assert!(flights.begin(&delivery(7, 1), 9).is_some());
        flights.release(1);
        assert_eq!(flights.on_release(1, b"rel", Some(message(7))), ReleaseWay::Known);
        assert_eq!(flights.complete(1), None, "the message would come again");
        flights.land(1);
        assert!(flights.is_releasing(1) && flights.unsettled(1).is_some());
        assert_eq!(flights.settle(&release(1, 7)).as_deref(), Some(&b"rel"[..]));
        assert_eq!(flights.landed(b"s", 7), None);
        assert!(!flights.are_kept());
    }

    #[test]
    fn a_release_of_before_is_known_with_its_message() {
        let mut flights = Flights::default();
        let known = flights.keep_release(5, Some(message(7)));
        assert_eq!(known, release(5, 7));
        assert_eq!(flights.keep_release(6, None), ReleaseId::alone(6));
        assert_eq!(flights.unsettled(5), Some((release(5, 7), &b"ack"[..])));
        assert_eq!(flights.unsettled(6), None);
        assert_eq!((flights.landed(b"s", 7), flights.landed(b"s", 8)), (Some(known), None));
        assert_eq!(flights.begin(&delivery(7, 1), 9), None);
        assert_eq!(flights.on_release(5, b"rel", Some(message(7))), ReleaseWay::Known);
        assert_eq!(flights.complete(5), None);
        assert_eq!(flights.settle(&release(5, 7)).as_deref(), Some(&b"rel"[..]));
        assert_eq!(flights.settle(&ReleaseId::alone(6)), None);
        assert!(flights.complete(6).is_some());
    }

    #[test]
    fn a_release_that_is_stored_after_the_next_connection_has_looked_settles_its_message() {
        let mut flights = Flights::default();
        flights.keep(KeptFlights::from([("s".to_owned(), vec![(7, 5)])]));
        assert_eq!(flights.on_release(5, b"rel", Some(message(7))), ReleaseWay::Kept);
        assert_eq!(flights.landed(b"s", 7), Some(release(5, 7)));
        assert_eq!(flights.begin(&delivery(7, 2), 9), None, "the client has it");
        assert_eq!(flights.complete(5), None, "the message would come again");
        assert_eq!(flights.settle(&release(5, 7)).as_deref(), Some(&b"rel"[..]));
        assert!(!flights.are_kept() && flights.kept.is_empty());
        // The message came again before its PUBREL did.
        flights.keep(KeptFlights::from([("s".to_owned(), vec![(8, 6)])]));
        assert_eq!(flights.begin(&delivery(8, 2), 9), Some(FlightId { id: 6, dup: true }));
        assert_eq!(flights.on_release(6, b"rel", Some(message(8))), ReleaseWay::Kept);
        assert!(flights.ack_of_exact(6).is_none() && flights.end(6).is_none());
        assert_eq!(flights.unsettled(6), Some((release(6, 8), &b"ack"[..])));
        // Without a consumer there is nothing to settle.
        assert_eq!(flights.on_release(9, b"rel", None), ReleaseWay::Kept);
        assert_eq!(flights.complete(9).as_deref(), Some(&b"rel"[..]));
    }

    #[test]
    fn an_answer_about_an_earlier_message_with_the_packet_id_settles_no_other() {
        let mut flights = Flights::default();
        assert!(flights.begin(&delivery(7, 1), 9).is_some());
        flights.release(1);
        flights.land(1);
        assert_eq!(flights.settle(&release(1, 6)), None);
        assert_eq!(flights.settle(&ReleaseId::alone(1)), None);
        assert!(flights.unsettled(1).is_some() && flights.landed(b"s", 7).is_some());
        // A PUBREL of an earlier message neither.
        assert_eq!(flights.on_release(1, b"other", Some(message(6))), ReleaseWay::Displaced);
        assert_eq!(flights.complete(1), None);
        assert_eq!(flights.settle(&release(1, 7)).as_deref(), Some(&b""[..]));
        assert!(flights.begin(&delivery(8, 1), 9).is_some_and(|flight| flight.id == 2));
        assert_eq!(flights.on_release(2, b"rel", None), ReleaseWay::Displaced);
        assert_eq!(flights.ack_of_exact(2), Some(&b"ack"[..]));
    }

    #[test]
    fn all_packet_ids_in_use_are_an_end() {
        let mut flights = Flights::default();
        flights.keep(KeptFlights::from([("gone".to_owned(), vec![(1, 3)])]));
        for _ in 0..u16::MAX {
            assert!(flights.begin_retained(b"f", 1).is_some());
        }
        assert_eq!(flights.begin_retained(b"f", 1), None);
        assert!(flights.end(77).is_some());
        assert_eq!(flights.begin_retained(b"f", 1), Some(77));
        assert_eq!(flights.ack_of_exact(77), None);
        flights.forget(b"f");
        assert_eq!(flights.begin_retained(b"f", 2), Some(78));
    }
}
