//! The block `auth_callout`: a service that decides who may log in.

use super::accounts::GLOBAL;
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::rules::BrokenRule;
use super::{Options, StartError};
use crate::auth::jwt;

/// A service of an account that decides about all clients but its own users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalloutOptions {
    /// The public key of the account that signs the service's answers.
    pub issuer: String,
    /// The account in which the service is asked (`$G`).
    pub account: String,
    /// Names or public keys of users that are not asked about.
    pub auth_users: Vec<String>,
    /// The service's public curve key, for which requests are sealed (none: they are not).
    pub xkey: Option<String>,
    /// Accounts whose configured users are asked about, besides `$G` (empty: all).
    pub allowed_accounts: Vec<String>,
}

#[derive(Default)]
struct CalloutDraft {
    issuer: Option<String>,
    account: Option<String>,
    auth_users: Vec<String>,
    xkey: Option<String>,
    allowed_accounts: Vec<String>,
}

const CALLOUT: &[Key<CalloutDraft>] = &[
    Key(&["issuer"], Set(|d, v| issuer(v).map(|key| d.issuer = Some(key)))),
    Key(&["account", "acc"], Set(|d, v| v.text().map(|name| d.account = Some(name)))),
    Key(&["auth_users", "users"], Set(|d, v| v.each(|v| v.text()).map(|all| d.auth_users = all))),
    Key(&["xkey", "key"], Set(|d, v| xkey(v).map(|key| d.xkey = Some(key)))),
    Key(
        &["allowed_accounts"],
        Set(|d, v| v.each(|v| v.text()).map(|all| d.allowed_accounts = all)),
    ),
];

fn issuer(v: &mut Field<'_>) -> Result<String, StartError> {
    let key = v.text()?;
    match jwt::is_key(&key, &['A']) {
        true => Ok(key),
        false => Err(v.error(format!(
            "Expected callout user to be a valid public account nkey, got \"{key}\": issuer is a \
             key of 56 characters, first an A"
        ))),
    }
}

fn xkey(v: &mut Field<'_>) -> Result<String, StartError> {
    let key = v.text()?;
    match nkeys::XKey::from_public_key(&key) {
        Ok(_) => Ok(key),
        Err(_) => Err(
            v.error("Expected callout xkey to be a valid public xkey: 56 characters, first an X")
        ),
    }
}

/// Binds the block.
pub(super) fn bind(v: &mut Field<'_>) -> Result<CalloutOptions, StartError> {
    let mut draft = CalloutDraft::default();
    bind_map(&[CALLOUT], v.map()?, &mut draft, v.warnings)?;
    let CalloutDraft { issuer, account, auth_users, xkey, allowed_accounts } = draft;
    let Some(issuer) = issuer else {
        let reason = "Authorization callouts require an issuer to be specified: the public key \
                      that signs the service's answers";
        return Err(v.error(reason));
    };
    if auth_users.is_empty() {
        let reason = "Authorization callouts require authorized users to be specified: name the \
                      service's own user in auth_users";
        return Err(v.error(reason));
    }
    let account = account.unwrap_or_else(|| GLOBAL.to_owned());
    Ok(CalloutOptions { issuer, account, auth_users, xkey, allowed_accounts })
}

/// Checks the rules between the block and other options.
pub(super) fn check(options: &Options, broken: &mut Vec<BrokenRule>) {
    let Some(callout) = &options.auth.callout else { return };
    if options.trust.is_some() {
        let reason = "operators do not allow authorization callouts to be configured directly; \
                      the tokens of accounts name their services";
        broken.push(BrokenRule::of(&["authorization"], reason));
        return;
    }
    for name in &callout.allowed_accounts {
        if options.accounts.get(name).is_none() {
            let reason = format!(
                "auth_callout allowed account \"{name}\" not found in configured accounts; add it \
                 there, or leave it out"
            );
            broken.push(BrokenRule::of(&["authorization", "accounts"], reason));
        }
    }
}

/// Puts the service in its account, once the whole file is read; what is amiss is a warning, as in
/// nats-server.
pub(super) fn settle(options: &mut Options) {
    let Some(callout) = options.auth.callout.as_ref().filter(|_| options.trust.is_none()) else {
        return;
    };
    let mut warnings = Vec::new();
    match options.accounts.get_mut(&callout.account) {
        Some(account) => account.has_callouts = true,
        None => warnings.push(format!(
            "auth_callout: no account \"{}\": only its auth_users can log in; add it to accounts",
            callout.account
        )),
    }
    for name in &callout.auth_users {
        let websocket = options.network.websocket.as_ref();
        let others = websocket.and_then(|websocket| websocket.auth.as_ref());
        let mut users = options.auth.users.iter().chain(others.iter().flat_map(|auth| &auth.users));
        if !users.any(|user| user.name == *name) {
            warnings.push(format!("auth_callout: no user \"{name}\"; add it to users"));
        }
    }
    options.notes.warnings.append(&mut warnings);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::of_text;

    fn text(block: &str) -> String {
        format!(
            "accounts {{ AUTH {{ users: [{{user: auth, password: p}}] }}, APP {{}} }}\n\
             authorization {{ auth_callout {{ {block} }} }}"
        )
    }

    fn issuer() -> String {
        nkeys::KeyPair::new_account().public_key()
    }

    #[test]
    fn a_service_is_named_with_its_account_and_its_own_users() {
        let (key, xkey) = (issuer(), nkeys::XKey::new().public_key());
        let options = of_text(&text(&format!(
            "issuer: {key}, acc: AUTH, users: [auth], key: {xkey}, allowed_accounts: [APP]"
        )))
        .unwrap();
        let wanted = CalloutOptions {
            issuer: key.clone(),
            account: "AUTH".to_owned(),
            auth_users: vec!["auth".to_owned()],
            xkey: Some(xkey),
            allowed_accounts: vec!["APP".to_owned()],
        };
        assert_eq!(options.auth.callout, Some(wanted));
        assert!(options.requires_login() && options.notes.warnings.is_empty());
        assert!(options.accounts.get("AUTH").unwrap().has_callouts);
        let short = of_text(&text(&format!("issuer: {key}, auth_users: [auth]"))).unwrap();
        assert_eq!(short.auth.callout.unwrap().account, GLOBAL);
    }

    #[test]
    fn what_a_service_cannot_do_without_is_asked_for() {
        let key = issuer();
        let cases = [
            ("auth_users: [auth]".to_owned(), "require an issuer"),
            (format!("issuer: {key}"), "require authorized users"),
            ("issuer: UX, auth_users: [auth]".to_owned(), "valid public account nkey, got \"UX\""),
            (format!("issuer: {key}, auth_users: [a], xkey: {key}"), "valid public xkey"),
            (format!("issuer: {key}, auth_users: [a], foo: 1"), "unknown field \"foo\""),
            (format!("issuer: {key}, auth_users: auth"), "auth_users"),
            (format!("issuer: {key}, auth_users: [a], allowed_accounts: [X]"), "not found in"),
        ];
        for (block, reason) in cases {
            let error = of_text(&text(&block)).expect_err(&block).to_string();
            assert!(error.contains(reason), "{block}: {error}");
        }
        let doubtful = of_text(&text(&format!("issuer: {key}, acc: NONE, auth_users: [x]")));
        assert_eq!(doubtful.unwrap().notes.warnings.len(), 2);
    }
}
