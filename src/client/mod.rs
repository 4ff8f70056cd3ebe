//! The operations of clients, one by one, as nats-server answers them.

#![forbid(unsafe_code)]

pub(crate) mod admin;
pub(crate) mod callout;
pub(crate) mod identify;
pub(crate) mod info;
pub(crate) mod login;
pub(crate) mod messages;

use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::input::{Operations, Taken};
use crate::core::timers::Deadline;
use crate::core::{Core, announce, protocol_trace};
use crate::interest::Wanted;
use crate::interest::cost::{OPERATION_WORK, SUBSCRIBE_WORK};
use crate::interest::ids::ConnId;
use crate::interest::reach::Via;
use crate::interest::subscription::{Sub, SubKey};
use crate::proto::{self, Op, ParseLimits, Parsed, ProtoError, encode};
use crate::run::Run;
use crate::{session, subject};

pub(crate) fn may_subscribe(conn: &Conn, subject: &[u8], queue: Option<&[u8]>) -> bool {
    if conn.mqtt.is_some() && session::is_delivery_subject(subject) {
        // What a session needs for itself is only denied by name.
        return conn.permissions().is_none_or(|user| user.may_receive(subject, queue));
    }
    // nats-server reserves this group name.
    queue != Some(b"_sys_")
        && conn.permissions().is_none_or(|permissions| permissions.may_subscribe(subject, queue))
}

/// The operations of a client.
#[derive(Default)]
pub(crate) struct ClientOperations {
    /// Limits for parsing the next operation; `None` after an operation that may change them.
    limits: Option<ParseLimits>,
}

impl<'a> Operations<'a> for ClientOperations {
    // Once per operation, from one place: a call costs as much as a tenth of a short publish.
    #[inline(always)]
    fn take(&mut self, core: &mut Core, id: ConnId, bytes: &'a [u8], run: &mut Run<'a>) -> Taken {
        let limits = match &self.limits {
            Some(limits) => limits,
            None => match parse_limits(core, id, bytes[0]) {
                Some(limits) => self.limits.insert(limits),
                None => return Taken::Ended,
            },
        };
        // By reference: a publish is not copied out of what was parsed.
        match &proto::parse(bytes, limits) {
            Ok(Parsed::Op { op: Op::Pub(publish), used }) => {
                match messages::on_publish(core, id, publish, &bytes[..*used], run) {
                    true => Taken::Bytes(*used),
                    false => Taken::Nothing,
                }
            }
            Ok(Parsed::Op { op, used }) => {
                self.flush(core, id, run);
                if !core.may_go_on(id) {
                    return Taken::Nothing;
                }
                on_operation(core, id, op);
                self.limits = None;
                let is_held = |conn: &Conn| conn.input.held().is_some();
                match core.may_go_on(id) && !core.conns.get(id).is_some_and(is_held) {
                    true => Taken::Bytes(*used),
                    false => Taken::Last(*used),
                }
            }
            Ok(Parsed::Incomplete { need }) => Taken::Needs(*need),
            Err(error) => {
                self.flush(core, id, run);
                on_violation(core, id, error);
                Taken::Ended
            }
        }
    }

    fn flush(&mut self, core: &mut Core, id: ConnId, run: &mut Run<'a>) {
        messages::flush_run(core, id, run);
    }
}

/// Returns the limits for parsing the next operation, which begins with `first`; `None` if it is
/// not to be parsed.
fn parse_limits(core: &mut Core, id: ConnId, first: u8) -> Option<ParseLimits> {
    let conn = core.conns.get_mut(id).filter(|conn| conn.is_open())?;
    if conn.login.user().is_none() && !first.eq_ignore_ascii_case(&b'C') {
        let Some(user) = core.settings.user_before_connect(conn.transport) else {
            login::refuse_login(core, id);
            return None;
        };
        if !login::enter_account(core, id, user) {
            return None;
        }
        if let Some(conn) = core.conns.get_mut(id) {
            conn.deadlines.disarm(Deadline::Login);
        }
    }
    let conn = core.conns.get(id)?;
    Some(ParseLimits {
        control_line_bytes_max: core.settings.limits.control_line_bytes_max,
        payload_bytes_max: conn.payload_bytes_max(&core.settings.limits),
        headers: core.settings.headers && conn.connect.headers,
    })
}

fn on_violation(core: &mut Core, id: ConnId, error: &ProtoError) {
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {error}", conn.label());
    }
    core.fail(id, error.wire(), Reason::Protocol(error.reason()));
}

fn on_operation(core: &mut Core, id: ConnId, op: &Op<'_>) {
    core.budget.spend(OPERATION_WORK);
    if core.settings.tracing.is_some()
        && let Some(conn) = core.conns.get(id)
    {
        protocol_trace::operation(conn, op);
    }
    match *op {
        Op::Connect(json) => login::on_connect(core, id, json),
        Op::Ping => on_ping(core, id),
        Op::Pong => core.on_pong(id),
        Op::Sub { subject, queue, sid } => on_sub(core, id, subject, queue, sid),
        Op::Unsub { sid, max } => on_unsub(core, id, sid, max),
        Op::Nothing => {}
        Op::Pub(_) => unreachable!("publishes are gathered into runs"),
    }
    core.settle_deliveries();
}

fn on_ping(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.liveness.last_active = core.times.now;
    let tell = conn.login.on_ping() && conn.connect.protocol >= 1;
    core.confirm_ping(id);
    if tell {
        info::send_info(core, id, true);
    }
}

fn on_sub(core: &mut Core, id: ConnId, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.liveness.last_active = core.times.now;
    let verbose = conn.connect.verbose;
    let limits = &core.settings.limits;
    let tokens_max = limits.subscription_tokens_max;
    let hash = core.random.hasher.hash_one(sid);
    let same_sid = |key: &SubKey| core.subs[*key as usize].sid() == sid;
    let too_many = conn.subs.len() >= conn.subscriptions_max(limits);
    if tokens_max > 0 && subject::token_count(subject) > tokens_max {
        refuse(core, id, &encode::too_many_tokens(subject));
    } else if !may_subscribe(conn, subject, queue) {
        refuse_subscription(core, id, subject, queue, sid);
    } else if too_many {
        tracing::error!("{} - maximum subscriptions exceeded", conn.label());
        refuse(core, id, "maximum subscriptions exceeded");
    } else if conn.subs.find(hash, same_sid).is_some() {
        if verbose {
            core.confirm(id, encode::ok);
        }
    } else if !subject::is_valid_filter(subject) {
        refuse(core, id, "Invalid Subject");
    } else {
        subscribe(core, id, subject, queue, sid, hash);
        if verbose {
            core.confirm(id, encode::ok);
        }
    }
}

pub(crate) fn subscribe(
    core: &mut Core,
    id: ConnId,
    subject: &[u8],
    queue: Option<&[u8]>,
    sid: &[u8],
    hash: u64,
) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let account = conn.account;
    core.budget.spend(SUBSCRIBE_WORK);
    let key = core.subs.insert(Sub::new(id.slot, subject, queue, sid));
    let Ok(key) = SubKey::try_from(key) else {
        unreachable!("a shard's memory ends long before 4 billion subscriptions")
    };
    let (subs, hasher) = (&core.subs, &core.random.hasher);
    let hash_of = |key: &SubKey| hasher.hash_one(subs[*key as usize].sid());
    conn.subs.find_or_insert(hash, |other| *other == key, hash_of, || key);
    let change = core.accounts.at(account).interest.add(key, &mut core.subs);
    let wanted = Wanted { filter: subject, queue };
    match change.announce {
        Some(members) => core.announce(id, account, Via::CLIENTS, wanted, members),
        // Interest that another connection has announced need not be in force yet.
        None => conn.staged_epoch = conn.staged_epoch.max(core.lanes.announced_epoch),
    }
    announce::tell_servers(core, account, wanted, change);
}

fn refuse_subscription(
    core: &mut Core,
    id: ConnId,
    subject: &[u8],
    queue: Option<&[u8]>,
    sid: &[u8],
) {
    if let Some(conn) = core.conns.get(id) {
        let queue =
            queue.map_or(String::new(), |queue| format!("Queue: {}, ", encode::go_quoted(queue)));
        let subject = encode::go_quoted(subject);
        let sid = String::from_utf8_lossy(sid);
        tracing::error!(
            "{} - Subscription Violation - Subject {subject}, {queue}SID {sid}",
            conn.label()
        );
    }
    refuse(core, id, &encode::subscription_violation(subject, queue));
}

/// Sends an error after which the connection goes on; MQTT has none.
pub(crate) fn refuse(core: &mut Core, id: ConnId, error: &str) {
    if core.conns.get(id).is_some_and(|conn| conn.transport.is_mqtt()) {
        return;
    }
    core.reply(id, |out| encode::err(out, error));
}

fn on_unsub(core: &mut Core, id: ConnId, sid: &[u8], max: Option<u64>) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.liveness.last_active = core.times.now;
    let verbose = conn.connect.verbose;
    let hash = core.random.hasher.hash_one(sid);
    let subs = &mut core.subs;
    if let Some(&key) = conn.subs.find(hash, |key| subs[*key as usize].sid() == sid) {
        let sub = &mut subs[key as usize];
        match max {
            Some(max) if sub.delivered < max => sub.max = max,
            _ => core.end_subscription(key),
        }
    }
    if verbose {
        core.confirm(id, encode::ok);
    }
}
