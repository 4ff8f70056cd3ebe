//! Completions for shells and the manual page, both made from the usage page.

use clap::builder::ValueHint;
use clap::{Arg, ArgAction, Command, ValueEnum};
use clap_complete::Shell;

use super::args;
use super::syntax::StartError;

const PROGRAM: &str = "shardcast";
/// Columns before the texts of the usage page.
const MARGIN: usize = 37;

/// Returns the completions for a shell, to be read by it.
///
/// # Errors
///
/// Returns an error that names the shells if `shell` is none of them.
pub fn completions(shell: &str) -> Result<Vec<u8>, StartError> {
    let shell = Shell::from_str(shell, true).map_err(|_| {
        StartError::new(format!(
            "no completions for \"{shell}\"; there are some for bash, zsh, fish, elvish and \
             powershell"
        ))
    })?;
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), PROGRAM, &mut text);
    Ok(text)
}

/// Returns the manual page in the form of `man`.
///
/// # Errors
///
/// Returns an error if the page cannot be rendered.
pub fn man() -> Result<Vec<u8>, StartError> {
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(command()).render(&mut text);
    rendered.map_err(|error| StartError::new(format!("cannot write the page: {error}")))?;
    Ok(text)
}

/// A flag or command of the usage page.
#[derive(Default)]
struct UsageEntry {
    /// The heading above it.
    heading: String,
    /// Names and value, as they are typed.
    typed: String,
    text: String,
}

/// Returns the command line of the usage page.
fn command() -> Command {
    let about = "A message broker that speaks the NATS protocol, thread per core on io_uring";
    let mut command = Command::new(PROGRAM)
        .version(crate::VERSION)
        .about(about)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true);
    for entry in entries(&args::usage(PROGRAM)) {
        command = match entry.typed.starts_with('-') {
            true => command.arg(arg(&entry)),
            false => command.subcommand(subcommand(&entry)),
        };
    }
    command
}

/// Returns the entries of the usage page, in its order.
fn entries(page: &str) -> Vec<UsageEntry> {
    let mut entries: Vec<UsageEntry> = Vec::new();
    let mut heading = String::new();
    for line in page.lines().filter(|line| !line.trim().is_empty()) {
        if let Some(title) = line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            title.clone_into(&mut heading);
            continue;
        }
        let (typed, text) = line.split_at_checked(MARGIN).unwrap_or((line, ""));
        match entries.last_mut() {
            _ if heading.is_empty() => {}
            Some(last) if typed.trim().is_empty() => last.text += &format!(" {}", text.trim()),
            // A flag with another name on the next line.
            Some(last) if last.text.is_empty() => {
                last.typed += &format!(", {}", typed.trim());
                text.trim().clone_into(&mut last.text);
            }
            _ => {
                // What does not fit before the margin has its text on the next line.
                let (typed, text) = if typed.ends_with(' ') { (typed, text) } else { (line, "") };
                let (typed, text) = (typed.trim().to_owned(), text.trim().to_owned());
                entries.push(UsageEntry { heading: heading.clone(), typed, text });
            }
        }
    }
    entries
}

fn arg(entry: &UsageEntry) -> Arg {
    let (names, value) = match entry.typed.split_once(" <") {
        Some((names, value)) => (names, value.split('>').next()),
        None => (entry.typed.as_str(), None),
    };
    let names = names.split(',').map(|name| name.trim().trim_start_matches('-'));
    let (short, long): (Vec<&str>, Vec<&str>) = names.partition(|name| name.chars().count() == 1);
    let id = long.last().or(short.first()).copied().unwrap_or_default().to_owned();
    let mut arg = Arg::new(id.clone()).help(entry.text.clone()).help_heading(entry.heading.clone());
    arg = arg.short(short.first().and_then(|name| name.chars().next()));
    if let Some((main, others)) = long.split_last() {
        let others: Vec<String> = others.iter().map(|&name| name.to_owned()).collect();
        arg = arg.long((*main).to_owned()).visible_aliases(others);
    }
    let Some(value) = value else { return arg.action(ArgAction::SetTrue) };
    let hint = match value {
        "file" => ValueHint::FilePath,
        "dir" => ValueHint::DirPath,
        "host" => ValueHint::Hostname,
        _ => ValueHint::Other,
    };
    arg.value_name(value.to_owned()).value_hint(hint)
}

fn subcommand(entry: &UsageEntry) -> Command {
    let name = entry.typed.split(' ').next().unwrap_or_default().to_owned();
    let mut command = Command::new(name).about(entry.text.clone()).disable_help_flag(true);
    // Flags with one dash are those of the server.
    let is_own = |word: &&str| word.starts_with("[--") || !word.starts_with("[-");
    for word in entry.typed.split(' ').skip(1).take_while(is_own) {
        let word = word.trim_matches(['[', ']', '<', '>']).to_owned();
        let arg = match word.strip_prefix("--") {
            Some(flag) => Arg::new(word.clone()).long(flag.to_owned()).action(ArgAction::SetTrue),
            None if word == "shell" => Arg::new(word).value_parser(clap::value_parser!(Shell)),
            None => Arg::new(word),
        };
        command = command.arg(arg);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_the_usage_page_is_in_the_manual_and_in_the_completions() {
        command().debug_assert();
        let man = String::from_utf8(man().unwrap()).unwrap().replace("\\-", "-");
        let page = args::usage(PROGRAM);
        for shell in Shell::value_variants() {
            let text = String::from_utf8(completions(&shell.to_string()).unwrap()).unwrap();
            let lines = page.lines().filter(|line| line.trim_start().starts_with('-'));
            let words = lines.flat_map(|line| line.split([' ', ',']));
            for word in words.filter_map(|word| word.strip_prefix("--")) {
                let flag = word.split(['<', '=']).next().unwrap();
                assert!(text.contains(flag), "{flag} is not completed by {shell}");
                assert!(man.contains(flag), "{flag} is not in the manual");
            }
            for command in ["doctor", "import", "completions", "man"] {
                assert!(text.contains(command), "{command} is not completed by {shell}");
            }
        }
        assert!(completions("csh").unwrap_err().to_string().contains("bash, zsh"));
    }

    #[test]
    fn flags_keep_their_values_texts_and_other_names() {
        let command = command();
        let find = |name: &str| command.get_arguments().find(|arg| arg.get_id() == name).unwrap();
        let name = find("server_name");
        assert_eq!((name.get_short(), name.get_long()), (Some('n'), Some("server_name")));
        assert_eq!(name.get_visible_aliases().unwrap(), ["name"]);
        assert!(name.get_help().unwrap().to_string().starts_with("Server name"));
        assert_eq!(find("config").get_value_hint(), ValueHint::FilePath);
        let cluster = find("cluster_listen").get_help().unwrap().to_string();
        assert!(cluster.ends_with("they need these)"), "{cluster}");
        assert!(!find("jetstream").get_action().takes_values());
    }
}
