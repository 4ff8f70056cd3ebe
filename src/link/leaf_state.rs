//! State that only leaf connections have, and the settings of a remote that is dialled.

use std::sync::Arc;

use crate::auth::Secret;
use crate::interest::ids::{AccountId, Origin};
use crate::link::leaf_gates::LeafGates;
use crate::proto::leaf::{LeafConnect, LeafInfo};
use crate::transport::{Compression, DialedTls};

/// A remote hub, or leaf node, that this server dials.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeafRemote {
    /// The account of this server that is bound.
    pub account: String,
    /// Whether this server is the hub, though it dials.
    pub is_hub: bool,
    /// Subjects of which no messages are wanted from the remote.
    pub deny_imports: Vec<String>,
    /// Subjects of which no messages are sent to the remote.
    pub deny_exports: Vec<String>,
    /// Whether the remote is not told the interest of other leaf nodes.
    pub is_isolated: bool,
    /// Whether the remote is asked not to tell the interest of other leaf nodes.
    pub requests_isolation: bool,
    /// The compression of the connection.
    pub compression: Compression,
    /// TLS of the connection; `None` without TLS, unless the remote asks for it.
    pub tls: Option<DialedTls>,
    /// Milliseconds that the remote has for its first INFO.
    pub first_info_timeout_ms: u64,
    /// Whether the messages of a WebSocket are compressed.
    pub ws_compression: bool,
    /// Whether the frames of a WebSocket are not masked.
    pub ws_no_masking: bool,
}

/// Credentials for a remote.
#[derive(Debug, Clone, Default)]
pub struct LeafLogin {
    /// The user's name in the URL.
    pub user: Option<String>,
    /// The user's password in the URL.
    pub password: Option<Secret>,
    /// A token of the user, from a file of credentials.
    pub jwt: Option<String>,
    /// The seed of the user's key, for the signature of the nonce.
    pub seed: Option<Secret>,
}

/// A leaf connection that this server has dialled.
#[derive(Debug, Clone)]
pub struct LeafDial {
    /// The remote.
    pub remote: Arc<LeafRemote>,
    /// The credentials for the remote.
    pub login: LeafLogin,
    /// Host name for which the certificate of the remote has to be valid.
    pub host: String,
    /// The request for a WebSocket, if that is to be used: `host:port` and path.
    pub websocket: Option<(String, String)>,
    /// Whether TLS comes first of all, or is used though nothing says so but the URL.
    pub is_tls: bool,
}

impl LeafDial {
    /// Whether the TLS handshake comes before everything else.
    pub(crate) fn begins_with_tls(&self) -> bool {
        let is_first = self.remote.tls.as_ref().is_some_and(|tls| tls.is_first);
        is_first || (self.is_tls && self.websocket.is_some())
    }
}

/// A leaf connection that begins.
#[derive(Debug, Clone)]
pub struct NewLeaf {
    /// Number of the connection, unique in the server.
    pub lid: u64,
    /// The dialled remote; `None` for an accepted connection.
    pub dialed: Option<Box<LeafDial>>,
}

/// The reason of an end that says when to dial again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeafEnd {
    /// Any reason: dialled again after the usual pause.
    #[default]
    Other,
    /// A loop, an equal cluster name, or a violation of permissions: after a long pause.
    Misplaced,
    /// A version that is too old: after a pause.
    TooOld,
}

/// News of a shard's dialled leaf connections for the process.
#[derive(Debug)]
pub enum LeafNotice {
    /// The remote has bound the connection to an account.
    Up {
        /// The connection.
        lid: u64,
    },
    /// The remote has told where else it may be dialled.
    Urls {
        /// The connection.
        lid: u64,
        /// `host:port` of each.
        urls: Vec<String>,
    },
    /// The connection is at its end.
    Ended {
        /// The connection.
        lid: u64,
        /// The reason.
        end: LeafEnd,
    },
}

/// The word that has to come next from the other end of a leaf connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeafAwaits {
    /// The first INFO.
    Info,
    /// INFO in the compressed stream.
    PackedInfo,
    /// INFO with the account that the connection is bound to.
    ConnectInfo,
    /// CONNECT.
    Connect,
    /// No certain word: the connection is up.
    Nothing,
}

/// State that only a leaf connection has.
#[derive(Debug)]
pub(crate) struct LeafState {
    /// Whether the other end is a leaf node of this server, not its hub.
    pub(crate) is_leaf: bool,
    pub(crate) awaits: LeafAwaits,
    pub(crate) dialed: Option<Box<LeafDial>>,
    /// Name of the account that is bound at this end; empty before that.
    pub(crate) account: Arc<str>,
    pub(crate) account_id: AccountId,
    /// The cluster of the leaf node at the other end; empty if it has none.
    pub(crate) cluster: Arc<str>,
    pub(crate) origin: Origin,
    /// Whether the other end is not told the interest of leaf nodes.
    pub(crate) is_isolated: bool,
    pub(crate) gates: LeafGates,
    /// Names by which a second connection of the same leaf node is known; 0 if it has none.
    pub(crate) key: u64,
    pub(crate) end: LeafEnd,
    /// Whether the connection goes over a WebSocket.
    pub(crate) is_websocket: bool,
    /// The CONNECT of the other end, until its credentials are checked.
    pub(crate) connect: Option<Box<LeafConnect>>,
    /// The first INFO of the hub that was dialled, until the connection is up.
    pub(crate) hub: Option<Box<LeafInfo>>,
    /// Whether INFO was sent.
    pub(crate) is_informed: bool,
    /// Whether the account counts the connection.
    pub(crate) has_seat: bool,
}

impl LeafState {
    /// The state of a connection of which nothing is known yet.
    pub(crate) fn new(dialed: Option<Box<LeafDial>>, is_websocket: bool) -> Self {
        let is_leaf = dialed.as_ref().is_none_or(|dialed| dialed.remote.is_hub);
        let awaits = if dialed.is_some() { LeafAwaits::Info } else { LeafAwaits::Connect };
        Self {
            is_leaf,
            awaits,
            dialed,
            account: "".into(),
            account_id: AccountId::GLOBAL,
            cluster: "".into(),
            origin: Origin::PEER,
            is_isolated: false,
            gates: LeafGates::default(),
            key: 0,
            end: LeafEnd::Other,
            is_websocket,
            connect: None,
            hub: None,
            is_informed: false,
            has_seat: false,
        }
    }
}
