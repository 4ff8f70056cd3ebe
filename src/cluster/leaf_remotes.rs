//! Remotes of leaf nodes that this server dials: which server of each, and when.
//!
//! Each remote is dialled for ever, one of its servers after the other. A server that ends the
//! connection for a reason that will not go away soon, such as a loop, is left alone for longer.
//! What a server tells of others of its cluster is dialled first.
//!
//! Pure: no sockets and no clock. The caller carries out the steps, and gives what came of them.

use std::collections::{BTreeMap, VecDeque};

use crate::cluster::LeafUrl;

/// Nanoseconds before a remote is dialled again with which the connection would be a loop, or which
/// has refused this server for what it is.
const MISPLACED_NS: u64 = 30_000_000_000;

/// Nanoseconds before a remote is dialled again for which this server is too old.
const TOO_OLD_NS: u64 = 5_000_000_000;

/// Servers of one remote that are known by its word, at most.
const DISCOVERED_MAX: usize = 256;

/// A remote as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct LeafTarget {
    /// The number of the remote in the configuration.
    pub number: usize,
    /// The account that is bound, and the path of the credentials: what tells remotes apart besides
    /// their addresses.
    pub identity: String,
    /// Addresses of the remote's servers.
    pub urls: Vec<LeafUrl>,
    /// Whether the servers are dialled in the order in which they are written.
    pub no_randomize: bool,
    /// Whether servers that the remote tells of are not dialled.
    pub ignores_discovered: bool,
    /// Whether the remote is not dialled.
    pub is_disabled: bool,
    /// A number that differs whenever a property of the connection differs.
    pub revision: u64,
}

impl LeafTarget {
    fn is_same(&self, other: &Self) -> bool {
        (&self.identity, &self.urls) == (&other.identity, &other.urls)
    }
}

/// Settings of all remotes.
#[derive(Debug, Clone, Default)]
pub struct LeafPlan {
    /// Nanoseconds before a lost remote is dialled again.
    pub reconnect_ns: u64,
    /// The remotes.
    pub targets: Vec<LeafTarget>,
}

/// The pause before a remote is dialled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafPause {
    /// The usual one.
    Usual,
    /// The pause after a loop, or a refusal for what this server is.
    Misplaced,
    /// The pause after a refusal for the version of this server.
    TooOld,
}

/// A task for the caller.
#[derive(Debug, Clone, PartialEq)]
pub enum LeafStep {
    /// A server to dial; the result goes to [`LeafRemotes::on_dialed`].
    Dial {
        /// The number of the attempt's target.
        target: u64,
        /// The number of the remote in the configuration.
        number: usize,
        /// The address to dial.
        url: LeafUrl,
        /// Earlier attempts without success.
        attempt: u32,
    },
    /// A connection to close: its remote is configured no more, or otherwise.
    Close(u64),
}

#[derive(Debug, PartialEq, Eq)]
enum RemoteState {
    Waiting { until: u64 },
    Dialing,
    Linked(u64),
    Disabled,
}

#[derive(Debug)]
struct RemoteEntry {
    target: LeafTarget,
    /// The configured servers, in the order in which they are dialled.
    configured: Vec<LeafUrl>,
    /// Servers that the remote has told of.
    discovered: Vec<LeafUrl>,
    /// The place of the next server to dial, discovered ones first.
    next: usize,
    state: RemoteState,
    attempts: u32,
}

impl RemoteEntry {
    fn next_url(&mut self) -> LeafUrl {
        let all = self.discovered.len() + self.configured.len();
        let at = self.next % all.max(1);
        self.next = at + 1;
        let url = self.discovered.iter().chain(&self.configured).nth(at);
        url.cloned().unwrap_or_else(|| self.target.urls[0].clone())
    }
}

/// The remotes that this server dials.
#[derive(Debug)]
pub struct LeafRemotes {
    plan: LeafPlan,
    remotes: BTreeMap<u64, RemoteEntry>,
    last: u64,
    steps: VecDeque<LeafStep>,
    now: u64,
    rng: fastrand::Rng,
}

impl LeafRemotes {
    /// Remotes without connections, all to be dialled at once.
    pub fn new(plan: LeafPlan, seed: u64) -> Self {
        let mut remotes = Self {
            plan: LeafPlan::default(),
            remotes: BTreeMap::new(),
            last: 0,
            steps: VecDeque::new(),
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
        };
        remotes.reload(plan);
        remotes
    }

    /// Sets the time of all later events. Remotes whose time has come are dialled.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
        for (number, remote) in &mut self.remotes {
            if matches!(remote.state, RemoteState::Waiting { until } if until <= self.now) {
                remote.state = RemoteState::Dialing;
                self.steps.push_back(LeafStep::Dial {
                    target: *number,
                    number: remote.target.number,
                    url: remote.next_url(),
                    attempt: remote.attempts,
                });
            }
        }
    }

    /// Returns the time at which [`Self::set_now`] is needed next.
    pub fn next_deadline(&self) -> Option<u64> {
        let due = |remote: &RemoteEntry| match remote.state {
            RemoteState::Waiting { until } => Some(until),
            _ => None,
        };
        self.remotes.values().filter_map(due).min()
    }

    /// Returns the next step to take; `None` when there are no more.
    pub fn next_step(&mut self) -> Option<LeafStep> {
        self.steps.pop_front()
    }

    /// Returns the plan in force.
    pub fn plan(&self) -> &LeafPlan {
        &self.plan
    }

    /// Replaces the plan. Remotes that are configured no more, or otherwise, lose their connection;
    /// new ones are dialled.
    pub fn reload(&mut self, plan: LeafPlan) {
        let new: Vec<LeafTarget> = plan.targets.clone();
        self.plan = plan;
        let mut gone = Vec::new();
        for (number, remote) in &mut self.remotes {
            let Some(target) = new.iter().find(|target| target.is_same(&remote.target)) else {
                gone.push(*number);
                continue;
            };
            let is_other = remote.target.revision != target.revision;
            match remote.state {
                RemoteState::Linked(lid) if is_other || target.is_disabled => {
                    self.steps.push_back(LeafStep::Close(lid));
                    remote.state = RemoteState::Waiting { until: self.now };
                }
                RemoteState::Waiting { .. } if is_other => {
                    remote.state = RemoteState::Waiting { until: self.now };
                }
                _ => {}
            }
            match (target.is_disabled, &remote.state) {
                (true, _) => remote.state = RemoteState::Disabled,
                (false, RemoteState::Disabled) => {
                    remote.state = RemoteState::Waiting { until: self.now }
                }
                _ => {}
            }
            remote.target = target.clone();
        }
        for number in gone {
            if let Some(RemoteEntry { state: RemoteState::Linked(lid), .. }) =
                self.remotes.remove(&number)
            {
                self.steps.push_back(LeafStep::Close(lid));
            }
        }
        for target in new {
            if !self.remotes.values().any(|remote| remote.target.is_same(&target)) {
                self.add(target);
            }
        }
    }

    fn add(&mut self, target: LeafTarget) {
        let mut configured = target.urls.clone();
        if !target.no_randomize {
            self.rng.shuffle(&mut configured);
        }
        let state = match target.is_disabled {
            true => RemoteState::Disabled,
            false => RemoteState::Waiting { until: self.now },
        };
        self.last += 1;
        let discovered = Vec::new();
        let remote = RemoteEntry { target, configured, discovered, next: 0, state, attempts: 0 };
        self.remotes.insert(self.last, remote);
    }

    /// Takes the result of dialling: the number of the connection, or `None` for a failure.
    pub fn on_dialed(&mut self, target: u64, lid: Option<u64>) {
        let is_wanted = |remote: &&mut RemoteEntry| matches!(remote.state, RemoteState::Dialing);
        let Some(remote) = self.remotes.get_mut(&target).filter(is_wanted) else {
            // It was dialled, and is not wanted any more.
            self.steps.extend(lid.map(LeafStep::Close));
            return;
        };
        match lid {
            Some(lid) => remote.state = RemoteState::Linked(lid),
            None => {
                remote.attempts = remote.attempts.saturating_add(1);
                let pause = self.plan.reconnect_ns;
                let jitter = self.rng.u64(..=pause);
                let until = self.now.saturating_add(pause).saturating_add(jitter);
                remote.state = RemoteState::Waiting { until };
            }
        }
    }

    fn linked(&mut self, lid: u64) -> Option<&mut RemoteEntry> {
        self.remotes.values_mut().find(|remote| remote.state == RemoteState::Linked(lid))
    }

    /// Takes note that a connection is bound to its account.
    pub fn on_up(&mut self, lid: u64) {
        if let Some(remote) = self.linked(lid) {
            remote.attempts = 0;
        }
    }

    /// Takes the end of a connection.
    pub fn on_ended(&mut self, lid: u64, pause: LeafPause) {
        let (now, usual) = (self.now, self.plan.reconnect_ns);
        let Some(remote) = self.linked(lid) else { return };
        let pause = match pause {
            LeafPause::Usual => usual,
            LeafPause::Misplaced => MISPLACED_NS.max(usual),
            LeafPause::TooOld => TOO_OLD_NS.max(usual),
        };
        remote.state = RemoteState::Waiting { until: now.saturating_add(pause) };
    }

    /// Takes `host:port` of the servers that a remote tells of, in place of those told before.
    pub fn on_urls(&mut self, lid: u64, urls: &[String]) {
        let Some(remote) = self.linked(lid) else { return };
        if remote.target.ignores_discovered {
            return;
        }
        let Some(first) = remote.target.urls.first().cloned() else { return };
        let urls = urls.iter().filter_map(|url| first.sibling(url));
        let is_new =
            |url: &LeafUrl| !remote.configured.iter().any(|other| other.is_same_server(url));
        remote.discovered = urls.filter(is_new).take(DISCOVERED_MAX).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn target(number: usize, hosts: &[&str]) -> LeafTarget {
        let url = |host: &&str| LeafUrl::parse(&format!("nats-leaf://{host}:1")).unwrap();
        LeafTarget {
            number,
            identity: "A".to_owned(),
            urls: hosts.iter().map(url).collect(),
            no_randomize: true,
            ignores_discovered: false,
            is_disabled: false,
            revision: 0,
        }
    }

    fn plan(targets: Vec<LeafTarget>) -> LeafPlan {
        LeafPlan { reconnect_ns: SECOND, targets }
    }

    fn steps(remotes: &mut LeafRemotes) -> Vec<LeafStep> {
        std::iter::from_fn(|| remotes.next_step()).collect()
    }

    /// Returns the host that is dialled at `now`, and the target's number.
    fn dialed(remotes: &mut LeafRemotes, now: u64) -> Option<(u64, String)> {
        remotes.set_now(now);
        match &steps(remotes)[..] {
            [] => None,
            [LeafStep::Dial { target, url, .. }] => Some((*target, url.host.clone())),
            steps => panic!("{steps:?}"),
        }
    }

    #[test]
    fn servers_are_dialled_one_after_the_other_for_ever_with_a_pause_and_jitter() {
        let mut remotes = LeafRemotes::new(plan(vec![target(0, &["a", "b"])]), 7);
        let mut now = 0;
        for at in 0..20 {
            let (number, host) = dialed(&mut remotes, now).expect("its time has come");
            assert_eq!(host, ["a", "b"][at % 2]);
            remotes.on_dialed(number, None);
            let due = remotes.next_deadline().unwrap();
            assert!((now + SECOND..=now + 2 * SECOND).contains(&due), "{due} after {now}");
            assert_eq!(dialed(&mut remotes, due - 1), None);
            now = due;
        }
    }

    #[test]
    fn who_is_told_of_is_dialled_first_and_replaced_by_the_next_word() {
        let mut remotes = LeafRemotes::new(plan(vec![target(0, &["a"])]), 7);
        let (number, _) = dialed(&mut remotes, 0).unwrap();
        remotes.on_dialed(number, Some(9));
        remotes.on_up(9);
        remotes.on_urls(9, &["a:1".to_owned(), "b:2".to_owned(), "nonsense".to_owned()]);
        remotes.on_ended(9, LeafPause::Usual);
        assert_eq!(dialed(&mut remotes, SECOND - 1), None);
        let hosts: Vec<String> = (1..4)
            .map(|at| {
                let (number, host) = dialed(&mut remotes, at * 10 * SECOND).unwrap();
                remotes.on_dialed(number, None);
                host
            })
            .collect();
        assert!(hosts.contains(&"a".to_owned()) && hosts.contains(&"b".to_owned()), "{hosts:?}");
    }

    #[test]
    fn after_a_loop_a_remote_is_left_alone_for_half_a_minute() {
        for (pause, ns) in [
            (LeafPause::Usual, SECOND),
            (LeafPause::Misplaced, MISPLACED_NS),
            (LeafPause::TooOld, TOO_OLD_NS),
        ] {
            let mut remotes = LeafRemotes::new(plan(vec![target(0, &["a"])]), 7);
            let (number, _) = dialed(&mut remotes, 0).unwrap();
            remotes.on_dialed(number, Some(1));
            remotes.on_ended(1, pause);
            assert_eq!(remotes.next_deadline(), Some(ns), "{pause:?}");
        }
    }

    #[test]
    fn a_reload_ends_what_is_gone_or_other_and_dials_what_is_new() {
        let mut remotes = LeafRemotes::new(plan(vec![target(0, &["a"]), target(1, &["b"])]), 7);
        remotes.set_now(0);
        for (step, lid) in steps(&mut remotes).iter().zip([1, 2]) {
            let LeafStep::Dial { target, .. } = step else { panic!("{step:?}") };
            remotes.on_dialed(*target, Some(lid));
        }
        remotes.reload(plan(vec![target(0, &["b"]), target(1, &["c"])]));
        assert_eq!(steps(&mut remotes), [LeafStep::Close(1)]);
        let (number, host) = dialed(&mut remotes, 1).unwrap();
        assert_eq!(host, "c");
        remotes.on_dialed(number, None);
        let disabled = LeafTarget { is_disabled: true, ..target(0, &["b"]) };
        remotes.reload(plan(vec![disabled.clone()]));
        assert_eq!(steps(&mut remotes), [LeafStep::Close(2)]);
        remotes.on_ended(2, LeafPause::Usual);
        assert_eq!(dialed(&mut remotes, 100 * SECOND), None, "it is disabled");
        remotes.reload(plan(vec![target(0, &["b"])]));
        let (number, _) = dialed(&mut remotes, 100 * SECOND).unwrap();
        remotes.on_dialed(number, Some(3));
        remotes.reload(plan(vec![LeafTarget { revision: 1, ..target(0, &["b"]) }]));
        assert_eq!(steps(&mut remotes), [LeafStep::Close(3)]);
        assert!(dialed(&mut remotes, 100 * SECOND).is_some(), "it is dialled anew");
    }
}
