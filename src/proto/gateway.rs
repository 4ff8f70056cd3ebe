//! The wire between clusters: the operations of a gateway, and replies that name their cluster.
//!
//! A gateway speaks as a route does, and says by `A+` and `A-` whether it wants anything of an
//! account at all. Stateless, and framed like the client's side.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encode::append;
use super::parse::{self, OpKind, bad_arguments, trim};
use super::route::{self, AccountNaming, CONTROL_LINE_BYTES_MAX, Form, RouteOp, RouteParsed};
use super::{ParseLimits, ProtoError};

/// The form of a peer's lines; only this server's own entries have an origin.
pub const FORM: Form = Form { accounts: AccountNaming::Named, origins: true };

/// An operation of a gateway, borrowed from the bytes it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayOp<'a> {
    /// A+ with the account: the peer's cluster is interested in something of it again.
    Account(&'a [u8]),
    /// A- with the account: the peer's cluster is interested in nothing of it.
    NoAccount(&'a [u8]),
    /// An operation that routes have, too.
    Common(RouteOp<'a>),
}

/// The result of [`parse()`]; as [`RouteParsed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayParsed<'a> {
    /// A whole operation of `used` bytes.
    Op {
        /// The operation.
        op: GatewayOp<'a>,
        /// Bytes of the operation.
        used: usize,
    },
    /// The beginning of an operation.
    Incomplete {
        /// The bytes to be shown to the next call, at least.
        need: usize,
    },
}

/// Reads the first operation of `input`. No message may be larger than `payload_bytes_max`.
///
/// # Errors
///
/// Returns an error whenever a peer breaks the rules of the protocol; nothing can be read behind
/// it.
pub fn parse(input: &[u8], payload_bytes_max: usize) -> Result<GatewayParsed<'_>, ProtoError> {
    if let [b'A' | b'a', rest @ ..] = input {
        return parse_account(input, rest.first().copied());
    }
    // Leaf nodes of other clusters are their affair.
    if let [b'L' | b'l', ..] = input {
        return Err(parse::unknown(input, 0, false));
    }
    Ok(match route::parse(input, payload_bytes_max, FORM)? {
        RouteParsed::Op { op, used } => GatewayParsed::Op { op: GatewayOp::Common(op), used },
        RouteParsed::Incomplete { need } => GatewayParsed::Incomplete { need },
    })
}

fn parse_account(input: &[u8], sign: Option<u8>) -> Result<GatewayParsed<'_>, ProtoError> {
    let Some(sign) = sign else { return Ok(GatewayParsed::Incomplete { need: input.len() + 1 }) };
    if !matches!(sign, b'+' | b'-') {
        return Err(parse::unknown(input, 0, false));
    }
    let limits = ParseLimits {
        control_line_bytes_max: CONTROL_LINE_BYTES_MAX,
        payload_bytes_max: 0,
        headers: true,
    };
    let Some(line) = parse::find_line(input, OpKind::Info, 2, &limits)? else {
        return Ok(GatewayParsed::Incomplete { need: input.len() + 1 });
    };
    let account = trim(line.args);
    if account.is_empty() || account.iter().any(parse::is_blank) {
        return Err(bad_arguments("processGatewayAccountSub Parse Error", line.args));
    }
    let op = match sign {
        b'+' => GatewayOp::Account(account),
        _ => GatewayOp::NoAccount(account),
    };
    Ok(GatewayParsed::Op { op, used: line.used })
}

/// A command of an INFO that is not about the sender: another cluster is announced.
pub const GOSSIP: u8 = 1;
/// A command of an INFO: all plain interest in one account follows.
pub const ALL_INTEREST_BEGINS: u8 = 2;
/// A command of an INFO: all plain interest in one account is told, and counts from here on.
pub const ALL_INTEREST_IS_TOLD: u8 = 3;

/// The INFO of a server to one of another cluster, or to one of its own about another cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayInfo {
    /// The id of the running server.
    pub server_id: String,
    /// The server's configured name, else its id.
    pub server_name: String,
    /// The server's version.
    pub version: String,
    /// The level of the protocol that the server knows.
    pub proto: i32,
    /// The version of Go that the server was built with; empty if it was not.
    pub go: String,
    /// The address at which the server listens for other clusters.
    pub host: String,
    /// The port at which the server listens for other clusters.
    pub port: i32,
    /// Whether the server accepts HMSG.
    pub headers: bool,
    /// Whether a server that dials it needs a user.
    #[serde(skip_serializing_if = "is_default")]
    pub auth_required: bool,
    /// Whether a server that dials it needs TLS.
    #[serde(skip_serializing_if = "is_default")]
    pub tls_required: bool,
    /// Whether a server that dials it needs a certificate.
    #[serde(skip_serializing_if = "is_default")]
    pub tls_verify: bool,
    /// The server's largest payload, in bytes.
    pub max_payload: i64,
    /// The name of the cluster that the INFO is about.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: String,
    /// `host:port` of all servers of that cluster.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_urls: Vec<String>,
    /// `host:port` of the sender.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_url: String,
    /// Whether replies are mapped by the prefix `_GR_.`.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_nrp: bool,
    /// Whether all interest in every account is told at once, so that nothing is to be sent without
    /// interest.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_iom: bool,
    /// The command; 0 for an INFO of the sender about itself.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_cmd: u8,
    /// The account of the command, in base64.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_cmd_payload: String,
    /// Whether the server is a shardcast: it knows the mark of [`route::pass_on`].
    #[serde(skip_serializing_if = "is_default")]
    pub shardcast: bool,
}

impl GatewayInfo {
    /// Returns the account of the command; `None` if it names none.
    pub fn account(&self) -> Option<Vec<u8>> {
        let account = STANDARD.decode(&self.gateway_cmd_payload).ok()?;
        (!account.is_empty()).then_some(account)
    }
}

/// The CONNECT of a server that dials another cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayConnect {
    /// A field without meaning for the server.
    pub echo: bool,
    /// Whether every operation is answered.
    pub verbose: bool,
    /// A field without meaning for the server.
    pub pedantic: bool,
    /// Credentials: the user's name.
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    /// Credentials: the user's password.
    #[serde(skip_serializing_if = "is_default")]
    pub pass: String,
    /// Whether TLS is in use.
    pub tls_required: bool,
    /// A field without meaning for the server.
    pub headers: bool,
    /// The id of the dialling server.
    pub name: String,
    /// The field of a route, always empty.
    pub cluster: String,
    /// The name of the dialling server's cluster; empty from a client or a route.
    pub gateway: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and lists always have a JSON form")
}

/// Appends CONNECT.
pub fn connect(out: &mut Vec<u8>, connect: &GatewayConnect) {
    append(out, &[b"CONNECT ", json(connect).as_bytes(), b"\r\n"]);
}

/// Appends INFO.
pub fn info(out: &mut Vec<u8>, info: &GatewayInfo) {
    super::encode::info(out, json(info).as_bytes());
}

/// Appends an INFO with a command about an account; `cluster` is the sender's.
pub fn command(out: &mut Vec<u8>, cluster: &str, command: u8, account: &str) {
    let about = GatewayInfo {
        gateway: cluster.to_owned(),
        gateway_cmd: command,
        gateway_cmd_payload: STANDARD.encode(account),
        ..GatewayInfo::default()
    };
    info(out, &about);
}

/// Appends A-.
pub fn no_account(out: &mut Vec<u8>, account: &[u8]) {
    append(out, &[b"A- ", account, b"\r\n"]);
}

/// Characters of the hash of a cluster's name or a server's id.
const HASH_LEN: usize = 6;

const PREFIX: &[u8] = b"_GR_.";
/// The filter of all mapped subjects.
pub const MAPPED_REPLIES: &[u8] = b"_GR_.>";

/// Bytes of a mapped subject before the subject that it was made from.
const MAPPED_AT: usize = PREFIX.len() + 2 * (HASH_LEN + 1);

/// The hash of a cluster's name or of a server's id, as it stands in mapped subjects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct NameHash([u8; HASH_LEN]);

impl NameHash {
    /// The hash of `name`.
    pub fn of(name: &str) -> Self {
        Self(name_hash(name))
    }

    /// Returns the characters.
    pub fn text(&self) -> &[u8] {
        &self.0
    }

    fn read(text: &[u8]) -> Option<Self> {
        text.try_into().ok().map(Self)
    }
}

/// Returns the hash of a name in so many characters, digits and letters.
pub fn name_hash<const LEN: usize>(name: &str) -> [u8; LEN] {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digest = Sha256::digest(name.as_bytes());
    let mut hash = [b'0'; LEN];
    for (digit, byte) in hash.iter_mut().zip(digest) {
        *digit = DIGITS[usize::from(byte) % DIGITS.len()];
    }
    hash
}

/// A subject that says to which server of which cluster a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedSubject<'a> {
    /// The hash of the cluster's name.
    pub cluster: NameHash,
    /// The hash of the server's id.
    pub server: NameHash,
    /// The subject there.
    pub plain: &'a [u8],
}

/// Whether a subject says to which server of which cluster a message goes.
#[inline]
pub fn is_mapped(subject: &[u8]) -> bool {
    subject.len() > MAPPED_AT && subject.starts_with(PREFIX)
}

/// Takes a mapped subject apart; `None` if it is none.
pub fn split_mapped(subject: &[u8]) -> Option<MappedSubject<'_>> {
    is_mapped(subject).then_some(())?;
    let (cluster, server) = (PREFIX.len(), PREFIX.len() + HASH_LEN + 1);
    Some(MappedSubject {
        cluster: NameHash::read(subject.get(cluster..cluster + HASH_LEN)?)?,
        server: NameHash::read(subject.get(server..server + HASH_LEN)?)?,
        plain: &subject[MAPPED_AT..],
    })
}

/// Returns the subject that a mapped one was made from; other subjects stay.
pub fn plain_subject(subject: &[u8]) -> &[u8] {
    if is_mapped(subject) { &subject[MAPPED_AT..] } else { subject }
}

/// Returns the subject that brings a message to `subject` on that server of that cluster.
pub fn mapped_subject(cluster: NameHash, server: NameHash, subject: &[u8]) -> Vec<u8> {
    [PREFIX, cluster.text(), b".", server.text(), b".", subject].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_tcp_cuts_a_gateway_never_matters() {
        const SAMPLE: &[u8] = b"A- ACC\r\na+ \tACC \r\nRS+ $G a\r\nRMSG $G a 1\r\nx\r\nPING\r\n";
        let ops = |cut: usize| {
            let (mut at, mut end, mut ops) = (0, cut, Vec::new());
            loop {
                match parse(&SAMPLE[at..end], 100).expect("all are operations") {
                    GatewayParsed::Op { op, used } => {
                        ops.push(format!("{op:?}"));
                        at += used;
                    }
                    GatewayParsed::Incomplete { need } if end < SAMPLE.len() => {
                        assert!(need > end - at, "progress is asked for");
                        end = SAMPLE.len();
                    }
                    GatewayParsed::Incomplete { .. } => return ops,
                }
            }
        };
        let whole = ops(SAMPLE.len());
        assert_eq!(whole.len(), 5);
        (0..SAMPLE.len()).for_each(|cut| assert_eq!(ops(cut), whole, "cut at {cut}"));
    }

    #[test]
    fn what_no_gateway_may_send_is_an_error() {
        for wire in [
            &b"A+\r\n"[..],
            b"A- a b\r\n",
            b"AB x\r\n",
            b"LS+ o $G a\r\n",
            b"LMSG o $G a 0 0\r\n\r\n",
            b"PUB a 0\r\n\r\n",
            b"SUB a 1\r\n",
        ] {
            assert!(parse(wire, 100).is_err(), "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn hashes_are_those_of_nats_server() {
        assert_eq!(NameHash::of("A").text(), b"NUmM6c");
        let id = "NAO4PALA3GTLLUTJR5JNXTKBJDEEHNZC2YOCBDLABZVJWKL4UYJPXMEN";
        assert_eq!(NameHash::of(id).text(), b"oAsEj7");
    }

    #[test]
    fn a_mapped_subject_comes_apart_as_it_was_made_and_no_other_does() {
        let (cluster, server) = (NameHash::of("A"), NameHash::of("N"));
        let mapped = mapped_subject(cluster, server, b"_INBOX.a");
        assert_eq!(
            split_mapped(&mapped),
            Some(MappedSubject { cluster, server, plain: b"_INBOX.a" })
        );
        assert_eq!(plain_subject(&mapped), b"_INBOX.a");
        for subject in [&b"_GR_.NUmM6c.oAsEj7."[..], b"_GR_.a", b"_GR_", b"", b"_INBOX.a"] {
            assert_eq!(split_mapped(subject), None, "{}", subject.escape_ascii());
            assert_eq!(plain_subject(subject), subject);
        }
    }
}
