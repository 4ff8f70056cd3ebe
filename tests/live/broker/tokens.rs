//! Makes operators, accounts and users as tokens, and what a client shows of them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// Seconds since 1970.
pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("before the year 292 billion")
}

/// A token about `subject`, signed by `issuer`; `nats` is what is particular to its kind, and
/// `more` is merged into the claims.
pub(crate) fn token(
    issuer: &KeyPair,
    subject: &str,
    kind: &str,
    nats: Value,
    more: Value,
) -> String {
    let mut claims = json!({
        "iss": issuer.public_key(), "sub": subject, "iat": unix_now(), "jti": "X", "name": kind,
        "nats": {"type": kind, "version": 2},
    });
    if kind.is_empty() {
        // As `nsc` asks for accounts to be deleted.
        claims["nats"] = json!({"version": 2});
    }
    merge(&mut claims["nats"], nats);
    merge(&mut claims, more);
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", part(&claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).expect("a key with a seed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The same in the form of version 1: what is said of every token stands beside the body, and the
/// header is not signed.
pub(crate) fn old_token(
    issuer: &KeyPair,
    subject: &str,
    kind: &str,
    nats: Value,
    more: Value,
) -> String {
    let mut claims = json!({
        "iss": issuer.public_key(), "sub": subject, "iat": unix_now(), "jti": "X", "name": kind,
        "type": kind, "nats": nats,
    });
    merge(&mut claims, more);
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"typ":"jwt","alg":"ed25519"}"#);
    let body = part(&claims.to_string());
    let signature = issuer.sign(body.as_bytes()).expect("a key with a seed");
    format!("{header}.{body}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn merge(into: &mut Value, from: Value) {
    let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) else { return };
    into.extend(from);
}

/// An operator, its system account and the accounts that it has signed.
pub(crate) struct World {
    operator: KeyPair,
    system: KeyPair,
    /// Public keys and tokens.
    accounts: Vec<(String, String)>,
    /// Its tokens are of version 1.
    is_old: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::of(false)
    }

    /// The same with tokens of version 1.
    pub(crate) fn of_version_1() -> Self {
        Self::of(true)
    }

    fn of(is_old: bool) -> Self {
        let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
        let mut world = Self { operator, system, accounts: Vec::new(), is_old };
        let system = KeyPair::from_seed(&world.system.seed().expect("a seed")).expect("its own");
        world.account(&system, json!({}));
        world
    }

    /// The same operator and system account, and no others yet.
    pub(crate) fn clone_of_keys(&self) -> Self {
        let same =
            |key: &KeyPair| KeyPair::from_seed(&key.seed().expect("a seed")).expect("its own");
        let (operator, system) = (same(&self.operator), same(&self.system));
        let key = system.public_key();
        let accounts = self.accounts.iter().filter(|(other, _)| *other == key).cloned().collect();
        Self { operator, system, accounts, is_old: self.is_old }
    }

    pub(crate) fn operator_key(&self) -> &KeyPair {
        &self.operator
    }

    /// The public key of the system account.
    pub(crate) fn system_key(&self) -> String {
        self.system.public_key()
    }

    /// What a user of the system account is given.
    pub(crate) fn system_credentials(&self) -> String {
        credentials(&self.system, unlimited(), json!({}))
    }

    /// A token about an account that is not kept.
    pub(crate) fn signed(&self, key: &KeyPair) -> String {
        self.sign(key, json!({}))
    }

    fn sign(&self, key: &KeyPair, nats: Value) -> String {
        let mut all = json!({"limits": {"subs": -1, "data": -1, "payload": -1, "imports": -1,
            "exports": -1, "wildcards": true, "conn": -1, "leaf": -1}});
        merge(&mut all, nats);
        self.token(&key.public_key(), "account", all)
    }

    /// Signs an account, in place of an earlier token about it.
    pub(crate) fn account(&mut self, key: &KeyPair, nats: Value) -> String {
        let text = self.sign(key, nats);
        self.accounts.retain(|(other, _)| *other != key.public_key());
        self.accounts.push((key.public_key(), text.clone()));
        text
    }

    /// The public keys and tokens of all accounts.
    pub(crate) fn all(&self) -> Vec<(String, String)> {
        self.accounts.clone()
    }

    /// The token of the operator.
    pub(crate) fn operator(&self) -> String {
        let key = self.operator.public_key();
        let nats = json!({"system_account": self.system.public_key()});
        self.token(&key, "operator", nats)
    }

    fn token(&self, subject: &str, kind: &str, nats: Value) -> String {
        let token = if self.is_old { old_token } else { token };
        token(&self.operator, subject, kind, nats, json!({}))
    }

    /// A configuration with everything in it.
    pub(crate) fn config(&self) -> String {
        let mut text = format!("operator: {}\nresolver: MEMORY\n", self.operator());
        text += &format!("system_account: {}\n", self.system.public_key());
        text += "resolver_preload {\n";
        for (key, token) in &self.accounts {
            text += &format!("  {key}: {token}\n");
        }
        text + "}\n"
    }

    /// Who decides. Signatures are checked when nothing else is to be done: on a busy machine a
    /// login may take long.
    fn trust(&self) -> String {
        format!("operator: {}\nauthorization {{ timeout: 60 }}\n", self.operator())
    }

    /// A configuration whose accounts are pushed into `directory`; `more` is for the resolver.
    pub(crate) fn pushed(&self, directory: &std::path::Path, more: &str) -> String {
        let (key, directory) = (self.system.public_key(), directory.display());
        let preloaded = self.accounts.iter().map(|(key, token)| format!("  {key}: {token}\n"));
        format!(
            "{}system_account: {key}\n\
             resolver {{\n type: full\n dir: '{directory}'\n {more}\n}}\n\
             resolver_preload {{\n{}}}\n",
            self.trust(),
            preloaded.collect::<String>()
        )
    }

    /// A configuration whose accounts are in files of `directory`, which are written.
    pub(crate) fn stored(&self, directory: &std::path::Path) -> String {
        for (key, token) in &self.accounts {
            std::fs::write(directory.join(format!("{key}.jwt")), token).expect("written");
        }
        format!(
            "{}system_account: {}\nresolver {{ type: full, dir: '{}' }}\n",
            self.trust(),
            self.system.public_key(),
            directory.display()
        )
    }
}

/// What a user is given: its token and seed, as a file of credentials has them.
pub(crate) fn credentials(issuer: &KeyPair, nats: Value, more: Value) -> String {
    let user = KeyPair::new_user();
    credentials_of(&user, issuer, nats, more)
}

pub(crate) fn credentials_of(user: &KeyPair, issuer: &KeyPair, nats: Value, more: Value) -> String {
    let text = token(issuer, &user.public_key(), "user", nats, more);
    decorated(user, &text)
}

/// The same with a token of version 1.
pub(crate) fn old_credentials(issuer: &KeyPair, nats: Value, more: Value) -> String {
    let user = KeyPair::new_user();
    let text = old_token(issuer, &user.public_key(), "user", nats, more);
    decorated(&user, &text)
}

fn decorated(user: &KeyPair, text: &str) -> String {
    let seed = user.seed().expect("a seed");
    format!(
        "-----BEGIN NATS USER JWT-----\n{text}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// What a user without particular limits has.
pub(crate) fn unlimited() -> Value {
    json!({"subs": -1, "data": -1, "payload": -1})
}
