//! Options of the monitoring over HTTP.

use super::field::Action::Set;
use super::field::Key;
use super::limits::{SIZE_MAX, set_unless_zero};
use super::{Options, StartError};

/// The monitoring's listener, and its memory of closed connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitoringOptions {
    /// The listener for HTTP (none).
    pub http: Option<HttpOptions>,
    /// Path before those of the monitoring's pages; slashes around it are ignored (empty).
    pub base_path: String,
    /// Closed connections that are still shown, at most (10 000).
    pub closed_conns_max: usize,
}

impl Default for MonitoringOptions {
    fn default() -> Self {
        Self { http: None, base_path: String::new(), closed_conns_max: 10_000 }
    }
}

impl MonitoringOptions {
    /// Whether the monitoring listens with TLS only.
    pub fn is_tls(&self) -> bool {
        self.http.as_ref().is_some_and(|http| http.is_tls)
    }

    /// Returns the listener's host; if it has none of its own, that of the client listener.
    pub fn host<'a>(&'a self, clients: &'a str) -> &'a str {
        self.http.as_ref().and_then(|http| http.host.as_deref()).unwrap_or(clients)
    }

    /// Closed connections to remember, at most; 0 if there is no monitoring to show them.
    pub(in crate::config) fn remembered_conns_max(&self) -> usize {
        if self.http.is_some() { self.closed_conns_max } else { 0 }
    }

    /// Sets the monitoring's listener from another key or flag; one with a port alone keeps the
    /// host.
    pub(in crate::config) fn listen(
        &mut self,
        host: Option<String>,
        port: u16,
        is_tls: bool,
    ) -> Result<(), StartError> {
        let before = self.http.take();
        if before.as_ref().is_some_and(|http| http.is_tls != is_tls) {
            return Err(StartError::new("the monitoring has http or https, not both; keep one"));
        }
        let host = host.or_else(|| before.and_then(|http| http.host));
        self.http = Some(HttpOptions { host, port, is_tls });
        Ok(())
    }
}

/// The monitoring's listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOptions {
    /// Address or host name (none: the client listener's).
    pub host: Option<String>,
    /// Port; 0 is any free port.
    pub port: u16,
    /// Whether the listener uses TLS, with the certificate of the client listener and without
    /// asking for the client's.
    pub is_tls: bool,
}

pub(super) const KEYS: &[Key<Options>] = &[
    Key(
        &["http"],
        Set(|o, v| {
            let (host, port) = v.address()?;
            o.monitoring.listen(host, port, false).map_err(|error| v.error(error))
        }),
    ),
    Key(
        &["http_port", "monitor_port"],
        Set(|o, v| {
            let port = v.port()?;
            o.monitoring.listen(None, port, false).map_err(|error| v.error(error))
        }),
    ),
    Key(
        &["https"],
        Set(|o, v| {
            let (host, port) = v.address()?;
            o.monitoring.listen(host, port, true).map_err(|error| v.error(error))
        }),
    ),
    Key(
        &["https_port"],
        Set(|o, v| {
            let port = v.port()?;
            o.monitoring.listen(None, port, true).map_err(|error| v.error(error))
        }),
    ),
    Key(&["http_base_path"], Set(|o, v| v.text().map(|path| o.monitoring.base_path = path))),
    Key(
        &["max_closed_clients"],
        Set(|o, v| {
            set_unless_zero(&mut o.monitoring.closed_conns_max, v.size(SIZE_MAX)?);
            Ok(())
        }),
    ),
];
