//! Subjects of which a connection that is behind misses messages, rather than being cut.

#![forbid(unsafe_code)]

use std::rc::Rc;

use super::Engine;
use super::interest::Targets;
use super::publish::Source;
use super::run::Run;
use crate::config;
pub(super) use crate::config::OverflowKind as Kind;
use crate::proto::encode;
use crate::segment::Segment;
use crate::subject::Table;

/// What becomes of messages for a connection that is behind.
#[derive(Debug)]
pub(super) struct Policy {
    /// Its place in the configuration.
    pub(super) number: u16,
    pub(super) kind: Kind,
    /// Bytes that may be queued, behind the batch in flight, with a message of this policy; from
    /// half of it on messages may still be dropped for later ones.
    pub(super) bytes_max: usize,
}

/// Messages that a connection has not got because it was behind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Dropped as they came: there was no room, and none to be made.
    pub newest: u64,
    /// Dropped for later ones by `drop_oldest`, or because even conflated it was too much.
    pub oldest: u64,
    /// Dropped by `conflate` for later ones of the same subject.
    pub conflated: u64,
}

impl Dropped {
    /// Adds those of another connection or shard.
    pub fn add(&mut self, other: &Self) {
        self.newest += other.newest;
        self.oldest += other.oldest;
        self.conflated += other.conflated;
    }
}

/// The policies of an account by the filters of their subjects.
#[derive(Debug)]
pub(super) struct Overflow {
    policies: Vec<Rc<Policy>>,
    filters: Table<usize>,
}

impl Overflow {
    /// None if there are no rules. With what is in flight no policy lets more be pending than
    /// `pending_bytes_max`.
    pub(super) fn new<'a>(
        rules: impl Iterator<Item = &'a config::OverflowRule>,
        pending_bytes_max: usize,
    ) -> Option<Rc<Self>> {
        let mut filters = Table::new();
        let mut policies = Vec::new();
        for (at, rule) in rules.enumerate() {
            // Of two for one filter the first counts, too.
            let known = filters.get(rule.filter.as_bytes()).copied();
            *filters.entry(rule.filter.as_bytes()) = known.unwrap_or(at);
            let bytes_max = rule.pending_bytes_max.min(pending_bytes_max / 2);
            let number = u16::try_from(at).unwrap_or(u16::MAX);
            policies.push(Rc::new(Policy { number, kind: rule.kind, bytes_max }));
        }
        (!policies.is_empty()).then(|| Rc::new(Self { policies, filters }))
    }

    /// The policy for a subject: the first of the configuration that matches.
    pub(super) fn policy(&self, subject: &[u8]) -> Option<Rc<Policy>> {
        let mut first = usize::MAX;
        self.filters.for_each_match(subject, |at| first = first.min(*at));
        self.policies.get(first).cloned()
    }
}

impl Engine {
    /// Delivers to plain subscriptions of which some may miss messages. Nobody waits for them.
    /// False if nobody takes any.
    pub(super) fn deliver_loosely(
        &mut self,
        source: Source,
        run: &Run<'_>,
        targets: &Targets,
        policy: &Policy,
    ) -> usize {
        let mut reached = 0;
        for group in &targets.groups {
            let (sid, headers) = (&*group.sid, group.headers);
            let run_bytes = run.delivered_bytes_max(sid);
            let mut rendered: Option<Segment> = None;
            for &member in &group.members {
                let Some(conn) = self.conns.at(member.conn) else { continue };
                if conn.outbox.queued_bytes() + run_bytes > policy.bytes_max / 2 {
                    let slow = (member, sid, headers);
                    reached = reached.max(self.deliver_to_slow(source, run, slow, policy));
                    continue;
                }
                let count = self.takes(source, run, member);
                let Some(conn) = self.conns.at_mut(member.conn).filter(|_| count > 0) else {
                    continue;
                };
                reached = reached.max(count);
                let spares = &mut self.spares;
                if count < run.len() {
                    conn.outbox.push(spares, |out| run.render(count, sid, headers, out));
                } else {
                    let segment = rendered.get_or_insert_with(|| {
                        spares.segment(|out| run.render(count, sid, headers, out))
                    });
                    conn.outbox.push(spares, |out| out.extend_from_slice(segment));
                }
                self.account_for(member, run, count, headers);
            }
            if let Some(segment) = rendered {
                self.spares.keep_segment(segment);
            }
        }
        reached
    }

    /// The same for one that is behind, or may be with this run: message by message.
    fn deliver_to_slow(
        &mut self,
        source: Source,
        run: &Run<'_>,
        (member, sid, headers): (super::interest::Member, &[u8], bool),
        policy: &Policy,
    ) -> usize {
        let mut reached = 0;
        let key = [sid, b" ", run.subject()].concat();
        let (mut one, mut message) = (Run::default(), Vec::new());
        for at in 0..run.len() {
            let one = one.only_one_of(run, at);
            if self.takes(source, one, member) == 0 {
                continue;
            }
            let Some(conn) = self.conns.at_mut(member.conn) else { break };
            reached = at + 1;
            message.clear();
            one.publishes().for_each(|publish| encode::msg(&mut message, publish, sid, headers));
            let mut dropped = Dropped::default();
            let spares = &mut self.spares;
            let kept = conn.outbox.push_loose(spares, policy, &key, &message, &mut dropped);
            conn.dropped.add(&dropped);
            self.stats.dropped.add(&dropped);
            if kept {
                self.account_for(member, one, 1, headers);
            }
        }
        reached
    }
}
