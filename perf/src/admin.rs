//! The administration of a server beside its load: very many accounts, whose tokens are pushed
//! over the system account, and a configuration that is read again and again.
//!
//! Nothing of that changes what the load may do, so whatever the server has more of afterwards it
//! has kept for nothing.

use crate::client::{Access, Identity, Target, with_ring};
use crate::clock::{Ticker, duration_ns};
use crate::desk::Desk;
use crate::fault::{Fault, Outcome};
use crate::server::Started;
use crate::tls::Tls;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What the server may take for all that is asked of it in a round.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked whether it has read its configuration.
const LOOK: Duration = Duration::from_millis(10);
/// Seconds since 1970 that every token says it was made at, in 2020.
const ISSUED_AT: u64 = 1_600_000_000;

/// How much administration there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Accounts that the server has, besides its system account; at least one.
    pub(crate) accounts: usize,
    /// How often it reads its configuration in a round.
    pub(crate) reloads: usize,
    /// Tokens that are pushed in a round.
    pub(crate) pushes: usize,
}

/// What administration a round had, and how long it took.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Administered {
    /// How often the server has read its configuration.
    pub(crate) reloads: usize,
    /// Milliseconds that each of them took until it was in force.
    pub(crate) reload_ms: f64,
    /// Tokens that the server has taken.
    pub(crate) pushes: usize,
    /// Milliseconds that each of them took until it was in force.
    pub(crate) push_ms: f64,
}

/// An operator, its accounts, and the directory in which the server keeps their tokens; that is
/// removed with this value.
#[derive(Debug)]
pub(crate) struct Admin {
    plan: Plan,
    operator: KeyPair,
    system: KeyPair,
    accounts: Vec<KeyPair>,
    directory: PathBuf,
    /// Tokens pushed, and configurations written, so far.
    pushed: usize,
    written: usize,
}

impl Drop for Admin {
    fn drop(&mut self) {
        // Somebody else may have removed it, which is all that was wanted.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Admin {
    /// Makes the keys of all of them.
    pub(crate) fn new(plan: Plan) -> Outcome<Self> {
        let name = format!("shardcast-perf-{}-accounts", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).map_err(|e| {
            let cause = format!("there is no place for tokens ({e})");
            Fault::new(cause, "make room, or set TMPDIR")
        })?;
        Ok(Self {
            plan,
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            accounts: (0..plan.accounts.max(1)).map(|_| KeyPair::new_account()).collect(),
            directory,
            pushed: 0,
            written: 0,
        })
    }

    /// The server's configuration, another one each time.
    pub(crate) fn config(&mut self) -> Outcome<String> {
        self.written += 1;
        let operator = self.operator.public_key();
        let claims = json!({"system_account": self.system.public_key()});
        let mut text = format!(
            "operator: {}\nsystem_account: {}\nresolver {{ type: full, dir: '{}' }}\n\
             authorization {{ timeout: 60 }}\nping_max: {}\nresolver_preload {{\n",
            token(&self.operator, &operator, "operator", claims)?,
            self.system.public_key(),
            self.directory.display(),
            2 + self.written % 2,
        );
        for account in std::iter::once(&self.system).chain(&self.accounts) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {}: {}", account.public_key(), self.signed(account, 0)?);
        }
        Ok(text + "}\n")
    }

    /// What gets the load in: a user of the first account.
    pub(crate) fn access(&self, tls: Tls) -> Outcome<Access> {
        let account = self.accounts.first().unwrap_or(&self.system);
        Ok(Access { identity: user_of(account)?, tls })
    }

    fn signed(&self, account: &KeyPair, version: usize) -> Outcome<String> {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": -1, "leaf": -1,
        });
        let claims = json!({"limits": limits, "tags": [format!("version:{version}")]});
        token(&self.operator, &account.public_key(), "account", claims)
    }

    /// Does to the server what a round has.
    pub(crate) fn act(&mut self, server: &Started, tls: &Tls) -> Outcome<Administered> {
        let access = Access { identity: user_of(&self.system)?, tls: tls.clone() };
        let target = Target::local(server.port(), access);
        with_ring(4, async {
            let mut desk = Desk::open(&target).await?;
            let watched = desk.conn.clone();
            let mut ticker = Ticker::new()?;
            let watch = tokio_uring::spawn(async move {
                // Who waits for an answer then finds the connection closed.
                if ticker.wait_ns(duration_ns(PATIENCE)).await.is_ok() {
                    watched.shut_down();
                }
            });
            let done = self.act_at(&mut desk, server).await;
            watch.abort();
            done
        })
    }

    async fn act_at(&mut self, desk: &mut Desk, server: &Started) -> Outcome<Administered> {
        let Plan { reloads, pushes, .. } = self.plan;
        let (mut ticker, began) = (Ticker::new()?, Instant::now());
        for _ in 0..reloads {
            let before = desk.configured_at().await?;
            server.reload(&self.config()?)?;
            while desk.configured_at().await? == before {
                ticker.wait_ns(duration_ns(LOOK)).await?;
            }
        }
        let reloaded = Instant::now();
        for _ in 0..pushes {
            self.pushed += 1;
            let account = &self.accounts[self.pushed % self.accounts.len()];
            desk.push(&self.signed(account, self.pushed)?).await?;
        }
        let ms = |time: Duration, count: usize| time.as_secs_f64() * 1e3 / count.max(1) as f64;
        Ok(Administered {
            reloads,
            reload_ms: ms(reloaded - began, reloads),
            pushes,
            push_ms: ms(reloaded.elapsed(), pushes),
        })
    }
}

impl Desk {
    /// When the server has read its configuration.
    async fn configured_at(&mut self) -> Outcome<String> {
        let answer = self.ask("$SYS.REQ.SERVER.PING.VARZ", "").await?;
        let time = answer["data"]["config_load_time"].as_str();
        time.map(str::to_owned).ok_or_else(|| {
            let cause = "the server does not say when it has read its configuration";
            Fault::new(cause, "use one whose /varz has config_load_time")
        })
    }

    /// Has the server take a token.
    async fn push(&mut self, token: &str) -> Outcome<()> {
        let answer = self.ask("$SYS.REQ.CLAIMS.UPDATE", token).await?;
        if answer["data"]["code"] == 200 {
            return Ok(());
        }
        Err(Fault::new(
            format!("a pushed token is refused: {answer}"),
            "look into the server's log",
        ))
    }
}

/// A user of `account`, with everything that gets it in.
fn user_of(account: &KeyPair) -> Outcome<Identity> {
    let user = KeyPair::new_user();
    let claims = json!({"subs": -1, "data": -1, "payload": -1});
    let token = token(account, &user.public_key(), "user", claims)?;
    Ok(Identity::new(token, user))
}

/// A signed token about `subject`; `claims` are what is particular to its kind.
fn token(issuer: &KeyPair, subject: &str, kind: &str, mut claims: Value) -> Outcome<String> {
    claims["type"] = kind.into();
    claims["version"] = 2.into();
    let claims = json!({
        "iss": issuer.public_key(), "sub": subject, "iat": ISSUED_AT, "jti": "X", "name": kind,
        "nats": claims,
    });
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", part(&claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).map_err(|e| {
        Fault::new(format!("a token cannot be signed ({e})"), "report this: it is a bug")
    })?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
