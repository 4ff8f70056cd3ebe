//! Operators and resolvers: accounts and users that come as signed tokens.
//!
//! Tokens are checked when the options are read: at start and at a reload. An account's exports and
//! imports are put beside the configured ones; an invalid import is left out with a warning,
//! because the token's author is not the operator of the server.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono_tz::Tz;

use super::accounts;
use super::field::Field;
use super::file::ValueKind;
use super::jetstream;
use super::mapping;
use super::resolver;
pub use super::resolver::UrlResolver;
use super::rules::BrokenRule;
use super::{Options, StartError, tls};
use crate::auth::jwt::{self, Claims, LatencyClaim};
use crate::engine::account_settings::{
    Account, AccountLimits, Export, Import, LatencyRule, Response, Shared,
};
use crate::engine::{Destination, Mapping};
use crate::subject::is_valid_filter;

/// Keys of operators, and the accounts that they have signed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrustOptions {
    /// Public keys that sign accounts.
    pub keys: Vec<String>,
    /// Claims of accounts, by their public keys.
    pub accounts: BTreeMap<String, Arc<Claims<jwt::AccountClaims>>>,
    /// The directory that stores tokens of accounts, also those received later (none: in memory).
    pub directory: Option<Directory>,
    /// The only accounts besides the system account whose users may log in (empty: all).
    pub pinned: Vec<String>,
    /// The time zone for hours of users whose token names none.
    pub zone: Tz,
    /// Tokens of the operators.
    pub operators: Vec<String>,
    /// The server that has tokens of accounts (none: they are known, or come by messages).
    pub url: Option<UrlResolver>,
    pub(super) is_resolved: bool,
    /// The address of `url`, until the whole file is read.
    pub(super) wanted_url: Option<String>,
    /// TLS of `url`, until the whole file is read.
    pub(super) client_tls: Option<tls::ServerTls>,
    /// The token of clients that show none (none: they are refused).
    pub default_sentinel: Option<String>,
    /// Tokens in the configuration file, by account.
    pub preloaded: Vec<(String, String)>,
}

/// The store for tokens of accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The directory's path; it has one file for each account.
    pub path: PathBuf,
    /// Whether accounts may be deleted (false).
    pub allow_delete: bool,
    /// Whether the file of a deleted account is removed instead of renamed (false).
    pub hard_delete: bool,
    /// Milliseconds between two requests to other servers for their tokens (60 000).
    pub interval_ms: u64,
    /// Accounts, at most (100 000; in nats-server 1 000 000 000; of a cache 1000).
    pub accounts_max: usize,
    /// Whether it keeps only what logins need, and asks other servers for that (false).
    pub is_cache: bool,
    /// Milliseconds for which a cache keeps a token (0: for ever).
    pub ttl_ms: u64,
    /// Milliseconds that other servers have to answer (1900).
    pub timeout_ms: u64,
}

/// Accounts that a directory may hold, at most.
pub(super) const ACCOUNTS_MAX: usize = 100_000;
const INTERVAL_MS: u64 = 60_000;
const TIMEOUT_MS: u64 = 1900;

impl Default for Directory {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            allow_delete: false,
            hard_delete: false,
            interval_ms: INTERVAL_MS,
            accounts_max: ACCOUNTS_MAX,
            is_cache: false,
            ttl_ms: 0,
            timeout_ms: TIMEOUT_MS,
        }
    }
}

impl TrustOptions {
    /// Returns the subjects of requests about tokens in the system account; `<server>` stands for
    /// the id of this server.
    pub fn requests(&self) -> &'static [&'static str] {
        match &self.directory {
            None => &["$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE", "$SYS.ACCOUNT.*.CLAIMS.UPDATE"],
            Some(directory) if directory.is_cache => &[
                "$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE",
                "$SYS.ACCOUNT.*.CLAIMS.UPDATE",
                "$SYS.REQ.CLAIMS.UPDATE",
                "$SYS.REQ.CLAIMS.LIST",
                "$SYS.REQ.CLAIMS.DELETE",
                "$SYS._INBOX.<server>.LOOKUP.*",
            ],
            Some(_) => &[
                "$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE",
                "$SYS.ACCOUNT.*.CLAIMS.UPDATE",
                "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP",
                "$SYS.REQ.CLAIMS.UPDATE",
                "$SYS.REQ.CLAIMS.LIST",
                "$SYS.REQ.CLAIMS.DELETE",
                "$SYS.REQ.CLAIMS.PACK",
                "$SYS._INBOX.<server>.CLAIMS",
            ],
        }
    }

    /// Whether accounts that are not known are asked for when a login needs them.
    pub fn fetches(&self) -> bool {
        self.url.is_some() || self.directory.as_ref().is_some_and(|directory| directory.is_cache)
    }

    /// Decodes a token that was asked for, which has to be about `account` and valid at `now`, in
    /// seconds since 1970.
    ///
    /// # Errors
    ///
    /// Returns the reason, for humans.
    pub fn read_of(
        &self,
        account: &str,
        text: &str,
        now: i64,
    ) -> Result<Claims<jwt::AccountClaims>, String> {
        let claims = self.read(jwt::undecorated(text))?;
        match claims.subject == account {
            false => Err(format!("its token is about {}", claims.subject)),
            true if !claims.is_in_time(now) => Err("its token is not valid now".to_owned()),
            true => Ok(claims),
        }
    }

    /// Decodes the token of an account and checks that one of the operators' keys has signed it.
    ///
    /// # Errors
    ///
    /// Returns the reason and the remedy, for humans.
    pub fn read(&self, text: &str) -> Result<Claims<jwt::AccountClaims>, String> {
        let claims: Claims<jwt::AccountClaims> =
            jwt::decode_signed(text).map_err(|error| format!("{error}; push it again"))?;
        if !self.keys.contains(&claims.issuer) {
            return Err("not signed by a key of the operator; push it again".to_owned());
        }
        Ok(claims)
    }

    /// Decodes and checks a new token of an account; one with mappings that cannot be put in force
    /// is refused.
    ///
    /// # Errors
    ///
    /// Returns the reason and the remedy, for humans.
    pub fn admit(&self, text: &str) -> Result<Claims<jwt::AccountClaims>, String> {
        let claims = self.read(text)?;
        mappings_of(&claims.body).try_for_each(|mapping| mapping.map(drop))?;
        Ok(claims)
    }
}

/// Returns the options with other tokens for some accounts; an account whose token is `None` is
/// removed.
pub fn update(
    old: &Options,
    changes: Vec<(String, Option<Arc<Claims<jwt::AccountClaims>>>)>,
) -> Options {
    let mut options = old.clone();
    let Some(trust) = &mut options.trust else { return options };
    for (key, claims) in changes {
        match claims {
            Some(claims) => drop(trust.accounts.insert(key, claims)),
            None => drop(trust.accounts.remove(&key)),
        }
    }
    let trust = trust.clone();
    options.notes.warnings.clear();
    options.accounts.list.retain(|account| !jwt::is_key(&account.name, &['A']));
    share(&trust, &mut options);
    options
}

/// Returns new options with the accounts of the old ones that were fetched: a reload does not ask
/// for them again.
pub fn keep_fetched(old: &Options, new: Options) -> Options {
    let (Some(before), Some(trust)) = (&old.trust, &new.trust) else { return new };
    if !before.fetches() || !trust.fetches() {
        return new;
    }
    let is_missing = |claims: &Claims<jwt::AccountClaims>| {
        trust.keys.contains(&claims.issuer) && !trust.accounts.contains_key(&claims.subject)
    };
    let missing = before.accounts.iter().filter(|(_, claims)| is_missing(claims));
    let missing: Vec<_> =
        missing.map(|(key, claims)| (key.clone(), Some(Arc::clone(claims)))).collect();
    if missing.is_empty() {
        return new;
    }
    let warnings = new.notes.warnings.clone();
    let mut options = update(&new, missing);
    options.notes.warnings.splice(..0, warnings);
    options
}

pub(super) fn operators(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let tokens = v.one_or_each(|v| {
        let text = v.text()?;
        if text.starts_with("eyJ") {
            return Ok(text);
        }
        let file = std::fs::read_to_string(&text);
        let file = file.map_err(|error| v.error(format!("cannot read {text}: {error}")))?;
        Ok(jwt::undecorated(&file).to_owned())
    })?;
    options.trust.get_or_insert_default().operators.extend(tokens);
    Ok(())
}

pub(super) fn default_sentinel(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let text = v.text()?;
    let token = jwt::decode_signed::<jwt::UserClaims>(&text)
        .map_err(|error| v.error(format!("default sentinel JWT not valid: {error}")))?;
    let said = &token.body;
    // The template of a scoped key may make it a bearer.
    let may_be_scoped = !said.issuer_account.is_empty() && said.is_empty();
    if !said.bearer_token && !may_be_scoped {
        return Err(v.error("default sentinel must be a bearer token"));
    }
    options.trust.get_or_insert_default().default_sentinel = Some(text);
    Ok(())
}

pub(super) fn trusted_keys(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let reason = "a trusted key is the public key of an operator: 56 characters, first an O";
    let keys = v.one_or_each(|v| key(v, 'O', reason))?;
    options.trust.get_or_insert_default().keys.extend(keys);
    Ok(())
}

fn key(v: &Field<'_>, kind: char, reason: &str) -> Result<String, StartError> {
    let key = v.text()?;
    if jwt::is_key(&key, &[kind]) { Ok(key) } else { Err(v.error(reason)) }
}

pub(super) fn preload(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let tokens = v.each_entry(|entry, v| {
        let ValueKind::Text(token) = &entry.value.kind else {
            return Err(v.error("an account's token is text"));
        };
        if !jwt::is_key(&entry.key, &['A']) {
            let reason = "a token is preloaded by the public key of its account";
            return Err(entry.position.error(reason));
        }
        Ok((entry.key.clone(), token.clone()))
    })?;
    options.trust.get_or_insert_default().preloaded.extend(tokens);
    Ok(())
}

pub(super) fn pinned(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let reason = "a pinned account is its public key: 56 characters, first an A";
    let keys = v.one_or_each(|v| key(v, 'A', reason))?;
    options.trust.get_or_insert_default().pinned.extend(keys);
    Ok(())
}

/// Keys that configure operators and resolvers, and those that may not stand beside them.
const KEYS: &[&str] = &[
    "operator",
    "operators",
    "root",
    "roots",
    "root_operator",
    "root_operators",
    "trusted_keys",
    "trusted",
    "resolver",
    "account_resolver",
    "accounts_resolver",
    "authorization",
    "accounts",
    "no_auth_user",
    "default_sentinel",
];
const PRELOADED: &[&str] = &["resolver_preload"];

/// Reads the tokens in the resolver's directory: a preloaded token is older than one of those.
fn read_stored(trust: &mut TrustOptions, options: &mut Options) -> Result<(), BrokenRule> {
    let Some(directory) = &trust.directory else { return Ok(()) };
    let stored = stored(&directory.path);
    for (key, text) in stored.map_err(|error| BrokenRule::of(KEYS, error.to_string()))? {
        match trust.read(&text) {
            Ok(claims) if claims.subject == key => {
                trust.accounts.insert(key, Arc::new(claims));
            }
            // The token came from another server or operator, and must not keep this server
            // from starting.
            Ok(claims) => options.notes.warnings.push(format!(
                "account {key}: its token is about {}; it is left out",
                claims.subject
            )),
            Err(reason) => options
                .notes
                .warnings
                .push(format!("account {key}: {reason}; until then it is left out")),
        }
    }
    Ok(())
}

/// Reads the tokens once the whole file is read.
pub(super) fn settle(options: &mut Options) -> Result<(), BrokenRule> {
    let Some(mut trust) = options.trust.take() else { return Ok(()) };
    let refuse = |reason: &str| Err(BrokenRule::of(KEYS, reason));
    let mut operator_url = String::new();
    for text in &trust.operators {
        let operator: Claims<jwt::Operator> = jwt::decode_signed(text)
            .map_err(|error| BrokenRule::of(KEYS, format!("operator: {error}; export it again")))?;
        if !operator.body.strict_signing_key_usage {
            trust.keys.push(operator.subject);
        }
        trust.keys.extend(operator.body.signing_keys);
        operator_url = operator.body.account_server_url;
        let system = operator.body.system_account;
        if !system.is_empty() && options.accounts.system.as_deref() == Some(accounts::SYSTEM) {
            options.accounts.system = Some(system);
        }
    }
    if trust.keys.is_empty() {
        return refuse("a resolver needs an operator or trusted_keys, the signers of accounts");
    }
    resolver::settle(&mut trust, &operator_url)?;
    if !trust.is_resolved {
        return refuse("an operator needs a resolver, such as `resolver: MEMORY`");
    }
    let in_file = options.auth.users.len() + usize::from(options.auth.token.is_some());
    if in_file > 0 || options.auth.no_auth_user.is_some() {
        return refuse("with an operator, users come from JWTs; leave users and tokens out");
    }
    if options.accounts.list.len() > accounts::AccountOptions::default().list.len() {
        return refuse("with an operator, accounts come from JWTs; leave accounts out");
    }
    for (key, text) in std::mem::take(&mut trust.preloaded) {
        let claims = trust.read(&text).and_then(|claims| match claims.subject == key {
            true => Ok(claims),
            false => Err(format!("its token is about {}", claims.subject)),
        });
        match claims {
            Ok(claims) => drop(trust.accounts.insert(key.clone(), Arc::new(claims))),
            Err(reason) => {
                let violation = BrokenRule::of(PRELOADED, format!("account {key}: {reason}"));
                return Err(violation.within([&key]));
            }
        }
        trust.preloaded.push((key, text));
    }
    read_stored(&mut trust, options)?;
    if !trust.pinned.is_empty() {
        trust.pinned.extend(options.accounts.system.clone());
    }
    trust.zone = zone();
    share(&trust, options);
    if let Some(system) = options.accounts.system.clone().filter(|_| trust.url.is_some())
        && options.accounts.get(&system).is_none()
    {
        // It is fetched before the server starts.
        options.accounts.add(Account::named(system));
    }
    options.trust = Some(trust);
    Ok(())
}

/// Returns the time zone of this host.
pub(in crate::config) fn zone() -> Tz {
    let zone = iana_time_zone::get_timezone().ok();
    zone.and_then(|name| name.parse().ok()).unwrap_or_default()
}

/// Returns the tokens in a directory by account; each account has a file, named by its key.
///
/// # Errors
///
/// Fails if the directory cannot be created or read.
pub fn stored(directory: &Path) -> Result<Vec<(String, String)>, StartError> {
    let unusable = |path: &Path, error: std::io::Error| {
        StartError::new(format!(
            "resolver: cannot read {}: {error}; check its permissions or use another dir",
            path.display()
        ))
    };
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(|error| unusable(directory, error))?;
    let mut tokens = Vec::new();
    let entries = std::fs::read_dir(directory).map_err(|error| unusable(directory, error))?;
    for entry in entries.take(ACCOUNTS_MAX) {
        let path = entry.map_err(|error| unusable(directory, error))?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|is| is == "jwt") && jwt::is_key(name, &['A']) {
            let text = std::fs::read_to_string(&path).map_err(|error| unusable(&path, error))?;
            tokens.push((name.to_owned(), jwt::undecorated(&text).to_owned()));
        }
    }
    tokens.sort_unstable();
    Ok(tokens)
}

/// Adds the accounts, with their exports and imports.
fn share(trust: &TrustOptions, options: &mut Options) {
    let now = chrono::Utc::now().timestamp();
    for (key, claims) in &trust.accounts {
        let mut mappings = Vec::new();
        for mapping in mappings_of(&claims.body) {
            match mapping {
                Ok(mapping) => mappings.push(mapping),
                Err(reason) => {
                    options.notes.warnings.push(format!("account {key}: {reason}; it is left out"));
                }
            }
        }
        let exports = measurable(exports(trust, claims, now), key, options);
        let limits = &claims.body.limits;
        let limit = |value: i64| usize::try_from(value).ok();
        options.accounts.add(Account {
            limits: AccountLimits {
                connections_max: limit(limits.conn),
                subscriptions_max: limit(limits.subs),
                payload_bytes_max: limit(limits.payload),
                leafnodes_max: limit(limits.leaf),
            },
            streams: jetstream::of_claims(&limits.streams_claim, &limits.tiered_limits),
            exports,
            mappings,
            has_callouts: claims.body.authorization.is_on(),
            ..Account::named(key)
        });
    }
    for (key, claims) in &trust.accounts {
        for import in &claims.body.imports {
            let Some(import) = import_of(import) else {
                let name = &import.subject;
                options
                    .notes
                    .warnings
                    .push(format!("account {key}: import of {name:?} is left out"));
                continue;
            };
            if let Err(reason) = accounts::admit(&mut options.accounts, key, import) {
                options.notes.warnings.push(format!("{reason}; it is left out"));
            }
        }
    }
}

/// Returns an account's mappings, each valid or with the reason why it is not.
fn mappings_of(account: &jwt::AccountClaims) -> impl Iterator<Item = Result<Mapping, String>> {
    const ALL: u8 = 100;
    account.mappings.iter().map(|(source, destinations)| {
        if !is_valid_filter(source.as_bytes()) {
            return Err(format!("mapping {source:?} is not a valid subject"));
        }
        let destination = |to: &jwt::WeightedMapping| Destination {
            subject: to.subject.clone(),
            weight: if to.weight == 0 { ALL } else { to.weight },
            cluster: (!to.cluster.is_empty()).then(|| to.cluster.clone()),
        };
        let destinations: Vec<Destination> = destinations.iter().map(destination).collect();
        let objection = mapping::objections(source, &destinations).next();
        match objection {
            Some(reason) => Err(reason),
            None => Ok(Mapping { source: source.clone(), destinations }),
        }
    })
}

fn shared(kind: &str) -> Option<Shared> {
    match kind {
        "stream" => Some(Shared::Stream),
        "service" => Some(Shared::Service),
        _ => None,
    }
}

/// Leaves those measurements out that the account of this key cannot have, with warnings.
fn measurable(mut exports: Vec<Export>, key: &str, options: &mut Options) -> Vec<Export> {
    let has_system = options.accounts.system.is_some();
    for at in 0..exports.len() {
        if let Some(reason) = LatencyRule::objection(&exports[..=at], has_system) {
            options.notes.warnings.push(format!("account {key}: {reason}; it is not measured"));
            exports[at].latency = None;
        }
    }
    exports
}

fn exports(trust: &TrustOptions, exporter: &Claims<jwt::AccountClaims>, now: i64) -> Vec<Export> {
    let valid = |export: &&jwt::ExportClaim| is_valid_filter(export.subject.as_bytes());
    let export = |export: &jwt::ExportClaim| {
        let mut permitted = Vec::new();
        if export.token_req && export.account_token_position == 0 {
            // The exporter itself, because an empty list would mean all accounts, and the accounts
            // with an activation.
            permitted.push(exporter.subject.clone());
            let importers = trust.accounts.iter();
            let let_in = importers
                .filter(|(key, claims)| is_let_in(exporter, export, key, claims, now))
                .map(|(key, _)| key.clone());
            permitted.extend(let_in);
        }
        Some(Export {
            shared: shared(&export.shared)?,
            subject: export.subject.clone(),
            accounts: permitted,
            account_token: export.account_token_position,
            response: match export.response_type.as_str() {
                "Stream" => Response::Stream,
                "Chunked" => Response::Chunked,
                _ => Response::Singleton,
            },
            response_threshold_ms: match export.response_threshold / 1_000_000 {
                ..=0 => accounts::RESPONSE_THRESHOLD_MS,
                ms => ms.unsigned_abs(),
            },
            allow_trace: export.allow_trace,
            latency: export.service_latency.as_ref().and_then(LatencyClaim::rule),
        })
    };
    exporter.body.exports.iter().filter(valid).filter_map(export).collect()
}

/// Whether the account has activations for all of its imports that overlap `export`.
fn is_let_in(
    exporter: &Claims<jwt::AccountClaims>,
    export: &jwt::ExportClaim,
    importer: &str,
    claims: &Claims<jwt::AccountClaims>,
    now: i64,
) -> bool {
    let of_it = |import: &&jwt::ImportClaim| {
        import.account == exporter.subject
            && import.shared == export.shared
            && crate::subject::overlap(import.subject.as_bytes(), export.subject.as_bytes())
    };
    let mut imports = claims.body.imports.iter().filter(of_it).peekable();
    imports.peek().is_some()
        && imports.all(|import| {
            jwt::decode::<jwt::Activation>(&import.token)
                .is_ok_and(|token| export.is_activated(&token, exporter, importer, import, now))
        })
}

fn import_of(import: &jwt::ImportClaim) -> Option<Import> {
    let shared = shared(&import.shared)?;
    let local = match (import.local_subject.as_str(), import.to.as_str(), shared) {
        ("", "", _) => import.subject.clone(),
        ("", prefix, Shared::Stream) => format!("{prefix}.{}", import.subject),
        ("", to, Shared::Service) => to.to_owned(),
        (local, ..) => local.to_owned(),
    };
    let is_valid = |subject: &String| is_valid_filter(subject.as_bytes());
    (is_valid(&import.subject) && is_valid(&local)).then(|| Import {
        shared,
        account: import.account.clone(),
        subject: import.subject.clone(),
        local,
        share: import.share,
        allow_trace: import.allow_trace,
    })
}
