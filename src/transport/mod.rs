//! What is between the wire and a protocol: TLS, WebSocket, compression, proxies.

#![forbid(unsafe_code)]

mod settings;

pub use settings::{
    Compression, Cookies, HandshakeFirst, MutualTls, Network, Tls, WebSocketSettings,
};
