//! `--fix`: kernel settings and limits, written where this user may, and commands for the rest.

use std::fs;
use std::io;
use std::path::Path;

use super::advised::Sysctl;
use super::{Finding, FindingLevel};
use crate::host::Tree;

/// The file that sets kernel settings at each start of the host, besides those of the package,
/// which a file of the same name would hide.
const SETTINGS_FILE: &str = "etc/sysctl.d/91-shardcast-doctor.conf";
/// The file that sets limits of users that log in.
const LIMITS_FILE: &str = "etc/security/limits.d/90-shardcast.conf";
const LIMITS: &str = "\
# For shardcast: a file for each connection, and locked memory for each shard.
* soft memlock unlimited
* hard memlock unlimited
* hard nofile 1048576
";

/// A step that mends a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FixStep {
    /// Set a kernel setting, now and at each start of the host.
    Setting(&'static Sysctl),
    /// Set the limits of users.
    Limits,
}

/// Mends what can be mended, below the root of `tree`. Returns a line for each step: what was
/// written, or why not, or the command for what the doctor leaves to its user.
pub(super) fn fix(tree: &Tree, findings: &[Finding]) -> Vec<String> {
    let bad: Vec<&Finding> =
        findings.iter().filter(|finding| finding.verdict != FindingLevel::Pass).collect();
    let mut lines = Vec::new();
    let mut settings = Vec::new();
    for finding in &bad {
        match finding.fix {
            Some(FixStep::Setting(sysctl)) => {
                settings.push(sysctl);
                let line = format!("{} = {}", sysctl.name, sysctl.value);
                let written = fs::write(tree.path(sysctl.file()), sysctl.value);
                lines.push(told(written, &line, finding));
            }
            Some(FixStep::Limits) => {}
            None => lines.extend(command(finding)),
        }
    }
    if !settings.is_empty() {
        let written = keep_settings(&tree.path(SETTINGS_FILE), &settings);
        lines.push(told_of_file(written, SETTINGS_FILE, "it holds after the next start, too"));
    }
    if bad.iter().any(|finding| finding.fix == Some(FixStep::Limits)) {
        let written = write(&tree.path(LIMITS_FILE), LIMITS);
        lines.push(told_of_file(
            written,
            LIMITS_FILE,
            "it holds for the next login; a unit has own",
        ));
    }
    lines
}

fn told(written: io::Result<()>, line: &str, finding: &Finding) -> String {
    match written {
        Ok(()) => format!("set:     {line}"),
        Err(error) => {
            let mend = finding.mend.as_deref().unwrap_or_default();
            format!("not set: {line}: {error}; as root: {mend}")
        }
    }
}

fn told_of_file(written: io::Result<()>, file: &str, holds: &str) -> String {
    match written {
        Ok(()) => format!("written: /{file}; {holds}"),
        Err(error) => format!("not written: /{file}: {error}; run it as root: sudo shardcast …"),
    }
}

/// The command that mends a finding; one over several lines of text is left to the table.
fn command(finding: &Finding) -> Option<String> {
    let mend = finding.mend.as_deref()?;
    Some(format!("by hand: {}: {mend}", finding.check))
}

/// Adds settings to a file, in place of the lines that it has for them.
fn keep_settings(file: &Path, settings: &[&Sysctl]) -> io::Result<()> {
    let before = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let is_for = |line: &str, sysctl: &Sysctl| {
        let name = line.split('=').next().unwrap_or_default().trim();
        name.trim_start_matches('-') == sysctl.name
    };
    let kept = before.lines().filter(|line| !settings.iter().any(|sysctl| is_for(line, sysctl)));
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    for sysctl in settings {
        text += &format!("-{} = {}\n", sysctl.name, sysctl.value);
    }
    write(file, &text)
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(file, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::advised::SYSCTLS;

    fn finding(step: Option<FixStep>) -> Finding {
        let finding = Finding::new("a", "b").advise("c", "d", "the command");
        Finding { fix: step, ..finding }
    }

    #[test]
    fn settings_are_set_now_and_kept_beside_what_the_file_has() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::at(dir.path());
        let [first, second, ..] = SYSCTLS else { panic!("there are several") };
        for sysctl in [first, second] {
            write(&tree.path(sysctl.file()), "7").unwrap();
        }
        let file = tree.path(SETTINGS_FILE);
        let had = format!("# mine\n-{} = 8\n{} = 9\n", first.name, second.name);
        write(&file, &had).unwrap();
        let passed = Finding::new("x", "y").fixed_by(FixStep::Setting(second));
        let lines = fix(&tree, &[finding(Some(FixStep::Setting(first))), passed]);
        assert!(lines[0].starts_with("set: ") && lines[1].starts_with("written: "), "{lines:?}");
        assert_eq!(tree.text(first.file()).as_deref(), Some(first.value));
        assert_eq!(tree.text(second.file()).as_deref(), Some("7"), "what passes stays");
        let wanted = format!("# mine\n{} = 9\n-{} = {}\n", second.name, first.name, first.value);
        assert_eq!(fs::read_to_string(&file).unwrap(), wanted);
        assert!(!tree.path(LIMITS_FILE).exists());
    }

    #[test]
    fn limits_are_written_and_the_rest_is_told_as_a_command() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::at(dir.path());
        let lines = fix(&tree, &[finding(None), finding(Some(FixStep::Limits))]);
        assert_eq!(lines[0], "by hand: a: the command");
        assert_eq!(fs::read_to_string(tree.path(LIMITS_FILE)).unwrap(), LIMITS);
    }

    #[test]
    fn what_may_not_be_written_is_told_with_its_command() {
        let dir = tempfile::tempdir().unwrap();
        // A file where a directory would have to be.
        fs::write(dir.path().join("proc"), "").unwrap();
        fs::write(dir.path().join("etc"), "").unwrap();
        let step = Some(FixStep::Setting(&SYSCTLS[0]));
        let lines = fix(&Tree::at(dir.path()), &[finding(step)]);
        assert!(
            lines[0].starts_with("not set: ") && lines[0].ends_with("the command"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("not written: "), "{lines:?}");
    }
}
