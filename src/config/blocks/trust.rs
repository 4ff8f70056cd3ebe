//! Operators and resolvers: accounts that come as signed tokens, and whose users do.
//!
//! Tokens are checked when the options are read: at start and at a reload. What an account shares
//! is put beside the configured ones; an import that does not hold is left out with a warning,
//! because whoever wrote the token is not the one who runs the server.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono_tz::Tz;

use super::accounts;
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::Kind;
use super::mapping;
use super::rules::Violation;
use super::{Options, StartError};
use crate::auth::jwt::{self, Claims};
use crate::engine::account_settings::{Account, AccountLimits, Export, Import, Response, Shared};
use crate::engine::{Destination, Mapping};
use crate::subject::is_valid_filter;

/// Who vouches for accounts, and those they vouch for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trust {
    /// The public keys that sign accounts.
    pub keys: Vec<String>,
    /// The accounts by their public keys.
    pub accounts: BTreeMap<String, Arc<Claims<jwt::Account>>>,
    /// Where tokens of accounts are kept, and are put that come later (none: in memory).
    pub directory: Option<Directory>,
    /// The only accounts besides the system account whose users may come (empty: all).
    pub pinned: Vec<String>,
    /// Whose clock the hours of users are by that name no other.
    pub zone: Tz,
    /// The tokens of those who run servers.
    pub operators: Vec<String>,
    is_resolved: bool,
    /// The tokens in the file, by account.
    pub preloaded: Vec<(String, String)>,
}

/// Where the tokens of accounts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The directory; one file for each account.
    pub path: PathBuf,
    /// Accounts may be deleted (false).
    pub allow_delete: bool,
    /// The file of an account that is deleted goes, instead of getting another name (false).
    pub hard_delete: bool,
    /// How often other servers are asked what they have, in milliseconds (60 000).
    pub interval_ms: u64,
    /// As many accounts as there may be (1 000 000 000 by nats-server, 100 000 here).
    pub accounts_max: usize,
}

/// Accounts that a directory may hold.
const ACCOUNTS_MAX: usize = 100_000;
const INTERVAL_MS: u64 = 60_000;

impl Default for Directory {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            allow_delete: false,
            hard_delete: false,
            interval_ms: INTERVAL_MS,
            accounts_max: ACCOUNTS_MAX,
        }
    }
}

impl Trust {
    /// The subjects on which the system account asks about tokens; `<server>` stands for the id of
    /// this server.
    pub fn requests(&self) -> &'static [&'static str] {
        match self.directory {
            None => &["$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE", "$SYS.ACCOUNT.*.CLAIMS.UPDATE"],
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

    /// What a token says of an account, if somebody vouches for it who may.
    ///
    /// # Errors
    ///
    /// Why not, for people.
    pub fn read(&self, text: &str) -> Result<Claims<jwt::Account>, String> {
        let claims: Claims<jwt::Account> =
            jwt::decode_signed(text).map_err(|error| format!("{error}; push it anew"))?;
        if !self.keys.contains(&claims.issuer) {
            return Err("none of the operator's keys has signed it; push it anew".to_owned());
        }
        Ok(claims)
    }

    /// The same of one that is new: what could not be put in force of it is refused.
    ///
    /// # Errors
    ///
    /// Why not, for people.
    pub fn admit(&self, text: &str) -> Result<Claims<jwt::Account>, String> {
        let claims = self.read(text)?;
        mappings_of(&claims.body).try_for_each(|mapping| mapping.map(drop))?;
        Ok(claims)
    }
}

/// The options with other tokens of some accounts; without a token, an account is gone.
pub fn update(old: &Options, changes: Vec<(String, Option<Arc<Claims<jwt::Account>>>)>) -> Options {
    let mut options = old.clone();
    let Some(trust) = &mut options.trust else { return options };
    for (key, claims) in changes {
        match claims {
            Some(claims) => drop(trust.accounts.insert(key, claims)),
            None => drop(trust.accounts.remove(&key)),
        }
    }
    let trust = trust.clone();
    options.warnings.clear();
    options.accounts.list.retain(|account| !jwt::is_key(&account.name, &['A']));
    share(&trust, &mut options);
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
        let Kind::Text(token) = &entry.value.kind else {
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

#[derive(Default)]
struct Resolver {
    kind: String,
    directory: Directory,
    has_ttl: bool,
}

const RESOLVER: &[Key<Resolver>] = &[
    Key(&["type"], Set(|r, v| v.text().map(|kind| r.kind = kind.to_ascii_lowercase()))),
    Key(&["dir"], Set(|r, v| v.text().map(|dir| r.directory.path = dir.into()))),
    Key(&["allow_delete"], Set(|r, v| v.boolean().map(|yes| r.directory.allow_delete = yes))),
    Key(&["hard_delete"], Set(|r, v| v.boolean().map(|yes| r.directory.hard_delete = yes))),
    Key(&["interval"], Set(|r, v| v.duration_ms().map(|ms| r.directory.interval_ms = ms))),
    Key(&["limit"], Set(|r, v| v.limit().map(|max| r.directory.accounts_max = at_most(max)))),
    Key(&["ttl"], Set(|r, v| v.duration_ms().map(|_| r.has_ttl = true))),
    // Nobody is asked for one token: what others have is fetched as a whole.
    Key(&["timeout"], Set(|_, v| v.duration_ms().map(drop))),
];

/// A limit of accounts; nobody, and 0, are as many as can be.
fn at_most(limit: Option<usize>) -> usize {
    limit.filter(|max| *max > 0).map_or(ACCOUNTS_MAX, |max| max.min(ACCOUNTS_MAX))
}

const KINDS: &str = "resolver is MEMORY or { type: full, dir: … }";

pub(super) fn resolver(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let trust = options.trust.get_or_insert_default();
    trust.is_resolved = true;
    if let Kind::Text(text) = &v.value.kind {
        let kind = text.to_ascii_uppercase();
        return match kind.as_str() {
            "MEMORY" | "MEM" => Ok(()),
            _ if kind.starts_with("URL") => Err(v.error(format!(
                "accounts are not fetched over HTTP: {KINDS}; fetch the tokens into its dir, \
                 one file <account>.jwt each, or push them there with `nsc push`"
            ))),
            _ => Err(v.error(KINDS)),
        };
    }
    let mut resolver = Resolver::default();
    bind_map(&[RESOLVER], v.map()?, &mut resolver, v.warnings)?;
    let Resolver { kind, directory, has_ttl } = resolver;
    match kind.as_str() {
        "mem" | "memory" => return Ok(()),
        "full" => {}
        "cache" => {
            let reason = "a resolver of type cache is not supported: use type full, which gets \
                          all accounts of the cluster's other servers";
            return Err(v.error(reason));
        }
        _ => return Err(v.error(KINDS)),
    }
    if directory.path.as_os_str().is_empty() {
        return Err(v.error("a resolver of type full needs a dir"));
    }
    if has_ttl {
        return Err(v.error("a resolver of type full keeps all accounts: leave ttl out"));
    }
    if directory.hard_delete && !directory.allow_delete {
        return Err(v.error("hard_delete is nothing without allow_delete: set both or none"));
    }
    if directory.interval_ms == 0 {
        return Err(v.error("interval is at least 1ms"));
    }
    trust.directory = Some(directory);
    Ok(())
}

/// The keys that say who vouches for whom, and those that have nothing to say beside them.
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
];
const PRELOADED: &[&str] = &["resolver_preload"];

/// Reads the tokens when all of the file is read.
pub(super) fn settle(options: &mut Options) -> Result<(), Violation> {
    let Some(mut trust) = options.trust.take() else { return Ok(()) };
    let refuse = |reason: &str| Err(Violation::of(KEYS, reason));
    for text in &trust.operators {
        let operator: Claims<jwt::Operator> = jwt::decode_signed(text)
            .map_err(|error| Violation::of(KEYS, format!("operator: {error}; export it anew")))?;
        if !operator.body.strict_signing_key_usage {
            trust.keys.push(operator.subject);
        }
        trust.keys.extend(operator.body.signing_keys);
        let system = operator.body.system_account;
        if !system.is_empty() && options.accounts.system.as_deref() == Some(accounts::SYSTEM) {
            options.accounts.system = Some(system);
        }
    }
    if trust.keys.is_empty() {
        return refuse("a resolver needs an operator or trusted_keys: who vouches for accounts");
    }
    if !trust.is_resolved {
        return refuse("an operator needs a resolver, such as `resolver: MEMORY`");
    }
    let in_file = options.auth.users.len() + usize::from(options.auth.token.is_some());
    if in_file > 0 || options.auth.no_auth_user.is_some() {
        return refuse("with an operator users come by tokens; leave users and tokens out");
    }
    if options.accounts.list.len() > accounts::Accounts::default().list.len() {
        return refuse("with an operator accounts come by tokens; leave accounts out");
    }
    for (key, text) in std::mem::take(&mut trust.preloaded) {
        let claims = trust.read(&text).and_then(|claims| match claims.subject == key {
            true => Ok(claims),
            false => Err(format!("its token is about {}", claims.subject)),
        });
        match claims {
            Ok(claims) => drop(trust.accounts.insert(key.clone(), Arc::new(claims))),
            Err(reason) => {
                let violation = Violation::of(PRELOADED, format!("account {key}: {reason}"));
                return Err(violation.within([&key]));
            }
        }
        trust.preloaded.push((key, text));
    }
    if let Some(directory) = &trust.directory {
        // What was preloaded is older than what the directory has.
        let stored = stored(&directory.path);
        for (key, text) in stored.map_err(|error| Violation::of(KEYS, error.to_string()))? {
            match trust.read(&text) {
                Ok(claims) if claims.subject == key => {
                    trust.accounts.insert(key, Arc::new(claims));
                }
                // It came from somebody else, who is not to keep the server from starting.
                Ok(claims) => options.warnings.push(format!(
                    "account {key}: its token is about {}; it is left out",
                    claims.subject
                )),
                Err(reason) => options
                    .warnings
                    .push(format!("account {key}: {reason}; until then it is left out")),
            }
        }
    }
    if !trust.pinned.is_empty() {
        trust.pinned.extend(options.accounts.system.clone());
    }
    let zone = iana_time_zone::get_timezone().ok();
    trust.zone = zone.and_then(|name| name.parse().ok()).unwrap_or_default();
    share(&trust, options);
    options.trust = Some(trust);
    Ok(())
}

/// The tokens in a directory, one file for each account, named by its key.
///
/// # Errors
///
/// If the directory cannot be made, or read.
pub fn stored(directory: &Path) -> Result<Vec<(String, String)>, StartError> {
    let unusable = |path: &Path, error: std::io::Error| {
        StartError::new(format!(
            "resolver: cannot read {}: {error}; see who may, or use another dir",
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

/// Adds the accounts, and what they let one another have.
fn share(trust: &Trust, options: &mut Options) {
    let now = chrono::Utc::now().timestamp();
    for (key, claims) in &trust.accounts {
        let mut mappings = Vec::new();
        for mapping in mappings_of(&claims.body) {
            match mapping {
                Ok(mapping) => mappings.push(mapping),
                Err(reason) => {
                    options.warnings.push(format!("account {key}: {reason}; it is left out"));
                }
            }
        }
        let limits = &claims.body.limits;
        let limit = |value: i64| usize::try_from(value).ok();
        options.accounts.add(Account {
            limits: AccountLimits {
                connections_max: limit(limits.conn),
                subscriptions_max: limit(limits.subs),
                payload_bytes_max: limit(limits.payload),
                leafnodes_max: limit(limits.leaf),
            },
            exports: exports(trust, claims, now),
            mappings,
            ..Account::named(key)
        });
    }
    for (key, claims) in &trust.accounts {
        for import in &claims.body.imports {
            let Some(import) = import_of(import) else {
                let name = &import.subject;
                options.warnings.push(format!("account {key}: import of {name:?} is left out"));
                continue;
            };
            if let Err(reason) = accounts::admit(&mut options.accounts, key, import) {
                options.warnings.push(format!("{reason}; it is left out"));
            }
        }
    }
}

/// What an account maps, or why one of it cannot be.
fn mappings_of(account: &jwt::Account) -> impl Iterator<Item = Result<Mapping, String>> {
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

fn exports(trust: &Trust, exporter: &Claims<jwt::Account>, now: i64) -> Vec<Export> {
    let valid = |export: &&jwt::Export| is_valid_filter(export.subject.as_bytes());
    let export = |export: &jwt::Export| {
        let mut permitted = Vec::new();
        if export.token_req && export.account_token_position == 0 {
            // Nobody, which an empty list is not, and those who have been let in.
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
        })
    };
    exporter.body.exports.iter().filter(valid).filter_map(export).collect()
}

/// Whether the account's imports that fall under `export` all have its leave.
fn is_let_in(
    exporter: &Claims<jwt::Account>,
    export: &jwt::Export,
    importer: &str,
    claims: &Claims<jwt::Account>,
    now: i64,
) -> bool {
    let of_it = |import: &&jwt::Import| {
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

fn import_of(import: &jwt::Import) -> Option<Import> {
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
