//! Settings of all layers: plain types that a configuration is read into.

use core::net::{IpAddr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

/// TLS for accepted connections, its files read and checked.
#[derive(Clone)]
pub struct Tls {
    /// What a handshake needs; shared by all connections, so that sessions can be resumed on any.
    pub server: Arc<ServerConfig>,
    /// The same for the monitoring, which asks nobody for a certificate.
    pub monitoring: Arc<ServerConfig>,
    /// There is a certificate; without, every handshake fails.
    pub has_certificate: bool,
    /// When the first certificate ends, in seconds since 1970; none without one.
    pub ends_at: Option<i64>,
    /// Milliseconds a client has for its handshake (2000).
    pub timeout_ms: u64,
    /// Clients must show a certificate that `ca_file` vouches for (false).
    pub verify: bool,
    /// The certificate says which user a client is (false).
    pub map: bool,
    /// Whether INFO comes before the handshake.
    pub first: HandshakeFirst,
    /// SHA-256 of the public keys that clients may have, in hexadecimal; empty: any.
    pub pinned_certs: Vec<String>,
    /// New connections in a second, those without TLS included where they are allowed; 0 is
    /// without limit (0).
    pub connections_per_second_max: u64,
    /// Of all files and names, so that a reload sees what has changed.
    pub(crate) digest: [u8; 32],
}

/// TLS between servers: each has a certificate that the other's `ca_file` vouches for.
#[derive(Debug, Clone)]
pub struct MutualTls {
    /// For those who dial.
    pub tls: Tls,
    /// For dialling.
    pub client: Arc<ClientConfig>,
    /// Whoever is dialled may be anybody (false).
    pub is_insecure: bool,
}

impl PartialEq for MutualTls {
    fn eq(&self, other: &Self) -> bool {
        // Both are made of the same files.
        self.tls == other.tls && self.is_insecure == other.is_insecure
    }
}

/// When the handshake begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFirst {
    /// After INFO.
    No,
    /// Before INFO, which is then never sent in clear.
    Always,
    /// Before INFO if the client begins it within so many milliseconds, else after.
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

/// How WebSockets are made and what their clients need.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WebSocketSettings {
    /// TLS (none).
    pub tls: Option<Tls>,
    /// A browser's page must come from the address it connects to.
    pub same_origin: bool,
    /// The pages that browsers may connect from (empty: all).
    pub allowed_origins: Vec<String>,
    /// Compress what is sent to clients that can take it.
    pub compression: bool,
    /// Milliseconds a client has for TLS and upgrade together.
    pub handshake_timeout_ms: u64,
    /// Milliseconds of silence before a PING (none: as for other clients).
    pub ping_interval_ms: Option<u64>,
    /// Names of the cookies that stand for what CONNECT leaves out.
    pub cookies: Cookies,
    /// Fields that the answer to an upgrade has besides its own.
    pub headers: Vec<(String, String)>,
    /// Milliseconds a client has for its CONNECT (none: as for other clients).
    pub auth_timeout_ms: Option<u64>,
    /// The user whom a client without credentials is (none: as for other clients).
    pub no_auth_user: Option<String>,
}

/// The names of cookies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cookies {
    /// Whose value is a JWT.
    pub jwt: Option<String>,
    /// Whose value is a user's name.
    pub user: Option<String>,
    /// Whose value is a password.
    pub pass: Option<String>,
    /// Whose value is a token.
    pub token: Option<String>,
}

/// Whether and how a server compresses what it sends to others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Compression {
    /// Never.
    Off,
    /// As the other server does.
    #[default]
    Accept,
    /// S2 at its fastest.
    Fast,
    /// S2, slower and shorter.
    Better,
    /// S2, slowest and shortest.
    Best,
    /// The longer the round trip the harder: milliseconds up to which nothing is compressed, then
    /// fast, then better. With fewer than three the last is for all that take longer.
    Auto(Vec<u64>),
}

impl Compression {
    /// What servers call it.
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

/// A network: an address and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: u128,
    mask: u128,
}

impl Network {
    /// Whether the address is in it; IPv4 addresses may come mapped into IPv6.
    pub fn contains(&self, ip: IpAddr) -> bool {
        bits_of(ip) & self.mask == self.base
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("\"{text}\" is no network; write one as 10.0.0.0/8 or ::1");
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
