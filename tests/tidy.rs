//! The rules of the source tree that no compiler checks.
//!
//! They are about code, not prose: comments, strings and character literals do not count. Those
//! about the documents are in `documents`, the one about comments is in `words`.

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/facts.rs"]
mod facts;
#[path = "tidy/rooms.rs"]
mod rooms;
#[path = "tidy/words.rs"]
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// Where `unsafe` may be written.
const ISLANDS: [&str; 2] = ["src/uring/", "benches/buffers/kernel.rs"];

/// Files above an island, which would forbid it what it needs.
const ABOVE_ISLANDS: [&str; 1] = ["src/lib.rs"];

const COLUMNS_MAX: usize = 100;

#[test]
fn modules_without_io_name_nothing_that_does_io() {
    let forbidden =
        ["std::net", "std::thread", "libc", "io_uring", "Instant::now", "SystemTime", "async"];
    check_code(
        |file, code| {
            if rooms::is_sans_io(file) { named(code, &forbidden) } else { Vec::new() }
        },
    );
}

#[test]
fn nothing_inside_a_shard_locks_or_awaits() {
    let forbidden = ["Mutex", "RwLock", "Rc<RefCell", "async", "await", "Condvar"];
    check_code(
        |file, code| {
            if rooms::is_in_a_shard(file) { named(code, &forbidden) } else { Vec::new() }
        },
    );
}

#[test]
fn errors_are_types_of_ours() {
    check_code(|_, code| named(code, &["anyhow", "Box<dyn Error", "Box<dyn std::error::Error"]));
}

#[test]
fn unsafe_is_written_on_its_islands_only() {
    check_code(|file, code| {
        let island = ISLANDS.iter().any(|island| file.starts_with(island));
        if island { Vec::new() } else { named(code, &["unsafe"]) }
    });
}

#[test]
fn every_module_but_the_islands_forbids_unsafe_code() {
    let files = sources("src");
    let forbidding: Vec<&String> = files
        .iter()
        .filter(|(_, text)| code_of(text).contains("#![forbid(unsafe_code)]"))
        .map(|(file, _)| file)
        .collect();
    let mut wrong = Vec::new();
    for (file, _) in &files {
        let excused = ISLANDS.iter().any(|island| file.starts_with(island))
            || ABOVE_ISLANDS.contains(&file.as_str());
        // What a module forbids, its children cannot allow.
        let forbidden = forbidding.iter().any(|other| {
            *other == file
                || other.strip_suffix("mod.rs").is_some_and(|directory| file.starts_with(directory))
                || other.strip_suffix(".rs").is_some_and(|module| {
                    file.strip_prefix(module).is_some_and(|rest| rest.starts_with('/'))
                })
        });
        if !excused && !forbidden {
            wrong.push(format!("{file}: #![forbid(unsafe_code)] is missing"));
        }
    }
    none(&wrong);
}

#[test]
fn who_bounds_a_queue_without_a_bound_is_said_beside_it() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in code_of(&text).lines().enumerate() {
            let is_told = lines[at].contains("//")
                || at.checked_sub(1).is_some_and(|at| lines[at].trim_start().starts_with("//"));
            if line.contains("unbounded()") && !is_told {
                wrong.push(format!("{file}:{}: nothing says who bounds it", at + 1));
            }
        }
    }
    none(&wrong);
}

#[test]
fn exceptions_from_lints_give_their_reason() {
    check_code(|_, code| {
        let mut wrong = Vec::new();
        for (at, _) in code.match_indices("#[").chain(code.match_indices("#![")) {
            let attribute = code[at..].trim_start_matches(['#', '!', '[']);
            let exception = attribute.starts_with("allow(") || attribute.starts_with("expect(");
            let end = attribute.find(")]").unwrap_or(attribute.len());
            if exception && !attribute[..end].contains("reason =") {
                wrong.push(format!("{}: no reason", line_of(code, at)));
            }
        }
        wrong
    });
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let mut wrong = Vec::new();
    for directory in ["src", "tests", "benches", "perf", "fuzz", "tuning"] {
        for path in files_below(&root().join(directory)) {
            let meaningless = path.iter().any(|part| {
                let stem = Path::new(part).file_stem().and_then(|stem| stem.to_str());
                stem.is_some_and(|stem| {
                    ["util", "utils", "common", "helper", "helpers", "manager"].contains(&stem)
                })
            });
            if meaningless {
                wrong.push(path.display().to_string());
            }
        }
    }
    none(&wrong);
}

#[test]
fn no_line_is_over_a_hundred_columns() {
    let mut wrong = Vec::new();
    for directory in ["src", "tests", "benches", "perf", "fuzz"] {
        for (file, text) in sources(directory) {
            for (number, line) in text.lines().enumerate() {
                let columns = line.chars().count();
                if columns > COLUMNS_MAX {
                    wrong.push(format!("{file}:{}: {columns} columns", number + 1));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn code_is_told_from_comments_and_literals() {
    let text = "a /* b /* c */ d */ e // f\n\"g \\\" h\" r#\"i \" j\"# 'k' '\\'' l<'m> b\"n\" o";
    let kept: String = code_of(text).split_whitespace().collect();
    assert_eq!(kept, "ael<'m>bo");
    assert_eq!(code_of(text).lines().count(), text.lines().count());
    assert_eq!(named("fn asynchronous() { async {} }", &["async"]), ["1: async"]);
}

/// Runs `look` over the code of every file below `src`; it returns what is wrong there.
fn check_code(look: impl Fn(&str, &str) -> Vec<String>) {
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let found = look(&file, &code_of(&text));
        wrong.extend(found.into_iter().map(|what| format!("{file}:{what}")));
    }
    none(&wrong);
}

/// Where `code` names one of `words`, as a whole word.
fn named(code: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for word in words {
        for (at, _) in code.match_indices(word) {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            let part_of_a_word =
                |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            if !part_of_a_word(before) && !part_of_a_word(after) {
                found.push(format!("{}: {word}", line_of(code, at)));
            }
        }
    }
    found
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// `text` with comments, strings and character literals taken out; lines stay where they are.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = literal_or_comment_len(rest, code.chars().next_back());
        if len == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(rest[..len].chars().filter(|&c| c == '\n'));
            rest = &rest[len..];
        }
    }
    code
}

/// How long the comment or literal is with which `rest` begins; 0 if it begins with code.
fn literal_or_comment_len(rest: &str, before: Option<char>) -> usize {
    let in_a_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_len(rest);
    }
    if rest.starts_with('"') {
        return quoted_len(rest, '"');
    }
    if rest.starts_with('r') && (!in_a_word || before == Some('b')) {
        let hashes = rest[1..].chars().take_while(|&c| c == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            return rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len());
        }
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        let mut chars = inside.chars();
        let first = chars.next();
        // Otherwise it is a lifetime.
        if first == Some('\\') || chars.next() == Some('\'') {
            return quoted_len(rest, '\'');
        }
    }
    0
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0_usize;
    for (at, _) in rest.char_indices() {
        if rest[at..].starts_with("/*") {
            depth += 1;
        } else if rest[at..].starts_with("*/") {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return at + 2;
            }
        }
    }
    rest.len()
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    rest.len()
}

/// The Rust files below a directory of the repository, each with its text.
fn sources(directory: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in files_below(&root().join(directory)) {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("it is below the root");
            let text = fs::read_to_string(&path).expect("sources are text");
            found.push((name.display().to_string(), text));
        }
    }
    found
}

/// All files below `directory` but those that are built.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let built = ["target", "corpus", "artifacts", "__pycache__"];
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return found; // A package may have been left out, as in a vendored copy.
    };
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            if !built.iter().any(|name| path.ends_with(name)) {
                found.extend(files_below(&path));
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
