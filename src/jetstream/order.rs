//! Orders: messages between the meta shard and the owners of streams.

use super::audit::{AuditEvent, Audited};
use super::copies::{CopyCall, CopyReply};
use super::logs::Notice;
use crate::core::Core;
use crate::core::shard_message::InsideRecord;
use crate::interest::ids::{AccountId, Publisher};
use crate::run::tapped::{TapMessage, TapRun};
use crate::store::StreamId;
use crate::stream::{KeptStream, StreamConfig, headers};

/// The destination of an answer.
#[derive(Debug, Clone)]
pub(super) struct ReplyTo {
    pub(super) account: AccountId,
    /// The subject; empty if no answer is wanted.
    pub(super) subject: Box<[u8]>,
    /// The connection that has asked.
    pub(super) publisher: Publisher,
    /// The request, if somebody wants to hear of it.
    pub(super) audited: Option<Box<Audited>>,
    /// The identity that the request wants its stream to have; empty if any will do.
    pub(super) wanted: Box<[u8]>,
    /// The identity that the answer tells a copy; empty if it tells none.
    pub(super) identity: Box<[u8]>,
}

impl ReplyTo {
    /// The destination of the answer to a message.
    pub(super) fn of(core: &mut Core, run: &TapRun, message: &TapMessage<'_>) -> Self {
        let TapMessage { subject, reply, headers, body } = *message;
        let (account, publisher) = (run.account, run.publisher);
        let audited = Audited::of(core, account, publisher, subject, body);
        let wanted = headers::value(headers, headers::name::STREAM_IDENTITY).unwrap_or_default();
        let (subject, wanted, identity) = (reply.into(), wanted.into(), Box::default());
        Self { account, subject, publisher, audited, wanted, identity }
    }

    /// The answer with this text.
    pub(super) fn with<'a>(&'a self, text: &'a [u8]) -> Notice<'a> {
        Notice { account: self.account, subject: &self.subject, body: text }
    }
}

/// The streams that a shard has found in its logs.
#[derive(Debug)]
pub(super) struct FoundStreams {
    /// Each stream with the place of its log among those of the shard.
    pub(super) streams: Vec<(StreamId, usize, KeptStream)>,
    /// Number of logs of the shard that take streams.
    pub(super) logs: usize,
    /// The highest number of a stream that any log knows.
    pub(super) last_id: u32,
}

/// A stream to be made.
#[derive(Debug)]
pub(super) struct Create {
    pub(super) reply: ReplyTo,
    pub(super) stream: StreamId,
    /// Place of the log among those of the owner.
    pub(super) log: usize,
    pub(super) kept: KeptStream,
}

/// A configuration that was checked.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) reply: ReplyTo,
    pub(super) stream: StreamId,
    pub(super) config: StreamConfig,
}

/// A request about a stream, for its owner.
#[derive(Debug)]
pub(super) struct OwnerCall {
    pub(super) reply: ReplyTo,
    pub(super) stream: StreamId,
    /// The subject of the request without the prefix of the API.
    pub(super) subject: Box<str>,
    pub(super) body: Box<[u8]>,
}

/// A message between the parts of JetStream.
#[derive(Debug)]
pub(super) enum Order {
    /// To the meta shard: the streams of a shard, at its start.
    Found(FoundStreams),
    /// To an owner: a new stream.
    Create(Box<Create>),
    /// To an owner: a stream whose archive is to come.
    Restore(Box<Create>),
    /// To an owner: a new configuration.
    Update(Box<Update>),
    /// To an owner: a request.
    Call(Box<OwnerCall>),
    /// To an owner: a request for the state of streams.
    Describe {
        /// Number of the list that is being made.
        listing: u64,
        streams: Vec<StreamId>,
    },
    /// To the meta shard: the state of streams as JSON.
    Described { listing: u64, infos: Vec<(StreamId, String)> },
    /// To the meta shard: an ask of a copy, whose origin is to be found.
    FindOrigin(Box<CopyCall>),
    /// To the owner of an origin: an ask of a copy.
    Ask(Box<CopyCall>),
    /// To the owner of a copy: the answer to its ask.
    Page(Box<CopyReply>),
    /// To the shard of a client: its request with the answer.
    Audit(Box<AuditEvent>),
    /// To the meta shard: a stream was restored.
    Restored(StreamId),
    /// To the meta shard: a stream could not be made.
    Gone(StreamId),
    /// To the meta shard: a stream has kept this configuration, as the new one was not stored.
    Kept(StreamId, Box<StreamConfig>),
}

impl InsideRecord for Order {
    fn cost_bytes(&self) -> usize {
        match self {
            Self::Call(call) => call.subject.len() + call.body.len(),
            Self::Described { infos, .. } => infos.iter().map(|(_, info)| info.len()).sum(),
            Self::Page(reply) => reply.bytes(),
            Self::Audit(event) => event.bytes(),
            _ => 0,
        }
    }
}
