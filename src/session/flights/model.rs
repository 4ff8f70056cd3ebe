//! Packet ids against a model: whatever comes in whatever order, one is that of one message.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// An event for a message or a packet id.
#[derive(Debug, Clone, Copy)]
enum FlightStep {
    /// A consumer delivers a message.
    Deliver(u64),
    PubAck(u16),
    PubRec(u16),
    /// The PUBREL that PUBREC has led to is stored.
    Stored(u16),
    /// A PUBREL comes from its stream.
    FromStream(u16, u64),
    PubComp(u16),
    /// A consumer has confirmed that a message was taken.
    Confirmed(u16, u64),
    /// Another connection goes on with the session.
    NextConnection,
}

fn step() -> impl Strategy<Value = FlightStep> {
    let (id, sequence) = (1..5u16, 1..6u64);
    prop_oneof![
        4 => sequence.clone().prop_map(FlightStep::Deliver),
        1 => id.clone().prop_map(FlightStep::PubAck),
        2 => id.clone().prop_map(FlightStep::PubRec),
        2 => id.clone().prop_map(FlightStep::Stored),
        1 => (id.clone(), sequence.clone()).prop_map(|(id, of)| FlightStep::FromStream(id, of)),
        2 => id.clone().prop_map(FlightStep::PubComp),
        2 => (id, sequence).prop_map(|(id, of)| FlightStep::Confirmed(id, of)),
        1 => Just(FlightStep::NextConnection),
    ]
}

fn place(sequence: u64) -> ReleasedMessage<'static> {
    ReleasedMessage { sid: b"s", sequence, ack: b"ack" }
}

fn key(sequence: u64) -> FlightKey {
    FlightKey { sid: b"s"[..].into(), sequence }
}

/// A client: the messages that it has, by packet id, until it has answered the last packet.
#[derive(Debug, Default)]
struct Model {
    flights: Flights,
    has: BTreeMap<u16, u64>,
    /// PUBRELs in the stream, or on their way there, with their messages.
    stored: BTreeSet<(u16, u64)>,
    /// Messages that do not come again.
    settled: BTreeSet<u64>,
}

impl Model {
    fn take(&mut self, step: FlightStep) {
        let flights = &mut self.flights;
        match step {
            FlightStep::Deliver(sequence) if !self.settled.contains(&sequence) => {
                let delivery =
                    ConsumerDelivery { sid: b"s", sequence, count: 1, ack: b"ack", qos: 2 };
                let was_landed = flights.landed(b"s", sequence).is_some();
                let Some(FlightId { id, dup }) = flights.begin(&delivery, 4) else { return };
                assert!(!was_landed, "{sequence} waits for PUBCOMP");
                let before = self.has.insert(id, sequence);
                assert!(before.is_none_or(|before| before == sequence && dup), "{id} is in use");
            }
            FlightStep::PubAck(id) => {
                if flights.is_releasing(id) || flights.end(id).is_none() {
                    return;
                }
                self.settled.extend(self.has.remove(&id));
            }
            FlightStep::PubRec(id) => {
                if flights.ack_of_exact(id).is_some() {
                    flights.release(id);
                    self.stored.insert((id, self.has[&id]));
                }
            }
            FlightStep::Stored(id) => {
                if flights.is_releasing(id) {
                    flights.land(id);
                }
            }
            FlightStep::FromStream(id, of) if self.stored.contains(&(id, of)) => {
                let own = self.has.get(&id).copied();
                match flights.on_release(id, b"rel", Some(place(of))) {
                    ReleaseWay::Displaced => assert_ne!(own, Some(of)),
                    ReleaseWay::Known | ReleaseWay::Kept => {
                        assert!(own.is_none_or(|own| own == of), "{id} is of {own:?}");
                        self.has.insert(id, of);
                    }
                }
            }
            FlightStep::PubComp(id) => {
                if flights.complete(id).is_some() {
                    self.has.remove(&id);
                }
            }
            FlightStep::Confirmed(id, of) if self.stored.contains(&(id, of)) => {
                self.settled.insert(of);
                let is_own = self.has.get(&id) == Some(&of);
                let release = ReleaseId { packet: id, message: Some(key(of)) };
                let before = flights.unsettled(id).map(|(found, _)| found);
                if flights.settle(&release).is_some() {
                    self.has.remove(&id);
                } else if !is_own {
                    assert_eq!(flights.unsettled(id).map(|(found, _)| found), before);
                }
            }
            FlightStep::NextConnection => self.go_on(),
            FlightStep::Deliver(_) | FlightStep::FromStream(..) | FlightStep::Confirmed(..) => {}
        }
        self.check();
    }

    /// Goes on with the session in another connection, which reads what is stored.
    fn go_on(&mut self) {
        let flights = &self.flights;
        let mut next = Flights::default();
        next.keep(flights.to_keep());
        let stored = (1..5).filter_map(|id| Some(flights.unsettled(id)?.0));
        for release in stored.collect::<Vec<_>>() {
            let of = release.message.as_ref().map(|key| key.sequence);
            assert_eq!(next.keep_release(release.packet, of.map(place)), release);
        }
        // What nobody waits for any more is new to the next connection.
        let waits =
            |id: &u16, of: &mut u64| next.ids.get(&key(*of)) == Some(id) || next.is_releasing(*id);
        self.has.retain(waits);
        self.flights = next;
    }

    /// Checks that no packet id is that of two messages.
    fn check(&self) {
        let Flights { publishes, releases, .. } = &self.flights;
        for (id, flight) in publishes {
            let release = releases.get(id).and_then(|release| release.from.as_ref());
            assert!(release.is_none_or(|of| *of == flight.from), "{id} is of two messages");
        }
    }
}

proptest! {
    #[test]
    fn a_packet_id_is_of_one_message_until_its_last_answer(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut model = Model::default();
        steps.into_iter().for_each(|step| model.take(step));
    }
}
