//! The header by which a proxy names its client: the PROXY protocol, versions 1 and 2.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;
/// The most bytes behind the fixed part of version 2; the kinds that exist need far less.
const REST_BYTES_MAX: usize = 4096;
/// The first bytes of a header of version 1.
const PREFIX: &[u8] = b"PROXY ";
/// The first bytes of a header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of the fixed part of version 2.
const FIXED_BYTES: usize = SIGNATURE.len() + 4;

/// The first bytes of a connection: a header, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// A header; its first `used` bytes are not part of the stream it announces.
    Header {
        /// The client's address and port; `None`: the proxy connects for itself, or does not know.
        source: Option<(IpAddr, u16)>,
        /// Bytes of the header.
        used: usize,
    },
    /// Bytes that are not a header.
    Other,
    /// The beginning of a header: show the same bytes with more behind them, at most 4 KiB in all.
    Incomplete,
}

/// A header that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyError {
    /// A header that breaks the format of its version.
    Invalid(&'static str),
    /// A header for a connection other than TCP.
    Unsupported(&'static str),
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(what) => write!(f, "invalid PROXY protocol header: {what}"),
            Self::Unsupported(what) => write!(f, "unsupported PROXY protocol feature: {what}"),
        }
    }
}

impl std::error::Error for ProxyError {}

/// Reads the first bytes of a connection.
///
/// # Errors
///
/// Returns an error if the bytes begin like a header and are none, or if the header is for a
/// connection other than TCP.
pub fn parse(bytes: &[u8]) -> Result<Beginning, ProxyError> {
    if begins(bytes, PREFIX) {
        return parse_line(bytes);
    }
    if begins(bytes, SIGNATURE) {
        return parse_binary(bytes);
    }
    Ok(Beginning::Other)
}

/// Whether `bytes` and `start` are equal as far as both go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted)
}

fn parse_line(bytes: &[u8]) -> Result<Beginning, ProxyError> {
    let invalid = ProxyError::Invalid;
    let shown = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', shown) else {
        return match bytes.len() < LINE_BYTES_MAX {
            true => Ok(Beginning::Incomplete),
            false => Err(invalid("v1 line too long")),
        };
    };
    let line = shown[..end].strip_suffix(b"\r").ok_or(invalid("invalid v1 format"))?;
    let line = line.strip_prefix(PREFIX).ok_or(invalid("invalid v1 format"))?;
    let line = str::from_utf8(line).map_err(|_| invalid("invalid v1 format"))?;
    let used = end + 1;
    let mut words = line.split_ascii_whitespace();
    let wants_v4 = match words.next() {
        Some("UNKNOWN") => return Ok(Beginning::Header { source: None, used }),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(invalid("invalid protocol")),
    };
    let mut address = || -> Result<IpAddr, ProxyError> {
        let ip: IpAddr = words.next().and_then(|word| word.parse().ok()).ok_or(invalid(ADDRESS))?;
        match ip.is_ipv4() == wants_v4 {
            true => Ok(ip),
            false if wants_v4 => Err(invalid("TCP4 with IPv6 address")),
            false => Err(invalid("TCP6 with IPv4 address")),
        }
    };
    let (ip, _) = (address()?, address()?);
    let mut port = || {
        let digits = words.next().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|word| word.parse::<u16>().ok()).ok_or(invalid("invalid port"))
    };
    let (port, _) = (port()?, port()?);
    match words.next() {
        None => Ok(Beginning::Header { source: Some((ip, port)), used }),
        Some(_) => Err(invalid("invalid v1 format")),
    }
}

fn parse_binary(bytes: &[u8]) -> Result<Beginning, ProxyError> {
    const V2_LOCAL: u8 = 0x20;
    const V2_PROXY: u8 = 0x21;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(Beginning::Incomplete);
    };
    let [.., command, family, len_high, len_low] = *fixed;
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    if command & 0xf0 != 0x20 {
        return Err(ProxyError::Invalid("invalid version"));
    }
    if len > REST_BYTES_MAX {
        return Err(ProxyError::Invalid("v2 header too long"));
    }
    let Some(rest) = rest.get(..len) else { return Ok(Beginning::Incomplete) };
    let used = FIXED_BYTES + len;
    match (command, family) {
        (V2_LOCAL, _) => return Ok(Beginning::Header { source: None, used }),
        (V2_PROXY, TCP_OVER_IPV4 | TCP_OVER_IPV6) => {}
        (V2_PROXY, _) => return Err(ProxyError::Unsupported("only TCP over IPv4 or IPv6")),
        _ => return Err(ProxyError::Invalid("unknown command")),
    }
    let too_short = ProxyError::Invalid("address data too short");
    let (ip, ports): (IpAddr, &[u8]) = if family == TCP_OVER_IPV4 {
        let (ip, rest) = rest.split_first_chunk::<4>().ok_or(too_short.clone())?;
        (Ipv4Addr::from(*ip).into(), rest.get(4..8).ok_or(too_short.clone())?)
    } else {
        let (ip, rest) = rest.split_first_chunk::<16>().ok_or(too_short.clone())?;
        (Ipv6Addr::from(*ip).into(), rest.get(16..20).ok_or(too_short.clone())?)
    };
    let [high, low, ..] = *ports else { return Err(too_short) };
    let source = Some((ip.to_canonical(), u16::from_be_bytes([high, low])));
    Ok(Beginning::Header { source, used })
}

const ADDRESS: &str = "invalid address";

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap();
        [&SIGNATURE[..], &[command, family], &len.to_be_bytes(), rest].concat()
    }

    const V4: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 0x04, 0x57, 0x08, 0xae];

    type Source = Option<(IpAddr, u16)>;

    fn source(ip: &str, port: u16) -> Source {
        Some((ip.parse().unwrap(), port))
    }

    /// Headers that nats-server 2.15 accepts, with the addresses they name.
    fn good() -> Vec<(Vec<u8>, Source)> {
        let v6 = [&[0x20, 1, 13, 0xb8][..], &[0; 11], &[1], &[0; 16], &[0x04, 0x57, 0, 1]].concat();
        vec![
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\n".to_vec(), source("1.2.3.4", 1111)),
            (b"PROXY TCP4  1.2.3.4  5.6.7.8 1111 2222\r\n".to_vec(), source("1.2.3.4", 1111)),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n".to_vec(), source("1.2.3.4", 0)),
            (b"PROXY TCP6 2001:db8::1 ::2 1111 1\r\n".to_vec(), source("2001:db8::1", 1111)),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN a b c d\r\n".to_vec(), None),
            (v2(0x21, 0x11, V4), source("1.2.3.4", 1111)),
            (v2(0x21, 0x11, &[V4, b"\x04\0\x02xx"].concat()), source("1.2.3.4", 1111)),
            (v2(0x21, 0x11, &[V4, &[0; 3000]].concat()), source("1.2.3.4", 1111)),
            (v2(0x21, 0x21, &v6), source("2001:db8::1", 1111)),
            (v2(0x20, 0, b""), None),
        ]
    }

    #[test]
    fn wherever_a_header_is_cut_it_says_the_same() {
        for (header, source) in good() {
            let bytes = [&header[..], b"PING\r\n"].concat();
            let whole = Ok(Beginning::Header { source, used: header.len() });
            for end in 0..bytes.len() {
                let wanted =
                    if end < header.len() { Ok(Beginning::Incomplete) } else { whole.clone() };
                let text = String::from_utf8_lossy(&bytes[..end]);
                assert_eq!(parse(&bytes[..end]), wanted, "{text}");
            }
        }
    }

    #[test]
    fn what_begins_otherwise_is_no_header() {
        for bytes in [&b"PING\r\n"[..], b"CONNECT {}\r\n", b"PUB a 0\r\n\r\n", b"\x16\x03\x01"] {
            assert_eq!(parse(bytes), Ok(Beginning::Other));
        }
        assert_eq!(parse(b"P"), Ok(Beginning::Incomplete), "PING or PROXY");
        assert_eq!(parse(b"\r\n"), Ok(Beginning::Incomplete));
        assert_eq!(parse(b"\r\nPING\r\n"), Ok(Beginning::Other));
    }

    #[test]
    fn what_begins_like_a_header_and_is_none_is_refused() {
        for line in [
            "PROXY TCP4 1.2.3 5.6.7.8 1111 2222\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 111111 2222\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2222\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\n",
            "PROXY \r\n",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
        assert!(parse(&[PREFIX, &[b' '; 200]].concat()).is_err(), "too long");
        for (command, family, rest) in [
            (0x21, 0, &b""[..]),
            (0x21, 0x12, V4),
            (0x21, 0x31, &[0; 216]),
            (0x11, 0x11, V4),
            (0x22, 0x11, V4),
            (0x21, 0x11, &V4[..8]),
            (0x21, 0x21, V4),
            (0x21, 0x11, &[0; 5000]),
        ] {
            assert!(parse(&v2(command, family, rest)).is_err(), "{command} {family}");
        }
    }
}
