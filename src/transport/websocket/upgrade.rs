//! The HTTP request for a WebSocket, judged as nats-server does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::proto::Connect;
use crate::transport::{Cookies, SocketProtocol, WebSocketSettings};

/// The longest request, in bytes.
pub(crate) const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// The most header fields of a request.
const FIELDS_MAX: usize = 100;
/// Bytes of the client's random key, which it sends in base64.
pub(super) const KEY_BYTES: usize = 16;
/// The suffix of the key in the hash that answers it (RFC 6455, 4.2.2).
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The header field by which a leaf node asks for frames without masks, and is granted them.
pub(super) const NO_MASKING: &str = "Nats-No-Masking";
/// The header field for compression without a context that outlives a message.
pub(super) const DEFLATE_LINE: &str = "Sec-WebSocket-Extensions: permessage-deflate; \
                                       server_no_context_takeover; client_no_context_takeover\r\n";

/// A request that is granted.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// The response, whole.
    pub(super) response: Vec<u8>,
    /// Whether messages may be compressed, in both directions.
    pub(super) packs: bool,
    /// Credentials in the request's cookies.
    pub(super) credentials: GivenCookies,
    /// The addresses the request has passed, the client's first, as proxies have named them.
    pub(super) forwarded_for: Option<String>,
    /// The protocol that is spoken in it.
    pub(super) speaks: SocketProtocol,
    /// Whether the client's frames must have masks.
    pub(super) wants_masks: bool,
}

/// Credentials in cookies, for those that CONNECT leaves out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct GivenCookies {
    jwt: Option<String>,
    user: Option<String>,
    pass: Option<String>,
    token: Option<String>,
}

impl GivenCookies {
    /// Fills in credentials that CONNECT leaves out.
    pub(super) fn complete(&self, connect: &mut Connect) {
        for (given, field) in [
            (&self.jwt, &mut connect.jwt),
            (&self.user, &mut connect.user),
            (&self.pass, &mut connect.pass),
            (&self.token, &mut connect.auth_token),
        ] {
            if let Some(given) = given.as_ref().filter(|_| field.is_empty()) {
                *field = given.as_str().into();
            }
        }
    }
}

/// A request that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UpgradeRefusal {
    status: &'static str,
    /// The reason for the log.
    pub(super) reason: &'static str,
}

impl UpgradeRefusal {
    /// Returns the response to the client: the status, as in nats-server, and nothing else.
    pub(super) fn response(self) -> Vec<u8> {
        let Self { status, .. } = self;
        let text = status.split_once(' ').map_or(status, |(_, text)| text);
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\
             Sec-Websocket-Version: 13\r\nX-Content-Type-Options: nosniff\r\n\
             Content-Length: {}\r\n\r\n{text}\n",
            text.len() + 1
        )
        .into_bytes()
    }
}

const fn bad(reason: &'static str) -> UpgradeRefusal {
    UpgradeRefusal { status: "400 Bad Request", reason }
}

/// The refusal of a request over the limit.
pub(super) const TOO_LONG: UpgradeRefusal = UpgradeRefusal {
    status: "431 Request Header Fields Too Large",
    reason: "the request is too long",
};

/// Returns the end of a request among the first bytes of a connection, if it is there.
pub(crate) fn end_of_request(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// Grants or refuses a whole request.
pub(super) fn judge(
    request: &[u8],
    settings: &WebSocketSettings,
) -> Result<Upgrade, UpgradeRefusal> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    if !matches!(parsed.parse(request), Ok(httparse::Status::Complete(_))) {
        return Err(bad("not an HTTP request"));
    }
    let request = UpgradeRequest { parsed: &parsed };
    let speaks = if request.is_at("/leafnode") {
        SocketProtocol::Leaf
    } else if request.is_at("/mqtt") {
        SocketProtocol::Mqtt
    } else {
        SocketProtocol::Client
    };
    if speaks == SocketProtocol::Mqtt && !settings.speaks_mqtt {
        return Err(not_here("MQTT is not configured"));
    }
    if speaks == SocketProtocol::Leaf && !settings.speaks_leaf {
        return Err(not_here("Not configured to accept leaf node connections"));
    }
    if parsed.method != Some("GET") {
        let reason = "request method must be GET";
        return Err(UpgradeRefusal { status: "405 Method Not Allowed", reason });
    }
    if request.field("Host").is_none() {
        return Err(bad("'Host' missing in request"));
    }
    if !request.lists("Upgrade", "websocket") {
        return Err(bad("invalid value for header 'Upgrade'"));
    }
    if !request.lists("Connection", "Upgrade") {
        return Err(bad("invalid value for header 'Connection'"));
    }
    let Some(key) = request.field("Sec-WebSocket-Key").filter(|key| !key.is_empty()) else {
        return Err(bad("key missing"));
    };
    if !STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == KEY_BYTES) {
        return Err(bad("invalid websocket key"));
    }
    if !request.lists("Sec-WebSocket-Version", "13") {
        return Err(bad("invalid version"));
    }
    request.check_origin(settings)?;
    let mut upgrade = Upgrade {
        response: Vec::new(),
        packs: settings.compression && request.offers_deflate(),
        credentials: request.credentials(&settings.cookies),
        forwarded_for: request.field("X-Forwarded-For").map(str::to_owned),
        speaks,
        wants_masks: !request.fields(NO_MASKING).any(|value| value == "true"),
    };
    upgrade.respond(key, &settings.headers);
    Ok(upgrade)
}

impl Upgrade {
    /// Makes the response to a request with this key, with more header fields.
    fn respond(&mut self, key: &str, more: &[(String, String)]) {
        let accept = accept_of(key);
        let mut response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n"
        );
        if self.packs {
            response.push_str(DEFLATE_LINE);
        }
        if !self.wants_masks {
            response.push_str(&format!("{NO_MASKING}: true\r\n"));
        }
        if self.speaks == SocketProtocol::Mqtt {
            response.push_str("Sec-WebSocket-Protocol: mqtt\r\n");
        }
        for (name, value) in more {
            response.push_str(&format!("{name}: {value}\r\n"));
        }
        response.push_str("\r\n");
        self.response = response.into_bytes();
    }
}

/// Returns the answer to a client's key.
pub(super) fn accept_of(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize())
}

/// Returns the values of a header field, as far as they are text.
pub(super) fn fields<'h, 'a: 'h>(
    all: &'h [httparse::Header<'a>],
    name: &str,
) -> impl Iterator<Item = &'a str> {
    let named = all.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    named.filter_map(|field| str::from_utf8(field.value).ok()).map(str::trim)
}

/// Whether `value` is among the values in a header field, divided by commas.
pub(super) fn lists(all: &[httparse::Header<'_>], name: &str, value: &str) -> bool {
    let mut values = fields(all, name).flat_map(|field| field.split(','));
    values.any(|given| given.trim().eq_ignore_ascii_case(value))
}

fn not_here(reason: &'static str) -> UpgradeRefusal {
    UpgradeRefusal { status: "404 Not Found", reason }
}

struct UpgradeRequest<'r, 'a> {
    parsed: &'r httparse::Request<'a, 'a>,
}

impl<'a> UpgradeRequest<'_, 'a> {
    /// Whether the path ends in `end`.
    fn is_at(&self, end: &str) -> bool {
        let path = self.parsed.path.unwrap_or_default();
        path.split('?').next().is_some_and(|path| path.ends_with(end))
    }

    /// Returns the values of a header field, as far as they are text.
    fn fields(&self, name: &str) -> impl Iterator<Item = &'a str> {
        fields(self.parsed.headers, name)
    }

    fn field(&self, name: &str) -> Option<&'a str> {
        self.fields(name).next()
    }

    /// Whether `value` is among the values in a header field, divided by commas.
    fn lists(&self, name: &str, value: &str) -> bool {
        lists(self.parsed.headers, name, value)
    }

    /// Checks the origin of the page that asks. Clients that are not browsers name no origin.
    fn check_origin(&self, settings: &WebSocketSettings) -> Result<(), UpgradeRefusal> {
        let forbidden = |reason| UpgradeRefusal { status: "403 Forbidden", reason };
        if !settings.same_origin && settings.allowed_origins.is_empty() {
            return Ok(());
        }
        let Some(origin) = self.field("Origin") else { return Ok(()) };
        let origin = PageOrigin::parse(origin).ok_or(forbidden("origin not allowed: not a URL"))?;
        if settings.same_origin {
            let scheme = if settings.tls.is_some() { "https" } else { "http" };
            let host = self.field("Host").and_then(|host| PageOrigin::of(scheme, host));
            if host.is_none_or(|host| (host.host, host.port) != (origin.host.clone(), origin.port))
            {
                return Err(forbidden("origin not allowed: not same origin"));
            }
        }
        let mut allowed =
            settings.allowed_origins.iter().filter_map(|origin| PageOrigin::parse(origin));
        if !settings.allowed_origins.is_empty() && !allowed.any(|allowed| allowed == origin) {
            return Err(forbidden("origin not allowed: not in the allowed list"));
        }
        Ok(())
    }

    /// Whether the client offers permessage-deflate in a form that the server supports.
    fn offers_deflate(&self) -> bool {
        let mut offers = self.fields("Sec-WebSocket-Extensions").flat_map(|field| field.split(','));
        offers.any(|offer| {
            let mut parts = offer.split(';').map(str::trim);
            // A smaller window than the usual one is nothing that can be promised.
            parts.next().is_some_and(|name| name.eq_ignore_ascii_case("permessage-deflate"))
                && parts.all(|part| {
                    let (name, value) = part.split_once('=').unwrap_or((part, ""));
                    !name.trim().eq_ignore_ascii_case("server_max_window_bits")
                        || value.trim().trim_matches('"') == "15"
                })
        })
    }

    fn credentials(&self, names: &Cookies) -> GivenCookies {
        let of = |name: &Option<String>| {
            let name = name.as_deref()?;
            let mut cookies = self.fields("Cookie").flat_map(|field| field.split(';'));
            cookies.find_map(|cookie| {
                let (given, value) = cookie.trim().split_once('=')?;
                (given == name).then(|| value.trim_matches('"').to_owned())
            })
        };
        let Cookies { jwt, user, pass, token } = names;
        GivenCookies { jwt: of(jwt), user: of(user), pass: of(pass), token: of(token) }
    }
}

/// The origin of a page.
#[derive(Debug, PartialEq, Eq)]
struct PageOrigin {
    scheme: String,
    host: String,
    port: u16,
}

impl PageOrigin {
    /// Parses `scheme://host` or `scheme://host:port`.
    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        Self::of(scheme, rest.split('/').next().unwrap_or_default())
    }

    fn of(scheme: &str, address: &str) -> Option<Self> {
        let scheme = scheme.to_ascii_lowercase();
        let usual = if matches!(scheme.as_str(), "https" | "wss") { 443 } else { 80 };
        let (host, port) = match address.rsplit_once(':') {
            // The colons of an IPv6 address are within brackets.
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (address, usual),
        };
        (!host.is_empty()).then(|| Self { scheme, host: host.to_ascii_lowercase(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: &str, to: &str) -> Vec<u8> {
        let usual = "GET / HTTP/1.1\r\nHost: here:80\r\nUpgrade: websocket\r\n\
                     Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert!(usual.contains(change), "{change}");
        usual.replace(change, to).into_bytes()
    }

    fn refused(request: &[u8], settings: &WebSocketSettings) -> &'static str {
        judge(request, settings).map_or_else(|refusal| refusal.reason, |_| "granted")
    }

    #[test]
    fn the_request_of_the_standard_is_answered_as_the_standard_says() {
        let upgrade = judge(&request("", ""), &WebSocketSettings::default()).unwrap();
        let response = String::from_utf8(upgrade.response).unwrap();
        let accept = "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert!(response.starts_with("HTTP/1.1 101 ") && response.contains(accept), "{response}");
        assert!(response.ends_with("\r\n\r\n") && !upgrade.packs);
    }

    #[test]
    fn what_is_missing_is_named_as_nats_server_names_it() {
        let options = WebSocketSettings::default();
        for (change, to, reason) in [
            ("GET /", "POST /", "request method must be GET"),
            ("Host: here:80\r\n", "", "'Host' missing in request"),
            ("Upgrade: websocket", "Upgrade: h2c", "invalid value for header 'Upgrade'"),
            ("keep-alive, Upgrade", "close", "invalid value for header 'Connection'"),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", "key missing"),
            ("Key: dGhl", "Key: dGh", "invalid websocket key"),
            ("Version: 13", "Version: 12", "invalid version"),
            ("GET / HTTP/1.1", "hello", "not an HTTP request"),
            ("GET /", "GET /mqtt", "MQTT is not configured"),
            ("GET /", "GET /leafnode", "Not configured to accept leaf node connections"),
            ("GET /", "GET /any/path?x", "granted"),
        ] {
            assert_eq!(refused(&request(change, to), &options), reason);
        }
    }

    #[test]
    fn pages_come_from_where_they_may() {
        let with = |origin: &str| request("Host:", &format!("Origin: {origin}\r\nHost:"));
        let same = WebSocketSettings { same_origin: true, ..WebSocketSettings::default() };
        let list = vec!["http://here".to_owned(), "https://there:8443".to_owned()];
        let listed = WebSocketSettings { allowed_origins: list, ..WebSocketSettings::default() };
        for (origin, same_origin, in_list) in [
            ("http://here", true, true),
            ("HTTP://HERE:80", true, true),
            ("http://here:81", false, false),
            ("https://there:8443", false, true),
            ("https://there", false, false),
            ("null", false, false),
        ] {
            assert_eq!(refused(&with(origin), &same) == "granted", same_origin, "{origin}");
            assert_eq!(refused(&with(origin), &listed) == "granted", in_list, "{origin}");
        }
        assert_eq!(refused(&request("", ""), &same), "granted", "no browser");
    }

    #[test]
    fn compression_is_agreed_upon_where_both_can() {
        let options = WebSocketSettings { compression: true, ..WebSocketSettings::default() };
        for (offer, packs) in [
            ("permessage-deflate", true),
            ("permessage-deflate; client_max_window_bits", true),
            ("x, permessage-deflate; server_max_window_bits=15", true),
            ("permessage-deflate; server_max_window_bits=10", false),
            ("permessage-deflate; server_max_window_bits=10, permessage-deflate", true),
            ("x-webkit-deflate-frame", false),
        ] {
            let request = request("Host:", &format!("Sec-WebSocket-Extensions: {offer}\r\nHost:"));
            assert_eq!(judge(&request, &options).unwrap().packs, packs, "{offer}");
            assert!(!judge(&request, &WebSocketSettings::default()).unwrap().packs);
        }
    }

    #[test]
    fn cookies_stand_for_what_connect_leaves_out() {
        let cookies =
            Cookies { user: Some("u".into()), pass: Some("p".into()), ..Cookies::default() };
        let options = WebSocketSettings { cookies, ..WebSocketSettings::default() };
        let request = request("Host:", "Cookie: x=1; u=ann;p=\"a=b\"\r\nHost:");
        let upgrade = judge(&request, &options).unwrap();
        let mut connect = Connect { pass: "own".into(), ..Connect::default() };
        upgrade.credentials.complete(&mut connect);
        assert_eq!((&*connect.user, &*connect.pass), ("ann", "own"));
        let mut connect = Connect::default();
        upgrade.credentials.complete(&mut connect);
        assert_eq!(&*connect.pass, "a=b");
    }
}
