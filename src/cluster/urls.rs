//! Where clients may connect.

/// `host:port` of one server or several, for clients over TCP and for those over WebSocket: each
/// kind of client is told of its own alone.
///
/// Nothing said is not the same as nothing there: clients forget servers that are missing in a
/// list, and go on knowing them where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientUrls {
    /// Over TCP.
    pub tcp: Option<Vec<String>>,
    /// Over WebSocket.
    pub websocket: Option<Vec<String>>,
}
