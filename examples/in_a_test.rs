//! A server of its own for each test of a service, reached by async-nats.
//!
//! `cargo run --example in_a_test`; in your own tests `main` is a `#[tokio::test]`.

#![forbid(unsafe_code)]

use std::error::Error;

use futures::StreamExt;
use shardcast::Server;

/// The service that is tested: it answers each request with the same text in upper case.
async fn shout(client: async_nats::Client) -> Result<(), async_nats::Error> {
    let mut requests = client.subscribe("shout").await?;
    client.flush().await?;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let answer = String::from_utf8_lossy(&request.payload).to_uppercase();
            if let Some(reply) = request.reply {
                client.publish(reply, answer.into()).await.ok();
            }
        }
    });
    Ok(())
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // Any free port, so that tests run beside each other. Nothing has to be installed.
    let server = Server::builder().start()?;

    shout(async_nats::connect(server.client_url()).await?).await?;

    let client = async_nats::connect(server.client_url()).await?;
    let answer = client.request("shout", "hello".into()).await?;
    assert_eq!(&answer.payload[..], b"HELLO");
    println!("{}", String::from_utf8_lossy(&answer.payload));

    // It would also stop at the end of its scope.
    tokio::task::spawn_blocking(|| server.stop()).await??;
    Ok(())
}
