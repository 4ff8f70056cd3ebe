//! Messages that wait for a commit.
//!
//! They leave in the order in which they came, whatever they wait for: a publisher gets its
//! acknowledgements in the order of its messages.

use std::collections::VecDeque;

use crate::core::Core;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::ids::AccountId;

/// A message that waits, as lengths of its parts, which follow one another in the bytes of its
/// batch.
#[derive(Debug, Clone, Copy)]
struct HeldMessage {
    account: AccountId,
    subject_len: usize,
    headers_len: usize,
    body_len: usize,
}

/// Messages that wait for one commit.
#[derive(Debug, Default)]
struct HeldBatch {
    commit: u64,
    messages: Vec<HeldMessage>,
    bytes: Vec<u8>,
}

/// Messages that wait for commits of one log.
#[derive(Debug, Default)]
pub(crate) struct HeldMessages {
    batches: VecDeque<HeldBatch>,
    /// An empty batch with memory.
    spare: HeldBatch,
}

impl HeldMessages {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Adds a message that waits for a commit, and for all that wait already.
    pub(crate) fn push(
        &mut self,
        commit: u64,
        account: AccountId,
        subject: &[u8],
        headers: &[u8],
        body: &[u8],
    ) {
        if self.batches.back().is_none_or(|last| last.commit < commit) {
            let batch = HeldBatch { commit, ..std::mem::take(&mut self.spare) };
            self.batches.push_back(batch);
        }
        let Some(batch) = self.batches.back_mut() else { return };
        for part in [subject, headers, body] {
            batch.bytes.extend_from_slice(part);
        }
        let (subject_len, headers_len, body_len) = (subject.len(), headers.len(), body.len());
        batch.messages.push(HeldMessage { account, subject_len, headers_len, body_len });
    }

    /// Publishes what waits for commits up to this one.
    pub(crate) fn release(&mut self, core: &mut Core, committed: u64) {
        while self.batches.front().is_some_and(|batch| batch.commit <= committed)
            && let Some(mut batch) = self.batches.pop_front()
        {
            let mut rest = &batch.bytes[..];
            for message in &batch.messages {
                let (subject, behind) = rest.split_at(message.subject_len);
                let (headers, behind) = behind.split_at(message.headers_len);
                let (body, behind) = behind.split_at(message.body_len);
                rest = behind;
                inside::publish(
                    core,
                    message.account,
                    &InnerMessage { subject, reply: b"", headers, body },
                );
            }
            batch.messages.clear();
            batch.bytes.clear();
            self.spare = batch;
        }
    }
}
