//! Topics and subjects: each is mapped byte by byte, and back.
//!
//! A `/` becomes a `.`; an empty level becomes a token `/`, and a `.` in a topic `//`.

/// Returns the subject of a topic; `None` if it has wildcards, or bytes that no subject has.
pub fn subject_of_topic(topic: &[u8]) -> Option<Vec<u8>> {
    if topic.iter().any(|byte| matches!(byte, b'+' | b'#')) { None } else { convert(topic) }
}

/// Returns the subject of a filter; `None` if a wildcard is not a whole level, `#` is not the last,
/// or it has bytes that no subject has.
pub fn subject_of_filter(filter: &[u8]) -> Option<Vec<u8>> {
    let mut levels = filter.split(|byte| *byte == b'/').peekable();
    while let Some(level) = levels.next() {
        let has_wildcard = level.iter().any(|byte| matches!(byte, b'+' | b'#'));
        let is_last = levels.peek().is_none();
        if has_wildcard && level != b"+" && !(level == b"#" && is_last) {
            return None;
        }
    }
    convert(filter)
}

fn convert(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() + 8);
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            b'/' if out.last().is_none_or(|last| *last == b'.') => out.extend_from_slice(b"/."),
            b'/' if text.get(at + 1).is_none_or(|next| *next == b'/') => {
                out.extend_from_slice(b"./");
            }
            b'/' => out.push(b'.'),
            b'.' => out.extend_from_slice(b"//"),
            b'+' => out.push(b'*'),
            b'#' => out.push(b'>'),
            b' ' | b'\t' | b'\r' | b'\n' | 0x0c | 0x7f => return None,
            _ => out.push(byte),
        }
    }
    if out.last() == Some(&b'.') {
        out.push(b'/');
    }
    Some(out)
}

/// Appends the topic of a subject.
pub fn write_topic(subject: &[u8], out: &mut Vec<u8>) {
    let mut rest = subject;
    loop {
        rest = match rest {
            [b'/', b'.', rest @ ..] | [b'.', rest @ ..] => {
                out.push(b'/');
                rest
            }
            [b'/', b'/', rest @ ..] => {
                out.push(b'.');
                rest
            }
            [b'/', rest @ ..] => rest,
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
            [] => return,
        };
    }
}

/// Returns the subject one level above that of a filter that ends in `#`: the filter takes its
/// messages, too.
pub fn level_above(subject: &[u8]) -> Option<&[u8]> {
    subject.strip_suffix(b".>").filter(|above| !above.is_empty())
}

/// Whether a filter's subject begins with a wildcard: it does not match topics that begin with `$`.
pub fn begins_with_wildcard(subject: &[u8]) -> bool {
    matches!(subject, [b'*' | b'>'] | [b'*', b'.', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic_of(subject: &[u8]) -> String {
        let mut out = Vec::new();
        write_topic(subject, &mut out);
        String::from_utf8(out).expect("topics are text")
    }

    #[test]
    fn topics_become_subjects_and_come_back() {
        for (topic, subject) in [
            ("foo/bar", "foo.bar"),
            ("foo", "foo"),
            ("/foo", "/.foo"),
            ("foo/", "foo./"),
            ("foo//bar", "foo./.bar"),
            ("a.b", "a//b"),
            ("foo/b.c/d", "foo.b//c.d"),
            ("/", "/./"),
            ("//", "/././"),
            ("a*b", "a*b"),
        ] {
            let made = subject_of_topic(topic.as_bytes()).expect("it has a subject");
            assert_eq!(String::from_utf8_lossy(&made), subject, "{topic}");
            assert_eq!(topic_of(&made), topic, "{subject}");
        }
    }

    #[test]
    fn wildcards_are_for_filters_and_whole_levels() {
        for topic in ["a/+", "#", "a b", "a\tb", "a\x7f"] {
            assert_eq!(subject_of_topic(topic.as_bytes()), None, "{topic}");
        }
        let subject = |filter: &str| subject_of_filter(filter.as_bytes());
        assert_eq!(subject("a/+/#"), Some(b"a.*.>".to_vec()));
        assert_eq!(subject("#"), Some(b">".to_vec()));
        assert_eq!(subject("/#"), Some(b"/.>".to_vec()));
        for filter in ["a/#/b", "a#", "a/b+", "#/", "a b"] {
            assert_eq!(subject(filter), None, "{filter}");
        }
        assert_eq!(level_above(b"a.b.>"), Some(&b"a.b"[..]));
        assert_eq!((level_above(b">"), level_above(b"a.*")), (None, None));
        for (subject, is) in [("*", true), (">", true), ("*.a", true), ("a.*", false)] {
            assert_eq!(begins_with_wildcard(subject.as_bytes()), is, "{subject}");
        }
    }
}
