//! The status of peers' certificates: remembered, or asked of responders.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crossbeam_channel::Sender;
use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::super::http::HttpClient;
use super::cache::PeerCache;
use super::{get, now};
use crate::config::PeerCacheOptions;
use crate::engine::{ConnId, ShardId};
use crate::ocsp::{CertAnswer, CertLink, CertStatus, PeerPolicy, PeerQuestion, links};
use crate::shard::{News, PeerEvent};

/// Certificates about which responders are asked at once, at most.
const AT_ONCE_MAX: usize = 64;
/// Peers that wait for their status, at most; a further one is refused.
const WAITING_MAX: usize = 4096;

/// The checks of peers' certificates by options in force.
pub(super) struct PeerChecks {
    client: HttpClient,
    news: Sender<News>,
    cache: RefCell<PeerCache>,
    at_once: Semaphore,
    waiting: RefCell<usize>,
}

impl PeerChecks {
    pub(super) fn new(client: HttpClient, news: Sender<News>, cache: PeerCache) -> Self {
        Self {
            client,
            news,
            cache: RefCell::new(cache),
            at_once: Semaphore::new(AT_ONCE_MAX),
            waiting: RefCell::new(0),
        }
    }

    /// Takes over the place of the memory. Returns whether it is another one.
    pub(super) fn reload(&self, wanted: &PeerCacheOptions) -> bool {
        let mut cache = self.cache.borrow_mut();
        let is_other = cache.options() != wanted;
        if is_other {
            cache.save();
            *cache = PeerCache::open(wanted.clone());
        }
        is_other
    }

    /// Saves what is remembered.
    pub(super) fn save(&self) {
        self.cache.borrow_mut().save();
    }

    /// Answers a question in a task of its own.
    pub(super) fn spawn(self: &Rc<Self>, shard: ShardId, conn: ConnId, question: PeerQuestion) {
        let checks = Rc::clone(self);
        if *checks.waiting.borrow() >= WAITING_MAX {
            tracing::error!("Too many OCSP peers wait for their status; one is refused");
            checks.answer(shard, conn, false, Vec::new());
            return;
        }
        *checks.waiting.borrow_mut() += 1;
        tokio::task::spawn_local(async move {
            let mut events = Vec::new();
            // Later nobody waits for it any more.
            let wait = Duration::from_nanos(question.wait_ns);
            let is_good = timeout(wait, checks.judge(&question, &mut events)).await;
            let is_good = is_good.unwrap_or(false);
            *checks.waiting.borrow_mut() -= 1;
            checks.answer(shard, conn, is_good, events);
        });
    }

    fn answer(&self, shard: ShardId, conn: ConnId, is_good: bool, events: Vec<PeerEvent>) {
        // Without room the peer waits until its deadline.
        let _ = self.news.try_send(News::PeerStatus { shard, conn, is_good, events });
    }

    /// Whether a peer may come in. Adds the events about it.
    async fn judge(&self, question: &PeerQuestion, events: &mut Vec<PeerEvent>) -> bool {
        let Some(links) = links(&question.shown, &question.authorities, now()) else {
            tracing::error!("OCSP peer: its certificates lead to no authority; it is refused");
            return false;
        };
        let peer = links.first().map(described);
        let mut is_good = true;
        for link in links.iter().filter(|link| !link.responders().is_empty()) {
            if let Err(reason) = self.check(link, &question.policy).await {
                tracing::debug!("OCSP peer: {reason}");
                let mut members = Map::new();
                members.insert("link".into(), described(link));
                members.insert("peer".into(), peer.clone().unwrap_or_default());
                members.insert("reason".into(), reason.into());
                let (subject, kind) = ("OCSP.PEER.LINK.INVALID", "ocsp_peer_link_invalid");
                events.push(PeerEvent { subject, kind, members });
                is_good = false;
                break;
            }
        }
        if !is_good {
            let mut members = Map::new();
            members.insert("kind".into(), question.kind.into());
            members.insert("peer".into(), peer.unwrap_or_default());
            members.insert("reason".into(), question.refusal.into());
            let (subject, kind) = ("OCSP.PEER.CONN.REJECT", "ocsp_peer_reject");
            events.push(PeerEvent { subject, kind, members });
        }
        is_good
    }

    /// Checks one link of a chain.
    async fn check(&self, link: &CertLink, policy: &PeerPolicy) -> Result<(), String> {
        let subject = link.subject();
        let remembered = self.cache.borrow_mut().get(link);
        let was_revoked = remembered.as_ref().is_some_and(|it| it.status == CertStatus::Revoked);
        let current = remembered.filter(|answer| {
            let is_current = policy.is_current(answer, now());
            if !is_current {
                self.cache.borrow_mut().on_ended(link, answer.status);
            }
            is_current
        });
        let status = match current {
            Some(answer) => answer.status,
            None => match self.ask(link, policy).await {
                Ok(answer) => answer.status,
                Err(NoAnswer::Unreachable) if policy.allows_silence && !was_revoked => {
                    tracing::warn!(
                        "Failed to obtain OCSP CA response for [{subject}] but \
                         AllowWhenCAUnreachable set; no cached revocation so allowing"
                    );
                    return Ok(());
                }
                Err(why) => return allow_or(policy, &subject, why.reason()),
            },
        };
        if policy.accepts(status) {
            return Ok(());
        }
        let word = status.word();
        tracing::warn!("OCSP verify fail for [{subject}] with CA status [{word}]");
        allow_or(policy, &subject, format!("Invalid OCSP response status: {word}"))
    }

    /// Asks the responders of a certificate, and remembers the answer.
    async fn ask(&self, link: &CertLink, policy: &PeerPolicy) -> Result<CertAnswer, NoAnswer> {
        let subject = link.subject();
        let unreachable = |reason: &str| {
            tracing::warn!(
                "Attempt to obtain OCSP response from CA responder for [{subject}] failed: {reason}"
            );
            NoAnswer::Unreachable
        };
        let question = link.request().map_err(|reason| unreachable(&reason))?;
        // Whose answer is remembered does not wait for those whose is not.
        let _permit = self.at_once.acquire().await;
        let mut reasons = Vec::new();
        for url in link.responders() {
            let time = Duration::from_millis(policy.timeout_ms);
            let der = match timeout(time, get(&self.client, &url, &question)).await {
                Ok(Ok(answer)) if answer.status == StatusCode::OK => answer.body,
                Ok(Ok(answer)) => {
                    reasons.push(format!("{url}: {}", answer.status));
                    continue;
                }
                Ok(Err(reason)) => {
                    reasons.push(format!("{url}: {reason}"));
                    continue;
                }
                Err(_) => {
                    reasons.push(format!("{url}: no answer in {time:?}"));
                    continue;
                }
            };
            let answer = link.judge(&der, now()).map_err(|reason| {
                tracing::error!("Could not parse OCSP CA response for [{subject}]: {reason}");
                NoAnswer::Invalid
            })?;
            if !policy.is_current(&answer, now()) {
                tracing::warn!("New OCSP CA response obtained for [{subject}] but not current");
                return Err(NoAnswer::Outdated);
            }
            self.cache.borrow_mut().put(link, &der, &answer);
            return Ok(answer);
        }
        Err(unreachable(&reasons.join("; ")))
    }
}

/// The reason why the status of a certificate is not known.
enum NoAnswer {
    /// No responder answers.
    Unreachable,
    /// The answer is not one of the issuer about this certificate.
    Invalid,
    /// The answer does not hold now.
    Outdated,
}

impl NoAnswer {
    fn reason(&self) -> String {
        let reason = match self {
            Self::Unreachable => "Failed OCSP response fetch",
            Self::Invalid => "Failed OCSP response parse",
            Self::Outdated => "OCSP response not in effectivity window",
        };
        reason.to_owned()
    }
}

/// Lets a peer in with a warning if that is the policy, else returns the reason.
fn allow_or(policy: &PeerPolicy, subject: &str, reason: String) -> Result<(), String> {
    if !policy.warns_only {
        return Err(reason);
    }
    tracing::warn!("OCSP verify fail for [{subject}] but WarnOnly is true so allowing");
    Ok(())
}

/// Returns a certificate as events show it.
fn described(link: &CertLink) -> Value {
    json!({
        "subject": link.subject(),
        "issuer": link.issuer(),
        "fingerprint": STANDARD.encode(link.fingerprint()),
        "raw": STANDARD.encode(link.der()),
    })
}
