//! Users and credentials as they are configured.

use super::callout::CalloutOptions;
use crate::auth::{ConnectionType, Permissions, Secret};

/// Credentials and permissions of clients. Without users and token, any client may connect.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// Milliseconds from a client's connection to its CONNECT (2000).
    pub timeout_ms: u64,
    /// Users that connect by name and password, or by nkey; a single user is a list of one.
    pub users: Vec<UserOptions>,
    /// The token that all clients must send (none); excludes users.
    pub token: Option<Secret>,
    /// The user for clients without credentials (none); one of `users`.
    pub no_auth_user: Option<String>,
    /// Permissions of users of `$G` that have none of their own (none: everything is permitted).
    pub default_permissions: Option<Permissions>,
    /// The service that decides about clients (none: credentials do).
    pub callout: Option<CalloutOptions>,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            timeout_ms: 2000,
            users: Vec::new(),
            token: None,
            no_auth_user: None,
            default_permissions: None,
            callout: None,
        }
    }
}

impl Auth {
    /// Whether a client needs credentials, or a user for clients without any.
    pub fn is_required(&self) -> bool {
        self.token.is_some() || !self.users.is_empty() || self.callout.is_some()
    }

    /// Whether a password or token is configured in clear.
    pub fn has_plaintext(&self) -> bool {
        let passwords = self.users.iter().map(|user| &user.password);
        passwords.chain(&self.token).any(|secret| !secret.is_bcrypt() && !secret.is_empty())
    }
}

/// A user with name and password, or with an nkey.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UserOptions {
    /// The name, unique among the users; for a user with an nkey, the public key.
    pub name: String,
    /// The password, or its bcrypt hash.
    pub password: Secret,
    /// Whether the name is a public nkey, so that the client signs a nonce instead of sending a
    /// password (false).
    pub has_nkey: bool,
    /// The user's permissions (none: the default permissions).
    pub permissions: Option<Permissions>,
    /// Kinds of connections that the user may use (empty: all).
    pub connection_types: Vec<ConnectionType>,
    /// The user's account (`$G`).
    pub account: String,
}

impl UserOptions {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let user = UserOptions { password: Secret::new("hush"), ..UserOptions::named("ann") };
        assert!(!format!("{user:?}").contains("hush"));
    }
}
