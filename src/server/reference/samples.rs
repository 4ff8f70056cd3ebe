//! Samples of values, and what comes of them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::told::{Told, changed, kind_of};
use crate::config::{Bound, KnownKey, Options, bound};
use crate::server::reload::keep_fixed;

/// Values of all kinds, of which the first that a key takes and that changes an option is its
/// sample.
const SAMPLES: [&str; 27] = [
    "true",
    "false",
    "\"7s\"",
    "\"40s\"",
    "7",
    "3",
    "100",
    "4333",
    "100000",
    "x",
    "x.y",
    "json",
    "\"127.0.0.1:4333\"",
    "[x]",
    "[\"x.y\"]",
    "[\"nats-route://h:1\"]",
    "\"nats://h:1\"",
    "[\"10.0.0.0/8\"]",
    "[\"https://a.b\"]",
    "s2_best",
    "\"2.12.0\"",
    "\"1.3\"",
    "{a: b}",
    "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
    "\"10%\"",
    "\"udp://h:1\"",
    "{}",
];

/// The contents of `tests/config/reference.txt`.
pub(super) struct Sampler {
    /// Other keys that a block needs, by the path of a key.
    completions: HashMap<String, String>,
    /// Sample, default, reload, meaning and test of a key, by its path; empty ones are not said.
    said: HashMap<String, [String; 5]>,
}

impl Sampler {
    pub(super) fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/reference.txt");
        let text = fs::read_to_string(path).expect("it is there");
        let (mut completions, mut said) = (HashMap::new(), HashMap::new());
        let mut block = String::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            match line.strip_prefix("    ") {
                Some(row) => {
                    let mut cells = row.split('|').map(|cell| cell.trim().to_owned());
                    let path = joined(&block, &cells.next().expect("a row has a key"));
                    let cells = std::array::from_fn(|_| cells.next().unwrap_or_default());
                    assert!(said.insert(path, cells).is_none(), "twice: {line}");
                }
                None => {
                    let (path, completion) = line.split_once(':').expect("PATH: what it needs");
                    path.trim().trim_start_matches("file").trim().clone_into(&mut block);
                    completions.insert(block.clone(), completion.trim().to_owned());
                }
            }
        }
        Self { completions, said }
    }

    /// The paths of keys of which something is said.
    pub(super) fn paths(&self) -> impl Iterator<Item = &String> {
        self.said.keys()
    }

    /// The file of a block with what the block needs.
    pub(super) fn completed(&self, path: &[&str], file: &str) -> String {
        match self.completions.get(&path.join(" ")) {
            Some(more) => file.replace('@', &format!("{more}\n@")),
            None => file.to_owned(),
        }
    }

    /// All that can be told of a key in `file`.
    pub(super) fn told(&self, block: &[&str], file: &str, key: &KnownKey) -> Told {
        let name = key.names[0];
        let [sample, default, reload, meaning, test] =
            self.said.get(&joined(&block.join(" "), name)).cloned().unwrap_or_default();
        let some = |text: String| (!text.is_empty()).then_some(text);
        if key.is_refused {
            let none = || Some("–".to_owned());
            let meaning = some(meaning).or(Some("Refused.".to_owned()));
            return Told { kind: none(), default: none(), reload: none(), meaning, test: none() };
        }
        let with = |value: &str| bound(&file.replace('@', &format!("{name}: {value}")));
        let kind = Some(kind_of(name, |value| with(value).outcome));
        let base = bound(&file.replace('@', "")).options;
        let tried = some(sample).into_iter().chain(SAMPLES.map(str::to_owned));
        let taken = tried.map(|value| with(&value)).find(|bound| differs(bound, &base));
        let mut told = Told { kind, ..Told::default() };
        if let Some(Bound { options, .. }) = taken {
            let mut kept = options.clone();
            keep_fixed(&base, &mut kept);
            let idle =
                |options: &Options| (options.notes.missing.len(), options.notes.absent.len());
            let is_idle = idle(&options) != idle(&base);
            let is_kept = Options { notes: base.notes.clone(), ..kept } == base;
            told.reload = Some(if is_kept { "restart" } else { "yes" }.to_owned());
            let change = changed(&base, &options);
            told.default = change.default;
            told.meaning = change.meaning;
            told.kind = told.kind.map(|kind| change.unit.refined(kind));
            if is_idle {
                told.reload = Some("–".to_owned());
                told.default = Some("–".to_owned());
                told.meaning = Some("No effect.".to_owned());
            }
        }
        Told {
            kind: told.kind,
            default: some(default).or(told.default),
            reload: some(reload).or(told.reload),
            meaning: some(meaning).or(told.meaning),
            test: some(test),
        }
    }
}

fn joined(block: &str, key: &str) -> String {
    format!("{block} {key}").trim().to_owned()
}

fn differs(bound: &Bound, base: &Options) -> bool {
    bound.outcome.is_ok() && bound.options != *base
}
