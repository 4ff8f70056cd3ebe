//! Copies: streams that take the messages of others, as mirrors or from sources.
//!
//! A copy asks the origin for a page of messages behind the last one that it has, takes it, and
//! asks again. The owner of both sides carries pages between them, and holds an ask at the origin
//! until there is something new. The messages themselves tell after a restart what was taken: a
//! mirror has the sequences of its origin, a message of a source names it in a header.

use super::config::{StreamConfig, StreamSource};
use super::error::ApiError;
use super::headers::{self, name};
use super::live::{LiveStream, StreamEvent};
use super::publish::{Incoming, PublishContext, Published, StoredAt};
use super::requests::SourceInfo;
use super::time::Timestamp;
use crate::store::{NextMessage, SEQUENCE_MAX, StoredMessage, StreamStore};
use crate::subject::Transform;

/// Messages of one page, at most.
const PAGE_MESSAGES_MAX: usize = 256;
/// Bytes of one page after which no message is added.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Messages that are looked at for one page.
const PAGE_STEPS_MAX: usize = 1 << 16;

/// Place in the origin from which on a copy wants messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStart {
    /// From this sequence on.
    Sequence(u64),
    /// From the first message at this time or later, in nanoseconds since 1970.
    Time(i64),
}

/// An ask for a page of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyAsk {
    /// Number of the copy in its stream.
    pub copy: usize,
    /// Name of the origin.
    pub origin: Box<str>,
    /// First message that is wanted.
    pub start: CopyStart,
    /// Filters of the subjects that are wanted; all if there are none.
    pub filters: Vec<Box<str>>,
}

/// A message of the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedMessage {
    /// Sequence in the origin.
    pub sequence: u64,
    /// Time in the origin, in nanoseconds since 1970.
    pub time: u64,
    /// Subject in the origin.
    pub subject: Box<[u8]>,
    /// Headers with the line that they begin with.
    pub headers: Box<[u8]>,
    /// Payload without the headers.
    pub payload: Box<[u8]>,
}

/// A page of messages of the origin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyPage {
    /// The messages, in order.
    pub messages: Vec<CopiedMessage>,
    /// Sequence from which on the next page is wanted.
    pub next: u64,
    /// Messages behind the page, at most.
    pub lag: u64,
    /// A text that tells this origin from one of the same name before it.
    pub identity: Box<str>,
}

/// A copy's place in its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlace {
    /// First message that is wanted.
    pub start: CopyStart,
    /// A text that tells the origin from others of its name; empty if it is not known.
    pub identity: Box<str>,
}

/// The state of one copy.
#[derive(Debug)]
pub(super) struct CopyState {
    source: StreamSource,
    start: CopyStart,
    transforms: Vec<Transform>,
    /// The last sequence of the origin that was taken; 0 if none was.
    taken: u64,
    lag: u64,
    /// Time at which the origin was heard of, in nanoseconds since 1970; 0 if it never was.
    heard: u64,
    error: Option<ApiError>,
    /// A text that tells the origin from others of its name; empty if it is not known.
    identity: Box<str>,
}

impl CopyState {
    fn new(source: &StreamSource) -> Self {
        let start = match source.opt_start_time {
            Some(Timestamp(time)) => CopyStart::Time(time),
            None => CopyStart::Sequence(source.opt_start_seq.max(1)),
        };
        let transforms = source.subject_transforms.iter();
        let transforms = transforms.filter(|it| !it.dest.is_empty()).filter_map(|it| {
            let src = if it.src.is_empty() { ">" } else { it.src.as_str() };
            Transform::new(src.as_bytes(), it.dest.as_bytes()).ok()
        });
        Self {
            source: source.clone(),
            start,
            transforms: transforms.collect(),
            taken: 0,
            lag: 0,
            heard: 0,
            error: None,
            identity: "".into(),
        }
    }

    fn filters(&self) -> Vec<Box<str>> {
        let transforms = self.source.subject_transforms.iter().map(|it| it.src.as_str());
        let all = transforms.chain([self.source.filter_subject.as_str()]);
        all.filter(|filter| !filter.is_empty()).map(Box::from).collect()
    }

    fn info(&self, now: u64) -> SourceInfo {
        let active = match self.heard {
            0 => -1,
            heard => i64::try_from(now.saturating_sub(heard)).unwrap_or(i64::MAX),
        };
        SourceInfo {
            lag: self.lag,
            seq: self.taken,
            active,
            error: self.error.clone(),
            ..SourceInfo::new(&self.source)
        }
    }
}

/// The states of all copies of a stream with this configuration: a mirror is the only one.
pub(super) fn copies_of(config: &StreamConfig) -> Vec<CopyState> {
    let mirror = config.mirror.iter();
    mirror.chain(&config.sources).map(CopyState::new).collect()
}

/// A message's place of origin, as a header tells it.
struct OriginNamed<'a> {
    /// Origin, filter and destination of the source.
    name: [&'a str; 3],
    sequence: u64,
    identity: &'a str,
}

fn parse_origin(header: &str) -> Option<OriginNamed<'_>> {
    let mut fields = header.split(' ');
    let (origin, sequence) = (fields.next()?, fields.next()?);
    let (filter, dest) = (fields.next().unwrap_or(">"), fields.next().unwrap_or(">"));
    // The subject is between them.
    let identity = fields.nth(1).unwrap_or("");
    let sequence = sequence.parse().ok().filter(|sequence| *sequence <= SEQUENCE_MAX)?;
    Some(OriginNamed { name: [origin, filter, dest], sequence, identity })
}

impl LiveStream {
    /// Number of copies: one of a mirror, else one for each source.
    pub fn copies(&self) -> usize {
        self.copies.len()
    }

    /// The ask for the next page of a copy; `None` if there is no such copy, or its origin is in
    /// another account or domain.
    pub fn copy_ask(&self, copy: usize) -> Option<CopyAsk> {
        let is_known = self.copies_from == 0;
        let state = self.copies.get(copy).filter(|_| is_known)?;
        let state = Some(state).filter(|state| state.source.external.is_none())?;
        let (origin, start) = (state.source.name.as_str().into(), state.start);
        Some(CopyAsk { copy, origin, start, filters: state.filters() })
    }

    /// Returns the next page for a copy of this stream; without messages if there are none yet.
    pub fn copy_page(&self, store: &StreamStore, ask: &CopyAsk) -> CopyPage {
        let filters: Vec<&[u8]> = ask.filters.iter().map(|filter| filter.as_bytes()).collect();
        let mut next = match ask.start {
            CopyStart::Sequence(sequence) => sequence,
            CopyStart::Time(time) => self.sequence_at(store, time),
        };
        let (mut messages, mut bytes, mut steps) = (Vec::new(), 0, PAGE_STEPS_MAX);
        while messages.len() < PAGE_MESSAGES_MAX && bytes < PAGE_BYTES_MAX {
            match store.next(self.id, &filters, next, &mut steps) {
                NextMessage::Found(sequence) => {
                    let Some(message) = self.shown(store, sequence) else {
                        // It is not in memory: the next page begins with it.
                        next = sequence;
                        break;
                    };
                    next = sequence + 1;
                    bytes += message.headers.len() + message.payload.len();
                    messages.push(copied(&message));
                }
                NextMessage::Later(at) => {
                    next = at;
                    break;
                }
                NextMessage::None => {
                    let last = store.stream(self.id).map_or(0, |index| index.state().last);
                    next = next.max(last + 1);
                    break;
                }
            }
        }
        // Those that no filter matches are counted, too: to count the others would be work.
        let last = store.stream(self.id).map_or(0, |index| index.state().last);
        let lag = (last + 1).saturating_sub(next);
        let identity = identity(self).into();
        CopyPage { messages, next, lag, identity }
    }

    /// Takes a page of a copy. Returns whether all of it was taken: if not, the copy is to be asked
    /// again later.
    pub fn take_page(
        &mut self,
        store: &mut StreamStore,
        context: &PublishContext<'_>,
        copy: usize,
        page: &CopyPage,
    ) -> bool {
        let is_mirror = self.config().mirror.is_some();
        for message in &page.messages {
            let published = match is_mirror {
                true => store_mirrored(self, store, context, message),
                false => store_sourced(self, store, context, &OfSource { copy, message, page }),
            };
            match published {
                Published::Stored(StoredAt { sequence, commit, .. }) => {
                    self.events.push_back(StreamEvent::Stored { sequence, commit });
                }
                Published::Refused(error) => {
                    self.note_heard(copy, context.now, Some(error));
                    return false;
                }
                Published::Failed(_) => return false,
                _ => {}
            }
            if let Some(state) = self.copies.get_mut(copy) {
                state.taken = message.sequence;
                state.start = CopyStart::Sequence(message.sequence + 1);
            }
        }
        if let Some(state) = self.copies.get_mut(copy) {
            if state.identity != page.identity {
                state.identity.clone_from(&page.identity);
            }
            state.lag = page.lag;
            state.start = CopyStart::Sequence(page.next.max(1));
        }
        self.note_heard(copy, context.now, None);
        true
    }

    /// Takes note that the origin of a copy was heard of, or what is wrong with it.
    pub fn note_heard(&mut self, copy: usize, now: u64, error: Option<ApiError>) {
        if let Some(state) = self.copies.get_mut(copy) {
            (state.heard, state.error) = (now, error);
        }
    }

    /// The states of the copies as answers show them: of the mirror, or of the sources.
    pub fn copies_shown(&self, now: u64) -> (Option<SourceInfo>, Vec<SourceInfo>) {
        let mut all = self.copies.iter().map(|copy| copy.info(now));
        // The sequences of a mirror are its own, and its filter is shown once it has asked.
        let of_mirror = |info: SourceInfo| {
            let has_asked = info.active >= 0 || info.error.is_some();
            let filter_subject = if has_asked { info.filter_subject } else { String::new() };
            SourceInfo { seq: 0, filter_subject, ..info }
        };
        match self.config().mirror {
            Some(_) => (all.next().map(of_mirror), Vec::new()),
            None => (None, all.collect()),
        }
    }
}

/// Takes note that the origin of a copy is not there: a mirror shows it.
pub fn note_lost(live: &mut LiveStream, copy: usize) {
    let is_mirror = live.config().mirror.is_some();
    if let Some(state) = live.copies.get_mut(copy).filter(|_| is_mirror) {
        state.error = Some(ApiError::STREAM_NOT_FOUND);
    }
}

/// Takes note of an error of a copy, whose origin was not heard of.
pub fn note_failed(live: &mut LiveStream, copy: usize, error: Option<ApiError>) {
    if let Some(state) = live.copies.get_mut(copy) {
        state.error = error;
    }
}

/// Returns a copy's place; `None` if there is no such copy, or it is not known yet.
pub fn copy_place(live: &LiveStream, copy: usize) -> Option<CopyPlace> {
    let state = live.copies.get(copy).filter(|_| live.copies_from == 0)?;
    Some(CopyPlace { start: state.start, identity: state.identity.clone() })
}

/// Lets a copy begin at the start of its origin, which is another one than before.
pub fn begin_anew(live: &mut LiveStream, copy: usize) {
    if let Some(state) = live.copies.get_mut(copy) {
        *state = CopyState { heard: state.heard, ..CopyState::new(&state.source) };
    }
}

/// Learns from the stored messages how far the copies are, as far as they are in memory.
pub(super) fn find_copies(live: &mut LiveStream, store: &StreamStore) {
    let last = live.last_sequence(store);
    live.copies = copies_of(live.config());
    live.copies_from = 0;
    if live.config().mirror.is_none() && !live.copies.is_empty() {
        live.copies_from = last;
        go_on_finding(live, store);
    } else if let Some(mirror) = live.copies.first_mut().filter(|_| last > 0) {
        (mirror.taken, mirror.start) = (last, CopyStart::Sequence(last + 1));
    }
}

/// Goes back through the messages for what sources they came from. Returns a message that has to
/// come into memory for that.
pub(super) fn go_on_finding(live: &mut LiveStream, store: &StreamStore) -> Option<u64> {
    let names: Vec<[String; 3]> =
        live.copies.iter().map(|copy| copy.source.index_parts()).collect();
    let first = store.stream(live.id).and_then(crate::store::Stream::first);
    let first = first.unwrap_or(u64::MAX);
    while live.copies_from > 0 {
        let sequence = live.copies_from;
        if sequence < first || live.copies.iter().all(|copy| copy.taken > 0) {
            live.copies_from = 0;
            return None;
        }
        if live.is_cold(store, sequence) {
            return Some(sequence);
        }
        live.copies_from -= 1;
        let Some(message) = live.message(store, sequence) else { continue };
        let Some(header) = headers::text(message.headers, name::STREAM_SOURCE) else { continue };
        let Some(origin) = parse_origin(&header) else { continue };
        let is_named = |known: &[String; 3]| known.each_ref().map(String::as_str) == origin.name;
        let at = names.iter().position(is_named);
        if let Some(copy) = at.and_then(|at| live.copies.get_mut(at)).filter(|it| it.taken == 0) {
            let next = origin.sequence + 1;
            (copy.taken, copy.start) = (origin.sequence, CopyStart::Sequence(next));
            copy.identity = origin.identity.into();
        }
    }
    None
}

fn transformed(live: &mut LiveStream, copy: usize, subject: &[u8]) -> Vec<u8> {
    let mut changed = Vec::new();
    let rng = &mut live.rng;
    let transforms = live.copies.get(copy).map_or(&[][..], |state| &state.transforms[..]);
    match transforms.iter().any(|it| it.apply(subject, rng, &mut changed)) {
        true => changed,
        false => subject.to_vec(),
    }
}

fn store_mirrored(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    message: &CopiedMessage,
) -> Published {
    if message.sequence <= live.last_sequence(store) {
        return Published::Duplicate { sequence: message.sequence, commit: 0 };
    }
    let subject = transformed(live, 0, &message.subject);
    let CopiedMessage { headers, payload, .. } = message;
    let incoming = Incoming { subject: &subject, reply: b"", headers, payload };
    let mut draft = live.draft(&incoming);
    draft.is_own = true;
    draft.place = Some((message.sequence, message.time));
    if context.is_full {
        return ApiError::INSUFFICIENT_RESOURCES.into();
    }
    live.store(store, context, draft).unwrap_or_else(|refused| refused)
}

/// A message of a source's page.
struct OfSource<'a> {
    /// Number of the copy in its stream.
    copy: usize,
    message: &'a CopiedMessage,
    page: &'a CopyPage,
}

fn store_sourced(
    live: &mut LiveStream,
    store: &mut StreamStore,
    context: &PublishContext<'_>,
    origin: &OfSource<'_>,
) -> Published {
    let OfSource { copy, message, page } = *origin;
    let identity = &page.identity;
    let Some(state) = live.copies.get(copy) else { return Published::Unanswered };
    let [origin, filter, dest] = state.source.index_parts();
    let original = String::from_utf8_lossy(&message.subject);
    let sequence = message.sequence;
    let mut source = format!("{origin} {sequence} {filter} {dest} {original}");
    if !identity.is_empty() {
        source.push(' ');
        source.push_str(identity);
    }
    let mut block = message.headers.to_vec();
    headers::remove(&mut block, name::STREAM_SOURCE);
    headers::remove_all(&mut block, "Nats-Expected-");
    headers::remove_all(&mut block, "Nats-Batch-");
    headers::add(&mut block, name::STREAM_SOURCE, source);
    let subject = transformed(live, copy, &message.subject);
    let payload = &*message.payload;
    let incoming = Incoming { subject: &subject, reply: b"", headers: &block, payload };
    let mut draft = live.draft(&incoming);
    draft.is_own = true;
    match live.check(store, context, &mut draft) {
        Ok(None) => {}
        Ok(Some(published)) => return published,
        Err(error) => return error.into(),
    }
    live.store(store, context, draft).unwrap_or_else(|refused| refused)
}

/// A text of eight characters that tells streams of one name by the time at which they were made.
pub fn identity(live: &LiveStream) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut left = live.kept.created.0.unsigned_abs();
    let mut next = || {
        let digit = usize::try_from(left % 62).unwrap_or(0);
        left /= 62;
        char::from(DIGITS[digit])
    };
    (0..8).map(|_| next()).collect()
}

fn copied(message: &StoredMessage<'_>) -> CopiedMessage {
    CopiedMessage {
        sequence: message.sequence,
        time: message.time,
        subject: message.subject.into(),
        headers: message.headers.into(),
        payload: message.payload.into(),
    }
}
