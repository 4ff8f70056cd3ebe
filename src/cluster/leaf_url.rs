//! Addresses of hubs, as operators write them.

use crate::auth::Secret;
use crate::cluster::route_url::parse_address;

/// The port for leaf nodes if none is given.
pub const LEAF_PORT: u16 = 7422;

/// The way to a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafScheme {
    /// TCP, with TLS where the hub or the configuration wants it.
    Plain,
    /// TCP with TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket with TLS.
    Wss,
}

impl LeafScheme {
    /// Whether the way is a WebSocket.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

/// The address of a hub, as in `nats-leaf://user:password@host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafUrl {
    /// The way to the hub.
    pub scheme: LeafScheme,
    /// The host: an address, without brackets, or a name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// User and password for the hub; a user without a password is a token.
    pub login: Option<(String, Option<Secret>)>,
    /// The path before that of leaf nodes, of a WebSocket; empty for none.
    pub path: String,
}

impl LeafUrl {
    /// Reads an address.
    ///
    /// # Errors
    ///
    /// Returns the reason why the text is not an address, without the text: it may contain a
    /// password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a hub is nats-leaf://host:port, perhaps with user:password@; or \
                                begins with tls://, ws:// or wss://";
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "ws" => LeafScheme::Ws,
            "wss" => LeafScheme::Wss,
            "tls" => LeafScheme::Tls,
            "nats" | "nats-leaf" | "nats-leafs" => LeafScheme::Plain,
            _ => return Err(EXPECTED),
        };
        let port = match scheme {
            LeafScheme::Ws => 80,
            LeafScheme::Wss => 443,
            LeafScheme::Plain | LeafScheme::Tls => LEAF_PORT,
        };
        let (host, port, login) = parse_address(rest, port).ok_or(EXPECTED)?;
        let login = login.map(|(user, password)| (user, password.map(Secret::new)));
        let path =
            rest.find('/').map_or("", |at| rest[at..].split(['?', '#']).next().unwrap_or(""));
        let path = path.trim_end_matches('/').to_owned();
        Ok(Self { scheme, host, port, login, path })
    }

    /// Reads `host:port` as a hub names other members of its cluster: with the rest of `self`.
    pub fn sibling(&self, address: &str) -> Option<Self> {
        let (host, port, _) = parse_address(address, 0)?;
        (port != 0).then(|| Self { host, port, ..self.clone() })
    }

    /// Whether both are the same server.
    pub fn is_same_server(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_are_read_with_their_way_their_credentials_and_their_path() {
        let url = LeafUrl::parse("nats-leaf://ann:p%40ss@[::1]").unwrap();
        assert_eq!(
            (url.scheme, url.host.as_str(), url.port),
            (LeafScheme::Plain, "::1", LEAF_PORT)
        );
        let (user, password) = url.login.clone().unwrap();
        assert!(user == "ann" && password.is_some_and(|password| password.matches("p@ss")));
        let token = LeafUrl::parse("tls://secret@h:1").unwrap();
        assert_eq!(token.login, Some(("secret".to_owned(), None)));
        let ws = LeafUrl::parse("wss://h/some/where/").unwrap();
        assert_eq!((ws.scheme, ws.port, ws.path.as_str()), (LeafScheme::Wss, 443, "/some/where"));
        let sibling = url.sibling("other:7").unwrap();
        assert_eq!((sibling.host.as_str(), sibling.port, &sibling.login), ("other", 7, &url.login));
        assert!(url.sibling("other").is_none());
        for text in ["h:1", "http://h:1", "nats://", "nats://h:x"] {
            assert!(LeafUrl::parse(text).is_err(), "{text}");
        }
    }
}
