//! Account tokens that are pushed to the system account: checked, saved, and in force at once.
//!
//! A pushed token is checked and saved on the thread `system`. The control thread then makes
//! options of it (`config::trust::update`) and puts them in force as a reload does, so accounts
//! change in one way only. The answer is sent when all shards have the new options. Accounts with
//! unchanged claims cost nothing (`Trusted::says_the_same_of`). Seats of an account are counted
//! over all shards (`config::Seats`), once per login.
//!
//! With a directory, servers of a cluster compare their tokens: each asks from time to time with a
//! 32-byte digest of its own tokens, and a server with another digest sends all of its tokens.

use std::sync::Arc;

use crossbeam_channel::bounded;
use serde_json::{Value, json};

use super::store::Store;
use super::{SystemOrder, Worker};
use crate::auth::jwt::{self, Claims};
use crate::config::trust::TrustOptions;
use crate::engine::{AccountId, ServerRequest};

/// The subject on which servers ask one another for tokens.
const PACK: &str = "$SYS.REQ.CLAIMS.PACK";

/// The reason why a token is refused.
struct Objection {
    /// The account, if it is known.
    account: String,
    reason: String,
}

impl Objection {
    fn new(account: &str, reason: impl ToString) -> Self {
        Self { account: account.to_owned(), reason: reason.to_string() }
    }
}

impl Worker {
    /// Answers a request about tokens of accounts. Returns `false` if it is none.
    pub(super) fn on_claims(&mut self, request: &ServerRequest, subject: &str) -> bool {
        let words: Vec<&str> = subject.split('.').collect();
        match *words {
            ["$SYS", "REQ", "ACCOUNT", key, "CLAIMS", "UPDATE"]
            | ["$SYS", "ACCOUNT", key, "CLAIMS", "UPDATE"] => self.on_update(request, Some(key)),
            ["$SYS", "REQ", "CLAIMS", "UPDATE"] => self.on_update(request, None),
            ["$SYS", "REQ", "ACCOUNT", key, "CLAIMS", "LOOKUP"] => {
                if jwt::is_key(key, &['A']) {
                    let token = self.store.as_ref().and_then(|store| store.load(key));
                    self.reply(request, token.unwrap_or_default());
                }
            }
            ["$SYS", "REQ", "CLAIMS", "LIST"] => {
                let keys = json!(self.store.as_ref().map(Store::keys));
                let answer = json!({"server": self.server(), "data": keys});
                self.reply(request, answer.to_string());
            }
            ["$SYS", "REQ", "CLAIMS", "DELETE"] => self.on_deletion(request),
            ["$SYS", "REQ", "CLAIMS", "PACK"] => self.on_pack_request(request),
            ["$SYS", "_INBOX", _, "LOOKUP", key] => self.on_lookup_answer(key, &request.payload),
            ["$SYS", "_INBOX", _, "CLAIMS"] => self.on_pack(&request.payload),
            _ => return false,
        }
        true
    }

    /// Handles a pushed token; it has to be about `key`, if one is given.
    fn on_update(&mut self, request: &ServerRequest, key: Option<&str>) {
        let answer = match self.take(&request.payload, key) {
            Ok((account, message)) => {
                json!({"data": {"account": account, "code": 200, "message": message}})
            }
            Err(Objection { account, reason }) => {
                let cache = if self.is_cache() { "cache " } else { "" };
                let description = format!("jwt update {cache}resulted in error - {reason}");
                tracing::error!("jwt update {cache}resulted in error - {account} - {reason}");
                json!({"error": {"account": account, "code": 500, "description": description}})
            }
        };
        self.respond(request, answer);
    }

    fn respond(&mut self, request: &ServerRequest, answer: Value) {
        let mut document = json!({"server": self.server()});
        if let (Some(document), Value::Object(answer)) = (document.as_object_mut(), answer) {
            document.extend(answer);
        }
        self.reply(request, document.to_string());
    }

    fn take(
        &mut self,
        payload: &[u8],
        key: Option<&str>,
    ) -> Result<(String, &'static str), Objection> {
        let unknown = || key.filter(|_| self.store.is_none()).unwrap_or("n/a");
        let (text, claims) = self
            .read(payload, TrustOptions::admit)
            .map_err(|reason| Objection::new(unknown(), reason))?;
        let account = claims.subject.clone();
        if let Some(key) = key.filter(|key| *key != account) {
            return Err(Objection::new(key, "subject does not match jwt content"));
        }
        let is_known = self.trusted(&account).is_some();
        let is_cache = self.is_cache();
        match &mut self.store {
            // A cache has what logins here have needed.
            Some(_) if is_cache && !is_known => return Ok((account, "jwt update cache skipped")),
            Some(store) => {
                store.save(&account, &text).map_err(|reason| Objection::new(&account, reason))?;
            }
            // Without a directory, only accounts of the file are known.
            None if !is_known => return Ok((account, "jwt update skipped")),
            None => {}
        }
        self.put_in_force(vec![(account.clone(), Some(Arc::new(claims)))]);
        Ok((account, if is_cache { "jwt updated cache" } else { "jwt updated" }))
    }

    fn is_cache(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.directory().is_cache)
    }

    fn read(
        &self,
        payload: &[u8],
        check: fn(&TrustOptions, &str) -> Result<Claims<jwt::AccountClaims>, String>,
    ) -> Result<(String, Claims<jwt::AccountClaims>), String> {
        let text = std::str::from_utf8(payload).map_err(|_| "it is no text".to_owned())?.trim();
        if text.is_empty() {
            return Err("request body is empty".to_owned());
        }
        let trust = self.options.trust.as_ref().ok_or("there is no operator")?;
        check(trust, text).map(|claims| (text.to_owned(), claims))
    }

    pub(super) fn trusted(&self, key: &str) -> Option<&Arc<Claims<jwt::AccountClaims>>> {
        self.options.trust.as_ref().and_then(|trust| trust.accounts.get(key))
    }

    /// Puts tokens in force and waits for all shards; an account whose token is `None` is removed.
    pub(super) fn put_in_force(
        &mut self,
        changes: Vec<(String, Option<Arc<Claims<jwt::AccountClaims>>>)>,
    ) {
        let (done, is_done) = bounded(1);
        if self.orders.send(SystemOrder::Accounts(changes, done)).is_ok() {
            // If the server ends meanwhile, the answer does not matter.
            let _ = is_done.recv();
        }
        self.take_changes();
    }

    fn on_deletion(&mut self, request: &ServerRequest) {
        let mut by = String::new();
        let answer = match self.delete(&request.payload, &mut by) {
            Ok(count) => {
                json!({"data": {"code": 200, "message": format!("deleted {count} accounts")}})
            }
            Err(reason) => {
                let text = format!("delete accounts request by {by} failed - {reason}");
                tracing::error!("{text}");
                json!({"error": {"code": 500, "description": text}})
            }
        };
        self.respond(request, answer);
    }

    fn delete(&mut self, payload: &[u8], by: &mut String) -> Result<usize, String> {
        let text = String::from_utf8_lossy(payload);
        let claims: Claims<jwt::Deletion> =
            jwt::decode_signed(text.trim()).map_err(|error| error.to_string())?;
        by.clone_from(&claims.subject);
        let Some(store) = &mut self.store else { return Err("there is no directory".to_owned()) };
        let trust = self.options.trust.as_ref();
        let is_list = claims.body.accounts.is_some();
        let keys = claims.body.accounts.unwrap_or_default();
        if !store.directory().allow_delete && !store.directory().is_cache {
            return Err("delete must be enabled in server config".to_owned());
        }
        if claims.subject != claims.issuer {
            return Err("not self signed".to_owned());
        }
        if !trust.is_some_and(|trust| trust.keys.contains(&claims.issuer)) {
            return Err("not trusted".to_owned());
        }
        if !is_list || !keys.iter().all(|key| jwt::is_key(key, &['A'])) {
            return Err("malformed request".to_owned());
        }
        let system = self.options.accounts.system.as_ref();
        if keys.iter().any(|key| Some(key) == system) {
            return Err("not allowed to delete system account".to_owned());
        }
        for key in &keys {
            store.delete(key)?;
        }
        let count = keys.len();
        self.put_in_force(keys.into_iter().map(|key| (key, None)).collect());
        Ok(count)
    }

    /// Asks the other servers for tokens, if they have others than this one.
    pub(super) fn ask_for_packs(&mut self) {
        if let (Some(store), Some(account)) = (&self.store, self.account()) {
            let inbox = self.pack_inbox();
            self.send(account, PACK, inbox.as_bytes(), store.digest().to_vec());
        }
    }

    fn pack_inbox(&self) -> String {
        format!("$SYS._INBOX.{}.CLAIMS", self.identity.id)
    }

    /// Answers a server that asks for tokens: one message for each, unless it has the same ones,
    /// and an empty message at the end.
    fn on_pack_request(&mut self, request: &ServerRequest) {
        let Some(store) = &self.store else { return };
        if *request.reply == *self.pack_inbox().as_bytes() {
            return; // It has asked itself.
        }
        if *request.payload != store.digest() {
            for key in store.keys() {
                if let Some(text) = store.load(key) {
                    self.reply(request, format!("{key}|{text}"));
                }
            }
        }
        self.reply(request, String::new());
    }

    /// Saves the tokens of another server that are newer, and puts them in force.
    fn on_pack(&mut self, payload: &[u8]) {
        let mut changes = Vec::new();
        for line in payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let bar = line.iter().position(|byte| *byte == b'|').unwrap_or(line.len());
            let (key, text) = (&line[..bar], line.get(bar + 1..).unwrap_or_default());
            let Ok((text, claims)) = self.read(text, TrustOptions::read) else { continue };
            let before = self.trusted(&claims.subject).map(|claims| claims.issued_at);
            let is_newer = before.is_none_or(|before| before < claims.issued_at);
            let Some(store) = self.store.as_mut().filter(|_| is_newer) else { continue };
            if claims.subject.as_bytes() != key {
                continue;
            }
            match store.save(&claims.subject, &text) {
                Ok(()) => changes.push((claims.subject.clone(), Some(Arc::new(claims)))),
                Err(reason) => tracing::error!("resolver: {} - {reason}", claims.subject),
            }
        }
        if !changes.is_empty() {
            self.put_in_force(changes);
        }
    }

    pub(super) fn reply(&self, request: &ServerRequest, text: String) {
        if !request.reply.is_empty() {
            self.publish(request.shard, request.account, &request.reply, text);
        }
    }

    /// Publishes a request of the server itself.
    pub(super) fn send(&self, account: AccountId, subject: &str, reply: &[u8], payload: Vec<u8>) {
        let control = crate::shard::Control::Publish {
            account,
            subject: subject.as_bytes().into(),
            reply: reply.into(),
            header: Box::default(),
            payload: payload.into(),
        };
        self.reporter.tell(super::ANY_SHARD, control);
    }
}
