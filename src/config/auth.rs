//! Users, secrets and permissions, as configured.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use subtle::ConstantTimeEq;

/// Who may connect, and do what. Without users and token everybody may.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// Milliseconds a client has for its CONNECT (2000).
    pub timeout_ms: u64,
    /// Those who may connect by name and password; a single user is a list of one.
    pub users: Vec<User>,
    /// What a client must show instead (none); excludes users.
    pub token: Option<Secret>,
    /// The user whom a client without credentials is (none); one of `users`.
    pub no_auth_user: Option<String>,
    /// What users of `$G` without permissions of their own may do (none: everything).
    pub default_permissions: Option<Permissions>,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            timeout_ms: 2000,
            users: Vec::new(),
            token: None,
            no_auth_user: None,
            default_permissions: None,
        }
    }
}

impl Auth {
    /// Whether a client must show credentials, or be taken for the user who needs none.
    pub fn is_required(&self) -> bool {
        self.token.is_some() || !self.users.is_empty()
    }

    /// Whether a password or token is configured in clear.
    pub fn has_plaintext(&self) -> bool {
        let passwords = self.users.iter().map(|user| &user.password);
        passwords.chain(&self.token).any(|secret| !secret.is_bcrypt() && !secret.is_empty())
    }
}

/// Somebody who may connect by name and password.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct User {
    /// The name, unique among the users; of a user with an nkey, that.
    pub name: String,
    /// The password, or its bcrypt hash.
    pub password: Secret,
    /// The name is a public nkey, and the client signs a nonce in place of a password (false).
    pub has_nkey: bool,
    /// What the user may do (none: the default permissions).
    pub permissions: Option<Permissions>,
    /// The kinds of connections that the user may come by (empty: all).
    pub connection_types: Vec<ConnectionType>,
    /// The account that the user is in (`$G`).
    pub account: String,
}

impl User {
    /// A user of `$G` with an empty password and all permissions.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            password: Secret::new(""),
            has_nkey: false,
            permissions: None,
            connection_types: Vec::new(),
            account: super::accounts::GLOBAL.to_owned(),
        }
    }
}

/// What kind of connection a client comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionType {
    /// The client protocol.
    Standard,
    /// The same in a WebSocket.
    Websocket,
    /// Another server's, as a leaf.
    Leafnode,
    /// The same in a WebSocket.
    LeafnodeWs,
    /// MQTT.
    Mqtt,
    /// The same in a WebSocket.
    MqttWs,
    /// From within the process.
    InProcess,
}

impl FromStr for ConnectionType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_uppercase().as_str() {
            "STANDARD" => Ok(Self::Standard),
            "WEBSOCKET" => Ok(Self::Websocket),
            "LEAFNODE" => Ok(Self::Leafnode),
            "LEAFNODE_WS" => Ok(Self::LeafnodeWs),
            "MQTT" => Ok(Self::Mqtt),
            "MQTT_WS" => Ok(Self::MqttWs),
            "IN_PROCESS" => Ok(Self::InProcess),
            _ => Err("a connection type is one of STANDARD, WEBSOCKET, LEAFNODE, LEAFNODE_WS, \
                      MQTT, MQTT_WS and IN_PROCESS"
                .to_owned()),
        }
    }
}

/// A password or token, or its bcrypt hash. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`, which is a bcrypt hash if it looks like one (`$2a$10$…`).
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether `given` is the secret. Takes the same time wherever the two differ; for a bcrypt
    /// hash that is milliseconds to seconds, by the hash's own cost.
    pub fn matches(&self, given: &str) -> bool {
        if self.is_bcrypt() {
            return bcrypt::verify(given, &self.0).unwrap_or(false);
        }
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// The text itself, for the server that asks for it.
    pub(crate) fn revealed(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to know: the user is known by other means.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is a hash, and checking it therefore slow.
    pub fn is_bcrypt(&self) -> bool {
        let bytes = self.0.as_bytes();
        bytes.len() > 7
            && bytes.starts_with(b"$2")
            && matches!(bytes[2], b'a' | b'b' | b'x' | b'y')
            && bytes[3] == b'$'
            && bytes[4].is_ascii_digit()
            && bytes[5].is_ascii_digit()
            && bytes[6] == b'$'
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// What a user may publish and subscribe to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects to publish to; no entry names a queue.
    pub publish: SubjectList,
    /// Subjects to subscribe to.
    pub subscribe: SubjectList,
    /// Leave to answer requests whose reply subject `publish` does not allow (none). With it,
    /// an empty `publish.allow` is nothing instead of everything.
    pub allow_responses: Option<Responses>,
}

/// Two lists of subjects; what is denied is denied even if it is allowed too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectList {
    /// What is allowed; empty is everything.
    pub allow: Vec<SubjectEntry>,
    /// What is not.
    pub deny: Vec<SubjectEntry>,
}

/// One line of a list: `"subject"` or `"subject queue"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectEntry {
    /// The subject, with wildcards.
    pub subject: String,
    /// The queue group that is meant, with wildcards (none: not about queue groups).
    pub queue: Option<String>,
}

/// How often and how long a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Responses {
    /// Messages to one reply subject (1); negative is without limit.
    pub max: i64,
    /// Milliseconds from the request on (120 000); negative is without limit.
    pub expires_ms: i64,
}

impl Default for Responses {
    fn default() -> Self {
        Self { max: 1, expires_ms: 120_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let user = User { password: Secret::new("hush"), ..User::named("ann") };
        assert!(!format!("{user:?}").contains("hush"));
    }

    #[test]
    fn a_plain_secret_matches_itself_only() {
        let secret = Secret::new("s3cr3t");
        assert!(secret.matches("s3cr3t"));
        for other in ["", "s3cr3", "s3cr3tt", "S3cr3t"] {
            assert!(!secret.matches(other), "{other}");
        }
    }

    #[test]
    fn a_bcrypt_hash_matches_what_was_hashed_and_not_itself() {
        let hash = "$2a$04$zyxwvutsrqponmlkjihgfurQNWOPnczANr9Lnsgmk2Svikvt0pD4G";
        let secret = Secret::new(hash);
        assert!(secret.matches("tok3n"));
        assert!(!secret.matches(hash));
    }

    #[test]
    fn a_broken_bcrypt_hash_matches_nothing() {
        let secret = Secret::new("$2y$99$short");
        assert!(!secret.matches("$2y$99$short"));
        assert!(!secret.matches(""));
    }
}
