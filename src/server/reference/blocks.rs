//! The blocks of the file, found by trying each key with a block for its value.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use super::samples::Sampler;
use super::told::Told;
use crate::config::{KnownKey, bound};

/// Forms that a block within a key may have; `@` is where its keys stand.
const SHAPES: [&str; 4] = ["{ @ }", "[{ @ }]", "{ A { @ } }", "{ A [{ @ }] }"];

/// Blocks whose keys each name the test that holds them.
const HELD: [&str; 5] = ["authorization", "accounts", "tls", "resolver", "resolver_tls"];

/// A table of keys with the places where it stands.
pub(super) struct Block {
    /// Keys from the outermost to that of the block; none for the file itself.
    path: Vec<&'static str>,
    others: Vec<Vec<&'static str>>,
    pub(super) keys: Vec<KeyTold>,
}

/// A key with all that is said of it.
pub(super) struct KeyTold {
    pub(super) names: &'static [&'static str],
    pub(super) is_ours: bool,
    pub(super) told: Told,
}

impl Block {
    pub(super) fn title(&self) -> String {
        if self.path.is_empty() { "The file".to_owned() } else { written(&self.path) }
    }

    pub(super) fn other_places(&self) -> Option<String> {
        let places: Vec<String> = self.others.iter().map(|path| written(path)).collect();
        (!places.is_empty()).then(|| places.join(", "))
    }

    /// The paths of its keys, as `tests/config/reference.txt` has them.
    pub(super) fn paths(&self) -> impl Iterator<Item = String> {
        let block = self.path.join(" ");
        self.keys.iter().map(move |key| format!("{block} {}", key.names[0]).trim().to_owned())
    }

    /// Whether each of its keys says which test holds it.
    pub(super) fn is_held(&self) -> bool {
        self.path.first().is_some_and(|first| HELD.contains(first))
    }
}

fn written(path: &[&str]) -> String {
    format!("`{} {{ … }}`", path.join(" → "))
}

/// The place of keys: the path of the block, and a file with `@` in their place.
struct Place {
    path: Vec<&'static str>,
    file: String,
    is_ours: bool,
}

/// All blocks, each once, the outer before the inner.
pub(super) static ALL: LazyLock<Vec<Block>> = LazyLock::new(all);

fn all() -> Vec<Block> {
    let sampler = Sampler::new();
    let originals = keys_of_nats_server();
    let mut found: Vec<(Vec<KnownKey>, Block)> = Vec::new();
    let file = Place { path: Vec::new(), file: "@".to_owned(), is_ours: false };
    let mut places = VecDeque::from([file]);
    while let Some(place) = places.pop_front() {
        let tables = bound(&place.file.replace('@', "")).tables;
        let (depth, table) = (tables.len(), tables.last().expect("the file has one").clone());
        if let Some((_, block)) = found.iter_mut().find(|(known, _)| *known == table) {
            block.others.push(place.path);
            continue;
        }
        let file = sampler.completed(&place.path, &place.file);
        let known = originals.get(&place.path.join(" "));
        let mut keys = Vec::new();
        for key in table.iter() {
            let name = key.names[0];
            let is_here = known.is_none_or(|known| known.iter().any(|known| known == name));
            let is_ours = place.is_ours || !is_here;
            let path: Vec<&str> = place.path.iter().copied().chain([name]).collect();
            let inner = SHAPES.iter().map(|shape| file.replace('@', &format!("{name}: {shape}")));
            let mut inner =
                inner.filter(|inner| bound(&inner.replace('@', "")).tables.len() > depth);
            if !key.is_refused
                && let Some(file) = inner.next()
            {
                places.push_back(Place { path, file, is_ours });
            }
            let told = sampler.told(&place.path, &file, key);
            keys.push(KeyTold { names: key.names, is_ours, told });
        }
        found.push((table, Block { path: place.path, others: Vec::new(), keys }));
    }
    found.into_iter().map(|(_, block)| block).collect()
}

/// The keys of nats-server by their block: its path, joined by blanks.
fn keys_of_nats_server() -> HashMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/keys.txt");
    let text = fs::read_to_string(path).expect("it is there");
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    let mut path = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match line.strip_prefix("    ") {
            Some(names) => {
                let names = names.split(' ').map(str::to_owned);
                found.entry(path.clone()).or_default().extend(names);
            }
            None => path = path_of(line),
        }
    }
    found
}

/// The path of the block in which `@` stands: words before a `{` or `[`, but names of accounts.
fn path_of(place: &str) -> String {
    let mut path = Vec::new();
    let mut word = String::new();
    for char in place.chars() {
        match char {
            '{' | '[' => {
                if word.len() > 1 {
                    path.push(word.clone());
                }
                word.clear();
            }
            char if char.is_alphanumeric() || char == '_' => word.push(char),
            ',' => word.clear(),
            _ => {}
        }
    }
    path.join(" ")
}
