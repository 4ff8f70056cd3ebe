//! CPUs of the host: those that this process may use, their cores and nodes.

use std::collections::BTreeSet;

use super::{Company, CpuSet, Quota, Tree};

const CPU_DIR: &str = "sys/devices/system/cpu";
const NODE_DIR: &str = "sys/devices/system/node";

/// A CPU as the kernel counts them: a hardware thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The number of the CPU.
    pub id: usize,
    /// The threads of the CPU's core, itself among them, allowed or not.
    pub siblings: CpuSet,
    /// The NUMA node of the CPU's memory; 0 where the kernel knows no nodes.
    pub node: usize,
    /// Whether the CPU is a fast one, where a processor has several kinds of cores; else true.
    pub is_fast: bool,
}

/// The CPUs that this process may use, and its share of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Topology {
    /// CPUs that are switched on.
    pub online: CpuSet,
    /// CPUs that the scheduler leaves alone (`isolcpus=`).
    pub isolated: CpuSet,
    /// Online CPUs that the affinity and the cpuset allow, lowest first.
    pub cpus: Vec<Cpu>,
    /// The control group's quota, if there is one.
    pub quota: Option<Quota>,
    /// Other work on the CPUs, if there is much of it.
    pub company: Option<Company>,
}

impl Topology {
    /// Reads the topology for the calling process.
    pub fn read(tree: &Tree) -> Self {
        let allowed = tree.field("proc/self/status", "Cpus_allowed_list");
        let allowed: Option<CpuSet> = allowed.and_then(|list| list.parse().ok());
        // The mask may name CPUs that do not exist.
        let online = tree.cpus(format!("{CPU_DIR}/online")).or_else(|| allowed.clone());
        let online = online.unwrap_or_default();
        let allowed = allowed.map_or_else(|| online.clone(), |allowed| allowed.and(&online));
        let nodes: Vec<(usize, CpuSet)> = tree
            .names(NODE_DIR, "node")
            .iter()
            .filter_map(|name| {
                let cpus = tree.cpus(format!("{NODE_DIR}/{name}/cpulist"))?;
                Some((name.strip_prefix("node")?.parse().ok()?, cpus))
            })
            .collect();
        let fast = fast(tree, &online);
        let cpu = |id| Cpu {
            id,
            siblings: tree
                .cpus(format!("{CPU_DIR}/cpu{id}/topology/thread_siblings_list"))
                .filter(|siblings| siblings.contains(id))
                .unwrap_or_else(|| [id].into_iter().collect()),
            node: nodes.iter().find(|(_, cpus)| cpus.contains(id)).map_or(0, |(node, _)| *node),
            is_fast: fast.contains(id),
        };
        Self {
            cpus: allowed.iter().map(cpu).collect(),
            isolated: tree.cpus(format!("{CPU_DIR}/isolated")).unwrap_or_default(),
            quota: Quota::read(tree),
            company: Company::read(tree, online.len()),
            online,
        }
    }

    /// Returns the allowed CPUs.
    pub fn allowed(&self) -> CpuSet {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    /// Returns the NUMA nodes of the allowed CPUs.
    pub fn nodes(&self) -> BTreeSet<usize> {
        self.cpus.iter().map(|cpu| cpu.node).collect()
    }

    /// Returns one allowed CPU of each core (the lowest), and the other threads of these cores.
    pub fn cores_and_threads(&self) -> (Vec<&Cpu>, Vec<&Cpu>) {
        let allowed = self.allowed();
        self.cpus.iter().partition(|cpu| cpu.siblings.and(&allowed).iter().next() == Some(cpu.id))
    }
}

/// Returns the CPUs that are not of a slower kind.
///
/// Intel's hybrids list their performance cores; elsewhere the kernel gives each CPU a capacity,
/// and a CPU with less than three quarters of the best is slower. (Cores of one kind differ by
/// less.)
fn fast(tree: &Tree, online: &CpuSet) -> CpuSet {
    if let Some(listed) = tree.cpus("sys/devices/cpu_core/cpus").filter(|cpus| !cpus.is_empty()) {
        return listed;
    }
    let capacity = |id: usize| tree.number(format!("{CPU_DIR}/cpu{id}/cpu_capacity"));
    let best = online.iter().filter_map(capacity).max().unwrap_or(0);
    online.iter().filter(|id| capacity(*id).unwrap_or(best) * 4 >= best * 3).collect()
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::*;

    #[test]
    fn threads_nodes_and_kinds_are_read() {
        let machine = Machine::new(2, 2, 2);
        let topology = Topology::read(&machine.tree());
        assert_eq!(topology.online.to_string(), "0-7");
        let ids = |cpus: Vec<&Cpu>| cpus.into_iter().map(|cpu| cpu.id).collect::<Vec<_>>();
        let (cores, threads) = topology.cores_and_threads();
        assert_eq!((ids(cores), ids(threads)), (vec![0, 1, 2, 3], vec![4, 5, 6, 7]));
        assert_eq!(topology.cpus[6].siblings.to_string(), "2,6");
        assert_eq!((topology.cpus[1].node, topology.cpus[2].node), (0, 1));
        assert!(topology.cpus.iter().all(|cpu| cpu.is_fast));
    }

    #[test]
    fn of_a_core_whose_first_thread_is_not_allowed_the_second_counts() {
        let topology = Topology::read(&Machine::new(1, 4, 2).allowed("1,4-5,7").tree());
        let (cores, threads) = topology.cores_and_threads();
        let ids = |cpus: Vec<&Cpu>| cpus.into_iter().map(|cpu| cpu.id).collect::<Vec<_>>();
        assert_eq!((ids(cores), ids(threads)), (vec![1, 4, 7], vec![5]));
    }

    #[test]
    fn a_mask_wider_than_the_machine_is_cut() {
        let topology = Topology::read(&Machine::new(1, 2, 1).allowed("0-127").tree());
        assert_eq!(topology.allowed().to_string(), "0-1");
    }

    #[test]
    fn slower_kinds_are_told_by_list_or_by_capacity() {
        let fast = |machine: Machine| {
            let topology = Topology::read(&machine.tree());
            let fast = topology.cpus.iter().filter(|cpu| cpu.is_fast).map(|cpu| cpu.id);
            fast.collect::<CpuSet>().to_string()
        };
        let listed = [("sys/devices/cpu_core/cpus", "0-1"), ("sys/devices/cpu_atom/cpus", "2-3")];
        assert_eq!(fast(Machine::new(1, 4, 1).with(&listed)), "0-1");
        let capacities = Machine::new(1, 4, 1).with(&[
            ("sys/devices/system/cpu/cpu0/cpu_capacity", "446"),
            ("sys/devices/system/cpu/cpu1/cpu_capacity", "446"),
            ("sys/devices/system/cpu/cpu2/cpu_capacity", "1024"),
            ("sys/devices/system/cpu/cpu3/cpu_capacity", "989"),
        ]);
        assert_eq!(fast(capacities), "2-3");
    }

    #[test]
    fn a_tree_without_anything_has_no_cpus() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Topology::read(&Tree::at(empty.path())), Topology::default());
    }

    #[test]
    fn this_host_has_a_cpu() {
        assert!(!Topology::read(&Tree::default()).cpus.is_empty());
    }
}
