//! The request by which this server asks another one for a WebSocket, and the answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::upgrade::{self, NO_MASKING, lists};

/// Header fields of an answer that are looked at, at most.
const FIELDS_MAX: usize = 64;

/// The WebSocket that another server is asked for.
#[derive(Debug, Clone)]
pub(crate) struct WebSocketDial {
    /// `host:port` of the server.
    pub(crate) host: String,
    /// The path, from the first slash on.
    pub(crate) path: String,
    /// Whether compression of messages is asked for.
    pub(crate) compression: bool,
    /// Whether frames without masks are asked for.
    pub(crate) no_masking: bool,
    /// The source of the key and of the masks.
    pub(crate) seed: u64,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct AskedSocket {
    /// The answer to the key.
    accept: String,
    dial: WebSocketDial,
}

/// An answer that grants the request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GrantedSocket {
    /// Whether messages may be compressed, in both directions.
    pub(super) packs: bool,
    /// The source of the masks of this end's frames; `None` for frames without masks.
    pub(super) masks: Option<u64>,
}

impl AskedSocket {
    /// Returns the request for a WebSocket, and what waits for its answer.
    pub(super) fn new(dial: WebSocketDial) -> (Self, Vec<u8>) {
        let mut random = fastrand::Rng::with_seed(dial.seed);
        let mut nonce = [0; upgrade::KEY_BYTES];
        random.fill(&mut nonce);
        let key = STANDARD.encode(nonce);
        let WebSocketDial { host, path, .. } = &dial;
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        );
        if dial.compression {
            request.push_str(upgrade::DEFLATE_LINE);
        }
        if dial.no_masking {
            request.push_str(&format!("{NO_MASKING}: true\r\n"));
        }
        request.push_str("\r\n");
        (Self { accept: upgrade::accept_of(&key), dial }, request.into_bytes())
    }

    /// Reads a whole answer.
    ///
    /// # Errors
    ///
    /// Returns the reason why there is no WebSocket.
    pub(super) fn read(&self, answer: &[u8]) -> Result<GrantedSocket, &'static str> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        if !matches!(parsed.parse(answer), Ok(httparse::Status::Complete(_))) {
            return Err("the answer is not one of HTTP");
        }
        let lists = |name, value| lists(parsed.headers, name, value);
        let is_granted = parsed.code == Some(101)
            && lists("Upgrade", "websocket")
            && lists("Connection", "Upgrade")
            && upgrade::fields(parsed.headers, "Sec-WebSocket-Accept").any(|is| is == self.accept);
        if !is_granted {
            return Err("invalid websocket connection");
        }
        let mut extensions = upgrade::fields(parsed.headers, "Sec-WebSocket-Extensions")
            .flat_map(|field| field.split(','))
            .map(|extension| extension.split(';').map(str::trim).collect::<Vec<_>>());
        let deflate = extensions.find(|words| words[0].eq_ignore_ascii_case("permessage-deflate"));
        let forgets = |words: &[&str]| {
            let wanted = ["server_no_context_takeover", "client_no_context_takeover"];
            wanted.iter().all(|wanted| words.iter().any(|word| word.eq_ignore_ascii_case(wanted)))
        };
        let packs = match deflate {
            None => false,
            Some(_) if !self.dial.compression => return Err("compression was not asked for"),
            Some(words) if forgets(&words) => true,
            Some(_) => return Err("compression negotiation error"),
        };
        let is_bare = self.dial.no_masking && lists(NO_MASKING, "true");
        let masks = (!is_bare).then_some(self.dial.seed.rotate_left(32));
        Ok(GrantedSocket { packs, masks })
    }
}

#[cfg(test)]
mod tests {
    use super::super::WebSocketSettings;
    use super::*;

    fn dial(compression: bool, no_masking: bool) -> WebSocketDial {
        let (host, path) = ("h:80".to_owned(), "/any/leafnode".to_owned());
        WebSocketDial { host, path, compression, no_masking, seed: 7 }
    }

    #[test]
    fn what_is_asked_for_is_granted_as_far_as_the_other_server_can() {
        for wants in [(false, false), (true, false), (false, true), (true, true)] {
            for compression in [false, true] {
                let (asked, request) = AskedSocket::new(dial(wants.0, wants.1));
                let settings = WebSocketSettings {
                    compression,
                    speaks_leaf: true,
                    ..WebSocketSettings::default()
                };
                let upgrade = upgrade::judge(&request, &settings).unwrap();
                let granted = asked.read(&upgrade.response).unwrap();
                assert_eq!(granted.packs, compression && wants.0, "{wants:?}");
                assert_eq!(granted.masks.is_none(), wants.1, "{wants:?}");
                assert_eq!((upgrade.packs, upgrade.wants_masks), (granted.packs, !wants.1));
            }
        }
    }

    #[test]
    fn an_answer_that_grants_nothing_is_refused() {
        let (asked, request) = AskedSocket::new(dial(true, false));
        let settings = WebSocketSettings {
            compression: true,
            speaks_leaf: true,
            ..WebSocketSettings::default()
        };
        let answer = upgrade::judge(&request, &settings).unwrap().response;
        let answer = String::from_utf8(answer).unwrap();
        assert!(asked.read(answer.as_bytes()).is_ok());
        for (change, to) in [
            ("101 Switching", "200 OK"),
            ("Upgrade: websocket", "Upgrade: h2c"),
            ("Connection: Upgrade", "Connection: close"),
            ("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x"),
            ("; client_no_context_takeover", ""),
            ("HTTP/1.1", "SMTP"),
        ] {
            assert!(answer.contains(change), "{change}");
            assert!(asked.read(answer.replace(change, to).as_bytes()).is_err(), "{change}");
        }
        let (plain, _) = AskedSocket::new(dial(false, false));
        let unasked = "compression was not asked for";
        let own = answer.replace(&asked.accept, &plain.accept);
        assert_eq!(plain.read(own.as_bytes()), Err(unasked));
    }
}
