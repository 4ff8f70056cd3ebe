//! Other work on the host's CPUs: a shard that is bound to a CPU waits for what else runs there.

use std::fmt;

use super::Tree;

/// Share of the host's CPUs that others may use before shards are not bound to CPUs, as a divisor.
const CPUS_PER_LOAD: f64 = 4.0;
/// Percent of the time since the boot that a hypervisor may have taken.
const STEAL_PERCENT_MAX: u64 = 2;

/// Other work on the CPUs, of which a bound shard would have to wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Company {
    /// Other processes.
    Load {
        /// Processes that ran or wanted to, on the average of the last minutes.
        average: f64,
        /// CPUs that are online.
        cpus: usize,
    },
    /// Other guests of the hypervisor.
    Steal {
        /// Percent of the time since the boot.
        percent: u64,
    },
}

impl Company {
    /// Reads whether there is other work now, on a host with this number of CPUs.
    ///
    /// A load counts that has lasted for minutes and goes on: a server that is started again was
    /// the load itself until now.
    pub(super) fn read(tree: &Tree, cpus: usize) -> Option<Self> {
        let text = tree.text("proc/loadavg").unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let mut number = || words.next()?.parse::<f64>().ok();
        if let (Some(minute), Some(minutes)) = (number(), number()) {
            let _quarter_of_an_hour = number();
            let running = words.next().and_then(|word| word.split('/').next()?.parse::<f64>().ok());
            // This process is one of them.
            let now = running.unwrap_or(0.0) - 1.0;
            let average = minute.min(minutes);
            if average.min(now) * CPUS_PER_LOAD > cpus as f64 {
                return Some(Self::Load { average, cpus });
            }
        }
        let percent = steal_percent(tree).filter(|percent| *percent > STEAL_PERCENT_MAX)?;
        Some(Self::Steal { percent })
    }
}

/// Returns the part of the CPUs' time since the boot that went to other guests.
fn steal_percent(tree: &Tree) -> Option<u64> {
    let text = tree.text("proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let times: Vec<u64> =
        line.split_ascii_whitespace().map_while(|word| word.parse().ok()).take(8).collect();
    let all = times.iter().fold(0, |sum: u64, time| sum.saturating_add(*time));
    Some(times.get(7)?.saturating_mul(100) / all.max(1))
}

/// Writes the reason as in the banner.
impl fmt::Display for Company {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { average, cpus } => {
                write!(f, "other work on the CPUs: a load of {average:.1} on {cpus}")
            }
            Self::Steal { percent } => {
                write!(f, "{percent} % of the CPUs' time went to other guests of the host")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::*;

    fn company(files: &[(&str, &str)]) -> Option<String> {
        let machine = Machine::new(1, 4, 1).with(files);
        Company::read(&machine.tree(), 4).map(|company| company.to_string())
    }

    #[test]
    fn work_of_others_shows_once_it_lasts_and_while_it_goes_on() {
        let load = |text| company(&[("proc/loadavg", text)]);
        let said = "other work on the CPUs: a load of 1.5 on 4";
        assert_eq!(load("1.80 1.50 0.40 4/210 999").as_deref(), Some(said));
        assert_eq!(load("1.80 0.30 0.10 4/210 999"), None, "it has just begun");
        assert_eq!(load("1.80 1.50 1.40 1/210 999"), None, "it was this server before");
        assert_eq!(load("0.40 0.50 0.40 4/210 999"), None, "it is little");
        assert_eq!(company(&[]), None);
    }

    #[test]
    fn time_that_a_hypervisor_took_shows() {
        let stat = |steal: u64| {
            let text = format!("cpu  100 0 100 {} 0 0 0 {steal} 0 0\ncpu0 1 2 3", 800 - steal);
            company(&[("proc/stat", &text)])
        };
        let said = "5 % of the CPUs' time went to other guests of the host";
        assert_eq!(stat(50).as_deref(), Some(said));
        assert_eq!(stat(20), None);
    }
}
