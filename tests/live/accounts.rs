//! Accounts and the system account, as an official client uses them; what the system account
//! says is compared with nats-server where that is there.

use crate::broker::peers::{ask_until_answered, next, within};
use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, shard_counts};
use async_nats::{Client, ConnectOptions, Event, Message, RequestErrorKind, Subscriber};
use futures::StreamExt;
use serde_json::{Value, json};

/// How long a message is waited for before it is sent again.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(50);

const CONFIG: &str = "
    server_name: one
    accounts {
        SHOP {
            users [{user: shop, password: p}]
            exports [{service: \"price.*\"}, {stream: \"offers.>\"}]
        }
        FAN {
            users [{user: fan, password: p, permissions: {publish: {deny: secret}}}]
            imports [
                {service: {account: SHOP, subject: \"price.*\"}}
                {stream: {account: SHOP, subject: \"offers.>\"}, prefix: shop}
            ]
        }
        SYS { users [{user: sys, password: p}] }
    }
    system_account: SYS
";

async fn connect(broker: &Broker, user: &str) -> Client {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), "p".to_owned());
    let client = options.name(user).connect(broker.url()).await.expect("the password is right");
    client.flush().await.expect("connected");
    client
}

async fn subscribe(client: &Client, subject: &'static str) -> Subscriber {
    let subscriber = client.subscribe(subject).await.expect("connected");
    client.flush().await.expect("connected");
    subscriber
}

/// Events in the order of their arrival, and those that were passed over: nats-server tells some of
/// them in any order.
struct Events {
    subscriber: Subscriber,
    passed: Vec<Message>,
}

impl Events {
    async fn on(client: &Client, filter: &'static str) -> Self {
        Self { subscriber: subscribe(client, filter).await, passed: Vec::new() }
    }

    /// The next event on a subject that ends like this.
    async fn next_of(&mut self, end: &str) -> Value {
        let is_it = |event: &Message| event.subject.ends_with(end);
        if let Some(at) = self.passed.iter().position(is_it) {
            return parse(&self.passed.remove(at).payload);
        }
        // Events that come for ever are not to hide one that does not.
        let search = async {
            loop {
                let event = next(&mut self.subscriber).await;
                if is_it(&event) {
                    return parse(&event.payload);
                }
                self.passed.push(event);
            }
        };
        within(search).await
    }
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"))
}

async fn ask(client: &Client, subject: &str, payload: &'static str) -> Value {
    let answer = within(client.request(subject.to_owned(), payload.into())).await;
    parse(&answer.unwrap_or_else(|error| panic!("{subject}: {error}")).payload)
}

/// What the value is made of: its keys, in order.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> =
        value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys
}

/// Ours with as many shards as tests use, and nats-server.
fn brokers() -> Vec<Broker> {
    let ours = shard_counts().iter().map(|shards| Broker::with_config(*shards, CONFIG));
    let original = has_original().then(|| Broker::original(CONFIG));
    ours.chain(original).collect()
}

#[tokio::test]
async fn a_service_is_asked_from_another_account_and_a_stream_is_heard_there() {
    for broker in brokers() {
        let (shop, fan) = (connect(&broker, "shop").await, connect(&broker, "fan").await);
        let error = fan.request("price.tea", "".into()).await.unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::NoResponders);
        let mut asked = subscribe(&shop, "price.*").await;
        let server = shop.clone();
        tokio::spawn(async move {
            while let Some(request) = asked.next().await {
                let price = format!("{} costs 3", request.subject);
                server.publish(request.reply.unwrap(), price.into()).await.unwrap();
            }
        });
        ask_until_answered(&fan, "price.tea", "").await;
        for _ in 0..20 {
            let answer = within(fan.request("price.tea", "".into())).await.unwrap();
            assert_eq!(answer.payload, "price.tea costs 3");
        }
        let mut offers = subscribe(&fan, "shop.offers.*").await;
        // Until the subscription is known to be in force, it may miss some.
        while tokio::time::timeout(PATIENCE, offers.next()).await.is_err() {
            shop.publish("offers.first", "".into()).await.unwrap();
        }
        for number in 0..20 {
            shop.publish("offers.tea", format!("{number}").into()).await.unwrap();
        }
        let mut wanted = 0;
        while wanted < 20 {
            let offer = next(&mut offers).await;
            if offer.subject.as_str() == "shop.offers.tea" {
                assert_eq!(offer.payload, wanted.to_string());
                wanted += 1;
            }
        }
    }
}

#[tokio::test]
async fn the_system_account_hears_who_comes_and_goes_and_who_is_refused() {
    for broker in brokers() {
        let sys = connect(&broker, "sys").await;
        let mut events = Events::on(&sys, "$SYS.>").await;
        let fan = connect(&broker, "fan").await;
        // The subscriber's own coming may still be told, after it has subscribed.
        let came = events.next_of("$SYS.ACCOUNT.FAN.CONNECT").await;
        assert_eq!(came["type"], "io.nats.server.advisory.v1.client_connect");
        assert_eq!(came["server"]["name"], "one");
        assert_eq!(
            (&came["client"]["acc"], &came["client"]["user"], &came["client"]["lang"]),
            (&json!("FAN"), &json!("fan"), &json!("rust"))
        );
        drop(fan);
        while events.next_of("FAN.SERVER.CONNS").await["conns"] != 0 {}
        let went = events.next_of("$SYS.ACCOUNT.FAN.DISCONNECT").await;
        assert_eq!(went["client"]["id"], came["client"]["id"]);
        assert_eq!(went["reason"], "Client Closed");
        let wrong = ConnectOptions::with_user_and_password("fan".to_owned(), "q".to_owned());
        wrong.connect(broker.url()).await.unwrap_err();
        let refused = events.next_of(".CLIENT.AUTH.ERR").await;
        assert_eq!(refused["reason"], "Authentication Failure");
        assert_eq!(refused["client"]["user"], "fan");
        let went = events.next_of("$SYS.ACCOUNT.$G.DISCONNECT").await;
        assert_eq!(went["reason"], "Authentication Failure");
        // Who says nothing at all is told of when it goes, too.
        drop(Wire::open(&broker));
        let went = events.next_of("$SYS.ACCOUNT.$G.DISCONNECT").await;
        assert_eq!(
            (&went["client"]["acc"], &went["reason"]),
            (&json!("$G"), &json!("Client Closed"))
        );
        // It was nobody's, so no account has one less: what is told next is of the next to come.
        let _fan = connect(&broker, "fan").await;
        loop {
            let subject = next(&mut events.subscriber).await.subject;
            assert!(!subject.contains(".$G."), "{subject}");
            if subject.as_str() == "$SYS.ACCOUNT.FAN.CONNECT" {
                break;
            }
        }
    }
}

#[tokio::test]
async fn the_system_account_is_told_that_the_server_sends_its_clients_away() {
    for broker in brokers() {
        let sys = connect(&broker, "sys").await;
        let mut events = Events::on(&sys, "$SYS.SERVER.*.LAMEDUCK").await;
        // What is answered behind the subscription says that it is in force.
        ask(&sys, "$SYS.REQ.USER.INFO", "").await;
        broker.signal(rustix::process::Signal::USR2);
        let told = events.next_of(".LAMEDUCK").await;
        assert_eq!(told["name"], "one");
    }
}

#[tokio::test]
async fn the_system_account_answers_as_nats_server_does() {
    let pages = ["CONNZ", "SUBSZ", "ACCOUNTZ", "ROUTEZ", "GATEWAYZ", "LEAFZ", "HEALTHZ", "VARZ"];
    let mut shapes: Vec<Vec<(String, Vec<String>)>> = Vec::new();
    for broker in brokers() {
        let sys = connect(&broker, "sys").await;
        let _fan = connect(&broker, "fan").await;
        let statsz = ask(&sys, "$SYS.REQ.SERVER.PING", "").await;
        assert_eq!(statsz["server"]["name"], "one");
        assert_eq!(statsz["statsz"]["connections"], 2);
        let id = statsz["server"]["id"].as_str().unwrap();
        let mut shape = Vec::new();
        let mut note = |subject: &str, value: &Value| {
            // What the whole of nats-server is made of is not ours to have.
            let all = keys(value).into_iter().map(str::to_owned);
            shape.push((subject.to_owned(), all.collect()));
        };
        note("STATSZ", &statsz["statsz"]);
        for page in pages {
            let ping = ask(&sys, &format!("$SYS.REQ.SERVER.PING.{page}"), "").await;
            let direct = ask(&sys, &format!("$SYS.REQ.SERVER.{id}.{page}"), "").await;
            assert_eq!(keys(&ping["data"]), keys(&direct["data"]), "{page}");
            if page != "VARZ" {
                note(page, &ping["data"]);
            }
        }
        for page in ["CONNZ", "SUBSZ", "INFO", "STATZ"] {
            let answer = ask(&sys, &format!("$SYS.REQ.ACCOUNT.FAN.{page}"), "").await;
            let mut data = answer["data"].clone();
            if page == "INFO" {
                // Every account there imports what it may ask the server.
                data.as_object_mut().unwrap().remove("imports");
            }
            if page == "SUBSZ" {
                data.as_object_mut().unwrap().remove("subscriptions_list");
            }
            note(&format!("FAN.{page}"), &data);
        }
        let conns = ask(&sys, "$SYS.REQ.ACCOUNT.FAN.CONNZ", "").await;
        assert_eq!(conns["data"]["num_connections"], 1);
        let named = ask(&sys, "$SYS.REQ.SERVER.PING.CONNZ", r#"{"auth":true,"acc":"FAN"}"#).await;
        assert_eq!(named["data"]["connections"][0]["authorized_user"], "fan");
        assert_eq!(named["data"]["connections"][0]["account"], "FAN");
        let error = ask(&sys, "$SYS.REQ.SERVER.PING.CONNZ", "{").await;
        assert_eq!(error["error"]["code"], 400);
        let error = ask(&sys, "$SYS.REQ.ACCOUNT.NOBODY.INFO", "").await;
        assert_eq!(error["error"]["description"], "Account NOBODY does not exist");
        for unknown in ["$SYS.REQ.SERVER.PING.NOSUCH", "$SYS.REQ.SERVER.NOBODY.VARZ"] {
            let error = sys.request(unknown, "".into()).await.unwrap_err();
            assert_eq!(error.kind(), RequestErrorKind::NoResponders, "{unknown}");
        }
        shapes.push(shape);
    }
    assert!(shapes.windows(2).all(|pair| pair[0] == pair[1]), "{shapes:#?}");
}

#[tokio::test]
async fn who_is_not_in_the_system_account_can_ask_about_itself_only() {
    for broker in brokers() {
        let fan = connect(&broker, "fan").await;
        let _shop = connect(&broker, "shop").await;
        let info = ask(&fan, "$SYS.REQ.USER.INFO", "").await;
        assert_eq!(
            (&info["data"]["user"], &info["data"]["account"]),
            (&json!("fan"), &json!("FAN"))
        );
        assert_eq!(
            info["data"]["permissions"],
            json!({"publish": {"deny": ["secret"]}, "subscribe": {}})
        );
        let conns = ask(&fan, "$SYS.REQ.ACCOUNT.PING.CONNZ", "").await;
        assert_eq!(conns["data"]["num_connections"], 1);
        let statz = ask(&fan, "$SYS.REQ.ACCOUNT.PING.STATZ", "").await;
        assert_eq!(statz["data"]["account_statz"][0]["acc"], "FAN");
        for closed in ["$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.SHOP.CONNZ"] {
            let error = fan.request(closed, "".into()).await.unwrap_err();
            assert_eq!(error.kind(), RequestErrorKind::NoResponders, "{closed}");
        }
    }
}

#[tokio::test]
async fn an_account_that_a_reload_takes_away_takes_its_clients_with_it() {
    for shards in shard_counts() {
        let mut broker = Broker::with_config(*shards, CONFIG);
        let (ended, mut ends) = futures::channel::mpsc::unbounded();
        let options = ConnectOptions::with_user_and_password("fan".to_owned(), "p".to_owned());
        let fan = options.event_callback(move |event| {
            let ended = ended.clone();
            async move {
                let _ = ended.unbounded_send(event);
            }
        });
        let _fan = fan.connect(broker.url()).await.unwrap();
        let shop = connect(&broker, "shop").await;
        let mut heard = subscribe(&shop, "offers.>").await;
        broker.reload("accounts { SHOP { users [{user: shop, password: p}] } }");
        while within(ends.next()).await.unwrap() != Event::Disconnected {}
        shop.publish("offers.tea", "still here".into()).await.unwrap();
        assert_eq!(next(&mut heard).await.payload, "still here");
    }
}

#[tokio::test]
async fn as_many_connections_as_an_account_may_have_come_in_at_one_instant_and_no_more() {
    const MAX: usize = 3;
    let limits = format!("limits {{ max_connections: {MAX} }}");
    let config = format!("accounts {{ A {{\n users [{{user: a, password: p}}]\n {limits} }} }}");
    let ours = shard_counts().iter().map(|shards| Broker::with_config(*shards, &config));
    let original = has_original().then(|| Broker::original(&config));
    for broker in ours.chain(original) {
        let connect = || {
            let options = ConnectOptions::with_user_and_password("a".to_owned(), "p".to_owned());
            options.connect(broker.url())
        };
        let came = futures::future::join_all((0..24).map(|_| connect())).await;
        let came: Vec<_> = came.into_iter().filter_map(Result::ok).collect();
        assert_eq!(came.len(), MAX);
        // Whoever goes leaves a seat.
        drop(came);
        while connect().await.is_err() {}
    }
}
