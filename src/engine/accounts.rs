//! Accounts of a shard: separate worlds of subjects, and limits of their users.
//!
//! An account is a number that all shards share. `config::Accounts` gives it out and never reuses
//! it. Each account has an `Interest` of its own, so a message meets only subscriptions of its
//! account; the ways between accounts are in `imports`. A record of another shard may name an
//! account before this shard was told of it, because records may overtake the control thread: the
//! account is created then, empty.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::account_settings::{self as settings, AccountLimits, Seats, Shared, TraceRule};
use super::cache::{Cache, Tally};
use super::conn::Traffic;
use super::imports::Outlet;
use super::interest::{Interest, InterestStats};
use super::mapping::Mappings;
use crate::subject::Table;

/// Subjects of JetStream requests.
const JETSTREAM_REQUESTS: &[u8] = b"$JS.API.>";
/// Request for the user of the own connection; the server that has the connection answers it.
pub const OWN_USER: &str = "$SYS.REQ.USER.INFO";
/// Documents of a server, asked for in the system account, from all servers or from one by its
/// id.
const SERVER_PAGES: [&str; 15] = [
    "ACCOUNTZ",
    "CONNZ",
    "EXPVARZ",
    "GATEWAYZ",
    "HEALTHZ",
    "IDZ",
    "IPQUEUESZ",
    "JSZ",
    "LEAFZ",
    "PROFILEZ",
    "RAFTZ",
    "ROUTEZ",
    "STATSZ",
    "SUBSZ",
    "VARZ",
];
/// Documents of an account, asked for in the system account.
const ACCOUNT_PAGES: [&str; 7] = ["CONNS", "CONNZ", "INFO", "JSZ", "LEAFZ", "STATZ", "SUBSZ"];
/// Request for the number of subscribers of a subject.
const DEBUG_SUBSCRIBERS: &str = "$SYS.DEBUG.SUBSCRIBERS";
/// Orders to a server, by its id, in the system account.
const SERVER_ORDERS: [&str; 3] = ["KICK", "LDM", "RELOAD"];
/// Requests of any account about itself, with the document that answers each.
pub const ACCOUNT_REQUESTS: [(&str, &str); 3] = [
    ("$SYS.REQ.ACCOUNT.PING.CONNZ", "CONNZ"),
    ("$SYS.REQ.ACCOUNT.PING.STATZ", "STATZ"),
    ("$SYS.REQ.SERVER.PING.CONNZ", "CONNZ"),
];

/// An account: a world of subjects of its own. All shards give it the same number, and it keeps
/// it while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountId(u32);

impl AccountId {
    /// `$G`, where everybody is who is in no other.
    pub(crate) const GLOBAL: Self = Self(0);

    /// The account with this number in the configuration.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// One account on one shard.
#[derive(Debug)]
pub(super) struct Account {
    /// Empty until the account was configured here: another shard may be told of it first, and
    /// what it says of it is kept.
    pub(super) name: Arc<str>,
    /// What it is like; none while it is not configured.
    config: Option<Rc<settings::Account>>,
    pub(super) interest: Interest,
    /// What subjects become that its connections publish to.
    pub(super) mappings: Option<Mappings>,
    /// Other accounts ask it: their answers are wanted from other servers, too.
    pub(super) answers: bool,
    /// Connections logged in here that are open.
    pub(super) conns: usize,
    /// Those of all shards.
    seats: Seats,
    /// Those that were closed as slow consumers.
    pub(super) slow_consumers: u64,
    /// What went through its connections.
    pub(super) traffic: Traffic,
}

impl Account {
    pub(super) fn limits(&self) -> AccountLimits {
        self.config.as_ref().map(|config| config.limits).unwrap_or_default()
    }

    /// Where messages are followed to that other systems trace.
    pub(super) fn trace_rule(&self) -> Option<&TraceRule> {
        self.config.as_ref().and_then(|config| config.trace_rule.as_ref())
    }

    /// Counts one more connection, unless there are as many as there may be.
    pub(super) fn enter(&mut self) -> bool {
        let is_in = self.seats.take(self.limits().connections_max);
        self.conns += usize::from(is_in);
        is_in
    }

    /// Counts a connection no more.
    pub(super) fn leave(&mut self) {
        self.conns -= 1;
        self.seats.leave();
    }
}

/// All accounts by number.
#[derive(Debug)]
pub(super) struct Accounts {
    all: Vec<Account>,
    /// Those that are configured.
    by_name: HashMap<Arc<str>, AccountId>,
    /// The one in which the server tells of itself and is asked.
    pub(super) system: Option<AccountId>,
    /// What it is asked there of accounts that come by tokens.
    pub(super) claims_requests: &'static [&'static str],
    /// The cluster that this server is in. There may be servers with JetStream in it; who asks
    /// it does so in the system account.
    cluster: Option<String>,
    seed: u64,
    tally: Rc<Tally>,
}

impl Accounts {
    /// `seed` keys the hashes of subjects.
    pub(super) fn new(seed: u64, tally: Rc<Tally>) -> Self {
        let (all, by_name) = (Vec::new(), HashMap::new());
        Self { all, by_name, system: None, claims_requests: &[], cluster: None, seed, tally }
    }

    /// The account, which is made if it is new: ids come from the configuration, never from
    /// clients, so there are as many as that has.
    #[inline]
    pub(super) fn at(&mut self, id: AccountId) -> &mut Account {
        if id.index() >= self.all.len() {
            self.grow(id);
        }
        &mut self.all[id.index()]
    }

    #[cold]
    fn grow(&mut self, id: AccountId) {
        while self.all.len() <= id.index() {
            let seed = self.seed.wrapping_add((self.all.len() as u64).wrapping_mul(0x9e37_79b9));
            self.all.push(Account {
                name: "".into(),
                config: None,
                mappings: None,
                interest: Interest::new(seed, &self.tally),
                answers: false,
                conns: 0,
                seats: Seats::default(),
                slow_consumers: 0,
                traffic: Traffic::default(),
            });
        }
    }

    /// Says what an account is like.
    ///
    /// What it exports and imports is in force with the next [`Self::link`].
    pub(super) fn configure(&mut self, id: AccountId, config: Rc<settings::Account>, seats: Seats) {
        let mappings = Mappings::new(&config.mappings, self.cluster.as_deref());
        let account = self.at(id);
        account.name = config.name.as_str().into();
        let name = Arc::clone(&account.name);
        account.mappings = mappings;
        seats.take_over(&account.seats, account.conns);
        account.seats = seats;
        account.config = Some(config);
        self.by_name.insert(name, id);
    }

    /// The server is in this cluster now.
    pub(super) fn name_cluster(&mut self, name: &str, server_id: &str) {
        if self.cluster.as_deref() == Some(name) {
            return;
        }
        let was_alone = self.cluster.replace(name.to_owned()).is_none();
        for account in &mut self.all {
            let mappings = account.config.as_ref().map(|config| &config.mappings[..]);
            account.mappings = Mappings::new(mappings.unwrap_or_default(), Some(name));
        }
        if was_alone {
            self.link(server_id);
        }
    }

    /// Nothing is configured any more.
    pub(super) fn retire(&mut self) {
        self.by_name.clear();
        for account in &mut self.all {
            account.name = "".into();
            account.config = None;
            account.mappings = None;
        }
    }

    /// Puts imports in force: each of them is an outlet of the account that messages come from.
    pub(super) fn link(&mut self, server_id: &str) {
        let mut tables: Vec<Table<Vec<Rc<Outlet>>>> = Vec::new();
        tables.resize_with(self.all.len(), || Table::with_seed(self.seed));
        let ids: HashMap<&str, AccountId> =
            (0..).map(AccountId).zip(&self.all).map(|(id, account)| (&*account.name, id)).collect();
        for (id, account) in (0..).map(AccountId).zip(&self.all) {
            let Some(config) = &account.config else { continue };
            for import in &config.imports {
                let Some(&exporter) = ids.get(import.account.as_str()) else { continue };
                let exports = self.all[exporter.index()].config.as_ref();
                let mut exports = exports.iter().flat_map(|config| &config.exports);
                let Some(export) = exports.find(|export| export.permits(import, &config.name))
                else {
                    continue;
                };
                let Ok(transform) = import.mapping() else { continue };
                let filter = transform.source().to_vec();
                let (from, outlet) = match import.shared {
                    Shared::Stream => {
                        (exporter, Outlet::Stream { to: id, transform, trace: import.allow_trace })
                    }
                    Shared::Service => {
                        let outlet = Outlet::Service {
                            to: exporter,
                            transform,
                            response: export.response,
                            threshold_ns: export.response_threshold_ms.saturating_mul(1_000_000),
                            share: import.share,
                            trace: export.allow_trace,
                        };
                        (id, outlet)
                    }
                };
                tables[from.index()].entry(&filter).push(Rc::new(outlet));
            }
            if let Some(system) = self.system {
                if self.cluster.is_some() && system != id {
                    let outlet = Outlet::jetstream(system);
                    tables[id.index()].entry(JETSTREAM_REQUESTS).extend(outlet.map(Rc::new));
                }
                let table = &mut tables[id.index()];
                table
                    .entry(OWN_USER.as_bytes())
                    .push(Rc::new(Outlet::Server { of_cluster: false }));
                if system == id {
                    for filter in system_requests(server_id, self.claims_requests) {
                        // It counts what is here.
                        let of_cluster = filter != DEBUG_SUBSCRIBERS;
                        let outlet = Outlet::Server { of_cluster };
                        table.entry(filter.as_bytes()).push(Rc::new(outlet));
                    }
                } else {
                    for (asked, page) in ACCOUNT_REQUESTS {
                        let about = format!("$SYS.REQ.ACCOUNT.{}.{page}", account.name);
                        let outlet = Outlet::own_account(system, asked, &about);
                        table.entry(asked.as_bytes()).extend(outlet.map(Rc::new));
                    }
                }
            }
        }
        let asked: Vec<AccountId> = tables
            .iter()
            .flat_map(|table| table.iter().flat_map(|(_, outlets)| outlets))
            .filter_map(|outlet| outlet.asked())
            .collect();
        for ((account, table), id) in self.all.iter_mut().zip(tables).zip((0..).map(AccountId)) {
            account.answers = asked.contains(&id);
            account.interest.set_outlets(table);
        }
    }

    /// The account that is called that now.
    pub(super) fn find(&self, name: &[u8]) -> Option<AccountId> {
        self.by_name.get(std::str::from_utf8(name).ok()?).copied()
    }

    /// All accounts with their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (AccountId, &Account)> {
        (0..).map(AccountId).zip(&self.all)
    }

    /// The name of an account; empty if it is not configured.
    pub(super) fn name(&self, id: AccountId) -> Arc<str> {
        self.all.get(id.index()).map_or_else(|| "".into(), |account| Arc::clone(&account.name))
    }

    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = AccountId> + use<> {
        (0..u32::try_from(self.all.len()).unwrap_or(u32::MAX)).map(AccountId)
    }

    /// The cache of the account with this number, if there are so many.
    pub(super) fn cache_at(&mut self, account: usize) -> Option<&mut Cache> {
        self.all.get_mut(account).map(|account| account.interest.cache_mut())
    }

    /// The places of all caches together.
    pub(super) fn cache_places(&self) -> usize {
        self.all.iter().map(|account| account.interest.cache().places()).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.all.iter()
    }
}

/// What is asked in the system account; `claims` are those about accounts that come by tokens.
fn system_requests(server_id: &str, claims: &[&str]) -> Vec<String> {
    let mut filters: Vec<String> =
        claims.iter().map(|filter| filter.replace("<server>", server_id)).collect();
    let others = ["$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.NSUBS", DEBUG_SUBSCRIBERS];
    filters.extend(others.map(str::to_owned));
    filters.extend(SERVER_ORDERS.map(|order| format!("$SYS.REQ.SERVER.{server_id}.{order}")));
    for page in SERVER_PAGES {
        filters.push(format!("$SYS.REQ.SERVER.PING.{page}"));
        filters.push(format!("$SYS.REQ.SERVER.{server_id}.{page}"));
    }
    filters.extend(ACCOUNT_PAGES.iter().map(|page| format!("$SYS.REQ.ACCOUNT.*.{page}")));
    filters
}

/// Figures of an account on one shard.
#[derive(Debug, Clone)]
pub struct AccountFigures {
    /// Name of the account.
    pub name: Arc<str>,
    /// Open connections.
    pub conns: usize,
    /// Subscriptions of the open connections.
    pub subscriptions: usize,
    /// Messages and bytes of its connections, ended ones included.
    pub traffic: Traffic,
    /// Connections that were closed because they did not read fast enough.
    pub slow_consumers: u64,
    /// Subjects in the cache of receivers.
    pub cached_subjects: usize,
    /// Counters of subscriptions and lookups.
    pub interest: InterestStats,
}

impl From<&Account> for AccountFigures {
    fn from(account: &Account) -> Self {
        let interest = account.interest.stats();
        let subscriptions = interest.inserts.saturating_sub(interest.removes);
        Self {
            name: Arc::clone(&account.name),
            conns: account.conns,
            subscriptions: usize::try_from(subscriptions).unwrap_or(usize::MAX),
            traffic: account.traffic,
            slow_consumers: account.slow_consumers,
            cached_subjects: account.interest.cached_subjects(),
            interest,
        }
    }
}

impl AccountFigures {
    /// Adds those of the same account on another shard.
    pub fn add(&mut self, other: &Self) {
        self.conns += other.conns;
        self.subscriptions += other.subscriptions;
        self.traffic.add(&other.traffic);
        self.slow_consumers += other.slow_consumers;
        self.cached_subjects += other.cached_subjects;
        self.interest.add(&other.interest);
    }
}
