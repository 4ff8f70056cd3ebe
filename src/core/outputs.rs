//! The queue of outputs of the engine, in order.

use std::collections::VecDeque;

use crate::auth::callout::Question;
use crate::auth::credential_check::CredentialCheck;
use crate::core::answers::{CalloutAnswer, ServerRequest};
use crate::core::events::ConnEvent;
use crate::core::flushes::Flushes;
use crate::core::message_trace::MessageTrace;
use crate::disk::DiskOp;
use crate::interest::ids::ConnId;
use crate::link::RouteNotice;
use crate::link::gateways::GatewayNotice;
use crate::link::leaf_state::LeafNotice;
use crate::ocsp::PeerQuestion;

/// Requests to the server in the queue, at most; further ones get no answer.
const REQUESTS_MAX: usize = 1024;
/// Answers of services in the queue, at most; further ones are dropped.
const CALLOUT_ANSWERS_MAX: usize = 1024;
/// Events in the queue, at most; further ones are dropped.
const EVENTS_MAX: usize = 1024;

/// An output of the engine; the shard carries out all of a turn, in order.
#[derive(Debug)]
pub enum Output {
    /// A connection for which output may wait: ask `Engine::take_batch`.
    Flush(ConnId),
    /// A connection to close; `Engine::on_closed` ends it.
    Close {
        /// The connection.
        conn: ConnId,
        /// Whether bytes in flight are dropped, too.
        abort: bool,
        /// Whether the connection had a seat among the clients of the server.
        frees_seat: bool,
    },
    /// A connection from which no more is to be read for now.
    Pause(ConnId),
    /// A connection from which to read again.
    Resume(ConnId),
    /// A credential check to be made off the shard; its result goes to
    /// `Engine::on_login_news`.
    Check(ConnId, Box<CredentialCheck>),
    /// A question to a service about a client; the decision goes to `Engine::on_login_news`.
    Callout {
        /// The connection of the client.
        conn: ConnId,
        /// The question.
        question: Box<Question>,
        /// Nanoseconds that the client waits.
        timeout_ns: u64,
    },
    /// A question about the certificate of a peer; the answer goes to `Engine::on_login_news`.
    PeerQuestion(ConnId, Box<PeerQuestion>),
    /// An account that the login of a client needs; whether it is known now goes to
    /// `Engine::on_login_news`.
    Fetch {
        /// The connection of the client.
        conn: ConnId,
        /// The public key of the account.
        account: Box<str>,
    },
    /// The answer of a service, to be judged off the shard.
    CalloutAnswer(Box<CalloutAnswer>),
    /// A request that the server itself answers.
    Ask(Box<ServerRequest>),
    /// The login or the end of a connection, while the system account has listeners.
    Event(Box<ConnEvent>),
    /// The report on a traced message.
    Trace(Box<MessageTrace>),
    /// News of a link, for the process that decides which links stay.
    Link(Box<RouteNotice>),
    /// News of a gateway, for the process that decides which gateways stay.
    Gateway(Box<GatewayNotice>),
    /// News of a leaf connection that this server has dialled, for the process.
    Leaf(Box<LeafNotice>),
    /// An operation on the disk; the reactor's completion carries the operation's token.
    Disk(Box<DiskOp>),
}

/// Outputs that the shard has not taken.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    queue: VecDeque<Output>,
    /// Requests and events in the queue.
    requests: usize,
    callout_answers: usize,
    events: usize,
    pub(crate) flushes: Flushes,
    /// Whether the run being delivered goes to very many.
    pub(crate) is_for_many: bool,
}

impl Outputs {
    /// Queues an output of a kind that is bounded elsewhere: by the number of connections, or, for
    /// traces, by `message_trace`.
    pub(crate) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    /// Whether one more request may wait.
    pub(crate) fn takes_requests(&self) -> bool {
        self.requests < REQUESTS_MAX
    }

    /// Queues a request, if [`Self::takes_requests`].
    pub(crate) fn ask(&mut self, request: ServerRequest) {
        self.requests += 1;
        self.push(Output::Ask(Box::new(request)));
    }

    /// Whether one more answer of a service may wait.
    pub(crate) fn takes_callout_answers(&self) -> bool {
        self.callout_answers < CALLOUT_ANSWERS_MAX
    }

    /// Queues the answer of a service, if [`Self::takes_callout_answers`].
    pub(crate) fn answer_callout(&mut self, answer: CalloutAnswer) {
        self.callout_answers += 1;
        self.push(Output::CalloutAnswer(Box::new(answer)));
    }

    /// Whether one more event may wait.
    pub(crate) fn takes_events(&self) -> bool {
        self.events < EVENTS_MAX
    }

    /// Queues an event, if [`Self::takes_events`].
    pub(crate) fn tell(&mut self, event: ConnEvent) {
        self.events += 1;
        self.push(Output::Event(Box::new(event)));
    }

    /// Queues news of a link.
    pub(crate) fn notify(&mut self, notice: RouteNotice) {
        self.push(Output::Link(Box::new(notice)));
    }

    /// Queues news of a gateway.
    pub(crate) fn notify_of_gateway(&mut self, notice: GatewayNotice) {
        self.push(Output::Gateway(Box::new(notice)));
    }

    /// Takes the oldest output; flushes are behind all others.
    pub(crate) fn pop(&mut self) -> Option<Output> {
        let output = self.queue.pop_front()?;
        match output {
            Output::Ask(_) => self.requests -= 1,
            Output::CalloutAnswer(_) => self.callout_answers -= 1,
            Output::Event(_) => self.events -= 1,
            _ => {}
        }
        Some(output)
    }

    /// Releases memory that only a burst needed.
    pub(crate) fn shrink(&mut self) {
        self.queue.shrink_to_fit();
        self.flushes.shrink();
    }
}
