//! Leaf nodes: connections to servers that share one account with this one, and are in no cluster
//! with it.
//!
//! A leaf connection belongs to one shard, and binds one account here to one account there. The one
//! end is the hub, the other its leaf node (`Kind::Leaf` and `Kind::Hub` name the other end). The
//! hub is told what the leaf node wants for itself, and the leaf node what anyone else in the
//! account wants: see `core::leaf_interest`. What comes from one leaf node goes to the others, but
//! not to those of the same cluster (`Origin`).
//!
//! An accepted connection logs in as a client does, by CONNECT (`handshake`), with users of its own
//! or those of clients; the permissions of the user are those of all messages. A dialled one waits
//! for the hub's INFO, and for a second one after its CONNECT. `cluster::leaf_remotes` decides when
//! to dial. Subjects that configuration or permissions keep on one side are in `LeafGates`.
//!
//! Leaf connections in a circle would pass messages round and round. So each account has a subject
//! of its own that is told like any other interest (`interest::outlets::loop_filter`): a server
//! that hears its own ends that connection.

#![forbid(unsafe_code)]

pub(crate) mod handshake;
pub(crate) mod review;
pub(crate) mod snapshot;
pub(crate) mod subscriptions;
pub(crate) mod tls;

use crate::core::Core;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::input::{Operations, Taken, UNDECIDED_BYTES_MAX};
use crate::delivery::publish::{self, NamedGroups};
use crate::interest::cost::OPERATION_WORK;
use crate::interest::ids::{ConnId, Origin};
use crate::interest::mapping::Mapped;
use crate::leaf::handshake::LOOP_PAUSE_TEXTS;
use crate::link::leaf_gates::is_exempt;
use crate::link::leaf_state::{LeafAwaits, LeafEnd, LeafState};
use crate::proto::leaf as wire;
use crate::proto::route::{RouteOp, RouteParsed};
use crate::proto::{ParseLimits, ProtoError, Publish, encode};
use crate::run::Run;

/// Control lines of clients that one of a leaf connection may be long.
const CONTROL_LINES_MAX: usize = 16;

/// Returns the state of a leaf connection; `None` if the connection is none.
pub(crate) fn leaf(core: &Core, id: ConnId) -> Option<&LeafState> {
    core.conns.get(id)?.link.as_ref()?.leaf()
}

pub(crate) fn leaf_mut(core: &mut Core, id: ConnId) -> Option<&mut LeafState> {
    core.conns.get_mut(id)?.link.as_mut()?.leaf_mut()
}

/// Whether a connection is one of leaf nodes that this server has accepted.
fn is_accepted(conn: &Conn) -> bool {
    let leaf = conn.link.as_ref().and_then(|link| link.leaf());
    leaf.is_some_and(|leaf| leaf.dialed.is_none())
}

/// Whether a connection is bound to an account.
fn is_up(core: &Core, id: ConnId) -> bool {
    leaf(core, id).is_some_and(|leaf| leaf.awaits == LeafAwaits::Nothing)
}

/// The operations at the other end of a leaf connection.
pub(crate) struct LeafOperations<'a> {
    limits: ParseLimits,
    /// The queue groups that the messages of the run are for.
    queues: &'a [u8],
}

impl LeafOperations<'_> {
    /// Returns the operations of a connection; `None` if it is no leaf connection.
    pub(crate) fn of(core: &Core, id: ConnId) -> Option<Self> {
        let conn = core.conns.get(id)?;
        conn.link.as_ref()?.leaf()?;
        let lines = core.settings.limits.control_line_bytes_max.saturating_mul(CONTROL_LINES_MAX);
        let limits = ParseLimits {
            control_line_bytes_max: lines,
            payload_bytes_max: conn.payload_bytes_max(&core.settings.limits),
            headers: true,
        };
        Some(Self { limits, queues: b"" })
    }
}

impl<'a> Operations<'a> for LeafOperations<'a> {
    // Once per operation, from one place: a call costs as much as a tenth of a short publish.
    #[inline(always)]
    fn take(&mut self, core: &mut Core, id: ConnId, bytes: &'a [u8], run: &mut Run<'a>) -> Taken {
        match wire::parse(bytes, &self.limits) {
            Ok(RouteParsed::Op { op: RouteOp::Message { queues, publish, .. }, used }) => {
                if self.queues != queues || !run.continues_with(&publish) {
                    self.flush(core, id, run);
                    if !core.may_go_on(id) {
                        return Taken::Nothing;
                    }
                    self.queues = queues;
                    if !begin_run(core, id, run, &publish) {
                        let is_open = core.conns.get(id).is_some_and(Conn::is_open);
                        return if is_open { Taken::Bytes(used) } else { Taken::Ended };
                    }
                }
                run.push_routed(publish, used);
                Taken::Bytes(used)
            }
            Ok(RouteParsed::Op { op, used }) => {
                self.flush(core, id, run);
                if !core.may_go_on(id) {
                    return Taken::Nothing;
                }
                on_operation(core, id, &op);
                Taken::after(core, id, used)
            }
            Ok(RouteParsed::Incomplete { need }) if need > need_bytes_max(core, id) => {
                refuse(core, id, "Authorization Violation");
                Taken::Ended
            }
            Ok(RouteParsed::Incomplete { need }) => Taken::Needs(need),
            Err(error) => {
                self.flush(core, id, run);
                on_violation(core, id, &error);
                Taken::Ended
            }
        }
    }

    fn flush(&mut self, core: &mut Core, id: ConnId, run: &mut Run<'a>) {
        flush_run(core, id, self.queues, run);
        if let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) {
            conn.liveness.last_active = core.times.now;
        }
    }
}

/// Returns the bytes that an operation may have of which only the beginning has come: no connection
/// has a claim to much memory before its other end is known. Later the parser has the bound.
fn need_bytes_max(core: &Core, id: ConnId) -> usize {
    if is_up(core, id) { usize::MAX } else { UNDECIDED_BYTES_MAX }
}

/// Sets the receivers of the run that begins with `publish`, and its bounds; `false` if it is not
/// delivered.
fn begin_run(core: &mut Core, id: ConnId, run: &mut Run<'_>, publish: &Publish<'_>) -> bool {
    if !is_up(core, id) {
        refuse(core, id, "Authorization Violation");
        return false;
    }
    let now = core.times.now;
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let Some(leaf) = conn.link.as_ref().and_then(|link| link.leaf()) else { return false };
    let (account, is_dialed) = (leaf.account_id, leaf.dialed.is_some());
    let passes = leaf.gates.takes(publish.subject);
    let may_publish = is_exempt(publish.subject)
        || conn
            .login
            .checks()
            .is_none_or(|(user, checks)| checks.may_publish(user, publish.subject, now));
    if !may_publish && !is_dialed {
        let error = encode::publish_violation(publish.subject);
        violate(core, id, &error);
        return false;
    }
    if !passes || !may_publish {
        return false;
    }
    let mapped = map(core, id, publish.subject);
    run.map(mapped);
    let subject = run.mapped().map_or(publish.subject, |mapped| &mapped.subject);
    let targets = core.targets(account, subject);
    run.aim(account, targets, core.budget.room(), 0);
    true
}

/// Returns the subject that a mapping of the account makes of `subject`, if any does.
fn map(core: &mut Core, id: ConnId, subject: &[u8]) -> Option<Mapped> {
    if !core.settings.accounts.has_mappings {
        return None;
    }
    let account = leaf(core, id)?.account_id;
    let mappings = core.accounts.at(account).mappings.as_ref()?;
    mappings.map(subject, &mut core.random.rng)
}

fn flush_run(core: &mut Core, id: ConnId, queues: &[u8], run: &mut Run<'_>) {
    if run.is_empty() {
        return;
    }
    if let Some(leaf) = leaf(core, id) {
        let (account, by) = (leaf.account_id, leaf.origin);
        let named = NamedGroups { by, names: queues };
        match run.mapped() {
            None => publish::publish_routed(core, id, account, named, run),
            Some(mapped) => {
                let run = run.renamed(&mapped.subject);
                publish::publish_routed(core, id, account, named, &run);
            }
        }
    }
    run.clear();
}

/// Handles an operation.
fn on_operation(core: &mut Core, id: ConnId, op: &RouteOp<'_>) {
    core.budget.spend(OPERATION_WORK);
    let Some(awaits) = leaf(core, id).map(|leaf| leaf.awaits) else { return };
    match *op {
        RouteOp::Connect(json) => handshake::on_connect(core, id, json),
        RouteOp::Info(json) => handshake::on_info(core, id, json),
        _ if awaits == LeafAwaits::Connect => refuse(core, id, "Authorization Violation"),
        RouteOp::Ping => core.confirm(id, encode::pong),
        RouteOp::Pong => core.on_pong(id),
        // A dialled server says who it is first.
        _ if awaits != LeafAwaits::Nothing => {
            core.fail(id, None, Reason::Protocol("Protocol Violation"));
        }
        RouteOp::Interest(entry, members) => subscriptions::on_interest(core, id, &entry, members),
        RouteOp::NoInterest(entry) => subscriptions::on_interest_end(core, id, &entry),
        RouteOp::Nothing => {}
        RouteOp::Message { .. } => unreachable!("messages are gathered into runs"),
    }
    core.settle_deliveries();
}

fn on_violation(core: &mut Core, id: ConnId, error: &ProtoError) {
    if let Some(conn) = core.conns.get(id) {
        let label = conn.label();
        match error {
            ProtoError::ErrorFromClient(text) => tracing::error!("{label} - Leafnode Error {text}"),
            error => tracing::error!("{label} - {error}"),
        }
    }
    if let ProtoError::ErrorFromClient(text) = error
        && let Some(leaf) = leaf_mut(core, id)
    {
        let is = |texts: &[&str]| texts.iter().any(|one| text.contains(one));
        if is(&LOOP_PAUSE_TEXTS) {
            leaf.end = LeafEnd::Misplaced;
        } else if is(&[handshake::TOO_OLD]) {
            leaf.end = LeafEnd::TooOld;
        }
    }
    let is_known = leaf(core, id).is_some_and(|leaf| leaf.awaits != LeafAwaits::Connect);
    match error.wire().filter(|_| !is_known) {
        // Who has not said who it is has to do that first.
        Some("Unknown Protocol Operation") => refuse(core, id, "Authorization Violation"),
        _ => core.fail(id, error.wire(), Reason::Protocol(error.reason())),
    }
}

/// Ends a connection that is not accepted.
pub(crate) fn refuse(core: &mut Core, id: ConnId, error: &str) {
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {error}", conn.label());
    }
    core.fail(id, Some(error), Reason::Protocol("Protocol Violation"));
}

/// Ends a connection whose other end does what its user may not.
fn violate(core: &mut Core, id: ConnId, error: &str) {
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {error}", conn.label());
    }
    if let Some(leaf) = leaf_mut(core, id) {
        leaf.end = LeafEnd::Misplaced;
    }
    core.fail(id, Some(error), Reason::Protocol("Permissions Violation"));
}

/// Ends the connections with these names that are older than `cid`: a leaf node has dialled again
/// before its end was noticed here.
pub(crate) fn close_older(core: &mut Core, key: u64, cid: u64) {
    let is_older = |id: &&ConnId| {
        let conn = core.conns.get(**id).filter(|conn| conn.peer.cid < cid);
        let leaf = conn.and_then(|conn| conn.link.as_ref()).and_then(|link| link.leaf());
        leaf.is_some_and(|leaf| leaf.key == key)
    };
    let older: Vec<ConnId> = core.links.leaves.iter().filter(is_older).copied().collect();
    for id in older {
        const ERROR: &str = "Duplicate Remote LeafNode Connection";
        if let Some(conn) = core.conns.get(id) {
            tracing::error!("{} - {ERROR}", conn.label());
        }
        core.fail(id, Some(ERROR), Reason::Protocol("Duplicate Remote LeafNode Connection"));
    }
}

/// Returns the origin of a leaf node's interest, by the name of its cluster.
fn origin_of(cluster: &str) -> Origin {
    match cluster {
        "" => Origin::NO_CLUSTER,
        name => Origin::of_leaves(name.as_bytes()),
    }
}
