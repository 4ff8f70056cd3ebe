//! Users by token (JWT): the user that a token stands for, and the conditions for it.
//!
//! With an operator, accounts and users come as signed tokens (`auth::jwt`). Tokens of accounts are
//! read with the options and become accounts beside the configured ones, so limits and imports are
//! the same for both. A user's token is read at its CONNECT. That yields the user, and the
//! check that is still to be made, off the shard: two signatures. Times in tokens are converted to
//! the engine's time (`WallClock`), so the engine reads no clock. A reload judges connected users
//! by the same function, without asking for the signatures again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use chrono_tz::Tz;

use crate::auth::callout::{self, Service};
use crate::auth::credential_check::CredentialCheck;
use crate::auth::grants::Grants;
use crate::auth::jwt::{self, Claims, SigningKey};
use crate::auth::user::{Allowed, Caller, User};
use crate::auth::{self, ConnectionType, SubjectEntry};
use crate::interest::ids::AccountId;
use crate::measure::NEVER;
use crate::proto::Connect;

/// Subjects that the templates of one list may expand to, at most.
const FILLED_MAX: usize = 1024;

const NS_PER_S: i128 = 1_000_000_000;

/// Accounts whose users log in by token.
#[derive(Debug)]
pub(crate) struct Trusted {
    pub(crate) accounts: HashMap<String, (AccountId, Arc<Claims<jwt::AccountClaims>>)>,
    /// The only accounts whose users may log in (none: all).
    pub(crate) pinned: Vec<String>,
    /// Whether accounts that are not known are asked for.
    pub(crate) fetches: bool,
    /// Services that decide about users of an account, by its key.
    pub(crate) services: HashMap<String, Arc<Service>>,
    pub(crate) clock: WallClock,
}

/// Conversion between the engine's time and the times in tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WallClock {
    /// The server's time zone.
    pub(crate) zone: Tz,
    /// The zero of the engine's time, in nanoseconds since 1970.
    pub(crate) epoch_ns: i128,
}

/// A user that shows a token, the check of its signatures, and the service that decides if the
/// check holds.
pub(crate) struct IdentifiedUser {
    pub(crate) user: User,
    pub(crate) check: CredentialCheck,
    pub(crate) asks: Option<Arc<Service>>,
}

/// Limits and expiry that a token adds to its user.
#[derive(Debug)]
pub(crate) struct Pass {
    /// The token's claims, for answers about the user.
    pub(crate) says: Arc<TokenUser>,
    pub(crate) subscriptions_max: Option<usize>,
    pub(crate) payload_bytes_max: Option<usize>,
    /// The token's expiry, in nanoseconds since the start.
    expires: u64,
    /// The expiry of the account's token, in nanoseconds since the start.
    account_expires: u64,
}

/// Claims of a user's token.
#[derive(Debug, Default, PartialEq)]
pub struct TokenUser {
    /// Name for humans.
    pub name: String,
    /// Permissions of the user.
    pub permissions: auth::Permissions,
    /// Expiry, in seconds since 1970 (0: never).
    pub expires: i64,
    /// The key that signed the token.
    pub issuer: String,
    /// Tags of the user.
    pub tags: Vec<String>,
    /// The token itself; `None` for a bearer token, which is a secret.
    pub text: Option<String>,
}

impl TokenUser {
    fn new(
        claims: &Claims<jwt::UserClaims>,
        permissions: auth::Permissions,
        expires: i64,
        text: Option<String>,
    ) -> Self {
        let (name, issuer) = (claims.name.clone(), claims.issuer.clone());
        Self { name, permissions, expires, issuer, tags: claims.body.tags.clone(), text }
    }

    /// The bytes of text that the claims hold.
    pub(crate) fn bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(String::len).sum();
        self.name.len() + self.issuer.len() + tags + self.text.as_ref().map_or(0, String::len)
    }
}

impl Pass {
    /// The time at which the user is disconnected, in nanoseconds since the start.
    pub(crate) fn ends(&self) -> u64 {
        self.expires.min(self.account_expires)
    }

    /// The error that the user is sent when the token expires.
    pub(crate) fn farewell(&self) -> &'static str {
        if self.expires <= self.account_expires {
            "User Authentication Expired"
        } else {
            "Account Authentication Expired"
        }
    }
}

/// The reason why a token is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A token that its account has revoked.
    Revoked,
    /// A token that was never valid here; the text is for the log.
    Because(&'static str),
    /// A token of an account that is not known, or not any more, and has to be asked for.
    Wants(Box<str>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revoked => "the token is revoked",
            Self::Because(text) => text,
            Self::Wants(_) => "the account is not known, or has expired",
        })
    }
}

impl Trusted {
    /// Whether the users of an account are the same as in `old`: compares the tokens by identity,
    /// not each user.
    pub(crate) fn says_the_same_of(&self, account: &str, old: &Self) -> bool {
        let (now, before) = (self.accounts.get(account), old.accounts.get(account));
        let same = now.zip(before).is_some_and(|(now, before)| Arc::ptr_eq(&now.1, &before.1));
        same && self.pinned == old.pinned
    }

    /// Returns the client's user, and the credential check that has to succeed.
    pub(crate) fn identify(
        &self,
        caller: Caller<'_>,
        connect: &Connect,
        nonce: String,
        now: u64,
    ) -> Result<IdentifiedUser, Refusal> {
        let token = jwt::decode::<jwt::UserClaims>(&connect.jwt)
            .map_err(|_| Refusal::Because("no user JWT in CONNECT"))?;
        let claims = &token.claims;
        let (user, is_bearer) = self.user_of(claims, &connect.jwt, caller, now)?;
        let own = (!is_bearer).then(|| CredentialCheck::Signature {
            key: claims.subject.clone(),
            nonce,
            signature: connect.sig.to_string(),
        });
        let deciders = self.accounts.get(&*user.account_name);
        let deciders = deciders.map(|(_, account)| &account.body.authorization.auth_users);
        let is_decider = deciders.is_some_and(|keys| keys.contains(&claims.subject));
        let asks = self.services.get(&*user.account_name).filter(|_| !is_decider).cloned();
        let check = CredentialCheck::Token { token: token.signature, own: own.map(Box::new) };
        Ok(IdentifiedUser { user, check, asks })
    }

    /// Returns the user that a token stands for, and whether the token alone suffices. `text` is
    /// the token, or empty if it is not to be shown.
    fn user_of(
        &self,
        claims: &Claims<jwt::UserClaims>,
        text: &str,
        caller: Caller<'_>,
        now: u64,
    ) -> Result<(User, bool), Refusal> {
        let because = Refusal::Because;
        let said = &claims.body;
        let name = match said.issuer_account.as_str() {
            "" => &claims.issuer,
            account => account,
        };
        if !self.pinned.is_empty() && !self.pinned.iter().any(|pinned| pinned == name) {
            return Err(because("the account is not in resolver_pinned_accounts"));
        }
        let unknown = |text| match self.fetches && jwt::is_key(name, &['A']) {
            true => Refusal::Wants(name.into()),
            false => because(text),
        };
        let (account_id, account) =
            self.accounts.get(name).ok_or_else(|| unknown("unknown account"))?;
        let body = &account.body;
        let wall = self.clock.unix_s(now);
        if !account.is_in_time(wall) {
            return Err(unknown("the account's token has expired"));
        }
        let signer = body.signing_keys.iter().find(|key| key.key() == claims.issuer);
        let limits = match signer {
            _ if claims.issuer == account.subject => said,
            Some(SigningKey::Plain(_)) => said,
            Some(SigningKey::Scoped { template, .. }) if said.is_empty() => template.as_ref(),
            Some(SigningKey::Scoped { .. }) => {
                return Err(because("a scoped key has signed a token with permissions of its own"));
            }
            None => return Err(because("the account has not signed the token")),
        };
        if let Some(refusal) = objection(claims, body, limits, caller, wall) {
            return Err(refusal);
        }
        let ends = self.clock.ends(claims.expires, limits, wall)?;
        let filled = match signer {
            Some(SigningKey::Scoped { .. }) => fill_all(&limits.permissions, claims, account),
            _ => Some(limits.permissions.clone()),
        };
        let permissions = filled.map(|own| match own == jwt::PermissionsClaim::default() {
            true => body.default_permissions.clone(),
            false => own,
        });
        let permissions = permissions
            .and_then(|permissions| auth::Permissions::from_token(&permissions))
            .ok_or(because("the permissions of the token are not valid"))?;
        let limit = |value: i64| usize::try_from(value).ok();
        let is_bearer = said.bearer_token || limits.bearer_token;
        let text = (!is_bearer && !text.is_empty()).then(|| text.to_owned());
        let says = TokenUser::new(claims, permissions.clone(), ends, text);
        let pass = Pass {
            says: Arc::new(says),
            subscriptions_max: limit(limits.subs),
            payload_bytes_max: limit(limits.payload),
            expires: self.clock.engine_time(ends),
            account_expires: self.clock.engine_time(account.expires),
        };
        let may_ask = self.services.contains_key(name);
        let user = User {
            name: Some(claims.subject.as_str().into()),
            account: *account_id,
            account_name: name.into(),
            permissions: granted(permissions, may_ask),
            // The token's own list is checked above.
            connection_types: Vec::new(),
            pass: Some(pass),
            allowed_by: None,
        };
        Ok((user, limits.bearer_token))
    }

    /// Returns the user that a service has allowed.
    pub(crate) fn allow(
        &self,
        allowed: &Arc<Allowed>,
        caller: Caller<'_>,
        now: u64,
    ) -> Result<User, Refusal> {
        let Allowed { by, claims } = &**allowed;
        let account = match claims.body.issuer_account.as_str() {
            "" => &claims.issuer,
            account => account,
        };
        if account != by.issuer && !self.may_place(by, account) {
            return Err(Refusal::Because(
                "the service may not place users in that account: see allowed_accounts",
            ));
        }
        let (user, _) = self.user_of(claims, "", caller, now)?;
        Ok(User { allowed_by: Some(Arc::clone(allowed)), ..user })
    }

    fn may_place(&self, service: &Service, account: &str) -> bool {
        let asked = self.accounts.get(&service.issuer);
        asked.is_some_and(|(_, claims)| claims.body.authorization.allows(account))
    }
}

/// Compiles permissions; `may_ask` is for users of an account in which a service is asked about
/// logins: they may not ask it themselves.
pub(crate) fn granted(mut permissions: auth::Permissions, may_ask: bool) -> Option<Grants> {
    if may_ask {
        let subject = callout::SUBJECT.to_owned();
        permissions.publish.deny.push(SubjectEntry { subject, queue: None });
    }
    (permissions != auth::Permissions::default()).then(|| Grants::new(&permissions))
}

impl WallClock {
    /// Returns an instant of the engine's time in seconds since 1970.
    pub(crate) fn unix_s(&self, now: u64) -> i64 {
        i64::try_from((self.epoch_ns + i128::from(now)) / NS_PER_S).unwrap_or(i64::MAX)
    }

    /// Returns the time at which a user is disconnected whose token expires at `expires`, both in
    /// seconds since 1970 (0: never).
    fn ends(&self, expires: i64, limits: &jwt::UserClaims, wall: i64) -> Result<i64, Refusal> {
        if limits.times.is_empty() {
            return Ok(expires);
        }
        let end = self.stay_until(limits, wall)?;
        Ok(if expires == 0 { end } else { end.min(expires) })
    }

    /// Returns the end of the hours at which the user may be connected, in seconds since 1970.
    fn stay_until(&self, limits: &jwt::UserClaims, wall: i64) -> Result<i64, Refusal> {
        let zone = match limits.location.as_str() {
            "" | "Local" => self.zone,
            name => name.parse().map_err(|_| Refusal::Because("unknown time zone in the token"))?,
        };
        let until = jwt::stay_until(&limits.times, zone, wall);
        until.ok_or(Refusal::Because("the token is not valid at this time of day"))
    }

    fn engine_time(&self, unix_s: i64) -> u64 {
        match unix_s {
            0 => NEVER,
            unix_s => {
                let ns = i128::from(unix_s) * NS_PER_S - self.epoch_ns;
                u64::try_from(ns.max(0)).unwrap_or(NEVER)
            }
        }
    }
}

/// A service that decides about clients, with the configured accounts that it may place them in.
#[derive(Debug)]
pub(crate) struct Callout {
    /// The service; `None` if its account is not configured: then nobody is allowed.
    pub(crate) service: Option<Arc<Service>>,
    /// Users that are not asked about.
    pub(crate) auth_users: Vec<String>,
    /// Accounts whose users are asked about, besides `$G` (empty: all).
    pub(crate) accounts: Vec<String>,
    /// Permissions of users of an account that have none of their own.
    pub(crate) default_permissions: HashMap<String, auth::Permissions>,
    pub(crate) clock: WallClock,
}

impl Callout {
    /// Whether it is decided here about this user, and not by the service.
    pub(crate) fn exempts(&self, user: &User) -> bool {
        let is_listed = user.name.as_ref().is_some_and(|name| self.is_auth_user(name));
        let is_elsewhere = user.account != AccountId::GLOBAL && !self.accounts.is_empty();
        is_listed || is_elsewhere && !self.accounts.iter().any(|name| **name == *user.account_name)
    }

    /// Whether users of that name are not asked about.
    pub(crate) fn is_auth_user(&self, name: &str) -> bool {
        self.auth_users.iter().any(|user| user == name)
    }

    /// Returns the user that the service has allowed in `account`, the number of the account that
    /// the token names.
    pub(crate) fn allow(
        &self,
        allowed: &Arc<Allowed>,
        account: AccountId,
        caller: Caller<'_>,
        now: u64,
    ) -> Result<User, Refusal> {
        let (because, wall) = (Refusal::Because, self.clock.unix_s(now));
        let claims = &allowed.claims;
        let said = &claims.body;
        if let Some(refusal) = objection(claims, &jwt::AccountClaims::default(), said, caller, wall)
        {
            return Err(refusal);
        }
        let ends = self.clock.ends(claims.expires, said, wall)?;
        let permissions = match said.permissions == jwt::PermissionsClaim::default() {
            true => self.default_permissions.get(&claims.audience).cloned(),
            false => auth::Permissions::from_token(&said.permissions)
                .map(Some)
                .ok_or(because("the permissions of the token are not valid"))?,
        };
        let permissions = permissions.unwrap_or_default();
        // A service that leaves a limit out means none, as nats-server's library writes it.
        let limit = |value: i64| usize::try_from(value).ok().filter(|limit| *limit > 0);
        let pass = Pass {
            says: Arc::new(TokenUser::new(claims, permissions.clone(), ends, None)),
            subscriptions_max: limit(said.subs),
            payload_bytes_max: limit(said.payload),
            expires: self.clock.engine_time(ends),
            account_expires: NEVER,
        };
        Ok(User {
            name: None,
            account,
            account_name: claims.audience.as_str().into(),
            permissions: granted(permissions, account == allowed.by.account),
            connection_types: Vec::new(),
            pass: Some(pass),
            allowed_by: Some(Arc::clone(allowed)),
        })
    }
}

/// Returns the reason to refuse a correctly signed token, at `now` in seconds since 1970.
fn objection(
    claims: &Claims<jwt::UserClaims>,
    account: &jwt::AccountClaims,
    limits: &jwt::UserClaims,
    caller: Caller<'_>,
    now: i64,
) -> Option<Refusal> {
    if account.has_revoked(&claims.subject, claims.issued_at) {
        return Some(Refusal::Revoked);
    }
    let text = if !claims.is_in_time(now) {
        "the token is not valid now"
    } else if limits.bearer_token && account.limits.disallow_bearer {
        "the account does not allow bearer tokens"
    } else if !may_come_by(&limits.allowed_connection_types, caller.kind) {
        "the token is not for connections of this type"
    } else if !jwt::comes_from(&limits.src, &caller.peer.ip) {
        "the token is not for this address"
    } else {
        return None;
    };
    Some(Refusal::Because(text))
}

/// Whether `this` is one of `types`; an empty list contains all types.
fn may_come_by(types: &[String], this: ConnectionType) -> bool {
    types.is_empty() || types.iter().any(|name| name.parse() == Ok(this))
}

/// Expands the templates in the permissions of a scoped key with the user's data.
fn fill_all(
    template: &jwt::PermissionsClaim,
    user: &Claims<jwt::UserClaims>,
    account: &Claims<jwt::AccountClaims>,
) -> Option<jwt::PermissionsClaim> {
    let fill_list = |texts: &[String]| {
        let mut filled = Vec::new();
        for text in texts {
            fill(text, user, account, &mut filled)?;
        }
        Some(filled)
    };
    let list = |list: &jwt::SubjectsClaim| {
        Some(jwt::SubjectsClaim { allow: fill_list(&list.allow)?, deny: fill_list(&list.deny)? })
    };
    Some(jwt::PermissionsClaim {
        publish: list(&template.publish)?,
        subscribe: list(&template.subscribe)?,
        responses: template.responses.clone(),
    })
}

/// Appends the expansions of `text` to `out`: a tag in it yields a subject for each of its values.
/// `None` if something in it is not known, because its meaning is then unclear.
fn fill(
    text: &str,
    user: &Claims<jwt::UserClaims>,
    account: &Claims<jwt::AccountClaims>,
    out: &mut Vec<String>,
) -> Option<()> {
    let Some((head, rest)) = text.split_once("{{") else {
        out.push(text.to_owned());
        return (out.len() <= FILLED_MAX).then_some(());
    };
    let (name, tail) = rest.split_once("}}")?;
    let (function, argument) = name.trim().strip_suffix(')')?.split_once('(')?;
    let tagged = |tags: &[String]| -> Vec<String> {
        let prefix = format!("{}:", argument.trim().to_lowercase());
        tags.iter().filter_map(|tag| tag.strip_prefix(&prefix)).map(str::to_owned).collect()
    };
    let values = match function {
        "name" => vec![user.name.clone()],
        "subject" => vec![user.subject.clone()],
        "account-name" => vec![account.name.clone()],
        "account-subject" => vec![account.subject.clone()],
        "tag" => tagged(&user.body.tags),
        "account-tag" => tagged(&account.body.tags),
        _ => return None,
    };
    // A value with a template or a wildcard in it would grant more than the template is meant to.
    let is_safe = |value: &String| {
        !value.is_empty() && !value.contains(['{', '}', '*', '>', ' ', '\t', '\r', '\n'])
    };
    if values.is_empty() || !values.iter().all(is_safe) {
        return None;
    }
    values.iter().try_for_each(|value| fill(&format!("{head}{value}{tail}"), user, account, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims<T: Default>(name: &str, body: T) -> Claims<T> {
        Claims {
            issuer: "I".into(),
            subject: "S".into(),
            audience: String::new(),
            issued_at: 0,
            expires: 0,
            not_before: 0,
            name: name.into(),
            body,
            text: String::new(),
        }
    }

    #[test]
    fn a_template_is_filled_with_what_is_known_and_is_worthless_otherwise() {
        let tags = vec!["team:red".to_owned(), "team:blue".to_owned(), "evil:*".to_owned()];
        let user = claims("ann", jwt::UserClaims { tags, ..jwt::UserClaims::default() });
        let account = claims("acme", jwt::AccountClaims::default());
        let filled = |text: &str| {
            let mut out = Vec::new();
            fill(text, &user, &account, &mut out).map(|()| out)
        };
        let some = |texts: &[&str]| Some(texts.iter().map(ToString::to_string).collect());
        assert_eq!(filled("a.*"), some(&["a.*"]));
        assert_eq!(filled("u.{{name()}}.{{subject()}}.>"), some(&["u.ann.S.>"]));
        assert_eq!(filled("{{ account-name() }}"), some(&["acme"]));
        assert_eq!(filled("t.{{tag(team)}}"), some(&["t.red", "t.blue"]));
        for text in ["{{tag(none)}}", "{{tag(evil)}}", "{{other()}}", "{{name()", "{{name}}"] {
            assert_eq!(filled(text), None, "{text}");
        }
        let many = "{{tag(team)}}".repeat(20);
        assert_eq!(filled(&many), None, "bounded");
    }
}
