//! Subjects of which a connection that is behind misses messages, rather than being cut.

#![forbid(unsafe_code)]

use super::Engine;
use super::interest::Targets;
use super::publish::Source;
use super::run::Run;
use crate::output::{Dropped, Policy, Segment};
use crate::proto::encode;

impl Engine {
    /// Delivers to plain subscriptions of which some may miss messages. Nobody waits for them.
    /// False if nobody takes any.
    pub(super) fn deliver_loosely(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        targets: &Targets,
        policy: &Policy,
    ) -> usize {
        let mut reached = 0;
        let traced = self.trace.is_some();
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
                let Ok(count) = self.offer(traced, source, run, member) else { continue };
                let Some(conn) = self.conns.at_mut(member.conn) else { continue };
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
        source: &Source,
        run: &Run<'_>,
        (member, sid, headers): (super::interest::Member, &[u8], bool),
        policy: &Policy,
    ) -> usize {
        let mut reached = 0;
        let key = [sid, b" ", run.subject()].concat();
        let (mut one, mut message) = (Run::default(), Vec::new());
        let traced = self.trace.is_some();
        for at in 0..run.len() {
            let one = one.only_one_of(run, at);
            if self.offer(traced, source, one, member).is_err() {
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
            } else if let Some(trace) = &mut self.trace {
                trace.note_dropped();
            }
        }
        reached
    }
}
