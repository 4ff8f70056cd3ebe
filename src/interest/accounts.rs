//! Accounts of a shard: separate namespaces of subjects, and limits of their users.
//!
//! An account is a number that all shards share. The configuration gives it out and never reuses
//! it. Each account has an `Interest` of its own, so a message meets only subscriptions of its
//! account; messages between accounts go through outlets (`outlets`). A record of another shard may
//! name an account before this shard has its configuration, because records may overtake the
//! control thread: the account is created then, empty.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use crate::interest::account_settings::{
    self as settings, AccountLimits, Seats, Shared, TraceRule,
};
use crate::interest::cache::{Cache, Tally};
use crate::interest::census::Census;
use crate::interest::ids::AccountId;
use crate::interest::mapping::Mappings;
use crate::interest::outlets::{Inside, Outlet, halves_subject};
use crate::interest::taps::{Home, Tap, callout_inbox};
use crate::interest::{Interest, InterestStats, Wanted};
use crate::measure::Traffic;
use crate::stream::AccountUsage;
use crate::subject::{self, Table};

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

/// One account on one shard.
#[derive(Debug)]
pub(crate) struct AccountState {
    /// Name of the account; empty until it is configured here: records of other shards may come
    /// before, and their interest is kept.
    pub(crate) name: Arc<str>,
    /// Configuration of the account; `None` while it is not configured.
    config: Option<Rc<settings::Account>>,
    pub(crate) interest: Interest,
    /// Mappings of the subjects on which the account's connections publish.
    pub(crate) mappings: Option<Mappings>,
    /// Whether other accounts ask it, so that answers are wanted from other servers, too.
    pub(crate) answers: bool,
    /// Open connections of the account on this shard, without leaf connections.
    pub(crate) conns: usize,
    /// Leaf connections of the account on this shard.
    pub(crate) leaves: usize,
    /// Open connections of the account on all shards.
    seats: Seats,
    /// Connections of the account that were closed as slow consumers.
    pub(crate) slow_consumers: u64,
    /// Messages and bytes of the account's connections.
    pub(crate) traffic: Traffic,
}

impl AccountState {
    /// Shows the filters that leaf nodes and hubs are told besides those of connections: what the
    /// server answers or taps, and the sources of mappings.
    pub(crate) fn of_server(&self, mut show: impl FnMut(&[u8])) {
        self.interest.inside_filters().for_each(&mut show);
        self.interest.tapped_filters().for_each(&mut show);
        self.mappings.iter().flat_map(Mappings::sources).for_each(show);
    }

    pub(crate) fn limits(&self) -> AccountLimits {
        self.config.as_ref().map(|config| config.limits).unwrap_or_default()
    }

    /// Returns the rule for messages that other systems trace.
    pub(crate) fn trace_rule(&self) -> Option<&TraceRule> {
        self.config.as_ref().and_then(|config| config.trace_rule.as_ref())
    }

    /// Returns the nanoseconds within which the account's service of this subject answers; `None`
    /// if it exports none.
    pub(crate) fn answers_within(&self, subject: &[u8]) -> Option<u64> {
        let exports = self.config.iter().flat_map(|config| &config.exports);
        let mut services = exports.filter(|export| export.shared == Shared::Service);
        let service = services.find(|one| subject::matches(one.subject.as_bytes(), subject))?;
        Some(service.response_threshold_ms.saturating_mul(1_000_000))
    }

    /// Use of the account's limits by its streams.
    pub(crate) fn stream_usage(&self) -> &Arc<AccountUsage> {
        self.seats.streams()
    }

    /// Counts one more connection; `false` if there are as many as there may be.
    pub(crate) fn enter(&mut self) -> bool {
        let is_in = self.seats.take(self.limits().connections_max);
        self.conns += usize::from(is_in);
        is_in
    }

    /// Counts a connection no more.
    pub(crate) fn leave(&mut self) {
        self.conns -= 1;
        self.seats.leave();
    }

    /// Counts one more leaf node; `false` if there are as many leaf nodes, or connections, as there
    /// may be.
    pub(crate) fn enter_leaf(&mut self) -> bool {
        let limits = self.limits();
        if !self.seats.take_beside_leaf(limits.connections_max) {
            return false;
        }
        let is_in = self.seats.take_leaf(limits.leafnodes_max);
        match is_in {
            true => self.leaves += 1,
            false => self.seats.leave(),
        }
        is_in
    }

    /// Counts a hub that this server has dialled, whatever the limits.
    pub(crate) fn count_leaf(&mut self) {
        self.leaves += 1;
        self.seats.take(None);
        self.seats.take_leaf(None);
    }

    /// Counts a leaf node no more.
    pub(crate) fn leave_leaf(&mut self) {
        self.leaves -= 1;
        self.seats.leave();
        self.seats.leave_leaf();
    }
}

/// All accounts by number.
#[derive(Debug)]
pub(crate) struct Accounts {
    all: Vec<AccountState>,
    /// The configured accounts by name.
    by_name: HashMap<Arc<str>, AccountId>,
    /// The system account, for the server's own messages and for requests to it.
    pub(crate) system: Option<AccountId>,
    /// Requests in the system account about accounts that come by tokens.
    pub(crate) claims_requests: &'static [&'static str],
    /// Name of this server's cluster. It may have servers with JetStream, which are asked in the
    /// system account.
    cluster: Option<String>,
    seed: u64,
    tally: Rc<Tally>,
    home: Rc<Home>,
}

impl Accounts {
    /// A set without accounts; `seed` keys the hashes of subjects.
    pub(crate) fn new(seed: u64, tally: Rc<Tally>, home: Home) -> Self {
        Self {
            all: Vec::new(),
            by_name: HashMap::new(),
            system: None,
            claims_requests: &[],
            cluster: None,
            seed,
            tally,
            home: Rc::new(home),
        }
    }

    /// Returns the account, which is made if it is new: ids come from the configuration, never from
    /// clients, so their number has a bound.
    #[inline]
    pub(crate) fn at(&mut self, id: AccountId) -> &mut AccountState {
        if id.index() >= self.all.len() {
            self.grow(id);
        }
        &mut self.all[id.index()]
    }

    #[cold]
    fn grow(&mut self, id: AccountId) {
        while self.all.len() <= id.index() {
            let seed = self.seed.wrapping_add((self.all.len() as u64).wrapping_mul(0x9e37_79b9));
            self.all.push(AccountState {
                name: "".into(),
                config: None,
                mappings: None,
                interest: Interest::new(seed, &self.tally),
                answers: false,
                conns: 0,
                leaves: 0,
                seats: Seats::default(),
                slow_consumers: 0,
                traffic: Traffic::default(),
            });
        }
    }

    /// Sets the configuration of an account.
    ///
    /// Its exports and imports are in force with the next [`Self::link`].
    pub(crate) fn configure(&mut self, id: AccountId, config: Rc<settings::Account>, seats: Seats) {
        let mappings = Mappings::new(&config.mappings, self.cluster.as_deref());
        let account = self.at(id);
        account.name = config.name.as_str().into();
        let name = Arc::clone(&account.name);
        account.mappings = mappings;
        seats.take_over(&account.seats, account.conns, account.leaves);
        account.seats = seats;
        account.config = Some(config);
        self.by_name.insert(name, id);
    }

    /// Sets the name of the server's cluster.
    pub(crate) fn name_cluster(&mut self, name: &str, server_id: &str) {
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

    /// Drops the configuration of all accounts.
    pub(crate) fn retire(&mut self) {
        self.by_name.clear();
        for account in &mut self.all {
            account.name = "".into();
            account.config = None;
            account.mappings = None;
        }
    }

    /// Puts imports in force: each of them is an outlet of the account in which its messages are
    /// published.
    pub(crate) fn link(&mut self, server_id: &str) {
        let mut tables: Vec<Table<Inside>> = Vec::new();
        tables.resize_with(self.all.len(), || Table::with_seed(self.seed));
        let ids: HashMap<&str, AccountId> =
            (0..).map(AccountId).zip(&self.all).map(|(id, account)| (&*account.name, id)).collect();
        // What other servers tell of their connections costs work, and only limits need it.
        let limits = self.all.iter().map(AccountState::limits);
        let is_counted = limits.into_iter().any(|limits| limits.counts_all_servers());
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
                        (id, Outlet::service(exporter, transform, export, import.share))
                    }
                };
                tables[from.index()].entry(&filter).outlets.push(Rc::new(outlet));
            }
            if config.has_callouts {
                let inbox = format!("{}*", callout_inbox(&self.home.node));
                tables[id.index()].entry(inbox.as_bytes()).taps.push(Tap::Callouts);
            }
            if let Some(system) = self.system {
                if self.cluster.is_some() && system != id {
                    let outlet = Outlet::jetstream(system);
                    let inside = tables[id.index()].entry(JETSTREAM_REQUESTS);
                    inside.outlets.extend(outlet.map(Rc::new));
                }
                let table = &mut tables[id.index()];
                let own_user = table.entry(OWN_USER.as_bytes());
                own_user.taps.push(Tap::Server { of_cluster: false });
                if system == id {
                    let halves = halves_subject(&self.home.node);
                    let requests = system_requests(server_id, self.claims_requests);
                    let counted = is_counted.then(|| counting_filters(server_id));
                    let counted = counted.into_iter().flatten();
                    for filter in requests.into_iter().chain([halves]).chain(counted) {
                        // The answer counts subscribers of this server only.
                        let of_cluster = filter != DEBUG_SUBSCRIBERS;
                        table.entry(filter.as_bytes()).taps.push(Tap::Server { of_cluster });
                    }
                } else {
                    for (asked, page) in ACCOUNT_REQUESTS {
                        let about = format!("$SYS.REQ.ACCOUNT.{}.{page}", account.name);
                        let outlet = Outlet::own_account(system, asked, &about);
                        table.entry(asked.as_bytes()).outlets.extend(outlet.map(Rc::new));
                    }
                }
            }
        }
        let asked: Vec<AccountId> = tables
            .iter()
            .flat_map(|table| table.iter().flat_map(|(_, inside)| &inside.outlets))
            .filter_map(|outlet| outlet.asked())
            .collect();
        for ((account, table), id) in self.all.iter_mut().zip(tables).zip((0..).map(AccountId)) {
            account.answers = asked.contains(&id);
            account.interest.set_inside(table, Rc::clone(&self.home));
        }
    }

    /// Returns the census of a filter in an account.
    pub(crate) fn census(&self, id: AccountId, wanted: Wanted<'_>) -> Census {
        let account = self.all.get(id.index());
        account.map(|account| account.interest.census(wanted)).unwrap_or_default()
    }

    /// Returns the configured account of this name.
    pub(crate) fn find(&self, name: &[u8]) -> Option<AccountId> {
        self.by_name.get(std::str::from_utf8(name).ok()?).copied()
    }

    /// Whether anybody in an account takes messages with a subject.
    pub(crate) fn has_receivers(&self, account: AccountId, subject: &[u8]) -> bool {
        let account = self.all.get(account.index());
        account.is_some_and(|account| account.interest.has_receivers(subject))
    }

    /// Whether somebody subscribes to this very subject in an account, see [`Interest::is_bound`].
    pub(crate) fn is_bound(
        &self,
        account: AccountId,
        subject: &[u8],
        queue: Option<&[u8]>,
    ) -> bool {
        let account = self.all.get(account.index());
        account.is_some_and(|account| account.interest.is_bound(subject, queue))
    }

    /// Whether anybody takes messages with a subject now: in the account, or in one that imports a
    /// stream of it.
    pub(crate) fn reaches(&self, account: AccountId, subject: &[u8]) -> bool {
        let Some(own) = self.all.get(account.index()) else { return false };
        own.interest.has_own_receivers(subject)
            || own.interest.exits(subject).iter().any(|exit| match &*exit.outlet {
                Outlet::Stream { to, .. } => {
                    let importing = self.all.get(to.index());
                    importing.is_some_and(|it| it.interest.has_own_receivers(&exit.subject))
                }
                Outlet::Service { .. } => true,
            })
    }

    /// Returns all accounts with their numbers.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (AccountId, &AccountState)> {
        (0..).map(AccountId).zip(&self.all)
    }

    /// Returns the name of an account; empty if it is not configured.
    pub(crate) fn name(&self, id: AccountId) -> Arc<str> {
        self.all.get(id.index()).map_or_else(|| "".into(), |account| Arc::clone(&account.name))
    }

    pub(crate) fn ids(&self) -> impl ExactSizeIterator<Item = AccountId> + use<> {
        (0..u32::try_from(self.all.len()).unwrap_or(u32::MAX)).map(AccountId)
    }

    /// Returns the cache of the account with this number, if there are so many.
    pub(crate) fn cache_at(&mut self, account: usize) -> Option<&mut Cache> {
        self.all.get_mut(account).map(|account| account.interest.cache_mut())
    }

    /// Returns the number of places of all caches together.
    pub(crate) fn cache_places(&self) -> usize {
        self.all.iter().map(|account| account.interest.cache().places()).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AccountState> {
        self.all.iter()
    }
}

/// Returns the subjects of requests in the system account; `claims` are those about accounts that
/// come by tokens.
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

/// Returns the subjects on which other servers tell of themselves and of the connections of
/// accounts: the last one is that of answers.
fn counting_filters(server_id: &str) -> [String; 5] {
    [
        "$SYS.SERVER.ACCOUNT.*.CONNS".to_owned(),
        "$SYS.SERVER.*.STATSZ".to_owned(),
        "$SYS.SERVER.*.LAMEDUCK".to_owned(),
        "$SYS.SERVER.*.SHUTDOWN".to_owned(),
        conns_inbox(server_id),
    ]
}

/// Returns the subject on which other servers answer how many connections accounts have there.
pub(crate) fn conns_inbox(server_id: &str) -> String {
    format!("$SYS._INBOX_.{server_id}")
}

/// Figures of an account on one shard.
#[derive(Debug, Clone)]
pub struct AccountFigures {
    /// Name of the account.
    pub name: Arc<str>,
    /// Open connections, without leaf connections.
    pub conns: usize,
    /// Leaf connections.
    pub leaves: usize,
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

impl From<&AccountState> for AccountFigures {
    fn from(account: &AccountState) -> Self {
        let interest = account.interest.stats();
        let subscriptions = interest.inserts.saturating_sub(interest.removes);
        Self {
            name: Arc::clone(&account.name),
            conns: account.conns,
            leaves: account.leaves,
            subscriptions: usize::try_from(subscriptions).unwrap_or(usize::MAX),
            traffic: account.traffic,
            slow_consumers: account.slow_consumers,
            cached_subjects: account.interest.cached_subjects(),
            interest,
        }
    }
}

impl AccountFigures {
    /// Sums the figures of each account over the shards, in the order of the accounts' names.
    pub fn summed(figures: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut all: BTreeMap<Arc<str>, Self> = BTreeMap::new();
        for account in figures {
            match all.entry(Arc::clone(&account.name)) {
                Entry::Vacant(slot) => drop(slot.insert(account)),
                Entry::Occupied(mut slot) => slot.get_mut().add(&account),
            }
        }
        all.into_values().collect()
    }

    /// Adds the figures of the same account on another shard.
    fn add(&mut self, other: &Self) {
        self.conns += other.conns;
        self.leaves += other.leaves;
        self.subscriptions += other.subscriptions;
        self.traffic.add(&other.traffic);
        self.slow_consumers += other.slow_consumers;
        self.cached_subjects += other.cached_subjects;
        self.interest.add(&other.interest);
    }
}
