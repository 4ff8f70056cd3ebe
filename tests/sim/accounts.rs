//! Accounts over several shards: whatever is exported, imported, subscribed to and published, who
//! gets what is what the list of imports says, and nobody else gets anything.
//!
//! Everything comes to rest between two steps, by lanes that move in a random order, so that what
//! arrives is certain.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use shardcast::config::{Account, Export, Import, Options, Response, Secret, Shared, UserOptions};
use shardcast::engine::{ConnId, Engine, Identity, Output, Peer, Record, Settings, ShardId};
use shardcast::subject;

const SUBJECTS: [&str; 8] = ["a", "a.x", "a.y", "b.x", "b.x.y", "c.x", "p.a.x", "p.b.x"];
const FILTERS: [&str; 10] = ["a", "a.*", "a.x", "b.>", "*.x", ">", "c.*", "p.>", "p.a.*", "b.x.*"];
const STEPS: usize = 80;

struct Client {
    account: usize,
    shard: usize,
    id: ConnId,
    subs: BTreeMap<u32, &'static str>,
    heard: Vec<u8>,
}

struct World {
    rng: fastrand::Rng,
    accounts: Vec<Account>,
    engines: Vec<Engine>,
    lanes: Vec<Vec<std::collections::VecDeque<Record>>>,
    clients: Vec<Client>,
    sids: u32,
    payloads: u32,
}

/// A message as it arrives: client, sid, subject, reply, payload.
type Delivery = (usize, u32, String, Option<String>, String);

/// Imports that go to accounts with lower numbers only, so that there are no cycles.
fn accounts(rng: &mut fastrand::Rng) -> Vec<Account> {
    let count = rng.usize(2..5);
    let mut all: Vec<Account> = (0..count).map(|at| Account::named(format!("A{at}"))).collect();
    for at in 0..count {
        for _ in 0..rng.usize(..4) {
            let shared = if rng.bool() { Shared::Stream } else { Shared::Service };
            let only = (0..count).filter(|_| rng.bool()).map(|to| format!("A{to}")).collect();
            let export = Export {
                shared,
                subject: FILTERS[rng.usize(..FILTERS.len())].to_owned(),
                accounts: if rng.bool() { only } else { Vec::new() },
                account_token: 0,
                response: if rng.bool() { Response::Singleton } else { Response::Stream },
                response_threshold_ms: 1000,
                allow_trace: rng.bool(),
                latency: None,
            };
            all[at].exports.push(export);
        }
        if at == 0 {
            continue;
        }
        for _ in 0..rng.usize(..4) {
            let from = rng.usize(..at);
            let subject = FILTERS[rng.usize(..FILTERS.len())].to_owned();
            let shared = if rng.bool() { Shared::Stream } else { Shared::Service };
            let local = match rng.u32(..3) {
                0 => format!("p.{subject}"),
                1 if shared == Shared::Service => format!("c.{subject}"),
                _ => subject.clone(),
            };
            let account = format!("A{from}");
            let (share, allow_trace) = (rng.bool(), rng.bool());
            let import = Import { shared, account, subject, local, share, allow_trace };
            // As the configuration does, only what is exported is imported, and once.
            let exports = &all[from].exports;
            let name = format!("A{at}");
            let permitted = exports.iter().any(|export| export.permits(&import, &name));
            let same = |other: &Import| {
                other.shared == import.shared
                    && subject::overlap(other.local.as_bytes(), import.local.as_bytes())
            };
            if permitted && import.mapping().is_ok() && !all[at].imports.iter().any(same) {
                all[at].imports.push(import);
            }
        }
    }
    all
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let accounts = accounts(&mut rng);
        let mut options = Options::default();
        for account in &accounts {
            options.accounts.add(account.clone());
            let user = UserOptions::named(format!("u{}", account.name));
            let (account, password) = (account.name.clone(), Secret::new("p"));
            options.auth.users.push(UserOptions { account, password, ..user });
        }
        let settings = Rc::new(Settings::new(&options, &Identity::default(), usize::MAX));
        let shards = rng.u8(1..4);
        let engine =
            |shard| Engine::new(ShardId(shard), usize::from(shards), Rc::clone(&settings), seed);
        let lanes = || (0..shards).map(|_| std::collections::VecDeque::new()).collect();
        let mut world = Self {
            accounts,
            engines: (0..shards).map(engine).collect(),
            lanes: (0..shards).map(|_| lanes()).collect(),
            clients: Vec::new(),
            sids: 0,
            payloads: 0,
            rng,
        };
        for _ in 0..world.rng.usize(3..9) {
            world.connect();
        }
        world
    }

    fn connect(&mut self) {
        let account = self.rng.usize(..self.accounts.len());
        let shard = self.rng.usize(..self.engines.len());
        let slot = u32::try_from(self.clients.len()).expect("few clients");
        let id = ConnId { slot, generation: 0 };
        let peer = Peer { cid: u64::from(slot) + 1, ip: "127.0.0.1".into(), port: 1 };
        self.engines[shard].open(id, peer, true);
        self.clients.push(Client { account, shard, id, subs: BTreeMap::new(), heard: Vec::new() });
        let client = self.clients.len() - 1;
        let name = &self.accounts[account].name;
        let headers = self.rng.bool();
        let connect = format!(
            "CONNECT {{\"verbose\":false,\"user\":\"u{name}\",\"pass\":\"p\",\
             \"headers\":{headers}}}\r\n"
        );
        self.send(client, &connect);
        self.clients[client].heard.clear();
    }

    fn send(&mut self, client: usize, text: &str) {
        let Client { shard, id, .. } = self.clients[client];
        self.engines[shard].on_bytes(id, text.as_bytes());
        self.settle();
    }

    /// Lets shards act and lanes move in a random order until nothing happens any more.
    fn settle(&mut self) {
        self.move_at_random();
        // Chance may have left out a shard that had something to do.
        while (0..self.engines.len()).any(|shard| self.turn(shard)) {
            self.move_at_random();
        }
    }

    fn move_at_random(&mut self) {
        let mut idle = 0;
        while idle < 4 * self.engines.len() * self.engines.len() + 4 {
            let shard = self.rng.usize(..self.engines.len());
            let mut moved = self.turn(shard);
            let from = self.rng.usize(..self.engines.len());
            for _ in 0..self.rng.usize(..3) {
                if let Some(record) = self.lanes[from][shard].pop_front() {
                    self.engines[shard]
                        .on_record(ShardId(u8::try_from(from).expect("few shards")), record);
                    moved = true;
                }
            }
            let waiting = self.lanes.iter().flatten().any(|lane| !lane.is_empty());
            idle = if moved || waiting { 0 } else { idle + 1 };
        }
    }

    fn turn(&mut self, shard: usize) -> bool {
        let mut moved = false;
        let engine = &mut self.engines[shard];
        engine.tick();
        engine.end_turn();
        while let Some(action) = engine.next_output() {
            let Output::Flush(id) = action else { continue };
            while let Some(batch) = engine.take_batch(id) {
                let client = &mut self.clients[id.slot as usize];
                let bytes: Vec<u8> = batch.iter().flat_map(|p| p.bytes()).copied().collect();
                client.heard.extend_from_slice(&bytes);
                engine.on_sent(id, bytes.len(), Some(batch));
                moved = true;
            }
        }
        for to in (0..).map(ShardId).take(self.lanes.len()) {
            while let Some(record) = engine.pop_record(to) {
                self.lanes[shard][to.index()].push_back(record);
                moved = true;
            }
        }
        moved
    }

    /// What has arrived since it was last asked.
    fn heard(&mut self) -> Vec<Delivery> {
        let mut all = Vec::new();
        for (at, client) in self.clients.iter_mut().enumerate() {
            let text = String::from_utf8(std::mem::take(&mut client.heard))
                .expect("the server keeps to the protocol, and imports are good");
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let (line, behind) = rest
                    .split_once("\r\n")
                    .expect("the server keeps to the protocol, and imports are good");
                let words: Vec<&str> = line.split(' ').collect();
                let (op, args) = words
                    .split_first()
                    .expect("the server keeps to the protocol, and imports are good");
                let sizes = match *op {
                    "MSG" => 1,
                    "HMSG" => 2,
                    _ => panic!("client {at} got {line}"),
                };
                let (args, sizes_text) = args.split_at(args.len() - sizes);
                let header: usize = if sizes == 2 {
                    sizes_text[0]
                        .parse()
                        .expect("the server keeps to the protocol, and imports are good")
                } else {
                    0
                };
                let size: usize = sizes_text[sizes - 1]
                    .parse()
                    .expect("the server keeps to the protocol, and imports are good");
                let payload = behind[header..size].to_owned();
                let reply = args.get(2).map(|reply| (*reply).to_owned());
                all.push((
                    at,
                    args[1]
                        .parse()
                        .expect("the server keeps to the protocol, and imports are good"),
                    args[0].to_owned(),
                    reply,
                    payload,
                ));
                rest = &behind[size + 2..];
            }
        }
        all.sort();
        all
    }

    /// Who gets a message on `subject` of `account`: client, sid, subject, and by how many
    /// services it came. With `stream` it came by a stream, which goes no further.
    fn reached(&self, account: usize, subject: &str, hops: u32, stream: bool) -> Vec<Reach> {
        let mut all = Vec::new();
        for (at, client) in self.clients.iter().enumerate() {
            for (sid, filter) in &client.subs {
                let fits = subject::matches(filter.as_bytes(), subject.as_bytes());
                if client.account == account && fits {
                    all.push(Reach { client: at, sid: *sid, subject: subject.to_owned(), hops });
                }
            }
        }
        if stream {
            return all;
        }
        let mapped = |import: &Import| {
            let mut out = Vec::new();
            let mapping =
                import.mapping().expect("the server keeps to the protocol, and imports are good");
            let applies =
                mapping.apply(subject.as_bytes(), &mut fastrand::Rng::with_seed(0), &mut out);
            applies.then(|| {
                String::from_utf8(out)
                    .expect("the server keeps to the protocol, and imports are good")
            })
        };
        let own = &self.accounts[account];
        for (to, other) in self.accounts.iter().enumerate() {
            for import in &other.imports {
                let is_stream = import.shared == Shared::Stream && import.account == own.name;
                if is_stream && let Some(subject) = mapped(import) {
                    all.extend(self.reached(to, &subject, hops, true));
                }
            }
        }
        for import in own.imports.iter().filter(|import| import.shared == Shared::Service) {
            if let Some(subject) = mapped(import) {
                let from = self.accounts.iter().position(|other| other.name == import.account);
                all.extend(self.reached(
                    from.expect("the server keeps to the protocol, and imports are good"),
                    &subject,
                    hops + 1,
                    false,
                ));
            }
        }
        all
    }

    fn step(&mut self) -> (usize, usize) {
        let client = self.rng.usize(..self.clients.len());
        match self.rng.u32(..10) {
            0..4 => {
                self.sids += 1;
                let (sid, filter) = (self.sids, FILTERS[self.rng.usize(..FILTERS.len())]);
                self.clients[client].subs.insert(sid, filter);
                self.send(client, &format!("SUB {filter} {sid}\r\n"));
                (0, 0)
            }
            4 => {
                let Some((sid, _)) = self.clients[client].subs.pop_first() else { return (0, 0) };
                self.send(client, &format!("UNSUB {sid}\r\n"));
                (0, 0)
            }
            5..8 => self.publish(client),
            _ => (0, self.request(client)),
        }
    }

    fn publish(&mut self, client: usize) -> (usize, usize) {
        let subject = SUBJECTS[self.rng.usize(..SUBJECTS.len())];
        let count = self.rng.u32(1..4);
        let mut wire = String::new();
        let mut wanted = Vec::new();
        let mut abroad = 0;
        for reach in self.reached(self.clients[client].account, subject, 0, false) {
            let foreign = self.clients[reach.client].account != self.clients[client].account;
            abroad += usize::from(foreign);
            for at in 0..count {
                let payload = format!("m{}", self.payloads + at);
                wanted.push((reach.client, reach.sid, reach.subject.clone(), None, payload));
            }
        }
        for at in 0..count {
            let payload = format!("m{}", self.payloads + at);
            wire.push_str(&format!("PUB {subject} {}\r\n{payload}\r\n", payload.len()));
        }
        self.payloads += count;
        self.send(client, &wire);
        wanted.sort();
        assert_eq!(self.heard(), wanted, "after {wire:?} of client {client}");
        (abroad, 0)
    }

    /// Sends a request, and lets everybody who gets it by a service answer it.
    fn request(&mut self, client: usize) -> usize {
        let subject = SUBJECTS[self.rng.usize(..SUBJECTS.len())];
        self.sids += 1;
        self.payloads += 1;
        let (inbox, payload) = (format!("_INBOX.{}", self.sids), format!("r{}", self.payloads));
        // Whoever hears everything hears the answers, too: only the inbox counts.
        self.send(client, &format!("SUB {inbox} {}\r\n", self.sids));
        let reaches = self.reached(self.clients[client].account, subject, 0, false);
        let wire = format!("PUB {subject} {inbox} {}\r\n{payload}\r\n", payload.len());
        self.send(client, &wire);
        let heard = self.heard();
        assert_eq!(heard.len(), reaches.len(), "after {wire:?} of client {client}");
        let mut routes: HashMap<String, u32> = HashMap::new();
        let mut answers = Vec::new();
        for (at, sid, subject, reply, _) in heard {
            let same =
                |reach: &&Reach| (reach.client, reach.sid, &*reach.subject) == (at, sid, &*subject);
            let hops: Vec<u32> = reaches.iter().filter(same).map(|reach| reach.hops).collect();
            let reply = reply.expect("the server keeps to the protocol, and imports are good");
            let is_route = reply.starts_with("_R_.");
            assert!(
                hops.iter().any(|hops| (*hops > 0) == is_route),
                "{reply} in {} after {hops:?} services",
                self.accounts[self.clients[at].account].name
            );
            if is_route && self.clients[at].account != self.clients[client].account {
                answers.push((at, reply));
            }
        }
        let mut came = 0;
        for (number, (responder, reply)) in answers.into_iter().enumerate() {
            let text = format!("w{number}");
            self.send(responder, &format!("PUB {reply} {}\r\n{text}\r\n", text.len()));
            let of_inbox = self
                .heard()
                .into_iter()
                .filter(|(at, sid, ..)| *at == client && *sid == self.sids)
                .inspect(|(_, _, subject, _, payload)| {
                    assert_eq!((subject, payload), (&inbox, &text));
                })
                .count();
            let before = routes.entry(reply.clone()).or_default();
            assert!(of_inbox <= 1, "an answer comes once");
            // A stream that carries a request away hands its reply to whom it is not for.
            if *before == 0 && of_inbox == 1 {
                came += 1;
            }
            *before += 1;
        }
        self.send(client, &format!("UNSUB {}\r\n", self.sids));
        came
    }
}

#[derive(Debug)]
struct Reach {
    client: usize,
    sid: u32,
    subject: String,
    hops: u32,
}

/// Runs what `seed` stands for. Returns deliveries to other accounts, and answers from there.
pub(crate) fn run_seed(seed: u64) -> (usize, usize) {
    let mut world = World::new(seed);
    let mut all = (0, 0);
    for _ in 0..STEPS {
        let (abroad, answers) = world.step();
        all = (all.0 + abroad, all.1 + answers);
    }
    all
}
