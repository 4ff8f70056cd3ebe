//! Hosts that lack one thing each, and the doctor's findings.

use super::snapshot::Host;
use super::*;
use crate::host::Tier;
use crate::host::machine::Machine;
use crate::uring::Unavailable;

const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 1048576              files
Max locked memory         8388608              8388608              bytes
";

/// Returns a host with everything as it should be: four cores, a card with four queues.
fn sound() -> Machine {
    let mut machine = Machine::new(1, 4, 1).with(&[
        ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
        ("proc/self/limits", LIMITS),
        ("proc/swaps", "Filename Type Size Used Priority\n"),
        ("proc/net/route", "Iface\tDestination\neth0\t00000000\t010200C0\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ("sys/class/net/eth0/ifindex", "2\n"),
        ("sys/class/net/eth0/device/numa_node", "0\n"),
    ]);
    for number in 0..4 {
        let queue = |kind: &str| format!("sys/class/net/eth0/queues/{kind}-{number}");
        let state = format!("sys/devices/system/cpu/cpu{number}/cpuidle/state1");
        machine = machine.with(&[
            (&format!("{}/rps_cpus", queue("rx")), "0"),
            (&format!("{}/rps_flow_cnt", queue("rx")), "0"),
            (&format!("{}/xps_cpus", queue("tx")), &format!("{:x}", 1 << number)),
            (&format!("sys/class/net/eth0/device/msi_irqs/{}", 40 + number), "msix"),
            (&format!("proc/irq/{}/effective_affinity_list", 40 + number), &number.to_string()),
            (
                &format!("sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor"),
                "performance\n",
            ),
            (&format!("{state}/name"), "C1\n"),
            (&format!("{state}/latency"), "2\n"),
            (&format!("{state}/disable"), "0\n"),
        ]);
    }
    for sysctl in advised::SYSCTLS {
        machine = machine.with(&[(&sysctl.file(), sysctl.value)]);
    }
    machine
}

fn report(machine: &Machine, uring: Result<Tier, Unavailable>) -> DoctorReport {
    DoctorReport::of(&Host::read(&machine.tree(), None, uring))
}

/// Returns the findings that do not pass on `machine`.
fn complaints(machine: Machine) -> Vec<Finding> {
    let report = report(&machine, Ok(Tier::TaskRun));
    report.findings.into_iter().filter(|finding| finding.verdict != FindingLevel::Pass).collect()
}

/// Returns the only complaint: its severity, its check, and its remedy.
fn complaint(machine: Machine) -> (FindingLevel, String, String) {
    let mut complaints = complaints(machine);
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    let finding = complaints.remove(0);
    (finding.verdict, finding.check, finding.mend.unwrap())
}

fn advised(check: &str, mend: &str) -> (FindingLevel, String, String) {
    (FindingLevel::Advise, check.to_owned(), mend.to_owned())
}

#[test]
fn a_sound_host_passes_everything() {
    assert_eq!(complaints(sound()), []);
    assert_eq!(report(&sound(), Ok(Tier::TaskRun)).exit_status(), 0);
}

#[test]
fn an_empty_tree_gives_no_complaint_that_nothing_supports() {
    let nothing = tempfile::tempdir().unwrap();
    let host = Host::read(&Tree::at(nothing.path()), None, Ok(Tier::TaskRun));
    assert_eq!(
        DoctorReport::of(&host).verdict,
        FindingLevel::Pass,
        "{}",
        DoctorReport::of(&host).table()
    );
}

#[test]
fn an_old_kernel_warns_and_one_without_what_is_needed_fails() {
    let kernel = |release| complaint(sound().with(&[("proc/sys/kernel/osrelease", release)]));
    assert_eq!(
        (kernel("5.15.0-91-generic").0, kernel("5.15.0").1.as_str()),
        (FindingLevel::Warn, "kernel")
    );
    assert_eq!(kernel("6.0").0, FindingLevel::Warn);
    assert_eq!(kernel("5.10.0-28-amd64").0, FindingLevel::Fail);
    assert_eq!(complaints(sound().with(&[("proc/sys/kernel/osrelease", "10.0.1")])), []);
}

#[test]
fn a_host_without_io_uring_fails_with_cause_and_remedy() {
    let report = report(&sound(), Err(Unavailable::Disabled { setting: 2 }));
    assert_eq!(report.exit_status(), 2);
    let finding = report.findings.iter().find(|finding| finding.check == "io_uring").unwrap();
    assert!(finding.now.contains("kernel.io_uring_disabled = 2"), "{finding:?}");
    assert!(finding.mend.as_deref().unwrap().contains("sysctl -w kernel.io_uring_disabled=0"));
}

#[test]
fn a_lower_tier_warns() {
    assert_eq!(report(&sound(), Ok(Tier::Rings)).exit_status(), 1);
}

#[test]
fn a_filter_is_blamed_only_where_io_uring_does_not_work() {
    let filtered =
        || sound().with(&[("proc/self/status", "Seccomp:\t2\nCpus_allowed_list:\t0-3\n")]);
    assert_eq!(complaints(filtered()), []);
    let report = report(&filtered(), Err(Unavailable::Blocked));
    let failed = report.findings.iter().filter(|finding| finding.verdict == FindingLevel::Fail);
    let checks: Vec<&str> = failed.map(|finding| finding.check.as_str()).collect();
    assert_eq!(checks, ["io_uring", "seccomp filter"]);
}

#[test]
fn locked_memory_must_do_for_all_shards_and_should_for_a_restart() {
    let with = |bytes: u64, status: &str| {
        let limits = LIMITS.replace("8388608", &bytes.to_string());
        sound().with(&[("proc/self/limits", &limits), ("proc/self/status", status)])
    };
    let user = "CapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n";
    let shards = 4 * 560 * 1024;
    assert_eq!(complaint(with(shards - 1, user)).0, FindingLevel::Fail);
    assert_eq!(complaint(with(2 * shards - 1, user)).0, FindingLevel::Warn);
    assert_eq!(complaints(with(2 * shards, user)), []);
    // A process with CAP_IPC_LOCK is not limited.
    let root = "CapEff:\t0000000000004000\nCpus_allowed_list:\t0-3\n";
    assert_eq!(complaints(with(0, root)), []);
}

#[test]
fn the_hard_limit_of_open_files_counts() {
    let with = |hard: &str| sound().with(&[("proc/self/limits", &LIMITS.replace("1048576", hard))]);
    assert_eq!(complaint(with("4096 ")).0, FindingLevel::Warn);
    assert_eq!(complaint(with("512 ")).0, FindingLevel::Fail);
    assert_eq!(complaints(with("unlimited ")), []);
}

#[test]
fn other_work_is_a_tip_for_shards_are_not_pinned_then() {
    let (verdict, check, _) = complaint(sound().with(&[("proc/loadavg", "3.0 3.0 3.0 9/99 9")]));
    assert_eq!((verdict, check.as_str()), (FindingLevel::Advise, "other work"));
}

#[test]
fn a_quota_warns_and_names_as_many_cpus_as_it_pays_for() {
    let (verdict, check, mend) = complaint(sound().quota_v1("/a", 250_000));
    assert_eq!((verdict, check.as_str()), (FindingLevel::Warn, "CPU quota"));
    assert!(mend.contains("--cpuset-cpus 0-1;"), "{mend}");
}

#[test]
fn isolated_cpus_that_the_broker_does_not_get_are_a_waste() {
    let isolated = ("sys/devices/system/cpu/isolated", "2-3");
    let mend = "taskset -c 2-3 shardcast --shards auto; in the unit CPUAffinity=2-3";
    let wasted = sound().allowed("0-1").with(&[isolated]);
    assert_eq!(complaint(wasted), advised("isolated CPUs", mend));
    assert_eq!(complaints(sound().allowed("2-3").with(&[isolated])), []);
}

#[test]
fn half_a_core_is_a_tip() {
    let half = Machine::new(1, 2, 2).allowed("0-1,2");
    let complaints = complaints(half);
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].now.contains("CPUs 3 share cores"), "{complaints:#?}");
    assert!(complaints[0].mend.as_deref().unwrap().contains("--cpuset-cpus 0-3;"));
    assert_eq!(self::complaints(Machine::new(1, 2, 2)), []);
    assert_eq!(self::complaints(Machine::new(1, 2, 2).allowed("1,3")), []);
}

#[test]
fn two_nodes_are_a_tip_and_so_is_a_card_on_another_one() {
    let sockets = || {
        let balancing = ("proc/sys/kernel/numa_balancing", "0");
        let route = ("proc/net/route", "eth0 00000000\n");
        let card = ("sys/class/net/eth0/ifindex", "2");
        let node = ("sys/class/net/eth0/device/numa_node", "1\n");
        Machine::new(2, 2, 1).with(&[balancing, route, card, node])
    };
    let mend = "numactl --cpunodebind=1 --membind=1 shardcast --shards auto";
    assert_eq!(complaint(sockets()), advised("NUMA nodes", mend));
    assert_eq!(complaint(sockets().allowed("0-1")), advised("NUMA nodes", mend));
    assert_eq!(complaints(sockets().allowed("2-3")), []);
    // Memory is moved between nodes only where there are several.
    let balancing = ("proc/sys/kernel/numa_balancing", "1");
    assert_eq!(complaints(sockets().with(&[balancing])).len(), 2);
    assert_eq!(complaints(sound().with(&[balancing])), []);
}

#[test]
fn governor_idle_states_and_huge_pages_are_tips() {
    let governor = ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave");
    let mend = "cpupower frequency-set -g performance";
    assert_eq!(complaint(sound().with(&[governor])), advised("CPU governor", mend));
    assert_eq!(complaints(sound().with(&[governor]).allowed("0-2")), []);

    let deep = |disable| {
        let state = |file| format!("sys/devices/system/cpu/cpu2/cpuidle/state2/{file}");
        sound().with(&[
            (&state("name"), "C6"),
            (&state("latency"), "133"),
            (&state("disable"), disable),
        ])
    };
    assert_eq!(complaint(deep("0")), advised("C-states", "cpupower idle-set -D 20"));
    assert_eq!(complaints(deep("1")), []);

    let pages = ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never");
    let mend = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
    assert_eq!(complaint(sound().with(&[pages])), advised("transparent huge pages", mend));
}

#[test]
fn a_card_whose_packets_all_come_to_one_core_is_a_tip() {
    let irq = |number: usize| format!("proc/irq/{number}/effective_affinity_list");
    let one = (41..44).fold(sound(), |machine, number| machine.with(&[(&irq(number), "0")]));
    assert_eq!(complaint(one), advised("eth0: interrupts", "tuning/nic-queues eth0"));
    let (_, check, mend) = complaint(sound().with(&[("proc/77/comm", "irqbalance\n")]));
    assert_eq!(check, "eth0: interrupts");
    assert!(mend.starts_with("systemctl disable --now irqbalance"), "{mend}");
}

#[test]
fn a_single_queue_should_be_spread_and_several_should_be_chosen() {
    let card = || {
        Machine::new(1, 4, 1).with(&[
            ("proc/net/route", "ens3 00000000\n"),
            ("sys/class/net/ens3/ifindex", "2"),
            ("sys/class/net/ens3/queues/rx-0/rps_cpus", "0"),
            ("sys/class/net/ens3/queues/tx-0/xps_cpus", "0"),
        ])
    };
    let mend = "tuning/nic-queues ens3";
    assert_eq!(complaint(card()), advised("ens3: receiving", mend));
    let spread =
        || card().with(&[("sys/class/net/ens3/queues/rx-0/rps_cpus", "00000000,0000000f")]);
    assert_eq!(complaint(spread()), advised("ens3: receiving", mend));
    let steered = || spread().with(&[("sys/class/net/ens3/queues/rx-0/rps_flow_cnt", "32768")]);
    assert_eq!(complaints(steered()), []);
    let two = steered().with(&[("sys/class/net/ens3/queues/tx-1/xps_cpus", "0")]);
    assert_eq!(complaint(two), advised("ens3: sending", mend));
}

#[test]
fn every_advised_setting_is_compared_and_mended_by_one_command() {
    for sysctl in advised::SYSCTLS {
        let swap = ("proc/swaps", "Filename\n/dev/sdb1 partition 1 0 -2\n");
        let nodes = ("sys/devices/system/node/node1/cpulist", "4");
        let machine = sound().with(&[swap, nodes, (&sysctl.file(), "7 7 7")]);
        let complaint =
            complaints(machine).into_iter().find(|finding| finding.check == sysctl.name);
        // With a second node without CPUs memory stays where it is.
        let expected = sysctl.matters != advised::Matters::WithNodes;
        assert_eq!(complaint.is_some(), expected, "{}", sysctl.name);
        let Some(complaint) = complaint else { continue };
        let words = format!("{}={}", sysctl.name, sysctl.value);
        assert!(complaint.mend.as_deref().unwrap().contains(&words), "{complaint:?}");
    }
    assert_eq!(complaints(sound().with(&[("proc/sys/vm/swappiness", "60")])), []);
    let grouped = sound().with(&[("proc/sys/kernel/io_uring_disabled", "1")]);
    assert_eq!(complaints(grouped), [], "whoever has io_uring by its group needs no more");
}

#[test]
fn the_table_has_a_line_for_each_finding_and_two_more_for_what_is_to_be_mended() {
    let pages = ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never");
    let report = report(&sound().with(&[pages]), Ok(Tier::TaskRun));
    let table = report.table();
    let of = |word: &str| table.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!((of("pass "), of("tip "), of("FAIL ")), (report.findings.len() - 1, 1, 0));
    assert_eq!(report.exit_status(), 0, "advice is no warning");
    assert_eq!(table.lines().filter(|line| line.trim_start().starts_with("mend: ")).count(), 1);
    assert!(table.contains("tip   transparent huge pages"), "{table}");
    assert!(
        table.ends_with("1 tips, 0 warn, 0 fail. Each knob is explained in tuning/README.md.\n")
    );
}
