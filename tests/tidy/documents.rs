//! Documents: what they name exists, and stands where it should.

use std::collections::BTreeMap;
use std::path::Path;

use super::facts::FILES;
use super::rooms::room_paths;
use super::{files_below, none, read, root, sources};

const ARCHITECTURE_LINES_MAX: usize = 200;

/// The chapters of ARCHITECTURE.md that may name files; the others name rooms.
const CHAPTERS_WITH_FILES: [&str; 2] = ["The six steps of a message", "Where to add what"];

/// Where the names of tests are checked.
const INVARIANTS: &str = "tests/README.md";

#[test]
fn the_readme_begins_with_how_to_run_and_how_to_test() {
    let readme = read("README.md");
    let top: Vec<&str> = readme.lines().take(40).collect();
    for command in ["cargo run --release -- --shards auto", "cargo test"] {
        assert!(top.iter().any(|line| line.contains(command)), "`{command}` is not at the top");
    }
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let mut wrong = Vec::new();
    for document in documents() {
        let directory = root().join(&document);
        let directory = directory.parent().expect("a document is in a directory");
        for (number, line) in lines(&read(&document)) {
            let links = links(&line.text).into_iter().map(|path| (directory, path));
            let paths = paths(&line).into_iter().map(|path| (root(), path));
            for (base, path) in links.chain(paths) {
                if !base.join(&path).exists() {
                    wrong.push(format!("{document}:{number}: {path} does not exist"));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_architecture_lists_the_rooms_in_their_order_and_is_short() {
    let text = read("ARCHITECTURE.md");
    let listed: Vec<String> = lines(&text)
        .filter(|(_, line)| line.is_fenced && line.text.starts_with("src/"))
        .filter_map(|(_, line)| line.text.split_whitespace().next().map(str::to_owned))
        .collect();
    assert_eq!(listed, room_paths(), "ARCHITECTURE.md does not list the rooms of tests/tidy");
    let lines = text.lines().count();
    assert!(lines <= ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md has {lines} lines");
}

#[test]
fn the_architecture_names_files_only_where_it_leads_through_them() {
    let rooms = room_paths();
    let (mut chapter, mut wrong) = (String::new(), Vec::new());
    for (number, line) in lines(&read("ARCHITECTURE.md")) {
        if let Some(title) = line.text.strip_prefix("## ").filter(|_| !line.is_fenced) {
            title.clone_into(&mut chapter);
        }
        let files = paths(&line).into_iter().filter(|path| path.starts_with("src/"));
        let files = files.filter(|path| path.ends_with(".rs") && !rooms.contains(path));
        for file in files.filter(|_| !CHAPTERS_WITH_FILES.contains(&chapter.as_str())) {
            wrong.push(format!("ARCHITECTURE.md:{number}: {file}; its own first line is for that"));
        }
    }
    none(&wrong);
}

#[test]
fn each_step_of_a_message_is_a_function_of_the_file_that_is_named() {
    let mut wrong = Vec::new();
    let mut steps = 0;
    for (number, line) in lines(&read("ARCHITECTURE.md")) {
        // A row of the table begins with its number.
        let mut cells = line.text.split('|').map(str::trim).skip(1);
        if line.is_fenced || cells.next().is_none_or(|first| first.parse::<u8>().is_err()) {
            continue;
        }
        steps += 1;
        let place = cells.next().map(spans).unwrap_or_default();
        let [function, file] = place[..] else {
            wrong.push(format!("ARCHITECTURE.md:{number}: not a function and its file"));
            continue;
        };
        let name = function.rsplit("::").next().unwrap_or(function);
        let code = read(file);
        if !["(", "<"].iter().any(|next| code.contains(&format!("fn {name}{next}"))) {
            wrong.push(format!("ARCHITECTURE.md:{number}: {file} has no function {name}"));
        }
    }
    assert_eq!(steps, 6, "a message has six steps");
    none(&wrong);
}

/// Comments lead to functions of the engine and of its core: those must be there.
#[test]
fn every_function_of_the_engine_that_a_comment_names_exists() {
    let functions: Vec<&str> =
        FILES.iter().flat_map(|file| &file.functions).map(|f| &*f.name).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        for (number, line) in text.lines().enumerate() {
            let Some((_, comment)) = line.split_once("//") else { continue };
            for owner in ["Engine::", "Core::"] {
                for (_, rest) in comment.match_indices(owner).map(|(at, _)| comment.split_at(at)) {
                    let end = rest[owner.len()..].find(|c: char| !c.is_alphanumeric() && c != '_');
                    let name = &rest[..end.map_or(rest.len(), |end| owner.len() + end)];
                    if name.len() > owner.len() && !functions.contains(&name) {
                        wrong.push(format!("{path}:{}: there is no {name}", number + 1));
                    }
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_test_that_shows_an_invariant_exists_where_it_is_said_to_be() {
    let code: BTreeMap<String, String> =
        sources("src").into_iter().chain(sources("tests")).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (number, line) in lines(&read(INVARIANTS)) {
        let places = paths(&line);
        for name in spans(&line.text).into_iter().filter(|span| is_test_name(span)) {
            seen += 1;
            let definition = format!("fn {name}(");
            let is_there = places.iter().any(|place| {
                let mut files = code.iter().filter(|(file, _)| Path::new(file).starts_with(place));
                files.any(|(_, text)| text.contains(&definition))
            });
            if !is_there {
                wrong.push(format!("{INVARIANTS}:{number}: no file of its line has {name}"));
            }
        }
    }
    assert!(seen > 0, "{INVARIANTS} names no test at all");
    none(&wrong);
}

#[test]
fn paths_are_told_from_other_words() {
    let line = |text: &str, is_fenced| Line { text: text.to_owned(), is_fenced };
    assert_eq!(links("see [a](b.md#c) and [d](https://e)"), ["b.md"]);
    let spans = "`src/lib.rs:3`, `cargo test`, `src/*.rs`, `a/b`, src/no.rs, `fuzz/run parse 9`";
    assert_eq!(paths(&line(spans, false)), ["src/lib.rs", "fuzz/run"]);
    let command = "target/release/a --json perf/results, --x=tests/{a} src/a:1";
    assert_eq!(paths(&line(command, true)), ["perf/results", "src/a"]);
    assert!(is_test_name("a_segment_comes_home_with_its_last_holder"));
    assert!(!is_test_name("max_pending") && !is_test_name("SIM_SEEDS=5 cargo test"));
}

/// A line of Markdown.
struct Line {
    text: String,
    is_fenced: bool,
}

/// The lines of a Markdown text with their numbers, without the fences themselves.
fn lines(text: &str) -> impl Iterator<Item = (usize, Line)> {
    let mut is_fenced = false;
    (1..).zip(text.lines()).filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            return None;
        }
        Some((number, Line { text: line.to_owned(), is_fenced }))
    })
}

/// The documents whose paths are checked.
fn documents() -> Vec<String> {
    let mut found: Vec<String> = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", INVARIANTS]
        .into_iter()
        .map(str::to_owned)
        .collect();
    let below = files_below(&root().join("docs"));
    let names = below.iter().filter_map(|path| path.strip_prefix(root()).ok());
    found.extend(names.map(|name| name.display().to_string()).filter(|name| name.ends_with(".md")));
    found
}

/// The targets of the relative links in a line of Markdown.
fn links(line: &str) -> Vec<String> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next())
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .filter(|target| !target.starts_with("mailto:"))
        .map(|target| target.split('#').next().unwrap_or(target).to_owned())
        .collect()
}

/// The paths of this repository that a line names as code.
fn paths(line: &Line) -> Vec<String> {
    let ours = ["src", "tests", "benches", "perf", "fuzz", "tuning", "docs", ".ci"];
    let code = if line.is_fenced { vec![line.text.as_str()] } else { spans(&line.text) };
    code.iter()
        .flat_map(|code| code.split_whitespace())
        .map(|word| word.split(':').next().unwrap_or(word).trim_end_matches([',', ';', '.']))
        .filter(|word| word.split('/').next().is_some_and(|first| ours.contains(&first)))
        .filter(|word| word.contains('/') && !word.contains(['*', '{', '<', '…']))
        .map(str::to_owned)
        .collect()
}

/// What a line of Markdown sets as code.
fn spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Whether it is a sentence in a test's way of writing: no other name here has five words.
fn is_test_name(span: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    span.chars().all(is_plain) && span.matches('_').count() >= 4
}
