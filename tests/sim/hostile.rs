//! Clients and another server that mean harm: whatever they send, nothing is asserted, whoever
//! else is there hears nothing but the protocol, and nobody makes the server publish where it may
//! not publish itself.
//!
//! Some clients may not publish to `secret.>`, nor to a service that is imported as `closed`, and
//! those who may never do: so nothing may ever arrive there.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::LazyLock;

use shardcast::cluster::PoolPart;
use shardcast::config::{self, Options, args};
use shardcast::engine::{
    ConnId, Engine, Identity, NewRoute, Output, Peer, Record, RouteNotice, RouteOrder, Settings,
    ShardId,
};

use shardcast::proto::route::{self, AccountNaming, Form, RouteOp, RouteParsed};

use super::wire::{self, Heard};

const CONFIG: &str = r#"
    accounts {
        A {
            users: [
                {user: free, password: x}
                {user: limited, password: x, permissions: {
                    publish: {deny: ["secret.>", "closed"]}
                }}
                {user: answers, password: x, permissions: {
                    publish: "tick", allow_responses: true
                }}
            ]
            exports: [{stream: "st.>"}, {service: "asvc", allow_trace: true}]
            imports: [
                {service: {account: B, subject: "svc"}, to: "open"}
                {service: {account: B, subject: "closed.svc"}, to: "closed"}
            ]
            mappings: {
                "m.closed": "secret.m", "m.*": "{{split(1,-)}}.{{random(9)}}", "lost": []
                "w.>": [{dest: "tick.>", weight: 40%}, {dest: "st.>", weight: 40%}]
            }
            msg_trace: {dest: secret.rule, sampling: 50}
        }
        B {
            users: [{user: b, password: x}]
            exports: [{service: "svc", allow_trace: true}, {service: "closed.svc"}]
            imports: [
                {stream: {account: A, subject: "st.>"}}
                {service: {account: A, subject: "asvc"}}
            ]
        }
        SYS { users: [{user: sys, password: x}] }
    }
    system_account: SYS
    overflow { "st.>": conflate }
"#;

static OPTIONS: LazyLock<Options> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("shardcast-hostile-{}.conf", std::process::id()));
    std::fs::write(&path, CONFIG).expect("the temporary directory takes a file");
    let args = ["-c".to_owned(), path.display().to_string()];
    let Ok(args::Command::Serve(args)) = args::parse(args) else { panic!("it is a command") };
    let options = config::load(&args).unwrap_or_else(|error| panic!("{error}"));
    std::fs::remove_file(&path).ok();
    options
});

/// Who there is; the first is trusted, and does only what is in order.
const USERS: [&str; 5] = ["free", "limited", "answers", "b", "sys"];
const CLIENTS_MAX: usize = 8;
const OPS_MAX: usize = 300;

const SUBJECTS: [&str; 30] = [
    "tick",
    "tick",
    "ask",
    "st.a",
    "open",
    "asvc",
    "svc",
    "m.a-b",
    "m.--",
    "m.x",
    "w.a.b",
    "lost",
    "secret.x",
    "closed",
    "m.closed",
    "_R_.x",
    "_GR_.a",
    "$NRG.a",
    "$SYS.REQ.USER.INFO",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.ACCOUNT.A.CONNZ",
    "$JS.API.INFO",
    "a..b",
    ".",
    "*",
    ">",
    "a\u{b}b",
    "\u{1}",
    "\u{85}\u{a0}",
    "tick.\u{0}",
];
const FILTERS: [&str; 10] =
    ["tick", ">", "*", "*.*", "_R_.>", "st.*", "svc", "a\u{c}b", "x.>.y", "\u{0}"];
const REPLIES: [&str; 9] = [
    "",
    "",
    "inbox.1",
    "tick",
    "_R_.NODE.000000000000000000",
    "$JS.ACK.a.b.c.1.1.1.1@secret.x",
    "*",
    "\u{7f}..",
    "\u{1}",
];
const HEADERS: [&str; 26] = [
    "",
    "X: y",
    "Nats-Trace-Dest: tick",
    "Nats-Trace-Dest: a b c d",
    "Nats-Trace-Dest: a\tb",
    "Nats-Trace-Dest: a\rb",
    "Nats-Trace-Dest: a\nb",
    "Nats-Trace-Dest: secret.x",
    "Nats-Trace-Dest: closed",
    "Nats-Trace-Dest: open",
    "Nats-Trace-Dest: m.closed",
    "Nats-Trace-Dest: *",
    "Nats-Trace-Dest: a..b",
    "Nats-Trace-Dest: _R_.x",
    "Nats-Trace-Dest: $SYS.REQ.USER.INFO",
    "Nats-Trace-Dest: \u{0}",
    "Nats-Trace-Dest: \u{b}",
    "Nats-Trace-Dest: trace disabled",
    "Nats-Trace-Only: true",
    "Nats-Trace-Only: 1",
    "Nats-Trace-Hop: 4294967295.1",
    "Nats-Trace-Origin-Account: Q",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "Nats-Request-Info: {}",
    ":",
    "\r\n\r\nNATS/1.0",
];
const NUMBERS: [&str; 9] =
    ["0", "1", "007", "999999999", "9999999999", "18446744073709551616", "-1", "+1", "1e3"];

/// Clusters of leaf nodes behind other servers.
const ORIGINS: [&str; 4] = ["leaves", "others", "_", "C"];

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn next(&mut self) -> usize {
        usize::from(self.byte())
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.next() % list.len()]
    }
}

struct Client {
    user: &'static str,
    shard: usize,
    id: ConnId,
    /// It is another server.
    is_route: bool,
    is_open: bool,
    heard: Vec<u8>,
}

struct World {
    engines: Vec<Engine>,
    lanes: Vec<Vec<VecDeque<Record>>>,
    clients: Vec<Client>,
    /// The generation of each slot.
    generations: Vec<u32>,
    now: u64,
    heard: u64,
}

/// Runs what `bytes` stand for: any bytes are a script. Returns how many messages were heard.
pub(crate) fn run_script(bytes: &[u8]) -> u64 {
    let mut script = Script(bytes);
    let mut world = World::new(&mut script);
    for _ in 0..OPS_MAX {
        if script.0.is_empty() {
            break;
        }
        world.step(&mut script);
        world.settle();
        world.listen();
    }
    world.heard
}

/// Runs what `seed` stands for.
#[allow(dead_code, reason = "the fuzz target comes with bytes of its own")]
pub(crate) fn run_seed(seed: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let bytes: Vec<u8> = (0..rng.usize(60..900)).map(|_| rng.u8(..)).collect();
    run_script(&bytes)
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let settings = Rc::new(Settings::new(&OPTIONS, &Identity::default(), usize::MAX));
        let shards = script.next() % 3 + 1;
        let engine = |shard| {
            let id = ShardId(u8::try_from(shard).expect("few shards"));
            let mut engine = Engine::new(id, shards, Rc::clone(&settings), shard as u64);
            engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
            engine
        };
        let lanes = || (0..shards).map(|_| VecDeque::new()).collect();
        let mut world = Self {
            engines: (0..shards).map(engine).collect(),
            lanes: (0..shards).map(|_| lanes()).collect(),
            clients: Vec::new(),
            generations: Vec::new(),
            now: 0,
            heard: 0,
        };
        // Each of them at least once, and most of the others are servers.
        let more = script.next() % (CLIENTS_MAX - USERS.len()) + 1;
        for (at, user) in USERS.into_iter().cycle().take(USERS.len() + more).enumerate() {
            let is_route = at >= USERS.len() && !script.next().is_multiple_of(4);
            world.open(at, user, is_route, script);
        }
        world
    }

    /// Opens a connection in place of the one with this number.
    fn open(&mut self, at: usize, user: &'static str, is_route: bool, script: &mut Script<'_>) {
        if at >= self.generations.len() {
            self.generations.push(0);
        }
        let slot = u32::try_from(at).expect("few clients");
        let id = ConnId { slot, generation: self.generations[at] };
        let shard = script.next() % self.engines.len();
        let cid = u64::from(slot) + 1;
        let peer = Peer { cid, ip: "127.0.0.1".into(), port: 1 };
        let client = Client { user, shard, id, is_route, is_open: true, heard: Vec::new() };
        if at < self.clients.len() {
            self.clients[at] = client;
        } else {
            self.clients.push(client);
        }
        let engine = &mut self.engines[shard];
        let flags = script.next();
        let hello = if is_route {
            engine.open_route(id, peer, NewRoute { rid: cid, dialed: None, host: String::new() });
            let name = format!("P{at}");
            format!(
                "CONNECT {{\"name\":\"{name}\",\"cluster\":\"C\"}}\r\n\
                 INFO {{\"server_id\":\"{name}\",\"server_name\":\"{name}\",\"cluster\":\"C\",\
                 \"headers\":{},\"proto\":{},\"lnoc\":{leaves},\"lnocu\":{leaves},\"ln\":{},\
                 \"shardcast\":{}}}\r\n",
                flags & 1 == 0,
                flags / 2 % 4,
                flags & 16 == 0,
                flags & 32 == 0,
                leaves = flags & 8 == 0,
            )
        } else {
            engine.open(id, peer, true);
            let flag = |bit: usize| flags >> bit & 1 == 1;
            format!(
                "CONNECT {{\"user\":\"{user}\",\"pass\":\"x\",\"verbose\":{},\"pedantic\":{},\
                 \"headers\":{},\"no_responders\":{},\"echo\":{},\"protocol\":1}}\r\nSUB > 1\r\n",
                flag(0),
                flag(1),
                !flag(2) || !flag(3),
                flag(4) && (!flag(2) || !flag(3)),
                !flag(5),
            )
        };
        self.send(at, hello.as_bytes(), 1 << 20);
        self.settle();
    }

    /// Hands bytes in, in pieces.
    fn send(&mut self, at: usize, bytes: &[u8], piece: usize) {
        let Client { shard, id, .. } = self.clients[at];
        for piece in bytes.chunks(piece.max(1)) {
            if !self.clients[at].is_open {
                return;
            }
            self.engines[shard].on_bytes(id, piece);
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let at = script.next() % self.clients.len();
        if !self.clients[at].is_open {
            let is_route = at > 0 && script.next().is_multiple_of(4);
            let user = self.clients[at].user;
            return self.open(at, user, is_route, script);
        }
        let is_trusted = at == 0;
        let wire = match script.next() % 16 {
            0..=3 if self.clients[at].is_route => interest_entry(script),
            0 | 1 => {
                let queue = script.one_of(&["", "", "q ", "w "]);
                format!("SUB {} {queue}{}\r\n", script.one_of(&FILTERS), script.next() % 4)
                    .into_bytes()
            }
            2 => {
                let (sid, max) = (script.next() % 4, script.one_of(&NUMBERS));
                format!("UNSUB {sid} {max}\r\n").into_bytes()
            }
            3 if !is_trusted => (0..script.next() % 40).map(|_| script.byte()).collect(),
            4 => {
                self.now += 1 << (script.next() % 42);
                b"PING\r\n".to_vec()
            }
            5 if !is_trusted => return self.end(at, script),
            _ => message(&self.clients[at], is_trusted, script),
        };
        let piece = if script.next() < 128 { wire.len() } else { script.next() % 20 + 1 };
        self.send(at, &wire, piece);
    }

    fn end(&mut self, at: usize, script: &mut Script<'_>) {
        let Client { shard, id, .. } = self.clients[at];
        self.engines[shard].on_ended(id, script.next() < 128);
    }

    /// Lets everything come to rest, with the server's own messages.
    fn settle(&mut self) {
        let mut moves = true;
        while moves {
            moves = false;
            for shard in 0..self.engines.len() {
                moves |= self.turn(shard);
            }
        }
    }

    fn turn(&mut self, shard: usize) -> bool {
        let mut moved = false;
        let engine = &mut self.engines[shard];
        engine.set_now(self.now);
        engine.tick();
        for from in 0..self.lanes.len() {
            while let Some(record) = self.lanes[from][shard].pop_front() {
                engine.on_record(ShardId(u8::try_from(from).expect("few shards")), record);
                moved = true;
            }
        }
        engine.end_turn();
        while let Some(action) = engine.next_output() {
            match action {
                Output::Flush(id) => {
                    while let Some(batch) = engine.take_batch(id) {
                        let bytes: Vec<u8> =
                            batch.iter().flat_map(|p| p.bytes()).copied().collect();
                        self.clients[id.slot as usize].heard.extend_from_slice(&bytes);
                        engine.on_sent(id, bytes.len(), Some(batch));
                        moved = true;
                    }
                }
                Output::Close { conn, .. } => {
                    engine.on_closed(conn, None);
                    self.clients[conn.slot as usize].is_open = false;
                    self.generations[conn.slot as usize] += 1;
                }
                Output::Trace(trace) => {
                    engine.publish_own(
                        trace.account,
                        &trace.dest,
                        b"",
                        b"",
                        b"{\"a\": \"document\"}",
                    );
                    moved = true;
                }
                Output::Ask(request) => {
                    engine.publish_own(request.account, &request.reply, b"", b"", b"answer");
                    moved = true;
                }
                Output::Link(notice) => {
                    match *notice {
                        RouteNotice::Greeted { rid, .. } => {
                            engine.on_route_order(RouteOrder::Register(rid, part_of(rid)));
                        }
                        RouteNotice::Heard { rid, .. } => {
                            engine.on_route_order(RouteOrder::HearOn(rid));
                        }
                        _ => {}
                    }
                    moved = true;
                }
                _ => {}
            }
        }
        for to in 0..self.lanes.len() {
            while let Some(record) = engine.pop_record(ShardId(u8::try_from(to).expect("few"))) {
                self.lanes[shard][to].push_back(record);
                moved = true;
            }
        }
        moved
    }

    /// Judges what clients and other servers hear.
    fn listen(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.is_route) {
            let heard = std::mem::take(&mut client.heard);
            let accounts = match part_of(u64::from(client.id.slot) + 1) {
                PoolPart::Account(_) => AccountNaming::Unnamed,
                _ => AccountNaming::Named,
            };
            judge_route(&heard, Form { accounts, origins: true });
        }
        for client in self.clients.iter_mut().filter(|client| !client.is_route) {
            let heard = std::mem::take(&mut client.heard);
            let mut rest = &heard[..];
            while let Some((operation, used)) = wire::parse(rest) {
                if let Heard::Message(message) = operation {
                    let subject = message.subject;
                    let is_secret = subject.starts_with(b"secret.") || subject == b"closed.svc";
                    assert!(!is_secret, "{} hears {}", client.user, wire::show(subject));
                    self.heard += 1;
                }
                rest = &rest[used..];
            }
            assert!(rest.is_empty(), "{} hears {}", client.user, wire::show(rest));
        }
        let garbled: u64 =
            self.engines.iter().map(|engine| engine.view().stats().garbled_runs).sum();
        assert_eq!(garbled, 0, "shards read what shards write");
    }
}

/// What goes over a route.
fn part_of(rid: u64) -> PoolPart {
    if rid.is_multiple_of(2) { PoolPart::All } else { PoolPart::Account("A".into()) }
}

/// Another server hears operations, of which none goes where nothing may.
fn judge_route(heard: &[u8], form: Form) {
    let mut rest = heard;
    while !rest.is_empty() && !rest.starts_with(b"-ERR ") {
        match route::parse(rest, usize::MAX, form) {
            Ok(RouteParsed::Op { op, used }) => {
                if let RouteOp::Message { publish, .. } = op {
                    let is_secret =
                        publish.subject.starts_with(b"secret.") || publish.subject == b"closed.svc";
                    assert!(!is_secret, "a server hears {}", wire::show(publish.subject));
                }
                rest = &rest[used..];
            }
            other => panic!("{other:?}: a server hears {}", wire::show(rest)),
        }
    }
}

/// The begin or end of a peer's interest, of its clients or of leaf nodes behind it.
fn interest_entry(script: &mut Script<'_>) -> Vec<u8> {
    let op = script.one_of(&["RS+", "RS+", "RS-", "LS+", "LS+", "LS-"]);
    let mut words = vec![op];
    words.extend((op.starts_with('L') || script.next() < 8).then(|| script.one_of(&ORIGINS)));
    words.extend(script.one_of(&[&["A"][..], &["A"], &[], &["B"], &["nobody"]]));
    words.push(script.one_of(&FILTERS));
    if script.next() < 128 {
        words.push(script.one_of(&["q", "q", "w"]));
        let weight = script.one_of(&["1", "1", "3", "0", "-1", "x", "99999999999"]);
        words.extend((op.ends_with('+') || script.next() < 16).then_some(weight));
    }
    format!("{}\r\n", words.join(" ")).into_bytes()
}

/// A publish, or a message of another server, which is not in order unless it is trusted.
fn message(client: &Client, is_trusted: bool, script: &mut Script<'_>) -> Vec<u8> {
    let is_route = client.is_route;
    let is_bound = !is_route && matches!(client.user, "limited" | "answers");
    let mut subject = script.one_of(&SUBJECTS);
    let mut reply = script.one_of(&REPLIES);
    let mut lines: Vec<&str> = (0..script.next() % 4).map(|_| script.one_of(&HEADERS)).collect();
    if !is_bound {
        // They may publish there, so they do not.
        let goes_astray =
            |text: &str| ["secret", "closed", "traceparent"].iter().any(|word| text.contains(word));
        subject = if goes_astray(subject) { "tick" } else { subject };
        reply = if goes_astray(reply) { "" } else { reply };
        lines.retain(|line| !goes_astray(line));
    }
    let body = "hi".repeat(script.next() % 8);
    let has_header = !lines.is_empty() || script.next() < 32;
    let block = format!("NATS/1.0\r\n{}\r\n\r\n", lines.join("\r\n"));
    let payload = if has_header { block.clone() + &body } else { body };
    let (mut header_len, mut len) = (block.len().to_string(), payload.len().to_string());
    match script.next() {
        0..8 => header_len = script.one_of(&NUMBERS).to_owned(),
        8..12 if !is_trusted => len = script.one_of(&NUMBERS).to_owned(),
        12..16 => header_len = (payload.len() / 2).to_string(),
        16..24 => len = format!("0{len}"),
        _ => {}
    }
    let blank = script.one_of(&[" ", " ", " ", "  ", "\t"]);
    let is_of_leaf = is_route && script.next().is_multiple_of(4);
    let mut words = vec![match (is_route, has_header) {
        _ if is_of_leaf => "LMSG",
        (false, false) => "PUB",
        (false, true) => "HPUB",
        (true, false) => "RMSG",
        (true, true) => "HMSG",
    }];
    words.extend(is_of_leaf.then(|| script.one_of(&ORIGINS)));
    if is_route {
        words.extend(script.one_of(&[&["A"][..], &["B"], &[], &["nobody"]]));
    }
    words.push(subject);
    let has_groups = is_route && script.next() < 128;
    if has_groups {
        words.push(if reply.is_empty() { "|" } else { "+" });
    }
    words.extend(Some(reply).filter(|reply| !reply.is_empty()));
    if has_groups {
        // The third says that it is passed on.
        words.extend(script.one_of(&[&["q"][..], &["q", "w"], &["q", "q"], &[]]));
    }
    if is_of_leaf && !has_header {
        header_len = "0".to_owned();
    }
    words.extend((has_header || is_of_leaf).then_some(&*header_len));
    words.push(&len);
    format!("{}\r\n{payload}\r\n", words.join(blank)).into_bytes()
}
