//! From a plan that fails to a short one that still does.

use std::collections::VecDeque;

use super::script::{Op, Plan};

/// Orders of events that each shorter plan is tried in: with other operations the same schedule
/// is another one.
const SCHEDULES: u64 = 12;

/// Takes away what `fails` does not need: operations, phases, shards, servers.
pub(crate) fn shrink(plan: Plan, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut plan = plan;
    let mut still_fails = |candidate: Plan| {
        (0..SCHEDULES)
            .map(|step| Plan {
                schedule: candidate.schedule.wrapping_add(step),
                ..candidate.clone()
            })
            .find(|candidate| fails(candidate))
    };
    loop {
        let before = size(&plan);
        let mut chunk = plan.ops().len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < plan.ops().len() {
                match still_fails(plan.without(at..at + chunk)) {
                    Some(shorter) => plan = shorter,
                    None => at += chunk,
                }
            }
            chunk /= 2;
        }
        for phase in (1..plan.phases.len()).rev() {
            plan = still_fails(plan.with_phase_joined(phase)).unwrap_or(plan);
        }
        for shards in 1..plan.shards {
            if let Some(smaller) = still_fails(Plan { shards, ..plan.clone() }) {
                plan = smaller;
                break;
            }
        }
        while let Some(smaller) = plan.with_a_server_less().and_then(&mut still_fails) {
            plan = smaller;
        }
        if size(&plan) == before {
            return plan;
        }
    }
}

fn size(plan: &Plan) -> (usize, usize, u8, usize) {
    (plan.ops().len(), plan.phases.len(), plan.shards, plan.servers.len())
}

impl Plan {
    /// Every operation with its phase and client, phase by phase and client by client.
    pub(crate) fn ops(&self) -> Vec<(usize, usize, Op)> {
        let mut ops = Vec::new();
        for (phase, clients) in self.phases.iter().enumerate() {
            for (client, own) in clients.iter().enumerate() {
                ops.extend(own.iter().map(|op| (phase, client, *op)));
            }
        }
        ops
    }

    /// The plan without those of its operations.
    fn without(&self, gone: std::ops::Range<usize>) -> Self {
        let clients = self.phases.first().map_or(0, Vec::len);
        let mut phases = vec![vec![VecDeque::new(); clients]; self.phases.len()];
        for (at, (phase, client, op)) in self.ops().into_iter().enumerate() {
            if !gone.contains(&at) {
                phases[phase][client].push_back(op);
            }
        }
        Self { phases, ..self.clone() }
    }

    /// The plan without the rest between this phase and the one before.
    fn with_phase_joined(&self, phase: usize) -> Self {
        let mut phases = self.phases.clone();
        let later = phases.remove(phase);
        for (earlier, mut later) in phases[phase - 1].iter_mut().zip(later) {
            earlier.append(&mut later);
        }
        Self { phases, ..self.clone() }
    }

    /// The plan without its last server; a single one is another kind of run.
    fn with_a_server_less(&self) -> Option<Self> {
        let last = self.servers.len().checked_sub(1).filter(|last| *last > 1)?;
        let dials = |dials: &Vec<usize>| dials.iter().copied().filter(|to| *to != last).collect();
        Some(Self { servers: self.servers[..last].iter().map(dials).collect(), ..self.clone() })
    }

    /// What happens, for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{} operations, {} shards, servers dial {:?}, schedule {}\n{:?}\n",
            self.ops().len(),
            self.shards,
            self.servers,
            self.schedule,
            self.flavour
        );
        let mut rests = 0;
        for (phase, client, op) in self.ops() {
            while rests < phase {
                rests += 1;
                text += "all come to rest\n";
            }
            text += &format!("client {client}: {op:?}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Kind, bytes_of};
    use super::*;

    #[test]
    fn what_a_failure_does_not_need_is_taken_away() {
        let needs = |plan: &Plan| {
            let ops = plan.ops();
            let publishes = ops.iter().any(|(.., op)| matches!(op, Op::Publish { .. }));
            let ends = ops.iter().any(|(_, client, op)| *client == 1 && matches!(op, Op::Ping));
            publishes && ends && plan.shards > 1
        };
        let mut shrunk = 0;
        for seed in 0..50 {
            let plan = Plan::decode(Kind::Server, &bytes_of(seed));
            if !needs(&plan) {
                continue;
            }
            let short = shrink(plan, needs);
            assert_eq!(size(&short), (2, 1, 2, 1), "{}", short.text());
            assert_eq!(short.text().lines().count(), 4);
            shrunk += 1;
        }
        assert!(shrunk > 5, "only {shrunk} seeds have what this test needs");
    }
}
