//! Questions to services about clients that log in, asked and judged on a thread of their own.

use std::collections::HashMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select, tick};
use nkeys::KeyPair;
use rustix::rand::GetRandomFlags;

use crate::auth::callout::{OpenQuestion, Question, SUBJECT, ServerKeys};
use crate::config::StartError;
use crate::engine::{CalloutAnswer, ConnId, LoginNews, ShardId, callout_inbox};
use crate::host::hex;
use crate::shard::{Address, CalloutNews, Control};

/// Questions that wait for their answers, at most; a further client is not asked about.
const WAITING_MAX: usize = 64 * 1024;
/// The time between two looks for questions that nobody has answered in time.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(1);
/// Random bytes in the subject of an answer, so that nobody can guess it.
const TOKEN_BYTES: usize = 16;

/// A question that waits for its answer.
struct WaitingQuestion {
    shard: ShardId,
    conn: ConnId,
    asked: OpenQuestion,
    by: Instant,
}

struct CalloutWorker {
    keys: ServerKeys,
    shards: Vec<Address>,
    /// The beginning of the subjects of answers.
    inbox: String,
    /// Questions by the subject of their answers.
    waiting: HashMap<Box<[u8]>, WaitingQuestion>,
}

/// Starts the thread, which handles `news` until all shards have ended.
pub(super) fn start(
    news: Receiver<CalloutNews>,
    shards: Vec<Address>,
    keys: ServerKeys,
) -> Result<JoinHandle<()>, StartError> {
    let node = keys.id.public_key().get(1..9).unwrap_or("0").to_owned();
    let inbox = callout_inbox(&node);
    let worker = CalloutWorker { keys, shards, inbox, waiting: HashMap::new() };
    let thread = std::thread::Builder::new().name("callouts".to_owned());
    thread.spawn(move || worker.run(&news)).map_err(|error| {
        StartError::new(format!("cannot start a thread for logins: {error}; raise `ulimit -u`"))
    })
}

impl CalloutWorker {
    fn run(mut self, news: &Receiver<CalloutNews>) {
        let ticks = tick(CLEANUP_INTERVAL);
        loop {
            select! {
                recv(news) -> next => match next {
                    Ok(CalloutNews::Question { shard, conn, question, by }) => {
                        self.ask(shard, conn, &question, by);
                    }
                    Ok(CalloutNews::Answer(answer)) => self.judge(&answer),
                    Err(_) => return,
                },
                recv(ticks) -> _ => {
                    let now = now();
                    self.waiting.retain(|_, waiting| waiting.by > now);
                    self.waiting.shrink_to(2 * self.waiting.len());
                }
            }
        }
    }

    fn ask(&mut self, shard: ShardId, conn: ConnId, question: &Question, by: Instant) {
        // A late question is about a closed connection. A crowd of these must not delay all others.
        let left = by.saturating_duration_since(now());
        if left.is_zero() || self.waiting.len() >= WAITING_MAX {
            return;
        }
        let wall = chrono::Utc::now();
        let expires = (wall + left).timestamp();
        let asked = question.ask(&self.keys, &KeyPair::new_user(), wall.timestamp(), expires);
        let (request, asked) = match asked {
            Ok(asked) => asked,
            Err(reason) => {
                let reason = format!("Error encoding auth request: {reason}");
                let news = LoginNews::Decided(Err(reason));
                return self.tell(shard, Control::Login { conn, news });
            }
        };
        let mut token = [0; TOKEN_BYTES];
        // So few bytes are never cut, and the kernel's generator is ready long since.
        let _ = rustix::rand::getrandom(&mut token, GetRandomFlags::empty());
        let reply: Box<[u8]> = format!("{}{}", self.inbox, hex(&token)).into_bytes().into();
        self.waiting.insert(reply.clone(), WaitingQuestion { shard, conn, asked, by });
        let control = Control::Publish {
            account: question.service.account,
            subject: SUBJECT.as_bytes().into(),
            reply,
            header: request.header.into(),
            payload: request.payload.into(),
        };
        self.tell(shard, control);
    }

    /// Judges the first answer to a question; others are to no question any more.
    fn judge(&mut self, answer: &CalloutAnswer) {
        let Some(waiting) = self.waiting.remove(&answer.subject) else { return };
        let WaitingQuestion { shard, conn, asked, by } = waiting;
        if by > now() {
            let wall = chrono::Utc::now().timestamp();
            let decision = asked.judge(&answer.payload, &self.keys, wall);
            self.tell(shard, Control::Login { conn, news: LoginNews::Decided(decision) });
        }
    }

    fn tell(&self, shard: ShardId, control: Control) {
        if let Some(address) = self.shards.get(shard.index()) {
            address.send(control);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "deadlines of logins, off the shards")]
fn now() -> Instant {
    Instant::now()
}
