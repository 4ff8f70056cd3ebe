//! Users as their connections see them, and the peer at the other end of a connection.

use std::sync::Arc;

use crate::auth::ConnectionType;
use crate::auth::callout::Service;
use crate::auth::grants::Grants;
use crate::auth::jwt::{Claims, UserClaims};
use crate::auth::token_users::Pass;
use crate::interest::ids::AccountId;

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The connection's number, unique in the server, from 1.
    pub cid: u64,
    /// The client's address without the port.
    pub ip: Box<str>,
    /// The client's port.
    pub port: u16,
}

/// A client that logs in, as far as its connection tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) peer: &'a Peer,
    pub(crate) kind: ConnectionType,
}

impl Peer {
    /// Address and port, as the log writes them.
    pub(crate) fn address(&self) -> String {
        let Self { ip, port, .. } = self;
        if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
    }
}

/// A user as its connections see it.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: Option<Box<str>>,
    pub(crate) account: AccountId,
    pub(crate) account_name: Arc<str>,
    pub(crate) permissions: Option<Grants>,
    /// The limits and expiry of a user that has logged in by token.
    pub(crate) pass: Option<Pass>,
    /// Kinds of connections that the user may use (empty: all).
    pub(crate) connection_types: Vec<ConnectionType>,
    /// The decision of a service that the user is allowed by, if it was asked.
    pub(crate) allowed_by: Option<Arc<Allowed>>,
}

/// The decision of a service about a client.
#[derive(Debug)]
pub(crate) struct Allowed {
    /// The service that has decided.
    pub(crate) by: Arc<Service>,
    /// The claims of the user's token, without its text.
    pub(crate) claims: Claims<UserClaims>,
}

impl User {
    /// Whether the user may use connections of this kind.
    pub(crate) fn may_use(&self, kind: ConnectionType) -> bool {
        let types = &self.connection_types;
        types.is_empty() || types.contains(&kind)
    }
}

/// Assignment of local processes to a user of the server, by the ids of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUser {
    /// The process's effective user id (none: any).
    pub uid: Option<u32>,
    /// The process's effective group id (none: any).
    pub gid: Option<u32>,
    /// Name of one of the configured users.
    pub user: String,
}
