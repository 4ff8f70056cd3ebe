//! Copies of streams in other accounts and domains: taps and messages of their followers.

use super::streams::room;
use super::{ActiveJetStream, TapUse, wall};
use crate::core::Core;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::taps::TapId;
use crate::origin::{AnswerOfOrigin, CopyHome, FollowTerms, FollowWish, Follower, HeardOfOrigin};
use crate::run::tapped::TapMessage;
use crate::store::StreamId;
use crate::stream::{
    CopiedMessage, CopyPage, Incoming, PublishContext, begin_anew, copy_place, last_commit,
    note_failed,
};

/// Bytes of a page after which its messages are stored before the next one is heard.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// A copy of a stream of this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CopyAt {
    pub(super) stream: StreamId,
    /// Number of the copy in its stream.
    pub(super) copy: usize,
}

/// The followers of a stream's copies: none where the origin is in the same account.
#[derive(Debug, Default)]
pub(super) struct Followers {
    all: Vec<Option<TappedFollower>>,
}

/// A follower with its taps, and their filters.
#[derive(Debug)]
struct TappedFollower {
    follower: Follower,
    taps: Vec<(TapId, String)>,
}

impl Followers {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.all.iter().flatten().map(|tapped| tapped.follower.next_due()).min()
    }

    fn at(&mut self, copy: usize) -> Option<&mut TappedFollower> {
        self.all.get_mut(copy)?.as_mut()
    }
}

/// Begins to follow the origins of a stream's copies, and ends what is not in its configuration any
/// more. What has not changed goes on.
pub(super) fn begin_following(js: &mut ActiveJetStream, core: &mut Core, id: StreamId) {
    let Some(stream) = js.streams.all.get_mut(&id) else { return };
    let (config, copies) = (stream.live.config(), stream.live.copies());
    let account = core.accounts.name(stream.account);
    let domain = core.settings.streams.as_ref().and_then(|streams| streams.domain.as_deref());
    let home = CopyHome { account: &account, domain };
    let terms: Vec<Option<FollowTerms>> =
        (0..copies).map(|copy| FollowTerms::of(config, copy, home)).collect();
    let known = std::mem::take(&mut stream.followers.all);
    let is_same = known
        .iter()
        .map(|it| it.as_ref().map(|it| it.follower.terms()))
        .eq(terms.iter().map(Option::as_ref));
    if is_same {
        stream.followers.all = known;
        return;
    }
    stream.followers.all = known;
    end_following(js, core, id);
    let now = core.times.now;
    let followers = terms.into_iter().map(|terms| {
        let follower = Follower::new(terms?, core.random.rng.u64(..), now);
        Some(TappedFollower { follower, taps: Vec::new() })
    });
    let followers = followers.collect();
    if let Some(stream) = js.streams.all.get_mut(&id) {
        stream.followers.all = followers;
    }
}

/// Ends all followers of a stream.
pub(super) fn end_following(js: &mut ActiveJetStream, core: &mut Core, id: StreamId) {
    let Some(stream) = js.streams.all.get_mut(&id) else { return };
    for copy in 0..stream.followers.all.len() {
        let Some(stream) = js.streams.all.get_mut(&id) else { return };
        if let Some(tapped) = stream.followers.at(copy) {
            tapped.follower.end();
            carry_out_wishes(js, core, CopyAt { stream: id, copy });
        }
    }
    if let Some(stream) = js.streams.all.get_mut(&id) {
        stream.followers.all.clear();
    }
}

/// Does what is due for the followers of a stream.
pub(super) fn tick_followers(js: &mut ActiveJetStream, core: &mut Core, id: StreamId) {
    let Some(stream) = js.streams.all.get_mut(&id) else { return };
    for copy in 0..stream.followers.all.len() {
        let Some(stream) = js.streams.all.get_mut(&id) else { return };
        let (account, place) = (stream.account, copy_place(&stream.live, copy));
        let Some(tapped) = stream.followers.at(copy) else { continue };
        let now = core.times.now;
        let is_taken =
            &mut |subject: &str| inside::has_receivers(core, account, subject.as_bytes(), None);
        tapped.follower.tick(now, place, is_taken);
        carry_out_wishes(js, core, CopyAt { stream: id, copy });
    }
}

/// Takes the answer of an origin.
pub(super) fn on_origin_answer(
    js: &mut ActiveJetStream,
    core: &mut Core,
    at: CopyAt,
    message: &TapMessage<'_>,
) {
    let wall = wall(core);
    let Some(stream) = js.streams.all.get_mut(&at.stream) else { return };
    let Some(tapped) = stream.followers.at(at.copy) else { return };
    let mut early = Vec::new();
    match tapped.follower.on_answer(core.times.now, &incoming(message)) {
        AnswerOfOrigin::Nothing => {}
        AnswerOfOrigin::Failed(error) => {
            tracing::debug!("no consumer at the origin of a copy: {error}");
            note_failed(&mut stream.live, at.copy, Some(error));
        }
        AnswerOfOrigin::Anew => begin_anew(&mut stream.live, at.copy),
        AnswerOfOrigin::Follows(messages) => {
            stream.live.note_heard(at.copy, wall, None);
            early = messages;
        }
    }
    carry_out_wishes(js, core, at);
    hear(js, core, at, early.iter().map(|message| message.incoming()));
}

/// Takes messages on the subject of an origin's deliveries.
pub(super) fn on_origin_messages<'a>(
    js: &mut ActiveJetStream,
    core: &mut Core,
    at: CopyAt,
    messages: impl Iterator<Item = TapMessage<'a>>,
) {
    hear(js, core, at, messages.map(|message| incoming(&message)));
}

fn incoming<'a>(message: &TapMessage<'a>) -> Incoming<'a> {
    let TapMessage { subject, reply, headers, body } = *message;
    Incoming { subject, reply, headers, payload: body }
}

fn hear<'a>(
    js: &mut ActiveJetStream,
    core: &mut Core,
    at: CopyAt,
    messages: impl Iterator<Item = Incoming<'a>>,
) {
    let (mut page, mut bytes) = (CopyPage::default(), 0);
    for message in messages {
        let Some(stream) = js.streams.all.get_mut(&at.stream) else { return };
        let Some(tapped) = stream.followers.at(at.copy) else { return };
        let heard = tapped.follower.on_message(core.times.now, &message);
        let HeardOfOrigin::Message { sequence, time, subject, lag } = heard else { continue };
        if page.messages.is_empty() {
            page.identity = tapped.follower.identity().into();
        }
        bytes += message.headers.len() + message.payload.len();
        let [subject, headers, payload] =
            [subject, message.headers, message.payload].map(Into::into);
        page.messages.push(CopiedMessage { sequence, time, subject, headers, payload });
        (page.next, page.lag) = (sequence + 1, lag);
        if bytes >= PAGE_BYTES_MAX {
            take(js, core, at, &std::mem::take(&mut page));
            bytes = 0;
        }
    }
    take(js, core, at, &page);
    carry_out_wishes(js, core, at);
    js.settle(core, at.stream);
}

/// Stores messages of an origin. Those that cannot be stored now are asked for again.
fn take(js: &mut ActiveJetStream, core: &mut Core, at: CopyAt, page: &CopyPage) {
    let now = wall(core);
    let Some(stream) = js.streams.all.get_mut(&at.stream) else { return };
    if page.messages.is_empty() {
        if stream.followers.at(at.copy).is_some_and(|it| it.follower.follows()) {
            stream.live.note_heard(at.copy, now, None);
        }
        return;
    }
    let (is_full, bytes_left) = room(core, stream.account, &stream.usage, &stream.live);
    let refuses = js.logs.refuses(stream.log);
    let Some((store, _)) = js.logs.parts(stream.log) else { return };
    let consumers = &stream.consumers;
    let has_interest = &|subject: &[u8]| consumers.wants(subject);
    let is_full = is_full || refuses;
    let context = PublishContext { now, is_full, bytes_left, has_interest };
    let is_taken = stream.live.take_page(store, &context, at.copy, page);
    if let Some(tapped) = stream.followers.at(at.copy).filter(|_| !is_taken) {
        tapped.follower.ask_anew(core.times.now);
    }
}

fn carry_out_wishes(js: &mut ActiveJetStream, core: &mut Core, at: CopyAt) {
    while let Some(stream) = js.streams.all.get_mut(&at.stream)
        && let Some(tapped) = stream.followers.at(at.copy)
        && let Some(wish) = tapped.follower.next_wish()
    {
        let account = stream.account;
        match wish {
            FollowWish::Unlisten => {
                for (tap, filter) in std::mem::take(&mut tapped.taps) {
                    js.remove_tap(core, account, filter.as_bytes(), tap);
                }
            }
            FollowWish::Listen { deliver, answer } => {
                let wanted =
                    [(deliver, TapUse::OriginMessage(at)), (answer, TapUse::OriginAnswer(at))];
                let taps = wanted.map(|(filter, purpose)| {
                    (js.add_tap(core, account, filter.as_bytes(), purpose), filter)
                });
                let stream = js.streams.all.get_mut(&at.stream);
                if let Some(tapped) = stream.and_then(|it| it.followers.at(at.copy)) {
                    tapped.taps.extend(taps);
                }
            }
            FollowWish::Ask { subject, answer, headers, body } => {
                let (subject, reply) = (subject.as_bytes(), answer.as_bytes());
                let message = InnerMessage { subject, reply, headers: &headers, body: &body };
                inside::publish(core, account, &message);
            }
            FollowWish::Confirm { subject, headers } => {
                let commit = last_commit(&stream.live);
                let is_committed = js.logs.committed(stream.log) >= commit;
                let Some((_, held)) = js.logs.parts(stream.log) else { continue };
                held.push(commit, account, &subject, &headers, b"");
                if is_committed {
                    held.release(core, commit);
                }
            }
        }
    }
}
