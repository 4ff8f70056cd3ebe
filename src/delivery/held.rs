//! Messages that wait for a commit.
//!
//! They leave in the order in which they came, whatever they wait for: a publisher gets its
//! acknowledgements in the order of its messages.

use std::collections::VecDeque;

use crate::core::Core;
use crate::delivery::row::MessageBatch;
use crate::interest::ids::AccountId;

/// Messages that wait for commits of one log.
#[derive(Debug, Default)]
pub(crate) struct HeldMessages {
    /// Messages, each with the number of the commit that they wait for.
    batches: VecDeque<(u64, MessageBatch)>,
    /// An empty batch with memory.
    spare: MessageBatch,
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
        if self.batches.back().is_none_or(|(last, _)| *last < commit) {
            self.batches.push_back((commit, std::mem::take(&mut self.spare)));
        }
        let Some((_, batch)) = self.batches.back_mut() else { return };
        batch.push(account, subject, headers, body);
    }

    /// Publishes what waits for commits up to this one.
    pub(crate) fn release(&mut self, core: &mut Core, committed: u64) {
        while self.batches.front().is_some_and(|(commit, _)| *commit <= committed)
            && let Some((_, mut batch)) = self.batches.pop_front()
        {
            batch.publish(core);
            batch.clear();
            self.spare = batch;
        }
    }
}
