//! Operators and resolvers: accounts that come as signed tokens, and whose users do.
//!
//! Tokens are checked when the options are read: at start and at a reload. What an account shares
//! is put beside the configured ones; an import that does not hold is left out with a warning,
//! because whoever wrote the token is not the one who runs the server.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::accounts::{self, Account, AccountLimits, Export, Import, Response, Shared};
use super::auth::{Permissions, Responses, SubjectEntry, SubjectList};
use super::field::Action::{Ignore, Set};
use super::field::{Field, Key, bind_map};
use super::file::Kind;
use super::{Options, StartError, missing};
use crate::jwt::{self, Claims};
use crate::subject::is_valid_filter;

/// Who vouches for accounts, and those they vouch for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trust {
    /// The public keys that sign accounts.
    pub keys: Vec<String>,
    /// The accounts by their public keys.
    pub accounts: BTreeMap<String, Arc<Claims<jwt::Account>>>,
    /// As it is written, until all is read.
    operators: Vec<String>,
    is_resolved: bool,
    directory: Option<PathBuf>,
    preload: Vec<(String, String)>,
}

/// Accounts that a directory may hold.
const ACCOUNTS_MAX: usize = 100_000;

pub(super) fn operators(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    for (text, value) in v.texts()? {
        let token = if text.starts_with("eyJ") {
            text
        } else {
            let file = std::fs::read_to_string(&text);
            let file =
                file.map_err(|e| value.position.error(format!("cannot read {text}: {e}")))?;
            jwt::undecorated(&file).to_owned()
        };
        options.trust.get_or_insert_default().operators.push(token);
    }
    Ok(())
}

pub(super) fn trusted_keys(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    for (key, value) in v.texts()? {
        if !jwt::is_key(&key, &['O']) {
            let reason =
                "a trusted key is the public key of an operator: 56 characters, first an O";
            return Err(value.position.error(reason));
        }
        options.trust.get_or_insert_default().keys.push(key);
    }
    Ok(())
}

pub(super) fn preload(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    for entry in v.map()?.entries() {
        let Kind::Text(token) = &entry.value.kind else {
            return Err(entry.value.position.error("an account's token is text"));
        };
        if !jwt::is_key(&entry.key, &['A']) {
            let reason = "a token is preloaded by the public key of its account";
            return Err(entry.position.error(reason));
        }
        let trust = options.trust.get_or_insert_default();
        trust.preload.push((entry.key.clone(), token.clone()));
    }
    Ok(())
}

#[derive(Default)]
struct Resolver {
    kind: String,
    directory: Option<PathBuf>,
}

const RESOLVER: &[Key<Resolver>] = &[
    Key(&["type"], Set(|r, v| v.text().map(|kind| r.kind = kind.to_ascii_lowercase()))),
    Key(&["dir"], Set(|r, v| v.text().map(|dir| r.directory = Some(dir.into())))),
    Key(&["allow_delete", "hard_delete", "interval", "limit"], Ignore(&missing::ANY)),
    Key(&["timeout", "ttl"], Ignore(&missing::ANY)),
];

pub(super) fn resolver(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let trust = options.trust.get_or_insert_default();
    trust.is_resolved = true;
    if let Kind::Text(text) = &v.value.kind {
        return match text.to_ascii_uppercase().as_str() {
            "MEMORY" | "MEM" => Ok(()),
            _ => {
                Err(v.error("resolver is MEMORY or { type: full, dir: … }; no other is supported"))
            }
        };
    }
    let mut resolver = Resolver::default();
    bind_map(&[RESOLVER], v.map()?, &mut resolver, v.warnings)?;
    match (resolver.kind.as_str(), resolver.directory) {
        ("mem" | "memory", _) => {}
        ("full", Some(directory)) => trust.directory = Some(directory),
        ("full", None) => return Err(v.error("a resolver of type full needs a dir")),
        _ => return Err(v.error("the type of a resolver is MEMORY or full; no other is supported")),
    }
    Ok(())
}

/// Reads the tokens when all of the file is read.
pub(super) fn settle(options: &mut Options) -> Result<(), StartError> {
    let Some(mut trust) = options.trust.take() else { return Ok(()) };
    let refuse = |reason: &str| Err(StartError::new(reason));
    for text in std::mem::take(&mut trust.operators) {
        let operator: Claims<jwt::Operator> = jwt::decode_signed(&text)
            .map_err(|error| StartError::new(format!("operator: {error}; export it anew")))?;
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
    let mut tokens = std::mem::take(&mut trust.preload);
    if let Some(directory) = &trust.directory {
        // What was preloaded is older than what the directory has.
        tokens.extend(stored(directory)?);
    }
    for (key, text) in tokens {
        match account(&trust, &key, &text) {
            Ok(claims) => drop(trust.accounts.insert(key, Arc::new(claims))),
            Err(reason) => return Err(StartError::new(format!("account {key}: {reason}"))),
        }
    }
    share(&trust, options);
    options.trust = Some(trust);
    Ok(())
}

fn account(trust: &Trust, key: &str, text: &str) -> Result<Claims<jwt::Account>, String> {
    let claims: Claims<jwt::Account> =
        jwt::decode_signed(text).map_err(|error| format!("{error}; push it anew"))?;
    if claims.subject != key {
        return Err(format!("its token is about {}", claims.subject));
    }
    if !trust.keys.contains(&claims.issuer) {
        return Err("none of the operator's keys has signed it; push it anew".to_owned());
    }
    Ok(claims)
}

/// The tokens in a directory, one file for each account, named by its key.
fn stored(directory: &Path) -> Result<Vec<(String, String)>, StartError> {
    let unusable = |path: &Path, error: std::io::Error| {
        StartError::new(format!("resolver: cannot read {}: {error}", path.display()))
    };
    std::fs::create_dir_all(directory).map_err(|error| unusable(directory, error))?;
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

/// The permissions of a token as those of a file.
///
/// Returns `None` if a subject in them is none.
pub fn permissions(from: &jwt::Permissions) -> Option<Permissions> {
    let entry = |text: &String| {
        let mut words = text.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(subject), queue, None) if is_valid_filter(subject.as_bytes()) => {
                Some(SubjectEntry { subject: subject.to_owned(), queue: queue.map(str::to_owned) })
            }
            _ => None,
        }
    };
    let entries = |texts: &[String]| texts.iter().map(entry).collect::<Option<Vec<_>>>();
    let list = |list: &jwt::SubjectList| {
        Some(SubjectList { allow: entries(&list.allow)?, deny: entries(&list.deny)? })
    };
    let defaults = Responses::default();
    let responses = from.responses.as_ref().map(|responses| Responses {
        max: if responses.max == 0 { defaults.max } else { responses.max },
        expires_ms: match responses.ttl {
            0 => defaults.expires_ms,
            ..0 => -1,
            ttl => ttl / 1_000_000,
        },
    });
    Some(Permissions {
        publish: list(&from.publish)?,
        subscribe: list(&from.subscribe)?,
        allow_responses: responses,
    })
}
