//! Listeners for clients, and the layers between their sockets and the protocol.

use super::super::ocsp;
use super::field::Action::Set;
use super::field::Key;
use super::{MqttOptions, Options, UnixOptions, WebSocketOptions, listeners};
use crate::transport::{Network, Tls};

/// The listeners of clients.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkOptions {
    /// Address or host name to listen on (`0.0.0.0`, which includes IPv6 where there is any).
    pub host: String,
    /// Client port (4222); 0 is any free port.
    pub port: u16,
    /// The Unix socket for clients on this host (none).
    pub unix: Option<UnixOptions>,
    /// Whether a connection may begin with the header by which a proxy names its client (false).
    pub proxy_protocol: bool,
    /// Networks of proxies that are trusted with a client's address, in a proxy header and in
    /// `X-Forwarded-For` (none: with `proxy_protocol` every header is trusted, and no field).
    pub trusted_proxies: Vec<Network>,
    /// The listener of WebSocket clients (none).
    pub websocket: Option<WebSocketOptions>,
    /// The listener of MQTT clients, and the state of their sessions (none).
    pub mqtt: Option<MqttOptions>,
    /// `host:port` that other servers announce to their clients (none: `host` and `port`).
    pub client_advertise: Option<String>,
    /// Whether headers are switched off in INFO, and HPUB is refused (false).
    pub no_header_support: bool,
    /// TLS for clients (none).
    pub tls: Option<Tls>,
    /// Whether clients may connect without TLS although it is configured (false).
    pub allow_non_tls: bool,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            host: "0.0.0.0".to_owned(),
            port: 4222,
            unix: None,
            proxy_protocol: false,
            trusted_proxies: Vec::new(),
            websocket: None,
            mqtt: None,
            client_advertise: None,
            no_header_support: false,
            tls: None,
            allow_non_tls: false,
        }
    }
}

impl NetworkOptions {
    /// Whether a client without TLS is refused.
    pub fn requires_tls(&self) -> bool {
        self.tls.is_some() && !self.allow_non_tls
    }

    /// Returns the host and port that clients are told to connect to, if the server listens on
    /// `port`.
    pub fn shown_address(&self, port: u16) -> (&str, u16) {
        advertised(self.client_advertise.as_deref(), &self.host, port)
    }
}

/// Returns host and port to announce: those of `advertise`, whose port may be missing, else those
/// of the listener.
pub fn advertised<'a>(advertise: Option<&'a str>, host: &'a str, port: u16) -> (&'a str, u16) {
    let Some(advertise) = advertise else { return (host, port) };
    let given = advertise.rsplit_once(':').and_then(|(host, given)| {
        let given = given.trim().parse::<i32>().ok()?;
        // An invalid port, such as -1, stands for the listener's.
        Some((host, u16::try_from(given).ok().filter(|given| *given > 0)))
    });
    let (host, given) = given.unwrap_or((advertise, None));
    let host = host.trim();
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    (inner.unwrap_or(host), given.unwrap_or(port))
}

pub(super) const KEYS: &[Key<Options>] = &[
    Key(&["ocsp"], Set(|o, v| ocsp::bind(&mut o.ocsp, v))),
    Key(&["ocsp_cache"], Set(|o, v| ocsp::bind_cache(&mut o.ocsp.cache, v))),
    Key(
        &["listen"],
        Set(|o, v| {
            let (host, port) = v.address()?;
            o.network.port = port;
            o.network.host = host.unwrap_or_else(|| std::mem::take(&mut o.network.host));
            Ok(())
        }),
    ),
    Key(&["host", "net"], Set(|o, v| v.text().map(|host| o.network.host = host))),
    Key(&["port"], Set(|o, v| v.port().map(|port| o.network.port = port))),
    Key(
        &["listen_unix"],
        Set(|o, v| listeners::bind_unix(v).map(|unix| o.network.unix = Some(unix))),
    ),
    Key(&["proxy_protocol"], Set(|o, v| v.boolean().map(|on| o.network.proxy_protocol = on))),
    Key(
        &["proxy_protocol_trusted"],
        Set(|o, v| {
            listeners::bind_networks(v).map(|networks| o.network.trusted_proxies = networks)
        }),
    ),
    Key(
        &["websocket", "ws"],
        Set(|o, v| listeners::bind_websocket(v).map(|websocket| o.network.websocket = websocket)),
    ),
    Key(&["mqtt"], Set(|o, v| super::mqtt::bind(v).map(|mqtt| o.network.mqtt = mqtt))),
    Key(
        &["client_advertise"],
        Set(|o, v| v.text().map(|at| o.network.client_advertise = Some(at))),
    ),
    Key(&["no_header_support"], Set(|o, v| v.boolean().map(|no| o.network.no_header_support = no))),
    Key(&["tls"], Set(|o, v| super::tls::bind(v).map(|tls| o.network.tls = Some(tls)))),
    Key(&["allow_non_tls"], Set(|o, v| v.boolean().map(|on| o.network.allow_non_tls = on))),
];
