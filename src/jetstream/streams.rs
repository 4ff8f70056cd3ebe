//! The streams that this shard owns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::advisory::{BatchAbandoned, StreamAction, advisory};
use super::audit::note_answer;
use super::call::{ApiCall, StreamCall, api_prefixes, without_prefix};
use super::catalogue::stream_limits;
use super::consumers;
use super::consumers::StreamConsumers;
use super::copies::{Asks, WaitingAsks};
use super::follow::{self, Followers};
use super::logs::{Logs, Notice};
use super::meta::{account_limits, answer};
use super::order::{Create, FoundStreams, Order, OwnerCall, ReplyTo, Update};
use super::snapshots::begin_snapshot;
use super::{ActiveJetStream, META, TapUse, wall};
use crate::core::Core;
use crate::core::lanes::send_barrier;
use crate::delivery::held::HeldMessages;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::ids::AccountId;
use crate::interest::ids::ShardId;
use crate::interest::taps::TapId;
use crate::run::tapped::TapMessage;
use crate::store::StreamId;
use crate::stream::{
    AccountUsage, AnswerKind, ApiError, DirectRequest, Incoming, InfoContext, KeptStream,
    LiveStream, Opening, PublishContext, Published, StorageKind, StreamConfig, StreamEvent,
    delete_message, direct_get, get_message, purge, stream_info,
};

/// Time after which what is due and could not be done is tried again, in nanoseconds.
const RETRY_NS: u64 = 1_000_000;

/// A stream of this shard.
#[derive(Debug)]
pub(super) struct OwnedStream {
    pub(super) live: LiveStream,
    /// Place of its log among those of the shard.
    pub(super) log: usize,
    pub(super) account: AccountId,
    pub(super) usage: Arc<AccountUsage>,
    /// Bytes of the stream that its account's usage includes.
    counted_bytes: u64,
    /// Taps for the stream's own subjects, with their filters.
    taps: Vec<(TapId, Box<str>)>,
    pub(super) consumers: StreamConsumers,
    /// Asks of the stream's mirror or sources.
    pub(super) asks: Asks,
    /// Followers of origins in other accounts and domains.
    pub(super) followers: Followers,
    /// The time of the stream's next deadline, as it stands in the queue.
    due: Option<u64>,
}

/// The content of an answer that waits.
#[derive(Debug)]
pub(super) enum Announcement {
    /// A stream was made.
    Created,
    /// A stream was changed.
    Updated,
    /// A stream was restored.
    Restored,
    /// A text that does not change.
    Text(Vec<u8>),
}

/// An answer that waits until all shards know of new interest, and for a commit.
#[derive(Debug)]
struct Announced {
    epoch: u64,
    stream: StreamId,
    log: usize,
    commit: u64,
    reply: ReplyTo,
    what: Announcement,
}

/// A commit of one of the shard's logs.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogCommit {
    pub(super) log: usize,
    pub(super) commit: u64,
}

/// Requests that wait for messages from the disk.
const COLD_MAX: usize = 4096;
/// Bytes of messages that are in memory at once for one direct get.
const GOT_BYTES_MAX: usize = 4 << 20;

/// The streams of this shard.
#[derive(Debug, Default)]
pub(super) struct OwnedStreams {
    pub(super) all: BTreeMap<StreamId, OwnedStream>,
    /// Streams of accounts that are not configured now, with the places of their logs.
    aside: Vec<(StreamId, usize, KeptStream)>,
    announced: VecDeque<Announced>,
    /// Whether the streams of the logs are served.
    are_found: bool,
    /// Deadlines, in nanoseconds since the start of the process.
    deadlines: BTreeSet<(u64, StreamId)>,
    /// Streams whose consumers have something to do.
    awake: BTreeSet<StreamId>,
    /// Streams whose consumers rest until so many answers have left: a client hears of its new
    /// consumer before it gets messages.
    resting: BTreeMap<StreamId, usize>,
    /// Streams with messages that consumers may not see before a commit.
    stored: BTreeMap<StreamId, u64>,
    /// Asks of copies for messages that have not come.
    pub(super) waiting: WaitingAsks,
    cold: ColdWork,
}

/// Work that waits for messages from the disk.
#[derive(Debug, Default)]
struct ColdWork {
    consumers: BTreeSet<StreamId>,
    calls: Vec<OwnerCall>,
    gets: Vec<ColdGet>,
}

/// A direct get whose messages are not in memory.
#[derive(Debug)]
struct ColdGet {
    stream: StreamId,
    subject: Box<[u8]>,
    reply: Box<[u8]>,
    headers: Box<[u8]>,
    body: Box<[u8]>,
}

impl OwnedStreams {
    /// Returns the time of the first deadline, in nanoseconds since the start of the process.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// Lets the consumers of a stream wait for messages from the disk.
    pub(super) fn wait_for_disk(&mut self, id: StreamId) {
        self.cold.consumers.insert(id);
    }

    /// Lets the consumers of a stream be looked at.
    pub(super) fn wake(&mut self, id: StreamId) {
        self.awake.insert(id);
    }

    /// Ends a look at the consumers of a stream, which may have more to do.
    pub(super) fn rest(&mut self, id: StreamId, has_more: bool) {
        if has_more {
            self.awake.insert(id);
        } else {
            self.awake.remove(&id);
        }
    }

    /// Whether the consumers of some stream have something to do now.
    pub(super) fn has_awake(&self) -> bool {
        self.awake.iter().any(|id| !self.resting.contains_key(id))
    }

    /// Takes the streams whose consumers have something to do now.
    pub(super) fn take_awake(&mut self) -> BTreeSet<StreamId> {
        let (now, later) = std::mem::take(&mut self.awake)
            .into_iter()
            .partition(|id| !self.resting.contains_key(id));
        self.awake = later;
        now
    }

    /// Lets the consumers of a stream rest until one more answer has left.
    pub(super) fn begin_rest(&mut self, id: StreamId) {
        *self.resting.entry(id).or_default() += 1;
    }

    /// Notes that an answer has left for which the consumers of a stream have rested.
    fn end_rest(&mut self, id: StreamId) {
        if let Some(answers) = self.resting.get_mut(&id) {
            *answers -= 1;
            if *answers == 0 {
                self.resting.remove(&id);
            }
        }
    }

    /// Returns the streams whose new messages are on the disk.
    pub(super) fn take_stored(&mut self, logs: &Logs) -> Vec<StreamId> {
        let all = &self.all;
        let is_shown = |id: &StreamId, commit: u64| {
            all.get(id).is_none_or(|stream| logs.committed(stream.log) >= commit)
        };
        let shown = self.stored.iter().filter(|(id, commit)| is_shown(id, **commit));
        let shown: Vec<StreamId> = shown.map(|(id, _)| *id).collect();
        self.stored.retain(|id, _| !shown.contains(id));
        shown
    }

    /// Whether answers wait for other shards, or for a commit.
    pub(super) fn has_announced(&self) -> bool {
        !self.announced.is_empty()
    }

    /// Sets the deadline of a stream.
    fn set_due(&mut self, id: StreamId, due: Option<u64>) {
        let Some(stream) = self.all.get_mut(&id) else { return };
        if stream.due == due {
            return;
        }
        if let Some(old) = stream.due.take() {
            self.deadlines.remove(&(old, id));
        }
        stream.due = due;
        self.deadlines.extend(due.map(|due| (due, id)));
    }
}

impl OwnedStream {
    /// Counts anew what the stream takes of its account's limits.
    pub(super) fn recount(&mut self, bytes: u64) {
        self.usage.recount(self.live.config().storage, self.counted_bytes, bytes);
        self.counted_bytes = bytes;
    }
}

/// Returns the subjects that a stream has taps for, and their purposes.
fn filters_of(core: &Core, id: StreamId, config: &StreamConfig) -> Vec<(Box<str>, TapUse)> {
    let subjects = if config.mirror.is_some() { &[][..] } else { &config.subjects[..] };
    let own = subjects.iter().map(|subject| (subject.as_str().into(), TapUse::Publish(id)));
    let mut filters: Vec<(Box<str>, TapUse)> = own.collect();
    if config.allow_direct {
        for prefix in api_prefixes(core) {
            let direct = format!("{prefix}DIRECT.GET.{}", config.name);
            filters.push((format!("{direct}.>").into(), TapUse::Direct(id)));
            filters.push((direct.into(), TapUse::Direct(id)));
        }
    }
    filters
}

impl ActiveJetStream {
    /// Takes all streams of the logs, once those are read.
    pub(super) fn on_recovered(&mut self, core: &mut Core) {
        if !self.logs.are_found() || self.streams.are_found || !self.logs.are_settled() {
            return;
        }
        self.streams.are_found = true;
        let (mut found, mut partial, mut last_id) = (Vec::new(), Vec::new(), 0);
        for log in 0..self.logs.len() {
            let Some(store) = self.logs.store(log) else { continue };
            for (id, bytes) in store.streams() {
                last_id = last_id.max(id.0);
                match bytes.and_then(KeptStream::from_bytes) {
                    Some(kept) if kept.is_partial => partial.push((id, log)),
                    Some(kept) => found.push((id, log, kept)),
                    None => tracing::error!(
                        "The configuration of the stream with the number {} is damaged: it is kept \
                         aside",
                        id.0
                    ),
                }
            }
        }
        // A restore was cut off.
        for (id, log) in partial {
            if let Some(Err(error)) = self.logs.store_mut(log).map(|store| store.end(id)) {
                tracing::warn!("A stream that was not wholly restored is still there: {error:?}");
            }
        }
        for (id, log, kept) in &found {
            self.bring_up(core, *id, *log, kept);
        }
        self.flush(core);
        let found = FoundStreams { streams: found, logs: self.logs.len(), last_id };
        self.send(core, META, Order::Found(found));
    }

    /// Serves a stream that was found in a log.
    fn bring_up(&mut self, core: &mut Core, id: StreamId, log: usize, kept: &KeptStream) {
        let account = core.accounts.find(kept.account.as_bytes());
        let account = account.filter(|account| account_limits(core, *account).is_some());
        let Some(account) = account else {
            tracing::warn!(
                "The stream '{} > {}' is kept aside: its account has no JetStream",
                kept.account,
                kept.config.name
            );
            self.streams.aside.push((id, log, kept.clone()));
            return;
        };
        let opening = opening(core);
        let Some(store) = self.logs.store(log) else { return };
        let live = LiveStream::open(id, kept.clone(), store, &opening);
        let messages = store.stream(id).map_or(0, |index| index.totals().messages);
        let name = format!("{} > {}", kept.account, kept.config.name);
        tracing::info!("  Restored {messages} messages for stream '{name}'");
        let states = self.logs.store_mut(log).map(|store| store.take_consumers(id));
        let states: Vec<Vec<u8>> = states.unwrap_or_default().into_iter().map(Vec::from).collect();
        self.serve(core, log, account, live);
        consumers::find_consumers(self, core, id, &states);
    }

    /// Serves streams whose accounts are configured again.
    pub(super) fn bring_back(&mut self, core: &mut Core) {
        for (id, log, kept) in std::mem::take(&mut self.streams.aside) {
            self.bring_up(core, id, log, &kept);
        }
    }

    pub(super) fn serve(
        &mut self,
        core: &mut Core,
        log: usize,
        account: AccountId,
        live: LiveStream,
    ) {
        let id = live.id();
        let usage = Arc::clone(core.accounts.at(account).stream_usage());
        let consumers = StreamConsumers::new(core, account, live.config());
        let (taps, due, counted_bytes, asks) = (Vec::new(), None, 0, Asks::default());
        let followers = Followers::default();
        let stream = OwnedStream {
            live,
            log,
            account,
            usage,
            counted_bytes,
            taps,
            consumers,
            asks,
            followers,
            due,
        };
        self.streams.all.insert(id, stream);
        self.tap_subjects(core, id);
        self.begin_copies(core, id);
        self.settle(core, id);
    }

    /// Adds and removes taps, so that they are those of the stream's configuration.
    fn tap_subjects(&mut self, core: &mut Core, id: StreamId) {
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let account = stream.account;
        let wanted = filters_of(core, id, stream.live.config());
        let (mut kept, old) = (Vec::new(), std::mem::take(&mut stream.taps));
        for (tap, filter) in old {
            if wanted.iter().any(|(other, _)| *other == filter) {
                kept.push((tap, filter));
            } else {
                self.remove_tap(core, account, filter.as_bytes(), tap);
            }
        }
        for (filter, purpose) in wanted {
            if !kept.iter().any(|(_, other)| *other == filter) {
                kept.push((self.add_tap(core, account, filter.as_bytes(), purpose), filter));
            }
        }
        if let Some(stream) = self.streams.all.get_mut(&id) {
            stream.taps = kept;
        }
    }

    /// Makes a stream.
    pub(super) fn on_create(&mut self, core: &mut Core, create: Create) {
        let Create { reply, stream: id, log, kept } = create;
        let opening = opening(core);
        let made = match self.logs.store_mut(log) {
            Some(store) => LiveStream::create(id, kept, store, &opening).ok(),
            None => None,
        };
        let Some((live, commit)) = made else {
            let text = AnswerKind::STREAM_CREATE.error(&ApiError::INSUFFICIENT_RESOURCES);
            answer(core, &reply, &text);
            return self.send(core, META, Order::Gone(id));
        };
        self.serve(core, log, reply.account, live);
        self.answer_announced(core, id, commit, reply, Announcement::Created);
        self.advise(core, id, commit, "CREATED", "create");
        consumers::on_stream_changed(self, core, id);
    }

    /// Returns the text of an answer; `None` if the stream is gone.
    fn announcement(&self, core: &Core, id: StreamId, what: Announcement) -> Option<Vec<u8>> {
        if let Announcement::Text(text) = what {
            return Some(text);
        }
        let stream = self.streams.all.get(&id)?;
        let info = stream.live.info(self.logs.store(stream.log)?, &self.info_context(core, id));
        Some(match what {
            Announcement::Created => AnswerKind::STREAM_CREATE.answer(&info.as_created()),
            Announcement::Restored => AnswerKind::STREAM_CREATE.answer(&info.as_restored()),
            _ => AnswerKind::STREAM_UPDATE.answer(&info),
        })
    }

    /// Changes a stream's configuration.
    pub(super) fn on_update(&mut self, core: &mut Core, update: Update) {
        let Update { reply, stream: id, config } = update;
        if let Err(error) = consumers::consumers_allow(self, id, &config) {
            return self.refuse_update(core, id, &reply, &error);
        }
        let now = wall(core);
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let Some(store) = self.logs.store_mut(stream.log) else { return };
        let Ok(commit) = stream.live.update(store, now, config) else {
            return self.refuse_update(core, id, &reply, &ApiError::INSUFFICIENT_RESOURCES);
        };
        self.tap_subjects(core, id);
        self.begin_copies(core, id);
        self.settle(core, id);
        self.answer_announced(core, id, commit, reply, Announcement::Updated);
        self.advise(core, id, commit, "UPDATED", "modify");
        consumers::on_stream_changed(self, core, id);
    }

    fn refuse_update(&mut self, core: &mut Core, id: StreamId, reply: &ReplyTo, error: &ApiError) {
        answer(core, reply, &AnswerKind::STREAM_UPDATE.error(error));
        let kept = self.streams.all.get(&id).map(|stream| stream.live.config().clone());
        if let Some(kept) = kept {
            self.send(core, META, Order::Kept(id, Box::new(kept)));
        }
    }

    /// Answers once all shards know the stream's interest, and the commit is on the disk.
    pub(super) fn answer_announced(
        &mut self,
        core: &mut Core,
        id: StreamId,
        commit: u64,
        reply: ReplyTo,
        what: Announcement,
    ) {
        let Some(log) = self.streams.all.get(&id).map(|stream| stream.log) else { return };
        answer_when_known(self, core, id, LogCommit { log, commit }, reply, what);
    }

    /// Answers what all shards are ready for, and what is on the disk.
    pub(super) fn release_announced(&mut self, core: &mut Core) {
        let mut at = 0;
        while let Some(next) = self.streams.announced.get(at) {
            let is_due = core.lanes.are_settled(core.shard, next.epoch)
                && self.logs.committed(next.log) >= next.commit;
            let Some(next) = is_due.then(|| self.streams.announced.remove(at)).flatten() else {
                at += 1;
                continue;
            };
            if matches!(next.what, Announcement::Text(_)) {
                self.streams.end_rest(next.stream);
            }
            if let Some(text) = self.announcement(core, next.stream, next.what) {
                answer(core, &next.reply, &text);
            }
        }
    }

    /// Tells of a change of a stream once its commit is on the disk.
    pub(super) fn advise(
        &mut self,
        core: &mut Core,
        id: StreamId,
        commit: u64,
        event: &str,
        action: &str,
    ) {
        let Some(stream) = self.streams.all.get(&id) else { return };
        let name = &stream.live.config().name;
        let fields = StreamAction { stream: name, action };
        let subject = format!("STREAM.{event}.{name}");
        let told = advisory(core, stream.account, &subject, "stream_action", &fields);
        let (account, log) = (stream.account, stream.log);
        if let Some((subject, text)) = told {
            let message = Notice { account, subject: subject.as_bytes(), body: &text };
            self.logs.send(core, log, commit, &message);
        }
    }

    /// Answers a request about a stream.
    pub(super) fn on_call(&mut self, core: &mut Core, call: OwnerCall) {
        let OwnerCall { reply, stream: id, subject, body } = call;
        let Some(parsed) = ApiCall::parse(&subject) else { return };
        if !self.streams.all.contains_key(&id) {
            return answer(core, &reply, &parsed.kind().error(&ApiError::STREAM_NOT_FOUND));
        }
        match parsed {
            ApiCall::StreamCreate(_) => {
                self.answer_announced(core, id, 0, reply, Announcement::Created);
            }
            ApiCall::OfStream(_, StreamCall::Consumer(consumer)) => {
                consumers::on_consumers_call(self, core, id, reply, consumer, &body);
            }
            ApiCall::OfStream(_, StreamCall::Delete) => self.delete(core, id, &reply),
            ApiCall::OfStream(_, StreamCall::Snapshot) => {
                begin_snapshot(self, core, id, &reply, &body);
            }
            ApiCall::OfStream(_, of_stream) => {
                let outcome = self.carry_out_here(core, id, of_stream, &body);
                if self.misses(id) && self.streams.cold.calls.len() < COLD_MAX {
                    let call = OwnerCall { reply, stream: id, subject, body };
                    self.streams.cold.calls.push(call);
                    return;
                }
                let (text, commit) = match outcome {
                    Ok(done) => (done.text, done.commit),
                    Err(error) => (parsed.kind().error(&error), 0),
                };
                self.settle(core, id);
                let Some(log) = self.streams.all.get(&id).map(|stream| stream.log) else { return };
                // Messages that were got are no news.
                if of_stream != StreamCall::GetMessage || AnswerKind::is_error(&text) {
                    note_answer(core, &reply, &text);
                }
                self.logs.send(core, log, commit, &reply.with(&text));
            }
            _ => {}
        }
    }

    fn carry_out_here(
        &mut self,
        core: &Core,
        id: StreamId,
        call: StreamCall<'_>,
        body: &[u8],
    ) -> Result<crate::stream::ApiAnswer, ApiError> {
        let context = self.info_context(core, id);
        let stream = self.streams.all.get_mut(&id).ok_or(ApiError::STREAM_NOT_FOUND)?;
        let store = self.logs.store_mut(stream.log).ok_or(ApiError::STREAM_NOT_FOUND)?;
        match call {
            StreamCall::Info => {
                let leader = Some(core.settings.server_name().to_owned());
                let context = InfoContext { leader, ..context };
                stream_info(&stream.live, store, &context, body)
            }
            StreamCall::Purge => purge(&mut stream.live, store, body),
            StreamCall::GetMessage => get_message(&stream.live, store, body),
            StreamCall::DeleteMessage => delete_message(&mut stream.live, store, body),
            StreamCall::Delete | StreamCall::Snapshot | StreamCall::Consumer(_) => {
                Err(ApiError::BAD_REQUEST)
            }
        }
    }

    fn delete(&mut self, core: &mut Core, id: StreamId, reply: &ReplyTo) {
        consumers::end_consumers(self, core, id);
        self.end_origin(core, id);
        follow::end_following(self, core, id);
        self.advise(core, id, 0, "DELETED", "delete");
        self.streams.set_due(id, None);
        let Some(mut stream) = self.streams.all.remove(&id) else { return };
        stream.recount(0);
        for (tap, filter) in std::mem::take(&mut stream.taps) {
            self.remove_tap(core, stream.account, filter.as_bytes(), tap);
        }
        let Some(store) = self.logs.store_mut(stream.log) else { return };
        let (text, commit) = match store.end(id) {
            Ok(commit) => {
                (AnswerKind::STREAM_DELETE.answer(&StreamDeleted { success: true }), commit)
            }
            Err(_) => (AnswerKind::STREAM_DELETE.error(&ApiError::INSUFFICIENT_RESOURCES), 0),
        };
        note_answer(core, reply, &text);
        self.logs.send(core, stream.log, commit, &reply.with(&text));
    }

    /// Shows the state of streams for a list.
    pub(super) fn on_describe(
        &mut self,
        core: &mut Core,
        from: ShardId,
        listing: u64,
        streams: &[StreamId],
    ) {
        let mut infos = Vec::with_capacity(streams.len());
        for id in streams {
            let context = InfoContext { shows_version: false, ..self.info_context(core, *id) };
            let stream = self.streams.all.get(id);
            let shown = stream.and_then(|stream| {
                let info = stream.live.info(self.logs.store(stream.log)?, &context);
                serde_json::to_string(&info).ok()
            });
            infos.push((*id, shown.unwrap_or_default()));
        }
        self.send(core, from, Order::Described { listing, infos });
    }

    pub(super) fn info_context(&self, core: &Core, id: StreamId) -> InfoContext {
        let now = wall(core);
        let copies = self.streams.all.get(&id).map(|stream| stream.live.copies_shown(now));
        let (mirror, sources) = copies.unwrap_or_default();
        InfoContext {
            now,
            consumers: consumers::consumers_of(self, id),
            shows_version: true,
            mirror,
            sources,
            ..InfoContext::default()
        }
    }

    /// Stores messages that were published to a stream's subjects; [`settle_stored`] follows
    /// when no more runs for the stream do. (Each of many publishers has a run of its own.)
    pub(super) fn on_publishes<'a>(
        &mut self,
        core: &mut Core,
        id: StreamId,
        messages: impl Iterator<Item = TapMessage<'a>>,
    ) {
        if self.unsettled.is_some_and(|(other, _)| other != id) {
            settle_stored(self, core);
        }
        let now = wall(core);
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let account = stream.account;
        let (is_full, bytes_left) = room(core, account, &stream.usage, &stream.live);
        // A log that takes nothing now refuses messages, and says so at once: no commit may follow.
        let refuses = self.logs.refuses(stream.log);
        let mut refusals = HeldMessages::default();
        let Some((store, held)) = self.logs.parts(stream.log) else { return };
        let (mut text, mut last_commit) = (Vec::new(), 0);
        for TapMessage { subject, reply, headers, body } in messages {
            let consumers = &stream.consumers;
            let context = PublishContext {
                now,
                is_full: is_full || refuses,
                bytes_left,
                has_interest: &|subject: &[u8]| consumers.wants(subject),
            };
            let incoming = Incoming { subject, reply, headers, payload: body };
            let published = stream.live.publish(store, &context, &incoming);
            while let Some(StreamEvent::Publish { subject, headers, payload, commit }) =
                stream.live.next_told()
            {
                held.push(commit, account, &subject, &headers, &payload);
            }
            match &published {
                Published::Failed(error) => tracing::debug!("not stored: {error:?}"),
                Published::Stored(stored) => last_commit = stored.commit,
                _ => {}
            }
            if !reply.is_empty() {
                text.clear();
                let is_refusal = refuses && matches!(published, Published::Refused(_));
                let waits = if is_refusal { &mut refusals } else { &mut *held };
                if let Some(commit) = stream.live.pub_ack(&published, &mut text) {
                    waits.push(commit, account, reply, b"", &text);
                }
            }
        }
        stream.recount(store.stream(id).map_or(0, |index| index.totals().bytes));
        refusals.release(core, u64::MAX);
        let before = self.unsettled.map_or(0, |(_, commit)| commit);
        self.unsettled = Some((id, last_commit.max(before)));
    }

    /// Takes note of what a stream has become: events, bytes, deadlines.
    pub(super) fn settle(&mut self, core: &mut Core, id: StreamId) {
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let Some((store, held)) = self.logs.parts(stream.log) else { return };
        let (mut removed, mut stored) = (Vec::new(), None);
        while let Some(event) = stream.live.next_event() {
            match event {
                StreamEvent::Removed(_) | StreamEvent::Purged(_) => removed.push(event),
                StreamEvent::Stored { commit, .. } => stored = stored.max(Some(commit)),
                StreamEvent::Publish { subject, headers, payload, commit } => {
                    held.push(commit, stream.account, &subject, &headers, &payload);
                }
                StreamEvent::BatchAbandoned { batch, reason } => {
                    abandoned(core, stream.account, &stream.live, &batch, reason, held);
                }
            }
        }
        let bytes = store.stream(id).map_or(0, |index| index.totals().bytes);
        stream.recount(bytes);
        let epoch = core.settings.epoch_ms.saturating_mul(1_000_000);
        let of_stream = stream.live.next_deadline(store).map(|due| due.saturating_sub(epoch));
        let of_copies = [stream.asks.next_deadline(), stream.followers.next_deadline()];
        let others = of_copies.into_iter().chain([stream.consumers.next_deadline()]);
        let due = others.chain([of_stream]).flatten().min();
        // What the log does not take now is tried again, but not all the time.
        let due = due.map(|due| due.max(core.times.now + RETRY_NS));
        self.streams.set_due(id, due);
        if let Some(commit) = stored {
            self.note_stored(core, id, commit);
        }
        for event in removed {
            consumers::on_removed(self, core, id, &event);
        }
    }

    /// Lets consumers and copies have what was stored, once its commit is on the disk.
    fn note_stored(&mut self, core: &mut Core, id: StreamId, commit: u64) {
        let Some(log) = self.streams.all.get(&id).map(|stream| stream.log) else { return };
        if commit > self.logs.committed(log) {
            self.streams.stored.insert(id, commit);
        } else {
            consumers::on_stored(self, id);
            self.feed_copies_of(core, id);
        }
    }

    /// Does what is due in streams.
    pub(super) fn tick_streams(&mut self, core: &mut Core) {
        let now = wall(core);
        // Each stream once: what is left to do, or was refused, is due again.
        let due = self.streams.deadlines.iter().take_while(|(due, _)| *due <= core.times.now);
        for (due, id) in due.copied().collect::<Vec<_>>() {
            self.streams.deadlines.remove(&(due, id));
            let Some(stream) = self.streams.all.get_mut(&id) else { continue };
            stream.due = None;
            let (is_full, bytes_left) = room(core, stream.account, &stream.usage, &stream.live);
            if let Some(store) = self.logs.store_mut(stream.log) {
                let consumers = &stream.consumers;
                let has_interest = &|subject: &[u8]| consumers.wants(subject);
                let context = PublishContext { now, is_full, bytes_left, has_interest };
                stream.live.tick_in(store, &context);
            }
            self.tick_copies(core, id);
            follow::tick_followers(self, core, id);
            self.settle(core, id);
            // The next deadline is known when consumers have done what is due.
            self.streams.wake(id);
        }
    }

    /// Answers a direct get.
    pub(super) fn on_direct(&mut self, core: &mut Core, id: StreamId, message: &TapMessage<'_>) {
        let Some(stream) = self.streams.all.get(&id).filter(|_| !message.reply.is_empty()) else {
            return;
        };
        let Some(store) = self.logs.store(stream.log) else { return };
        let Some(rest) = without_prefix(message.subject) else { return };
        let name_end = "DIRECT.GET.".len() + stream.live.config().name.len();
        let subject = rest.as_bytes().get(name_end..).and_then(|rest| rest.strip_prefix(b"."));
        let request = DirectRequest { headers: message.headers, body: message.body, subject };
        let account = stream.account;
        let (mut found, mut bytes) = (Vec::new(), 0);
        store.take_missed();
        direct_get(&stream.live, store, &request, &mut |headers, body| {
            bytes += headers.len() + body.len();
            found.push((headers.to_vec(), body.to_vec()));
        });
        // What is too much to be in memory at once is answered in parts: the end says so.
        let is_much = bytes > GOT_BYTES_MAX || self.streams.cold.gets.len() >= COLD_MAX;
        if self.misses(id) && !is_much {
            let TapMessage { subject, reply, headers, body } = *message;
            let [subject, reply, headers, body] = [subject, reply, headers, body].map(Into::into);
            self.streams.cold.gets.push(ColdGet { stream: id, subject, reply, headers, body });
            return;
        }
        for (headers, body) in &found {
            let inner = InnerMessage { subject: message.reply, reply: b"", headers, body };
            inside::publish(core, account, &inner);
        }
    }

    /// Whether a message was not in memory, which is asked for.
    pub(super) fn misses(&mut self, id: StreamId) -> bool {
        let Some(log) = self.streams.all.get(&id).map(|stream| stream.log) else { return false };
        let Some(store) = self.logs.store_mut(log) else { return false };
        let Some((stream, sequence)) = store.take_missed() else { return false };
        store.load(stream, sequence);
        true
    }

    /// Goes on with what has waited for messages from the disk.
    pub(super) fn on_loaded(&mut self, core: &mut Core) {
        let ColdWork { consumers, calls, gets } = std::mem::take(&mut self.streams.cold);
        for id in consumers {
            consumers::on_consumers_loaded(self, id);
        }
        self.feed_copies(core);
        for call in calls {
            self.on_call(core, call);
        }
        for ColdGet { stream, subject, reply, headers, body } in gets {
            let (subject, reply) = (&*subject, &*reply);
            let message = TapMessage { subject, reply, headers: &headers, body: &body };
            self.on_direct(core, stream, &message);
        }
    }
}

/// Settles the stream that has stored messages last, if that was not done since.
pub(super) fn settle_stored(js: &mut ActiveJetStream, core: &mut Core) {
    if let Some((id, commit)) = js.unsettled.take() {
        js.settle(core, id);
        js.note_stored(core, id, commit);
    }
}

/// Returns whether the server has no room for a stream's messages, and the bytes that its account
/// may still store.
pub(super) fn room(
    core: &Core,
    account: AccountId,
    usage: &AccountUsage,
    live: &LiveStream,
) -> (bool, u64) {
    let of_account = account_limits(core, account).unwrap_or_default();
    let of_server = core.settings.streams.as_ref().map(|streams| streams.limits);
    let of_server = of_server.unwrap_or_default();
    let storage = live.config().storage;
    let (bytes_max, server_max) = match storage {
        StorageKind::File => (of_account.file_bytes_max, of_server.file_bytes_max),
        StorageKind::Memory => (of_account.memory_bytes_max, of_server.memory_bytes_max),
    };
    let used = usage.bytes(storage);
    (used >= server_max, bytes_max.unwrap_or(u64::MAX).saturating_sub(used))
}

#[derive(serde::Serialize)]
struct StreamDeleted {
    success: bool,
}

fn abandoned(
    core: &mut Core,
    account: AccountId,
    live: &LiveStream,
    batch: &str,
    reason: &str,
    held: &mut HeldMessages,
) {
    let stream = live.config().name.as_str();
    let fields = BatchAbandoned { stream, batch, reason };
    let subject = format!("STREAM.BATCH_ABANDONED.{stream}");
    let told = advisory(core, account, &subject, "stream_batch_abandoned", &fields);
    if let Some((subject, text)) = told {
        held.push(0, account, subject.as_bytes(), b"", &text);
    }
}

/// Facts for a stream that begins to run.
pub(super) fn opening(core: &mut Core) -> Opening {
    let streams = core.settings.streams.as_ref();
    Opening {
        now: wall(core),
        seed: core.random.rng.u64(..),
        limits: stream_limits(core),
        domain: streams.and_then(|streams| streams.domain.as_deref()).map(str::to_owned),
    }
}

/// Answers once all shards know of new interest, and a commit is on the disk, about a stream that
/// may not be served yet.
pub(super) fn answer_when_known(
    js: &mut ActiveJetStream,
    core: &mut Core,
    id: StreamId,
    behind: LogCommit,
    reply: ReplyTo,
    what: Announcement,
) {
    let LogCommit { log, commit } = behind;
    let epoch = send_barrier(core);
    let announced = Announced { epoch, stream: id, log, commit, reply, what };
    js.streams.announced.push_back(announced);
}
