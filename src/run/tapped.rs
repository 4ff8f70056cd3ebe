//! Runs for receivers inside the server, kept until the end of the turn in which they came.
//!
//! A receiver may publish and change interest because of a message. Both are not possible in the
//! middle of a delivery, so a run is copied, once for all its receivers of a turn that follow one
//! another. The queue is bounded by the input of one turn.

use crate::interest::ids::{AccountId, Publisher};
use crate::interest::taps::TapId;
use crate::run::Run;

/// A run that waits for its receiver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TapRun {
    pub(crate) tap: TapId,
    pub(crate) account: AccountId,
    pub(crate) publisher: Publisher,
    /// The first of the run's messages, and the number of them.
    first: usize,
    count: usize,
}

/// A message of a run, as lengths of its parts, which follow one another in the bytes of the queue.
#[derive(Debug, Clone, Copy)]
struct TapMessageAt {
    at: usize,
    subject_len: usize,
    reply_len: usize,
    header_len: usize,
    body_len: usize,
}

/// A message as its receiver sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TapMessage<'a> {
    pub(crate) subject: &'a [u8],
    /// The reply subject; empty if there is none.
    pub(crate) reply: &'a [u8],
    /// The headers with the line that they begin with; empty if there are none.
    pub(crate) headers: &'a [u8],
    /// The payload without the headers.
    pub(crate) body: &'a [u8],
}

/// Runs that wait for their receivers, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct TapQueue {
    runs: Vec<TapRun>,
    messages: Vec<TapMessageAt>,
    bytes: Vec<u8>,
}

/// Bytes of memory that an empty queue keeps for the next turn, at most.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

impl TapQueue {
    /// Whether no run waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Adds a run for a receiver.
    pub(crate) fn push(
        &mut self,
        tap: TapId,
        account: AccountId,
        publisher: Publisher,
        run: &Run<'_>,
    ) {
        let first = self.messages.len();
        for publish in run.publishes() {
            let at = self.bytes.len();
            let reply = publish.reply.unwrap_or_default();
            self.bytes.extend_from_slice(publish.subject);
            self.bytes.extend_from_slice(reply);
            self.bytes.extend_from_slice(publish.payload);
            let header_len = publish.header_block().len();
            self.messages.push(TapMessageAt {
                at,
                subject_len: publish.subject.len(),
                reply_len: reply.len(),
                header_len,
                body_len: publish.payload.len() - header_len,
            });
        }
        self.runs.push(TapRun { tap, account, publisher, first, count: run.len() });
    }

    /// Returns all runs, in order of arrival.
    pub(crate) fn runs(&self) -> &[TapRun] {
        &self.runs
    }

    /// Returns the messages of a run.
    pub(crate) fn messages(&self, run: &TapRun) -> impl Iterator<Item = TapMessage<'_>> {
        self.messages[run.first..run.first + run.count].iter().map(|message| {
            let rest = &self.bytes[message.at..];
            let (subject, rest) = rest.split_at(message.subject_len);
            let (reply, rest) = rest.split_at(message.reply_len);
            let (headers, rest) = rest.split_at(message.header_len);
            TapMessage { subject, reply, headers, body: &rest[..message.body_len] }
        })
    }

    /// Takes all runs, and leaves an empty queue.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Takes the memory of a queue whose runs were handled.
    pub(crate) fn reuse(&mut self, mut spare: Self) {
        if self.is_empty() && spare.bytes.capacity() <= KEPT_BYTES_MAX {
            spare.runs.clear();
            spare.messages.clear();
            spare.bytes.clear();
            *self = spare;
        }
    }
}
