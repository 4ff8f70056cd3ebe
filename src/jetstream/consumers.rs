//! The consumers of this shard's streams: their subjects, their store, their clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use serde::Deserialize;

use super::audit::note_answer;
use super::call::{ConsumerCall, api_prefixes, form_of};
use super::logs::Notice;
use super::meta::{account_limits, answer};
use super::order::ReplyTo;
use super::streams::Announcement;
use super::{ActiveJetStream, TapUse, wall};
use crate::consumer::{
    AckMessage, AckSubject, Advisory, AdvisoryPlace, ArchivedConsumer, ConsumerForm,
    ConsumerOutput, ConsumerRequest, ConsumerRules, ConsumerSource, Consumers, Delivery, Look,
    Moment, PullMessage, StreamAbout, StreamBounds, consumers_of_archive, keep_all, on_purged,
    shown_consumers, take_consumer,
};
use crate::core::Core;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::ids::AccountId;
use crate::interest::taps::TapId;
use crate::run::tapped::TapMessage;
use crate::store::{
    Decoded, LogRecord, NextMessage, Read, RecordAt, StoreError, StreamId, StreamStore,
};
use crate::stream::{AnswerKind, ApiError, LiveStream, StreamConfig, StreamEvent, identity};

/// Calls of one stream's consumers in one turn.
const POLLS_PER_TURN: usize = 8;
/// Messages that one search looks at.
const SEARCH_STEPS: usize = 4096;

/// The consumers of one stream.
#[derive(Debug)]
pub(super) struct StreamConsumers {
    all: Consumers,
    /// Taps of each consumer, with their filters.
    taps: BTreeMap<Arc<str>, Vec<(TapId, String)>>,
    /// The commit of the last record that was kept.
    kept: u64,
}

impl StreamConsumers {
    pub(super) fn new(core: &mut Core, account: AccountId, config: &StreamConfig) -> Self {
        let about = StreamAbout::of(config, core.settings.limits.payload_bytes_max);
        let (rules, seed) = (rules(core, account), core.random.rng.u64(..));
        Self { all: Consumers::new(about, rules, seed), taps: BTreeMap::new(), kept: 0 }
    }

    /// Whether some consumer's filter matches a subject.
    pub(super) fn wants(&self, subject: &[u8]) -> bool {
        self.all.wants(subject)
    }

    /// Returns the time of the next deadline, in nanoseconds since the start of the process.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.all.next_deadline()
    }
}

/// Returns the limits of consumers in an account.
fn rules(core: &Core, account: AccountId) -> ConsumerRules {
    let wide = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
    let of_account = account_limits(core, account).unwrap_or_default();
    let server = core.settings.streams.as_ref();
    ConsumerRules {
        is_strict: server.is_none_or(|server| server.is_strict),
        max_ack_pending: server.map_or(0, |server| wide(server.max_ack_pending)),
        max_request_batch: server.map_or(0, |server| wide(server.max_request_batch)),
        default_max_consumers: server.map_or(0, |server| wide(server.stream_consumers_max)),
        account_max_consumers: of_account.consumers_max.map_or(0, wide),
        account_max_ack_pending: of_account.max_ack_pending.map_or(0, wide),
    }
}

/// The messages of a stream, and the interest in its account.
struct StreamMessages<'a> {
    core: &'a Core,
    account: AccountId,
    live: &'a LiveStream,
    store: &'a StreamStore,
    /// Messages that are asked for and are not in memory.
    cold: Vec<u64>,
}

impl ConsumerSource for StreamMessages<'_> {
    fn bounds(&self) -> StreamBounds {
        let index = self.store.stream(self.live.id());
        index.map_or(StreamBounds { first: 1, last: 0, staged: 0 }, |index| {
            let (state, staged) = (index.state(), index.next_sequence() - 1);
            StreamBounds { first: state.first, last: state.last, staged }
        })
    }

    fn next(&mut self, filters: &[&[u8]], from: u64) -> NextMessage {
        let mut steps = SEARCH_STEPS;
        self.store.next(self.live.id(), filters, from, &mut steps)
    }

    fn count(&mut self, filters: &[&[u8]], from: u64) -> u64 {
        self.store.stream(self.live.id()).map_or(0, |index| index.count_all(filters, from))
    }

    fn last_of_subjects(&mut self, filters: &[&[u8]]) -> Vec<u64> {
        let index = self.store.stream(self.live.id());
        let found = index.and_then(|index| index.last_of_subjects(filters, u64::MAX, usize::MAX));
        found.unwrap_or_default()
    }

    fn at_time(&mut self, time: i64) -> u64 {
        self.live.sequence_at(self.store, time)
    }

    fn look(&mut self, sequence: u64) -> Look<'_> {
        match self.store.read(self.live.id(), sequence) {
            Read::Now(RecordAt {
                decoded: Decoded { record: LogRecord::Message(message), .. },
                ..
            }) => Look::Now(message),
            Read::Cold => {
                self.cold.push(sequence);
                Look::Cold
            }
            _ => Look::None,
        }
    }

    fn subject(&mut self, sequence: u64) -> Option<&[u8]> {
        self.store.stream(self.live.id())?.subject_of(sequence)
    }

    fn has_interest(&self, subject: &[u8]) -> bool {
        self.core.accounts.has_receivers(self.account, subject)
    }

    fn is_bound(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        self.core.accounts.is_bound(self.account, subject, queue)
    }

    fn reaches(&self, subject: &[u8]) -> bool {
        self.core.accounts.reaches(self.account, subject)
    }
}

/// Returns the present by both clocks.
fn moment(core: &Core) -> Moment {
    Moment { mono: core.times.now, wall: wall(core) }
}

/// Name of a consumer in the answer to the request that made it.
#[derive(Deserialize)]
struct MadeConsumer {
    name: String,
}

/// Does something with a stream's consumers, and carries out what follows.
fn with_consumers<T>(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    act: impl FnOnce(&mut Consumers, &StreamConfig, Moment, &mut dyn ConsumerSource) -> T,
) -> Option<T> {
    let now = moment(core);
    let stream = js.streams.all.get_mut(&id)?;
    let store = js.logs.store(stream.log)?;
    let (account, live) = (stream.account, &stream.live);
    let mut source = StreamMessages { core, account, live, store, cold: Vec::new() };
    let done = act(&mut stream.consumers.all, stream.live.config(), now, &mut source);
    let (log, cold) = (stream.log, source.cold);
    if !cold.is_empty() {
        js.streams.wait_for_disk(id);
    }
    if let Some(store) = js.logs.store_mut(log) {
        cold.into_iter().for_each(|sequence| store.load(id, sequence));
    }
    carry_out_outputs(js, core, id);
    js.streams.wake(id);
    Some(done)
}

/// Returns the consumers of a stream as a list shows them.
pub(super) fn list_consumers(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
) -> Option<Vec<u8>> {
    with_consumers(js, core, id, |all, _, now, source| all.list(b"", now, source))?.ok()
}

/// Carries out what consumers want done.
fn carry_out_outputs(js: &mut ActiveJetStream, core: &mut Core, id: StreamId) {
    while let Some(stream) = js.streams.all.get_mut(&id)
        && let Some(output) = stream.consumers.all.next_output()
    {
        let account = stream.account;
        match output {
            ConsumerOutput::Deliver(delivery) => deliver(js, core, id, &delivery),
            ConsumerOutput::Status(status) => {
                let reply = status.reply.as_deref().unwrap_or_default();
                let headers = &status.headers;
                let message = InnerMessage { subject: &status.to, reply, headers, body: b"" };
                inside::publish(core, account, &message);
            }
            ConsumerOutput::Keep(record) => {
                let Some(store) = js.logs.store_mut(stream.log) else { continue };
                match store.keep_consumers(id, &record) {
                    Ok(commit) => stream.consumers.kept = commit,
                    Err(StoreError::Log(_)) => {
                        let again = ConsumerOutput::Keep(record);
                        stream.consumers.all.put_back(again, moment(core));
                        return;
                    }
                    Err(StoreError::NoStream) => {}
                }
            }
            ConsumerOutput::Confirm { reply, waits } => {
                let commit = if waits { stream.consumers.kept } else { 0 };
                let message = Notice { account, subject: &reply, body: b"" };
                js.logs.send(core, stream.log, commit, &message);
            }
            ConsumerOutput::Advise(advisory) => advise_of(js, core, id, &advisory),
            ConsumerOutput::Removable(sequences) => {
                let Some(store) = js.logs.store_mut(stream.log) else { continue };
                if let Err(StoreError::Log(_)) = stream.live.acknowledged(store, &sequences) {
                    let again = ConsumerOutput::Removable(sequences);
                    stream.consumers.all.put_back(again, moment(core));
                    return;
                }
            }
            ConsumerOutput::Ended(name) => untap_consumer(js, core, id, &name),
            ConsumerOutput::Listens { before, now } => {
                listen(js, core, id, account, before.as_ref(), now);
            }
        }
    }
}

fn deliver(js: &mut ActiveJetStream, core: &mut Core, id: StreamId, delivery: &Delivery) {
    let Some(stream) = js.streams.all.get(&id) else { return };
    let Some(store) = js.logs.store(stream.log) else { return };
    let record = store.get(id, delivery.sequence).map(|at| at.decoded.record);
    let Some(LogRecord::Message(message)) = record else { return };
    let mut reply = Vec::with_capacity(128);
    delivery.ack_subject(&stream.live.config().name, &mut reply);
    reply.push(b'@');
    reply.extend_from_slice(message.subject);
    let changed = delivery.headers(message.headers, message.payload.len());
    let headers = changed.as_deref().unwrap_or(message.headers);
    let body = if delivery.headers_only { b"" } else { message.payload };
    let message = InnerMessage { subject: &delivery.to, reply: &reply, headers, body };
    inside::send_stored(core, stream.account, &message);
}

fn advise_of(js: &mut ActiveJetStream, core: &mut Core, id: StreamId, advisory: &Advisory) {
    let Some(stream) = js.streams.all.get(&id) else { return };
    let (account, name) = (stream.account, &stream.live.config().name);
    let subject = advisory.subject(name);
    if !inside::has_receivers(core, account, subject.as_bytes(), None) {
        return;
    }
    let account_name = core.accounts.name(account);
    let domain = core.settings.streams.as_ref().and_then(|streams| streams.domain.clone());
    let place = AdvisoryPlace { account: &account_name, stream: name, domain: domain.as_deref() };
    let text = advisory.text(place, &mut core.random.rng);
    let subject = subject.as_bytes();
    let message = InnerMessage { subject, reply: b"", headers: b"", body: &text };
    inside::publish(core, account, &message);
}

/// Adds the taps of a consumer that is new.
fn tap_consumer(js: &mut ActiveJetStream, core: &mut Core, id: StreamId, name: &str) {
    let Some(stream) = js.streams.all.get(&id) else { return };
    let consumers = &stream.consumers;
    if consumers.taps.contains_key(name) || !consumers.all.has(name) {
        return;
    }
    let (account, shown) = (stream.account, stream.live.config().name.clone());
    let takes_acks = consumers.all.takes_acks(name);
    let mut wanted: Vec<(String, TapUse)> = Vec::new();
    for prefix in api_prefixes(core) {
        let next = format!("{prefix}CONSUMER.MSG.NEXT.{shown}.{name}");
        wanted.push((next, TapUse::Next(id, name.into())));
        let reset = format!("{prefix}CONSUMER.RESET.{shown}.{name}");
        wanted.push((reset, TapUse::Reset(id, name.into())));
    }
    if !consumers.all.is_pull(name) {
        wanted.push((format!("$JS.FC.{shown}.{name}.>"), TapUse::Flow(id)));
    }
    if takes_acks {
        wanted.push((format!("$JS.ACK.{shown}.{name}.>"), TapUse::Ack(id)));
    }
    let taps: Vec<(TapId, String)> = wanted
        .into_iter()
        .map(|(filter, purpose)| (js.add_tap(core, account, filter.as_bytes(), purpose), filter))
        .collect();
    let Some(stream) = js.streams.all.get_mut(&id) else { return };
    stream.usage.consumers.fetch_add(1, Relaxed);
    stream.consumers.taps.insert(name.into(), taps);
}

fn untap_consumer(js: &mut ActiveJetStream, core: &mut Core, id: StreamId, name: &str) {
    let Some(stream) = js.streams.all.get_mut(&id) else { return };
    let account = stream.account;
    let Some(taps) = stream.consumers.taps.remove(name) else { return };
    stream.usage.consumers.fetch_sub(1, Relaxed);
    for (tap, filter) in taps {
        js.remove_tap(core, account, filter.as_bytes(), tap);
    }
}

/// Notes the subject whose interest a consumer hears of.
fn listen(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    account: AccountId,
    before: Option<&Bytes>,
    now: Option<Bytes>,
) {
    let listens = js.listens.entry(account).or_default();
    if let Some(before) = before
        && let Some(streams) = listens.get_mut(before)
    {
        if let Some(at) = streams.iter().position(|stream| *stream == id) {
            streams.swap_remove(at);
        }
        if streams.is_empty() {
            listens.remove(before);
        }
    }
    if let Some(now) = now {
        listens.entry(now).or_default().push(id);
    }
    let is_wanted = !listens.is_empty();
    core.accounts.at(account).interest.watch(is_wanted);
    if !is_wanted {
        js.listens.remove(&account);
    }
}

/// Tells consumers that interest in their subjects may have come or gone.
pub(super) fn hear_interest(js: &mut ActiveJetStream, core: &mut Core) {
    let mut heard: Vec<(Bytes, StreamId)> = Vec::new();
    for (account, listens) in &js.listens {
        let changes = core.accounts.at(*account).interest.take_changes();
        if changes.is_empty() {
            continue;
        }
        let mut hear = |(subject, streams): (&Bytes, &Vec<StreamId>)| {
            heard.extend(streams.iter().map(|stream| (subject.clone(), *stream)));
        };
        match changes.subjects() {
            // Most changes are those of an inbox, and no consumer's business.
            Some(subjects) => {
                let found = subjects.iter().filter_map(|subject| listens.get_key_value(&**subject));
                found.for_each(&mut hear);
            }
            None => {
                listens.iter().filter(|(subject, _)| changes.concern(subject)).for_each(&mut hear);
            }
        }
    }
    for (subject, stream) in heard {
        with_consumers(js, core, stream, |all, _, now, source| {
            all.on_interest_changed(&subject, now, source);
        });
    }
}

/// Takes the consumers that the log knows.
pub(super) fn find_consumers(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    states: &[Vec<u8>],
) {
    let Some(stream) = js.streams.all.get_mut(&id) else { return };
    let mut is_whole = true;
    for state in states {
        is_whole &= stream.consumers.all.restore(state);
    }
    if !is_whole {
        let name = &stream.live.config().name;
        tracing::error!("Records of consumers of the stream '{name}' cannot be read");
    }
    with_consumers(js, core, id, |all, _, now, source| all.start(now, source));
    let Some(stream) = js.streams.all.get(&id) else { return };
    let names: Vec<Arc<str>> = stream.consumers.all.names().cloned().collect();
    names.iter().for_each(|name| tap_consumer(js, core, id, name));
}

/// Answers a request about consumers.
pub(super) fn on_consumers_call(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    reply: ReplyTo,
    call: ConsumerCall<'_>,
    body: &[u8],
) {
    let kind = super::call::StreamCall::Consumer(call).kind();
    if call.is_kept() && refuses(js, id) {
        return answer(core, &reply, &kind.error(&ApiError::INSUFFICIENT_RESOURCES));
    }
    let outcome = match call {
        ConsumerCall::Create { rest, is_durable_form } => {
            let made = ConsumerMaking { form: form_of(rest, is_durable_form), body };
            return create_consumer(js, core, id, reply, &made);
        }
        ConsumerCall::Names => with_consumers(js, core, id, |all, _, _, _| all.list_names(body)),
        ConsumerCall::List => {
            with_consumers(js, core, id, |all, _, now, source| all.list(body, now, source))
        }
        ConsumerCall::Info(name) => {
            if !crate::stream::json::is_empty_request(body) {
                Some(Err(ApiError::NOT_EMPTY_REQUEST))
            } else {
                with_consumers(js, core, id, |all, _, now, source| all.info(name, now, source))
            }
        }
        ConsumerCall::Delete(name) => {
            if !crate::stream::json::is_empty_request(body) {
                Some(Err(ApiError::NOT_EMPTY_REQUEST))
            } else {
                with_consumers(js, core, id, |all, _, now, _| all.delete(name, now))
            }
        }
        ConsumerCall::Pause(name) => {
            with_consumers(js, core, id, |all, _, now, source| all.pause(name, body, now, source))
        }
        ConsumerCall::Reset(name) => {
            with_consumers(js, core, id, |all, _, now, source| all.reset(name, body, now, source))
        }
        ConsumerCall::Unpin(name) => {
            with_consumers(js, core, id, |all, _, now, _| all.unpin(name, body, now))
        }
        ConsumerCall::StepDown(_) => Some(Err(ApiError::CLUSTER_REQUIRED)),
    };
    let Some(outcome) = outcome else { return };
    let text = outcome.unwrap_or_else(|error| kind.error(&error));
    // The consumer itself is asked to go back, not the API.
    if !matches!(call, ConsumerCall::Reset(_)) {
        note_answer(core, &reply, &text);
    }
    // The answer leaves when the last record of consumers is on the disk.
    let Some(stream) = js.streams.all.get(&id) else { return };
    let (log, commit) = (stream.log, stream.consumers.kept);
    js.logs.send(core, log, commit, &reply.with(&text));
}

/// Whether the log of a stream takes nothing: what is said of a consumer would not be kept.
fn refuses(js: &ActiveJetStream, id: StreamId) -> bool {
    js.streams.all.get(&id).is_some_and(|stream| js.logs.refuses(stream.log))
}

/// A request for a consumer: its subject's part, and its body.
struct ConsumerMaking<'a> {
    form: ConsumerForm<'a>,
    body: &'a [u8],
}

fn create_consumer(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    mut reply: ReplyTo,
    &ConsumerMaking { form, body }: &ConsumerMaking<'_>,
) {
    let is_strict = core.settings.streams.as_ref().is_none_or(|streams| streams.is_strict);
    let identity = js.streams.all.get(&id).map(|stream| identity(&stream.live));
    let identity = identity.unwrap_or_default();
    let is_other = !reply.wanted.is_empty() && *reply.wanted != *identity.as_bytes();
    let outcome = with_consumers(js, core, id, |all, config, now, source| {
        let mut request = ConsumerRequest::parse(body, is_strict)?;
        request.check_subject(&config.name, form)?;
        let is_of_copy = request.config.direct || request.config.sourcing;
        if is_of_copy && is_other {
            return Err(ApiError::consumer_stream_identity_mismatch(&identity));
        }
        let text = all.create(&request, config, now, source)?;
        Ok((text, is_of_copy))
    });
    let Some(outcome) = outcome else { return };
    match outcome {
        Ok((text, is_of_copy)) => {
            if is_of_copy {
                reply.identity = identity.into_bytes().into();
            }
            let made = serde_json::from_slice::<MadeConsumer>(&text);
            if let Ok(made) = made {
                tap_consumer(js, core, id, &made.name);
            }
            let commit = js.streams.all.get(&id).map_or(0, |stream| stream.consumers.kept);
            js.streams.begin_rest(id);
            js.answer_announced(core, id, commit, reply, Announcement::Text(text));
        }
        Err(error) => answer(core, &reply, &AnswerKind::CONSUMER_CREATE.error(&error)),
    }
}

/// Ends all consumers of a stream that is deleted.
pub(super) fn end_consumers(js: &mut ActiveJetStream, core: &mut Core, id: StreamId) {
    with_consumers(js, core, id, |all, _, now, _| all.end_all(now));
    let Some(stream) = js.streams.all.get(&id) else { return };
    let names: Vec<Arc<str>> = stream.consumers.taps.keys().cloned().collect();
    names.iter().for_each(|name| untap_consumer(js, core, id, name));
}

/// Number of a stream's consumers, as it is shown.
pub(super) fn consumers_of(js: &ActiveJetStream, id: StreamId) -> usize {
    js.streams.all.get(&id).map_or(0, |stream| shown_consumers(&stream.consumers.all))
}

/// Whether a stream's consumers allow a new configuration.
pub(super) fn consumers_allow(
    js: &ActiveJetStream,
    id: StreamId,
    config: &StreamConfig,
) -> Result<(), ApiError> {
    let Some(stream) = js.streams.all.get(&id) else { return Ok(()) };
    let limits = config.consumer_limits;
    if limits == stream.live.config().consumer_limits {
        return Ok(());
    }
    let beyond = stream.consumers.all.beyond(limits);
    if beyond.is_empty() {
        return Ok(());
    }
    let names = beyond.join(", ");
    Err(ApiError::stream_update(format_args!("change to limits violates consumers: {names}")))
}

/// Tells consumers of their stream's new configuration.
pub(super) fn on_stream_changed(js: &mut ActiveJetStream, core: &mut Core, id: StreamId) {
    let payload_bytes_max = core.settings.limits.payload_bytes_max;
    with_consumers(js, core, id, |all, config, _, _| {
        all.on_stream_updated(StreamAbout::of(config, payload_bytes_max));
    });
}

/// Tells consumers of messages that were removed.
pub(super) fn on_removed(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    event: &StreamEvent,
) {
    let stream = js.streams.all.get(&id);
    if stream.is_some_and(|stream| !stream.consumers.all.is_empty()) {
        with_consumers(js, core, id, |all, _, now, source| match event {
            StreamEvent::Removed(range) => all.on_removed(range.clone(), now, source),
            StreamEvent::Purged(purge) => on_purged(all, purge, now, source),
            _ => {}
        });
    }
}

/// Tells consumers that messages may be delivered now.
pub(super) fn on_stored(js: &mut ActiveJetStream, id: StreamId) {
    if let Some(stream) = js.streams.all.get_mut(&id)
        && !stream.consumers.all.is_empty()
    {
        stream.consumers.all.on_stored();
        js.streams.wake(id);
    }
}

/// Lets the consumers of a stream go on whose messages have come from the disk.
pub(super) fn on_consumers_loaded(js: &mut ActiveJetStream, id: StreamId) {
    if let Some(stream) = js.streams.all.get_mut(&id) {
        stream.consumers.all.on_loaded();
        js.streams.wake(id);
    }
}

/// Lets consumers deliver.
pub(super) fn poll_consumers(js: &mut ActiveJetStream, core: &mut Core) {
    hear_interest(js, core);
    for id in js.streams.take_awake() {
        let mut has_more = false;
        for _ in 0..POLLS_PER_TURN {
            has_more = with_consumers(js, core, id, |all, _, now, source| all.poll(now, source))
                .unwrap_or(false);
            if !has_more {
                break;
            }
        }
        js.streams.rest(id, has_more);
        js.settle(core, id);
    }
}

/// Begins checkpoints that would free files of logs. What is kept of consumers is written once
/// more before, in the same commit.
pub(super) fn begin_checkpoints(js: &mut ActiveJetStream, core: &Core) {
    for log in 0..js.logs.len() {
        let Some(store) = js.logs.store_mut(log) else { continue };
        if store.wal().is_full() || !store.wants_checkpoint() {
            continue;
        }
        // What waits is older than a snapshot, and must not come behind it. Nothing is written
        // before all can be: it would be written once more in each turn.
        let mut of_log = js.streams.all.values().filter(|stream| stream.log == log);
        if of_log.any(|stream| stream.consumers.all.has_outputs()) {
            continue;
        }
        let streams = js.streams.all.iter_mut().filter(|(_, stream)| stream.log == log);
        let is_done = streams.into_iter().all(|(id, stream)| {
            let snapshot = stream.consumers.all.snapshot(moment(core));
            snapshot.iter().all(|record| {
                let kept = store.keep_consumers(*id, record);
                kept.map(|commit| stream.consumers.kept = commit).is_ok()
            })
        });
        if is_done && let Err(error) = store.checkpoint() {
            tracing::debug!("a checkpoint waits: {error:?}");
        }
    }
}

/// Takes a request for messages.
pub(super) fn on_pull(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    consumer: &str,
    message: &TapMessage<'_>,
) {
    let TapMessage { reply, headers, body, .. } = *message;
    let pull = PullMessage { reply: Bytes::copy_from_slice(reply), headers, body };
    with_consumers(js, core, id, |all, _, now, source| {
        all.on_pull(consumer, &pull, now, source);
    });
}

/// Takes an acknowledgement.
pub(super) fn on_ack(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    message: &TapMessage<'_>,
) {
    let Some(about) = AckSubject::parse(message.subject) else { return };
    let reply = Some(message.reply).filter(|reply| !reply.is_empty());
    let reply = reply.map(Bytes::copy_from_slice);
    let ack = AckMessage { about, reply, body: message.body };
    with_consumers(js, core, id, |all, _, now, source| all.on_ack(&ack, now, source));
}

/// Takes an answer to flow control.
pub(super) fn on_flow(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    message: &TapMessage<'_>,
) {
    let TapMessage { subject, headers, .. } = *message;
    with_consumers(js, core, id, |all, _, now, source| {
        all.on_flow_reply(subject, headers, now, source);
    });
}

/// Tells waiting clients that the server ends, and keeps what consumers have to keep.
pub(super) fn shut_down_consumers(js: &mut ActiveJetStream, core: &mut Core) {
    let all: Vec<StreamId> = js.streams.all.keys().copied().collect();
    for id in all {
        with_consumers(js, core, id, |all, _, now, _| all.shut_down(now));
    }
}

/// Takes the consumers of an archive. Returns whether all could be read.
pub(super) fn take_archived_consumers(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    archived: &[ArchivedConsumer],
) -> bool {
    let now = moment(core);
    let Some(stream) = js.streams.all.get_mut(&id) else { return false };
    let mut is_whole = true;
    for consumer in archived {
        let config = stream.live.config();
        is_whole &= take_consumer(&mut stream.consumers.all, consumer, config, now);
    }
    find_consumers(js, core, id, &[]);
    with_consumers(js, core, id, |all, _, now, _| keep_all(all, now));
    is_whole
}

/// Returns the consumers of a stream as an archive has them.
pub(super) fn archived_consumers(
    js: &ActiveJetStream,
    core: &Core,
    id: StreamId,
) -> Vec<ArchivedConsumer> {
    let stream = js.streams.all.get(&id);
    stream.map_or_else(Vec::new, |it| consumers_of_archive(&it.consumers.all, moment(core)))
}

/// Commit of the last record about a stream's consumers.
pub(super) fn kept_commit(js: &ActiveJetStream, id: StreamId) -> u64 {
    js.streams.all.get(&id).map_or(0, |stream| stream.consumers.kept)
}
