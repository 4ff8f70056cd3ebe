//! The wire between servers: parsing and rendering of a route's operations.
//!
//! Stateless like the client's side, and framed like it.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::encode::append;
use super::parse::{self, Line, bad_arguments, parse_number, trim};
use super::{Header, ParseLimits, Parsed, ProtoError, Publish, gateway};

/// Bytes in the arguments of one operation.
pub const CONTROL_LINE_BYTES_MAX: usize = 64 * 1024;

/// An operation of a peer, borrowed from the bytes it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteOp<'a> {
    /// CONNECT with its JSON text; see [`RouteConnect`].
    Connect(&'a [u8]),
    /// INFO with its JSON text; see [`RouteInfo`].
    Info(&'a [u8]),
    /// PING: to be answered with PONG.
    Ping,
    /// PONG: the answer to a PING of this server.
    Pong,
    /// RS+ or LS+: interest of the peer's clients, or of leaf nodes behind it; in a queue group
    /// with the number of its members.
    Interest(InterestEntry<'a>, Option<u32>),
    /// RS- or LS-: the end of interest of the peer's clients, or of leaf nodes behind it.
    NoInterest(InterestEntry<'a>),
    /// RMSG, HMSG or LMSG: a message.
    Message {
        /// The cluster of the leaf nodes that have sent the message, if they have.
        origin: Option<&'a [u8]>,
        /// The account's name; empty where the connection is for one account.
        account: &'a [u8],
        /// The names of the queue groups to serve, with blanks between them.
        queues: &'a [u8],
        /// The message.
        publish: Publish<'a>,
    },
    /// An operation without effect: `+OK`.
    Nothing,
}

/// An entry of a peer's remote interest, which RS+ and LS+ begin and RS- and LS- end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterestEntry<'a> {
    /// `[<origin>] [<account>] <subject> [<queue>]` as written: among entries with an origin, and
    /// among those without, equal keys are equal entries.
    pub key: &'a [u8],
    /// The cluster of the leaf nodes whose interest it is, if it is theirs: [`NO_CLUSTER`] for leaf
    /// nodes without one, and empty where the peer does not name it.
    pub origin: Option<&'a [u8]>,
    /// The account's name; empty where the connection is for one account.
    pub account: &'a [u8],
    /// The filter, unchecked.
    pub subject: &'a [u8],
    /// The queue group.
    pub queue: Option<&'a [u8]>,
}

/// The result of [`parse()`]; as [`Parsed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteParsed<'a> {
    /// A whole operation of `used` bytes.
    Op {
        /// The operation.
        op: RouteOp<'a>,
        /// Bytes of the operation.
        used: usize,
    },
    /// The beginning of an operation.
    Incomplete {
        /// The bytes to be shown to the next call, at least.
        need: usize,
    },
}

/// The name that stands for the cluster of leaf nodes without one; no cluster may have it.
pub const NO_CLUSTER: &str = "_";

/// Operations that differ from those of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteOpName {
    Message(MessageForm),
    Interest { of_leaves: bool },
    NoInterest { of_leaves: bool },
    Info,
}

/// The form of a message: with or without an origin, with or without a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageForm {
    Plain,
    WithHeader,
    /// A message with an origin and always the size of a header, which may be 0.
    OfLeaf,
}

/// Names of operations, likely ones first.
const NAMES: [(&[u8], RouteOpName); 8] = [
    (b"RMSG", RouteOpName::Message(MessageForm::Plain)),
    (b"HMSG", RouteOpName::Message(MessageForm::WithHeader)),
    (b"RS+", RouteOpName::Interest { of_leaves: false }),
    (b"RS-", RouteOpName::NoInterest { of_leaves: false }),
    (b"LMSG", RouteOpName::Message(MessageForm::OfLeaf)),
    (b"LS+", RouteOpName::Interest { of_leaves: true }),
    (b"LS-", RouteOpName::NoInterest { of_leaves: true }),
    (b"INFO", RouteOpName::Info),
];

/// Whether the operations of a connection name their account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountNaming {
    /// Operations that name their account.
    Named,
    /// Operations of a connection that is for one account only.
    Unnamed,
}

/// The form of a peer's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Whether the lines name accounts.
    pub accounts: AccountNaming,
    /// Whether LS- names the cluster that LS+ has named. Where it does not, the cluster is not part
    /// of an entry's key.
    pub origins: bool,
}

/// Reads the first operation of `input`. No message may be larger than `payload_bytes_max`.
///
/// # Errors
///
/// Returns an error whenever a peer breaks the rules of the protocol; nothing can be read behind
/// it.
pub fn parse(
    input: &[u8],
    payload_bytes_max: usize,
    form: Form,
) -> Result<RouteParsed<'_>, ProtoError> {
    // Interest that is read again, without a limit, may be longer than it came by the name of its
    // account.
    let control_line_bytes_max =
        if payload_bytes_max == usize::MAX { usize::MAX } else { CONTROL_LINE_BYTES_MAX };
    let limits = ParseLimits { control_line_bytes_max, payload_bytes_max, headers: true };
    parse_named(input, &NAMES, form, &limits)
}

/// Reads the first operation of `input`, of those of all connections or with one of these names.
pub(super) fn parse_named<'a>(
    input: &'a [u8],
    names: &[(&'static [u8], RouteOpName)],
    form: Form,
    limits: &ParseLimits,
) -> Result<RouteParsed<'a>, ProtoError> {
    let starts_with =
        |name: &[u8]| input.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    let Some((text, name)) = names.iter().find(|(text, _)| starts_with(text)).copied() else {
        return parse_common(input, names, limits);
    };
    let kind = if name == RouteOpName::Info { parse::OpKind::Info } else { parse::OpKind::Pub };
    let Some(line) = parse::find_line(input, kind, text.len(), limits)? else {
        return Ok(RouteParsed::Incomplete { need: input.len() + 1 });
    };
    let op = match name {
        RouteOpName::Message(kind) => return parse_message(&line, kind, form, limits),
        RouteOpName::Interest { of_leaves } => parse_interest(line.args, of_leaves, form)?,
        RouteOpName::NoInterest { of_leaves } => {
            let entry = parse_entry(line.args, of_leaves, form);
            let bad = || bad_arguments("processRemoteUnsub Parse Error", line.args);
            RouteOp::NoInterest(entry.ok_or_else(bad)?)
        }
        RouteOpName::Info => RouteOp::Info(trim(line.args)),
    };
    Ok(RouteParsed::Op { op, used: line.used })
}

/// Reads an operation that clients send, too; some of them are errors here.
fn parse_common<'a>(
    input: &'a [u8],
    names: &[(&'static [u8], RouteOpName)],
    limits: &ParseLimits,
) -> Result<RouteParsed<'a>, ProtoError> {
    let is_start =
        |name: &[u8]| input.len() < name.len() && name[..input.len()].eq_ignore_ascii_case(input);
    if names.iter().any(|(text, _)| is_start(text)) {
        return Ok(RouteParsed::Incomplete { need: input.len() + 1 });
    }
    match parse::parse(input, limits)? {
        Parsed::Incomplete { need } => Ok(RouteParsed::Incomplete { need }),
        Parsed::Op { op, used } => {
            let op = match op {
                super::Op::Connect(json) => RouteOp::Connect(json),
                super::Op::Ping => RouteOp::Ping,
                super::Op::Pong => RouteOp::Pong,
                super::Op::Nothing => RouteOp::Nothing,
                super::Op::Pub(_) | super::Op::Sub { .. } | super::Op::Unsub { .. } => {
                    return Err(parse::unknown(input, 0, false));
                }
            };
            Ok(RouteParsed::Op { op, used })
        }
    }
}

/// The arguments of a line one by one.
type LineWords<'a> = SmallVec<[&'a [u8]; 8]>;

fn words(args: &[u8]) -> LineWords<'_> {
    args.split(parse::is_blank).filter(|word| !word.is_empty()).collect()
}

/// Returns the place where a word of a line begins.
fn place(args: &[u8], word: &[u8]) -> usize {
    word.as_ptr() as usize - args.as_ptr() as usize
}

/// Splits off the account's name, which is empty where the lines have none.
fn take_account<'a, 'w>(
    words: &'w [&'a [u8]],
    accounts: AccountNaming,
) -> (&'a [u8], &'w [&'a [u8]]) {
    match (accounts, words) {
        (AccountNaming::Named, [account, rest @ ..]) => (account, rest),
        _ => (b"", words),
    }
}

fn parse_interest(args: &[u8], of_leaves: bool, form: Form) -> Result<RouteOp<'_>, ProtoError> {
    let bad = || bad_arguments("processRemoteSub Parse Error", args);
    let words = words(args);
    // The origin comes first, and is part of the key only where LS- names it, too.
    let (origin, key) = match words.first() {
        Some(origin) if of_leaves && !form.origins => {
            (1, trim(&args[place(args, origin) + origin.len()..]))
        }
        _ => (0, args),
    };
    let named = origin + usize::from(of_leaves && form.origins);
    let fixed = named + usize::from(form.accounts == AccountNaming::Named) + 1;
    let weight = match words.len().checked_sub(fixed) {
        Some(0) => None,
        Some(2) => words.last(),
        _ => return Err(bad()),
    };
    let key = weight.map_or(key, |weight| trim(&key[..key.len() - weight.len()]));
    let entry = parse_entry(key, of_leaves, form).ok_or_else(bad)?;
    // A word that is not a number counts as no members, as in nats-server.
    let members = weight.map(|weight| parse_number(weight).unwrap_or(0));
    Ok(RouteOp::Interest(entry, members.map(|all| u32::try_from(all).unwrap_or(u32::MAX))))
}

/// Splits [`InterestEntry::key`], of the peer's clients or of leaf nodes, into its parts.
pub fn parse_entry(key: &[u8], of_leaves: bool, form: Form) -> Option<InterestEntry<'_>> {
    let all = words(key);
    let (origin, rest) = match (of_leaves, form.origins) {
        (false, _) => (None, &all[..]),
        (true, false) => (Some(&key[..0]), &all[..]),
        (true, true) => {
            let (origin, rest) = all.split_first()?;
            (Some(*origin), rest)
        }
    };
    let (account, rest) = take_account(rest, form.accounts);
    let (subject, queue) = match *rest {
        [subject] => (subject, None),
        [subject, queue] => (subject, Some(queue)),
        _ => return None,
    };
    Some(InterestEntry { key, origin, account, subject, queue })
}

fn parse_message<'a>(
    line: &Line<'a>,
    kind: MessageForm,
    form: Form,
    limits: &ParseLimits,
) -> Result<RouteParsed<'a>, ProtoError> {
    let bad = |problem| bad_arguments(problem, line.args);
    let all = words(line.args);
    let sizes = if kind == MessageForm::Plain { 1 } else { 2 };
    let head = all.len().checked_sub(sizes).and_then(|len| all.split_at_checked(len));
    let (head, sizes) = head.ok_or_else(|| bad("processRoutedMsgArgs Parse Error"))?;
    let (origin, head) = match head {
        [origin, rest @ ..] if kind == MessageForm::OfLeaf => (Some(*origin), rest),
        _ => (None, head),
    };
    let (account, head) = take_account(head, form.accounts);
    let [subject, rest @ ..] = head else {
        return Err(bad("processRoutedMsgArgs Parse Error"));
    };
    let (reply, groups) = match rest {
        [] => (None, &[][..]),
        [reply] => (Some(*reply), &[][..]),
        [b"|", groups @ ..] => (None, groups),
        [b"+", reply, groups @ ..] => (Some(*reply), groups),
        _ => return Err(bad("processRoutedMsgArgs Bad or Missing Reply Indicator")),
    };
    let size_text = sizes[sizes.len() - 1];
    let size =
        parse_number(size_text).ok_or_else(|| bad("processRoutedMsgArgs Bad or Missing Size"))?;
    let mut header = None;
    if kind != MessageForm::Plain {
        let len = parse_number(sizes[0])
            .ok_or_else(|| bad("processRoutedHeaderMsgArgs Bad or Missing Header Size"))?;
        if len > size {
            return Err(bad("processRoutedHeaderMsgArgs Header Size larger then TotalSize"));
        }
        header = (len > 0).then_some(Header { len, text: sizes[0] });
    }
    let publish = Publish { subject, reply, header, size_text, payload: b"", tail: None };
    // A receiver is told of neither a mark before the reply, nor queue groups, nor a size of 0.
    let is_plain = rest.len() <= 1 && header.is_some() == (kind != MessageForm::Plain);
    let is_passed_on = is_plain && line.is_canonical(&all);
    let tail_start = is_passed_on.then(|| place(line.args, subject) + subject.len() + 1);
    let queues = match groups {
        [] => &[][..],
        [first, ..] => trim(&line.args[place(line.args, first)..place(line.args, sizes[0])]),
    };
    let parsed = line.parse_payload(publish, size, tail_start, limits)?;
    Ok(match parsed {
        Parsed::Op { op: super::Op::Pub(publish), used } => {
            RouteParsed::Op { op: RouteOp::Message { origin, account, queues, publish }, used }
        }
        Parsed::Op { .. } => unreachable!("a payload belongs to a message"),
        Parsed::Incomplete { need } => RouteParsed::Incomplete { need },
    })
}

/// Returns the place in `reply` of the subject that a message of JetStream was published to: the
/// reply is `$JS.ACK.<at least seven tokens>@<that subject>`.
pub fn stored_subject(reply: &[u8]) -> Option<usize> {
    const PREFIX: &[u8] = b"$JS.ACK.";
    const DOTS: usize = 8;
    reply.starts_with(PREFIX).then_some(())?;
    let eighth = memchr::memchr_iter(b'.', reply).nth(DOTS - 1)?;
    let at = eighth + 1 + memchr::memchr(b'@', &reply[eighth + 1..])?;
    (at + 1 < reply.len()).then_some(at + 1)
}

/// Whether receivers see a message in another form than it has between servers: it was stored, and
/// is sent to another subject than it was published to, or its reply names its cluster.
pub fn is_stored(message: &Publish<'_>) -> bool {
    let is_stored = |reply| gateway::is_mapped(reply) || stored_subject(reply).is_some();
    message.reply.is_some_and(is_stored)
}

/// Returns a stored message as its receivers see it: with the subject that it was published to, and
/// a reply that names no cluster.
pub fn delivered<'a>(message: &Publish<'a>) -> Publish<'a> {
    let Some(reply) = message.reply else { return *message };
    let plain = gateway::plain_subject(reply);
    match stored_subject(plain) {
        Some(at) => {
            Publish { subject: &plain[at..], reply: Some(&plain[..at - 1]), tail: None, ..*message }
        }
        None if plain.len() < reply.len() => Publish { reply: Some(plain), tail: None, ..*message },
        None => *message,
    }
}

/// Returns the names in [`RouteOp::Message::queues`].
pub fn queue_names(queues: &[u8]) -> impl Iterator<Item = &[u8]> {
    queues.split(parse::is_blank).filter(|name| !name.is_empty())
}

/// A message for queue groups alone: all other receivers have had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedOn {
    /// By its first server, which had no member left: one more server may pass it on.
    ByFirst,
    /// By another one: it goes no further.
    ByOther,
}

/// Marks the names of queue groups by repeating the first one, which other servers than shardcast
/// ignore.
pub fn pass_on(queues: &mut SmallVec<[&[u8]; 4]>, how: PassedOn) {
    if let Some(first) = queues.first().copied() {
        let times = match how {
            PassedOn::ByFirst => 2,
            PassedOn::ByOther => 1,
        };
        queues.insert_many(0, std::iter::repeat_n(first, times));
    }
}

/// Returns the mark of [`pass_on`] on the names; `None` without one.
pub fn passed_on(queues: &[u8]) -> Option<PassedOn> {
    let mut names = queue_names(queues);
    let first = names.next()?;
    match names.take(2).take_while(|name| *name == first).count() {
        0 => None,
        1 => Some(PassedOn::ByOther),
        _ => Some(PassedOn::ByFirst),
    }
}

/// Reads the JSON text of INFO or CONNECT; `None` if it is not an object of the type.
pub fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    // A list would be taken for the fields in their order.
    json.starts_with(b"{").then(|| serde_json::from_slice(json).ok()).flatten()
}

/// Returns the blank behind an account: nothing where it is not named.
fn blank(account: &[u8]) -> &'static [u8] {
    if account.is_empty() { b"" } else { b" " }
}

/// Appends RS+; with a queue group also the number of its members on this server. An account
/// without a name is not written, here and in the following functions.
pub fn interest(out: &mut Vec<u8>, account: &[u8], subject: &[u8], queue: Option<(&[u8], u32)>) {
    append(out, &[b"RS+ ", account, blank(account)]);
    wanted(out, subject, queue);
}

/// Appends LS+ for leaf nodes of a cluster.
pub fn interest_of_leaves(
    out: &mut Vec<u8>,
    origin: &[u8],
    account: &[u8],
    subject: &[u8],
    queue: Option<(&[u8], u32)>,
) {
    append(out, &[b"LS+ ", origin, b" ", account, blank(account)]);
    wanted(out, subject, queue);
}

/// Appends LS- for leaf nodes of a cluster, which is empty for a peer that does not take it.
pub fn no_interest_of_leaves(
    out: &mut Vec<u8>,
    origin: &[u8],
    account: &[u8],
    subject: &[u8],
    queue: Option<&[u8]>,
) {
    append(out, &[b"LS- ", origin, blank(origin), account, blank(account)]);
    unwanted(out, subject, queue);
}

/// Appends the end of a line that begins interest.
pub(super) fn wanted(out: &mut Vec<u8>, subject: &[u8], queue: Option<(&[u8], u32)>) {
    out.extend_from_slice(subject);
    if let Some((queue, members)) = queue {
        let mut number = itoa::Buffer::new();
        append(out, &[b" ", queue, b" ", number.format(members).as_bytes()]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends RS-.
pub fn no_interest(out: &mut Vec<u8>, account: &[u8], subject: &[u8], queue: Option<&[u8]>) {
    append(out, &[b"RS- ", account, blank(account)]);
    unwanted(out, subject, queue);
}

/// Appends the end of a line that ends interest.
pub(super) fn unwanted(out: &mut Vec<u8>, subject: &[u8], queue: Option<&[u8]>) {
    out.extend_from_slice(subject);
    if let Some(queue) = queue {
        append(out, &[b" ", queue]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends CONNECT.
pub fn connect(out: &mut Vec<u8>, connect: &RouteConnect) {
    append(out, &[b"CONNECT ", json(connect).as_bytes(), b"\r\n"]);
}

/// Appends INFO.
pub fn info(out: &mut Vec<u8>, info: &RouteInfo) {
    super::encode::info(out, json(info).as_bytes());
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and lists always have a JSON form")
}

/// The words of a message before its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsgHead<'a> {
    /// The head on a route, in this account; it is empty where the route is for it alone.
    Route(&'a [u8]),
    /// The head on a route for a message of leaf nodes of a cluster.
    OfLeaves {
        /// The cluster's name.
        origin: &'a [u8],
        /// The account.
        account: &'a [u8],
    },
    /// The head on a leaf connection.
    Leaf,
}

/// Appends the part of a message for no queue group before [`Publish::tail`].
pub fn msg_prefix(out: &mut Vec<u8>, headers: bool, head: MsgHead<'_>, subject: &[u8]) {
    match head {
        MsgHead::Route(account) => {
            let name: &[u8] = if headers { b"HMSG " } else { b"RMSG " };
            append(out, &[name, account, blank(account), subject, b" "]);
        }
        MsgHead::OfLeaves { origin, account } => {
            append(out, &[b"LMSG ", origin, b" ", account, blank(account), subject, b" "]);
        }
        MsgHead::Leaf => {
            let name: &[u8] = if headers { b"HMSG " } else { b"LMSG " };
            append(out, &[name, subject, b" "]);
        }
    }
}

/// Appends a whole RMSG, LMSG or HMSG for a peer with or without `headers`; `queues` are the groups
/// of which a member there gets it.
pub fn msg(
    out: &mut Vec<u8>,
    head: MsgHead<'_>,
    message: &Publish<'_>,
    queues: &[&[u8]],
    headers: bool,
) {
    let header = message.header.filter(|_| headers);
    msg_prefix(out, header.is_some(), head, message.subject);
    let stripped = message.header.is_some() && !headers;
    // The size of a header is written there even if it has none.
    let is_of_leaves = matches!(head, MsgHead::OfLeaves { .. });
    if let Some(tail) = message.tail
        && !stripped
        && queues.is_empty()
        && (!is_of_leaves || header.is_some())
    {
        out.extend_from_slice(tail);
        return;
    }
    match (queues, message.reply) {
        ([], Some(reply)) => append(out, &[reply, b" "]),
        ([], None) => {}
        (_, Some(reply)) => append(out, &[b"+ ", reply, b" "]),
        (_, None) => out.extend_from_slice(b"| "),
    }
    queues.iter().for_each(|queue| append(out, &[queue, b" "]));
    match header {
        Some(header) => append(out, &[header.text, b" "]),
        None if is_of_leaves => out.extend_from_slice(b"0 "),
        None => {}
    }
    if stripped {
        let body = message.body();
        let mut number = itoa::Buffer::new();
        append(out, &[number.format(body.len()).as_bytes(), b"\r\n", body, b"\r\n"]);
    } else {
        append(out, &[message.size_text, b"\r\n", message.payload, b"\r\n"]);
    }
}

/// The INFO of a server to another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteInfo {
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
    /// The address at which the server listens for routes.
    pub host: String,
    /// The port at which the server listens for routes.
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
    /// Whether the server runs JetStream.
    #[serde(skip_serializing_if = "is_default")]
    pub jetstream: bool,
    /// A nonce that the dialling server could sign; none does.
    #[serde(skip_serializing_if = "is_default")]
    pub nonce: String,
    /// `nats-route://host:port/`, where other servers may dial this one.
    #[serde(skip_serializing_if = "is_default")]
    pub ip: String,
    /// The name of the server's cluster.
    #[serde(skip_serializing_if = "is_default")]
    pub cluster: String,
    /// Whether the cluster's name was made up.
    #[serde(skip_serializing_if = "is_default")]
    pub cluster_dynamic: bool,
    /// `host:port` of the server's client ports.
    #[serde(skip_serializing_if = "is_default")]
    pub connect_urls: Vec<String>,
    /// `host:port` of the server's client ports for WebSocket.
    #[serde(skip_serializing_if = "is_default")]
    pub ws_connect_urls: Vec<String>,
    /// `host:port` of the server's port for leaf nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub leafnode_urls: Vec<String>,
    /// Whether the server is about to end.
    #[serde(skip_serializing_if = "is_default")]
    pub ldm: bool,
    /// Whether the receiver may pass this INFO on.
    #[serde(skip_serializing_if = "is_default")]
    pub gossip_mode: u8,
    /// The account of a route that is for one account only.
    #[serde(skip_serializing_if = "is_default")]
    pub route_account: String,
    /// Routes between the two servers; absent without pooling.
    #[serde(skip_serializing_if = "is_default")]
    pub route_pool_size: i32,
    /// The index of this route in the pool; only the dialling server sends it.
    #[serde(skip_serializing_if = "is_default")]
    pub route_pool_idx: i64,
    /// The server's mode of compression.
    #[serde(skip_serializing_if = "is_default")]
    pub compression: String,
    /// Whether the server accepts LS+ and LMSG, each with an origin.
    #[serde(skip_serializing_if = "is_default")]
    pub lnoc: bool,
    /// Whether the server accepts LS- with an origin.
    #[serde(skip_serializing_if = "is_default")]
    pub lnocu: bool,
    /// Whether the server accepts LS+, LS- and LMSG of leaf nodes without a cluster.
    #[serde(skip_serializing_if = "is_default")]
    pub ln: bool,
    /// The interest of its clients that the server announces.
    #[serde(skip_serializing_if = "is_default")]
    pub import: Option<Permitted>,
    /// The interest of others that the server accepts.
    #[serde(skip_serializing_if = "is_default")]
    pub export: Option<Permitted>,
    /// `host:port` where other clusters reach the server.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_url: String,
    /// The name of another cluster, which the INFO announces.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: String,
    /// The addresses of that cluster's servers.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_urls: Vec<String>,
    /// The command about that cluster; 0 for an INFO about the sender.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway_cmd: u8,
    /// The number of the connection; only if a port for clients or leaf nodes was dialled.
    #[serde(skip_serializing_if = "is_default")]
    pub client_id: u64,
    /// Whether the server is a shardcast: of two routes between two of these one is given up, and
    /// it knows the mark of [`pass_on`].
    #[serde(skip_serializing_if = "is_default")]
    pub shardcast: bool,
}

/// Permissions of a server's routes, in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Permitted {
    /// Filters of allowed subjects; empty allows all.
    #[serde(skip_serializing_if = "is_default")]
    pub allow: Vec<String>,
    /// Filters of denied subjects.
    #[serde(skip_serializing_if = "is_default")]
    pub deny: Vec<String>,
}

/// The CONNECT of a server that dials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteConnect {
    /// Whether queue messages of a route may come back over it.
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
    /// Whether the dialling server accepts HMSG.
    pub headers: bool,
    /// The id of the dialling server.
    pub name: String,
    /// The name of its cluster.
    pub cluster: String,
    /// Whether the cluster's name was made up.
    #[serde(rename = "cluster_dynamic", skip_serializing_if = "is_default")]
    pub dynamic: bool,
    /// The language of a client that has dialled the port; absent from servers.
    #[serde(skip_serializing_if = "is_default")]
    pub lang: String,
    /// The name of a gateway that has dialled the port; absent from other servers.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: String,
    /// The field of this name in [`RouteInfo`] decides.
    pub lnoc: bool,
    /// The field of this name in [`RouteInfo`] decides.
    pub ln: bool,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode;
    use super::*;

    /// All operations in their usual writing, and some in an unusual one.
    const SAMPLE: &[u8] =
        b"CONNECT {\"name\":\"X\",\"cluster\":\"C\"}\r\nINFO {\"server_id\":\"X\"}\r\n\
        PING\r\nRS+ $G t.a\r\nRS+ $G t.q  g1 3\r\nrs- $G\tt.a\r\nRS- $G t.q g1\r\nRMSG $G t.a 5\r\n\
        hello\r\nRMSG $G t.a 0\r\n\r\nRMSG $G t.b rep.1 5\r\nhello\r\nRMSG $G t.q | g1 g2 5\r\n\
        hello\r\nRMSG $G t.q + rep.2 g1 g2 5\r\nhello\r\nHMSG $G t.a 12 14\r\nNATS/1.0\r\n\r\nhi\
        \r\nHMSG $G t.q + rep.3 g1 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPONG\r\n+OK\r\n\
        LS+ leaves $G t.a\r\nls+ _ $G t.q g1 2\r\nLS- leaves $G t.a\r\n\
        LMSG leaves $G t.a 0 5\r\nhello\r\nlmsg leaves $G t.q + rep.4 g1 12 14\r\nNATS/1.0\r\n\
        \r\nhi\r\n";

    const NAMED: Form = Form { accounts: AccountNaming::Named, origins: true };
    const UNNAMED: Form = Form { accounts: AccountNaming::Unnamed, origins: true };

    /// The operations of `wire`, when only its first `cut` bytes are there at first.
    fn ops(wire: &[u8], cut: usize) -> Vec<String> {
        let (mut ops, mut at, mut end, mut need) = (Vec::new(), 0, cut, 0);
        loop {
            match parse(&wire[at..end], 1000, NAMED) {
                Ok(RouteParsed::Op { op, used }) => {
                    ops.push(format!("{op:?}"));
                    at += used;
                    need = 0;
                }
                Ok(RouteParsed::Incomplete { need: more }) if end < wire.len() => {
                    assert!(more > end - at && more > need, "progress is asked for");
                    (need, end) = (more, wire.len());
                }
                Ok(RouteParsed::Incomplete { .. }) => return ops,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn what_has_been_read_can_be_read_again_with_the_name_of_its_account() {
        let subject = "s".repeat(CONTROL_LINE_BYTES_MAX - 2);
        let wire = format!("RMSG {subject} 0\r\n\r\n");
        let read = parse(wire.as_bytes(), 1024, UNNAMED);
        let Ok(RouteParsed::Op { op: RouteOp::Message { publish, .. }, .. }) = read else {
            panic!("{read:?}")
        };
        let mut again = Vec::new();
        msg(&mut again, MsgHead::Route(b"-"), &publish, &[], true);
        let read = parse(&again, usize::MAX, NAMED);
        let Ok(RouteParsed::Op { used, .. }) = read else { panic!("{read:?}") };
        assert_eq!(used, again.len());
    }

    #[test]
    fn where_tcp_cuts_a_route_never_matters() {
        let whole = ops(SAMPLE, SAMPLE.len());
        assert_eq!(whole.len(), 21);
        for cut in 0..SAMPLE.len() {
            assert_eq!(ops(SAMPLE, cut), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_message_is_written_as_it_was_read() {
        for wire in [
            &b"RMSG $G a 2\r\nhi\r\n"[..],
            b"RMSG $G a r 2\r\nhi\r\n",
            b"RMSG $G a | g1 g2 2\r\nhi\r\n",
            b"RMSG $G a + r g1 2\r\nhi\r\n",
            b"HMSG $G a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            b"HMSG $G a + r g1 g2 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        ] {
            let Ok(RouteParsed::Op { op, used }) = parse(wire, 1000, NAMED) else {
                panic!("{wire:?}")
            };
            let RouteOp::Message { account, queues, publish, .. } = op else { panic!("{op:?}") };
            assert_eq!(used, wire.len());
            let queues: Vec<_> = queue_names(queues).collect();
            let mut out = Vec::new();
            msg(&mut out, MsgHead::Route(account), &publish, &queues, true);
            assert_eq!(out, wire);
        }
    }

    #[test]
    fn the_mark_of_a_reply_before_groups_reaches_no_client_even_if_there_are_no_groups() {
        let wire = b"RMSG $G a + r 2\r\nhi\r\n";
        let parsed = parse(wire, 1000, NAMED);
        let Ok(RouteParsed::Op { op: RouteOp::Message { publish, .. }, .. }) = parsed else {
            panic!("{parsed:?}")
        };
        let mut out = Vec::new();
        encode::msg(&mut out, &publish, b"1", true);
        assert_eq!(out, b"MSG a 1 r 2\r\nhi\r\n");
    }

    #[test]
    fn where_the_account_goes_without_saying_it_is_neither_read_nor_written() {
        for wire in [
            &b"RMSG a 2\r\nhi\r\n"[..],
            b"RMSG a r 2\r\nhi\r\n",
            b"RMSG a | g1 g2 2\r\nhi\r\n",
            b"HMSG a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        ] {
            let parsed = parse(wire, 1000, UNNAMED);
            let Ok(RouteParsed::Op { op, used }) = parsed else { panic!("{parsed:?}") };
            let RouteOp::Message { account, queues, publish, .. } = op else { panic!("{op:?}") };
            assert_eq!((used, account, publish.subject), (wire.len(), &b""[..], &b"a"[..]));
            let queues: Vec<_> = queue_names(queues).collect();
            let mut out = Vec::new();
            msg(&mut out, MsgHead::Route(account), &publish, &queues, true);
            assert_eq!(out, wire);
        }
        let (mut out, entry) = (Vec::new(), &b"RS+ a q 3\r\n"[..]);
        let parsed = parse(entry, 1000, UNNAMED);
        let Ok(RouteParsed::Op { op, .. }) = parsed else { panic!("{parsed:?}") };
        let RouteOp::Interest(InterestEntry { account, subject, queue, key, .. }, members) = op
        else {
            panic!("{op:?}")
        };
        assert_eq!((key, members), (&b"a q"[..], Some(3)));
        interest(&mut out, account, subject, queue.zip(members));
        assert_eq!(out, entry);
        assert!(parse(b"RS+ A a q 3\r\n", 1000, UNNAMED).is_err());
    }

    /// A line of these words, and the payload behind it.
    fn written(name: &str, words: &[&str], size: usize) -> Vec<u8> {
        let mut wire = format!("{name} {}\r\n", words.join(" ")).into_bytes();
        wire.extend(std::iter::repeat_n(b'x', size));
        wire.extend_from_slice(b"\r\n");
        wire
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn whatever_a_peer_sends_reaches_clients_as_one_line_and_a_payload(
            name in prop::sample::select(&["RMSG", "HMSG", "LMSG"]),
            words in prop::collection::vec(
                prop::sample::select(&["A", "s", "|", "+", "g", "0", "2", "05", "", "\t", "5\r"]),
                0..8,
            ),
            is_named: bool,
            headers: bool,
        ) {
            let form = if is_named { NAMED } else { UNNAMED };
            for size in [0, 2, 5] {
                let wire = written(name, &words, size);
                let Ok(RouteParsed::Op { op: RouteOp::Message { publish, .. }, used }) =
                    parse(&wire, 1000, form)
                else {
                    continue;
                };
                prop_assert_eq!(used, wire.len());
                let mut out = Vec::new();
                encode::msg(&mut out, &publish, b"sid", headers);
                let end = out.windows(2).position(|two| two == b"\r\n").expect("a line");
                let (line, payload) = (&out[..end], &out[end + 2..]);
                let has_header = publish.header.is_some() && headers;
                let mut wanted = vec![publish.subject, b"sid"];
                wanted.insert(0, if has_header { b"HMSG" } else { b"MSG" });
                wanted.extend(publish.reply);
                let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
                let sizes = words.len() - wanted.len();
                prop_assert_eq!(&words[..wanted.len()], &wanted[..]);
                prop_assert_eq!(sizes, 1 + usize::from(has_header));
                let number = |word: &[u8]| parse_number(word).expect("a number");
                let size = number(words[words.len() - 1]);
                prop_assert!(number(words[wanted.len()]) <= size);
                prop_assert_eq!(payload.len(), size + 2);
            }
        }
    }

    #[test]
    fn interest_of_leaf_nodes_is_known_by_whose_it_is_where_the_peer_names_that() {
        let of_old = Form { origins: false, ..NAMED };
        let key = |wire: &'static [u8], form| match parse(wire, 0, form) {
            Ok(RouteParsed::Op { op: RouteOp::Interest(entry, _), .. })
            | Ok(RouteParsed::Op { op: RouteOp::NoInterest(entry), .. }) => {
                assert_eq!((entry.account, entry.subject), (&b"A"[..], &b"s"[..]));
                (entry.key, entry.origin, entry.queue)
            }
            other => panic!("{other:?}"),
        };
        let own = (&b"A s"[..], None, None);
        let theirs = (&b"o A s"[..], Some(&b"o"[..]), None);
        assert_eq!(key(b"RS+ A s\r\n", NAMED), own);
        assert_eq!(key(b"LS+ o A s\r\n", NAMED), theirs);
        assert_eq!(key(b"LS- o A s\r\n", NAMED), theirs);
        assert_eq!(parse_entry(b"o A s", true, NAMED).unwrap().origin, Some(&b"o"[..]));
        let unnamed = (&b"A s q"[..], Some(&b""[..]), Some(&b"q"[..]));
        assert_eq!(key(b"LS+ o A s q 3\r\n", of_old), unnamed);
        assert_eq!(key(b"LS- A s q\r\n", of_old), unnamed);
        for wire in [&b"LS+ o A\r\n"[..], b"LS- o A s q r\r\n", b"LS+\r\n", b"LMSG o A 0 0\r\n\r\n"]
        {
            assert!(parse(wire, 0, NAMED).is_err(), "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn a_stored_message_has_the_subject_it_was_published_to() {
        let publish = |reply| Publish {
            subject: b"inbox",
            reply: Some(reply),
            header: None,
            size_text: b"0",
            payload: b"",
            tail: None,
        };
        let stored = publish(b"$JS.ACK.S.P.1.1.1.179.0@s.one");
        let shown = delivered(&stored);
        assert!(is_stored(&stored));
        assert_eq!(shown.subject, b"s.one");
        assert_eq!(shown.reply, Some(&b"$JS.ACK.S.P.1.1.1.179.0"[..]));
        for reply in [
            &b"$JS.ACK.S.P.1.1.1.179.0"[..],
            b"$JS.ACK.S.P.1.1.1@x",
            b"$JS.ACK.S.P.1.1.1.179.0@",
            b"a.S.P.1.1.1.179.0.1@x",
        ] {
            assert_eq!(delivered(&publish(reply)), publish(reply));
        }
    }

    #[test]
    fn a_peer_without_headers_gets_the_body_alone() {
        let wire = b"HMSG $G a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        let Ok(RouteParsed::Op { op: RouteOp::Message { publish, .. }, .. }) =
            parse(wire, 1000, NAMED)
        else {
            panic!("it is a message")
        };
        let mut out = Vec::new();
        msg(&mut out, MsgHead::Route(b"A"), &publish, &[], false);
        assert_eq!(out, b"RMSG A a 2\r\nhi\r\n");
    }

    #[test]
    fn what_no_peer_may_send_is_an_error() {
        for wire in [
            &b"RS+ $G a q\r\n"[..],
            b"RS+ $G\r\n",
            b"RS- $G\r\n",
            b"RMSG $G 5\r\n",
            b"RMSG $G a r g1 5\r\nhello\r\n",
            b"RMSG $G a x\r\n",
            b"RMSG $G a 5\r\nhelloXX",
            b"HMSG $G a 7 5\r\nhello\r\n",
            b"RMSG $G a 1001\r\n",
            b"MSG a 1 5\r\n",
            b"\r\n",
            b"PUB a 1\r\nx\r\n",
            b"-ERR 'x'\r\n",
        ] {
            assert!(parse(wire, 1000, NAMED).is_err(), "{}", String::from_utf8_lossy(wire));
        }
        let long = [b"RS+ $G ".to_vec(), vec![b'a'; CONTROL_LINE_BYTES_MAX]].concat();
        assert_eq!(parse(&long, 1000, NAMED), Err(ProtoError::ControlLineTooLong));
    }

    #[test]
    fn a_weight_is_no_part_of_the_key_of_an_entry() {
        let entry = |wire: &'static [u8]| match parse(wire, 0, NAMED) {
            Ok(RouteParsed::Op { op: RouteOp::Interest(entry, weight), .. }) => (entry.key, weight),
            other => panic!("{other:?}"),
        };
        assert_eq!(entry(b"RS+ $G a q 12\r\n"), (&b"$G a q"[..], Some(12)));
        assert_eq!(entry(b"RS+ $G a\r\n"), (&b"$G a"[..], None));
        assert_eq!(entry(b"RS+ $G a q -1\r\n"), (&b"$G a q"[..], Some(0)));
    }
}
