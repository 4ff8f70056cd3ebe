//! Accounts, their exports and imports, and the blocks of the file that configure them.

use std::collections::HashMap;

use super::auth::UserOptions;
use super::bind::{permissions, users};
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::{Map, ValueKind};
use super::latency;
use super::mistakes::Mistakes;
use super::rules::BrokenRule;
use super::{Options, StartError};
use crate::auth::Permissions;
use crate::auth::jwt;
pub use crate::engine::account_settings::GLOBAL;
use crate::engine::account_settings::{
    Account, AccountLimits, Export, Import, LatencyRule, Response, Seats, Shared, TraceRule,
};
use crate::subject::{is_valid_filter, is_valid_publish, is_word};
use crate::subject::{overlap, tokens};

/// The name of the system account, unless another is chosen.
pub const SYSTEM: &str = "$SYS";

/// All accounts, and the numbers they have in tables.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountOptions {
    /// `$G` first, then those of the file and the system account.
    pub list: Vec<Account>,
    /// The account for events of the server and requests to it (`$SYS`; none if switched off).
    pub system: Option<String>,
    /// Permissions of users that have none of their own, by account.
    pub default_permissions: HashMap<String, Permissions>,
    /// Numbers and connections of all account names in use since the process began.
    numbers: HashMap<String, (u32, Seats)>,
}

impl Default for AccountOptions {
    fn default() -> Self {
        let mut accounts = Self {
            list: Vec::new(),
            system: Some(SYSTEM.into()),
            default_permissions: HashMap::new(),
            numbers: HashMap::new(),
        };
        accounts.add(Account::named(GLOBAL));
        accounts.add(Account::named(SYSTEM));
        accounts
    }
}

impl AccountOptions {
    /// Adds an account, or puts it in the place of the one with its name.
    pub fn add(&mut self, account: Account) {
        let is_known = self.numbers.contains_key(&account.name);
        if !is_known {
            self.number_anew(account.name.clone());
        }
        match self.list.iter_mut().find(|other| is_known && other.name == account.name) {
            Some(other) => *other = account,
            None => self.list.push(account),
        }
    }

    fn number_anew(&mut self, name: String) {
        let number = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        self.numbers.insert(name, (number, Seats::default()));
    }

    /// Returns the account `$G`.
    pub(super) fn global(&mut self) -> &mut Account {
        &mut self.list[0]
    }

    /// Returns the account of that name.
    pub fn get(&self, name: &str) -> Option<&Account> {
        self.list.iter().find(|account| account.name == name)
    }

    /// Whether there are accounts besides `$G` and the system account.
    pub fn has_own(&self) -> bool {
        let is_own = |name: &str| ![GLOBAL, SYSTEM].contains(&name);
        let system = self.system.as_deref();
        self.list.iter().any(|account| is_own(&account.name) && Some(&*account.name) != system)
    }

    /// Returns the account of that name, to be changed.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Account> {
        self.list.iter_mut().find(|account| account.name == name)
    }

    /// Returns the number of the account of that name, also if the account is gone.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).map(|(number, _)| *number)
    }

    /// Returns the connections of the account of that name.
    pub fn seats(&self, name: &str) -> Seats {
        self.numbers.get(name).map(|(_, seats)| seats.clone()).unwrap_or_default()
    }

    /// Gives every account the number that it has in `old`; numbers of removed accounts are not
    /// used again.
    pub fn keep_numbers(&mut self, old: &Self) {
        self.numbers.clone_from(&old.numbers);
        for name in self.list.iter().map(|account| account.name.clone()).collect::<Vec<_>>() {
            if !self.numbers.contains_key(&name) {
                self.number_anew(name);
            }
        }
    }
}

/// Milliseconds after which an answer is no longer accepted, unless the export sets another time.
pub(super) const RESPONSE_THRESHOLD_MS: u64 = 120_000;

/// Binds the block `accounts`, or a list of names.
pub(super) fn bind(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    if let ValueKind::List(_) = v.value.kind {
        return v.each(|v| add(options, Account::named(v.text()?), v)).map(drop);
    }
    v.each_entry(|entry, v| {
        if entry.is_variable {
            return Ok(());
        }
        let ValueKind::Map(map) = &entry.value.kind else {
            return Err(v.error("an account is a block { … }"));
        };
        let mut draft = Draft { account: Account::named(&entry.key), ..Draft::default() };
        bind_map(&[ACCOUNT], map, &mut draft, v.warnings)?;
        let mut mistakes = Mistakes::default();
        for mut user in draft.users {
            if options.auth.users.iter().any(|other| other.name == user.name) {
                mistakes.take::<()>(Err(duplicate_user(v, &user.name)));
                continue;
            }
            user.account.clone_from(&entry.key);
            user.permissions = user.permissions.or_else(|| draft.default_permissions.clone());
            options.auth.users.push(user);
        }
        if let Some(permissions) = draft.default_permissions {
            let defaults = &mut options.accounts.default_permissions;
            defaults.insert(entry.key.clone(), permissions);
        }
        mistakes.take(add(options, draft.account, v));
        mistakes.result()
    })
    .map(drop)
}

pub(super) fn duplicate_user(v: &Field<'_>, name: &str) -> StartError {
    v.error(format!("duplicate user \"{name}\"; keep one"))
}

fn add(options: &mut Options, account: Account, v: &Field<'_>) -> Result<(), StartError> {
    let name = &account.name;
    if name == GLOBAL {
        let reason = format!("\"{name}\" is a reserved account; choose another name");
        return Err(v.error(reason));
    }
    if !is_word(name.as_bytes()) {
        return Err(v.error("the name of an account has no blanks"));
    }
    if name != SYSTEM && options.accounts.get(name).is_some() {
        return Err(v.error(format!("duplicate account \"{name}\"; keep one")));
    }
    options.accounts.add(account);
    Ok(())
}

#[derive(Default)]
struct Draft {
    account: Account,
    users: Vec<UserOptions>,
    default_permissions: Option<Permissions>,
}

const ACCOUNT: &[Key<Draft>] = &[
    Key(&["users"], Set(|d, v| users(v).map(|users| d.users = users))),
    Key(
        &["default_permissions"],
        Set(|d, v| permissions(v).map(|p| d.default_permissions = Some(p))),
    ),
    Key(&["limits"], Set(|d, v| bind_map(&[LIMITS], v.map()?, &mut d.account.limits, v.warnings))),
    Key(
        &["exports"],
        Set(|d, v| {
            d.account.exports = v.each(export)?;
            Ok(())
        }),
    ),
    Key(
        &["imports"],
        Set(|d, v| {
            d.account.imports = v.each(import)?;
            Ok(())
        }),
    ),
    Key(&["nkey"], Set(|_, v| account_key(v))),
    Key(&["mappings", "maps"], Set(|d, v| super::mapping::bind(&mut d.account.mappings, v))),
    Key(&["overflow"], Set(|d, v| super::overflow::bind(&mut d.account.overflow, v))),
    Key(&["jetstream"], Set(|d, v| super::jetstream::bind_account(&mut d.account.streams, v))),
    Key(
        &["msg_trace", "trace_dest"],
        Set(|d, v| trace_rule(v).map(|rule| d.account.trace_rule = Some(rule))),
    ),
];

#[derive(Default)]
struct TraceDraft {
    dest: String,
    sampling: Option<u8>,
}

const TRACE: &[Key<TraceDraft>] = &[
    Key(&["dest"], Set(|d, v| trace_dest(v).map(|dest| d.dest = dest))),
    Key(&["sampling"], Set(|d, v| sampling(v).map(|sampling| d.sampling = Some(sampling)))),
];

fn trace_rule(v: &mut Field<'_>) -> Result<TraceRule, StartError> {
    if !matches!(v.value.kind, ValueKind::Map(_)) {
        return Ok(TraceRule { dest: trace_dest(v)?, sampling: 100 });
    }
    let mut draft = TraceDraft::default();
    bind_map(&[TRACE], v.map()?, &mut draft, v.warnings)?;
    if draft.dest.is_empty() {
        return Err(v.error("msg_trace needs a dest, the subject of its traces"));
    }
    Ok(TraceRule { dest: draft.dest, sampling: draft.sampling.unwrap_or(100) })
}

fn trace_dest(v: &mut Field<'_>) -> Result<String, StartError> {
    let dest = v.text()?;
    if !is_valid_publish(dest.as_bytes()) {
        return Err(v.error("the subject of traces has no wildcards"));
    }
    Ok(dest)
}

/// Reads a percentage from 1 to 100: a number, or a text with or without the sign.
pub(super) fn sampling(v: &mut Field<'_>) -> Result<u8, StartError> {
    let text = match v.value.kind {
        ValueKind::Integer(number) => number.to_string(),
        _ => v.text()?,
    };
    let number = text.strip_suffix('%').unwrap_or(&text).trim().parse();
    match number {
        Ok(number @ 1..=100) => Ok(number),
        _ => Err(v.error("sampling is the percentage of the messages, 1 to 100")),
    }
}

const LIMITS: &[Key<AccountLimits>] = &[
    Key(&["max_connections", "max_conn"], Set(|l, v| v.limit().map(|n| l.connections_max = n))),
    Key(&["max_subscriptions", "max_subs"], Set(|l, v| v.limit().map(|n| l.subscriptions_max = n))),
    Key(&["max_payload", "max_pay"], Set(|l, v| v.limit().map(|n| l.payload_bytes_max = n))),
    Key(&["max_leafnodes", "max_leafs"], Set(|l, v| v.limit().map(|n| l.leafnodes_max = n))),
];

fn account_key(v: &mut Field<'_>) -> Result<(), StartError> {
    let key = v.text()?;
    if !jwt::is_key(&key, &['A']) {
        return Err(v.error("nkey is the public key of an account: 56 characters, first an A"));
    }
    Ok(())
}

/// Stores a subject in `slot`, unless another key of the same block has set it.
fn only(
    slot: &mut Option<(Shared, String)>,
    shared: Shared,
    v: &mut Field<'_>,
    subject: String,
) -> Result<(), StartError> {
    if let Some((other, _)) = slot {
        let reason = format!("detected a {} but already saw a {}", shared.name(), other.name());
        return Err(v.error(format!("{reason}; write one entry for each")));
    }
    if !is_valid_filter(subject.as_bytes()) {
        return Err(v.error(format!("\"{subject}\" is not a valid subject")));
    }
    *slot = Some((shared, subject));
    Ok(())
}

#[derive(Default)]
struct ExportDraft {
    shared: Option<(Shared, String)>,
    accounts: Vec<String>,
    account_token: usize,
    response: Option<Response>,
    threshold_ms: Option<u64>,
    allow_trace: Option<bool>,
    latency: Option<LatencyRule>,
}

fn exported(shared: Shared, d: &mut ExportDraft, v: &mut Field<'_>) -> Result<(), StartError> {
    let subject = v.text()?;
    only(&mut d.shared, shared, v, subject)
}

const EXPORT: &[Key<ExportDraft>] = &[
    Key(&["stream"], Set(|d, v| exported(Shared::Stream, d, v))),
    Key(&["service"], Set(|d, v| exported(Shared::Service, d, v))),
    Key(&["accounts"], Set(|d, v| v.texts().map(|names| d.accounts = names))),
    Key(
        &["account_token_position"],
        Set(|d, v| v.size(255).map(|position| d.account_token = position)),
    ),
    Key(
        &["response", "response_type"],
        Set(|d, v| {
            d.response = Some(match v.text()?.to_ascii_lowercase().as_str() {
                "single" | "singleton" => Response::Singleton,
                "stream" => Response::Stream,
                "chunk" | "chunked" => Response::Chunked,
                _ => return Err(v.error("response_type is singleton, stream or chunked")),
            });
            Ok(())
        }),
    ),
    Key(&["response_threshold"], Set(|d, v| v.duration_ms().map(|ms| d.threshold_ms = Some(ms)))),
    Key(&["latency"], Set(|d, v| latency::bind(v).map(|rule| d.latency = Some(rule)))),
    Key(&["allow_trace"], Set(|d, v| v.boolean().map(|allow| d.allow_trace = Some(allow)))),
];

fn export(v: &mut Field<'_>) -> Result<Export, StartError> {
    let mut draft = ExportDraft::default();
    bind_map(&[EXPORT], v.map()?, &mut draft, v.warnings)?;
    let Some((shared, subject)) = draft.shared else {
        return Err(v.error("an export names a stream or a service"));
    };
    if shared == Shared::Stream && (draft.response.is_some() || draft.threshold_ms.is_some()) {
        return Err(v.error("only a service has responses; leave that out of the stream"));
    }
    if shared == Shared::Stream && draft.allow_trace.is_some() {
        return Err(v.error("allow_trace is for services here; a stream has it in its import"));
    }
    if draft.account_token > 0 {
        let token = tokens(subject.as_bytes()).nth(draft.account_token - 1);
        if token != Some(b"*") {
            let reason = "account_token_position is the number, from 1, of a * in the subject";
            return Err(v.error(reason));
        }
        if !draft.accounts.is_empty() {
            return Err(v.error("an export has accounts or an account_token_position; keep one"));
        }
    }
    Ok(Export {
        shared,
        subject,
        accounts: draft.accounts,
        account_token: draft.account_token,
        response: draft.response.unwrap_or_default(),
        response_threshold_ms: match draft.threshold_ms {
            None | Some(0) => RESPONSE_THRESHOLD_MS,
            Some(ms) => ms,
        },
        allow_trace: draft.allow_trace.unwrap_or(false),
        latency: draft.latency,
    })
}

#[derive(Default)]
struct ImportDraft {
    shared: Option<(Shared, String)>,
    account: String,
    to: String,
    prefix: String,
    share: bool,
    allow_trace: Option<bool>,
}

#[derive(Default)]
struct ImportOrigin {
    account: String,
    subject: String,
}

const ORIGIN: &[Key<ImportOrigin>] = &[
    Key(&["account"], Set(|o, v| v.text().map(|name| o.account = name))),
    Key(&["subject"], Set(|o, v| v.text().map(|subject| o.subject = subject))),
];

fn imported(shared: Shared, d: &mut ImportDraft, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut origin = ImportOrigin::default();
    let map: &Map = v.map()?;
    bind_map(&[ORIGIN], map, &mut origin, v.warnings)?;
    if origin.account.is_empty() || origin.subject.is_empty() {
        return Err(v.error("an import names an account and one of its subjects"));
    }
    d.account = origin.account;
    only(&mut d.shared, shared, v, origin.subject)
}

const IMPORT: &[Key<ImportDraft>] = &[
    Key(&["stream"], Set(|d, v| imported(Shared::Stream, d, v))),
    Key(&["service"], Set(|d, v| imported(Shared::Service, d, v))),
    Key(&["to"], Set(|d, v| v.text().map(|to| d.to = to))),
    Key(&["prefix"], Set(|d, v| v.text().map(|prefix| d.prefix = prefix))),
    Key(&["share"], Set(|d, v| v.boolean().map(|share| d.share = share))),
    Key(&["allow_trace"], Set(|d, v| v.boolean().map(|allow| d.allow_trace = Some(allow)))),
];

fn import(v: &mut Field<'_>) -> Result<Import, StartError> {
    let mut draft = ImportDraft::default();
    bind_map(&[IMPORT], v.map()?, &mut draft, v.warnings)?;
    let Some((shared, subject)) = draft.shared else {
        return Err(v.error("an import names a stream or a service"));
    };
    let local = match (draft.prefix.trim_end_matches('.'), draft.to) {
        // nats-server refuses both together now and then.
        (prefix, to) if !prefix.is_empty() && !to.is_empty() => {
            return Err(v.error("an import has a prefix or a 'to'; keep one"));
        }
        (_, to) if !to.is_empty() => to,
        ("", _) => subject.clone(),
        (prefix, _) if shared == Shared::Stream => format!("{prefix}.{subject}"),
        _ => return Err(v.error("a service has no prefix; write the whole subject with to")),
    };
    if !is_valid_filter(local.as_bytes()) {
        return Err(v.error(format!("\"{local}\" is not a valid subject")));
    }
    let (account, share) = (draft.account, draft.share);
    if shared == Shared::Service && draft.allow_trace.is_some() {
        return Err(v.error("allow_trace is for streams here; a service has it in its export"));
    }
    let allow_trace = draft.allow_trace.unwrap_or(false);
    Ok(Import { shared, account, subject, local, share, allow_trace })
}

/// Completes the accounts once the whole file is read.
pub(super) fn settle(options: &mut Options) {
    let accounts = &mut options.accounts;
    let used = options.auth.users.iter().any(|user| user.account == SYSTEM);
    let default = Account::named(SYSTEM);
    if accounts.system.as_deref() != Some(SYSTEM) && !used {
        accounts.list.retain(|account| *account != default);
    }
}

/// Checks the rules between accounts.
pub(super) fn check(options: &Options, broken: &mut Vec<BrokenRule>) {
    let accounts = &options.accounts;
    if let Some(system) = &accounts.system
        && accounts.get(system).is_none()
    {
        let reason = format!("system_account \"{system}\" is not in accounts; add it there");
        broken.push(BrokenRule::of(&["system_account", "system", "accounts"], reason));
    }
    let has_system = accounts.system.is_some();
    for account in &accounts.list {
        let mut refuse = |list: &str, at: usize, reason: String| {
            let violation = BrokenRule::of(&["accounts"], reason);
            broken.push(violation.within([&account.name, list, &at.to_string()]));
        };
        for (at, export) in account.exports.iter().enumerate() {
            for name in export.accounts.iter().filter(|name| accounts.get(name).is_none()) {
                let reason = format!(
                    "\"{name}\" account not defined for {} export \"{}\" of account \"{}\"",
                    export.shared.name(),
                    export.subject,
                    account.name
                );
                refuse("exports", at, reason);
            }
            if let Some(reason) = LatencyRule::objection(&account.exports[..=at], has_system) {
                refuse("exports", at, reason.to_owned());
            }
        }
        for (at, import) in account.imports.iter().enumerate() {
            let is_same = |other: &&Import| {
                (other.shared, import.shared) == (Shared::Service, Shared::Service)
                    && (&other.account, &other.local) == (&import.account, &import.local)
                    && other.subject != import.subject
            };
            if let Some(other) = account.imports[..at].iter().find(is_same) {
                let (local, subject) = (&import.local, &other.subject);
                let reason = format!(
                    "\"{local}\" is already the local subject of the imported service \
                     \"{subject}\"; choose another"
                );
                refuse("imports", at, reason);
            }
            if let Err(reason) = check_import(accounts, account, import, &account.imports[..at]) {
                refuse("imports", at, reason);
            }
        }
    }
}

/// Adds an import to an account.
///
/// # Errors
///
/// Returns the reason why the account may not have the import.
pub(super) fn admit(
    accounts: &mut AccountOptions,
    name: &str,
    import: Import,
) -> Result<(), String> {
    let Some(at) = accounts.list.iter().position(|account| account.name == name) else {
        return Ok(());
    };
    let account = &accounts.list[at];
    check_import(accounts, account, &import, &account.imports)?;
    accounts.list[at].imports.push(import);
    Ok(())
}

/// Checks whether the account may have the import besides `others`.
fn check_import(
    accounts: &AccountOptions,
    account: &Account,
    import: &Import,
    others: &[Import],
) -> Result<(), String> {
    let kind = import.shared.name();
    let Some(exporter) = accounts.get(&import.account) else {
        return Err(format!(
            "\"{}\" account not defined for {kind} import of account \"{}\"",
            import.account, account.name
        ));
    };
    if exporter.name == account.name {
        return refuse_import(account, import, "an account cannot import from itself");
    }
    let mut exports = exporter.exports.iter();
    if !exports.any(|export| export.permits(import, &account.name)) {
        let reason = format!(
            "{kind} import not authorized: no export of account \"{}\" allows it",
            exporter.name
        );
        return refuse_import(account, import, &reason);
    }
    if let Err(error) = import.mapping() {
        return refuse_import(account, import, &error.to_string());
    }
    if others.contains(import) {
        return refuse_import(account, import, &format!("the {kind} import already exists"));
    }
    if forms_cycle(accounts, account, import) {
        return refuse_import(account, import, "the import forms a cycle");
    }
    Ok(())
}

/// Whether messages that `start` brings into `home` can come back there over other imports.
fn forms_cycle(accounts: &AccountOptions, home: &Account, start: &Import) -> bool {
    let meets = |import: &Import, subject: &str| {
        import.filter().is_some_and(|local| overlap(&local, subject.as_bytes()))
    };
    let mut open = vec![start];
    let mut seen: Vec<&Import> = Vec::new();
    while let Some(import) = open.pop() {
        let Some(exporter) = accounts.get(&import.account) else { continue };
        let next = exporter.imports.iter().filter(|next| {
            next.shared == start.shared && meets(next, &import.subject) && !seen.contains(next)
        });
        for next in next.collect::<Vec<_>>() {
            if next.account == home.name && meets(start, &next.subject) {
                return true;
            }
            seen.push(next);
            open.push(next);
        }
    }
    false
}

fn refuse_import(account: &Account, import: &Import, reason: &str) -> Result<(), String> {
    let (kind, subject) = (import.shared.name(), &import.subject);
    Err(format!("{kind} import \"{subject}\" of account \"{}\": {reason}", account.name))
}
