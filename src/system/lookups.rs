//! Accounts that a login needs and that are not known here: asked for, waited for, put in force.
//!
//! The tokens come from a server over HTTP (`fetch`), or from the `full` resolvers of the same
//! system by requests in the system account; those of a cache are kept in a directory. The first
//! login starts the lookup, others of the same account join it. Accounts whose exports it imports
//! are looked up with it, one step deep for each. What was not found is not remembered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never};

use super::Worker;
use super::fetch::Fetcher;
use crate::auth::jwt::{self, AccountClaims, Claims};
use crate::config::Options;
use crate::engine::{ConnId, LoginNews, ShardId};
use crate::shard::Control;

/// Accounts that are looked up at once, at most; a login that needs a further one is refused.
const LOOKUPS_MAX: usize = 256;
/// Logins that wait for one account, at most; a further one is refused.
const WAITING_MAX: usize = 4096;
/// Accounts that are looked up because of the imports of one, at most.
const IMPORTED_MAX: usize = 64;
/// The time between two lookups of an account whose token has expired.
const AGAIN_INTERVAL: Duration = Duration::from_secs(1);
/// The time that a token may take to come over HTTP, and be handed on.
const HTTP_TIMEOUT: Duration = Duration::from_millis(2000);

/// Lookups under way.
#[derive(Default)]
pub(super) struct Lookups {
    open: BTreeMap<String, Lookup>,
    /// The latest lookups of known accounts, whose tokens have expired.
    again: BTreeMap<String, Instant>,
    fetcher: Option<Fetcher>,
}

/// A lookup of one account.
struct Lookup {
    waiting: Vec<(ShardId, ConnId)>,
    due: Instant,
    /// The token, once it has come, and its text.
    arrived: Option<(String, Arc<Claims<AccountClaims>>)>,
    /// Accounts of imports that are looked up, too.
    imported: Vec<String>,
    /// Servers that have answered that they do not have it.
    empty_answers: usize,
}

impl Lookups {
    /// Returns the time of the next deadline, as a channel.
    pub(super) fn timer(&self) -> Receiver<Instant> {
        self.open.values().map(|lookup| lookup.due).min().map_or_else(never, at)
    }

    /// Whether everything that a lookup waits for has come, or has failed.
    fn is_complete(&self, lookup: &Lookup) -> bool {
        let has_come = |key: &String| self.open.get(key).is_none_or(|it| it.arrived.is_some());
        lookup.arrived.is_some() && lookup.imported.iter().all(has_come)
    }
}

impl Worker {
    /// Begins to ask the resolver of the new options, if it is another.
    pub(super) fn reopen_fetcher(&mut self, options: &Options) {
        let wanted = options.trust.as_ref().and_then(|trust| trust.url.as_ref());
        if self.lookups.fetcher.as_ref().map(Fetcher::resolver) == wanted {
            return;
        }
        let started = wanted.map(|resolver| Fetcher::start(resolver.clone(), self.news.clone()));
        self.lookups.fetcher = started.transpose().unwrap_or_else(|error| {
            tracing::error!("{error}");
            None
        });
    }

    /// Looks up an account that a login needs.
    pub(super) fn on_wanted(&mut self, shard: ShardId, conn: ConnId, account: &str) {
        let now = now();
        let wall = chrono::Utc::now().timestamp();
        let known = self.trusted(account).map(|claims| claims.is_in_time(wall));
        let was_just_asked_for = self
            .lookups
            .again
            .get(account)
            .is_some_and(|at| now.saturating_duration_since(*at) < AGAIN_INTERVAL);
        match known {
            Some(true) => return self.tell_waiting(shard, conn, true),
            Some(false) if was_just_asked_for => return self.tell_waiting(shard, conn, false),
            Some(false) => drop(self.lookups.again.insert(account.to_owned(), now)),
            None => {}
        }
        let waits = self.look_up(account, now);
        match self.lookups.open.get_mut(account).filter(|_| waits) {
            Some(lookup) if lookup.waiting.len() < WAITING_MAX => {
                lookup.waiting.push((shard, conn))
            }
            _ => self.tell_waiting(shard, conn, false),
        }
    }

    /// Starts a lookup, unless it is under way. Returns whether it is.
    fn look_up(&mut self, account: &str, now: Instant) -> bool {
        if self.lookups.open.contains_key(account) {
            return true;
        }
        if self.lookups.open.len() >= LOOKUPS_MAX || !jwt::is_key(account, &['A']) {
            return false;
        }
        let timeout = match &self.lookups.fetcher {
            Some(fetcher) if fetcher.fetch(account) => HTTP_TIMEOUT,
            Some(_) => return false,
            None => match self.ask_other_servers(account) {
                Some(timeout) => timeout,
                None => return false,
            },
        };
        let lookup = Lookup {
            waiting: Vec::new(),
            due: now + timeout,
            arrived: None,
            imported: Vec::new(),
            empty_answers: 0,
        };
        self.lookups.open.insert(account.to_owned(), lookup);
        true
    }

    /// Asks the other servers of the system for a token. Returns the time that they have.
    fn ask_other_servers(&mut self, account: &str) -> Option<Duration> {
        let directory = self.store.as_ref()?.directory();
        let timeout = Duration::from_millis(directory.timeout_ms);
        let system = self.account().filter(|_| directory.is_cache)?;
        let subject = format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP");
        let inbox = format!("$SYS._INBOX.{}.LOOKUP.{account}", self.identity.id);
        self.send(system, &subject, inbox.as_bytes(), Vec::new());
        Some(timeout)
    }

    /// Takes the answer of another server; an empty one means that it does not have the token.
    pub(super) fn on_lookup_answer(&mut self, account: &str, payload: &[u8]) {
        let others = self.other_servers();
        let Some(lookup) = self.lookups.open.get_mut(account) else { return };
        if payload.is_empty() {
            lookup.empty_answers += 1;
            if lookup.empty_answers >= others && others > 0 {
                self.give_up(account, "no server of the system has it");
            }
            return;
        }
        let text = String::from_utf8_lossy(payload).trim().to_owned();
        // Somebody else may know better.
        if let Err(reason) = self.take_token(account, &text) {
            tracing::warn!("Account lookup of {account}: {reason}");
        }
    }

    fn other_servers(&self) -> usize {
        let routes = self.reporter.routes(false);
        let ids: std::collections::BTreeSet<&str> =
            routes.iter().map(|route| &*route.remote_id).collect();
        ids.len()
    }

    /// Takes what was fetched over HTTP.
    pub(super) fn on_fetched(&mut self, account: &str, token: Result<String, String>) {
        if !self.lookups.open.contains_key(account) {
            return;
        }
        let taken = token.and_then(|text| self.take_token(account, text.trim()));
        if let Err(reason) = taken {
            self.give_up(account, &reason);
        }
    }

    /// Takes the token of an account that is looked up, and looks up those of its imports.
    fn take_token(&mut self, account: &str, text: &str) -> Result<(), String> {
        let trust = self.options.trust.as_ref().ok_or("there is no operator")?;
        let claims = trust.read_of(account, text, chrono::Utc::now().timestamp())?;
        let mut imported: Vec<String> =
            claims.body.imports.iter().map(|import| import.account.clone()).collect();
        imported.sort_unstable();
        imported.dedup();
        imported.retain(|key| key != account && self.trusted(key).is_none());
        imported.truncate(IMPORTED_MAX);
        let now = now();
        imported.retain(|key| self.look_up(key, now));
        if let Some(lookup) = self.lookups.open.get_mut(account) {
            (lookup.arrived, lookup.imported) =
                (Some((text.to_owned(), Arc::new(claims))), imported);
        }
        self.settle_lookups();
        Ok(())
    }

    /// Ends a lookup that has found nothing: its logins are refused.
    fn give_up(&mut self, account: &str, reason: &str) {
        tracing::warn!("Account fetch failed: {account}: {reason}");
        if let Some(lookup) = self.lookups.open.remove(account) {
            lookup.waiting.into_iter().for_each(|(shard, conn)| {
                self.tell_waiting(shard, conn, false);
            });
        }
        self.settle_lookups();
    }

    /// Ends lookups whose time is over; a token that has come does not wait for its imports.
    pub(super) fn end_late_lookups(&mut self) {
        let now = now();
        let late = self.lookups.open.iter().filter(|(_, lookup)| lookup.due <= now);
        let late: Vec<String> = late.map(|(key, _)| key.clone()).collect();
        for key in late {
            match self.lookups.open.get_mut(&key) {
                Some(lookup) if lookup.arrived.is_some() => lookup.imported.clear(),
                _ => self.give_up(&key, "nobody has answered in time"),
            }
        }
        self.settle_lookups();
        self.lookups.again.retain(|_, at| now.saturating_duration_since(*at) < AGAIN_INTERVAL);
    }

    /// Puts the tokens of complete lookups in force, and lets their logins go on.
    fn settle_lookups(&mut self) {
        let lookups = &self.lookups;
        let complete = lookups.open.iter().filter(|(_, lookup)| lookups.is_complete(lookup));
        let complete: Vec<String> = complete.map(|(key, _)| key.clone()).collect();
        let (mut changes, mut waiting) = (BTreeMap::new(), Vec::new());
        for key in complete {
            let Some(lookup) = self.lookups.open.remove(&key) else { continue };
            for imported in &lookup.imported {
                let other = self.lookups.open.get(imported);
                if let Some(token) = other.and_then(|lookup| lookup.arrived.clone()) {
                    changes.insert(imported.clone(), token);
                }
            }
            if let Some(token) = lookup.arrived {
                changes.insert(key, token);
            }
            waiting.extend(lookup.waiting);
        }
        if changes.is_empty() {
            return;
        }
        for (key, (text, _)) in &changes {
            let saved = self.store.as_mut().map(|store| store.save(key, text)).transpose();
            if let Err(reason) = saved {
                tracing::error!("resolver: {key} - {reason}");
            }
        }
        let changes = changes.into_iter().map(|(key, (_, claims))| (key, Some(claims)));
        self.put_in_force(changes.collect());
        for (shard, conn) in waiting {
            self.tell_waiting(shard, conn, true);
        }
    }

    fn tell_waiting(&self, shard: ShardId, conn: ConnId, is_known: bool) {
        self.reporter.tell(shard, Control::Login { conn, news: LoginNews::Fetched(is_known) });
    }
}

#[expect(clippy::disallowed_methods, reason = "deadlines of lookups, off the shards")]
fn now() -> Instant {
    Instant::now()
}
