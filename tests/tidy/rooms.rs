//! Rooms: which there are, in which order, and how large they and what is in them may be.
//!
//! What is too large today, or names what it should not, stands in lists that may only shrink: an
//! entry that is needed no more fails the test, too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::facts::{FILES, File, module_of};
use super::{none, read, root};

/// The rooms in order, each with where it is: a file names only its own room and those before it.
const ROOMS: &[(&str, &[&str])] = &[
    ("proto", &["proto"]),
    ("subject", &["subject"]),
    ("host", &["host"]),
    ("measure", &["measure"]),
    ("output", &["output"]),
    ("disk", &["disk"]),
    ("record", &["record"]),
    ("store", &["store"]),
    ("api", &["api"]),
    ("stream", &["stream"]),
    ("consumer_config", &["consumer::config"]),
    ("consumer", &["consumer"]),
    ("origin", &["origin"]),
    ("uring", &["uring"]),
    ("interest", &["interest"]),
    ("auth", &["auth"]),
    ("ocsp", &["ocsp"]),
    ("transport", &["transport"]),
    ("archive", &["archive"]),
    ("session", &["session"]),
    ("cluster", &["cluster"]),
    ("link", &["link"]),
    ("run", &["run"]),
    ("core", &["core"]),
    ("delivery", &["delivery"]),
    ("client", &["client"]),
    ("leaf", &["leaf"]),
    ("route", &["route"]),
    ("gateway", &["gateway"]),
    ("jetstream_words", &["jetstream::advisory", "jetstream::call"]),
    ("jetstream", &["jetstream"]),
    ("mqtt", &["mqtt"]),
    ("engine", &["engine"]),
    ("syntax", &["config::syntax"]),
    ("tls", &["config::tls"]),
    ("config_mqtt", &["config::mqtt"]),
    ("config_ocsp", &["config::ocsp"]),
    ("blocks", &["config::blocks"]),
    ("config", &["config"]),
    ("mesh", &["mesh"]),
    ("shard", &["shard"]),
    ("identity", &["identity"]),
    ("monitor", &["monitor"]),
    ("system", &["system"]),
    ("doctor", &["doctor"]),
    ("import", &["import"]),
    ("server", &["server"]),
    ("embed", &["embed"]),
];

const ROOM_LINES_MAX: usize = 4000;
const FILE_LINES_MAX: usize = 800;
const METHODS_MAX: usize = 60;
const FIELDS_MAX: usize = 20;
const PARAMETERS_MAX: usize = 5;

/// What names a room below its own, and which.
const BELOW: &[(&str, &str)] = &[];

/// Rooms that are to be divided, with their lines.
const LARGE_ROOMS: &[(&str, usize)] = &[];

/// Files that are to be divided, with their lines.
const LARGE_FILES: &[(&str, usize)] = &[];

/// Types that are to be divided, with how many functions they have.
const MANY_METHODS: &[(&str, usize)] = &[];

/// The same with how many fields they have.
const MANY_FIELDS: &[(&str, usize)] = &[];

/// Functions with too many parameters.
const MANY_PARAMETERS: &[(&str, usize)] = &[];

/// Functions of which a parameter is a tuple that has no name.
const TUPLES: &[&str] = &[];

/// Names that several types have.
#[rustfmt::skip]
const SHARED_NAMES: &[&str] = &[];

/// Where files forbid unsafe code that their room forbids already.
const FORBIDDEN_TWICE: &[&str] = &[];

#[test]
fn every_file_is_in_a_room_and_names_none_below_it() {
    let mut found = Excused::default();
    let mut wrong = Vec::new();
    for file in &*FILES {
        let Some(own) = room_of(&file.module) else {
            wrong.push(format!("{}: it is in no room", file.path));
            continue;
        };
        for (line, path) in &file.names {
            if let Some(room) = room_of(path).filter(|room| *room > own) {
                let (room, path) = (ROOMS[room].0, path.join("::"));
                let what = format!("{}:{line}: {path} is in {room}, below it", file.path);
                found.beyond(format!("{} to {room}", file.path), 1, what);
            }
        }
    }
    let below = BELOW.iter().map(|(file, room)| (format!("{file} to {room}"), 1));
    wrong.extend(found.compare(below));
    none(&wrong);
}

#[test]
fn rooms_and_files_are_small() {
    let mut rooms: BTreeMap<&str, usize> = BTreeMap::new();
    let mut files = Excused::default();
    for file in &*FILES {
        let Some(room) = room_of(&file.module) else { continue };
        *rooms.entry(ROOMS[room].0).or_default() += file.code_lines;
        files.at_most(FILE_LINES_MAX, &file.path, file.code_lines, "lines");
    }
    let mut large = Excused::default();
    for (room, lines) in rooms {
        large.at_most(ROOM_LINES_MAX, room, lines, "lines");
    }
    let mut wrong = large.compare(named(LARGE_ROOMS));
    wrong.extend(files.compare(named(LARGE_FILES)));
    none(&wrong);
}

#[test]
fn types_are_small() {
    let mut methods: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut fields = Excused::default();
    for file in &*FILES {
        for structure in &file.types {
            // What a document or a command line has is not ours to say.
            if !structure.is_document {
                fields.at_most(FIELDS_MAX, &structure.name, structure.fields, "fields");
            }
        }
        for of in &file.methods {
            *methods.entry((definer(file, of), of)).or_default() += 1;
        }
    }
    let mut many = Excused::default();
    for ((_, name), count) in methods {
        many.at_most(METHODS_MAX, name, count, "functions");
    }
    let mut wrong = many.compare(named(MANY_METHODS));
    wrong.extend(fields.compare(named(MANY_FIELDS)));
    none(&wrong);
}

#[test]
fn parameters_are_few_and_have_names() {
    let (mut many, mut tuples) = (Excused::default(), Excused::default());
    for function in FILES.iter().flat_map(|file| &file.functions) {
        many.at_most(PARAMETERS_MAX, &function.name, function.parameters, "parameters");
        if function.has_tuple_pattern {
            let what = format!("{}: a parameter is a tuple; make it a type", function.name);
            tuples.beyond(function.name.clone(), 1, what);
        }
    }
    let mut wrong = many.compare(named(MANY_PARAMETERS));
    wrong.extend(tuples.compare(TUPLES.iter().map(|name| ((*name).to_owned(), 1))));
    none(&wrong);
}

#[test]
fn a_type_has_a_name_of_its_own() {
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in &*FILES {
        for known in &file.types {
            files.entry(&known.name).or_default().push(&file.path);
        }
    }
    let mut shared = Excused::default();
    for (name, files) in files.into_iter().filter(|(_, files)| files.len() > 1) {
        let what = format!("{name} is the name of several types, in {}", files.join(", "));
        shared.beyond(name.to_owned(), 1, what);
    }
    none(&shared.compare(SHARED_NAMES.iter().map(|name| ((*name).to_owned(), 1))));
}

#[test]
fn unsafe_code_is_forbidden_once_a_room() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for file in FILES.iter().filter(|file| file.module.len() > 1 && file.forbids_unsafe) {
        match FORBIDDEN_TWICE.iter().find(|place| file.path.starts_with(**place)) {
            Some(place) => drop(used.insert(*place)),
            None => wrong.push(format!("{}: its room forbids unsafe code already", file.path)),
        }
    }
    let idle = FORBIDDEN_TWICE.iter().filter(|place| !used.contains(**place));
    wrong.extend(idle.map(|place| format!("{place}: {NEEDLESS}")));
    none(&wrong);
}

#[test]
fn each_room_exists_and_each_file_says_what_it_is() {
    let missing = room_paths().into_iter().filter(|path| !root().join(path).exists());
    let mut wrong: Vec<String> = missing.map(|path| format!("{path}: no such room")).collect();
    let (files, told) = (FILES.iter(), |file: &&File| !read(&file.path).starts_with("//! "));
    for file in files.filter(told) {
        wrong.push(format!("{}: its first line does not say what it is", file.path));
    }
    none(&wrong);
}

/// Where the rooms are, in order: a directory with a `/` at its end, or a file.
pub(super) fn room_paths() -> Vec<String> {
    let path_of = |place: &&str| {
        let path = format!("src/{}", place.replace("::", "/"));
        if root().join(format!("{path}.rs")).is_file() {
            format!("{path}.rs")
        } else {
            format!("{path}/")
        }
    };
    ROOMS.iter().flat_map(|(_, places)| *places).map(path_of).collect()
}

const NEEDLESS: &str = "the exception is not needed any more; take it out of the list";

/// What is beyond a limit, for a list of exceptions to be compared with.
#[derive(Default)]
struct Excused {
    found: BTreeMap<String, (usize, String)>,
}

impl Excused {
    fn at_most(&mut self, max: usize, name: &str, count: usize, of: &str) {
        if count > max {
            self.beyond(name.to_owned(), count, format!("{name} has {count} {of}, not {max}"));
        }
    }

    fn beyond(&mut self, name: String, count: usize, what: String) {
        let before = self.found.get(&name).map_or(0, |(count, _)| *count);
        if count > before {
            self.found.insert(name, (count, what));
        }
    }

    /// What no exception covers, and exceptions that cover nothing.
    fn compare(mut self, exceptions: impl Iterator<Item = (String, usize)>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, max) in exceptions {
            match self.found.remove(&name) {
                None => wrong.push(format!("{name}: {NEEDLESS}")),
                Some((count, what)) if count > max => {
                    wrong.push(format!("{what}; the exception is for {max}"));
                }
                Some(_) => {}
            }
        }
        wrong.extend(self.found.into_values().map(|(_, what)| what));
        wrong
    }
}

fn named(list: &'static [(&str, usize)]) -> impl Iterator<Item = (String, usize)> {
    list.iter().map(|(name, max)| ((*name).to_owned(), *max))
}

/// The file that defines the type which an impl in `file` is for: this one, or one of its room, or
/// any.
fn definer<'a>(file: &'a File, name: &str) -> &'a str {
    let defines = |other: &&File| other.types.iter().any(|known| known.name == name);
    let room = room_of(&file.module);
    let nearest = FILES.iter().filter(defines).max_by_key(|other| {
        (other.path == file.path, room_of(&other.module) == room, Reverse(&other.path))
    });
    nearest.map_or(&file.path, |other| &other.path)
}

/// Whether a file below `src` neither does input or output nor reads a clock: the rooms up to the
/// engine do not, but those that are there for it.
pub(super) fn is_sans_io(file: &str) -> bool {
    let room = room_of(&module_of(file)).map(|room| ROOMS[room].0);
    room.is_some_and(|room| !matches!(room, "host" | "uring") && is_up_to("engine", room))
}

/// Whether a file below `src` is part of what runs inside a shard.
pub(super) fn is_in_a_shard(file: &str) -> bool {
    let room = room_of(&module_of(file)).map(|room| ROOMS[room].0);
    room.is_some_and(|room| !matches!(room, "host" | "config") && is_up_to("shard", room))
}

fn is_up_to(last: &str, room: &str) -> bool {
    let place = |name: &str| ROOMS.iter().position(|(room, _)| *room == name);
    place(room) <= place(last)
}

/// The place in [`ROOMS`] of what a path from the root of the crate names.
fn room_of(path: &[String]) -> Option<usize> {
    let holds = |place: &&str| {
        let parts: Vec<&str> = place.split("::").collect();
        path.len() >= parts.len() && parts.iter().zip(path).all(|(part, is)| part == is)
    };
    let depth =
        |places: &[&str]| places.iter().filter(|place| holds(place)).map(|place| place.len()).max();
    let fitting =
        ROOMS.iter().enumerate().filter_map(|(at, (_, places))| Some((depth(places)?, at)));
    fitting.max().map(|(_, at)| at)
}
