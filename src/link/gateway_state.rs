//! State that only gateways have: the peer's cluster, and for each account what may be sent to it.

use std::collections::{BTreeMap, BTreeSet};

use crate::interest::ids::AccountId;
use crate::proto::gateway::NameHash;
use crate::subject;

/// Accounts of which a peer has said something, at most; it is not heard on more.
const ACCOUNTS_MAX: usize = 64 * 1024;

/// Subjects of one account that a peer refuses, at most; others are sent to it without interest.
const REFUSED_MAX: usize = 4096;

/// Bytes of those subjects, at most.
const REFUSED_BYTES_MAX: usize = 1024 * 1024;

/// State of a connection to another cluster.
#[derive(Debug, Default)]
pub(crate) struct GatewayState {
    /// Name of the peer's cluster; known from the start where this server has dialled.
    pub(crate) cluster: Box<str>,
    /// The hash of that name, as it stands in mapped subjects.
    pub(crate) hash: NameHash,
    /// Whether the cluster is a configured one.
    pub(crate) is_configured: bool,
    /// Whether the peer tells all its interest at once, so that nothing is sent without.
    pub(crate) tells_all: bool,
    /// Modes of accounts, if this server has dialled.
    modes: BTreeMap<Box<[u8]>, AccountMode>,
    /// Accounts of which the peer, if it has dialled, is told all interest.
    told: BTreeSet<u32>,
    /// Accounts that this server does not have, as the peer was told.
    unknown: BTreeSet<Box<[u8]>>,
}

/// The messages of one account that a peer is sent.
#[derive(Debug)]
pub(crate) enum AccountMode {
    /// Nothing but for queue groups.
    Nothing,
    /// Everything but these subjects.
    Optimistic(Refused),
    /// Everything but these subjects, until all interest is told.
    Transitioning(Refused),
    /// Messages that the peer's cluster is interested in.
    InterestOnly,
}

/// Subjects that a peer does not want.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    subjects: BTreeSet<Box<[u8]>>,
    bytes: usize,
}

impl Refused {
    fn insert(&mut self, subject: &[u8]) {
        let has_room =
            self.subjects.len() < REFUSED_MAX && self.bytes + subject.len() <= REFUSED_BYTES_MAX;
        if has_room && self.subjects.insert(subject.into()) {
            self.bytes += subject.len();
        }
    }

    fn remove(&mut self, filter: &[u8]) {
        if subject::is_literal(filter) {
            self.bytes -= if self.subjects.remove(filter) { filter.len() } else { 0 };
            return;
        }
        self.subjects.retain(|subject| !subject::matches(filter, subject));
        self.bytes = self.subjects.iter().map(|subject| subject.len()).sum();
    }
}

impl AccountMode {
    /// Returns the name of the mode in monitoring.
    fn name(&self) -> &'static str {
        match self {
            Self::Nothing | Self::Optimistic(_) => "Optimistic",
            Self::Transitioning(_) => "Transitioning",
            Self::InterestOnly => "Interest-Only",
        }
    }
}

/// The mode of an account as monitoring shows it.
#[derive(Debug, Clone)]
pub struct AccountModeSnapshot {
    /// The account's name.
    pub account: String,
    /// The name of the mode.
    pub mode: &'static str,
    /// Subjects that are refused.
    pub refused: usize,
    /// Plain filters of the interest.
    pub filters: usize,
    /// Filters of queue groups.
    pub queues: usize,
}

impl GatewayState {
    /// The state of a connection to a cluster of that name; empty if it is not known yet.
    pub(crate) fn new(cluster: &str, is_configured: bool) -> Self {
        let mut state = Self { is_configured, ..Self::default() };
        state.name(cluster);
        state
    }

    /// Sets the name of the peer's cluster.
    pub(crate) fn name(&mut self, cluster: &str) {
        (self.cluster, self.hash) = (cluster.into(), NameHash::of(cluster));
    }

    /// Whether messages of an account are sent without interest in them.
    pub(crate) fn is_optimistic_in(&self, account: &[u8]) -> bool {
        match self.modes.get(account) {
            _ if self.tells_all => false,
            None | Some(AccountMode::Optimistic(_) | AccountMode::Transitioning(_)) => true,
            Some(AccountMode::Nothing | AccountMode::InterestOnly) => false,
        }
    }

    /// Whether the peer does not want a subject, where messages are sent without interest.
    pub(crate) fn refuses(&self, account: &[u8], subject: &[u8]) -> bool {
        match self.modes.get(account) {
            Some(AccountMode::Optimistic(refused) | AccountMode::Transitioning(refused)) => {
                refused.subjects.contains(subject)
            }
            _ => false,
        }
    }

    /// Whether plain interest of the peer in an account counts; otherwise it only ends a refusal.
    pub(crate) fn takes_plain(&self, account: &[u8]) -> bool {
        let mode = self.modes.get(account);
        matches!(mode, Some(AccountMode::Transitioning(_) | AccountMode::InterestOnly))
    }

    /// Sets the mode of an account, unless the peer has spoken of too many.
    fn set(&mut self, account: &[u8], mode: AccountMode) {
        if self.modes.len() < ACCOUNTS_MAX || self.modes.contains_key(account) {
            self.modes.insert(account.into(), mode);
        }
    }

    /// Takes note that the peer wants nothing of an account.
    pub(crate) fn refuse_account(&mut self, account: &[u8]) {
        self.set(account, AccountMode::Nothing);
    }

    /// Takes note that the peer wants something of an account again.
    pub(crate) fn take_account(&mut self, account: &[u8]) {
        if matches!(self.modes.get(account), Some(AccountMode::Nothing)) {
            self.modes.remove(account);
        }
    }

    /// Takes note that the peer does not want a subject.
    pub(crate) fn refuse(&mut self, account: &[u8], subject: &[u8]) {
        if let Some(AccountMode::Optimistic(refused) | AccountMode::Transitioning(refused)) =
            self.modes.get_mut(account)
        {
            return refused.insert(subject);
        }
        let mut refused = Refused::default();
        refused.insert(subject);
        self.set(account, AccountMode::Optimistic(refused));
    }

    /// Takes note that the peer wants what matches a filter again.
    pub(crate) fn allow(&mut self, account: &[u8], filter: &[u8]) {
        if let Some(AccountMode::Optimistic(refused) | AccountMode::Transitioning(refused)) =
            self.modes.get_mut(account)
        {
            refused.remove(filter);
        }
    }

    /// Takes note that all interest in an account will be told.
    pub(crate) fn begin_all(&mut self, account: &[u8]) {
        let refused = match self.modes.remove(account) {
            Some(AccountMode::Optimistic(refused) | AccountMode::Transitioning(refused)) => refused,
            Some(AccountMode::InterestOnly) => return self.set(account, AccountMode::InterestOnly),
            None | Some(AccountMode::Nothing) => Refused::default(),
        };
        self.set(account, AccountMode::Transitioning(refused));
    }

    /// Takes note that all interest in an account is told.
    pub(crate) fn end_all(&mut self, account: &[u8]) {
        if let Some(mode) = self.modes.get_mut(account) {
            *mode = AccountMode::InterestOnly;
        }
    }

    /// Takes note that the peer is told that an account is unknown here; `false` if it was before,
    /// or there are too many of these.
    pub(crate) fn tell_unknown(&mut self, account: &[u8]) -> bool {
        self.unknown.len() < ACCOUNTS_MAX && self.unknown.insert(account.into())
    }

    /// Takes note that the peer is about to be told all interest in an account.
    pub(crate) fn begin_telling(&mut self, account: AccountId, name: &[u8]) {
        self.told.insert(account.0);
        self.unknown.remove(name);
    }

    /// Takes note that an account is gone.
    pub(crate) fn forget(&mut self, account: AccountId) {
        self.told.remove(&account.0);
    }

    /// Whether the peer is told all interest in an account.
    pub(crate) fn is_told(&self, account: AccountId) -> bool {
        self.told.contains(&account.0)
    }

    /// Returns the modes of all accounts, without their interest.
    pub(crate) fn modes(&self) -> impl Iterator<Item = (&[u8], AccountModeSnapshot)> {
        self.modes.iter().map(|(account, mode)| {
            let refused = match mode {
                AccountMode::Optimistic(refused) | AccountMode::Transitioning(refused) => {
                    refused.subjects.len()
                }
                AccountMode::Nothing | AccountMode::InterestOnly => 0,
            };
            let name = String::from_utf8_lossy(account).into_owned();
            let mode = mode.name();
            let snapshot =
                AccountModeSnapshot { account: name, mode, refused, filters: 0, queues: 0 };
            (&**account, snapshot)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_optimistic_until_all_interest_is_told() {
        let mut peer = GatewayState::new("B", true);
        assert!(peer.is_optimistic_in(b"A") && !peer.takes_plain(b"A"));
        peer.refuse(b"A", b"x.1");
        peer.refuse(b"A", b"x.2");
        assert!(peer.refuses(b"A", b"x.1") && !peer.refuses(b"A", b"y"));
        peer.begin_all(b"A");
        assert!(peer.is_optimistic_in(b"A") && peer.takes_plain(b"A"), "interest counts already");
        assert!(peer.refuses(b"A", b"x.2"), "what was refused is not sent meanwhile");
        peer.end_all(b"A");
        assert!(!peer.is_optimistic_in(b"A") && !peer.refuses(b"A", b"x.2"));
    }

    #[test]
    fn interest_in_a_wildcard_ends_all_refusals_that_it_covers() {
        let mut peer = GatewayState::new("B", true);
        for subject in [&b"x.1"[..], b"x.2", b"y"] {
            peer.refuse(b"A", subject);
        }
        peer.allow(b"A", b"x.*");
        assert!(!peer.refuses(b"A", b"x.1") && peer.refuses(b"A", b"y"));
        peer.allow(b"A", b"y");
        assert!(!peer.refuses(b"A", b"y"));
    }

    #[test]
    fn a_peer_cannot_have_more_remembered_than_there_is_room_for() {
        let mut peer = GatewayState::new("B", true);
        for number in 0..3 * REFUSED_MAX {
            peer.refuse(b"A", number.to_string().as_bytes());
        }
        let refused = peer.modes().map(|(_, mode)| mode.refused).sum::<usize>();
        assert_eq!(refused, REFUSED_MAX);
        (0..2 * ACCOUNTS_MAX).for_each(|at| peer.begin_all(at.to_string().as_bytes()));
        assert_eq!(peer.modes().count(), ACCOUNTS_MAX);
    }

    #[test]
    fn an_account_that_is_refused_gets_nothing_until_it_is_taken_again() {
        let mut peer = GatewayState::new("B", true);
        peer.refuse_account(b"A");
        assert!(!peer.is_optimistic_in(b"A"));
        peer.take_account(b"A");
        assert!(peer.is_optimistic_in(b"A"));
    }
}
