//! `shardcast doctor`: checks of this host, with the cost of each fault and its remedy.
//!
//! `snapshot` reads the state of the host, `checks` judges it; only [`main`] touches this host.
//! Limits are those of a process started as the doctor was.

#![forbid(unsafe_code)]

mod advised;
mod checks;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::host::Tree;
use crate::uring;
use snapshot::Host;

/// The exit status when the doctor could not look; what monitoring plugins call unknown.
const UNKNOWN: u8 = 3;

/// What to think of one thing, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be, or not there, or not to be seen.
    Pass,
    /// The broker runs, and could run better.
    Warn,
    /// The broker does not run, or not with all its shards, or for hardly anybody.
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: String,
    verdict: Verdict,
    now: String,
    wanted: String,
    /// What it costs to leave it as it is; only if something is to be mended.
    #[serde(skip_serializing_if = "Option::is_none")]
    costs: Option<String>,
    /// The command or the setting that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn new(check: impl Into<String>, now: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            verdict: Verdict::Pass,
            now: now.into(),
            wanted: String::new(),
            costs: None,
            mend: None,
        }
    }

    fn pass(self, wanted: impl Into<String>) -> Self {
        Self { wanted: wanted.into(), ..self }
    }

    fn warn(
        self,
        wanted: impl Into<String>,
        costs: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (costs, mend) = (Some(costs.into()), Some(mend.into()));
        Self { verdict: Verdict::Warn, wanted: wanted.into(), costs, mend, ..self }
    }

    fn fail(
        self,
        wanted: impl Into<String>,
        costs: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Fail, ..self.warn(wanted, costs, mend) }
    }
}

/// All findings.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of the findings.
    verdict: Verdict,
    findings: Vec<Finding>,
}

impl Report {
    fn of(host: &Host) -> Self {
        let findings = checks::findings(host);
        let verdict = findings.iter().map(|finding| finding.verdict).max();
        Self { verdict: verdict.unwrap_or(Verdict::Pass), findings }
    }

    /// 0: all pass, 1: something warns, 2: something fails.
    fn exit_status(&self) -> u8 {
        self.verdict as u8
    }

    /// A line for each finding; what is to be mended has two more.
    fn table(&self) -> String {
        let width = |text: &dyn Fn(&Finding) -> &str| {
            self.findings.iter().map(|finding| text(finding).chars().count()).max().unwrap_or(0)
        };
        let check_width = width(&|finding| &finding.check);
        let mut table = String::new();
        for Finding { check, verdict, now, wanted, costs, mend } in &self.findings {
            let _ = write!(table, "{}  {check:check_width$}  {now}", verdict.word());
            if let (Some(costs), Some(mend)) = (costs, mend) {
                let _ = write!(table, " (wanted: {wanted})");
                let indent = " ".repeat(6 + check_width);
                let _ = write!(table, "\n{indent}  costs: {costs}\n{indent}  mend:  {mend}");
            }
            table.push('\n');
        }
        let count = |verdict| self.findings.iter().filter(|f| f.verdict == verdict).count();
        let (fail, warn) = (count(Verdict::Fail), count(Verdict::Warn));
        let _ = writeln!(
            table,
            "\n{} pass, {warn} warn, {fail} fail. Each knob is explained in tuning/README.md.",
            count(Verdict::Pass)
        );
        table
    }
}

/// Looks at this host and says what holds the broker up. Only reads; needs no privileges.
///
/// The exit status is 0 if all is well, 1 if something warns, 2 if something fails, 3 if the
/// doctor itself was called wrongly.
#[derive(Debug, Parser)]
#[command(name = "shardcast doctor", disable_version_flag = true)]
struct Args {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// The network card that clients come through (default: that of the default route).
    interface: Option<String>,
}

/// Examines this host as `args` say, and prints the result.
pub fn main(args: &[String]) -> ExitCode {
    let words = ["shardcast doctor"].into_iter().chain(args.iter().map(String::as_str));
    let args = match Args::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { UNKNOWN.into() } else { ExitCode::SUCCESS };
        }
    };
    let uring = uring::probe(None).map(|probe| probe.tier);
    let host = Host::read(&Tree::default(), args.interface.as_deref(), uring);
    if let (Some(name), None) = (&args.interface, &host.card) {
        let line = "see /sys/class/net for those there are";
        let _ = writeln!(io::stderr(), "shardcast doctor: there is no network card {name}; {line}");
        return UNKNOWN.into();
    }
    let report = Report::of(&host);
    let text = if args.json {
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    } else {
        report.table()
    };
    // Whoever closed the pipe early still gets the exit status.
    let _ = io::stdout().write_all(text.as_bytes());
    report.exit_status().into()
}
