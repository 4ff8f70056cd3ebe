//! Accounts that are not known until a user of theirs logs in: fetched over HTTP, or from another
//! server of the cluster.

#![expect(clippy::disallowed_types, reason = "tests share what they have heard between tasks")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_nats::{Client, ConnectOptions};
use nkeys::KeyPair;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::broker::peers::{meet, next, within};
use crate::broker::tokens::{World, credentials, unlimited};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, server_command, shard_counts};

/// How a server of tokens behaves for one path.
#[derive(Clone)]
enum Answer {
    Token(String),
    /// It takes the request and says nothing.
    Silence,
    /// It never stops talking.
    Endless,
    Redirect(String),
}

/// A server of tokens, and the paths that it was asked for.
struct Tokens {
    port: u16,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tokens {
    fn start(world: &World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let answers = Arc::new(Mutex::new(BTreeMap::new()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let tokens = Self { port, answers: Arc::clone(&answers), asked: Arc::clone(&asked) };
        tokens.set("", Answer::Token("here".to_owned()));
        for (key, token) in world.all() {
            tokens.set(&key, Answer::Token(token));
        }
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
                std::thread::spawn(move || serve(stream, &answers, &asked));
            }
        });
        tokens
    }

    fn set(&self, key: &str, answer: Answer) {
        self.answers.lock().expect("nobody panics").insert(format!("/jwt/{key}"), answer);
    }

    fn asked_for(&self, key: &str) -> usize {
        let path = format!("/jwt/{key}");
        self.asked.lock().expect("nobody panics").iter().filter(|it| **it == path).count()
    }

    fn config(&self, world: &World) -> String {
        format!(
            "operator: {}\nsystem_account: {}\nresolver: URL(\"http://127.0.0.1:{}/jwt/\")\n\
             authorization {{ timeout: 20 }}\n",
            world.operator(),
            world.system_key(),
            self.port
        )
    }
}

/// Answers requests of one connection, one after the other.
fn serve(
    mut stream: TcpStream,
    answers: &Mutex<BTreeMap<String, Answer>>,
    asked: &Mutex<Vec<String>>,
) {
    let mut unread = Vec::new();
    loop {
        while !unread.windows(4).any(|end| end == b"\r\n\r\n") {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(read @ 1..) => unread.extend_from_slice(&chunk[..read]),
                _ => return,
            }
        }
        let text = String::from_utf8_lossy(&unread).into_owned();
        let path = text.split(' ').nth(1).expect("a request").to_owned();
        unread.clear();
        asked.lock().expect("nobody panics").push(path.clone());
        let answer = answers.lock().expect("nobody panics").get(&path).cloned();
        let said = match answer {
            Some(Answer::Token(token)) => {
                let length = token.len();
                stream.write_all(
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{token}")
                        .as_bytes(),
                )
            }
            Some(Answer::Redirect(to)) => stream.write_all(
                format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
                    .as_bytes(),
            ),
            Some(Answer::Silence) => Ok(()),
            Some(Answer::Endless) => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                while stream.write_all(&[b'x'; 4096]).is_ok() {}
                return;
            }
            None => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        };
        if said.is_err() {
            return;
        }
    }
}

async fn enter(broker: &Broker, account: &KeyPair) -> Result<Client, ()> {
    let text = credentials(account, unlimited(), json!({}));
    let options = ConnectOptions::with_credentials(&text).expect("credentials");
    within(options.connection_timeout(PATIENCE).connect(broker.url())).await.map_err(drop)
}

async fn ask(client: &Client, subject: String, payload: String) -> Value {
    let answer = within(client.request(subject, payload.into())).await.expect("an answer");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

#[tokio::test]
async fn an_account_is_fetched_once_when_its_first_user_comes() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    world.account(&account, json!({}));
    for &shards in shard_counts() {
        let tokens = Tokens::start(&world);
        let mut broker = Broker::with_config(shards, &tokens.config(&world));
        assert_eq!(tokens.asked_for(&account.public_key()), 0);
        let all = futures::future::join_all((0..10).map(|_| enter(&broker, &account))).await;
        let all: Vec<Client> = all.into_iter().collect::<Result<_, _>>().expect("allowed");
        meet(&all[0], &all[9]).await;
        assert_eq!(tokens.asked_for(&account.public_key()), 1, "they join the first");
        // A reload does not ask again, and sends nobody away.
        broker.reload(&(tokens.config(&world) + "max_payload: 1000\n"));
        meet(&all[0], &all[9]).await;
        enter(&broker, &account).await.expect("it is known");
        assert_eq!(tokens.asked_for(&account.public_key()), 1);
        // What changes comes by a message.
        let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": 0, "leaf": -1});
        let mut changed = world.clone_of_keys();
        let text = changed.account(&account, json!({"limits": limits}));
        let options = ConnectOptions::with_credentials(&world.system_credentials()).expect("good");
        let system = options.connect(broker.url()).await.expect("the system account is known");
        let subject = format!("$SYS.REQ.ACCOUNT.{}.CLAIMS.UPDATE", account.public_key());
        assert_eq!(ask(&system, subject, text).await["data"]["code"], 200);
        assert!(enter(&broker, &account).await.is_err(), "no more connections");
    }
}

#[tokio::test]
async fn what_a_server_of_tokens_says_wrongly_or_not_at_all_lets_nobody_in_and_is_not_remembered() {
    let mut world = World::new();
    let (account, other, stranger) =
        (KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_account());
    let text = world.account(&account, json!({}));
    let of_other = world.account(&other, json!({}));
    let forged = World::new().account(&account, json!({}));
    for &shards in shard_counts() {
        let tokens = Tokens::start(&world);
        let broker = Broker::with_config(shards, &tokens.config(&world));
        let key = account.public_key();
        let lies = [
            Answer::Token(String::new()),
            Answer::Token("not a token".to_owned()),
            Answer::Token(of_other.clone()),
            Answer::Token(forged.clone()),
            Answer::Redirect("/jwt/nothing".to_owned()),
            Answer::Redirect(format!("/jwt/{key}")),
            Answer::Silence,
            Answer::Endless,
        ];
        for lie in lies {
            tokens.set(&key, lie);
            assert!(enter(&broker, &account).await.is_err());
        }
        assert!(enter(&broker, &stranger).await.is_err(), "404");
        // Others come in meanwhile, and so does the account when the truth is told.
        tokens.set(&key, Answer::Silence);
        let mut waiting = Wire::open_with(&broker, |_| {
            let text = credentials(&account, unlimited(), json!({}));
            let token = text.lines().nth(1).expect("a token").to_owned();
            format!("CONNECT {{\"verbose\":false,\"jwt\":\"{token}\",\"sig\":\"AA\"}}\r\nPING\r\n")
        });
        enter(&broker, &other).await.expect("its token comes");
        let said = String::from_utf8_lossy(&waiting.drain_to_end()).into_owned();
        assert!(said.starts_with("-ERR 'Auth"), "{said}");
        tokens.set(&key, Answer::Redirect("/jwt/moved".to_owned()));
        tokens.set("moved", Answer::Token(text.clone()));
        enter(&broker, &account).await.expect("what failed is not remembered");
    }
}

#[tokio::test]
async fn accounts_that_an_account_imports_from_come_with_it() {
    let mut world = World::new();
    let (exporter, importer) = (KeyPair::new_account(), KeyPair::new_account());
    world.account(&exporter, json!({"exports": [{"name": "a", "subject": "a", "type": "stream"}]}));
    world.account(
        &importer,
        json!({"imports": [{"name": "a", "subject": "a", "type": "stream",
            "account": exporter.public_key()}]}),
    );
    for &shards in shard_counts() {
        let tokens = Tokens::start(&world);
        let broker = Broker::with_config(shards, &tokens.config(&world));
        let hears = enter(&broker, &importer).await.expect("allowed");
        let mut inbox = hears.subscribe("a").await.expect("connected");
        hears.flush().await.expect("connected");
        assert_eq!(tokens.asked_for(&exporter.public_key()), 1);
        let says = enter(&broker, &exporter).await.expect("allowed");
        says.publish("a", "hello".into()).await.expect("connected");
        assert_eq!(next(&mut inbox).await.payload, "hello");
    }
}

#[test]
fn a_server_without_its_server_of_tokens_does_not_start() {
    let world = World::new();
    let tokens = Tokens::start(&world);
    let config = tokens.config(&world);
    let gone = config.replace(&format!(":{}/", tokens.port), ":1/");
    assert!(!starts(&gone));
    tokens.set(&world.system_key(), Answer::Token("nonsense".to_owned()));
    assert!(!starts(&config));
}

/// Whether a server starts with this configuration; one that does is not to be left behind.
fn starts(config: &str) -> bool {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), config.to_owned() + "port: -1\n").expect("written");
    let mut command = Command::new("timeout");
    command.arg("20").arg(server_command()).arg("-c").arg(file.path());
    let output = command.output().expect("timeout(1) is there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() != Some(1) || said.contains("resolver: "), "{said}");
    output.status.code() != Some(1)
}

#[tokio::test]
async fn a_cache_asks_the_servers_that_keep_all_accounts() {
    let mut world = World::new();
    let initial = world.clone_of_keys();
    let account = KeyPair::new_account();
    world.account(&account, json!({}));
    let (full_dir, cache_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cluster = |name: &str, routes: &str| {
        format!("server_name: {name}\ncluster {{ name: C, listen: \"127.0.0.1:-1\", {routes} }}\n")
    };
    for &shards in shard_counts() {
        let all = world.pushed(full_dir.path(), "");
        let mut full = Broker::with_config(shards, &(all + &cluster("full", "")));
        let route = format!("routes: [\"nats-route://127.0.0.1:{}\"]", full.route_port());
        let cached = initial.pushed(cache_dir.path(), "").replace("type: full", "type: cache");
        let mut cache = Broker::with_config(shards, &(cached + &cluster("cache", &route)));
        cache.wait_for_line("Route connection created");
        let mut outcome = enter(&cache, &account).await;
        while outcome.is_err() {
            // The route may still be about to tell what is subscribed.
            outcome = enter(&cache, &account).await;
        }
        let here = outcome.expect("just looked");
        let there = enter(&full, &account).await.expect("it is kept there");
        meet(&here, &there).await;
        let file = cache_dir.path().join(format!("{}.jwt", account.public_key()));
        assert!(file.exists());
        assert!(enter(&cache, &KeyPair::new_account()).await.is_err());
        full.signal(Signal::TERM);
        cache.restart();
        enter(&cache, &account).await.expect("it is in the directory");
        std::fs::remove_file(&file).expect("it was there");
    }
}
