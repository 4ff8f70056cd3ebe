//! Users by token (JWT): the user that a token stands for, and the conditions for it.
//!
//! With an operator, accounts and users come as signed tokens (`auth::jwt`). Tokens of accounts
//! are read with the options and become accounts beside the configured ones, so limits and imports
//! are the same for both. A user's token is read at its CONNECT. That yields the user, and the
//! proof that is still to be checked: two signatures, checked off the shard. Times in tokens are
//! converted into the engine's own (`Identity::epoch_ms`), so the engine reads no clock. A reload
//! judges connected users by the same function, without asking for the signatures again.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use chrono_tz::Tz;

use super::accounts::AccountId;
use super::conn::{Peer, User};
use super::permissions::Permissions;
use super::proof::Proof;
use super::timers::NEVER;
use crate::auth::jwt::{self, Claims, SigningKey};
use crate::auth::{self, ConnectionType};
use crate::proto::Connect;
use crate::transport::Transport;

/// What the subjects of a template may come to.
const FILLED_MAX: usize = 1024;
const NS_PER_S: i128 = 1_000_000_000;

/// The accounts whose users come by tokens.
#[derive(Debug)]
pub(crate) struct Trusted {
    pub(crate) accounts: HashMap<String, (AccountId, Arc<Claims<jwt::Account>>)>,
    /// The only ones of them whose users may come (none: all may).
    pub(crate) pinned: Vec<String>,
    /// The server's own.
    pub(crate) zone: Tz,
    /// The zero of the engine's time, in nanoseconds since 1970.
    pub(crate) epoch_ns: i128,
}

/// What a token adds to its user.
#[derive(Debug)]
pub(crate) struct Pass {
    /// For those who ask who they are.
    pub(super) says: Arc<TokenUser>,
    pub(super) subscriptions_max: Option<usize>,
    pub(super) payload_bytes_max: Option<usize>,
    /// When the token ends, in nanoseconds since the start.
    expires: u64,
    /// When that of the account does.
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
        claims: &Claims<jwt::User>,
        permissions: auth::Permissions,
        expires: i64,
        text: Option<String>,
    ) -> Self {
        let (name, issuer) = (claims.name.clone(), claims.issuer.clone());
        Self { name, permissions, expires, issuer, tags: claims.body.tags.clone(), text }
    }

    /// The bytes of its text.
    pub(super) fn bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(String::len).sum();
        self.name.len() + self.issuer.len() + tags + self.text.as_ref().map_or(0, String::len)
    }
}

impl Pass {
    /// When the user has to go.
    pub(super) fn ends(&self) -> u64 {
        self.expires.min(self.account_expires)
    }

    /// What it is told then.
    pub(super) fn farewell(&self) -> &'static str {
        if self.expires <= self.account_expires {
            "User Authentication Expired"
        } else {
            "Account Authentication Expired"
        }
    }
}

/// Why a token is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It was good before its account has revoked it.
    Revoked,
    /// It never was, here; the text is for the log.
    Because(&'static str),
}

impl Trusted {
    /// Whether the users of an account are the same as in `old`, without looking at each.
    pub(super) fn says_the_same_of(&self, account: &str, old: &Self) -> bool {
        let (now, before) = (self.accounts.get(account), old.accounts.get(account));
        let same = now.zip(before).is_some_and(|(now, before)| Arc::ptr_eq(&now.1, &before.1));
        same && self.pinned == old.pinned
    }

    /// Who the client is if the proof holds.
    pub(super) fn identify(
        &self,
        (peer, transport): (&Peer, Transport),
        connect: &Connect,
        nonce: String,
        now: u64,
    ) -> Result<(User, Proof), Refusal> {
        let because = Refusal::Because;
        let token = jwt::decode::<jwt::User>(&connect.jwt)
            .map_err(|_| because("no token of a user was shown"))?;
        let claims = &token.claims;
        let said = &claims.body;
        let name = match said.issuer_account.as_str() {
            "" => &claims.issuer,
            account => account,
        };
        let (account_id, account) =
            self.accounts.get(name).ok_or(because("the account is not known"))?;
        if !self.pinned.is_empty() && !self.pinned.iter().any(|pinned| pinned == name) {
            return Err(because("the account is none of resolver_pinned_accounts"));
        }
        let body = &account.body;
        let wall = i64::try_from((self.epoch_ns + i128::from(now)) / NS_PER_S).unwrap_or(i64::MAX);
        if !account.is_in_time(wall) {
            return Err(because("the account's token has expired"));
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
        if let Some(refusal) = objection(claims, body, limits, (peer, transport), wall) {
            return Err(refusal);
        }
        let ends = self.ends(claims.expires, limits, wall)?;
        let filled = match signer {
            Some(SigningKey::Scoped { .. }) => fill_all(&limits.permissions, claims, account),
            _ => Some(limits.permissions.clone()),
        };
        let permissions = filled.map(|own| match own == jwt::Permissions::default() {
            true => body.default_permissions.clone(),
            false => own,
        });
        let permissions = permissions
            .and_then(|permissions| auth::Permissions::from_token(&permissions))
            .ok_or(because("the permissions of the token are not valid"))?;
        let limit = |value: i64| usize::try_from(value).ok();
        let is_bearer = said.bearer_token || limits.bearer_token;
        let text = (!is_bearer).then(|| connect.jwt.clone());
        let says = TokenUser::new(claims, permissions.clone(), ends, text);
        let pass = Pass {
            says: Arc::new(says),
            subscriptions_max: limit(limits.subs),
            payload_bytes_max: limit(limits.payload),
            expires: self.engine_time(ends),
            account_expires: self.engine_time(account.expires),
        };
        let own = (!limits.bearer_token).then(|| Proof::Signature {
            key: claims.subject.clone(),
            nonce,
            signature: connect.sig.clone(),
        });
        let user = User {
            name: Some(claims.subject.as_str().into()),
            account: *account_id,
            account_name: name.into(),
            permissions: (permissions != auth::Permissions::default())
                .then(|| Permissions::new(&permissions)),
            // Its token has said it.
            connection_types: Vec::new(),
            pass: Some(pass),
        };
        Ok((user, Proof::Token { token: token.signature, own: own.map(Box::new) }))
    }

    /// When the user has to go whose token ends at `expires`, in seconds since 1970 (0: never).
    fn ends(&self, expires: i64, limits: &jwt::User, wall: i64) -> Result<i64, Refusal> {
        if limits.times.is_empty() {
            return Ok(expires);
        }
        let end = self.stay_until(limits, wall)?;
        Ok(if expires == 0 { end } else { end.min(expires) })
    }

    /// When the hours end at which the user may be here.
    fn stay_until(&self, limits: &jwt::User, wall: i64) -> Result<i64, Refusal> {
        let zone = match limits.location.as_str() {
            "" | "Local" => self.zone,
            name => name
                .parse()
                .map_err(|_| Refusal::Because("the time zone of the token is not known"))?,
        };
        let until = jwt::stay_until(&limits.times, zone, wall);
        until.ok_or(Refusal::Because("the token is not for this hour of the day"))
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

/// What speaks against a token that is signed as it should, at `now` in seconds since 1970.
fn objection(
    claims: &Claims<jwt::User>,
    account: &jwt::Account,
    limits: &jwt::User,
    (peer, transport): (&Peer, Transport),
    now: i64,
) -> Option<Refusal> {
    if account.has_revoked(&claims.subject, claims.issued_at) {
        return Some(Refusal::Revoked);
    }
    let deciders = &account.authorization.auth_users;
    let text = if !deciders.is_empty() && !deciders.contains(&claims.subject) {
        "who is a user of the account is decided outside, which this server does not ask for"
    } else if !claims.is_in_time(now) {
        "the token is not valid now"
    } else if limits.bearer_token && account.limits.disallow_bearer {
        "the account takes no bearer tokens"
    } else if !may_come_by(&limits.allowed_connection_types, transport.kind()) {
        "the token is not for connections of this type"
    } else if !jwt::comes_from(&limits.src, &peer.ip) {
        "the token is not for this address"
    } else {
        return None;
    };
    Some(Refusal::Because(text))
}

/// Whether one of `types` is this one; none are all.
fn may_come_by(types: &[String], this: ConnectionType) -> bool {
    types.is_empty() || types.iter().any(|name| name.parse() == Ok(this))
}

/// Puts what is known of the user into the permissions of a scoped key.
fn fill_all(
    template: &jwt::Permissions,
    user: &Claims<jwt::User>,
    account: &Claims<jwt::Account>,
) -> Option<jwt::Permissions> {
    let fill_list = |texts: &[String]| {
        let mut filled = Vec::new();
        for text in texts {
            fill(text, user, account, &mut filled)?;
        }
        Some(filled)
    };
    let list = |list: &jwt::SubjectList| {
        Some(jwt::SubjectList { allow: fill_list(&list.allow)?, deny: fill_list(&list.deny)? })
    };
    Some(jwt::Permissions {
        publish: list(&template.publish)?,
        subscribe: list(&template.subscribe)?,
        responses: template.responses.clone(),
    })
}

/// Adds what `text` comes to: as many subjects as a tag in it has values. `None` if something in
/// it is not known, for then it says nothing of what is meant.
fn fill(
    text: &str,
    user: &Claims<jwt::User>,
    account: &Claims<jwt::Account>,
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
    // A value that is itself a template, or a wildcard, would be another's doing.
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
        let user = claims("ann", jwt::User { tags, ..jwt::User::default() });
        let account = claims("acme", jwt::Account::default());
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
