//! JetStream of the other side of a leaf connection, by the name of its domain.

use async_nats::jetstream::{self, kv};

use crate::broker::Broker;
use crate::broker::members::{Kind, Original, Ours, client, has_original, start, until};
use crate::broker::peers::within;

/// All pairs of a hub and its leaf node.
fn pairs() -> Vec<[Kind; 2]> {
    let mut pairs = vec![[Ours(1), Ours(2)], [Ours(4), Ours(1)]];
    if has_original() {
        pairs.extend([[Ours(2), Original], [Original, Ours(2)]]);
    }
    pairs
}

/// A client of `from` keeps keys in `domain`, and finds them again.
async fn keeps_keys(from: &Broker, domain: &str) {
    let client = client(from).await;
    let asking = || client.request(format!("$JS.{domain}.API.INFO"), "".into());
    until(|| async { asking().await.is_ok() }).await;
    let context = jetstream::with_domain(client.clone(), domain);
    let config = kv::Config { bucket: "b".to_owned(), ..kv::Config::default() };
    let store = within(context.create_key_value(config)).await.expect("the bucket is made");
    let revision = within(store.put("key", "value".into())).await.expect("it is kept");
    assert_eq!(revision, 1);
    let value = within(store.get("key")).await.expect("it is found").expect("it is there");
    assert_eq!(value, "value");
    let names = within(context.get_key_value("b")).await.expect("it is there").name;
    assert_eq!(names, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_kept_in_the_domain_of_the_hub_and_in_that_of_the_leaf_node() {
    for kinds in pairs() {
        let stores = [0; 2].map(|_| tempfile::tempdir().expect("a scratch directory"));
        let streams = |domain: &str, at: usize| {
            format!(
                "jetstream {{ domain: {domain}, store_dir: '{}' }}",
                stores[at].path().display()
            )
        };
        let mut hub = start(
            kinds[0],
            &format!(
                "server_name: hub\n{}\nleafnodes {{ listen: \"127.0.0.1:-1\" }}\n",
                streams("far", 0)
            ),
        );
        let port = hub.logged_port("Listening for leafnode connections on ");
        let leaf = start(
            kinds[1],
            &format!(
                "server_name: edge\n{}\nleafnodes {{ reconnect: \"100ms\", remotes: [ {{ url: \
                 \"nats-leaf://127.0.0.1:{port}\" }} ] }}\n",
                streams("near", 1)
            ),
        );
        for (from, domain) in [(&leaf, "far"), (&hub, "near")] {
            keeps_keys(from, domain).await;
        }
        // Neither has what the other one keeps, though both have a bucket of that name.
        for broker in [&hub, &leaf] {
            let own = jetstream::new(client(broker).await);
            let mut bucket = own.get_stream("KV_b").await.expect("it is there");
            assert_eq!(bucket.info().await.expect("it answers").state.messages, 1, "{kinds:?}");
        }
    }
}
