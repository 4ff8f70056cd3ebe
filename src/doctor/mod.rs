//! `shardcast doctor`: checks of this host, with the cost of each fault and its remedy.
//!
//! `snapshot` reads the state of the host, `checks` judges it, `process` a running broker; `disk`
//! measures, `fix` mends, `bundle` packs what a report of a fault needs. Only [`main`] touches this
//! host, and it writes nothing but what its arguments ask for.
//! Limits are those of a process started as the doctor was, or of the one that is named.

#![forbid(unsafe_code)]

mod advised;
mod bundle;
mod checks;
mod disk;
mod fix;
mod pages;
mod process;
mod secrets;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::host::Tree;
use crate::uring;
use fix::FixStep;
use snapshot::Host;

/// The exit status when the host could not be examined, which monitoring plugins name unknown.
const UNKNOWN: u8 = 3;

/// The severity of a finding, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum FindingLevel {
    /// A state as it should be, or absent, or not visible.
    Pass,
    /// A state in which the broker does what it should, and some loads could run better.
    Advise,
    /// A state in which the broker runs, and will be in trouble.
    Warn,
    /// A state in which the broker does not run, or not with all its shards, or only for few
    /// clients.
    Fail,
}

impl FindingLevel {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Advise => "tip ",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: String,
    verdict: FindingLevel,
    now: String,
    wanted: String,
    /// The cost of leaving it as it is; only if there is a remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    costs: Option<String>,
    /// The remedy: a command or a setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
    /// The step by which `--fix` mends it, if it can.
    #[serde(skip)]
    fix: Option<FixStep>,
}

impl Finding {
    fn new(check: impl Into<String>, now: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            verdict: FindingLevel::Pass,
            now: now.into(),
            wanted: String::new(),
            costs: None,
            mend: None,
            fix: None,
        }
    }

    fn pass(self, wanted: impl Into<String>) -> Self {
        Self { wanted: wanted.into(), ..self }
    }

    fn advise(
        self,
        wanted: impl Into<String>,
        costs: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { verdict: FindingLevel::Advise, ..self.warn(wanted, costs, mend) }
    }

    fn fixed_by(self, step: FixStep) -> Self {
        Self { fix: Some(step), ..self }
    }

    fn warn(
        self,
        wanted: impl Into<String>,
        costs: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (costs, mend) = (Some(costs.into()), Some(mend.into()));
        Self { verdict: FindingLevel::Warn, wanted: wanted.into(), costs, mend, ..self }
    }

    fn fail(
        self,
        wanted: impl Into<String>,
        costs: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { verdict: FindingLevel::Fail, ..self.warn(wanted, costs, mend) }
    }
}

/// All findings, and the worst level among them.
#[derive(Debug, Serialize)]
struct DoctorReport {
    /// The worst of the findings.
    verdict: FindingLevel,
    findings: Vec<Finding>,
}

impl DoctorReport {
    #[cfg(test)]
    fn of(host: &Host) -> Self {
        Self::from(checks::findings(host))
    }

    fn from(findings: Vec<Finding>) -> Self {
        let verdict = findings.iter().map(|finding| finding.verdict).max();
        Self { verdict: verdict.unwrap_or(FindingLevel::Pass), findings }
    }

    /// Returns 0 if nothing that matters is wrong, 1 if a finding warns, 2 if one fails.
    fn exit_status(&self) -> u8 {
        match self.verdict {
            FindingLevel::Pass | FindingLevel::Advise => 0,
            FindingLevel::Warn => 1,
            FindingLevel::Fail => 2,
        }
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Formats a line for each finding, and two more if there is a remedy.
    fn table(&self) -> String {
        let width = |text: &dyn Fn(&Finding) -> &str| {
            self.findings.iter().map(|finding| text(finding).chars().count()).max().unwrap_or(0)
        };
        let check_width = width(&|finding| &finding.check);
        let mut table = String::new();
        for Finding { check, verdict, now, wanted, costs, mend, .. } in &self.findings {
            let _ = write!(table, "{}  {check:check_width$}  {now}", verdict.word());
            if let (Some(costs), Some(mend)) = (costs, mend) {
                let _ = write!(table, " (wanted: {wanted})");
                let indent = " ".repeat(6 + check_width);
                let _ = write!(table, "\n{indent}  costs: {costs}\n{indent}  mend:  {mend}");
            }
            table.push('\n');
        }
        let count = |verdict| self.findings.iter().filter(|f| f.verdict == verdict).count();
        let (fail, warn) = (count(FindingLevel::Fail), count(FindingLevel::Warn));
        let (tip, pass) = (count(FindingLevel::Advise), count(FindingLevel::Pass));
        let _ = writeln!(
            table,
            "\n{pass} pass, {tip} tips, {warn} warn, {fail} fail. Each knob is explained in \
             tuning/README.md."
        );
        table
    }
}

/// Looks at this host and says what holds the broker up. Needs no privileges, and only reads,
/// unless --fix, --disk or --bundle says otherwise.
///
/// The exit status is 0 if nothing that matters is wrong (tips do not count), 1 if something warns,
/// 2 if something fails, 3 if the doctor itself was called wrongly or could not do its work.
#[derive(Debug, Parser)]
#[command(name = "shardcast doctor", disable_version_flag = true)]
struct DoctorArgs {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Write kernel settings and limits (as root), and print the commands for the rest.
    #[arg(long)]
    fix: bool,
    /// Look at a running broker: its limits, its files, its memory, its shards.
    #[arg(long, value_name = "ID")]
    pid: Option<u32>,
    /// Measure the disk under this directory by writing there for about a second.
    #[arg(long, value_name = "DIRECTORY")]
    disk: Option<PathBuf>,
    /// Write a support bundle: this report, facts of the host, and of the broker that --pid or -c
    /// names its configuration without secrets, its pages, and the end of its log.
    #[arg(long, value_name = "FILE.tar.gz")]
    bundle: Option<PathBuf>,
    /// The broker's configuration file, for the bundle.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The broker's monitoring, for the bundle, such as http://127.0.0.1:8222.
    #[arg(long, value_name = "URL")]
    monitoring: Option<String>,
    /// The network card that clients come through (default: that of the default route).
    interface: Option<String>,
}

impl DoctorArgs {
    fn tree(&self) -> Tree {
        match self.pid {
            Some(id) => Tree::default().of_process(id),
            None => Tree::default(),
        }
    }

    /// Examines the host; an error is that of a call that cannot be answered.
    fn examine(&self) -> Result<DoctorReport, String> {
        let tree = self.tree();
        if let Some(id) = self.pid
            && tree.text("proc/self/status").is_none()
        {
            return Err(format!("no process {id}; see `pidof shardcast`"));
        }
        let uring = uring::probe(None).map(|probe| probe.tier);
        let host = Host::read(&tree, self.interface.as_deref(), uring);
        if let (Some(name), None) = (&self.interface, &host.card) {
            return Err(format!("no network card {name}; see /sys/class/net for the list"));
        }
        let mut findings = checks::findings(&host);
        if self.pid.is_some() {
            findings.extend(process::findings(&tree));
        }
        if let Some(directory) = &self.disk {
            let measured = disk::measure(directory)
                .map_err(|error| format!("cannot measure {}: {error}", directory.display()))?;
            findings.extend(disk::findings(&tree, &measured));
        }
        Ok(DoctorReport::from(findings))
    }

    /// Examines, mends and packs as asked. Returns the report, and lines about what was done.
    fn run(&self) -> Result<(DoctorReport, Vec<String>), String> {
        let mut report = self.examine()?;
        let mut done = Vec::new();
        if self.fix {
            done = fix::fix(&self.tree(), &report.findings);
            report = self.examine()?;
        }
        if let Some(path) = &self.bundle {
            let broker = bundle::Broker::find(self.pid, self.config.as_deref());
            let parts = broker.parts(&report, self.monitoring.as_deref());
            bundle::write(path, &parts)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            done.push(format!("written: {} ({} files)", path.display(), parts.len()));
        }
        Ok((report, done))
    }
}

/// Examines this host as `args` say, and prints the result.
pub fn main(args: &[String]) -> ExitCode {
    let words = ["shardcast doctor"].into_iter().chain(args.iter().map(String::as_str));
    let args = match DoctorArgs::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { UNKNOWN.into() } else { ExitCode::SUCCESS };
        }
    };
    let (report, done) = match args.run() {
        Ok(outcome) => outcome,
        Err(line) => {
            let _ = writeln!(io::stderr(), "shardcast doctor: {line}");
            return UNKNOWN.into();
        }
    };
    let text = if args.json { report.json() } else { report.table() };
    // A reader that closes the pipe early still gets the exit status.
    let _ = io::stdout().write_all(text.as_bytes());
    for line in done {
        let _ = writeln!(io::stderr(), "{line}");
    }
    report.exit_status().into()
}
