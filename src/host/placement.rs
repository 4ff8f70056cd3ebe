//! The number of shards, and the core of each.

use std::fmt;

use core_affinity::CoreId;

use super::{Cpu, Topology};

/// The number of shards, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardCount {
    /// One shard for each core this process may use.
    Auto,
    /// A number of shards, at least one.
    Exactly(usize),
}

/// The number and the pinning of shards, as they were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardsWanted {
    /// The number of shards.
    pub shards: ShardCount,
    /// Whether each shard stays on one core.
    pub pin: bool,
    /// The most shards that `auto` makes.
    pub max: usize,
}

/// The cores of the shards, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The CPUs of the shards: for each the one to be pinned to, if any.
    pub cpus: Vec<Option<usize>>,
    /// The reason, half a sentence for the log.
    pub why: String,
}

impl Placement {
    /// Chooses the number of shards and a core for each.
    ///
    /// `auto` is one shard for each core this process may use, at least one: hyperthreads of a core
    /// count once, slower cores of a hybrid processor not at all (connections are spread by number,
    /// so those of a slower shard would lag), and no more than the cgroup's quota is worth. A
    /// number takes fast cores first, node by node, then slower ones, then hyperthreads; more
    /// shards than CPUs share them. Under a quota smaller than the allowed CPUs no shard is pinned:
    /// every container with such a quota would choose the same first cores. Nor does `auto` pin
    /// them where there is other work: a pinned shard would wait for what runs on its core, while
    /// others are free.
    pub fn plan(topology: &Topology, wanted: ShardsWanted) -> Self {
        let (mut cores, mut threads) = topology.cores_and_threads();
        let order = |cpu: &&Cpu| (!cpu.is_fast, cpu.node, cpu.id);
        cores.sort_by_key(order);
        threads.sort_by_key(order);
        let quota = topology.quota.filter(|quota| quota.whole_cpus() < topology.cpus.len());
        let auto = Auto {
            max: wanted.max,
            cpus: topology.cpus.len(),
            online: topology.online.len(),
            threads: threads.len(),
            cores: cores.len(),
            fast: cores.iter().filter(|cpu| cpu.is_fast).count(),
            quota: quota.map(|quota| (quota.whole_cpus(), quota.to_string())),
        };
        let (count, mut why) = match wanted.shards {
            ShardCount::Exactly(count) => (count.max(1), "as told by --shards".to_owned()),
            ShardCount::Auto => (auto.count(), auto.to_string()),
        };
        let is_auto = wanted.shards == ShardCount::Auto;
        let company = topology.company.filter(|_| is_auto).map(|company| format!("; {company}"));
        let unpinned = match &auto.quota {
            _ if !wanted.pin => Some(""),
            // `auto` has named the quota already.
            Some(_) if is_auto => Some(""),
            Some(_) => Some("; a CPU quota is smaller than the CPUs"),
            None if topology.cpus.is_empty() => Some("; no CPU found"),
            None => company.as_deref(),
        };
        let order = cores.iter().chain(&threads).map(|cpu| Some(cpu.id));
        let cpus = match unpinned {
            Some(reason) => {
                why.push_str(reason);
                vec![None; count]
            }
            None => order.cycle().take(count).collect(),
        };
        Self { cpus, why }
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> usize {
        self.cpus.len()
    }
}

/// Writes the placement as in the banner.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus: Vec<String> = self.cpus.iter().flatten().map(usize::to_string).collect();
        if cpus.is_empty() {
            write!(f, "{}, not pinned", self.cpus.len())?;
        } else {
            write!(f, "{} on cores {}", self.cpus.len(), cpus.join(", "))?;
        }
        write!(f, " ({})", self.why)
    }
}

/// Keeps the calling thread on a CPU. Returns `false` if that was refused, which costs speed only.
pub fn pin(cpu: Option<usize>) -> bool {
    cpu.is_none_or(|id| core_affinity::set_for_current(CoreId { id }))
}

/// The figures that decide about `auto`.
struct Auto {
    /// The most shards there can be.
    max: usize,
    /// CPUs that are allowed, and CPUs that are online.
    cpus: usize,
    online: usize,
    /// Allowed cores, fast ones among them, and allowed threads beyond one of each core.
    cores: usize,
    fast: usize,
    threads: usize,
    /// A quota that is smaller than the allowed CPUs: whole CPUs, and as text.
    quota: Option<(usize, String)>,
}

impl Auto {
    /// Returns the number of fast cores, or of all if there are no fast ones.
    fn eligible(&self) -> usize {
        if self.fast > 0 { self.fast } else { self.cores }
    }

    fn count(&self) -> usize {
        let quota = self.quota.as_ref().map_or(usize::MAX, |(cpus, _)| *cpus);
        self.eligible().min(quota).clamp(1, self.max)
    }
}

/// Writes the choice and its reasons: `auto: one per core; 2 of 2 CPUs allowed, SMT off`.
impl fmt::Display for Auto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let eligible = self.eligible();
        match &self.quota {
            Some((cpus, text)) if *cpus < eligible => {
                write!(f, "auto: the cgroup's quota allows {text} CPUs, of {eligible} cores")?;
            }
            _ if eligible > self.max => {
                write!(f, "auto: {} is the maximum, of {eligible} cores", self.max)?;
            }
            Some((_, text)) => write!(f, "auto: one per core, under a quota of {text} CPUs")?,
            None => f.write_str("auto: one per core")?,
        }
        write!(f, "; {} of {} CPUs allowed", self.cpus, self.online)?;
        if self.threads > 0 {
            write!(f, ", {} of them second threads of a core", self.threads)?;
        }
        if eligible < self.cores {
            write!(f, ", {} slower cores left out", self.cores - eligible)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::machine::Machine;

    const MAX: usize = 64;

    fn wanted(shards: ShardCount) -> ShardsWanted {
        ShardsWanted { shards, pin: true, max: MAX }
    }

    fn placed(machine: &Machine, shards: ShardCount) -> String {
        Placement::plan(&Topology::read(&machine.tree()), wanted(shards)).to_string()
    }

    fn auto(machine: &Machine) -> String {
        placed(machine, ShardCount::Auto)
    }

    fn hybrid() -> Machine {
        // Two performance cores with two threads each, then four efficiency cores.
        let siblings =
            |cpu: usize| if cpu < 4 { ["0-1", "2-3"][cpu / 2].into() } else { cpu.to_string() };
        (0..8)
            .fold(Machine::new(1, 8, 1), |machine, cpu| {
                let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
                machine.with(&[(&path, &siblings(cpu))])
            })
            .with(&[("sys/devices/cpu_core/cpus", "0-3"), ("sys/devices/cpu_atom/cpus", "4-7")])
    }

    #[test]
    fn auto_is_one_shard_per_core() {
        let one = auto(&Machine::new(1, 3, 1));
        assert_eq!(one, "3 on cores 0, 1, 2 (auto: one per core; 3 of 3 CPUs allowed)");
    }

    #[test]
    fn auto_takes_the_cores_of_both_sockets() {
        let two = auto(&Machine::new(2, 2, 1));
        assert_eq!(two, "4 on cores 0, 1, 2, 3 (auto: one per core; 4 of 4 CPUs allowed)");
    }

    #[test]
    fn auto_counts_hyperthreads_once() {
        assert_eq!(
            auto(&Machine::new(1, 2, 2)),
            "2 on cores 0, 1 (auto: one per core; 4 of 4 CPUs allowed, 2 of them second threads \
             of a core)"
        );
        assert!(auto(&Machine::new(1, 1, 2)).starts_with("1 on cores 0 "));
    }

    #[test]
    fn auto_leaves_slower_cores_out() {
        assert_eq!(
            auto(&hybrid()),
            "2 on cores 0, 2 (auto: one per core; 8 of 8 CPUs allowed, 2 of them second threads \
             of a core, 4 slower cores left out)"
        );
        // Where only slower cores are allowed, they are all there are.
        let slow = hybrid().allowed("5-6");
        assert_eq!(auto(&slow), "2 on cores 5, 6 (auto: one per core; 2 of 8 CPUs allowed)");
    }

    #[test]
    fn a_quota_is_rounded_down_and_leaves_the_placing_to_the_kernel() {
        let two = Machine::new(1, 4, 1).quota_v2("/a", &[("/a", "250000 100000")]);
        let one = Machine::new(1, 4, 1).quota_v1("/a", 250_000);
        let said = "2, not pinned (auto: the cgroup's quota allows 2.5 CPUs, of 4 cores; 4 of 4 \
                    CPUs allowed)";
        assert_eq!(auto(&two), said);
        assert_eq!(auto(&one), said);
        assert_eq!(
            placed(&two, ShardCount::Exactly(3)),
            "3, not pinned (as told by --shards; a CPU quota is smaller than the CPUs)"
        );
        let tiny = Machine::new(1, 4, 1).quota_v1("/a", 50_000);
        assert!(auto(&tiny).starts_with("1, not pinned (auto: the cgroup's quota allows 0.5 CPU"));
    }

    #[test]
    fn a_quota_between_cores_and_threads_limits_nothing_but_pinning() {
        let machine = Machine::new(1, 2, 2).quota_v2("/a", &[("/a", "300000 100000")]);
        assert!(
            auto(&machine).starts_with("2, not pinned (auto: one per core, under a quota of 3 ")
        );
        let ample = Machine::new(1, 2, 1).quota_v2("/a", &[("/a", "200000 100000")]);
        assert_eq!(auto(&ample), "2 on cores 0, 1 (auto: one per core; 2 of 2 CPUs allowed)");
    }

    #[test]
    fn a_cpuset_with_holes_is_kept_to() {
        let machine = Machine::new(1, 8, 1).allowed("1,3-4,7");
        assert_eq!(
            auto(&machine),
            "4 on cores 1, 3, 4, 7 (auto: one per core; 4 of 8 CPUs allowed)"
        );
        // The first thread of core 1 is not among them, the second is.
        let threads = Machine::new(1, 4, 2).allowed("0,4-5");
        assert!(auto(&threads).starts_with("2 on cores 0, 5 "), "{}", auto(&threads));
    }

    #[test]
    fn a_number_takes_cores_first_then_hyperthreads_then_wraps() {
        let said = placed(&Machine::new(1, 2, 2), ShardCount::Exactly(5));
        assert_eq!(said, "5 on cores 0, 1, 2, 3, 0 (as told by --shards)");
        let said = placed(&hybrid(), ShardCount::Exactly(8));
        assert!(said.starts_with("8 on cores 0, 2, 4, 5, 6, 7, 1, 3 "), "{said}");
    }

    #[test]
    fn a_number_fills_one_node_before_the_next() {
        let machine = Machine::new(1, 4, 1).with(&[
            ("sys/devices/system/node/node0/cpulist", "0,2"),
            ("sys/devices/system/node/node1/cpulist", "1,3"),
        ]);
        let said = placed(&machine, ShardCount::Exactly(3));
        assert!(said.starts_with("3 on cores 0, 2, 1 "), "{said}");
    }

    #[test]
    fn there_is_always_a_shard() {
        let nothing = Placement::plan(&Topology::default(), wanted(ShardCount::Auto));
        assert_eq!(nothing.cpus, [None]);
        assert!(nothing.why.contains("no CPU found"));
    }

    #[test]
    fn auto_stops_at_the_most_shards_there_can_be() {
        let said = auto(&Machine::new(2, 100, 1));
        assert!(said.starts_with(&format!("{MAX} on cores ")), "{said}");
        assert!(said.contains("is the maximum, of 200 cores"), "{said}");
    }

    #[test]
    fn auto_leaves_the_placing_to_the_kernel_where_there_is_other_work() {
        let machine = Machine::new(1, 2, 1).with(&[("proc/loadavg", "2.00 2.00 2.00 3/99 9")]);
        assert_eq!(
            auto(&machine),
            "2, not pinned (auto: one per core; 2 of 2 CPUs allowed; other work on the CPUs: a \
             load of 2.0 on 2)"
        );
        let told = placed(&machine, ShardCount::Exactly(2));
        assert_eq!(told, "2 on cores 0, 1 (as told by --shards)");
    }

    #[test]
    fn nobody_is_pinned_who_does_not_want_to_be() {
        let wanted = ShardsWanted { pin: false, ..wanted(ShardCount::Auto) };
        let topology = Topology::read(&Machine::new(1, 2, 1).tree());
        assert_eq!(Placement::plan(&topology, wanted).cpus, [None, None]);
        assert!(pin(None));
    }
}
