//! A program that decides by itself who may log in to the server inside it.
//!
//! `cargo run --example own_login`. The server asks over NATS (auth callout, see
//! `docs/callout.md`), so the same code works in a process of its own, and with other servers.

#![forbid(unsafe_code)]

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::{Client, ConnectOptions, Message};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shardcast::Server;

type Failure = Box<dyn Error + Send + Sync>;

/// The program's own rule: a word of the user table, and what the user may do.
fn permissions_of(user: &str, password: &str) -> Option<Value> {
    match (user, password) {
        ("reader", "sesame") => Some(json!({
            "pub": {"deny": [">"]}, "sub": {"allow": ["news.>", "_INBOX.>"]},
        })),
        ("writer", "open") => Some(json!({"pub": {"allow": ["news.>"]}, "sub": {}})),
        _ => None,
    }
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<(), Failure> {
    let issuer = KeyPair::new_account();
    let config = format!(
        "accounts {{ AUTH {{ users: [{{user: auth, password: inside}}] }}, APP {{}} }}
         authorization {{ auth_callout {{
             issuer: {}, account: AUTH, auth_users: [auth] }} }}",
        issuer.public_key(),
    );
    let server = Server::builder().config_text(config).start()?;
    let url = server.client_url();
    serve(enter(&url, "auth", "inside").await?, issuer).await?;

    let reader = enter(&url, "reader", "sesame").await?;
    let mut news = reader.subscribe("news.>").await?;
    reader.flush().await?;
    let writer = enter(&url, "writer", "open").await?;
    writer.publish("news.today", "it works".into()).await?;
    let message = news.next().await.ok_or("the connection has ended")?;
    println!("{}: {}", message.subject, String::from_utf8_lossy(&message.payload));

    let stranger = enter(&url, "reader", "guess").await;
    println!("a stranger: {}", if stranger.is_err() { "refused" } else { "let in" });
    assert!(stranger.is_err(), "a wrong password is refused");
    tokio::task::spawn_blocking(|| server.stop()).await??;
    Ok(())
}

async fn enter(url: &str, user: &str, password: &str) -> Result<Client, async_nats::ConnectError> {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    options.connect(url).await
}

/// Answers the server's questions about clients.
async fn serve(client: Client, issuer: KeyPair) -> Result<(), async_nats::Error> {
    let mut questions = client.subscribe("$SYS.REQ.USER.AUTH").await?;
    client.flush().await?;
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            match answer(&issuer, &question) {
                Ok((reply, token)) => drop(client.publish(reply, token.into()).await),
                Err(error) => eprintln!("a question that cannot be answered: {error}"),
            }
        }
    });
    Ok(())
}

/// The answer to a question, and the subject where it is awaited.
fn answer(issuer: &KeyPair, question: &Message) -> Result<(async_nats::Subject, String), Failure> {
    let token = std::str::from_utf8(&question.payload)?;
    let body = token.split('.').nth(1).ok_or("a question is a token")?;
    let asked: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body)?)?;
    let about = &asked["nats"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (user, server) = (text(&about["user_nkey"]), text(&about["server_id"]["id"]));
    let (name, password) =
        (text(&about["connect_opts"]["user"]), text(&about["connect_opts"]["pass"]));
    let mut decided = json!({"type": "authorization_response", "version": 2});
    match permissions_of(&name, &password) {
        Some(mut allowed) => {
            for limit in ["subs", "data", "payload"] {
                allowed[limit] = json!(-1);
            }
            allowed["type"] = json!("user");
            allowed["version"] = json!(2);
            let claims = json!({"sub": user, "aud": "APP", "name": name, "nats": allowed});
            decided["jwt"] = json!(signed(issuer, claims)?);
        }
        None => decided["error"] = json!(format!("no such user or password: {name}")),
    }
    let claims = json!({"sub": user, "aud": server, "nats": decided});
    let reply = question.reply.clone().ok_or("nobody waits for the answer")?;
    Ok((reply, signed(issuer, claims)?))
}

/// A token with these claims.
#[expect(clippy::disallowed_methods, reason = "a token says when it was made")]
fn signed(issuer: &KeyPair, mut claims: Value) -> Result<String, Failure> {
    claims["iss"] = json!(issuer.public_key());
    claims["iat"] = json!(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let id = Sha256::digest(claims.to_string().as_bytes());
    claims["jti"] = json!(URL_SAFE_NO_PAD.encode(id));
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let signing = format!("{}.{}", part(&head), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signing.as_bytes())?);
    Ok(format!("{signing}.{signature}"))
}
