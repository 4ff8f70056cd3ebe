//! Two clients of async-nats that have to know of each other.

use async_nats::{Client, Message, RequestErrorKind, Subscriber};
use futures::StreamExt;

use super::PATIENCE;

/// Makes what `caller` subscribed to hold where `publisher` publishes.
///
/// async-nats cannot wait for a PONG: its `flush` only empties its own buffer. But the publisher
/// answers a request that the caller made after its subscriptions, and interest travels in order
/// with messages.
pub(crate) async fn meet(caller: &Client, publisher: &Client) {
    let subject = publisher.new_inbox();
    let mut calls = publisher.subscribe(subject.clone()).await.expect("connected");
    let answer = async {
        let call = next(&mut calls).await;
        let reply = call.reply.expect("a request has a reply subject");
        publisher.publish(reply, "".into()).await.expect("connected");
    };
    futures::join!(answer, ask_until_answered(caller, &subject, ""));
}

/// Asks again while nobody listens yet.
pub(crate) async fn ask_until_answered(
    client: &Client,
    subject: &str,
    question: &'static str,
) -> Message {
    loop {
        match client.request(subject.to_owned(), question.into()).await {
            Ok(answer) => return answer,
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {}
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) async fn next(subscriber: &mut Subscriber) -> Message {
    within(subscriber.next()).await.expect("the subscription goes on")
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}
