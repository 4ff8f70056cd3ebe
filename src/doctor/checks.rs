//! Checks: from the state of the host to findings.

use super::Finding;
use super::advised::{AdvisedRule, Matters, SYSCTLS, Sysctl};
use super::fix::FixStep;
use super::snapshot::{Card, Host};
use crate::host::CpuSet;
use crate::host::Tier;

/// Locked memory that the queues of one shard count as, in bytes (seen on Linux 6.18).
const LOCKED_BYTES_PER_SHARD: u64 = 560 * 1024;
/// The smallest limit of open files that is fit for more than trials.
const OPEN_FILES_MIN: u64 = 1024;
/// The smallest limit of open files without a warning.
const OPEN_FILES_USUAL: u64 = 65_536;
/// The longest time to leave an idle state, in microseconds, that does not add to latency.
const IDLE_EXIT_US_MAX: u64 = 20;

/// Judges the host; findings that can stop the broker come first.
pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let mut findings = vec![
        kernel(host),
        uring(host),
        seccomp(host),
        locked_memory(host),
        open_files(host),
        quota(host),
        company(host),
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
                .pass("name the network card of the clients: shardcast doctor INTERFACE"),
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
            "the broker does not start: io_uring lacks required operations",
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
            "install Linux 6.1 or later; shardcast --uring-tier taskrun names the missing \
             operation",
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
        (true, Err(_)) => Finding::new("seccomp filter", "active, and io_uring does not work")
            .fail(
                wanted,
                "the broker does not start if this filter forbids io_uring",
                "docker run --security-opt seccomp=tuning/seccomp.json …",
            ),
    }
}

fn locked_memory(host: &Host) -> Finding {
    let shards = host.placement.shards() as u64;
    let needed = shards * LOCKED_BYTES_PER_SHARD;
    let mend = "LimitMEMLOCK=infinity in the unit, docker run --ulimit memlock=-1, or ulimit -l \
                unlimited";
    // Twice the need, because the kernel frees the memory of an ended process with a delay.
    let wanted = format!("{} KiB for {shards} shards", 2 * needed / 1024);
    match host.locked_bytes_max {
        Some(u64::MAX) => Finding::new("locked memory", "not limited for this user").pass(wanted),
        None => Finding::new("locked memory", "unknown").pass(wanted),
        Some(bytes) => {
            let finding = Finding::new("locked memory", format!("{} KiB", bytes / 1024));
            if bytes < needed {
                finding.fail(wanted, "not all shards can start", mend).fixed_by(FixStep::Limits)
            } else if bytes < 2 * needed {
                let finding = finding.warn(wanted, "a quick restart can fail", mend);
                finding.fixed_by(FixStep::Limits)
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
        None => Finding::new("open files", "unknown").pass(wanted),
        Some(u64::MAX) => Finding::new("open files", "unlimited").pass(wanted),
        Some(files) => {
            let finding = Finding::new("open files", files.to_string());
            let costs = format!("fewer than {files} connections; further ones wait");
            if files < OPEN_FILES_MIN {
                finding.fail(wanted, costs, mend).fixed_by(FixStep::Limits)
            } else if files < OPEN_FILES_USUAL {
                finding.warn(wanted, costs, mend).fixed_by(FixStep::Limits)
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
            "all shards pause for up to {} ms when it is used up; with a quota below the number of \
             CPUs they are not pinned",
            quota.period_us / 1000
        ),
        format!(
            "give CPUs instead of a quota: docker run --cpuset-cpus {cpus}; in the unit \
             CPUAffinity={cpus} and no CPUQuota="
        ),
    )
}

fn company(host: &Host) -> Finding {
    let wanted = "none that lasts";
    match host.topology.company {
        None => Finding::new("other work", wanted).pass(wanted),
        Some(company) => Finding::new("other work", company.to_string()).advise(
            wanted,
            "it delays the shards; auto does not pin them, so that they can leave its cores",
            "give the broker CPUs of its own (docker run --cpuset-cpus, CPUAffinity= in the unit \
             and that of the others); --shards N pins in any case",
        ),
    }
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
        finding.advise(
            wanted,
            "isolated, but not assigned to the broker",
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
    let now =
        format!("CPUs {strangers} share cores with shards, but are not assigned to the broker");
    Finding::new("SMT", now).advise(
        wanted,
        "other processes on them take caches and CPU time from the shards",
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
        finding.advise(wanted, "messages between shards cross the sockets' link", mend)
    } else if card.is_some_and(|node| !nodes.is_empty() && !nodes.contains(&node)) {
        finding.advise(wanted, "every packet crosses the sockets' link", mend)
    } else {
        finding.pass(wanted)
    }
}

fn governor(host: &Host) -> Finding {
    let wanted = "performance";
    let all: Vec<String> =
        host.governors.iter().map(|(name, cpus)| format!("{name} on {cpus}")).collect();
    if all.is_empty() {
        return Finding::new("CPU governor", "no frequency control found").pass(wanted);
    }
    let finding = Finding::new("CPU governor", all.join(", "));
    if host.governors.keys().all(|name| name == wanted) {
        finding.pass(wanted)
    } else {
        finding.advise(
            wanted,
            "idle cores clock down; the next messages take longer",
            "cpupower frequency-set -g performance",
        )
    }
}

fn idle_states(host: &Host) -> Finding {
    let wanted = format!("left in less than {IDLE_EXIT_US_MAX} µs");
    let Some((name, latency_us)) = &host.deepest_idle else {
        return Finding::new("C-states", "none found").pass(wanted);
    };
    let finding = Finding::new("C-states", format!("down to {name}, left in {latency_us} µs"));
    if *latency_us < IDLE_EXIT_US_MAX {
        finding.pass(wanted)
    } else {
        finding.advise(
            wanted,
            format!("up to {latency_us} µs for the first message after a pause; power otherwise"),
            format!("cpupower idle-set -D {IDLE_EXIT_US_MAX}"),
        )
    }
}

fn huge_pages(host: &Host) -> Finding {
    let wanted = "madvise or never";
    match host.huge_pages.as_deref() {
        Some("always") => Finding::new("transparent huge pages", "always").advise(
            wanted,
            "the kernel compacts memory at unpredictable times, which adds latency",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(choice) => Finding::new("transparent huge pages", choice).pass(wanted),
        None => Finding::new("transparent huge pages", "not available").pass(wanted),
    }
}

fn interrupts(host: &Host, card: &Card) -> Finding {
    let check = format!("{}: interrupts", card.name);
    let wanted = "spread over CPUs, without irqbalance";
    let cpus = &card.interrupts;
    if host.has_irqbalance {
        return Finding::new(check, "irqbalance runs").advise(
            wanted,
            "interrupts are moved to the cores of busy shards",
            format!("systemctl disable --now irqbalance && tuning/nic-queues {}", card.name),
        );
    }
    if cpus.is_empty() {
        return Finding::new(check, "none found").pass(wanted);
    }
    let finding = Finding::new(check, format!("to CPUs {cpus}"));
    if cpus.len() == 1 && card.receive_queues > 1 && host.topology.online.len() > 1 {
        finding.advise(
            wanted,
            "one core processes all packets, and its shard is slow",
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
        (0, _) => "one core processes all packets, and its shard is slow",
        (_, 0) => "packets are processed on another core than their shard",
        _ => return finding.pass(wanted),
    };
    finding.advise(wanted, costs, format!("tuning/nic-queues {}", card.name))
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
        finding.advise(
            wanted,
            "cores contend for one lock when they send",
            format!("tuning/nic-queues {}", card.name),
        )
    } else {
        finding.pass(wanted)
    }
}

fn setting(host: &Host, sysctl: &'static Sysctl) -> Finding {
    let matters = match sysctl.matters {
        Matters::Always => true,
        Matters::WithNodes => host.topology.nodes().len() > 1,
        Matters::WithSwap => host.has_swap,
    };
    let wanted = match sysctl.rule {
        AdvisedRule::Equal => sysctl.value.to_owned(),
        AdvisedRule::AtLeast => format!("{} or more", sysctl.value),
        AdvisedRule::LastAtLeast => format!("{}, the last of them or more", sysctl.value),
    };
    let Some(now) = host.sysctls.get(sysctl.name) else {
        return Finding::new(sysctl.name, "not available").pass(wanted);
    };
    let now = now.split_whitespace().collect::<Vec<_>>().join(" ");
    // Whoever has io_uring by its group needs no wider permission.
    let by_group = sysctl.name == "kernel.io_uring_disabled" && now == "1" && host.uring.is_ok();
    let holds = sysctl.holds(&now) || by_group;
    let finding = Finding::new(sysctl.name, now);
    if holds || !matters {
        return finding.pass(wanted);
    }
    let quote = if sysctl.value.contains(' ') { "'" } else { "" };
    let mend = format!("sysctl -w {quote}{}={}{quote}", sysctl.name, sysctl.value);
    finding.advise(wanted, sysctl.costs, mend).fixed_by(FixStep::Setting(sysctl))
}
