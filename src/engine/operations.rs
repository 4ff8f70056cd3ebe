//! The operations of clients, one by one, as nats-server answers them.

#![forbid(unsafe_code)]

use std::rc::Rc;

use super::accounts::AccountId;
use super::budget::{OPERATION_WORK, SUBSCRIBE_WORK};
use super::conn::{Claim, User};
use super::interest::{Side, Sub, SubKey};
use super::mapping::Mapped;
use super::message_trace::Traced;
use super::publish::PublisherInfo;
use super::run::Run;
use super::settings::{Identified, Settings, Standing};
use super::trace;
use super::{ConnId, Engine, Reason};
use crate::proto::{self, Limits, Op, Parsed, ProtoError, Publish, encode};
use crate::subject;

/// The first PING comes this long after CONNECT, or after the ping interval if that is shorter.
const FIRST_PING_NS: u64 = 2_000_000_000;

/// What is to be done with a publish.
enum Verdict {
    /// It becomes part of a run. `is_alone`: of one of its own, since it was answered by itself.
    Joins { publisher: PublisherInfo, is_alone: bool },
    /// It is not delivered, and its publisher is told why.
    Refused(String),
    /// Nobody is there any more who could publish it, or it has to wait for its turn.
    Dropped,
}

impl Engine {
    /// Handles what a client has sent. Where the bytes are cut makes no difference.
    pub fn on_bytes(&mut self, id: ConnId, bytes: &[u8]) {
        self.budget.serve_input();
        match self.conns.get(id) {
            Some(conn) if conn.layers.is_bare() => self.on_plaintext(id, bytes),
            Some(_) => self.on_wrapped(id, bytes),
            None => {}
        }
        self.keep_pace(id, bytes.len());
    }

    /// Handles all whole operations, as far as the budget allows and nothing holds the connection
    /// back. Returns how many bytes they took; all of them when the connection is at its end.
    pub(super) fn consume(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        if self.is_route(id) {
            return self.consume_route(id, bytes);
        }
        let mut run = Run::reusing(std::mem::take(&mut self.spare_run));
        let used = self.consume_with(&mut run, id, bytes);
        self.spare_run = Run::reusing(run);
        used
    }

    fn consume_with<'a>(&mut self, run: &mut Run<'a>, id: ConnId, bytes: &'a [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let Some(limits) = self.parse_limits(id, bytes[at]) else {
                return bytes.len();
            };
            at += self.consume_while(id, &bytes[at..], &limits, run);
            self.flush_run(id, run);
            let Some(conn) = self.conns.get_mut(id) else { return bytes.len() };
            if !conn.is_open() {
                return bytes.len();
            }
            if conn.need_bytes > 0 || conn.claim.is_some() || !self.may_go_on(id) {
                return at;
            }
        }
        at
    }

    /// Handles operations as long as `limits` hold: up to and including one that is no publish.
    /// Sets `need_bytes` if the last one is not whole.
    fn consume_while<'a>(
        &mut self,
        id: ConnId,
        bytes: &'a [u8],
        limits: &Limits,
        run: &mut Run<'a>,
    ) -> usize {
        let mut at = 0;
        let mut need_bytes = 0;
        while at < bytes.len() {
            match proto::parse(&bytes[at..], limits) {
                Ok(Parsed::Op { op: Op::Pub(publish), used }) => {
                    let wire = &bytes[at..at + used];
                    if !self.on_publish(id, &publish, wire, run) {
                        break;
                    }
                    at += used;
                }
                Ok(Parsed::Op { op, used }) => {
                    self.flush_run(id, run);
                    if self.may_go_on(id) {
                        at += used;
                        self.on_operation(id, &op);
                    }
                    break;
                }
                Ok(Parsed::Incomplete { need }) => {
                    need_bytes = need;
                    break;
                }
                Err(error) => {
                    self.flush_run(id, run);
                    self.on_violation(id, &error);
                    break;
                }
            }
        }
        if let Some(conn) = self.conns.get_mut(id) {
            conn.need_bytes = need_bytes;
        }
        at
    }

    /// How the next operation, which begins with `first`, is to be parsed; `None` if not at all.
    fn parse_limits(&mut self, id: ConnId, first: u8) -> Option<Limits> {
        let conn = self.conns.get_mut(id).filter(|conn| conn.is_open())?;
        if conn.user.is_none() && !first.eq_ignore_ascii_case(&b'C') {
            let Some(user) = self.settings.user_before_connect(conn.transport) else {
                self.refuse_login(id);
                return None;
            };
            if !self.enter_account(id, user) {
                return None;
            }
            if let Some(conn) = self.conns.get_mut(id) {
                conn.timing.auth_due = super::NEVER;
            }
        }
        let conn = self.conns.get(id)?;
        Some(Limits {
            control_line_bytes_max: self.settings.limits.control_line_bytes_max,
            payload_bytes_max: conn.payload_bytes_max(&self.settings.limits),
            headers: self.settings.headers && conn.connect.headers,
        })
    }

    fn on_violation(&mut self, id: ConnId, error: &ProtoError) {
        if let Some(conn) = self.conns.get(id) {
            tracing::error!("{} - {error}", conn.label());
        }
        self.fail(id, error.wire(), Reason::Protocol(error.reason()));
    }

    fn on_operation(&mut self, id: ConnId, op: &Op<'_>) {
        self.budget.spend(OPERATION_WORK);
        if self.settings.tracing.is_some()
            && let Some(conn) = self.conns.get(id)
        {
            trace::operation(conn, op);
        }
        match *op {
            Op::Connect(json) => self.on_connect(id, json),
            Op::Ping => self.on_ping(id),
            Op::Pong => self.on_pong(id),
            Op::Sub { subject, queue, sid } => self.on_sub(id, subject, queue, sid),
            Op::Unsub { sid, max } => self.on_unsub(id, sid, max),
            Op::Nothing => {}
            Op::Pub(_) => unreachable!("publishes are gathered into runs"),
        }
        self.settle_deliveries();
    }

    fn on_connect(&mut self, id: ConnId, json: &[u8]) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Err(error) = conn.connect.apply(json) {
            tracing::error!("{} - CONNECT: {error}", conn.label());
            self.fail(id, None, Reason::Protocol("Protocol Violation"));
            return;
        }
        conn.layers.complete(&mut conn.connect);
        let again = std::mem::replace(&mut conn.connected, true);
        if again {
            self.drop_subscriptions(id);
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !again {
            conn.timing.rtt = self.now - conn.timing.opened;
        }
        conn.user = None;
        if !conn.connect.account.is_empty() || conn.connect.new_account {
            self.refuse_login(id);
            return;
        }
        match self.settings.log_in(conn, conn.cert_names.as_deref(), self.now) {
            Identified::Is(user) => self.claim_holds(id, user, again),
            Identified::Refused => self.refuse_login(id),
            Identified::IsIf(user, proof) => {
                conn.claim = Some(Claim { user, again, holds: false });
                // Nobody waits for ever, nor is waited for.
                let due = self.now.saturating_add(self.settings.auth_timeout_ns_of(conn.transport));
                conn.timing.auth_due = conn.timing.auth_due.min(due);
                self.proofs.push_back((id, proof));
                self.brake(id, |brakes| brakes.claims = true);
                self.rearm(id);
            }
        }
    }

    /// What a client has shown of itself was checked.
    pub fn on_proof(&mut self, id: ConnId, holds: bool) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        let Some(Claim { user, again, .. }) = conn.claim.take() else { return };
        let rest = std::mem::take(&mut conn.partial);
        conn.need_bytes = 0;
        let is_route = conn.route.is_some();
        match (holds, is_route) {
            (true, true) => {}
            (true, false) => self.claim_holds(id, user, again),
            (false, _) => self.refuse_login(id),
        }
        if self.conns.get(id).is_some_and(|conn| conn.claim.is_none()) {
            self.release(id, |brakes| brakes.claims = false);
        }
        self.on_plaintext(id, &rest);
        self.end_if_heard(id);
    }

    /// The client is this user. Its CONNECT takes effect, if need be when nothing is left of what
    /// it subscribed to before: as somebody else it may not see that any more.
    fn claim_holds(&mut self, id: ConnId, user: Rc<User>, again: bool) {
        let Some(conn) = self.conns.get(id) else { return };
        if conn.account != user.account {
            self.drop_subscriptions(id);
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.is_leaving {
            return self.admit(id, user, again);
        }
        conn.claim = Some(Claim { user, again, holds: true });
        conn.timing.auth_due = super::NEVER;
        self.brake(id, |brakes| brakes.claims = true);
    }

    /// Nothing is left of what a client subscribed to before its CONNECT.
    pub(super) fn admit_if_left(&mut self, id: ConnId) {
        let claim = self.conns.get(id).and_then(|conn| conn.claim.as_ref());
        if claim.is_some_and(|claim| claim.holds) {
            self.on_proof(id, true);
        }
    }

    /// The client is this user: its CONNECT takes effect.
    fn admit(&mut self, id: ConnId, user: Rc<User>, again: bool) {
        if !self.enter_account(id, user) {
            return;
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let connect = &conn.connect;
        let (verbose, protocol) = (connect.verbose, connect.protocol);
        let no_headers = connect.no_responders && !(connect.headers && self.settings.headers);
        conn.checks = None;
        conn.timing.auth_due = super::NEVER;
        if !(0..=1).contains(&protocol) {
            let reason = Reason::Protocol("Bad Client Protocol Version");
            self.fail(id, Some("invalid client protocol"), reason);
            return;
        }
        if no_headers {
            let reason = Reason::Protocol("No Responders Requires Headers");
            self.fail(id, Some("no responders requires headers support"), reason);
            return;
        }
        conn.review();
        let account = conn.account;
        if !again {
            let interval = self.settings.ping_interval_of(conn.transport);
            let first = interval.min(FIRST_PING_NS);
            let jitter = self.rng.u64(..=first / 5);
            conn.timing.ping_due = self.now.saturating_add(first).saturating_add(jitter);
            if !conn.subs.is_empty() {
                self.accounts.at(account).interest.forget_all();
            }
        }
        self.rearm(id);
        self.tell_connected(id);
        if verbose {
            self.confirm(id, encode::ok);
        }
    }

    /// Makes a connection one of its user's account; `false` if there is no room for it there.
    fn enter_account(&mut self, id: ConnId, user: Rc<User>) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let account = user.account;
        if conn.account != account {
            self.leave_account(id);
        }
        let Some(conn) = self.conns.get_mut(id) else { return false };
        conn.account = account;
        conn.user = Some(user);
        conn.limits = self.accounts.at(account).limits();
        conn.review();
        if conn.seated {
            return true;
        }
        if !self.accounts.at(account).enter() {
            self.refuse_account_seat(id);
            return false;
        }
        conn.seated = true;
        true
    }

    fn refuse_account_seat(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        tracing::error!("{} - maximum account active connections exceeded", conn.label());
        let reason = Reason::Protocol("Maximum Account Connections Exceeded");
        self.fail(id, Some("maximum account active connections exceeded"), reason);
    }

    pub(super) fn refuse_login(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        if conn.connect.user.is_empty() {
            tracing::error!("{} - authentication error", conn.label());
        } else {
            let user = conn.connect.user.as_str();
            tracing::error!("{} - authentication error - User {user:?}", conn.label());
        }
        let reason = Reason::Protocol("Authentication Failure");
        self.fail(id, Some("Authorization Violation"), reason);
    }

    fn on_ping(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.timing.last_active = self.now;
        let greet = conn.connected && !std::mem::replace(&mut conn.greeted, conn.connected);
        let tell = greet && conn.connect.protocol >= 1;
        self.confirm_ping(id);
        if tell {
            self.send_info(id, true);
        }
    }

    pub(super) fn on_pong(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.timing.pings_out > 0 {
            conn.timing.rtt = self.now.saturating_sub(conn.timing.ping_sent);
        }
        conn.timing.pings_out = 0;
    }

    fn on_sub(&mut self, id: ConnId, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.timing.last_active = self.now;
        let verbose = conn.connect.verbose;
        let limits = &self.settings.limits;
        let tokens_max = limits.subscription_tokens_max;
        let hash = self.hasher.hash_one(sid);
        let same_sid = |key: &SubKey| self.subs[*key as usize].sid() == sid;
        let too_many = conn.subs.len() >= conn.subscriptions_max(limits);
        if tokens_max > 0 && subject::token_count(subject) > tokens_max {
            self.refuse(id, &encode::too_many_tokens(subject));
        } else if !may_subscribe(conn, subject, queue) {
            self.refuse_subscription(id, subject, queue, sid);
        } else if too_many {
            tracing::error!("{} - maximum subscriptions exceeded", conn.label());
            self.refuse(id, "maximum subscriptions exceeded");
        } else if conn.subs.find(hash, same_sid).is_some() {
            if verbose {
                self.confirm(id, encode::ok);
            }
        } else if !subject::is_valid_filter(subject) {
            self.refuse(id, "Invalid Subject");
        } else {
            self.subscribe(id, subject, queue, sid, hash);
            if verbose {
                self.confirm(id, encode::ok);
            }
        }
    }

    fn subscribe(
        &mut self,
        id: ConnId,
        subject: &[u8],
        queue: Option<&[u8]>,
        sid: &[u8],
        hash: u64,
    ) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let account = conn.account;
        self.budget.spend(SUBSCRIBE_WORK);
        let key = self.subs.insert(Sub::new(id.slot, subject, queue, sid));
        let Ok(key) = SubKey::try_from(key) else {
            unreachable!("a shard's memory ends long before 4 billion subscriptions")
        };
        let (subs, hasher) = (&self.subs, &self.hasher);
        let hash_of = |key: &SubKey| hasher.hash_one(subs[*key as usize].sid());
        conn.subs.find_or_insert(hash, |other| *other == key, hash_of, || key);
        let change = self.accounts.at(account).interest.add(key, &mut self.subs);
        match change.announce {
            Some(members) => self.announce(id, account, Side::Clients, (subject, queue), members),
            // What another connection has announced need not be in force yet.
            None => conn.staged_epoch = conn.staged_epoch.max(self.announced_epoch),
        }
        if let Some(members) = change.tell {
            self.tell_routes(account, (subject, queue), members);
        }
    }

    fn refuse_subscription(
        &mut self,
        id: ConnId,
        subject: &[u8],
        queue: Option<&[u8]>,
        sid: &[u8],
    ) {
        if let Some(conn) = self.conns.get(id) {
            let queue = queue
                .map_or(String::new(), |queue| format!("Queue: {}, ", encode::go_quoted(queue)));
            let subject = encode::go_quoted(subject);
            let sid = String::from_utf8_lossy(sid);
            tracing::error!(
                "{} - Subscription Violation - Subject {subject}, {queue}SID {sid}",
                conn.label()
            );
        }
        self.refuse(id, &encode::subscription_violation(subject, queue));
    }

    /// An error after which the connection goes on.
    fn refuse(&mut self, id: ConnId, error: &str) {
        self.reply(id, |out| encode::err(out, error));
    }

    fn on_unsub(&mut self, id: ConnId, sid: &[u8], max: Option<u64>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.timing.last_active = self.now;
        let verbose = conn.connect.verbose;
        let hash = self.hasher.hash_one(sid);
        let subs = &mut self.subs;
        if let Some(&key) = conn.subs.find(hash, |key| subs[*key as usize].sid() == sid) {
            let sub = &mut subs[key as usize];
            match max {
                Some(max) if sub.delivered < max => sub.max = max,
                _ => self.end_subscription(key),
            }
        }
        if verbose {
            self.confirm(id, encode::ok);
        }
    }

    /// Takes a publish into the run, or handles it now. False if it is not taken: its turn has not
    /// come, or nobody is there any more who could publish it.
    fn on_publish<'a>(
        &mut self,
        id: ConnId,
        publish: &Publish<'a>,
        wire: &'a [u8],
        run: &mut Run<'a>,
    ) -> bool {
        if publish.header.is_some()
            && let Some(account) = self.conns.get(id).map(|conn| conn.account)
            && self.is_traced(account, publish)
        {
            return self.on_traced_publish(id, account, (publish, wire), run);
        }
        self.take_publish(id, publish, wire, run)
    }

    /// Handles a publish that is perhaps to be traced, by itself. False if it is not taken.
    fn on_traced_publish<'a>(
        &mut self,
        id: ConnId,
        account: AccountId,
        (publish, wire): (&Publish<'a>, &'a [u8]),
        run: &mut Run<'a>,
    ) -> bool {
        self.flush_run(id, run);
        if !self.may_go_on(id) {
            return false;
        }
        match self.begin_trace(id, account, publish) {
            Traced::No | Traced::Yes => {
                self.take_publish(id, publish, wire, run);
                self.flush_run(id, run);
                self.end_trace();
                self.budget.spend(OPERATION_WORK);
            }
            Traced::Ends => {
                self.warn_of_subject(id, publish.subject);
            }
            Traced::Denied(dest) => {
                self.warn_of_subject(id, publish.subject);
                self.refuse(id, &encode::publish_violation(&dest));
            }
        }
        true
    }

    fn take_publish<'a>(
        &mut self,
        id: ConnId,
        publish: &Publish<'a>,
        wire: &'a [u8],
        run: &mut Run<'a>,
    ) -> bool {
        let mut continues = run.continues_with(publish);
        if !continues {
            let mapped = self.map(id, publish.subject);
            continues = run.resumes_with(publish, mapped.as_ref());
            if !continues {
                self.flush_run(id, run);
                self.note_mapped(publish.subject, mapped.as_ref());
                run.map(mapped);
            }
        }
        match self.judge(id, publish, run.mapped(), wire, continues) {
            Verdict::Joins { publisher, is_alone } => {
                if is_alone {
                    self.flush_run(id, run);
                }
                if is_alone || !continues {
                    self.begin_run(publisher, run, publish);
                }
                run.push(*publish, wire);
                if is_alone {
                    self.flush_run(id, run);
                }
            }
            Verdict::Refused(error) => {
                // What was published before comes before the error.
                self.flush_run(id, run);
                self.note_refused(&error);
                self.budget.spend(OPERATION_WORK);
                self.refuse(id, &error);
            }
            Verdict::Dropped => return false,
        }
        true
    }

    /// What a mapping of its account makes of the subject of a publish.
    fn map(&mut self, id: ConnId, subject: &[u8]) -> Option<Mapped> {
        if !self.settings.has_mappings {
            return None;
        }
        let account = self.conns.get(id)?.account;
        let mappings = self.accounts.at(account).mappings.as_ref()?;
        mappings.map(subject, &mut self.rng)
    }

    /// Checks a publish. With `continues` its subject is that of the run, which was found good.
    /// What counts is the subject that it was mapped to.
    fn judge(
        &mut self,
        id: ConnId,
        publish: &Publish<'_>,
        mapped: Option<&Mapped>,
        wire: &[u8],
        continues: bool,
    ) -> Verdict {
        let Some(mut conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else {
            return Verdict::Dropped;
        };
        // Where a trace has begun, it was asked before.
        let asks_for_turn = !continues && self.trace.is_none();
        if asks_for_turn && (self.budget.is_spent() || conn.brakes.holds()) {
            return Verdict::Dropped;
        }
        if let Some(tracing) = self.settings.tracing {
            tracing.publish(conn, publish, mapped, wire);
        }
        conn.timing.last_active = self.now;
        let (verbose, pedantic) = (conn.connect.verbose, conn.connect.pedantic);
        let mut invalid = false;
        if pedantic && !continues {
            invalid = self.warn_of_subject(id, publish.subject);
            let Some(again) = self.conns.get_mut(id) else { return Verdict::Dropped };
            conn = again;
        }
        let subject = mapped.map_or(publish.subject, |mapped| &mapped.subject);
        let reserved =
            !continues && is_reserved_subject(subject, self.accounts.system == Some(conn.account));
        if reserved || !may_publish(conn, subject, continues, self.now) {
            let name = encode::go_quoted(subject);
            tracing::error!("{} - Publish Violation - Subject {name}", conn.label());
            return Verdict::Refused(encode::publish_violation(subject));
        }
        if let Some(reply) = publish.reply.filter(|reply| is_reserved_reply(reply)) {
            let text = encode::go_quoted(reply);
            tracing::error!("{} - Publish Violation - Reply {text}", conn.label());
            return Verdict::Refused(encode::reply_violation(reply));
        }
        let publisher =
            PublisherInfo { account: conn.account, wants_status: conn.connect.no_responders };
        if verbose {
            // The reply promises what was published before; this message follows it.
            self.confirm(id, encode::ok);
        }
        Verdict::Joins { publisher, is_alone: verbose || invalid }
    }

    /// Tells a pedantic client of a subject that is none, whatever else is found wrong; `true` if
    /// it was told.
    fn warn_of_subject(&mut self, id: ConnId, subject: &[u8]) -> bool {
        let is_pedantic = self.conns.get(id).is_some_and(|conn| conn.connect.pedantic);
        let warns = is_pedantic && !subject::is_valid_publish(subject);
        if warns {
            self.refuse(id, "Invalid Publish Subject");
        }
        warns
    }

    fn flush_run(&mut self, id: ConnId, run: &mut Run<'_>) {
        if !run.is_empty() {
            match run.mapped() {
                None => self.publish(id, run),
                Some(mapped) => self.publish(id, &run.renamed(&mapped.subject)),
            }
            run.clear();
        }
    }

    /// Takes over a new configuration: who is no longer allowed is cut, what is no longer
    /// permitted ends, who is owed more than `max_pending` now is slow. New deadlines count from
    /// here on. As in nats-server, clients are not told: a new INFO is for those who come.
    pub fn reload(&mut self, settings: Rc<Settings>) {
        let before = self.before_accounts_change();
        if before.is_some() {
            self.forget_wishes(|name| !settings.has_account(name));
        }
        let old = std::mem::replace(&mut self.settings, settings);
        self.settings.configure(&mut self.accounts);
        if let Some(before) = &before {
            self.after_accounts_changed(before);
        }
        self.conns.iter_mut().for_each(|conn| conn.outbox.keep_all());
        for id in self.conns.client_ids() {
            self.review_user(id, &old);
            self.review_limits(id, &old);
        }
        self.review_routes(&old);
        self.settle_deliveries();
    }

    /// Whether a connection may stay under the new settings, and as whom.
    fn review_user(&mut self, id: ConnId, old: &Settings) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        if let Some(claim) = &conn.claim {
            if !self.settings.claims_hold(&claim.user, old) {
                // What is being checked is of the old configuration.
                self.refuse_login(id);
            }
            return;
        }
        let Some(user) = &conn.user else {
            // Whoever is still to log in goes on having time for it; whoever did not need to is
            // not allowed any more.
            if !conn.layers.is_understood() {
                // Its time is that for becoming a WebSocket.
            } else if self.settings.admits_everybody(conn.transport) {
                conn.timing.auth_due = super::NEVER;
            } else if self.settings.auth_required(conn.transport)
                && !old.auth_required(conn.transport)
            {
                self.refuse_login(id);
            }
            return;
        };
        match self.settings.standing(user, conn, old, self.now) {
            Standing::Stays(user) => {
                conn.limits = self.accounts.at(user.account).limits();
                conn.user = Some(user);
                conn.checks = None;
                conn.review();
                self.end_unpermitted(id);
            }
            Standing::Changed => self.refuse_login(id),
            Standing::Moved => self.fail(id, None, Reason::ClientClosed),
            Standing::Revoked => {
                let reason = Reason::Protocol("Credentials Revoked");
                self.fail(id, Some("User Authentication Revoked"), reason);
            }
            Standing::Gone => self.fail(id, None, Reason::Protocol("Authentication Failure")),
        }
    }

    fn review_limits(&mut self, id: ConnId, old: &Settings) {
        let settings = &self.settings;
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        if conn.outbox.pending_bytes() > settings.limits.pending_bytes_max {
            self.doomed.push(id);
        }
        let interval = settings.ping_interval_of(conn.transport);
        if conn.layers.is_understood() && interval != old.ping_interval_of(conn.transport) {
            // Not all at the same instant.
            let jitter = self.rng.u64(..=interval / 5);
            let due = self.now.saturating_add(interval - jitter);
            conn.timing.ping_due = conn.timing.ping_due.min(due);
        }
        self.rearm(id);
    }

    /// Closes the connections with numbers up to `cid_max`, of one account or of all: there are too
    /// many.
    pub fn shed(&mut self, cid_max: u64, account: Option<AccountId>) {
        for id in self.conns.client_ids() {
            let Some(conn) = self.conns.get(id).filter(|conn| conn.is_open()) else { continue };
            if conn.peer.cid > cid_max {
                continue;
            }
            match account {
                None => {
                    tracing::error!("{} - maximum connections exceeded", conn.label());
                    self.refuse_seat(id);
                }
                Some(account) if conn.seated && conn.account == account => {
                    self.refuse_account_seat(id);
                }
                Some(_) => {}
            }
        }
    }

    /// Closes the connection with this number; `false` if there is none.
    pub fn kick(&mut self, cid: u64) -> bool {
        let id = self.find_client(cid);
        if let Some(id) = id {
            self.fail(id, None, Reason::Protocol("Kicked"));
        }
        id.is_some()
    }

    /// Tells the client with this number to look for another server; `false` if there is none.
    pub fn advise_to_leave(&mut self, cid: u64) -> bool {
        let id = self.find_client(cid);
        if let Some(id) = id
            && self.conns.get(id).is_some_and(|conn| conn.connect.protocol >= 1)
        {
            self.send_info_of(id, false, true);
        }
        id.is_some()
    }

    fn find_client(&self, cid: u64) -> Option<ConnId> {
        let has_it = |id: &ConnId| {
            self.conns.get(*id).is_some_and(|conn| conn.is_open() && conn.peer.cid == cid)
        };
        self.conns.client_ids().into_iter().find(has_it)
    }

    fn end_unpermitted(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        let unpermitted = |key: &SubKey| {
            let sub = &self.subs[*key as usize];
            !may_subscribe(conn, sub.subject(), sub.queue())
        };
        let keys: Vec<SubKey> = conn.subs.iter().copied().filter(unpermitted).collect();
        for key in keys {
            let sub = &self.subs[key as usize];
            let error = encode::removed_subscription(sub.subject(), sub.queue(), sub.sid());
            self.end_subscription(key);
            self.refuse(id, &error);
        }
    }
}

fn may_subscribe(conn: &super::Conn, subject: &[u8], queue: Option<&[u8]>) -> bool {
    // nats-server keeps this group name to itself.
    queue != Some(b"_sys_")
        && conn.permissions().is_none_or(|permissions| permissions.may_subscribe(subject, queue))
}

/// Whether a connection may publish to `subject`. With `continues` it just did: then only what it
/// may answer has to be counted.
fn may_publish(conn: &mut super::Conn, subject: &[u8], continues: bool, now: u64) -> bool {
    let user = conn.user.as_ref();
    match user.and_then(|user| user.permissions.as_ref()) {
        None => true,
        Some(user) if continues && !user.allows_responses() => true,
        Some(user) => conn.checks.get_or_insert_default().may_publish(user, subject, now),
    }
}

/// Whether nobody may publish to it; with `is_system` somebody of the system account.
pub(super) fn is_reserved_subject(subject: &[u8], is_system: bool) -> bool {
    matches!(subject.first(), Some(b'_' | b'$'))
        && (subject.starts_with(b"_GR_.") || (subject.starts_with(b"$NRG.") && !is_system))
}

fn is_reserved_reply(reply: &[u8]) -> bool {
    matches!(reply.first(), Some(b'_' | b'$'))
        && [&b"_R_."[..], b"_GR_.", b"$JS.ACK."].iter().any(|prefix| reply.starts_with(prefix))
}
