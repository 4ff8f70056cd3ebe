//! SUBSCRIBE and UNSUBSCRIBE: filters become subscriptions, and consumers if they have a QoS.

use std::collections::VecDeque;

use super::requests::{self, ApiReply, MqttAsk, MqttHolder, MqttRequest};
use super::{Mqtt, Work, open, reply, retained, streams};
use crate::client;
use crate::core::Core;
use crate::interest::cost::{OPERATION_WORK, SUBSCRIBE_WORK};
use crate::interest::ids::ConnId;
use crate::interest::subscription::SubKey;
use crate::proto::mqtt::{MqttFilters, Qos, REFUSED, suback, topic, unsuback};
use crate::session::record::SessionConsumer;
use crate::session::{Arrival, DELIVER_PREFIX, FilterSid, MESSAGE_PREFIX, RELEASE_PREFIX, Session};

/// Characters of the names of consumers behind the hash of their client.
const NAME_CHARS: usize = 22;
/// Subjects whose retained messages are sent to one client at once, at least.
const FETCHES_AT_ONCE: usize = 16;

/// A filter of a SUBSCRIBE.
#[derive(Debug, Clone)]
pub(super) struct Granted {
    pub(super) subject: Box<[u8]>,
    /// The QoS, or that the filter is refused.
    pub(super) code: u8,
}

/// A filter that is asked for.
#[derive(Debug, Clone, Copy)]
struct AskedFilter<'a> {
    subject: &'a [u8],
    qos: Qos,
    /// Place of the filter in the SUBSCRIBE.
    at: usize,
}

/// A consumer to be made.
#[derive(Debug, Clone, Copy)]
struct Making<'a> {
    stream: &'a str,
    consumer: &'a SessionConsumer,
    /// The place of the filter in the SUBSCRIBE.
    at: usize,
}

/// A SUBSCRIBE that waits for its turn or for answers.
#[derive(Debug)]
pub(super) struct Subscribing {
    packet: u16,
    /// Filters that wait for their turn; without a subject those that are refused.
    waiting: VecDeque<(Option<Box<[u8]>>, Qos)>,
    filters: Vec<Granted>,
    /// Filters whose retained messages are to be sent.
    to_fetch: VecDeque<Granted>,
    /// Requests without an answer.
    left: usize,
    /// Whether the session has to be stored.
    has_news: bool,
}

/// An UNSUBSCRIBE that waits for its turn or for answers.
#[derive(Debug)]
pub(super) struct Unsubscribing {
    packet: u16,
    /// Filters that wait for their turn.
    waiting: VecDeque<Box<[u8]>>,
    /// Whether the session has to be stored.
    has_news: bool,
}

/// A subscription of a session, which is made when its turn has come.
#[derive(Debug)]
pub(super) struct RestoredSub {
    sid: Box<[u8]>,
    subject: Box<[u8]>,
    arrival: Arrival,
}

pub(super) fn on_subscribe(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, filters: MqttFilters<'_>) {
    let packet = filters.id;
    let downgrades = core.settings.mqtt.as_ref().is_some_and(|mqtt| mqtt.downgrades_qos2);
    let highest = if downgrades { 1 } else { 2 };
    let subject = |filter| topic::subject_of_filter(filter).map(Vec::into_boxed_slice);
    let waiting = filters.map(|(filter, qos)| (subject(filter), qos.min(highest))).collect();
    let work = Subscribing {
        packet,
        waiting,
        filters: Vec::new(),
        to_fetch: VecDeque::new(),
        left: 0,
        has_news: false,
    };
    mqtt.begin(core, id, Work::Subscribe(work));
    advance(mqtt, core, id);
}

/// Goes on with the filters of a client, as far as the budget of the turn allows.
pub(super) fn advance(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    while step(mqtt, core, id) {
        core.budget.spend(OPERATION_WORK + SUBSCRIBE_WORK);
        if !core.budget.has_left() {
            return mqtt.unfinished.push_back(id);
        }
    }
}

/// Handles the next filter of a client; `false` if there is none, and the client's packet goes on
/// or waits for answers.
fn step(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) -> bool {
    match mqtt.works.get_mut(&id) {
        Some(Work::Subscribe(work)) => match work.waiting.pop_front() {
            Some((subject, qos)) => {
                let at = work.filters.len();
                let subject = subject.unwrap_or_default();
                work.filters.push(Granted { subject: subject.clone(), code: REFUSED });
                let filter = AskedFilter { subject: &subject, qos, at };
                let code = subscribe_if_allowed(mqtt, core, id, filter);
                if let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) {
                    work.filters[at].code = code;
                }
                return true;
            }
            None => go_on(mqtt, core, id),
        },
        Some(Work::Unsubscribe(work)) => match work.waiting.pop_front() {
            Some(subject) => {
                let had = remove(mqtt, core, id, &subject);
                if let Some(Work::Unsubscribe(work)) = mqtt.works.get_mut(&id) {
                    work.has_news |= had;
                }
                return true;
            }
            None if work.has_news => open::save(mqtt, core, id),
            None => on_unsubscribed(mqtt, core, id),
        },
        Some(Work::Restore(waiting)) => match waiting.pop_front() {
            Some(RestoredSub { sid, subject, arrival }) => {
                listen(core, id, &sid, &subject, arrival);
                return true;
            }
            None => mqtt.finish(id),
        },
        _ => {}
    }
    false
}

/// Subscribes to a filter if that is allowed. Returns its code.
fn subscribe_if_allowed(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    filter: AskedFilter<'_>,
) -> u8 {
    if filter.subject.is_empty() || !may(core, id, filter.subject) {
        return REFUSED;
    }
    let code = subscribe(mqtt, core, id, filter);
    if code == REFUSED {
        // Nothing of it stays, nor of the filter as it was before.
        let had = remove(mqtt, core, id, filter.subject);
        if let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) {
            work.has_news |= had;
        }
    }
    code
}

/// Whether a client may have a filter.
fn may(core: &Core, id: ConnId, subject: &[u8]) -> bool {
    let Some(conn) = core.conns.get(id) else { return false };
    let is_known =
        conn.mqtt.as_ref().is_some_and(|client| client.session.filters.contains_key(subject));
    let has_room = conn.subs.len() < conn.subscriptions_max(&core.settings.limits);
    let may = Session::sids(subject).all(|it| client::may_subscribe(conn, it.subject, None));
    if !may {
        let subject = crate::proto::encode::go_quoted(subject);
        tracing::error!("{} - Subscription Violation - Subject {subject}", conn.label());
    }
    may && (is_known || has_room) && !subject.starts_with(b"$MQTT.")
}

/// Subscribes to the subjects of a filter, and has its consumers made. Returns its code.
fn subscribe(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    AskedFilter { subject, qos, at }: AskedFilter<'_>,
) -> u8 {
    let Some(account) = core.conns.get(id).map(|conn| conn.account) else { return REFUSED };
    let holder = MqttHolder { conn: id, account };
    let is_reserved = topic::begins_with_wildcard(subject);
    for FilterSid { sid, subject: own } in Session::sids(subject) {
        let has = consumer_of(core, id, &sid);
        match (qos, has) {
            (0, Some(_)) => end_consumer(mqtt, core, id, &sid),
            (1.., Some(consumer)) => {
                set_arrival(
                    core,
                    id,
                    consumer.deliver.as_bytes(),
                    Arrival::Stored { qos, is_reserved },
                );
            }
            (1.., None) => {
                let Some(consumer) = new_consumer(core, id, &sid, own) else { return REFUSED };
                let sid = consumer.deliver.as_bytes();
                let arrival = Arrival::Stored { qos, is_reserved };
                listen(core, id, sid, sid, arrival);
                let making = Making { stream: streams::MESSAGES, consumer: &consumer, at };
                make(mqtt, core, holder, making);
            }
            _ => {}
        }
    }
    if qos == 2 && !need_releases(mqtt, core, holder, at) {
        return REFUSED;
    }
    for FilterSid { sid, subject } in Session::sids(subject) {
        listen(core, id, &sid, subject, Arrival::Live { qos, is_reserved });
    }
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    let Some(client) = client else { return REFUSED };
    let is_news = client.session.filters.insert(subject.into(), qos) != Some(qos);
    if let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) {
        work.has_news |= is_news;
    }
    qos
}

fn consumer_of(core: &Core, id: ConnId, sid: &[u8]) -> Option<Box<SessionConsumer>> {
    let client = core.conns.get(id)?.mqtt.as_ref()?;
    client.session.consumers.get(sid).cloned()
}

/// Enters a new consumer for a subscription into the session; `None` if there is no room for it.
fn new_consumer(
    core: &mut Core,
    id: ConnId,
    sid: &[u8],
    subject: &[u8],
) -> Option<Box<SessionConsumer>> {
    let ack_pending_max = usize::from(core.settings.mqtt.as_ref()?.ack_pending_max);
    let mut name = || (0..NAME_CHARS).map(|_| core.random.rng.alphanumeric()).collect::<String>();
    let (own, deliver) = (name(), name());
    let session = &mut core.conns.get_mut(id)?.mqtt.as_mut()?.session;
    if !session.has_room(ack_pending_max) {
        return None;
    }
    let consumer = Box::new(SessionConsumer {
        name: format!("{}_{own}", session.hash).into(),
        deliver: format!("{DELIVER_PREFIX}{deliver}").into(),
        filter: format!("{MESSAGE_PREFIX}{}", String::from_utf8_lossy(subject)).into(),
        ack_pending_max,
    });
    session.consumers.insert(sid.into(), consumer.clone());
    Some(consumer)
}

/// Has the consumer of PUBRELs made, if there is none; `false` if there is no room for it.
fn need_releases(mqtt: &mut Mqtt, core: &mut Core, holder: MqttHolder, at: usize) -> bool {
    let id = holder.conn;
    let pending = core.settings.mqtt.as_ref().map_or(0, |mqtt| mqtt.ack_pending_max);
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    let Some(session) = client.map(|client| &mut client.session) else { return false };
    if session.releases.is_some() {
        return true;
    }
    let ack_pending_max = usize::from(pending);
    if !session.has_room(ack_pending_max) {
        return false;
    }
    let consumer = Box::new(SessionConsumer {
        name: format!("$MQTT_PUBREL_{}", session.hash).into(),
        deliver: format!("{RELEASE_PREFIX}{}", session.hash).into(),
        filter: format!("$MQTT.out.pubrel.{}", session.hash).into(),
        ack_pending_max,
    });
    session.releases = Some(consumer.clone());
    let sid = consumer.deliver.as_bytes();
    listen(core, id, sid, sid, Arrival::Release);
    make(mqtt, core, holder, Making { stream: streams::RELEASES, consumer: &consumer, at });
    true
}

/// Has a consumer made, for the filter at a place of the SUBSCRIBE.
fn make(
    mqtt: &mut Mqtt,
    core: &mut Core,
    holder: MqttHolder,
    Making { stream, consumer, at }: Making<'_>,
) {
    let id = holder.conn;
    let Some(settings) = core.settings.mqtt.clone() else { return };
    let rest = format!("CONSUMER.DURABLE.CREATE.{stream}.{}", consumer.name);
    let subject = requests::api(core, &rest);
    let body = consumer.request(stream, &settings);
    let request = MqttRequest { subject: &subject, headers: b"", body: &body };
    if let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) {
        (work.left, work.has_news) = (work.left + 1, true);
    }
    requests::ask(mqtt, core, holder, MqttAsk::Consumer(at), &request);
}

/// Takes the answer about a consumer.
pub(super) fn on_consumer(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    at: usize,
    reply: &ApiReply,
) {
    let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) else { return };
    work.left = work.left.saturating_sub(1);
    if !reply.is_ok() {
        let refused = work.filters.get_mut(at).map(|granted| {
            granted.code = REFUSED;
            granted.subject.clone()
        });
        if let Some(conn) = core.conns.get(id) {
            tracing::error!("{} - no consumer for a filter: {}", conn.label(), reply.text());
        }
        remove(mqtt, core, id, &refused.unwrap_or_default());
    }
    go_on(mqtt, core, id);
}

/// Stores the session when all consumers are there.
fn go_on(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    match mqtt.works.get(&id) {
        Some(Work::Subscribe(work)) if work.left > 0 || !work.waiting.is_empty() => {}
        Some(Work::Subscribe(work)) if work.has_news => open::save(mqtt, core, id),
        _ => on_saved(mqtt, core, id),
    }
}

/// Answers a SUBSCRIBE whose session is stored, and has retained messages sent.
pub(super) fn on_saved(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) else { return };
    let codes: Vec<u8> = work.filters.iter().map(|granted| granted.code).collect();
    let packet = suback(work.packet, &codes);
    let filters = std::mem::take(&mut work.filters);
    work.to_fetch = filters.into_iter().filter(|granted| granted.code != REFUSED).collect();
    work.left = 0;
    reply(core, id, &packet);
    fetch_more(mqtt, core, id);
}

/// Has the retained messages for the next filters sent. Without any the wait is over.
fn fetch_more(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    while let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) {
        if work.left >= FETCHES_AT_ONCE {
            return;
        }
        let Some(filter) = work.to_fetch.pop_front() else {
            if work.left == 0 {
                mqtt.finish(id);
            }
            return;
        };
        work.left += Session::sids(&filter.subject).count();
        retained::fetch(mqtt, core, id, &filter);
    }
}

/// Notes that no more retained messages come for one of the subjects.
pub(super) fn on_fetched(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    if let Some(Work::Subscribe(work)) = mqtt.works.get_mut(&id) {
        work.left = work.left.saturating_sub(1);
        fetch_more(mqtt, core, id);
    }
}

/// Sets the way of messages to a subscription.
fn set_arrival(core: &mut Core, id: ConnId, sid: &[u8], arrival: Arrival) {
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    if let Some(client) = client {
        client.session.set_arrival(sid, arrival);
    }
}

/// Returns the subscription with a sid, if a client has it.
fn find(core: &Core, id: ConnId, sid: &[u8]) -> Option<SubKey> {
    let hash = core.random.hasher.hash_one(sid);
    let same_sid = |key: &SubKey| core.subs[*key as usize].sid() == sid;
    core.conns.get(id)?.subs.find(hash, same_sid).copied()
}

/// Subscribes a client to a subject, unless it has a subscription with that sid.
fn listen(core: &mut Core, id: ConnId, sid: &[u8], subject: &[u8], arrival: Arrival) {
    set_arrival(core, id, sid, arrival);
    if find(core, id, sid).is_none() {
        let hash = core.random.hasher.hash_one(sid);
        client::subscribe(core, id, subject, None, sid, hash);
    }
}

/// Ends the subscription with a sid.
fn end(core: &mut Core, id: ConnId, sid: &[u8]) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    if let Some(client) = &mut conn.mqtt {
        client.session.forget_arrival(sid);
    }
    if let Some(key) = find(core, id, sid) {
        core.end_subscription(key);
    }
}

/// Deletes the consumer of a subscription, with what it has not delivered.
fn end_consumer(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, sid: &[u8]) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let account = conn.account;
    let Some(client) = &mut conn.mqtt else { return };
    let Some(consumer) = client.session.consumers.remove(sid) else { return };
    client.session.flights.forget(consumer.deliver.as_bytes());
    client.session.flights.forget(sid);
    end(core, id, consumer.deliver.as_bytes());
    let rest = format!("CONSUMER.DELETE.{}.{}", streams::MESSAGES, consumer.name);
    let subject = requests::api(core, &rest);
    let request = MqttRequest { subject: &subject, ..MqttRequest::default() };
    requests::ask(mqtt, core, MqttHolder { conn: id, account }, MqttAsk::Nothing, &request);
}

/// Removes a filter. Returns whether the client had it.
fn remove(mqtt: &mut Mqtt, core: &mut Core, id: ConnId, subject: &[u8]) -> bool {
    for FilterSid { sid, .. } in Session::sids(subject) {
        end_consumer(mqtt, core, id, &sid);
        end(core, id, &sid);
    }
    let client = core.conns.get_mut(id).and_then(|conn| conn.mqtt.as_mut());
    client.is_some_and(|client| client.session.filters.remove(subject).is_some())
}

pub(super) fn on_unsubscribe(
    mqtt: &mut Mqtt,
    core: &mut Core,
    id: ConnId,
    filters: MqttFilters<'_>,
) {
    let packet = filters.id;
    let subjects = filters.filter_map(|(filter, _)| topic::subject_of_filter(filter));
    let waiting = subjects.map(Vec::into_boxed_slice).collect();
    let work = Unsubscribing { packet, waiting, has_news: false };
    mqtt.begin(core, id, Work::Unsubscribe(work));
    advance(mqtt, core, id);
}

/// Answers an UNSUBSCRIBE whose session is stored.
pub(super) fn on_unsubscribed(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some(Work::Unsubscribe(Unsubscribing { packet, .. })) = mqtt.works.get(&id) else { return };
    let packet = *packet;
    reply(core, id, &unsuback(packet));
    mqtt.finish(id);
}

/// Subscribes a client to all that its session has; its input waits until that is done.
pub(super) fn restore(mqtt: &mut Mqtt, core: &mut Core, id: ConnId) {
    let Some(client) = core.conns.get(id).and_then(|conn| conn.mqtt.as_ref()) else { return };
    let session = &client.session;
    let mut waiting = VecDeque::new();
    let mut push = |sid: &[u8], subject: &[u8], arrival| {
        waiting.push_back(RestoredSub { sid: sid.into(), subject: subject.into(), arrival });
    };
    if let Some(consumer) = &session.releases {
        let deliver = consumer.deliver.as_bytes();
        push(deliver, deliver, Arrival::Release);
    }
    for (filter, &qos) in &session.filters {
        // What the user may not hear any more is not heard; the filter stays.
        if !may(core, id, filter) {
            continue;
        }
        let is_reserved = topic::begins_with_wildcard(filter);
        for FilterSid { sid, subject } in Session::sids(filter) {
            push(&sid, subject, Arrival::Live { qos, is_reserved });
            if let Some(consumer) = session.consumers.get(&sid) {
                let deliver = consumer.deliver.as_bytes();
                push(deliver, deliver, Arrival::Stored { qos, is_reserved });
            }
        }
    }
    mqtt.works.insert(id, Work::Restore(waiting));
    advance(mqtt, core, id);
}
