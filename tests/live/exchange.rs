//! What goes from account to account between members of a cluster, and what members say of
//! themselves.

use std::collections::BTreeSet;

use crate::broker::Broker;
use crate::broker::members::{
    Kind, Old, Ours, config, meet, originals, pairs, routes, start, until,
};
use crate::broker::peers::{next, within};
use async_nats::{Client, ConnectOptions, RequestErrorKind};
use futures::{FutureExt, StreamExt};
use serde_json::Value;

const ACCOUNTS: &str = "
    accounts {
        SHOP {
            users [{user: shop, password: p}]
            exports [{service: \"price.*\"}, {service: \"all.*\", response_type: stream}
                     {stream: \"offers.>\"}]
        }
        FAN {
            users [{user: fan, password: p}]
            imports [
                {service: {account: SHOP, subject: \"price.*\"}}
                {service: {account: SHOP, subject: \"all.*\"}, to: \"each.*\"}
                {stream: {account: SHOP, subject: \"offers.>\"}, prefix: shop}
            ]
        }
        SYS { users [{user: sys, password: p}] }
    }
    system_account: SYS
";

/// How long the first answer is waited for before it is asked again.
const FIRST_ANSWER: std::time::Duration = std::time::Duration::from_secs(1);

fn pair(kinds: [Kind; 2]) -> (Broker, Broker) {
    let mut first = start(kinds[0], &config("a", "", "", ACCOUNTS));
    let routes = routes("127.0.0.1", &mut [&mut first]);
    let second = start(kinds[1], &config("b", &routes, "", ACCOUNTS));
    (first, second)
}

/// Ours with ours, and with each nats-server that is here, either of them dialling.
fn all_pairs() -> Vec<[Kind; 2]> {
    let old = originals().into_iter().filter(|kind| *kind == Old);
    pairs().into_iter().chain(old.flat_map(|kind| [[Ours(2), kind], [kind, Ours(2)]])).collect()
}

async fn user(broker: &Broker, name: &str) -> Client {
    let options = ConnectOptions::with_user_and_password(name.to_owned(), "p".to_owned());
    within(options.retry_on_initial_connect().connect(broker.url())).await.expect("it accepts")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_asked_from_another_account_on_another_member() {
    for kinds in all_pairs() {
        let (first, second) = pair(kinds);
        for (here, there) in [(&first, &second), (&second, &first)] {
            let (shop, fan) = (user(here, "shop").await, user(there, "fan").await);
            let mut prices = shop.queue_subscribe("price.*", "q".into()).await.expect("connected");
            let mut all = shop.subscribe("all.*").await.expect("connected");
            shop.flush().await.expect("connected");
            let server = shop.clone();
            let serving = tokio::spawn(async move {
                loop {
                    futures::select! {
                        request = prices.next().fuse() => {
                            let Some(request) = request else { return };
                            let price = format!("{} costs 3", request.subject);
                            let reply = request.reply.expect("a request has a reply subject");
                            server.publish(reply, price.into()).await.expect("connected");
                        }
                        request = all.next().fuse() => {
                            let Some(request) = request else { return };
                            let reply = request.reply.expect("a request has a reply subject");
                            for part in ["one", "two", ""] {
                                let sent = server.publish(reply.clone(), part.into()).await;
                                sent.expect("connected");
                            }
                        }
                    }
                }
            });
            // Even between two of its own, nats-server 2.9 may lose the first answer.
            let request = || async_nats::Request::new().timeout(Some(FIRST_ANSWER));
            until(|| async { fan.send_request("price.tea", request()).await.is_ok() }).await;
            for at in 0..50 {
                let subject = format!("price.{at}");
                let answer = within(fan.request(subject.clone(), "".into())).await;
                let answer = answer.unwrap_or_else(|error| panic!("{kinds:?} {subject}: {error}"));
                assert_eq!(answer.payload, format!("{subject} costs 3").as_bytes());
            }
            let inbox = fan.new_inbox();
            let mut parts = fan.subscribe(inbox.clone()).await.expect("connected");
            fan.publish_with_reply("each.one", inbox, "".into()).await.expect("connected");
            for part in ["one", "two", ""] {
                assert_eq!(next(&mut parts).await.payload, part, "{kinds:?}");
            }
            // Nobody in the asking account hears of it, and nobody there can ask without an import.
            let gone = fan.request("all.one", "".into()).await.expect_err("it is not imported");
            assert_eq!(gone.kind(), RequestErrorKind::NoResponders, "{kinds:?}");
            serving.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_heard_in_another_account_on_another_member_once() {
    const OFFERS: usize = 50;
    for kinds in all_pairs() {
        let (first, second) = pair(kinds);
        for (here, there) in [(&first, &second), (&second, &first)] {
            let (shop, fan) = (user(here, "shop").await, user(there, "fan").await);
            let (neighbour, other) = (user(here, "fan").await, user(there, "shop").await);
            let mut heard = fan.subscribe("shop.offers.*").await.expect("connected");
            let mut heard_here = neighbour.subscribe("shop.>").await.expect("connected");
            let mut original = other.subscribe("offers.*").await.expect("connected");
            let mut overheard = fan.subscribe("offers.*").await.expect("connected");
            meet(&fan, &neighbour).await;
            meet(&other, &shop).await;
            neighbour.flush().await.expect("connected");
            for number in 0..OFFERS {
                let offer = number.to_string();
                shop.publish("offers.tea", offer.into()).await.expect("connected");
            }
            shop.flush().await.expect("connected");
            for number in 0..OFFERS {
                for (heard, subject) in [
                    (&mut heard, "shop.offers.tea"),
                    (&mut heard_here, "shop.offers.tea"),
                    (&mut original, "offers.tea"),
                ] {
                    let offer = next(heard).await;
                    assert_eq!(offer.payload, number.to_string().as_bytes(), "{kinds:?}");
                    assert_eq!(offer.subject.as_str(), subject, "{kinds:?}");
                }
            }
            // What came twice, or where it does not belong, would be there before this.
            meet(&fan, &neighbour).await;
            meet(&other, &shop).await;
            for heard in [&mut heard, &mut heard_here, &mut original, &mut overheard] {
                assert!(heard.next().now_or_never().is_none(), "{kinds:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_answers_for_itself_in_the_system_account() {
    let asked = all_pairs().into_iter().map(async |kinds| {
        let (first, second) = pair(kinds);
        futures::join!(list(&first, kinds), list(&second, kinds));
    });
    futures::future::join_all(asked).await;
}

/// Asks all members, by way of one of them, who they are, and each for a page.
async fn list(broker: &Broker, kinds: [Kind; 2]) {
    let sys = user(broker, "sys").await;
    let mut told = sys.subscribe("$SYS.SERVER.*.STATSZ").await.expect("connected");
    // As long as the members do not know each other, one of them answers.
    until(|| async { names(&sys).await.len() == 2 }).await;
    for (name, id) in names(&sys).await {
        let page = format!("$SYS.REQ.SERVER.{id}.VARZ");
        let answer = within(sys.request(page, "".into())).await.expect("it answers");
        let varz: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!(varz["data"]["server_name"], name.as_str(), "{kinds:?}");
    }
    let mut heard = BTreeSet::new();
    // The old one speaks every half minute only.
    while heard.len() < 2 && !kinds.contains(&Old) {
        let statsz = next(&mut told).await;
        let statsz: Value = serde_json::from_slice(&statsz.payload).expect("JSON");
        heard.insert(statsz["server"]["name"].to_string());
    }
}

/// The names and ids of the servers that answer a ping.
async fn names(sys: &Client) -> BTreeSet<(String, String)> {
    let inbox = sys.new_inbox();
    let mut answers = sys.subscribe(inbox.clone()).await.expect("connected");
    let ping = sys.publish_with_reply("$SYS.REQ.SERVER.PING", inbox, "".into());
    ping.await.expect("connected");
    let mut servers = BTreeSet::new();
    let patience = std::time::Duration::from_secs(1);
    while servers.len() < 2
        && let Ok(Some(answer)) = tokio::time::timeout(patience, answers.next()).await
    {
        let told: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert!(told["statsz"]["connections"].is_u64(), "{told}");
        let text = |key: &str| told["server"][key].as_str().expect("text").to_owned();
        servers.insert((text("name"), text("id")));
    }
    servers
}
