//! From what the host is like to what to think of it.

use super::Finding;
use super::advised::{Matters, Rule, SYSCTLS, Sysctl};
use super::snapshot::{Card, Host};
use crate::host::CpuSet;
use crate::host::Tier;

/// What the queues of one shard count as locked memory (seen on Linux 6.18).
const LOCKED_BYTES_PER_SHARD: u64 = 560 * 1024;
/// Below this a limit of open files is fit for trials only.
const OPEN_FILES_MIN: u64 = 1024;
/// Below this a limit of open files deserves a warning.
const OPEN_FILES_USUAL: u64 = 65_536;
/// Idle states that take this long to leave are seen in the latency of messages.
const IDLE_EXIT_US_MAX: u64 = 20;

/// Judges everything, what can stop the broker first.
pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let mut findings = vec![
        kernel(host),
        uring(host),
        seccomp(host),
        locked_memory(host),
        open_files(host),
        quota(host),
        isolated(host),
        hyperthreads(host),
        nodes(host),
        governor(host),
        idle_states(host),
        huge_pages(host),
    ];
    match &host.card {
        Some(card) => {
            findings.extend([interrupts(host, card), receiving(host, card), sending(card)]);
        }
        None => findings.push(
            Finding::new("network card", "no card has the default route")
                .pass("name the one that clients come through: shardcast doctor INTERFACE"),
        ),
    }
    findings.extend(SYSCTLS.iter().map(|sysctl| setting(host, sysctl)));
    findings
}

fn kernel(host: &Host) -> Finding {
    let finding = Finding::new("kernel", &host.release);
    let mut numbers = host.release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    let wanted = "6.1 or later";
    match (number(), number()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 11) => finding.fail(
            wanted,
            "the broker does not start: io_uring lacks what it needs",
            "install Linux 6.1 or later (Debian 12, Ubuntu 24.04, RHEL 10 have it)",
        ),
        (Some(major), Some(minor)) if (major, minor) < (6, 1) => finding.warn(
            wanted,
            "more system calls and wake-ups for each message",
            "install Linux 6.1 or later (Debian 12, Ubuntu 24.04, RHEL 10 have it)",
        ),
        _ => finding.pass(wanted),
    }
}

fn uring(host: &Host) -> Finding {
    let wanted = "tier taskrun";
    match &host.uring {
        Ok(Tier::TaskRun) => Finding::new("io_uring", "tier taskrun").pass(wanted),
        Ok(tier) => Finding::new("io_uring", format!("tier {tier}")).warn(
            wanted,
            "more system calls and wake-ups for each message",
            "install Linux 6.1 or later; shardcast --uring-tier taskrun says what is missing",
        ),
        Err(cause) => Finding::new("io_uring", cause.cause()).fail(
            wanted,
            "the broker does not start",
            cause.remedy(),
        ),
    }
}

fn seccomp(host: &Host) -> Finding {
    let wanted = "none, or one that allows io_uring";
    match (host.is_filtered, &host.uring) {
        (false, _) => Finding::new("seccomp filter", "none").pass(wanted),
        (true, Ok(_)) => Finding::new("seccomp filter", "one that allows io_uring").pass(wanted),
        (true, Err(_)) => Finding::new("seccomp filter", "one, and io_uring does not work").fail(
            wanted,
            "the broker does not start if the filter is what forbids io_uring",
            "docker run --security-opt seccomp=tuning/seccomp.json …",
        ),
    }
}

fn locked_memory(host: &Host) -> Finding {
    let shards = host.placement.shards() as u64;
    let needed = shards * LOCKED_BYTES_PER_SHARD;
    let mend = "LimitMEMLOCK=infinity in the unit, docker run --ulimit memlock=-1, or ulimit -l \
                unlimited";
    // Twice: the kernel gives the memory of a process that has ended back a moment late.
    let wanted = format!("{} KiB for {shards} shards", 2 * needed / 1024);
    match host.locked_bytes_max {
        Some(u64::MAX) => Finding::new("locked memory", "not limited for this user").pass(wanted),
        None => Finding::new("locked memory", "not to be seen").pass(wanted),
        Some(bytes) => {
            let finding = Finding::new("locked memory", format!("{} KiB", bytes / 1024));
            if bytes < needed {
                finding.fail(wanted, "not all shards can start", mend)
            } else if bytes < 2 * needed {
                finding.warn(wanted, "a quick restart can fail", mend)
            } else {
                finding.pass(wanted)
            }
        }
    }
}

fn open_files(host: &Host) -> Finding {
    let wanted = format!("{OPEN_FILES_USUAL} or more");
    let mend = "LimitNOFILE=1048576 in the unit, docker run --ulimit nofile=1048576, or, as root, \
                ulimit -n 1048576";
    match host.open_files_max {
        None => Finding::new("open files", "not to be seen").pass(wanted),
        Some(u64::MAX) => Finding::new("open files", "unlimited").pass(wanted),
        Some(files) => {
            let finding = Finding::new("open files", files.to_string());
            let costs = format!("fewer than {files} connections; further ones wait");
            if files < OPEN_FILES_MIN {
                finding.fail(wanted, costs, mend)
            } else if files < OPEN_FILES_USUAL {
                finding.warn(wanted, costs, mend)
            } else {
                finding.pass(wanted)
            }
        }
    }
}

fn quota(host: &Host) -> Finding {
    let wanted = "none";
    let Some(quota) = host.topology.quota else {
        return Finding::new("CPU quota", "none").pass(wanted);
    };
    let allowed = host.topology.allowed();
    let whole = quota.whole_cpus().max(1);
    let cpus: CpuSet = allowed.iter().take(whole).collect();
    Finding::new("CPU quota", format!("{quota} CPUs, of {} allowed", allowed.len())).warn(
        wanted,
        format!(
            "once it is used up all shards stand still, for up to {} ms; below the number of \
             CPUs they are not pinned either",
            quota.period_us / 1000
        ),
        format!(
            "give CPUs instead of a quota: docker run --cpuset-cpus {cpus}; in the unit \
             CPUAffinity={cpus} and no CPUQuota="
        ),
    )
}

fn isolated(host: &Host) -> Finding {
    let wanted = "none, or those of the shards";
    let isolated = &host.topology.isolated;
    if isolated.is_empty() {
        return Finding::new("isolated CPUs", "none").pass(wanted);
    }
    let finding = Finding::new("isolated CPUs", isolated.to_string());
    let used = isolated.and(&host.topology.allowed());
    if used.is_empty() {
        finding.warn(
            wanted,
            "they are kept free, and not for the broker",
            format!(
                "taskset -c {isolated} shardcast --shards auto; in the unit CPUAffinity={isolated}"
            ),
        )
    } else {
        finding.pass(wanted)
    }
}

fn hyperthreads(host: &Host) -> Finding {
    let wanted = "whole cores";
    let allowed = host.topology.allowed();
    let siblings = || host.topology.cpus.iter().flat_map(|cpu| cpu.siblings.iter());
    let strangers = siblings().collect::<CpuSet>().without(&allowed);
    let strangers = strangers.and(&host.topology.online);
    let several = host.topology.cpus.iter().any(|cpu| cpu.siblings.len() > 1);
    if !several {
        return Finding::new("SMT", "one thread per core").pass(wanted);
    }
    if strangers.is_empty() {
        let now = "several threads per core; auto takes one of each";
        return Finding::new("SMT", now).pass(wanted);
    }
    let whole: CpuSet = siblings().collect();
    let now = format!("CPUs {strangers} are of the shards' cores, and not for the broker");
    Finding::new("SMT", now).warn(
        wanted,
        "whatever runs there takes caches and computing time from the shards",
        format!("docker run --cpuset-cpus {whole}; in the unit CPUAffinity={whole}"),
    )
}

fn nodes(host: &Host) -> Finding {
    let wanted = "one, that of the network card";
    let card = host.card.as_ref().and_then(|card| card.node);
    let nodes = host.topology.nodes();
    let list: Vec<String> = nodes.iter().map(usize::to_string).collect();
    let now = match card {
        Some(node) => format!("cores on {}, network card on {node}", list.join(", ")),
        None => format!("cores on {}", list.join(", ")),
    };
    let finding = Finding::new("NUMA nodes", now);
    let best = card.or_else(|| nodes.first().copied()).unwrap_or(0);
    let mend = format!("numactl --cpunodebind={best} --membind={best} shardcast --shards auto");
    if nodes.len() > 1 {
        finding.warn(wanted, "messages between shards cross the sockets' link", mend)
    } else if card.is_some_and(|node| !nodes.is_empty() && !nodes.contains(&node)) {
        finding.warn(wanted, "every packet crosses the sockets' link", mend)
    } else {
        finding.pass(wanted)
    }
}

fn governor(host: &Host) -> Finding {
    let wanted = "performance";
    let all: Vec<String> =
        host.governors.iter().map(|(name, cpus)| format!("{name} on {cpus}")).collect();
    if all.is_empty() {
        return Finding::new("CPU governor", "no frequency control to be seen").pass(wanted);
    }
    let finding = Finding::new("CPU governor", all.join(", "));
    if host.governors.keys().all(|name| name == wanted) {
        finding.pass(wanted)
    } else {
        finding.warn(
            wanted,
            "a core that slept clocks down, and the next messages pay for it",
            "cpupower frequency-set -g performance",
        )
    }
}

fn idle_states(host: &Host) -> Finding {
    let wanted = format!("left in less than {IDLE_EXIT_US_MAX} µs");
    let Some((name, latency_us)) = &host.deepest_idle else {
        return Finding::new("C-states", "none to be seen").pass(wanted);
    };
    let finding = Finding::new("C-states", format!("down to {name}, left in {latency_us} µs"));
    if *latency_us < IDLE_EXIT_US_MAX {
        finding.pass(wanted)
    } else {
        finding.warn(
            wanted,
            format!("up to {latency_us} µs for the first message after a pause; power otherwise"),
            format!("cpupower idle-set -D {IDLE_EXIT_US_MAX}"),
        )
    }
}

fn huge_pages(host: &Host) -> Finding {
    let wanted = "madvise or never";
    match host.huge_pages.as_deref() {
        Some("always") => Finding::new("transparent huge pages", "always").warn(
            wanted,
            "the kernel compacts memory at moments of its choosing, seen as latency",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(choice) => Finding::new("transparent huge pages", choice).pass(wanted),
        None => Finding::new("transparent huge pages", "not there").pass(wanted),
    }
}

fn interrupts(host: &Host, card: &Card) -> Finding {
    let check = format!("{}: interrupts", card.name);
    let wanted = "spread over CPUs, without irqbalance";
    let cpus = &card.interrupts;
    if host.has_irqbalance {
        return Finding::new(check, "irqbalance runs").warn(
            wanted,
            "interrupts are moved to the cores of busy shards",
            format!("systemctl disable --now irqbalance && tuning/nic-queues {}", card.name),
        );
    }
    if cpus.is_empty() {
        return Finding::new(check, "none to be seen").pass(wanted);
    }
    let finding = Finding::new(check, format!("to CPUs {cpus}"));
    if cpus.len() == 1 && card.receive_queues > 1 && host.topology.online.len() > 1 {
        finding.warn(
            wanted,
            "all packets are worked off on one core, and its shard is slow",
            format!("tuning/nic-queues {}", card.name),
        )
    } else {
        finding.pass(wanted)
    }
}

fn receiving(host: &Host, card: &Card) -> Finding {
    let wanted = "several queues, or one with RPS and RFS";
    let queues = card.receive_queues;
    let spread = match (card.spread_queues, card.steered_queues) {
        (0, _) => "RPS off",
        (_, 0) => "RPS on, RFS off",
        _ => "RPS and RFS on",
    };
    let finding = Finding::new(
        format!("{}: receiving", card.name),
        format!("{queues} {}, {spread}", if queues == 1 { "queue" } else { "queues" }),
    );
    let costs = match (card.spread_queues, card.steered_queues) {
        _ if queues != 1 || host.topology.online.len() == 1 => return finding.pass(wanted),
        (0, _) => "all packets are worked off on one core, and its shard is slow",
        (_, 0) => "packets are worked off on another core than that of their shard",
        _ => return finding.pass(wanted),
    };
    finding.warn(wanted, costs, format!("tuning/nic-queues {}", card.name))
}

fn sending(card: &Card) -> Finding {
    let wanted = "one queue, or XPS";
    let (queues, chosen) = (card.send_queues, card.chosen_queues);
    let finding = Finding::new(
        format!("{}: sending", card.name),
        format!(
            "{queues} {}, XPS {}",
            if queues == 1 { "queue" } else { "queues" },
            if chosen > 0 { "on" } else { "off" }
        ),
    );
    if queues > 1 && chosen == 0 {
        finding.warn(
            wanted,
            "cores wait for each other's locks when they send",
            format!("tuning/nic-queues {}", card.name),
        )
    } else {
        finding.pass(wanted)
    }
}

fn setting(host: &Host, sysctl: &Sysctl) -> Finding {
    let matters = match sysctl.matters {
        Matters::Always => true,
        Matters::WithNodes => host.topology.nodes().len() > 1,
        Matters::WithSwap => host.has_swap,
    };
    let wanted = match sysctl.rule {
        Rule::Equal => sysctl.value.to_owned(),
        Rule::AtLeast => format!("{} or more", sysctl.value),
        Rule::LastAtLeast => format!("{}, the last of them or more", sysctl.value),
    };
    let Some(now) = host.sysctls.get(sysctl.name) else {
        return Finding::new(sysctl.name, "not there").pass(wanted);
    };
    let now = now.split_whitespace().collect::<Vec<_>>().join(" ");
    let holds = sysctl.holds(&now);
    let finding = Finding::new(sysctl.name, now);
    if holds || !matters {
        return finding.pass(wanted);
    }
    let quote = if sysctl.value.contains(' ') { "'" } else { "" };
    let mend = format!("sysctl -w {quote}{}={}{quote}", sysctl.name, sysctl.value);
    finding.warn(wanted, sysctl.costs, mend)
}
