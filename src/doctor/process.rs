//! A running broker as the kernel sees it: open files, memory, and the cores of its shards.

use std::collections::BTreeMap;

use super::Finding;
use super::snapshot::limit;
use crate::host::{CpuSet, Tree};

/// The share of the limit of open files from which on there is a warning, in hundredths.
const OPEN_FILES_PERCENT_MAX: u64 = 80;

/// Judges the process that `proc/self` of `tree` is.
pub(super) fn findings(tree: &Tree) -> Vec<Finding> {
    vec![open_files(tree), memory(tree), shards(tree)]
}

fn open_files(tree: &Tree) -> Finding {
    let open = tree.names("proc/self/fd", "").len() as u64;
    let wanted = format!("below {OPEN_FILES_PERCENT_MAX} % of the limit");
    match limit(tree, "Max open files", 0) {
        _ if open == 0 => Finding::new("its open files", "not visible to this user").pass(wanted),
        Some(max) if max < u64::MAX => {
            let finding = Finding::new("its open files", format!("{open} of {max}"));
            if open * 100 < max * OPEN_FILES_PERCENT_MAX {
                return finding.pass(wanted);
            }
            let mend = "LimitNOFILE=1048576 in the unit, and a restart";
            finding.warn(wanted, format!("{} more connections at most", max - open.min(max)), mend)
        }
        _ => Finding::new("its open files", open.to_string()).pass(wanted),
    }
}

fn memory(tree: &Tree) -> Finding {
    let kib = |key| {
        let text = tree.field("proc/self/status", key)?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    let wanted = "none of it swapped out";
    let (Some(resident), swapped) = (kib("VmRSS"), kib("VmSwap").unwrap_or(0)) else {
        return Finding::new("its memory", "unknown").pass(wanted);
    };
    let now = format!("{} MiB, {} MiB swapped out", resident / 1024, swapped / 1024);
    let finding = Finding::new("its memory", now);
    if swapped == 0 {
        finding.pass(wanted)
    } else {
        finding.warn(
            wanted,
            "the next use of that memory waits for the disk",
            "sysctl -w vm.swappiness=1, more memory, or a lower max_pending",
        )
    }
}

/// The shards' threads by the CPUs that they may use.
fn shards(tree: &Tree) -> Finding {
    let wanted = "a core of its own for each, or all cores for all";
    let mut by_cpus: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for thread in tree.names("proc/self/task", "") {
        let directory = format!("proc/self/task/{thread}");
        let name = tree.text(format!("{directory}/comm")).unwrap_or_default();
        let cpus = tree.field(format!("{directory}/status"), "Cpus_allowed_list");
        if let (true, Some(cpus)) = (name.starts_with("shard-"), cpus) {
            by_cpus.entry(cpus).or_default().push(name);
        }
    }
    if by_cpus.is_empty() {
        return Finding::new("its shards", "none seen; is it a shardcast?").pass(wanted);
    }
    let now: Vec<String> =
        by_cpus.iter().map(|(cpus, names)| format!("{} on CPU {cpus}", names.join(", "))).collect();
    let finding = Finding::new("its shards", now.join("; "));
    let is_one = |cpus: &str| cpus.parse::<CpuSet>().is_ok_and(|cpus| cpus.len() == 1);
    if by_cpus.iter().any(|(cpus, names)| names.len() > 1 && is_one(cpus)) {
        finding.warn(
            wanted,
            "shards wait for each other on one core",
            "give the broker more CPUs, or start it with fewer --shards",
        )
    } else {
        finding.pass(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::FindingLevel;
    use crate::host::machine::Machine;

    const LIMITS: &str = "Max open files            10                   20      files\n";

    fn broker(files: usize, swapped: &str, cpus: [&str; 2]) -> Vec<(FindingLevel, String)> {
        let status = format!("VmRSS:\t20480 kB\nVmSwap:\t{swapped} kB\n");
        let mut machine =
            Machine::new(1, 2, 1).with(&[("proc/42/limits", LIMITS), ("proc/42/status", &status)]);
        for (number, cpus) in cpus.iter().enumerate() {
            let directory = format!("proc/42/task/{}", 43 + number);
            machine = machine.with(&[
                (&format!("{directory}/comm"), &format!("shard-{number}\n")),
                (&format!("{directory}/status"), &format!("Cpus_allowed_list:\t{cpus}\n")),
            ]);
        }
        for number in 0..files {
            machine = machine.with(&[(&format!("proc/42/fd/{number}"), "")]);
        }
        let found = findings(&machine.tree().of_process(42));
        found.into_iter().map(|finding| (finding.verdict, finding.now)).collect()
    }

    #[test]
    fn a_sound_process_passes_and_is_described() {
        let wanted = ["3 of 10", "20 MiB, 0 MiB swapped out", "shard-0 on CPU 0; shard-1 on CPU 1"];
        let wanted = wanted.map(|now| (FindingLevel::Pass, now.to_owned()));
        assert_eq!(broker(3, "0", ["0", "1"]), wanted);
        assert!(
            broker(3, "0", ["0-1", "0-1"]).iter().all(|(level, _)| *level == FindingLevel::Pass)
        );
    }

    #[test]
    fn each_trouble_of_a_process_warns() {
        let found = broker(8, "2048", ["1", "1"]);
        assert!(found.iter().all(|(level, _)| *level == FindingLevel::Warn), "{found:?}");
        assert_eq!(found[2].1, "shard-0, shard-1 on CPU 1");
    }
}
