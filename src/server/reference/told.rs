//! What options, complaints and doc comments tell of a key.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::config::{Options, StartError};

/// The words about a key; `None` where there are none.
#[derive(Default)]
pub(super) struct Told {
    pub(super) kind: Option<String>,
    pub(super) default: Option<String>,
    pub(super) reload: Option<String>,
    pub(super) meaning: Option<String>,
    pub(super) test: Option<String>,
}

/// The option that a sample changed.
#[derive(Default)]
pub(super) struct Change {
    pub(super) default: Option<String>,
    pub(super) unit: Unit,
    pub(super) meaning: Option<String>,
}

/// The unit of an option, by its name.
#[derive(Default, Clone, Copy)]
pub(super) enum Unit {
    #[default]
    Plain,
    Bytes,
    Time,
}

impl Unit {
    /// The kind of a value with what the unit says of it.
    pub(super) fn refined(self, kind: String) -> String {
        match (self, kind.as_str()) {
            (Self::Bytes, "number") => "bytes".to_owned(),
            (Self::Time, "text" | "number") => "duration".to_owned(),
            _ => kind,
        }
    }
}

/// Values of each kind, none of which any key should take for one of another kind.
const KINDS: [(&str, &str); 6] = [
    ("true", "boolean"),
    ("7", "number"),
    ("1.5", "number"),
    ("\"~\"", "text"),
    ("[]", "list"),
    ("{}", "block"),
];

/// The kinds of values that a key takes, by what it says of each.
pub(super) fn kind_of(key: &str, outcome: impl Fn(&str) -> Result<(), StartError>) -> String {
    let opening = format!(" {key} is ");
    let complaint = |value: &str| {
        let lines = outcome(value).err().map(|error| error.lines()).unwrap_or_default();
        let rests = lines.iter().filter_map(|line| line.split_once(&opening));
        rests.map(|(_, rest)| rest.to_owned()).next()
    };
    let said = KINDS.map(|(value, kind)| (value, kind, complaint(value)));
    let usual = said
        .iter()
        .filter_map(|(.., said)| said.as_ref())
        .max_by_key(|text| said.iter().filter(|(.., other)| other.as_ref() == Some(*text)).count());
    let Some(usual) = usual else { return "any".to_owned() };
    let takes = |value: &str| said.iter().any(|(of, _, said)| *of == value && said.is_none());
    let own = match usual.as_str() {
        _ if said
            .iter()
            .any(|(.., said)| said.as_ref().is_some_and(|s| s.contains("host:port"))) =>
        {
            return "port or `host:port`".to_owned();
        }
        text if text.starts_with("text") && takes("[]") => {
            return "text, or list of texts".to_owned();
        }
        text if text.starts_with("text") => "text",
        text if text.starts_with("true or false") => "boolean",
        text if text.starts_with("a whole number, such as") => "number",
        text if text.starts_with("a duration") && takes("1.5") => {
            return "seconds or duration".to_owned();
        }
        text if text.starts_with("a duration") => "duration",
        text if text.starts_with("a block") => "block",
        text if text.starts_with("a list") => "list",
        text => return text.split(';').next().unwrap_or(text).to_owned(),
    };
    let mut kinds = vec![own];
    for (value, kind, said) in &said {
        let is_duration = own == "duration" && matches!(*kind, "number" | "text");
        if said.is_none() && !kinds.contains(kind) && !is_duration && *value != "1.5" {
            kinds.push(kind);
        }
    }
    kinds.join(" or ")
}

/// The option in which both differ, by the first line of their texts that differs.
pub(super) fn changed(old: &Options, new: &Options) -> Change {
    // The order in which numbers of accounts are shown is any.
    let mut new = new.clone();
    new.accounts.keep_numbers(&old.accounts);
    let (old, new) = (format!("{old:#?}"), format!("{new:#?}"));
    let olds: Vec<&str> = old.lines().collect();
    let Some(at) = olds.iter().zip(new.lines()).position(|(old, new)| *old != new) else {
        return Change::default();
    };
    let Some((field, value)) = olds[at].trim().split_once(": ") else {
        return Change::default();
    };
    let indent = |line: &str| line.len() - line.trim_start().len();
    let outer = olds[..at].iter().rev().find(|line| indent(line) < indent(olds[at]));
    let structure = outer.map(|line| line.trim().trim_end_matches(" {"));
    let structure = structure.and_then(|line| line.rsplit([' ', '(']).next()).unwrap_or_default();
    let (default, unit) = shown(field, value.trim_end_matches(','));
    Change { default, unit, meaning: doc_of(structure, field) }
}

/// A value as an operator writes it, and the unit of its field if the type does not say it.
fn shown(field: &str, value: &str) -> (Option<String>, Unit) {
    let is_bytes = field.contains("bytes");
    let is_time = ["_ms", "_us", "_ns"].iter().any(|unit| field.ends_with(unit));
    let unit = match (is_bytes, is_time) {
        (true, _) => Unit::Bytes,
        (_, true) => Unit::Time,
        _ => Unit::Plain,
    };
    let number = value.parse::<u64>().ok();
    let text = match (number, value) {
        (Some(u64::MAX), _) => "no limit".to_owned(),
        (Some(0), _) if field.ends_with("_max") || field.contains("_max_") => "no limit".to_owned(),
        (Some(ms), _) if field.ends_with("_ms") => duration(ms),
        (Some(ns), _) if field.ends_with("_ns") => duration(ns / 1_000_000),
        (Some(bytes), _) if is_bytes => size(bytes),
        (None, "None" | "[]" | "{}" | "\"\"") => "none".to_owned(),
        (None, text) if text.ends_with(['(', '[', '{']) => return (None, unit),
        (_, text) => format!("`{text}`"),
    };
    (Some(text), unit)
}

fn duration(ms: u64) -> String {
    let text = match ms {
        0 => "0".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    };
    format!("`\"{text}\"`")
}

fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes > 0 && bytes % (1 << 20) == 0 => format!("`{}MB`", bytes >> 20),
        bytes if bytes > 0 && bytes % 1024 == 0 => format!("`{}KB`", bytes >> 10),
        bytes => format!("`{bytes}`"),
    }
}

/// The first sentence of a field's doc comment.
fn doc_of(structure: &str, field: &str) -> Option<String> {
    let opening = format!("struct {structure} {{");
    let (_, text) = SOURCES.iter().find(|(_, text)| text.contains(&opening))?;
    let (_, body) = text.split_once(&opening)?;
    let mut doc: Vec<&str> = Vec::new();
    for line in body.lines().take_while(|line| *line != "}").map(str::trim) {
        if let Some(said) = line.strip_prefix("///") {
            doc.push(said.trim());
        } else if line
            .split(':')
            .next()
            .is_some_and(|name| name.split(' ').next_back() == Some(field))
        {
            return sentence_of(&doc.join(" "));
        } else if !line.starts_with('#') {
            doc.clear();
        }
    }
    None
}

/// The first sentence, without the default in brackets that it may have.
fn sentence_of(doc: &str) -> Option<String> {
    let text = doc.replace("[`", "`").replace("`]", "`");
    let mut sentence = text.split(". ").next()?.trim_end_matches('.').to_owned();
    if let Some((start, rest)) = sentence.split_once(" (")
        && let Some((inside, end)) = rest.split_once(')')
        && !inside.contains('(')
    {
        sentence = format!("{start}{end}");
    }
    // A file has durations with their unit.
    for unit in ["Milliseconds ", "Nanoseconds "] {
        if let Some(rest) = sentence.strip_prefix(unit) {
            sentence = format!("Time {rest}");
        }
    }
    (!sentence.is_empty()).then(|| format!("{sentence}."))
}

static SOURCES: LazyLock<Vec<(PathBuf, String)>> = LazyLock::new(sources);

/// All code of the broker and of its tests, and the cases of tests.
pub(super) fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![root.join("src"), root.join("tests")];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("it is there") {
            let path = entry.expect("it is readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs" || end == "txt") {
                found.push((path.clone(), fs::read_to_string(path).expect("code is text")));
            }
        }
    }
    found.sort();
    found
}
