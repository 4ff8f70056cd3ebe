//! The behaviours of the table with async-nats. Called with the behaviour's name; see README.md.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a failure is reported by its panic")]
#![expect(clippy::disallowed_types, reason = "the client calls back on threads of its own")]

mod streams;

use std::collections::HashSet;
use std::env;
use std::io::BufRead;
use std::process::exit;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, Request, Subscriber};
use futures::StreamExt;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
const NOT_ASKED: i32 = 77;

/// What the connection told of itself.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    async fn of(&self, part: &str) {
        for _ in 0..1000 {
            if self.0.lock().unwrap().iter().any(|event| event.to_lowercase().contains(part)) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("{part:?} is not told: {:?}", self.0.lock().unwrap());
    }

    fn with(&self, options: ConnectOptions) -> ConnectOptions {
        let told = self.clone();
        options.event_callback(move |event| {
            let told = told.clone();
            async move { told.0.lock().unwrap().push(event.to_string()) }
        })
    }
}

fn url() -> String {
    env::var("URL").unwrap()
}

fn file(name: &str) -> std::path::PathBuf {
    std::path::Path::new(&env::var("DIR").unwrap()).join(name)
}

fn ask(order: &str) {
    println!("!{order}");
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
}

async fn connect() -> Client {
    with(ConnectOptions::new()).await
}

async fn with(options: ConnectOptions) -> Client {
    let options = options.reconnect_delay_callback(|_| Duration::from_millis(100));
    options.connect(url()).await.unwrap()
}

async fn next(sub: &mut Subscriber) -> async_nats::Message {
    timeout(PATIENCE, sub.next()).await.unwrap().unwrap()
}

async fn listen(client: &Client, subject: &str) -> Subscriber {
    let sub = client.subscribe(subject.to_owned()).await.unwrap();
    round_trip(client).await;
    sub
}

/// A flush writes only: what comes back through the server shows that it has read.
async fn round_trip(client: &Client) {
    let inbox = client.new_inbox();
    let mut sub = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    next(&mut sub).await;
}

async fn works_on(client: &Client, subject: &'static str) {
    let mut sub = client.subscribe(subject).await.unwrap();
    client.publish(subject, "yes".into()).await.unwrap();
    assert_eq!(next(&mut sub).await.payload, "yes");
}

async fn works(client: &Client) {
    works_on(client, "it.works").await;
}

async fn refused(options: ConnectOptions) -> String {
    let error = options.connect(url()).await.expect_err("it was let in");
    error.to_string().to_lowercase()
}

fn user() -> ConnectOptions {
    ConnectOptions::new().user_and_password("u".into(), "p".into())
}

fn trusting() -> ConnectOptions {
    ConnectOptions::new().add_root_certificates(file("ca.pem"))
}

async fn queue() {
    let mut members = Vec::new();
    for _ in 0..3 {
        let client = connect().await;
        let work = client.queue_subscribe("work", "crew".into()).await.unwrap();
        round_trip(&client).await;
        members.push((client, work));
    }
    let sender = connect().await;
    for at in 0..300 {
        sender.publish("work", at.to_string().into()).await.unwrap();
    }
    round_trip(&sender).await;
    let (mut all, mut some, mut count) = (HashSet::new(), 0, 0);
    for (client, work) in &mut members {
        round_trip(client).await;
        let before = count;
        while let Ok(Some(message)) = timeout(Duration::from_millis(200), work.next()).await {
            all.insert(message.payload);
            count += 1;
        }
        some += usize::from(count > before);
    }
    println!("{count} {} {some}", all.len());
}

async fn drain() {
    let told = Told::default();
    let client = with(told.with(ConnectOptions::new())).await;
    let other = connect().await;
    let mut sub = listen(&client, "flood").await;
    for _ in 0..200 {
        other.publish("flood", "x".into()).await.unwrap();
    }
    round_trip(&other).await;
    round_trip(&client).await;
    client.drain().await.unwrap();
    let mut got = 0;
    while timeout(PATIENCE, sub.next()).await.unwrap().is_some() {
        got += 1;
    }
    told.of("closed").await;
    println!("drained {got}");
}

async fn request() {
    let (server, client) = (connect().await, connect().await);
    let mut questions = listen(&server, "double").await;
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let number: u64 = std::str::from_utf8(&question.payload).unwrap().parse().unwrap();
            let body = (2 * number).to_string().into();
            server.publish(question.reply.unwrap(), body).await.unwrap();
        }
    });
    for at in 0..100 {
        let answer = client.request("double", at.to_string().into()).await.unwrap();
        assert_eq!(answer.payload, (2 * at).to_string());
    }
    let request = Request::new().payload("21".into()).inbox(client.new_inbox());
    println!("own inbox {:?}", client.send_request("double", request).await.unwrap().payload);
}

async fn request_many() {
    for at in 0..5 {
        let client = connect().await;
        let mut questions = listen(&client, "who").await;
        tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let body = at.to_string().into();
                client.publish(question.reply.unwrap(), body).await.unwrap();
            }
        });
    }
    let client = connect().await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply("who", inbox, "?".into()).await.unwrap();
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(next(&mut answers).await.payload);
    }
    got.sort();
    println!("{got:?}");
}

async fn headers() {
    let client = connect().await;
    let mut sub = client.subscribe("h").await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Trace-Id", "abc");
    headers.append("Colour", "red");
    headers.append("Colour", "green blue");
    client.publish_with_headers("h", headers.clone(), "body".into()).await.unwrap();
    client.publish_with_headers("h", headers.clone(), "".into()).await.unwrap();
    for _ in 0..2 {
        let message = next(&mut sub).await;
        println!("{} {:?}", message.headers.unwrap() == headers, message.payload);
    }
}

async fn publish_subscribe() {
    let (a, b) = (connect().await, connect().await);
    let mut one = listen(&a, "log.*.disk").await;
    let mut rest = listen(&a, "log.>").await;
    for at in 0..1000 {
        b.publish("log.x.disk", at.to_string().into()).await.unwrap();
    }
    b.publish("log.y", "end".into()).await.unwrap();
    for at in 0..1000 {
        assert_eq!(next(&mut one).await.payload, at.to_string());
        assert_eq!(next(&mut rest).await.payload, at.to_string());
    }
    println!("then {:?}", next(&mut rest).await.payload);
}

async fn unsubscribe_after() {
    let client = connect().await;
    let mut sub = listen(&client, "few").await;
    sub.unsubscribe_after(3).await.unwrap();
    for at in 0..10 {
        client.publish("few", at.to_string().into()).await.unwrap();
    }
    let mut got = Vec::new();
    while let Some(message) = timeout(PATIENCE, sub.next()).await.unwrap() {
        got.push(message.payload);
    }
    println!("{got:?}");
}

async fn max_payload() {
    let client = connect().await;
    let most = client.server_info().max_payload;
    let mut sub = listen(&client, "big").await;
    client.publish("big", vec![0; most].into()).await.unwrap();
    assert_eq!(next(&mut sub).await.payload.len(), most);
    let error = client.publish("big", vec![0; most + 1].into()).await.unwrap_err();
    println!("refused above {most}: {:?}", error.kind());
    works(&client).await;
}

async fn no_echo() {
    let quiet = with(ConnectOptions::new().no_echo()).await;
    let other = connect().await;
    let mut mine = quiet.subscribe("echo").await.unwrap();
    let mut theirs = listen(&other, "echo").await;
    let mut probe = listen(&other, "probe").await;
    quiet.publish("probe", "".into()).await.unwrap();
    quiet.publish("echo", "1".into()).await.unwrap();
    next(&mut probe).await;
    assert_eq!(next(&mut theirs).await.payload, "1");
    other.publish("echo", "2".into()).await.unwrap();
    println!("heard {:?}", next(&mut mine).await.payload);
}

async fn told_of(options: ConnectOptions, part: &str, act: impl AsyncFnOnce(&Client)) -> Client {
    let told = Told::default();
    let client = with(told.with(options)).await;
    act(&client).await;
    told.of(part).await;
    println!("{part} {:?}", client.connection_state());
    client
}

async fn permissions() {
    let client = told_of(user(), "permissions violation for publish to", async |client| {
        client.publish("secret", "".into()).await.unwrap();
    });
    works_on(&client.await, "open.x").await;
    let client = told_of(user(), "permissions violation for subscription to", async |client| {
        client.subscribe("secret").await.unwrap();
        round_trip(client).await;
    });
    works_on(&client.await, "open.x").await;
}

async fn reconnect() {
    let told = Told::default();
    let client = with(told.with(ConnectOptions::new())).await;
    let mut sub = listen(&client, "after").await;
    ask("stop");
    told.of("disconnected").await;
    client.publish("after", "buffered".into()).await.unwrap();
    ask("start");
    println!("{:?}", next(&mut sub).await.payload);
    works(&client).await;
}

async fn closed() {
    let told = Told::default();
    let client = with(told.with(ConnectOptions::new().max_reconnects(1))).await;
    round_trip(&client).await;
    ask("stop");
    told.of("max reconnects").await;
    println!("gave up");
}

async fn slow_consumer() {
    let told = Told::default();
    let client = with(told.with(ConnectOptions::new().subscription_capacity(10))).await;
    let _sub = listen(&client, "fast").await;
    for _ in 0..100 {
        client.publish("fast", "x".into()).await.unwrap();
    }
    told.of("slow consumer").await;
    println!("told");
    works(&client).await;
}

async fn discovered_servers() {
    let told = Told::default();
    let client = with(told.with(ConnectOptions::new())).await;
    for _ in 0..1000 {
        if client.server_info().connect_urls.len() >= 2 {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let first = client.server_info().server_id;
    ask("stop");
    told.of("disconnected").await;
    for _ in 0..1000 {
        if client.server_info().server_id != first {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    works(&client).await;
    println!("went on at another: {}", client.server_info().server_id != first);
}

#[expect(clippy::too_many_lines, reason = "a flat list of behaviours")]
async fn behave(name: &str) {
    let options = ConnectOptions::new();
    match name {
        "version" => println!("{}", async_nats_version()),
        "connect" => {
            let client = with(options.name("table")).await;
            let info = client.server_info();
            println!("max_payload {} headers {}", info.max_payload, info.headers);
            client.flush().await.unwrap();
            works(&client).await;
        }
        "no-echo" => no_echo().await,
        "publish-subscribe" => publish_subscribe().await,
        "queue" => queue().await,
        "request" => request().await,
        "no-responders" => {
            let error = connect().await.request("nobody.home", "".into()).await.unwrap_err();
            println!("{:?}", error.kind());
        }
        "request-many" => request_many().await,
        "headers" => headers().await,
        "unsubscribe-after" => unsubscribe_after().await,
        "drain" => drain().await,
        "max-payload" => max_payload().await,
        "permissions" => permissions().await,
        "max-subscriptions" => {
            let act = async |client: &Client| {
                for subject in ["a", "b", "c"] {
                    // It is known by the error, not by these.
                    std::mem::forget(client.subscribe(subject).await.unwrap());
                }
            };
            told_of(options, "maximum subscriptions exceeded", act).await;
        }
        "max-connections" => {
            let first = connect().await;
            // The text may be lost with nats-server, which closes over what the client sent.
            refused(options).await;
            works(&first).await;
        }
        "auth-password" => {
            works(&with(options.user_and_password("ann".into(), "secret".into())).await).await;
        }
        "auth-token" => works(&with(options.token("t0ken".into())).await).await,
        "auth-nkey" => {
            let seed = std::fs::read_to_string(file("user.nk")).unwrap();
            works(&with(options.nkey(seed)).await).await;
        }
        "auth-jwt" => {
            let credentials = options.credentials_file(file("user.creds")).await.unwrap();
            works(&with(credentials).await).await;
        }
        "auth-wrong" => {
            println!("{}", refused(options.user_and_password("ann".into(), "no".into())).await);
        }
        "tls" => works(&with(trusting()).await).await,
        "tls-certificate" => {
            let (cert, key) = (file("client.pem"), file("client.key"));
            works(&with(trusting().add_client_certificate(cert, key)).await).await;
            refused(trusting()).await;
            println!("refused without one");
        }
        "websocket" => {
            let url = env::var("WS_URL").unwrap();
            let client = ConnectOptions::new().connect(url).await.unwrap();
            works(&client).await;
            let mut sub = listen(&client, "big").await;
            client.publish("big", vec![0; 100_000].into()).await.unwrap();
            println!("{}", next(&mut sub).await.payload.len());
        }
        "tls-first" => works(&with(trusting().tls_first()).await).await,
        "reconnect" => reconnect().await,
        "closed" => closed().await,
        "lame-duck" => {
            let act = async |_: &Client| ask("lame-duck");
            told_of(options, "lame duck", act).await;
        }
        "slow-consumer" => slow_consumer().await,
        "discovered-servers" => discovered_servers().await,
        "jetstream" => {
            let context = async_nats::jetstream::new(connect().await);
            println!("{:?}", context.query_account().await.unwrap_err().kind());
        }
        name if streams::behave(name).await => {}
        _ => exit(NOT_ASKED),
    }
}

/// As the lock file of the repository has it.
fn async_nats_version() -> &'static str {
    let lock = include_str!("../../Cargo.lock");
    let after = lock.split("name = \"async-nats\"\nversion = \"").nth(1).unwrap();
    after.split('"').next().unwrap()
}

#[tokio::main]
async fn main() {
    let name = env::args().nth(1).expect("the behaviour's name");
    behave(&name).await;
    exit(0);
}
