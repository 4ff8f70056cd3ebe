//! Subjects: tokens separated by `.`, and filters with wildcards that match them.
//!
//! A subscription names a filter, a publish names a subject. `*` and `>` are wildcards only in
//! filters, only as whole tokens, and `>` only as the last one; in all other places, and in all
//! subjects, they stand for themselves. A subject with an empty token matches no filter, and a
//! filter with an empty token matches no subject.

#![forbid(unsafe_code)]

pub mod parted;
pub mod table;
pub mod transform;

use memchr::{memchr, memchr_iter, memchr2_iter};

pub use parted::Parted;
pub use table::{Scan, Table};
pub use transform::{Transform, TransformError};

/// Blanks that end an argument of a control line, and a form feed, as in nats-server: no subject
/// and no filter has any of them.
const BLANKS: &[u8] = b" \t\r\n\x0c";

/// Whether the text is one word of a control line. Other texts are never written to a client.
pub fn is_word(text: &[u8]) -> bool {
    !text.is_empty() && !text.iter().any(|byte| *byte <= b' ' && BLANKS.contains(byte))
}

/// Whether SUB may name this filter: one word, no empty token, and `>` only as the last token.
pub fn is_valid_filter(filter: &[u8]) -> bool {
    if !is_word(filter) {
        return false;
    }
    let mut rest = Some(filter);
    while let Some(text) = rest {
        let (token, behind) = split_first(text);
        if token.is_empty() || (token == b">" && behind.is_some()) {
            return false;
        }
        rest = behind;
    }
    true
}

/// Whether a pedantic client may publish to this subject: one word, no empty token, no
/// wildcard.
pub fn is_valid_publish(subject: &[u8]) -> bool {
    is_word(subject) && tokens(subject).all(|token| !matches!(token, b"" | b"*" | b">"))
}

/// Whether the filter has no wildcards, so that it matches at most the subject equal to it.
pub fn is_literal(filter: &[u8]) -> bool {
    // One pass over the filter instead of one for each token: most have none of these bytes.
    memchr2_iter(b'*', b'>', filter).all(|at| {
        let is_first = at == 0 || filter[at - 1] == b'.';
        let behind = filter.get(at + 1);
        let is_last = behind.is_none() || (filter[at] == b'*' && behind == Some(&b'.'));
        !(is_first && is_last)
    })
}

/// Returns the number of tokens, empty ones included; at least 1.
pub fn token_count(subject: &[u8]) -> usize {
    memchr_iter(b'.', subject).count() + 1
}

/// Whether any token is empty.
pub fn has_empty_token(subject: &[u8]) -> bool {
    let mut token_start = 0;
    for dot in memchr_iter(b'.', subject) {
        if dot == token_start {
            return true;
        }
        token_start = dot + 1;
    }
    token_start == subject.len()
}

/// Whether the filter matches the subject. A [`Table`] finds all matching filters at once.
pub fn matches(filter: &[u8], subject: &[u8]) -> bool {
    if has_empty_token(subject) {
        return false;
    }
    let (mut filter, mut subject) = (Some(filter), Some(subject));
    while let (Some(wanted), Some(given)) = (filter, subject) {
        let (wanted_token, wanted_rest) = split_first(wanted);
        let (given_token, given_rest) = split_first(given);
        if wanted_token == b">" && wanted_rest.is_none() {
            return true;
        }
        if wanted_token != b"*" && wanted_token != given_token {
            return false;
        }
        (filter, subject) = (wanted_rest, given_rest);
    }
    filter.is_none() && subject.is_none()
}

/// Whether some subject matches both filters.
pub fn overlap(one: &[u8], other: &[u8]) -> bool {
    let (mut one, mut other) = (Some(one), Some(other));
    while let (Some(left), Some(right)) = (one, other) {
        let (left_token, left_rest) = split_first(left);
        let (right_token, right_rest) = split_first(right);
        let left_is_tail = left_token == b">" && left_rest.is_none();
        let right_is_tail = right_token == b">" && right_rest.is_none();
        if left_is_tail || right_is_tail {
            return true;
        }
        if left_token != b"*" && right_token != b"*" && left_token != right_token {
            return false;
        }
        (one, other) = (left_rest, right_rest);
    }
    one.is_none() && other.is_none()
}

/// Whether the first filter matches every subject that the second one does. A token `>` of the
/// second one is not covered by a `*`, wherever it stands.
pub fn covers(filter: &[u8], narrower: &[u8]) -> bool {
    if has_empty_token(narrower) {
        return false;
    }
    let (mut filter, mut narrower) = (Some(filter), Some(narrower));
    while let (Some(wide), Some(narrow)) = (filter, narrower) {
        let (wide_token, wide_rest) = split_first(wide);
        let (narrow_token, narrow_rest) = split_first(narrow);
        if wide_token == b">" && wide_rest.is_none() {
            return true;
        }
        if narrow_token == b">" || (wide_token != b"*" && wide_token != narrow_token) {
            return false;
        }
        (filter, narrower) = (wide_rest, narrow_rest);
    }
    filter.is_none() && narrower.is_none()
}

/// Returns the filter for exactly the subjects that both filters match; `None` if there are none.
pub fn intersection(one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let mut both = Vec::with_capacity(one.len().max(other.len()));
    let (mut one, mut other) = (Some(one), Some(other));
    while let (Some(left), Some(right)) = (one, other) {
        let (left_token, left_rest) = split_first(left);
        let (right_token, right_rest) = split_first(right);
        if left_token == b">" && left_rest.is_none() {
            both.extend_from_slice(right);
            return Some(both);
        }
        if right_token == b">" && right_rest.is_none() {
            both.extend_from_slice(left);
            return Some(both);
        }
        let token = if left_token == b"*" { right_token } else { left_token };
        if right_token != b"*" && right_token != token {
            return None;
        }
        both.extend_from_slice(token);
        both.push(b'.');
        (one, other) = (left_rest, right_rest);
    }
    both.pop();
    (one.is_none() && other.is_none()).then_some(both)
}

/// Returns the tokens, at least one.
pub fn tokens(subject: &[u8]) -> impl Iterator<Item = &[u8]> {
    subject.split(|byte| *byte == b'.')
}

/// Returns the first token, which may be empty.
pub fn first_token(subject: &[u8]) -> &[u8] {
    split_first(subject).0
}

/// Returns the first token, and the text behind its dot, if there is one.
fn split_first(subject: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr(b'.', subject) {
        Some(dot) => (&subject[..dot], Some(&subject[dot + 1..])),
        None => (subject, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_refused_for_empty_tokens_and_for_anything_behind_the_last_wildcard() {
        for valid in ["a", "*", ">", "a.*", "*.*.>", "a.>", "foo*", "**", ">>.a", "a>b.c", "$S._"] {
            assert!(is_valid_filter(valid.as_bytes()), "{valid}");
        }
        for invalid in ["", ".", ".a", "a.", "a..b", "a.>.b", ">.", ">.>", "..", "*."] {
            assert!(!is_valid_filter(invalid.as_bytes()), "{invalid}");
        }
    }

    #[test]
    fn pedantic_publishing_allows_no_wildcards_and_no_empty_tokens() {
        for valid in ["a", "a.b", "a*", "a.>b", "**", ">>"] {
            assert!(is_valid_publish(valid.as_bytes()), "{valid}");
        }
        for invalid in ["", ".", "a.", ".a", "a..b", "*", ">", "a.*.b", "a.>", ">.a"] {
            assert!(!is_valid_publish(invalid.as_bytes()), "{invalid}");
        }
    }

    #[test]
    fn of_all_bytes_blanks_are_in_no_subject_and_no_filter_wherever_they_stand() {
        for byte in 0..=u8::MAX {
            let is_blank = matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 12);
            let texts = [
                vec![byte],
                vec![byte, b'a'],
                vec![b'a', byte],
                vec![b'a', byte, b'a'],
                vec![b'a', b'.', byte],
                vec![byte, b'.', b'a'],
                vec![b'a', b'.', b'b', byte, b'.', b'c'],
            ];
            for text in texts {
                let name = text.escape_ascii();
                assert_eq!(is_word(&text), !is_blank, "{name}");
                let tokens: Vec<&[u8]> = tokens(&text).collect();
                let is_wild = tokens.iter().any(|token| matches!(*token, b"*" | b">"));
                let has_empty = tokens.iter().any(|token| token.is_empty());
                let is_subject = !is_blank && !has_empty && !is_wild;
                assert_eq!(is_valid_publish(&text), is_subject, "{name}");
                let ends_early = tokens[..tokens.len() - 1].contains(&&b">"[..]);
                let is_filter = !is_blank && !has_empty && !ends_early;
                assert_eq!(is_valid_filter(&text), is_filter, "{name}");
            }
        }
    }

    #[test]
    fn wildcard_characters_inside_a_token_are_ordinary() {
        for literal in ["a", "a*", "*a.>b", "**.>>", ">.a"] {
            assert!(is_literal(literal.as_bytes()), "{literal}");
        }
        for wild in ["*", ">", "a.*", "*.a", "a.>"] {
            assert!(!is_literal(wild.as_bytes()), "{wild}");
        }
    }

    #[test]
    fn tokens_are_counted_with_the_empty_ones() {
        for (subject, count) in [("", 1), ("a", 1), ("a.b", 2), ("..", 3), ("a.*.>", 3)] {
            assert_eq!(token_count(subject.as_bytes()), count, "{subject}");
            assert_eq!(tokens(subject.as_bytes()).count(), count, "{subject}");
        }
    }

    #[test]
    fn a_filter_is_literal_unless_a_whole_token_is_a_wildcard() {
        // All texts of up to six of these bytes.
        let mut texts = vec![Vec::new()];
        for _ in 0..6 {
            let longer = texts
                .iter()
                .flat_map(|text| b".*>a".iter().map(move |byte| [text, &[*byte][..]].concat()));
            texts = longer.chain([Vec::new()]).collect();
        }
        for text in texts {
            let all: Vec<&[u8]> = tokens(&text).collect();
            let is_wild = all.contains(&&b"*"[..]) || all.last() == Some(&&b">"[..]);
            assert_eq!(is_literal(&text), !is_wild, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_filter_matches_what_its_wildcards_cover() {
        let pairs = [
            ("a", "a"),
            ("a.*", "a.b"),
            ("a.*", "a.*"),
            ("a.>", "a.b"),
            ("a.>", "a.b.c.d"),
            ("a.>", "a.>"),
            (">", "a"),
            (">", "a.b"),
            ("*", ">"),
            ("*.*.c.*", "a.b.c.d"),
            ("a.*.>", "a.b.c"),
            ("a*", "a*"),
            (">.a", ">.a"),
        ];
        for (filter, subject) in pairs {
            assert!(matches(filter.as_bytes(), subject.as_bytes()), "{filter} {subject}");
        }
        let pairs = [
            ("a", "A"),
            ("a.*", "a"),
            ("a.*", "a.b.c"),
            ("a.>", "a"),
            ("a.>", "ab.c"),
            ("a.b", "a.*"),
            ("a.b", "a.>"),
            ("a*", "ab"),
            (">.a", "b.a"),
            ("*", "a.b"),
            ("a.*.>", "a.b"),
        ];
        for (filter, subject) in pairs {
            assert!(!matches(filter.as_bytes(), subject.as_bytes()), "{filter} {subject}");
        }
    }

    #[test]
    fn a_subject_with_an_empty_token_matches_nothing() {
        for subject in ["", ".", "a.", ".a", "a..b"] {
            for filter in [subject, ">", "*", "*.*", "*.>", "a.>", "a.*", "*.*.*"] {
                assert!(!matches(filter.as_bytes(), subject.as_bytes()), "{filter} {subject}");
            }
        }
    }

    #[test]
    fn a_filter_covers_those_that_match_nothing_else() {
        for (wide, narrow) in [("a", "a"), ("*", "*"), (">", "*.>"), ("a.*", "a.b"), ("a.>", "a.>")]
        {
            assert!(covers(wide.as_bytes(), narrow.as_bytes()), "{wide} {narrow}");
        }
        for (wide, narrow) in [("a", "*"), ("*", ">"), ("*.>", ">"), ("a.*", "a.>"), (">", "a.")] {
            assert!(!covers(wide.as_bytes(), narrow.as_bytes()), "{wide} {narrow}");
        }
    }

    #[test]
    fn an_intersection_matches_what_both_filters_match() {
        let names =
            ["a", "b", "*", ">", "a.*", "*.b", "a.>", "*.*", "a.b", "*.b.>", ">.a", "a.*.c"];
        let subjects =
            ["a", "b", "a.a", "a.b", "b.b", "a.b.c", "a.a.c", "b.b.b.b", ">.a", "a.b.c.d"];
        for one in names.map(str::as_bytes) {
            for other in names.map(str::as_bytes) {
                let both = intersection(one, other);
                assert_eq!(both.is_some(), overlap(one, other));
                for subject in subjects.map(str::as_bytes) {
                    let expected = matches(one, subject) && matches(other, subject);
                    let found = both.as_ref().is_some_and(|both| matches(both, subject));
                    let names = [one, other, subject].map(<[u8]>::escape_ascii);
                    assert_eq!(found, expected, "{} {} {}", names[0], names[1], names[2]);
                }
            }
        }
    }

    #[test]
    fn filters_overlap_if_a_subject_matches_both() {
        for (one, other) in [("a", "a"), ("a.*", "*.b"), ("a.>", "*.b.c"), (">", "x"), ("*", ">")] {
            assert!(overlap(one.as_bytes(), other.as_bytes()), "{one} {other}");
            assert!(overlap(other.as_bytes(), one.as_bytes()), "{other} {one}");
        }
        for (one, other) in [("a", "b"), ("a.*", "a"), ("a.>", "a"), ("a.*", "b.>"), ("*.*", "a")] {
            assert!(!overlap(one.as_bytes(), other.as_bytes()), "{one} {other}");
            assert!(!overlap(other.as_bytes(), one.as_bytes()), "{other} {one}");
        }
    }
}
