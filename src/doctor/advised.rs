//! Advised kernel settings: the same that `tuning/sysctl.d` installs.

/// The comparison by which a value is as good as the advised one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdvisedRule {
    /// The value is the advised one.
    Equal,
    /// The number is at least the advised one.
    AtLeast,
    /// The last of several numbers is at least the advised one; the others do not matter.
    LastAtLeast,
}

/// The hosts on which a setting matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matters {
    /// All hosts.
    Always,
    /// Hosts with more than one NUMA node.
    WithNodes,
    /// Hosts with swap space.
    WithSwap,
}

/// A kernel setting, and the cost of another value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sysctl {
    /// The setting's name, with dots.
    pub(super) name: &'static str,
    /// The advised value.
    pub(super) value: &'static str,
    /// The comparison of other values with the advised one.
    pub(super) rule: AdvisedRule,
    /// The hosts on which the setting matters.
    pub(super) matters: Matters,
    /// The cost of another value.
    pub(super) costs: &'static str,
}

impl Sysctl {
    /// Whether `now` is as good as the advised value; text is not as good as a number.
    pub(super) fn holds(&self, now: &str) -> bool {
        let last = |text: &str| text.split_whitespace().last().and_then(|n| n.parse::<u64>().ok());
        match self.rule {
            AdvisedRule::Equal => now == self.value,
            AdvisedRule::AtLeast | AdvisedRule::LastAtLeast => {
                last(now).is_some_and(|now| Some(now) >= last(self.value))
            }
        }
    }

    /// Returns the setting's file below `/proc/sys`, relative to the root.
    pub(super) fn file(&self) -> String {
        format!("proc/sys/{}", self.name.replace('.', "/"))
    }
}

/// All advised settings, in the order of `tuning/sysctl.d/90-shardcast.conf`.
pub(super) const SYSCTLS: &[Sysctl] = &[
    Sysctl {
        name: "net.core.somaxconn",
        value: "4096",
        rule: AdvisedRule::AtLeast,
        matters: Matters::Always,
        costs: "a burst of new connections is dropped; those clients retry after a second",
    },
    Sysctl {
        name: "net.ipv4.tcp_max_syn_backlog",
        value: "8192",
        rule: AdvisedRule::AtLeast,
        matters: Matters::Always,
        costs: "some clients of a mass reconnect retry after a second",
    },
    Sysctl {
        name: "net.ipv4.tcp_rmem",
        value: "4096 131072 33554432",
        rule: AdvisedRule::LastAtLeast,
        matters: Matters::Always,
        costs: "remote publishers cannot use the full bandwidth of a long line",
    },
    Sysctl {
        name: "net.ipv4.tcp_wmem",
        value: "4096 65536 33554432",
        rule: AdvisedRule::LastAtLeast,
        matters: Matters::Always,
        costs: "remote subscribers cannot use the full bandwidth of a long line; more, smaller \
                sends",
    },
    Sysctl {
        name: "net.ipv4.tcp_slow_start_after_idle",
        value: "0",
        rule: AdvisedRule::Equal,
        matters: Matters::Always,
        costs: "idle connections restart with a small congestion window",
    },
    Sysctl {
        name: "net.core.netdev_budget",
        value: "600",
        rule: AdvisedRule::AtLeast,
        matters: Matters::Always,
        costs: "none while the third column of /proc/net/softnet_stat does not grow; otherwise \
                packets wait for the next receive round",
    },
    Sysctl {
        name: "net.core.netdev_budget_usecs",
        value: "8000",
        rule: AdvisedRule::AtLeast,
        matters: Matters::Always,
        costs: "as with net.core.netdev_budget",
    },
    Sysctl {
        name: "net.core.netdev_max_backlog",
        value: "16384",
        rule: AdvisedRule::AtLeast,
        matters: Matters::Always,
        costs: "none while the second column of /proc/net/softnet_stat does not grow; otherwise \
                packets moved by RPS are dropped",
    },
    Sysctl {
        name: "kernel.io_uring_disabled",
        value: "0",
        rule: AdvisedRule::Equal,
        matters: Matters::Always,
        costs: "the broker does not start, unless its user is privileged or in the group \
                kernel.io_uring_group",
    },
    Sysctl {
        name: "kernel.numa_balancing",
        value: "0",
        rule: AdvisedRule::Equal,
        matters: Matters::WithNodes,
        costs: "the kernel scans for memory to migrate; shards and their memory never move",
    },
    Sysctl {
        name: "vm.swappiness",
        value: "1",
        rule: AdvisedRule::Equal,
        matters: Matters::WithSwap,
        costs: "broker memory may be swapped out; its next use waits for the disk",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sysctl_file_installs_exactly_what_is_advised() {
        let file = include_str!("../../tuning/sysctl.d/90-shardcast.conf");
        let installed: Vec<(&str, &str)> = file
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .map(|line| line.trim_start_matches('-').split_once('=').unwrap())
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let advised: Vec<_> = SYSCTLS.iter().map(|sysctl| (sysctl.name, sysctl.value)).collect();
        assert_eq!(installed, advised);
    }

    #[test]
    fn a_better_value_is_as_good() {
        let of = |name| SYSCTLS.iter().find(|sysctl| sysctl.name == name).unwrap();
        let somaxconn = of("net.core.somaxconn");
        assert!(somaxconn.holds("4096") && somaxconn.holds("65535"));
        assert!(!somaxconn.holds("128") && !somaxconn.holds("") && !somaxconn.holds("many"));
        let buffer = of("net.ipv4.tcp_rmem");
        assert!(buffer.holds("1\t2\t33554432") && !buffer.holds("4096\t131072\t6291456"));
        let swap = of("vm.swappiness");
        assert!(swap.holds("1") && !swap.holds("60"));
        for sysctl in SYSCTLS {
            assert!(sysctl.holds(sysctl.value), "{}", sysctl.name);
        }
    }
}
