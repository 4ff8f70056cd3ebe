//! Requests to services of other accounts that may still be answered, and requests to the server.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;

use crate::auth::token_users::TokenUser;
use crate::interest::account_settings::Response;
use crate::interest::ids::{AccountId, ShardId};

/// Requests of one account that may still be answered and that a shard keeps, at most; beyond, the
/// oldest is forgotten.
const ANSWERS_MAX: usize = 64 * 1024;

const ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that one request takes besides its reply subject.
const ANSWER_BYTES: usize = 96;

/// A request to the server itself.
#[derive(Debug)]
pub struct ServerRequest {
    /// Shard of the requester. An answer from another shard might arrive before the interest in
    /// it.
    pub shard: ShardId,
    /// Account of the request.
    pub account: AccountId,
    /// Subject of the request.
    pub subject: Box<[u8]>,
    /// Reply subject; empty if there is none.
    pub reply: Box<[u8]>,
    /// Payload of the request, without headers.
    pub payload: Box<[u8]>,
    /// Name of the account of the request.
    pub account_name: Arc<str>,
    /// User of the requester; `None` without authentication.
    pub user: Option<Box<str>>,
    /// Claims of the user's token, for a login by token.
    pub token: Option<Arc<TokenUser>>,
}

/// The answer of a service to a question about a client, not yet judged.
#[derive(Debug)]
pub struct CalloutAnswer {
    /// Subject of the answer, which names the question.
    pub subject: Box<[u8]>,
    /// The answer, without headers.
    pub payload: Box<[u8]>,
}

/// A request of a local connection that may still be answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The account that answers.
    pub(crate) from: AccountId,
    /// The account of the requester, where the answer goes to `reply`.
    pub(crate) to: AccountId,
    pub(crate) reply: Box<[u8]>,
    pub(crate) response: Response,
    pub(crate) threshold_ns: u64,
    pub(crate) expires: u64,
}

/// The requests of local connections that may still be answered.
#[derive(Debug)]
pub(crate) struct Answers {
    open: HashMap<u64, Answer, RandomState>,
    /// Requests by the account of the requester, the oldest first, each with its cost in bytes;
    /// some are answered already.
    queues: HashMap<AccountId, AnswerQueue, RandomState>,
}

#[derive(Debug, Default)]
struct AnswerQueue {
    ids: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Answers {
    pub(crate) fn new(hasher: &RandomState) -> Self {
        Self {
            open: HashMap::with_hasher(hasher.clone()),
            queues: HashMap::with_hasher(hasher.clone()),
        }
    }

    pub(crate) fn insert(&mut self, id: u64, answer: Answer, now: u64) {
        let cost = ANSWER_BYTES + answer.reply.len();
        let queue = self.queues.entry(answer.to).or_default();
        queue.ids.push_back((id, cost));
        queue.bytes += cost;
        self.open.insert(id, answer);
        while let Some(&(oldest, cost)) = queue.ids.front() {
            let is_over = self.open.get(&oldest).is_none_or(|answer| answer.expires <= now);
            let is_full = queue.ids.len() > ANSWERS_MAX || queue.bytes > ANSWERS_BYTES_MAX;
            if !is_over && !is_full {
                break;
            }
            self.open.remove(&oldest);
            queue.ids.pop_front();
            queue.bytes -= cost;
        }
    }

    /// Returns the account and subject for a message of `from` that answers request `id`; `None` if
    /// the request is not open or the answer is late. `body_bytes` are those behind the headers.
    pub(crate) fn take(
        &mut self,
        id: u64,
        from: AccountId,
        body_bytes: usize,
        now: u64,
    ) -> Option<(AccountId, Box<[u8]>)> {
        let answer = self.open.get_mut(&id).filter(|answer| answer.from == from)?;
        let is_last = match answer.response {
            Response::Singleton => true,
            // As in nats-server, an empty answer is the last of a stream, too.
            Response::Stream | Response::Chunked => body_bytes == 0,
        };
        let is_late = answer.expires <= now;
        answer.expires = now.saturating_add(answer.threshold_ns);
        let destination = (answer.to, answer.reply.clone());
        if is_last || is_late {
            self.open.remove(&id);
        }
        (!is_late).then_some(destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interest::outlets::{answer_subject, parse_answer};

    fn answers() -> Answers {
        Answers::new(&RandomState::with_seeds(1, 2, 3, 4))
    }

    fn answer(to: u32, response: Response, reply: &[u8], expires: u64) -> Answer {
        Answer {
            from: AccountId::new(9),
            to: AccountId::new(to),
            reply: reply.into(),
            response,
            threshold_ns: 100,
            expires,
        }
    }

    #[test]
    fn only_the_account_that_was_asked_can_answer_and_only_as_often_as_it_may() {
        let mut all = answers();
        let (asked, other) = (AccountId::new(9), AccountId::new(8));
        all.insert(1, answer(1, Response::Singleton, b"r", 100), 0);
        assert_eq!(all.take(1, other, 1, 0), None);
        assert!(all.take(1, asked, 1, 0).is_some());
        assert_eq!(all.take(1, asked, 1, 0), None, "one answer is all");
        all.insert(2, answer(1, Response::Stream, b"r", 100), 0);
        assert!((0..5).all(|_| all.take(2, asked, 1, 0).is_some()));
        all.insert(3, answer(1, Response::Chunked, b"r", 100), 0);
        assert!(all.take(3, asked, 1, 0).is_some());
        assert!(all.take(3, asked, 0, 0).is_some(), "the end is still delivered");
        assert_eq!(all.take(3, asked, 1, 0), None);
    }

    #[test]
    fn an_answer_that_comes_too_late_goes_nowhere() {
        let mut all = answers();
        all.insert(1, answer(1, Response::Stream, b"r", 100), 0);
        let asked = AccountId::new(9);
        assert!(all.take(1, asked, 1, 99).is_some());
        assert!(all.take(1, asked, 1, 198).is_some(), "each answer gives time for the next");
        assert_eq!(all.take(1, asked, 1, 298), None);
        assert_eq!(all.open.len(), 0);
    }

    #[test]
    fn requests_that_nobody_answers_push_out_only_those_of_their_own_account() {
        let mut all = answers();
        all.insert(u64::MAX, answer(2, Response::Singleton, b"r", u64::MAX), 0);
        for id in 0..2 * ANSWERS_MAX as u64 {
            all.insert(id, answer(1, Response::Singleton, b"r", u64::MAX), 0);
        }
        assert_eq!(all.open.len(), ANSWERS_MAX + 1);
        for id in 0..20_000 {
            all.insert(id, answer(1, Response::Singleton, &[b'x'; 4000], u64::MAX), 0);
        }
        assert!(all.open.len() * 4000 < ANSWERS_BYTES_MAX + 4000, "{}", all.open.len());
        assert!(all.take(u64::MAX, AccountId::new(9), 1, 0).is_some());
    }

    #[test]
    fn an_answers_subject_names_its_shard_and_no_other_subject_does() {
        for (shard, id) in [(0, 0), (63, u64::MAX), (7, 0xabc)] {
            let subject = answer_subject("S", ShardId(shard), id);
            assert_eq!(parse_answer(&subject), Some((&b"S"[..], ShardId(shard), id)));
        }
        for subject in ["_R_.", "_R_.x", "_R_.S.0", "_R_.S.00", "_R_.S.zz1", "_R_.001", "a.S.001"] {
            assert_eq!(parse_answer(subject.as_bytes()), None, "{subject}");
        }
    }
}
