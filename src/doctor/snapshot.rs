//! The state of the host at one moment.

use std::collections::BTreeMap;

use super::advised::SYSCTLS;
use crate::config::RuntimeOptions;
use crate::host::{CpuSet, Placement, Tier, Topology, Tree};
use crate::uring::Unavailable;

const CPU_DIR: &str = "sys/devices/system/cpu";
const NET_DIR: &str = "sys/class/net";
/// The number of the capability `CAP_IPC_LOCK`, which lifts the limit of locked memory.
const CAPABILITY_IPC_LOCK: u32 = 14;

/// The state of the host that is judged.
#[derive(Debug)]
pub(super) struct Host {
    /// The kernel's release, like `6.1.0-18-amd64`.
    pub(super) release: String,
    /// The best io_uring tier that works, or the reason why none does.
    pub(super) uring: Result<Tier, Unavailable>,
    /// Whether this process runs under a seccomp filter.
    pub(super) is_filtered: bool,
    /// The host's CPUs.
    pub(super) topology: Topology,
    /// The placement of shards by `--shards auto`.
    pub(super) placement: Placement,
    /// The hard limit of open files; `u64::MAX`: no limit.
    pub(super) open_files_max: Option<u64>,
    /// The soft limit of locked memory in bytes; `u64::MAX`: no limit.
    pub(super) locked_bytes_max: Option<u64>,
    /// Values of those [`SYSCTLS`] that exist.
    pub(super) sysctls: BTreeMap<&'static str, String>,
    /// CPUs by their frequency governor; empty without frequency control.
    pub(super) governors: BTreeMap<String, CpuSet>,
    /// The idle state that takes longest to leave among those switched on: name, microseconds.
    pub(super) deepest_idle: Option<(String, u64)>,
    /// The setting for transparent huge pages.
    pub(super) huge_pages: Option<String>,
    /// Whether there is swap space.
    pub(super) has_swap: bool,
    /// Whether the daemon `irqbalance` runs.
    pub(super) has_irqbalance: bool,
    /// The network card that clients come through.
    pub(super) card: Option<Card>,
}

/// A network card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Card {
    /// The card's name, like `eth0`.
    pub(super) name: String,
    /// The NUMA node of the card's bus.
    pub(super) node: Option<usize>,
    /// The number of receive queues.
    pub(super) receive_queues: usize,
    /// The number of send queues.
    pub(super) send_queues: usize,
    /// The number of receive queues that the kernel spreads over CPUs (RPS).
    pub(super) spread_queues: usize,
    /// The number of receive queues that the kernel spreads by connection (RFS).
    pub(super) steered_queues: usize,
    /// The number of send queues with CPUs of their own (XPS).
    pub(super) chosen_queues: usize,
    /// CPUs that handle the card's interrupts.
    pub(super) interrupts: CpuSet,
}

impl Host {
    /// Reads the state of the host. Without `card`, the card is that of the default route.
    pub(super) fn read(tree: &Tree, card: Option<&str>, uring: Result<Tier, Unavailable>) -> Self {
        let topology = Topology::read(tree);
        let placement = RuntimeOptions::default().placement(&topology);
        let status = |key| tree.field("proc/self/status", key);
        let capabilities = status("CapEff").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        let locks_freely = capabilities.is_some_and(|bits| bits >> CAPABILITY_IPC_LOCK & 1 == 1);
        let locked_bytes_max = limit(tree, "Max locked memory", 0);
        let card = card.map(str::to_owned).or_else(|| default_card(tree));
        Self {
            release: tree.text("proc/sys/kernel/osrelease").unwrap_or_default(),
            uring,
            is_filtered: status("Seccomp").is_some_and(|mode| mode != "0"),
            governors: governors(tree, &topology),
            deepest_idle: deepest_idle(tree, &topology),
            topology,
            placement,
            open_files_max: limit(tree, "Max open files", 1),
            locked_bytes_max: if locks_freely { Some(u64::MAX) } else { locked_bytes_max },
            sysctls: SYSCTLS
                .iter()
                .filter_map(|sysctl| Some((sysctl.name, tree.text(sysctl.file())?)))
                .collect(),
            huge_pages: tree.text("sys/kernel/mm/transparent_hugepage/enabled").and_then(|all| {
                // `always [madvise] never`
                Some(all.split_once('[')?.1.split_once(']')?.0.to_owned())
            }),
            has_swap: tree.text("proc/swaps").is_some_and(|swaps| swaps.lines().count() > 1),
            has_irqbalance: tree.names("proc", "").iter().any(|process| {
                tree.text(format!("proc/{process}/comm")).as_deref() == Some("irqbalance")
            }),
            card: card.and_then(|name| Card::read(tree, name)),
        }
    }
}

impl Card {
    /// Reads the state of a card; `None` if there is no card of that name.
    fn read(tree: &Tree, name: String) -> Option<Self> {
        let directory = format!("{NET_DIR}/{name}");
        tree.text(format!("{directory}/ifindex"))?;
        let queues = |prefix| tree.names(format!("{directory}/queues"), prefix);
        let (receive, send) = (queues("rx-"), queues("tx-"));
        let count = |queues: &[String], file: &str| {
            let set = queues.iter().filter(|queue| {
                let text = tree.text(format!("{directory}/queues/{queue}/{file}"));
                text.is_some_and(|text| text.contains(|c: char| c != '0' && c != ','))
            });
            set.count()
        };
        // The device of a virtual card is below that of the bus.
        let devices = [format!("{directory}/device"), format!("{directory}/device/..")];
        let irqs = devices.iter().flat_map(|device| tree.names(format!("{device}/msi_irqs"), ""));
        let cpus = irqs.filter_map(|irq| {
            let file = |name| tree.cpus(format!("proc/irq/{irq}/{name}"));
            file("effective_affinity_list").or_else(|| file("smp_affinity_list"))
        });
        Some(Self {
            // The value is -1 where the bus belongs to no node.
            node: devices
                .iter()
                .find_map(|device| tree.text(format!("{device}/numa_node"))?.parse().ok()),
            receive_queues: receive.len(),
            send_queues: send.len(),
            spread_queues: count(&receive, "rps_cpus"),
            steered_queues: count(&receive, "rps_flow_cnt"),
            chosen_queues: count(&send, "xps_cpus"),
            interrupts: cpus.flat_map(|cpus| cpus.iter().collect::<Vec<_>>()).collect(),
            name,
        })
    }
}

/// Returns a limit of the process in `/proc/self/limits`: the soft value (0) or the hard one (1).
pub(super) fn limit(tree: &Tree, name: &str, column: usize) -> Option<u64> {
    let limits = tree.text("proc/self/limits")?;
    let values = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let value = values.split_whitespace().nth(column)?;
    if value == "unlimited" { Some(u64::MAX) } else { value.parse().ok() }
}

/// Returns the name of the default route's card.
fn default_card(tree: &Tree) -> Option<String> {
    let routes = tree.text("proc/net/route")?;
    routes.lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        let card = columns.next()?;
        (columns.next()? == "00000000").then(|| card.to_owned())
    })
}

fn governors(tree: &Tree, topology: &Topology) -> BTreeMap<String, CpuSet> {
    let mut governors: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for cpu in topology.allowed().iter() {
        if let Some(name) = tree.text(format!("{CPU_DIR}/cpu{cpu}/cpufreq/scaling_governor")) {
            governors.entry(name).or_default().push(cpu);
        }
    }
    governors.into_iter().map(|(name, cpus)| (name, cpus.into_iter().collect())).collect()
}

fn deepest_idle(tree: &Tree, topology: &Topology) -> Option<(String, u64)> {
    let allowed = topology.allowed();
    let states = allowed.iter().flat_map(|cpu| {
        let directory = format!("{CPU_DIR}/cpu{cpu}/cpuidle");
        let states = tree.names(&directory, "state").into_iter();
        states.map(move |state| format!("{directory}/{state}"))
    });
    let switched_on = states.filter(|state| tree.number(format!("{state}/disable")) != Some(1));
    let known = switched_on.filter_map(|state| {
        Some((tree.text(format!("{state}/name"))?, tree.number(format!("{state}/latency"))?))
    });
    known.max_by_key(|(_, latency_us)| *latency_us)
}
