//! Events of connections that the server publishes in the system account.

use std::sync::Arc;

use crate::auth::callout::Service;
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::snapshot::ConnSnapshot;
use crate::interest::account_settings::LatencyRule;
use crate::interest::halves::FarHalf;
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::latency::AskedBy;

/// The login or the end of a connection.
#[derive(Debug)]
pub enum ConnEvent {
    /// A connection that has logged in.
    Connected(Box<ConnSnapshot>),
    /// A connection that has ended.
    Disconnected {
        /// The connection as it was at its end.
        conn: Box<ConnSnapshot>,
        /// Reason of the end.
        reason: Reason,
        /// Time of the end, in nanoseconds since the start of the process.
        stopped_ns: u64,
        /// Whether it had logged in, so that its account has one less.
        was_in: bool,
    },
    /// A client that a service has refused, or about which it has not answered.
    Refused {
        /// The connection.
        conn: Box<ConnSnapshot>,
        /// The account of the service, where this is told.
        account: AccountId,
        /// The name of that account.
        account_name: Arc<str>,
        /// Reason of the refusal.
        reason: String,
        /// Time of the refusal, in nanoseconds since the start of the process.
        stopped_ns: u64,
    },
    /// The end of a measured request.
    Measured(Box<LatencyReport>),
    /// The answer of a client to a request that another server measures.
    Answered(Box<AnsweredRequest>),
}

/// The report on a measured request to a service. Times are nanoseconds since the process began.
#[derive(Debug)]
pub struct LatencyReport {
    /// The account of the service, where this is told.
    pub account: AccountId,
    /// Rule with the subject of the report.
    pub rule: Arc<LatencyRule>,
    /// Result of the request, as a status of HTTP.
    pub status: u16,
    /// The connection that asked, if it is still there.
    pub requester: Option<ConnSnapshot>,
    /// Whether the report tells who asked.
    pub share: bool,
    /// The connection that answered, if it is one of this server.
    pub responder: Option<ConnSnapshot>,
    /// Headers by which the requester has asked for the report.
    pub headers: AskedBy,
    /// Time of the request.
    pub asked_ns: u64,
    /// Time at which the answer came in, or at which there was to be none.
    pub arrived_ns: u64,
    /// Time at which the answer was on its way to the requester.
    pub ended_ns: u64,
    /// Measurement of the responder's server, if that is another one.
    pub far: Option<Box<FarHalf>>,
}

/// This server's half of a measurement. Times are nanoseconds since the process began.
#[derive(Debug)]
pub struct AnsweredRequest {
    /// Subject of the answer.
    pub reply: Box<[u8]>,
    /// The connection that answered.
    pub responder: ConnSnapshot,
    /// Time from the request to the answer.
    pub took_ns: std::ops::Range<u64>,
}

impl LatencyReport {
    /// Returns the memory that the report takes, in bytes, about.
    pub(crate) fn cost_bytes(&self) -> usize {
        size_of::<Self>() + self.headers.values().flatten().map(String::len).sum::<usize>()
    }
}

/// Queues the event of a refusal, if the service's account has listeners.
pub(crate) fn tell_refused(core: &mut Core, id: ConnId, service: &Service, reason: &str) {
    let account = service.account;
    let is_told = core.accounts.system.is_some()
        && core.out.takes_events()
        && core.accounts.at(account).interest.filters() > 0;
    if let Some(conn) = core.conns.get(id).filter(|_| is_told) {
        core.out.tell(ConnEvent::Refused {
            conn: Box::new(conn.snapshot()),
            account,
            account_name: Arc::clone(&service.account_name),
            reason: reason.to_owned(),
            stopped_ns: core.times.now,
        });
    }
}

/// Queues the event of a login, if there are listeners.
pub(crate) fn tell_connected(core: &mut Core, id: ConnId) {
    if is_listened_to(core)
        && let Some(conn) = core.conns.get(id)
    {
        core.out.tell(ConnEvent::Connected(Box::new(conn.snapshot())));
    }
}

/// Queues the event of a connection's end, logged in or not, if there are listeners.
pub(super) fn tell_disconnected(core: &mut Core, id: ConnId, reason: Reason) {
    let stopped_ns = core.times.now;
    if is_listened_to(core)
        && let Some(conn) = core.conns.get(id).filter(|conn: &&Conn| conn.layers.is_understood())
    {
        let (conn, was_in) = (Box::new(conn.snapshot()), conn.login.user().is_some());
        core.out.tell(ConnEvent::Disconnected { conn, reason, stopped_ns, was_in });
    }
}

fn is_listened_to(core: &mut Core) -> bool {
    let Some(system) = core.accounts.system else { return false };
    core.out.takes_events() && core.accounts.at(system).interest.filters() > 0
}
