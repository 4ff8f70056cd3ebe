//! Doc comments: each can be read alone, so it begins with the thing that it is about.

use super::{none, sources};

/// Words that refer to something outside of the comment, or ask for it. A comment that begins
/// with one of them cannot be read alone.
const REFERRING: &[&str] = &[
    "Her", "His", "How", "If", "It", "Its", "Of", "That", "Their", "They", "Those", "What", "When",
    "Where", "Who", "Whoever", "Whom", "Whose",
];

/// Beginnings of the same kind that have several words.
const REFERRING_PHRASES: &[&str] = &["The same", "So many", "So much", "With more"];

#[test]
fn a_doc_comment_begins_with_the_thing_that_it_is_about() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        for (at, line) in lines.iter().enumerate() {
            let continues = at > 0 && lines[at - 1].starts_with("///");
            let Some(comment) = line.strip_prefix("/// ").filter(|_| !continues) else { continue };
            let first = comment.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            let refers = REFERRING.contains(&first)
                || REFERRING_PHRASES.iter().any(|phrase| comment.starts_with(phrase));
            if refers {
                wrong.push(format!("{path}:{}: {comment}", at + 1));
            }
        }
    }
    none(&wrong);
}
