//! Addresses to which clients and leaf nodes may connect.

/// `host:port` of one server or several, for clients over TCP and for those over WebSocket: clients
/// are told only the addresses of their own kind.
///
/// `None` differs from an empty list: clients forget servers that are missing in a list, and keep
/// those they know where there is no list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientUrls {
    /// Addresses for clients over TCP.
    pub tcp: Option<Vec<String>>,
    /// Addresses for clients over WebSocket.
    pub websocket: Option<Vec<String>>,
    /// Addresses for leaf nodes over TCP.
    pub leaf: Option<Vec<String>>,
}
