//! Settings of all layers: plain types that a configuration is read into.

use core::net::{IpAddr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

use super::staple::Staple;
use crate::ocsp::PeerPolicy;

/// TLS for accepted connections, its files read and checked.
#[derive(Clone)]
pub struct Tls {
    /// Settings of the handshake; shared by all connections, so that sessions can be resumed on
    /// any.
    pub server: Arc<ServerConfig>,
    /// Settings of the monitoring's handshake, which asks for no certificate.
    pub monitoring: Arc<ServerConfig>,
    /// Whether there is a certificate; without one every handshake fails.
    pub has_certificate: bool,
    /// The end of the first certificate, in seconds since 1970; `None` without one.
    pub ends_at: Option<i64>,
    /// Milliseconds a client has for its handshake (2000).
    pub timeout_ms: u64,
    /// Whether clients must show a certificate that `ca_file` vouches for (false).
    pub verify: bool,
    /// Certificates of the authorities that vouch for clients.
    pub authorities: Arc<[CertificateDer<'static>]>,
    /// Whether the certificate names the client's user (false).
    pub map: bool,
    /// Whether INFO comes before the handshake.
    pub first: HandshakeFirst,
    /// SHA-256 of the public keys that clients may have, in hexadecimal; empty allows any.
    pub pinned_certs: Vec<String>,
    /// The certificates, each of which may have a staple.
    pub(crate) staples: Vec<Arc<Staple>>,
    /// Demands on the status of clients' certificates (none).
    pub(crate) peers: Option<Arc<PeerPolicy>>,
    /// New connections in a second, those without TLS included where they are allowed; 0 is no
    /// limit (0).
    pub connections_per_second_max: u64,
    /// The digest of all files and names, so that a reload sees a change.
    pub(crate) digest: [u8; 32],
}

/// TLS between servers: each has a certificate that the other's `ca_file` vouches for.
#[derive(Debug, Clone)]
pub struct MutualTls {
    /// TLS for accepted connections.
    pub tls: Tls,
    /// TLS for dialled connections.
    pub client: Arc<ClientConfig>,
    /// Whether the certificate of a dialled server is not checked (false).
    pub is_insecure: bool,
}

/// TLS for connections that are dialled to one other server.
#[derive(Clone)]
pub struct DialedTls {
    /// Settings of the handshake.
    pub client: Arc<ClientConfig>,
    /// Milliseconds that the handshake may take (2000).
    pub timeout_ms: u64,
    /// Whether the handshake comes before INFO (false).
    pub is_first: bool,
    /// Certificates of the authorities that vouch for the server.
    pub(crate) authorities: Arc<[CertificateDer<'static>]>,
    /// Demands on the status of the server's certificate (none).
    pub(crate) peers: Option<Arc<PeerPolicy>>,
    /// The digest of all files and names, so that a reload sees a change.
    pub(crate) digest: [u8; 32],
}

impl PartialEq for DialedTls {
    fn eq(&self, other: &Self) -> bool {
        (self.digest, self.timeout_ms, self.is_first)
            == (other.digest, other.timeout_ms, other.is_first)
    }
}

impl fmt::Debug for DialedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DialedTls {{ timeout_ms: {}, is_first: {} }}", self.timeout_ms, self.is_first)
    }
}

impl PartialEq for MutualTls {
    fn eq(&self, other: &Self) -> bool {
        // Both are made of the same files.
        self.tls == other.tls && self.is_insecure == other.is_insecure
    }
}

/// The order of INFO and TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFirst {
    /// INFO first.
    No,
    /// Handshake first; INFO is never sent in clear.
    Always,
    /// Handshake first if the client begins it within this many milliseconds, else INFO first.
    Within(u64),
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
            && (self.timeout_ms, self.verify, self.map, self.first, &self.pinned_certs)
                == (other.timeout_ms, other.verify, other.map, other.first, &other.pinned_certs)
            && self.connections_per_second_max == other.connections_per_second_max
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout_ms, verify, map, first, .. } = self;
        write!(f, "Tls {{ timeout_ms: {timeout_ms}, verify: {verify}, map: {map}, {first:?} }}")
    }
}

/// Settings of WebSockets and of their clients.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WebSocketSettings {
    /// TLS (none).
    pub tls: Option<Tls>,
    /// Whether a browser's page must come from the address it connects to.
    pub same_origin: bool,
    /// The pages that browsers may connect from (empty: all).
    pub allowed_origins: Vec<String>,
    /// Whether output is compressed for clients that support it.
    pub compression: bool,
    /// Milliseconds a client has for TLS and upgrade together.
    pub handshake_timeout_ms: u64,
    /// Milliseconds of silence before a PING (none: as for other clients).
    pub ping_interval_ms: Option<u64>,
    /// Names of the cookies with credentials that CONNECT leaves out.
    pub cookies: Cookies,
    /// Header fields of the response to an upgrade, besides its own.
    pub headers: Vec<(String, String)>,
    /// Milliseconds a client has for its CONNECT (none: as for other clients).
    pub auth_timeout_ms: Option<u64>,
    /// The user of a client without credentials (none: as for other clients).
    pub no_auth_user: Option<String>,
    /// Whether clients of MQTT may come, at the path `/mqtt`.
    pub speaks_mqtt: bool,
    /// Whether leaf nodes may come, at the path `/leafnode`.
    pub speaks_leaf: bool,
}

/// The names of cookies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cookies {
    /// The name of the cookie that holds a JWT.
    pub jwt: Option<String>,
    /// The name of the cookie that holds a user's name.
    pub user: Option<String>,
    /// The name of the cookie that holds a password.
    pub pass: Option<String>,
    /// The name of the cookie that holds a token.
    pub token: Option<String>,
}

/// The compression of a server's output to other servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    Off,
    /// The mode of the other server.
    #[default]
    Accept,
    /// S2 at its fastest.
    Fast,
    /// S2, slower and more compact.
    Better,
    /// S2, slowest and most compact.
    Best,
    /// More effort for longer round trips: thresholds in milliseconds up to which output is
    /// uncompressed, then fast, then better. With fewer than three, the last level holds for all
    /// longer round trips.
    Auto(Vec<u64>),
}

impl Compression {
    /// Returns the name of the mode in INFO.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Accept => "accept",
            Self::Fast => "s2_fast",
            Self::Better => "s2_better",
            Self::Best => "s2_best",
            Self::Auto(_) => "s2_auto",
        }
    }
}

/// A network: an address and the number of its first bits that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: u128,
    mask: u128,
}

impl Network {
    /// Whether the network contains the address; IPv4 addresses may come mapped into IPv6.
    pub fn contains(&self, ip: IpAddr) -> bool {
        bits_of(ip) & self.mask == self.base
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("\"{text}\" is not a network; write one as 10.0.0.0/8 or ::1");
        let (ip, len) = match text.split_once('/') {
            Some((ip, len)) => (ip, Some(len.parse::<u32>().map_err(|_| expected())?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| expected())?;
        let width = if ip.is_ipv4() { 32 } else { 128 };
        let len = len.unwrap_or(width);
        if len > width {
            return Err(expected());
        }
        // IPv4 addresses are compared as those mapped into IPv6.
        let mask = u128::MAX.checked_shl(width - len).unwrap_or(0);
        Ok(Self { base: bits_of(ip) & mask, mask })
    }
}

fn bits_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => Ipv6Addr::to_bits(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_the_addresses_that_begin_as_it_does() {
        let holds = |network: &str, ip: &str| {
            network.parse::<Network>().unwrap().contains(ip.parse().unwrap())
        };
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("192.168.128.0/17", "192.168.200.1", "192.168.1.1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::10.0.0.1"),
        ] {
            assert!(holds(network, inside), "{network} {inside}");
            assert!(!holds(network, outside), "{network} {outside}");
        }
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("::/0", "1.2.3.4") && holds("::/0", "::1"));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "a/8", "1.2.3.4/x"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
