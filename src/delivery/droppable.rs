//! Subjects of which a connection that is behind misses messages, rather than being cut.

use crate::core::Core;
use crate::core::message_trace::NotDelivered;
use crate::delivery::mqtt::RunPackets;
use crate::delivery::publish::Source;
use crate::delivery::{deliver, mqtt};
use crate::interest::targets::{Member, SidGroup, Targets};
use crate::output::{Dropped, Policy, Segment};
use crate::proto::encode;
use crate::run::Run;

/// Delivers to plain subscriptions of which some may miss messages. No publisher waits for them.
/// Returns the number of messages, from the first, that have a receiver.
pub(super) fn deliver_loosely(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    targets: &Targets,
    policy: &Policy,
) -> usize {
    let mut reached = 0;
    let traced = core.tracer.trace.is_some();
    let mut packets = RunPackets::default();
    for group in &targets.groups {
        let (prefix, headers) = (&group.prefix, group.headers);
        let run_bytes = run.delivered_bytes_max(prefix.sid());
        let mut rendered: Option<Segment> = None;
        for &member in &group.members {
            let Some(conn) = core.conns.at(member.conn) else { continue };
            if conn.outbox.queued_bytes() + run_bytes > policy.bytes_max / 2 {
                let count = deliver_to_slow(core, source, run, group, member, policy);
                reached = reached.max(count);
                continue;
            }
            let count = match deliver::offer(core, traced, source, run, member) {
                Ok(count) => count,
                Err(NotDelivered::InPackets) => {
                    mqtt::deliver(core, run, member, &mut packets);
                    reached = run.len();
                    continue;
                }
                Err(_) => continue,
            };
            let Some(conn) = core.conns.at_mut(member.conn) else { continue };
            reached = reached.max(count);
            let spares = &mut core.spares;
            if count < run.len() {
                conn.outbox.push(spares, |out| run.render(count, prefix, headers, out));
            } else {
                let segment = rendered.get_or_insert_with(|| {
                    spares.segment(|out| run.render(count, prefix, headers, out))
                });
                conn.outbox.push(spares, |out| out.extend_from_slice(segment));
            }
            deliver::account_for(core, member, run, count, headers);
        }
        if let Some(segment) = rendered {
            core.spares.keep_segment(segment);
        }
    }
    packets.end(&mut core.spares);
    reached
}

/// Delivers message by message to a subscription that is behind, or may be with this run.
fn deliver_to_slow(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    group: &SidGroup,
    member: Member,
    policy: &Policy,
) -> usize {
    let (sid, headers) = (group.prefix.sid(), group.headers);
    let mut reached = 0;
    let key = [sid, b" ", run.subject()].concat();
    let (mut one, mut message) = (Run::default(), Vec::new());
    let traced = core.tracer.trace.is_some();
    for at in 0..run.len() {
        let one = one.only_one_of(run, at);
        match deliver::offer(core, traced, source, one, member) {
            Ok(_) => {}
            Err(NotDelivered::InPackets) => {
                let mut packets = RunPackets::default();
                mqtt::deliver(core, one, member, &mut packets);
                packets.end(&mut core.spares);
                reached = at + 1;
                continue;
            }
            Err(_) => continue,
        }
        let Some(conn) = core.conns.at_mut(member.conn) else { break };
        reached = at + 1;
        message.clear();
        one.publishes().for_each(|publish| encode::msg(&mut message, publish, sid, headers));
        let mut dropped = Dropped::default();
        let spares = &mut core.spares;
        let kept = conn.outbox.push_loose(spares, policy, &key, &message, &mut dropped);
        conn.lag.dropped.add(&dropped);
        core.monitor.stats.dropped.add(&dropped);
        if kept {
            deliver::account_for(core, member, one, 1, headers);
        } else if let Some(trace) = &mut core.tracer.trace {
            trace.note_dropped();
        }
    }
    reached
}
