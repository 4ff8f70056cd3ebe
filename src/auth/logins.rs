//! Credentials for logins at one port.

use std::collections::HashMap;
use std::rc::Rc;

use super::Secret;
use super::user::User;

/// Credentials for a login: a token, or those of users.
#[derive(Debug)]
pub(crate) struct Logins {
    pub(crate) users: HashMap<String, Login>,
    pub(crate) token: Option<Secret>,
}

#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) password: Secret,
    pub(crate) has_nkey: bool,
    pub(crate) user: Rc<User>,
}

impl Logins {
    /// Whether no credentials are needed.
    pub(crate) fn is_empty(&self) -> bool {
        self.token.is_none() && self.users.is_empty()
    }
}
