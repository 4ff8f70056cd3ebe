//! The wire between a leaf node and its hub: parsing and rendering of a leaf connection's
//! operations.
//!
//! A leaf connection is for one account at each end, and its lines name none. Otherwise they are
//! those of a route with other names: `LS+` for `RS+`, `LMSG` for `RMSG`.

use serde::{Deserialize, Serialize};

use super::encode::append;
use super::route::{
    AccountNaming, Form, MessageForm, Permitted, RouteOpName, RouteParsed, is_default, json,
    parse_named, unwanted, wanted,
};
use super::{ParseLimits, ProtoError};

/// The path of a request for a leaf connection on the port for WebSocket.
pub const WEBSOCKET_PATH: &str = "/leafnode";

/// The version of the protocol from which on a peer reports the way of traced messages.
pub const PROTO: i32 = 3;

/// Names of operations, likely ones first.
const NAMES: [(&[u8], RouteOpName); 5] = [
    (b"LMSG", RouteOpName::Message(MessageForm::Plain)),
    (b"HMSG", RouteOpName::Message(MessageForm::WithHeader)),
    (b"LS+", RouteOpName::Interest { of_leaves: false }),
    (b"LS-", RouteOpName::NoInterest { of_leaves: false }),
    (b"INFO", RouteOpName::Info),
];

/// The form of the lines.
pub const FORM: Form = Form { accounts: AccountNaming::Unnamed, origins: false };

/// Reads the first operation of `input`, within these limits.
///
/// # Errors
///
/// Returns an error whenever a peer breaks the rules of the protocol; nothing can be read behind
/// it.
pub fn parse<'a>(input: &'a [u8], limits: &ParseLimits) -> Result<RouteParsed<'a>, ProtoError> {
    parse_named(input, &NAMES, FORM, limits)
}

/// Appends LS+; with a queue group also the number of its members.
pub fn interest(out: &mut Vec<u8>, subject: &[u8], queue: Option<(&[u8], u32)>) {
    out.extend_from_slice(b"LS+ ");
    wanted(out, subject, queue);
}

/// Appends LS-.
pub fn no_interest(out: &mut Vec<u8>, subject: &[u8], queue: Option<&[u8]>) {
    out.extend_from_slice(b"LS- ");
    unwanted(out, subject, queue);
}

/// Appends CONNECT.
pub fn connect(out: &mut Vec<u8>, connect: &LeafConnect) {
    append(out, &[b"CONNECT ", json(connect).as_bytes(), b"\r\n"]);
}

/// Appends INFO.
pub fn info(out: &mut Vec<u8>, info: &LeafInfo) {
    super::encode::info(out, json(info).as_bytes());
}

/// The INFO of a server to a leaf node, or to its hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeafInfo {
    /// The id of the running server.
    pub server_id: String,
    /// The server's configured name, else its id.
    pub server_name: String,
    /// The server's version.
    pub version: String,
    /// The level of the protocol that the server knows.
    pub proto: i32,
    /// The commit that the server was built from.
    #[serde(skip_serializing_if = "is_default")]
    pub git_commit: String,
    /// The version of Go that the server was built with; empty if it was not.
    pub go: String,
    /// The address at which the server listens for leaf nodes.
    pub host: String,
    /// The port at which the server listens for leaf nodes.
    pub port: i32,
    /// Whether the server accepts HMSG.
    pub headers: bool,
    /// Whether a leaf node has to log in: always, if only by CONNECT.
    #[serde(skip_serializing_if = "is_default")]
    pub auth_required: bool,
    /// Whether a TLS handshake must follow.
    #[serde(skip_serializing_if = "is_default")]
    pub tls_required: bool,
    /// Whether a leaf node must have a certificate.
    #[serde(skip_serializing_if = "is_default")]
    pub tls_verify: bool,
    /// The server's largest payload, in bytes.
    pub max_payload: i64,
    /// Whether the server runs JetStream.
    #[serde(skip_serializing_if = "is_default")]
    pub jetstream: bool,
    /// `host:port` of the leaf node port.
    #[serde(skip_serializing_if = "is_default")]
    pub ip: String,
    /// The number of the connection.
    #[serde(skip_serializing_if = "is_default")]
    pub client_id: u64,
    /// The nonce that a leaf node may have to sign.
    #[serde(skip_serializing_if = "is_default")]
    pub nonce: String,
    /// The name of the server's cluster.
    #[serde(skip_serializing_if = "is_default")]
    pub cluster: String,
    /// The domain of the server's JetStream.
    #[serde(skip_serializing_if = "is_default")]
    pub domain: String,
    /// Whether this INFO follows CONNECT.
    #[serde(skip_serializing_if = "is_default")]
    pub connect_info: bool,
    /// The account that the leaf node is bound to.
    #[serde(skip_serializing_if = "is_default")]
    pub remote_account: String,
    /// Whether that is the system account.
    #[serde(skip_serializing_if = "is_default")]
    pub acc_is_sys: bool,
    /// The server's mode of compression.
    #[serde(skip_serializing_if = "is_default")]
    pub compression: String,
    /// Whether the server is about to end.
    #[serde(skip_serializing_if = "is_default")]
    pub ldm: bool,
    /// The level of JetStream's API.
    #[serde(skip_serializing_if = "is_default")]
    pub api_lvl: u32,
    /// Whether another INFO follows CONNECT.
    #[serde(skip_serializing_if = "is_default")]
    pub info_on_connect: bool,
    /// `host:port` of the leaf node ports of the cluster.
    #[serde(skip_serializing_if = "is_default")]
    pub leafnode_urls: Vec<String>,
    /// `host:port` of the ports for WebSocket of the cluster.
    #[serde(skip_serializing_if = "is_default")]
    pub ws_connect_urls: Vec<String>,
    /// Subjects that the leaf node may hear.
    #[serde(skip_serializing_if = "is_default")]
    pub import: Option<Permitted>,
    /// Subjects that the leaf node may publish.
    #[serde(skip_serializing_if = "is_default")]
    pub export: Option<Permitted>,
    /// Whether the server is a shardcast: it knows the mark of [`super::route::pass_on`].
    #[serde(skip_serializing_if = "is_default")]
    pub shardcast: bool,
}

/// The CONNECT of a server that dials a hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeafConnect {
    /// The server's version.
    pub version: String,
    /// Credentials: the user's public key.
    #[serde(skip_serializing_if = "is_default")]
    pub nkey: String,
    /// Credentials: a token of the user.
    #[serde(skip_serializing_if = "is_default")]
    pub jwt: String,
    /// Credentials: the signature of the nonce.
    #[serde(skip_serializing_if = "is_default")]
    pub sig: String,
    /// Credentials: the user's name.
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    /// Credentials: the user's password.
    #[serde(skip_serializing_if = "is_default")]
    pub pass: String,
    /// Credentials: a token.
    #[serde(skip_serializing_if = "is_default")]
    pub auth_token: String,
    /// The id of the dialling server.
    pub server_id: String,
    /// The name of the dialling server.
    pub name: String,
    /// The name of its cluster, or its own if it is in none.
    #[serde(skip_serializing_if = "is_default")]
    pub cluster: String,
    /// The domain of its JetStream.
    #[serde(skip_serializing_if = "is_default")]
    pub domain: String,
    /// Whether it runs JetStream.
    #[serde(skip_serializing_if = "is_default")]
    pub jetstream: bool,
    /// Whether it accepts HMSG.
    pub headers: bool,
    /// Whether the dialling server is the hub.
    #[serde(skip_serializing_if = "is_default")]
    pub is_hub: bool,
    /// Subjects of which it wants no messages.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "texts_or_null")]
    pub deny_pub: Vec<String>,
    /// The mode of compression of the dialling server.
    #[serde(skip_serializing_if = "is_default")]
    pub compress_mode: String,
    /// The account of the dialling server that is bound.
    #[serde(skip_serializing_if = "is_default")]
    pub remote_account: String,
    /// The level of the protocol that it knows.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: i32,
    /// Whether it wants to know nothing of other leaf nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub isolate: bool,
    /// The language of a client that has dialled the port; absent from servers.
    #[serde(skip_serializing_if = "is_default")]
    pub lang: String,
    /// The name of a gateway that has dialled the port; absent from other servers.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: String,
    /// Whether it is a shardcast: it knows the mark of [`super::route::pass_on`].
    #[serde(skip_serializing_if = "is_default")]
    pub shardcast: bool,
}

fn texts_or_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::super::Publish;
    use super::super::route::{MsgHead, RouteOp, msg};
    use super::*;

    const LIMITS: ParseLimits =
        ParseLimits { control_line_bytes_max: 64 * 1024, payload_bytes_max: 1000, headers: true };

    const SAMPLE: &[u8] = b"INFO {\"server_id\":\"X\"}\r\nCONNECT {}\r\nLS+ lf.a\r\n\
        LS+ lf.q  g 2\r\nls- lf.a\r\nLS- lf.q g\r\nLMSG lf.a 2\r\nhi\r\nLMSG lf.a rp 2\r\nhi\r\n\
        LMSG lf.q | g h 2\r\nhi\r\nLMSG lf.q + rp g 2\r\nhi\r\nHMSG lf.a rp 12 14\r\n\
        NATS/1.0\r\n\r\nhi\r\nHMSG lf.q + rp g 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPING\r\nPONG\r\n";

    fn ops(wire: &[u8], cut: usize) -> Vec<String> {
        let (mut ops, mut at, mut end) = (Vec::new(), 0, cut);
        loop {
            match parse(&wire[at..end], &LIMITS) {
                Ok(RouteParsed::Op { op, used }) => {
                    ops.push(format!("{op:?}"));
                    at += used;
                }
                Ok(RouteParsed::Incomplete { need }) if end < wire.len() => {
                    assert!(need > end - at, "progress is asked for");
                    end = wire.len();
                }
                Ok(RouteParsed::Incomplete { .. }) => return ops,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn the_place_where_the_stream_is_cut_never_matters() {
        let whole = ops(SAMPLE, SAMPLE.len());
        assert_eq!(whole.len(), 14);
        for cut in 0..SAMPLE.len() {
            assert_eq!(ops(SAMPLE, cut), whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let mut out = Vec::new();
        interest(&mut out, b"a.b", None);
        interest(&mut out, b"a.b", Some((b"g", 3)));
        no_interest(&mut out, b"a.b", Some(b"g"));
        assert_eq!(out, b"LS+ a.b\r\nLS+ a.b g 3\r\nLS- a.b g\r\n");
        let message = Publish {
            subject: b"a",
            reply: Some(b"r"),
            header: None,
            size_text: b"2",
            payload: b"hi",
            tail: None,
        };
        for (queues, wire) in [
            (&[][..], &b"LMSG a r 2\r\nhi\r\n"[..]),
            (&[&b"g"[..], b"h"][..], b"LMSG a + r g h 2\r\nhi\r\n"),
        ] {
            let mut out = Vec::new();
            msg(&mut out, MsgHead::Leaf, &message, queues, true);
            assert_eq!(out.escape_ascii().to_string(), wire.escape_ascii().to_string());
            let Ok(RouteParsed::Op { op: RouteOp::Message { publish, .. }, used }) =
                parse(&out, &LIMITS)
            else {
                panic!("it is a message")
            };
            assert_eq!(
                (publish.subject, publish.reply, used),
                (&b"a"[..], Some(&b"r"[..]), out.len())
            );
        }
    }

    #[test]
    fn lines_of_routes_and_wrong_numbers_of_words_are_errors() {
        for wrong in
            ["RS+ $G a\r\n", "RMSG $G a 2\r\nhi\r\n", "LS+ a b\r\n", "LS+ a b 1 x\r\n", "LS+\r\n"]
        {
            assert!(parse(wrong.as_bytes(), &LIMITS).is_err(), "{wrong}");
        }
        assert!(matches!(
            parse(b"LMSG a 1001\r\n", &LIMITS),
            Err(ProtoError::PayloadTooLarge { .. })
        ));
    }
}
