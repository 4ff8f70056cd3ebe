//! Connections of accounts on the other servers of the system, as their events tell.
//!
//! A server tells the numbers of an account when they change, and now and then. They are kept until
//! it tells others, ends, or is not heard of for a while.

use std::collections::HashMap;

/// Seconds after which a server that is not heard of is forgotten.
const SILENT_S_MAX: u64 = 150;

/// Servers that are kept; more are not counted.
const SERVERS_MAX: usize = 4096;

/// Numbers of accounts that are kept, of all servers together; more are not counted.
const CREWS_MAX: usize = 256 * 1024;

/// Connections that a server may tell of, as many as nats-server can count.
pub(super) const CREW_MAX: usize = i32::MAX as usize;

/// Characters of a server's id; a longer one is none.
const ID_LEN_MAX: usize = 128;

/// Connections of an account on a server, at most `CREW_MAX` of either kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crew {
    /// Connections of clients.
    pub(super) conns: usize,
    /// Connections of leaf nodes.
    pub(super) leaves: usize,
}

#[derive(Debug)]
struct OtherServer {
    heard_s: u64,
    /// By the name of the account; none that is empty.
    crews: HashMap<String, Crew>,
}

/// The other servers with the connections that they have told of.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    servers: HashMap<String, OtherServer>,
    /// The sums by account; none that is empty.
    totals: HashMap<String, Crew>,
    /// Numbers that are kept, of all servers together.
    crews: usize,
}

impl Elsewhere {
    /// Notes that a server is there. Returns whether it is new.
    pub(super) fn hear_of(&mut self, server: &str, now_s: u64) -> bool {
        if let Some(known) = self.servers.get_mut(server) {
            known.heard_s = now_s;
            return false;
        }
        let is_kept = self.servers.len() < SERVERS_MAX && (1..=ID_LEN_MAX).contains(&server.len());
        if is_kept {
            let crews = HashMap::new();
            self.servers.insert(server.to_owned(), OtherServer { heard_s: now_s, crews });
        }
        is_kept
    }

    /// Sets the numbers that a known server has told of an account. Returns whether the account's
    /// sum has changed. The caller takes care that the account is one of ours.
    pub(super) fn set(&mut self, server: &str, account: &str, crew: Crew) -> bool {
        let Some(known) = self.servers.get_mut(server) else { return false };
        let old = known.crews.remove(account);
        self.crews -= usize::from(old.is_some());
        let is_kept = crew != Crew::default() && self.crews < CREWS_MAX;
        let crew = if is_kept { crew } else { Crew::default() };
        if is_kept {
            self.crews += 1;
            known.crews.insert(account.to_owned(), crew);
        }
        let old = old.unwrap_or_default();
        self.count(account, old, crew);
        old != crew
    }

    /// Forgets a server. Returns the accounts whose sums have changed.
    pub(super) fn forget(&mut self, server: &str) -> Vec<String> {
        let gone = self.servers.remove(server).map(|known| known.crews).unwrap_or_default();
        self.crews -= gone.len();
        for (account, old) in &gone {
            self.count(account, *old, Crew::default());
        }
        gone.into_keys().collect()
    }

    /// Forgets the servers that were not heard of for too long. Returns the accounts whose sums
    /// have changed.
    pub(super) fn forget_silent(&mut self, now_s: u64) -> Vec<String> {
        let is_silent = |known: &OtherServer| known.heard_s + SILENT_S_MAX < now_s;
        let silent = self.servers.iter().filter(|(_, known)| is_silent(known));
        let silent: Vec<String> = silent.map(|(server, _)| server.clone()).collect();
        silent.iter().flat_map(|server| self.forget(server)).collect()
    }

    /// Returns the connections of an account on all other servers.
    pub(super) fn total(&self, account: &str) -> Crew {
        self.totals.get(account).copied().unwrap_or_default()
    }

    /// Returns the accounts of which there are connections elsewhere.
    pub(super) fn accounts(&self) -> impl Iterator<Item = &str> {
        self.totals.keys().map(String::as_str)
    }

    /// Counts `new` in place of `old` for an account.
    fn count(&mut self, account: &str, old: Crew, new: Crew) {
        let mut total = self.total(account);
        total.conns = total.conns - old.conns + new.conns;
        total.leaves = total.leaves - old.leaves + new.leaves;
        match total == Crew::default() {
            true => drop(self.totals.remove(account)),
            false => drop(self.totals.insert(account.to_owned(), total)),
        }
    }
}

/// Returns how many of `here` connections are too many, beside those elsewhere.
pub(super) fn excess(here: usize, elsewhere: usize, max: Option<usize>) -> usize {
    let max = max.unwrap_or(usize::MAX);
    here.saturating_add(elsewhere).saturating_sub(max).min(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crew(conns: usize, leaves: usize) -> Crew {
        Crew { conns, leaves }
    }

    #[test]
    fn an_account_has_the_connections_that_each_server_told_last() {
        let mut others = Elsewhere::default();
        assert!(others.hear_of("one", 0) && others.hear_of("two", 0) && !others.hear_of("one", 1));
        assert!(others.set("one", "A", crew(3, 1)) && others.set("two", "A", crew(4, 0)));
        assert!(!others.set("one", "A", crew(3, 1)), "nothing has changed");
        assert_eq!(others.total("A"), crew(7, 1));
        assert!(others.set("one", "A", crew(1, 0)));
        assert_eq!((others.total("A"), others.total("B")), (crew(5, 0), crew(0, 0)));
        assert!(!others.set("three", "A", crew(9, 9)), "it is not known");
        assert!(others.set("two", "A", crew(0, 0)) && others.set("one", "A", crew(0, 0)));
        assert!(others.totals.is_empty() && others.servers["one"].crews.is_empty());
        assert!(others.set("one", "A", crew(CREW_MAX, 1)));
        assert!(others.set("two", "A", crew(CREW_MAX, 1)));
        assert_eq!(others.total("A"), crew(2 * CREW_MAX, 2));
    }

    #[test]
    fn a_server_that_has_ended_or_is_silent_counts_no_more() {
        let mut others = Elsewhere::default();
        for server in ["one", "two"] {
            others.hear_of(server, 0);
            others.set(server, "A", crew(2, 0));
        }
        assert_eq!(others.forget("one"), ["A"]);
        assert!(others.forget("one").is_empty());
        assert!(others.forget_silent(SILENT_S_MAX).is_empty());
        others.hear_of("two", 5);
        assert!(others.forget_silent(SILENT_S_MAX + 5).is_empty());
        assert_eq!(others.forget_silent(SILENT_S_MAX + 6), ["A"]);
        assert_eq!((others.accounts().count(), others.crews), (0, 0));
        assert!(others.hear_of("two", 7), "it is new again");
    }

    #[test]
    fn servers_that_are_told_of_without_end_have_a_bound() {
        let mut others = Elsewhere::default();
        for at in 0..SERVERS_MAX + 10 {
            let server = format!("{at}");
            assert_eq!(others.hear_of(&server, 0), at < SERVERS_MAX);
            others.set(&server, "A", crew(1, 0));
        }
        assert_eq!(others.total("A"), crew(SERVERS_MAX, 0));
        let mut others = Elsewhere::default();
        others.hear_of("one", 0);
        for at in 0..CREWS_MAX + 10 {
            assert_eq!(others.set("one", &format!("{at}"), crew(1, 0)), at < CREWS_MAX);
        }
        assert!(others.set("one", "7", crew(2, 0)), "it has its place");
        assert!(others.set("one", "8", crew(0, 0)) && others.set("one", "new", crew(1, 0)));
        assert_eq!((others.totals.len(), others.crews), (CREWS_MAX, CREWS_MAX));
        assert!(!others.hear_of("", 0) && !others.hear_of(&"x".repeat(ID_LEN_MAX + 1), 0));
    }

    #[test]
    fn no_more_are_too_many_than_there_are_here() {
        assert_eq!(
            (excess(3, 2, Some(5)), excess(3, 3, Some(5)), excess(3, 9, Some(5))),
            (0, 1, 3)
        );
        assert_eq!((excess(3, usize::MAX, None), excess(0, usize::MAX, Some(1))), (0, 0));
    }
}
