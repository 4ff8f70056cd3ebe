//! The servers of the README, as their files are printed there.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use async_nats::Message;
use futures::StreamExt;
use tokio::time::timeout;

use crate::broker::members::{Kind, Original, Ours, client, has_original, meet, start, until};
use crate::broker::peers::{next, within};
use crate::broker::{Broker, is_nats_server, shard_counts};

/// Ports of loopback in the place of addresses, each with its own.
#[derive(Default)]
struct Addresses(BTreeMap<String, u16>);

impl Addresses {
    fn port(&mut self, address: &str) -> u16 {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("it is bound").port()
        };
        *self.0.entry(address.to_owned()).or_insert_with(free)
    }

    /// A file of the server with address `own`, with ports of loopback in it.
    fn file(&mut self, text: &str, own: &str) -> String {
        let mut file = text.to_owned();
        for host in ["10.0.0.1", "10.0.0.2", "10.1.0.1", "10.1.0.2", "0.0.0.0"] {
            for port in [4222, 6222, 7222, 7422] {
                let address = format!("{}:{port}", if host == "0.0.0.0" { own } else { host });
                let local = format!("127.0.0.1:{}", self.port(&address));
                file = file.replace(&format!("{host}:{port}"), &local);
            }
        }
        file
    }
}

/// The two members of each cluster, and the leaf node of either.
const NAMES: [&str; 6] = ["a1", "a2", "b1", "b2", "edge1", "edge2"];

#[tokio::test]
async fn clusters_and_leaf_nodes_of_the_readme_reach_one_another() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        all_reach_one_another([Ours(shards); 6]).await;
    }
}

#[tokio::test]
async fn any_server_of_the_readme_may_be_a_nats_server() {
    if !has_original() {
        return;
    }
    // Each link of the picture is there between ours and the original, dialled by either.
    for number in [0b01_0110, 0b10_1001, 0b10_0101, 0b01_1010, 0b00_1111, 0b11_0000] {
        let kind = |at: usize| if number >> at & 1 == 1 { Original } else { Ours(2) };
        all_reach_one_another(std::array::from_fn(kind)).await;
    }
}

/// Starts the servers of the README, each of this kind: a message or request from any reaches any,
/// once and in order.
async fn all_reach_one_another(kinds: [Kind; 6]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("README.md")).expect("it is there");
    let blocks = page.split("```conf\n").skip(1).filter_map(|block| block.split_once("```"));
    let files: Vec<&str> = blocks.map(|(file, _)| file).collect();
    let [a1, b1, edge] = files[..] else { panic!("{} files", files.len()) };
    let files = [
        (a1.to_owned(), "10.0.0.1"),
        (a1.replace("a1", "a2"), "10.0.0.2"),
        (b1.to_owned(), "10.1.0.1"),
        (b1.replace("b1", "b2"), "10.1.0.2"),
        (edge.to_owned(), "10.2.0.1"),
        (edge.replace("edge1", "edge2").replace("10.0.0.1", "10.1.0.2"), "10.2.0.2"),
    ];
    let mut addresses = Addresses::default();
    let files = files.map(|(file, own)| addresses.file(&file, own));
    let servers = kinds.iter().zip(&files).map(|(kind, file)| start(*kind, file));
    let all: Vec<Broker> = servers.collect();
    for (at, broker) in all.iter().enumerate() {
        answer(broker, &format!("call.{at}")).await;
    }
    // Until all are joined, a request may go where nobody is.
    let soon = Duration::from_millis(500);
    for (from, at) in pairs(all.len()) {
        let asking = client(&all[from]).await;
        let call = || asking.request(format!("call.{at}"), "".into());
        until(|| async { matches!(timeout(soon, call()).await, Ok(Ok(_))) }).await;
    }
    // From then on each is answered, from a fresh inbox, too.
    for (from, at) in pairs(all.len()) {
        let fresh = client(&all[from]).await;
        let answer = within(fresh.request(format!("call.{at}"), "".into())).await;
        let (from, at) = (NAMES[from], NAMES[at]);
        answer.unwrap_or_else(|error| panic!("from {from} to {at} of {kinds:?}: {error}"));
    }
    for (from, at) in pairs(all.len()) {
        let (here, there) = (client(&all[from]).await, client(&all[at]).await);
        let mut news = there.subscribe(format!("news.{from}.{at}")).await.expect("connected");
        meet(&there, &here).await;
        for number in 0..10 {
            let subject = format!("news.{from}.{at}");
            here.publish(subject, number.to_string().into()).await.expect("connected");
        }
        for number in 0..10 {
            let message = next(&mut news).await;
            let (from, at) = (NAMES[from], NAMES[at]);
            assert_eq!(message.payload, number.to_string().as_bytes(), "from {from} to {at}");
        }
    }
}

/// Each of so many with each other one.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let pairs = (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)));
    pairs.filter(|(from, to)| from != to)
}

/// A client that answers requests.
async fn answer(broker: &Broker, subject: &str) {
    let client = client(broker).await;
    let mut calls = client.subscribe(subject.to_owned()).await.expect("connected");
    tokio::spawn(async move {
        while let Some(Message { reply: Some(reply), .. }) = calls.next().await {
            client.publish(reply, "".into()).await.expect("connected");
        }
    });
}
