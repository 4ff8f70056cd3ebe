//! Users as they are configured.

use crate::auth::{ConnectionType, Permissions, Secret};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let user = User { password: Secret::new("hush"), ..User::named("ann") };
        assert!(!format!("{user:?}").contains("hush"));
    }
}
