//! The kernel settings that are advised: the same that `tuning/sysctl.d` installs.

/// What a value must be to be as good as the advised one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// That value.
    Equal,
    /// At least that number.
    AtLeast,
    /// Of several numbers the last at least; the others do not matter.
    LastAtLeast,
}

/// When a setting matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matters {
    /// On every host.
    Always,
    /// With more than one NUMA node.
    WithNodes,
    /// With swap space.
    WithSwap,
}

/// A kernel setting, and what another value costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sysctl {
    /// Its name, with dots.
    pub(super) name: &'static str,
    /// The advised value.
    pub(super) value: &'static str,
    /// Which other values are as good.
    pub(super) rule: Rule,
    /// When it matters.
    pub(super) matters: Matters,
    /// What it costs to have another value.
    pub(super) costs: &'static str,
}

impl Sysctl {
    /// Whether `now` is as good as the advised value. What is no number is not.
    pub(super) fn holds(&self, now: &str) -> bool {
        let last = |text: &str| text.split_whitespace().last().and_then(|n| n.parse::<u64>().ok());
        match self.rule {
            Rule::Equal => now == self.value,
            Rule::AtLeast | Rule::LastAtLeast => {
                last(now).is_some_and(|now| Some(now) >= last(self.value))
            }
        }
    }

    /// Below `/proc/sys`, relative to the root.
    pub(super) fn file(&self) -> String {
        format!("proc/sys/{}", self.name.replace('.', "/"))
    }
}

/// All of them, in the order of `tuning/sysctl.d/90-shardcast.conf`.
pub(super) const SYSCTLS: &[Sysctl] = &[
    Sysctl {
        name: "net.core.somaxconn",
        value: "4096",
        rule: Rule::AtLeast,
        matters: Matters::Always,
        costs: "clients that all connect at once are not heard, and try again after a second",
    },
    Sysctl {
        name: "net.ipv4.tcp_max_syn_backlog",
        value: "8192",
        rule: Rule::AtLeast,
        matters: Matters::Always,
        costs: "when all clients reconnect at once, some have to try again after a second",
    },
    Sysctl {
        name: "net.ipv4.tcp_rmem",
        value: "4096 131072 33554432",
        rule: Rule::LastAtLeast,
        matters: Matters::Always,
        costs: "a publisher far away sends less than its line could carry",
    },
    Sysctl {
        name: "net.ipv4.tcp_wmem",
        value: "4096 65536 33554432",
        rule: Rule::LastAtLeast,
        matters: Matters::Always,
        costs: "a subscriber far away gets less than its line could carry; more, smaller sends",
    },
    Sysctl {
        name: "net.ipv4.tcp_slow_start_after_idle",
        value: "0",
        rule: Rule::Equal,
        matters: Matters::Always,
        costs: "a connection that was quiet for a moment begins slowly again",
    },
    Sysctl {
        name: "net.core.netdev_budget",
        value: "600",
        rule: Rule::AtLeast,
        matters: Matters::Always,
        costs: "nothing while the third column of /proc/net/softnet_stat stands still; else \
                packets wait for the next round of receiving",
    },
    Sysctl {
        name: "net.core.netdev_budget_usecs",
        value: "8000",
        rule: Rule::AtLeast,
        matters: Matters::Always,
        costs: "as with net.core.netdev_budget",
    },
    Sysctl {
        name: "net.core.netdev_max_backlog",
        value: "16384",
        rule: Rule::AtLeast,
        matters: Matters::Always,
        costs: "nothing while the second column of /proc/net/softnet_stat stands still; else \
                packets that RPS moves to another core are dropped",
    },
    Sysctl {
        name: "kernel.io_uring_disabled",
        value: "0",
        rule: Rule::Equal,
        matters: Matters::Always,
        costs: "the broker does not start, unless its user is privileged or in the group \
                kernel.io_uring_group",
    },
    Sysctl {
        name: "kernel.numa_balancing",
        value: "0",
        rule: Rule::Equal,
        matters: Matters::WithNodes,
        costs: "the kernel looks for memory to move, although shards and their memory stay",
    },
    Sysctl {
        name: "vm.swappiness",
        value: "1",
        rule: Rule::Equal,
        matters: Matters::WithSwap,
        costs: "memory of the broker may be swapped out, and is waited for when it is used again",
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
