//! The page `docs/configuration.md`: all keys of the file, as the tables of keys have them.
//!
//! Names and blocks are those of the tables; the type is what a key says of values of other kinds.
//! A sample of its value shows which option it sets: the option's default, unit and doc comment
//! are the key's, and whether a reload takes the sample is what a reload does. What the code cannot
//! tell stands in `tests/config/reference.txt`.

mod blocks;
mod samples;
mod told;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use blocks::ALL;
use samples::Sampler;
use told::Told;

const PAGE: &str = "docs/configuration.md";
const HEAD: &str = "\
# Configuration, key by key

Every key of the configuration file, its type and default, and whether a reload (`SIGHUP`)
changes it: *yes*, or *restart*. Keys are not case-sensitive; synonyms follow the usual name. *Ours*
are keys that nats-server does not have. Keys of features that are missing are *refused* (the server
does not start with them), or have *no effect* and a warning in the log.

A duration is text such as `\"1m30s\"`; sizes may have a suffix (`64KB`, `1MB`, `2GB`). What an
option is for, with its flag: [options.md](options.md). What differs from nats-server:
[differences.md](differences.md).

This page is made from the tables of the code, and a test compares it with them:
`UPDATE=1 cargo test --lib reference` writes it anew.
";

#[test]
fn the_reference_of_all_keys_is_what_the_tables_of_keys_say() {
    let page = page();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).expect("it can be written");
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = page.lines().zip(is.lines().chain(std::iter::repeat(""))).find(|(a, b)| a != b);
    let hint = "write it anew: UPDATE=1 cargo test --lib reference";
    assert!(is == page, "{PAGE} is not what the code says; {hint}\n{differing:?}");
}

#[test]
fn each_key_of_which_something_is_said_by_hand_exists() {
    let known: BTreeSet<String> = ALL.iter().flat_map(|block| block.paths()).collect();
    let said = Sampler::new();
    let unknown: Vec<&String> = said.paths().filter(|path| !known.contains(*path)).collect();
    assert!(unknown.is_empty(), "tests/config/reference.txt has no such keys: {unknown:?}");
}

#[test]
fn each_test_that_holds_a_key_exists_and_its_file_names_the_key() {
    let sources = told::sources();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for block in &*ALL {
        for key in &block.keys {
            let Some(test) = key.told.test.as_ref().filter(|test| *test != "–") else { continue };
            seen.insert(test.clone());
            let definition = format!("fn {test}(");
            let is_held = sources.iter().any(|(path, text)| {
                let is_here = text.contains(&definition) || path.ends_with(&**test);
                is_here && key.names.iter().any(|name| text.contains(name))
            });
            if !is_held {
                wrong.push(format!("{} {}: {test}", block.title(), key.names[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "no such test, or it does not name the key:\n{}", wrong.join("\n"));
    assert!(seen.len() > 10, "{} tests", seen.len());
}

/// The whole page, as it should be.
fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut unsaid = Vec::new();
    for block in &*ALL {
        write!(page, "\n## {}\n\n", block.title()).expect("it is text");
        if let Some(places) = block.other_places() {
            write!(page, "Also {places}.\n\n").expect("it is text");
        }
        let is_held = block.is_held();
        let held = if is_held { " held by |" } else { "" };
        let rule = if is_held { "---|" } else { "" };
        write!(page, "| key | type | default | reload | |{held}\n|---|---|---|---|---|{rule}\n")
            .expect("it is text");
        for key in &block.keys {
            let Told { kind, default, reload, meaning, test } = &key.told;
            let names: Vec<String> = key.names.iter().map(|name| format!("`{name}`")).collect();
            let ours = if key.is_ours { " *ours*" } else { "" };
            let says = |said: &Option<String>| said.clone().unwrap_or_else(|| "?".to_owned());
            let mut cells = vec![
                format!("{}{ours}", names.join(", ")),
                says(kind),
                says(default),
                says(reload),
            ];
            let test = test.as_ref().map(|test| match &**test {
                "–" => "–".to_owned(),
                test => format!("`{test}`"),
            });
            match test {
                _ if is_held => cells.extend([says(meaning), says(&test)]),
                Some(test) if test != "–" => {
                    cells.push(format!("{} Held by {test}.", says(meaning)));
                }
                _ => cells.push(says(meaning)),
            }
            if cells.iter().any(|cell| cell == "?") {
                unsaid.push(format!("{}: {}", block.title(), cells.join(" | ")));
            }
            writeln!(page, "| {} |", cells.join(" | ")).expect("it is text");
        }
    }
    if std::env::var_os("DRAFT").is_none() {
        let hint = "tests/config/reference.txt has to say what the code does not tell (\"?\")";
        assert!(unsaid.is_empty(), "{hint}:\n{}", unsaid.join("\n"));
    }
    page
}
