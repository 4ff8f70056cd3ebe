//! Login of clients: CONNECT, the check of credentials, and the entry into an account.

use std::rc::Rc;

use crate::auth::callout::Decision;
use crate::auth::credential_check::CredentialCheck;
use crate::auth::jwt;
use crate::auth::user::User;
use crate::client::callout;
use crate::client::identify::Identified;
use crate::core::close::Reason;
use crate::core::input::Held;
use crate::core::login::{Claim, LoginStep};
use crate::core::outputs::Output;
use crate::core::timers::Deadline;
use crate::core::{Core, events};
use crate::interest::ids::ConnId;
use crate::proto::encode;

/// Nanoseconds from CONNECT to the first PING, if the ping interval is not shorter.
const FIRST_PING_NS: u64 = 2_000_000_000;

pub(crate) fn on_connect(core: &mut Core, id: ConnId, json: &[u8]) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    if let Err(error) = conn.connect.apply(json) {
        tracing::error!("{} - CONNECT: {error}", conn.label());
        core.fail(id, None, Reason::Protocol("Protocol Violation"));
        return;
    }
    conn.layers.complete(&mut conn.connect);
    let again = conn.login.has_connected();
    if again {
        core.drop_subscriptions(id);
    }
    let Some(conn) = core.conns.get_mut(id) else { return };
    if !again {
        conn.liveness.on_first_connect(core.times.now);
    }
    conn.login.on_connect();
    if !conn.connect.account.is_empty() || conn.connect.new_account {
        refuse_login(core, id);
        return;
    }
    if let Some(sentinel) = &core.settings.auth.default_sentinel
        && jwt::decode::<jwt::UserClaims>(&conn.connect.jwt).is_err()
    {
        conn.connect.jwt.clone_from(sentinel);
    }
    log_in(core, id, again);
}

/// Finds the user of a connection by its CONNECT: it enters, is refused, or waits for a decision.
pub(crate) fn log_in(core: &mut Core, id: ConnId, again: bool) {
    decide(core, id, again, true);
}

/// Decides about a client by its credentials; `may_fetch` says whether its account may be asked
/// for.
fn decide(core: &mut Core, id: ConnId, again: bool, may_fetch: bool) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    match core.settings.log_in(conn, conn.login.cert_names.as_deref(), core.times.now) {
        Identified::Wants(account) if may_fetch => {
            conn.login.want(again);
            core.out.push(Output::Fetch { conn: id, account });
            wait_for_decision(core, id);
        }
        Identified::Wants(_) => refuse_login(core, id),
        Identified::Is(user) => claim_holds(core, id, user, again),
        Identified::Refused => refuse_login(core, id),
        Identified::Asks(service) => callout::ask(core, id, service, again),
        Identified::IsIf(user, check) => {
            let (holds, fails) = (LoginStep::Enter(user), LoginStep::Refuse);
            check_claim(core, id, check, Claim { holds, fails, again });
        }
        Identified::Depends(check, holds, fails) => {
            check_claim(core, id, check, Claim { holds, fails, again });
        }
    }
}

/// News about a login that waits.
#[derive(Debug)]
pub enum LoginNews {
    /// The result of a credential check: whether the credentials hold.
    Checked(bool),
    /// The decision of a service.
    Decided(Decision),
    /// The answer about the certificate of a peer: whether its status is good enough.
    PeerStatus(bool),
    /// The end of the wait for an account: whether it is in force.
    Fetched(bool),
}

/// Takes news about a login. Returns the input that waited for it; `None` if nothing waited, or if
/// the login waits for something else now.
pub(crate) fn on_news(core: &mut Core, id: ConnId, news: LoginNews) -> Option<Vec<u8>> {
    match news {
        LoginNews::Checked(holds) => on_checked(core, id, holds),
        // It is before every login.
        LoginNews::PeerStatus(_) => None,
        LoginNews::Decided(decision) => callout::on_decided(core, id, decision),
        LoginNews::Fetched(is_known) => {
            on_account_fetched(core, id, is_known);
            None
        }
    }
}

/// Goes on with the login of a client whose account was asked for.
fn on_account_fetched(core: &mut Core, id: ConnId, is_known: bool) {
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    match conn.login.take_wanting() {
        None => {}
        // What follows the CONNECT waits on, for the signatures of the token.
        Some(again) if is_known => decide(core, id, again, false),
        Some(_) => refuse_login(core, id),
    }
}

/// Has credentials checked off the shard.
fn check_claim(core: &mut Core, id: ConnId, check: CredentialCheck, claim: Claim) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.login.claim(claim);
    core.out.push(Output::Check(id, Box::new(check)));
    wait_for_decision(core, id);
}

/// Holds back the input of a client until its login is decided, which has a deadline.
pub(super) fn wait_for_decision(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let timeout_ns = core.settings.auth_timeout_ns_of(conn.transport);
    conn.deadlines.arm_by(Deadline::Login, core.times.now.saturating_add(timeout_ns));
    core.hold(id, Held::Check);
    core.rearm(id);
}

/// Takes the result of a credential check. Returns the input that waited for it; `None` if nothing
/// waited, or if a service has to be asked, too.
fn on_checked(core: &mut Core, id: ConnId, holds: bool) -> Option<Vec<u8>> {
    let conn = core.conns.get_mut(id).filter(|conn| conn.is_open())?;
    conn.input.held()?;
    let Some(Claim { holds: step, fails, again }) = conn.login.take_claim() else {
        let rest = conn.input.take_held();
        if !holds {
            refuse_login(core, id);
        }
        return rest;
    };
    let step = if holds { step } else { fails };
    if let LoginStep::Ask(service) = step {
        callout::ask(core, id, service, again);
        return None;
    }
    let rest = conn.input.take_held();
    match step {
        LoginStep::Enter(user) => claim_holds(core, id, user, again),
        LoginStep::Ask(_) | LoginStep::Refuse => refuse_login(core, id),
    }
    rest
}

/// Takes the user of a client that has shown valid credentials. The CONNECT takes effect, if need
/// be once the client's earlier subscriptions are gone: another user may not see their messages.
pub(crate) fn claim_holds(core: &mut Core, id: ConnId, user: Rc<User>, again: bool) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    if conn.link.is_some() {
        // It has nothing yet; what follows is for its protocol to say.
        let limits = core.accounts.at(user.account).limits();
        return conn.login.enter(user, limits);
    }
    if conn.account != user.account {
        core.drop_subscriptions(id);
    }
    let Some(conn) = core.conns.get_mut(id) else { return };
    if !conn.takes.is_leaving() {
        return admit(core, id, user, again);
    }
    let (holds, fails) = (LoginStep::Enter(user), LoginStep::Refuse);
    conn.login.claim(Claim { holds, fails, again });
    conn.deadlines.disarm(Deadline::Login);
    core.hold(id, Held::Retraction);
}

/// Puts the CONNECT of a client into effect, as `user`.
pub(crate) fn admit(core: &mut Core, id: ConnId, user: Rc<User>, again: bool) {
    if !enter_account(core, id, user) {
        return;
    }
    let Some(conn) = core.conns.get_mut(id) else { return };
    let connect = &conn.connect;
    let (verbose, protocol) = (connect.verbose, connect.protocol);
    let no_headers = connect.no_responders && !(connect.headers && core.settings.headers);
    conn.deadlines.disarm(Deadline::Login);
    if !(0..=1).contains(&protocol) {
        let reason = Reason::Protocol("Bad Client Protocol Version");
        core.fail(id, Some("invalid client protocol"), reason);
        return;
    }
    if no_headers {
        let reason = Reason::Protocol("No Responders Requires Headers");
        core.fail(id, Some("no responders requires headers support"), reason);
        return;
    }
    conn.review();
    let account = conn.account;
    if !again {
        let interval = core.settings.ping_interval_of(conn.transport);
        let first = interval.min(FIRST_PING_NS);
        let jitter = core.random.rng.u64(..=first / 5);
        let due = core.times.now.saturating_add(first).saturating_add(jitter);
        conn.deadlines.arm(Deadline::Ping, due);
        if !conn.subs.is_empty() {
            core.accounts.at(account).interest.forget_all();
        }
    }
    core.rearm(id);
    events::tell_connected(core, id);
    if verbose {
        core.confirm(id, encode::ok);
    }
}

/// Moves a connection into its user's account; `false` if there is no room for it there.
pub(super) fn enter_account(core: &mut Core, id: ConnId, user: Rc<User>) -> bool {
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let account = user.account;
    if conn.account != account {
        core.leave_account(id);
    }
    let Some(conn) = core.conns.get_mut(id) else { return false };
    conn.account = account;
    conn.login.enter(user, core.accounts.at(account).limits());
    conn.review();
    if conn.login.has_seat() {
        return true;
    }
    if !core.accounts.at(account).enter() {
        refuse_account_seat(core, id);
        return false;
    }
    conn.login.take_seat();
    true
}

pub(crate) fn refuse_account_seat(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    tracing::error!("{} - maximum account active connections exceeded", conn.label());
    let reason = Reason::Protocol("Maximum Account Connections Exceeded");
    core.fail(id, Some("maximum account active connections exceeded"), reason);
}

pub(crate) fn refuse_login(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    if conn.connect.user.is_empty() {
        tracing::error!("{} - authentication error", conn.label());
    } else {
        let user = &*conn.connect.user;
        tracing::error!("{} - authentication error - User {user:?}", conn.label());
    }
    let reason = Reason::Protocol("Authentication Failure");
    core.fail(id, Some("Authorization Violation"), reason);
}
