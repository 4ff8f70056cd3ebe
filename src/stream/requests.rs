//! Requests about one stream: information, purges, and messages by sequence or subject.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::answer::{AnswerKind, ApiAnswer};
use super::config::{
    ExternalStream, StorageKind, StreamConfig, StreamSource, SubjectTransformConfig,
};
use super::error::ApiError;
use super::json;
use super::live::{LiveStream, StreamEvent};
use super::time::{self, Timestamp};
use crate::store::{LogRecord, NextMessage, StoreError, StoredMessage, Stream, StreamStore};
use crate::subject::{is_literal, matches};

/// Subjects that one answer lists.
const SUBJECTS_MAX: usize = 100_000;
/// Deleted sequences that one answer lists.
const DELETED_MAX: usize = 1 << 20;

/// A copy's or its origin's state as answers show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceInfo {
    /// Name of the origin.
    pub name: String,
    /// The way to an origin in another account or domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalStream>,
    /// Messages that are not copied yet.
    pub lag: u64,
    /// The last sequence of the origin that was copied.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// Nanoseconds since the origin was heard of; -1 if it never was.
    pub active: i64,
    /// The last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// Filter of the subjects that are copied.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter_subject: String,
    /// Filters and transforms of subjects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_transforms: Vec<SubjectTransformConfig>,
}

impl SourceInfo {
    /// The state of a copy that has not begun.
    pub fn new(source: &StreamSource) -> Self {
        Self {
            name: source.name.clone(),
            external: source.external.clone(),
            lag: 0,
            seq: 0,
            active: -1,
            error: None,
            filter_subject: source.filter_subject.clone(),
            subject_transforms: source.subject_transforms.clone(),
        }
    }
}

/// A stream that has the same messages: this one, or a mirror of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alternate {
    /// Name of the stream.
    pub name: String,
    /// The domain of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The cluster of the stream.
    pub cluster: String,
}

/// Facts that an answer about a stream must know beside it.
#[derive(Debug, Clone, Default)]
pub struct InfoContext {
    /// The time, in nanoseconds since 1970.
    pub now: u64,
    /// Number of consumers.
    pub consumers: usize,
    /// Name of the server; only answers to INFO have it.
    pub leader: Option<String>,
    /// The state of the stream as a mirror.
    pub mirror: Option<SourceInfo>,
    /// The state of its sources.
    pub sources: Vec<SourceInfo>,
    /// Streams with the same messages, if there are any but this one.
    pub alternates: Vec<Alternate>,
    /// Whether the server's version is shown in the metadata: in all answers but lists.
    pub shows_version: bool,
}

/// The server that leads a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ClusterShown {
    leader: String,
}

/// The state of a stream as answers show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct StateShown {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    first_ts: String,
    last_seq: u64,
    last_ts: String,
    #[serde(skip_serializing_if = "is_zero")]
    num_subjects: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subjects: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "is_zero")]
    num_deleted: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deleted: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<LostShown>,
    consumer_count: usize,
}

/// Messages that were lost by damage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct LostShown {
    msgs: Vec<u64>,
    bytes: u64,
}

/// A stream as answers show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    config: StreamConfig,
    created: Timestamp,
    state: StateShown,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<SourceInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<SourceInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alternates: Vec<Alternate>,
    ts: Timestamp,
    /// Whether this answers a request to make the stream.
    #[serde(skip_serializing_if = "is_false")]
    did_create: bool,
}

impl StreamInfo {
    /// Returns the answer to a request to make the stream: it does not name the domain.
    #[must_use]
    pub fn as_created(self) -> Self {
        Self { did_create: true, domain: None, ..self }
    }

    /// Returns the answer to the end of a restore.
    #[must_use]
    pub fn as_restored(self) -> Self {
        Self { domain: None, mirror: None, sources: Vec::new(), ..self }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

fn timestamp(nanoseconds: u64) -> Timestamp {
    Timestamp(i64::try_from(nanoseconds).unwrap_or(i64::MAX))
}

impl LiveStream {
    /// Returns the stream as answers show it.
    pub fn info(&self, store: &StreamStore, context: &InfoContext) -> StreamInfo {
        let config =
            if context.shows_version { self.config().shown() } else { self.config().clone() };
        let mirror = self.config().mirror.as_ref();
        let sources = if context.sources.is_empty() {
            self.config().sources.iter().map(SourceInfo::new).collect()
        } else {
            context.sources.clone()
        };
        StreamInfo {
            total: None,
            offset: None,
            limit: None,
            config,
            created: self.kept.created,
            state: self.state_shown(store, context.consumers),
            domain: self.acks.domain.clone(),
            cluster: context.leader.clone().map(|leader| ClusterShown { leader }),
            mirror: mirror
                .map(|mirror| context.mirror.clone().unwrap_or_else(|| SourceInfo::new(mirror))),
            sources,
            alternates: context.alternates.clone(),
            ts: timestamp(context.now),
            did_create: false,
        }
    }

    fn state_shown(&self, store: &StreamStore, consumer_count: usize) -> StateShown {
        let Some(index) = store.stream(self.id) else { return StateShown::default() };
        let state = index.state();
        let last = if state.last == 0 { 0 } else { self.last_time.max(state.last_time) };
        // A stream that was made to begin at 1 says so.
        let unused_first = u64::from(self.config().first_seq == 1);
        let lost = (!index.lost().is_empty()).then(|| LostShown {
            msgs: index.lost().iter().cloned().flatten().take(DELETED_MAX).collect(),
            bytes: 0,
        });
        StateShown {
            messages: state.totals.messages,
            bytes: state.totals.bytes,
            first_seq: if state.last == 0 { unused_first } else { state.first },
            first_ts: time::rfc3339_or_none(state.first_time),
            last_seq: state.last,
            last_ts: time::rfc3339_or_none(last),
            num_subjects: state.subjects as u64,
            num_deleted: state.deleted,
            lost,
            consumer_count,
            ..StateShown::default()
        }
    }

    /// The message with this sequence, if it may be shown.
    pub(super) fn shown<'a>(
        &self,
        store: &'a StreamStore,
        sequence: u64,
    ) -> Option<StoredMessage<'a>> {
        match store.get(self.id, sequence)?.decoded.record {
            LogRecord::Message(message) => Some(message),
            _ => None,
        }
    }

    /// The first message at `from` or behind it that a filter matches; all match if it is empty.
    pub(super) fn next_match(&self, store: &StreamStore, filter: &str, from: u64) -> Option<u64> {
        let filters = if filter.is_empty() { &[][..] } else { &[filter.as_bytes()] };
        let begin = from;
        let mut from = from;
        loop {
            let mut steps = usize::MAX;
            let found = match store.next(self.id, filters, from, &mut steps) {
                NextMessage::Found(sequence) => Some(sequence),
                NextMessage::None => None,
                NextMessage::Later(at) => {
                    from = at;
                    continue;
                }
            };
            let filter = if filter.is_empty() { b">" } else { filter.as_bytes() };
            let index = store.stream(self.id)?;
            return index.next_replaced(filter, begin, found).or(found);
        }
    }

    /// The last message that may be shown with a subject that a filter matches.
    pub(super) fn last_match(&self, store: &StreamStore, filter: &str) -> Option<u64> {
        let index = store.stream(self.id)?;
        let filter = filter.as_bytes();
        if is_literal(filter) {
            return index.last_of(filter);
        }
        index.last_shown_of_subjects(&[filter], u64::MAX, usize::MAX)?.pop()
    }

    /// Sequence of the first message that was stored at a time or later; the next one if there is
    /// none.
    pub fn sequence_at(&self, store: &StreamStore, time: i64) -> u64 {
        let Some(index) = store.stream(self.id) else { return 1 };
        let found = index.at_time(u64::try_from(time).unwrap_or(0));
        found.unwrap_or_else(|| index.state().last + 1)
    }
}

/// A request for information.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InfoRequest {
    deleted_details: bool,
    subjects_filter: String,
    offset: i64,
}

/// Answers STREAM.INFO.
///
/// # Errors
///
/// 10025 for a request that cannot be read.
pub fn stream_info(
    live: &LiveStream,
    store: &StreamStore,
    context: &InfoContext,
    body: &[u8],
) -> Result<ApiAnswer, ApiError> {
    let request: InfoRequest = if json::is_object_or_array(body) {
        json::parse_request(body, live.limits.is_strict)?
    } else {
        InfoRequest::default()
    };
    let mut info = live.info(store, context);
    (info.total, info.offset, info.limit) = (Some(0), Some(0), Some(0));
    if let Some(index) = store.stream(live.id) {
        if request.deleted_details {
            info.state.deleted = deleted(index);
        }
        if !request.subjects_filter.is_empty() {
            list_subjects(index, &request, &mut info);
        }
    }
    Ok(ApiAnswer { text: AnswerKind::STREAM_INFO.answer(&info), commit: 0 })
}

fn deleted(index: &Stream) -> Vec<u64> {
    index.deleted(DELETED_MAX).into_iter().flatten().take(DELETED_MAX).collect()
}

fn list_subjects(index: &Stream, request: &InfoRequest, info: &mut StreamInfo) {
    let filter = request.subjects_filter.as_bytes();
    let mut found: Vec<(&[u8], u64)> = if is_literal(filter) {
        index.subject(filter).map(|state| (filter, state.messages)).into_iter().collect()
    } else {
        let all = index.subjects_from(0).filter(|(_, name, _)| matches(filter, name));
        all.map(|(_, name, count)| (name, count)).collect()
    };
    if found.is_empty() {
        return;
    }
    let offset = usize::try_from(request.offset).unwrap_or(0).min(found.len());
    (info.total, info.offset, info.limit) = (Some(found.len()), Some(offset), Some(SUBJECTS_MAX));
    if offset > 0 || found.len() > SUBJECTS_MAX {
        found.sort_unstable();
    }
    let page = found.iter().skip(offset).take(SUBJECTS_MAX);
    info.state.subjects =
        page.map(|(name, count)| (String::from_utf8_lossy(name).into_owned(), *count)).collect();
}

/// A request to purge a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PurgeRequest {
    filter: String,
    seq: u64,
    keep: u64,
}

impl PurgeRequest {
    fn parse(body: &[u8], is_strict: bool) -> Result<Self, ApiError> {
        if !json::is_object_or_array(body) {
            return Ok(Self::default());
        }
        let request: Self = json::parse_request(body, is_strict)?;
        let is_both = request.seq > 0 && request.keep > 0;
        if is_both { Err(ApiError::BAD_REQUEST) } else { Ok(request) }
    }
}

#[derive(Serialize)]
struct PurgedShown {
    success: bool,
    purged: u64,
}

/// Answers STREAM.PURGE.
///
/// # Errors
///
/// 10025 and 10003 for a wrong request, 10109 and 10110 if the stream forbids it.
pub fn purge(
    live: &mut LiveStream,
    store: &mut StreamStore,
    body: &[u8],
) -> Result<ApiAnswer, ApiError> {
    let request = PurgeRequest::parse(body, live.limits.is_strict)?;
    if live.config().sealed {
        return Err(ApiError::STREAM_SEALED);
    }
    if live.config().deny_purge {
        return Err(ApiError::stream_purge_failed("stream purge not permitted"));
    }
    let purged = live.purge(store, &request).map_err(|error| failed(&error))?;
    let answer = PurgedShown { success: true, purged: purged.messages };
    Ok(ApiAnswer { text: AnswerKind::STREAM_PURGE.answer(&answer), commit: purged.commit })
}

fn failed(error: &StoreError) -> ApiError {
    match error {
        StoreError::NoStream => ApiError::STREAM_NOT_FOUND,
        StoreError::Log(_) => ApiError::INSUFFICIENT_RESOURCES,
    }
}

impl LiveStream {
    fn purge(
        &mut self,
        store: &mut StreamStore,
        request: &PurgeRequest,
    ) -> Result<crate::store::Removed, StoreError> {
        let PurgeRequest { filter, seq, keep } = request;
        if filter.is_empty() || filter == ">" {
            if *seq == 0 && *keep == 0 {
                let last = self.last_sequence(store);
                return self.remove_before(store, last + 1);
            }
            if *seq > 1 {
                return self.remove_before(store, *seq);
            }
        }
        let below = if *seq > 1 { *seq } else { u64::MAX };
        if *seq == 1 {
            return store.remove(self.id, &[]);
        }
        let filters = if filter.is_empty() { &[][..] } else { &[filter.as_bytes()] };
        let keep = usize::try_from(*keep).unwrap_or(usize::MAX);
        let first = store.stream(self.id).and_then(Stream::first);
        let last = self.last_sequence(store);
        let removed = store.purge_subjects(self.id, filters, below, keep)?;
        if removed.messages > 0
            && let Some(first) = first
        {
            let (range, filter) = if filter.is_empty() || filter == ">" {
                let rest = store.stream(self.id).and_then(Stream::first);
                (first..=rest.map_or(last, |rest| rest - 1), &b""[..])
            } else {
                (first..=last, filter.as_bytes())
            };
            self.events.extend(StreamEvent::of_purge(removed.messages, range, filter));
        }
        Ok(removed)
    }
}

/// Returns the error of a body, where nothing is there that was asked about: nobody looks for that
/// before.
pub fn refused_body(kind: AnswerKind, body: &[u8], is_strict: bool) -> Option<ApiError> {
    fn error<T: serde::de::DeserializeOwned + Default>(
        body: &[u8],
        is_strict: bool,
    ) -> Option<ApiError> {
        json::parse_request::<T>(body, is_strict).err()
    }
    let (is_empty, is_json) = (json::is_empty_request(body), json::is_object_or_array(body));
    match kind {
        AnswerKind::STREAM_INFO if is_json => error::<InfoRequest>(body, is_strict),
        AnswerKind::STREAM_PURGE => PurgeRequest::parse(body, is_strict).err(),
        AnswerKind::CONSUMER_NAMES | AnswerKind::CONSUMER_LIST if is_json => {
            error::<ListPage>(body, is_strict)
        }
        AnswerKind::MESSAGE_GET => GetRequest::parse_single(body, is_strict).err(),
        AnswerKind::MESSAGE_DELETE | AnswerKind::STREAM_SNAPSHOT if is_empty => {
            Some(ApiError::BAD_REQUEST)
        }
        AnswerKind::MESSAGE_DELETE => error::<DeleteRequest>(body, is_strict),
        AnswerKind::CONSUMER_INFO if !is_empty => Some(ApiError::NOT_EMPTY_REQUEST),
        _ => None,
    }
}

/// A request for a page of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListPage {
    #[serde(rename = "offset")]
    _offset: i64,
}

/// A request for a message.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct GetRequest {
    pub(super) seq: u64,
    pub(super) last_by_subj: String,
    pub(super) next_by_subj: String,
    pub(super) batch: i64,
    pub(super) max_bytes: i64,
    pub(super) start_time: Option<Timestamp>,
    pub(super) multi_last: Vec<String>,
    pub(super) up_to_seq: u64,
    pub(super) up_to_time: Option<Timestamp>,
    pub(super) no_hdr: bool,
}

impl GetRequest {
    /// Reads a request for one message.
    fn parse_single(body: &[u8], is_strict: bool) -> Result<Self, ApiError> {
        if json::is_empty_request(body) {
            return Err(ApiError::BAD_REQUEST);
        }
        let request: Self = json::parse_request(body, is_strict)?;
        let (has_seq, has_time) = (request.seq > 0, request.start_time.is_some());
        let has_last = !request.last_by_subj.is_empty();
        let has_next = !request.next_by_subj.is_empty();
        let is_wrong = request.batch > 0
            || request.max_bytes > 0
            || (has_seq && has_last)
            || !(has_seq || has_last || has_next || has_time)
            || (has_seq && has_time)
            || (has_time && has_last)
            || (has_last && has_next);
        if is_wrong { Err(ApiError::BAD_REQUEST) } else { Ok(request) }
    }
}

#[derive(Serialize)]
struct Gotten<'a> {
    message: MessageShown<'a>,
}

#[derive(Serialize)]
struct MessageShown<'a> {
    subject: std::borrow::Cow<'a, str>,
    seq: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    hdrs: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    time: String,
}

/// Answers STREAM.MSG.GET.
///
/// # Errors
///
/// 10003 and 10025 for a wrong request, 10037 if there is no such message.
pub fn get_message(
    live: &LiveStream,
    store: &StreamStore,
    body: &[u8],
) -> Result<ApiAnswer, ApiError> {
    let request = GetRequest::parse_single(body, live.limits.is_strict)?;
    let from = request.start_time.map_or(request.seq, |time| live.sequence_at(store, time.0));
    let found = if !request.next_by_subj.is_empty() {
        live.next_match(store, &request.next_by_subj, from)
    } else if !request.last_by_subj.is_empty() {
        live.last_match(store, &request.last_by_subj)
    } else {
        Some(from)
    };
    let message = found.and_then(|sequence| live.shown(store, sequence));
    let message = message.ok_or(ApiError::NO_MESSAGE_FOUND)?;
    let hdrs = if request.no_hdr { String::new() } else { STANDARD.encode(message.headers) };
    let message = MessageShown {
        subject: String::from_utf8_lossy(message.subject),
        seq: message.sequence,
        hdrs,
        data: STANDARD.encode(message.payload),
        time: time::rfc3339_or_none(message.time),
    };
    Ok(ApiAnswer { text: AnswerKind::MESSAGE_GET.answer(&Gotten { message }), commit: 0 })
}

/// A request to delete a message.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DeleteRequest {
    seq: u64,
    no_erase: bool,
}

#[derive(Serialize)]
struct Deleted {
    success: bool,
}

/// Answers STREAM.MSG.DELETE.
///
/// # Errors
///
/// 10003 and 10025 for a wrong request, 10109 and 10057 if the stream forbids it, 10043 and 10057
/// if there is no such message.
pub fn delete_message(
    live: &mut LiveStream,
    store: &mut StreamStore,
    body: &[u8],
) -> Result<ApiAnswer, ApiError> {
    if json::is_empty_request(body) {
        return Err(ApiError::BAD_REQUEST);
    }
    // A log is not written over: what is deleted goes with it, be it erased or not.
    let DeleteRequest { seq, no_erase: _ } = json::parse_request(body, live.limits.is_strict)?;
    if live.config().sealed {
        return Err(ApiError::STREAM_SEALED);
    }
    if live.config().deny_delete {
        return Err(ApiError::stream_message_delete_failed("message delete not permitted"));
    }
    let index = store.stream(live.id);
    if !index.is_some_and(|index| index.has(seq)) {
        // A stream on disk tells what never was, what was removed from its beginning, and gaps.
        let first = index.and_then(Stream::first).unwrap_or(u64::MAX);
        let is_memory = live.config().storage == StorageKind::Memory;
        return Err(if !is_memory && seq > live.last_sequence(store) {
            ApiError::stream_message_delete_failed("stream store EOF")
        } else if !is_memory && seq < first {
            ApiError::stream_message_delete_failed("no message found")
        } else {
            ApiError::sequence_not_found(seq)
        });
    }
    let commit = live.remove(store, &[seq]).map_err(|error| failed(&error))?;
    let text = AnswerKind::MESSAGE_DELETE.answer(&Deleted { success: true });
    Ok(ApiAnswer { text, commit })
}
