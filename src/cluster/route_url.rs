//! Addresses of other members, as operators write them.

use crate::auth::Secret;

/// The port for routes if none is given.
pub const PORT: u16 = 6222;

/// The address of another member, as in `nats-route://user:password@host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteUrl {
    /// The host: an address, without brackets, or a name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// User and password for the other member.
    pub login: Option<(String, Secret)>,
}

impl RouteUrl {
    /// Reads an address; its scheme may be any.
    ///
    /// # Errors
    ///
    /// Returns the reason why the text is not an address, without the text: it may contain a
    /// password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a route is nats-route://host:port, perhaps with user:password@";
        let (_, rest) = text.split_once("://").ok_or(EXPECTED)?;
        let (host, port, login) = parse_address(rest, PORT).ok_or(EXPECTED)?;
        let login = login.map(|(user, password)| (user, Secret::new(password.unwrap_or_default())));
        Ok(Self { host, port, login })
    }
}

/// User and password as an address has them.
type WrittenLogin = (String, Option<String>);

/// Reads what follows the scheme of an address, as far as its path: host, port, and the user with
/// the password; `None` if it is no address.
pub(super) fn parse_address(text: &str, port: u16) -> Option<(String, u16, Option<WrittenLogin>)> {
    let rest = text.split(['/', '?', '#']).next().unwrap_or_default();
    let (login, address) = match rest.rsplit_once('@') {
        Some((login, address)) => (Some(login), address),
        None => (None, rest),
    };
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (address, port),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bracketed.unwrap_or(host);
    if host.is_empty() || (bracketed.is_none() && host.contains(':')) {
        return None;
    }
    let login = login.map(|login| match login.split_once(':') {
        Some((user, password)) => (decoded(user), Some(decoded(password))),
        None => (decoded(login), None),
    });
    Some((host.to_owned(), port, login))
}

/// Decodes `%xx`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        let hex = |digit: u8| char::from(digit).to_digit(16);
        rest = tail;
        match (byte, tail) {
            (b'%', [high, low, tail @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                let value = hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0);
                bytes.push(u8::try_from(value).unwrap_or(b'?'));
                rest = tail;
            }
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_with_and_without_credentials() {
        let url = RouteUrl::parse("nats-route://ann:p%40ss@[::1]:6333").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("::1", 6333));
        let (user, password) = url.login.unwrap();
        assert!(user == "ann" && password.matches("p@ss"));
        let url = RouteUrl::parse("nats://example.com/").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.login), ("example.com", PORT, None));
        for text in ["example.com:1", "nats://", "nats://h:x", "nats://::1:2"] {
            assert!(RouteUrl::parse(text).is_err(), "{text}");
        }
    }
}
