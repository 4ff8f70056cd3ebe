//! Headers of messages: a block of lines that begins with `NATS/1.0` and ends with an empty line.

use memchr::{memchr_iter, memmem};

/// The first line of a block without a status.
pub const LINE: &[u8] = b"NATS/1.0\r\n";
const NEW_LINE: &[u8] = b"\r\n";

/// Names of headers that JetStream reads or writes.
pub mod name {
    /// Id by which a message that comes again is known.
    pub const MSG_ID: &str = "Nats-Msg-Id";
    /// The stream that is to store the message.
    pub const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
    /// The sequence of the stream's last message.
    pub const EXPECTED_LAST_SEQUENCE: &str = "Nats-Expected-Last-Sequence";
    /// The sequence of the subject's last message.
    pub const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
    /// The subject that is meant by it.
    pub const EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT: &str =
        "Nats-Expected-Last-Subject-Sequence-Subject";
    /// The id of the stream's last message.
    pub const EXPECTED_LAST_MSG_ID: &str = "Nats-Expected-Last-Msg-Id";
    /// Earlier messages that are removed.
    pub const ROLLUP: &str = "Nats-Rollup";
    /// Time to live.
    pub const TTL: &str = "Nats-TTL";
    /// Increment of a counter.
    pub const INCREMENT: &str = "Nats-Incr";
    /// Last values of a counter at its origins.
    pub const COUNTER_SOURCES: &str = "Nats-Counter-Sources";
    /// The level of the API that a request needs.
    pub const REQUIRED_API_LEVEL: &str = "Nats-Required-Api-Level";
    /// Name of an atomic batch.
    pub const BATCH_ID: &str = "Nats-Batch-Id";
    /// Position in a batch.
    pub const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
    /// End of a batch.
    pub const BATCH_COMMIT: &str = "Nats-Batch-Commit";
    /// Pattern of a schedule.
    pub const SCHEDULE: &str = "Nats-Schedule";
    /// The subject of scheduled messages.
    pub const SCHEDULE_TARGET: &str = "Nats-Schedule-Target";
    /// The subject whose last message is sent.
    pub const SCHEDULE_SOURCE: &str = "Nats-Schedule-Source";
    /// Time to live of scheduled messages.
    pub const SCHEDULE_TTL: &str = "Nats-Schedule-TTL";
    /// Rollup of scheduled messages.
    pub const SCHEDULE_ROLLUP: &str = "Nats-Schedule-Rollup";
    /// Time zone of a schedule.
    pub const SCHEDULE_TIME_ZONE: &str = "Nats-Schedule-Time-Zone";
    /// The schedule that a message comes from.
    pub const SCHEDULER: &str = "Nats-Scheduler";
    /// The next time of the schedule, or `purge`.
    pub const SCHEDULE_NEXT: &str = "Nats-Schedule-Next";
    /// Origin of a copied message.
    pub const STREAM_SOURCE: &str = "Nats-Stream-Source";
    /// A text that tells a stream from others of its name.
    pub const STREAM_IDENTITY: &str = "Nats-Stream-Identity";
    /// The reason of a delete marker.
    pub const MARKER_REASON: &str = "Nats-Marker-Reason";
    /// The sender of a request through an import; never stored.
    pub const REQUEST_INFO: &str = "Nats-Request-Info";
    /// The stream of a message.
    pub const STREAM: &str = "Nats-Stream";
    /// The subject of a message.
    pub const SUBJECT: &str = "Nats-Subject";
    /// The sequence of a message.
    pub const SEQUENCE: &str = "Nats-Sequence";
    /// The time of a message.
    pub const TIME_STAMP: &str = "Nats-Time-Stamp";
    /// The sequence before.
    pub const LAST_SEQUENCE: &str = "Nats-Last-Sequence";
    /// Matches that follow.
    pub const NUM_PENDING: &str = "Nats-Num-Pending";
    /// The last sequence that was looked at.
    pub const UP_TO_SEQUENCE: &str = "Nats-UpTo-Sequence";
    /// Length of a payload that is left out.
    pub const MSG_SIZE: &str = "Nats-Msg-Size";
}

/// The place of a header's line in a block: its start, its value, and the end of its line.
struct HeaderLine {
    start: usize,
    value: usize,
    end: usize,
}

fn line_of(block: &[u8], name: &str) -> Option<HeaderLine> {
    let name = name.as_bytes();
    for line_end in memchr_iter(b'\n', block) {
        let (before, line) = block.split_at(line_end + 1);
        let Some([b':', ..]) = line.strip_prefix(name) else { continue };
        if !before.ends_with(NEW_LINE) {
            continue;
        }
        let rest = &line[name.len() + 1..];
        let blanks = rest.iter().take_while(|byte| **byte == b' ').count();
        let (start, value) = (before.len(), block.len() - rest.len() + blanks);
        let len = memmem::find(&block[value..], NEW_LINE).unwrap_or(block.len() - value);
        return Some(HeaderLine { start, value, end: value + len });
    }
    None
}

/// The value of the first header with exactly this name; `None` if it is not there or empty.
pub fn value<'a>(block: &'a [u8], name: &str) -> Option<&'a [u8]> {
    find(block, name).filter(|value| !value.is_empty())
}

/// The value of the first header with exactly this name, which may be empty.
pub fn find<'a>(block: &'a [u8], name: &str) -> Option<&'a [u8]> {
    line_of(block, name).map(|line| &block[line.value..line.end])
}

/// The value of a header as text; bytes that are none are replaced.
pub fn text<'a>(block: &'a [u8], name: &str) -> Option<std::borrow::Cow<'a, str>> {
    value(block, name).map(String::from_utf8_lossy)
}

/// Adds a header at the end of a block, which may be empty.
pub fn add(block: &mut Vec<u8>, name: &str, value: impl AsRef<[u8]>) {
    if block.ends_with(NEW_LINE) && block.len() > NEW_LINE.len() {
        block.truncate(block.len() - NEW_LINE.len());
    } else {
        block.clear();
        block.extend_from_slice(LINE);
    }
    for part in [name.as_bytes(), b": ", value.as_ref(), NEW_LINE, NEW_LINE] {
        block.extend_from_slice(part);
    }
}

/// Removes the first header with this name. A block without headers becomes empty.
pub fn remove(block: &mut Vec<u8>, name: &str) {
    let Some(line) = line_of(block, name) else { return };
    let end = (line.end + NEW_LINE.len()).min(block.len());
    block.drain(line.start..end);
    if block.len() <= LINE.len() + NEW_LINE.len() {
        block.clear();
    }
}

/// Removes all headers whose names begin so.
pub fn remove_all(block: &mut Vec<u8>, prefix: &str) {
    let mut kept = Vec::with_capacity(block.len());
    let mut is_empty = true;
    for (number, line) in lines(block).enumerate() {
        if number > 0 && line.starts_with(prefix.as_bytes()) {
            continue;
        }
        is_empty &= number == 0 || line.is_empty();
        kept.extend_from_slice(line);
        kept.extend_from_slice(NEW_LINE);
    }
    *block = if is_empty { Vec::new() } else { kept };
}

fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memmem::find(rest, NEW_LINE).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + NEW_LINE.len()..).unwrap_or_default();
        Some(line)
    })
}

/// Sets the value of the first header with this name, or adds the header.
pub fn set(block: &mut Vec<u8>, name: &str, value: &[u8]) {
    match line_of(block, name) {
        Some(line) => {
            block.splice(line.value..line.end, value.iter().copied());
        }
        None => add(block, name, value),
    }
}

/// The block without the status behind `NATS/1.0`, as it is stored.
pub fn without_status(block: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if block.is_empty() || block.starts_with(LINE) {
        return block.into();
    }
    let Some(end) = memmem::find(block, NEW_LINE) else { return block.into() };
    let rest = &block[end + NEW_LINE.len()..];
    if rest == NEW_LINE { Vec::new().into() } else { [LINE, rest].concat().into() }
}

/// Whether a request needs a level of the API that this server does not have.
pub fn needs_higher_level(block: &[u8]) -> bool {
    let Some(level) = value(block, name::REQUIRED_API_LEVEL) else { return false };
    let level = std::str::from_utf8(level).ok().and_then(|level| level.parse::<i64>().ok());
    level.is_none_or(|level| level > i64::from(crate::JETSTREAM_API_LEVEL))
}

/// Reads a number as nats-server does: digits alone, up to the largest signed one.
pub fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number <= i64::MAX.cast_unsigned()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &[u8] = b"NATS/1.0\r\nX-Nats-Msg-Id: no\r\nNats-Msg-Id:  a b\r\nB:\r\n\r\n";

    #[test]
    fn a_header_is_found_by_its_whole_name_and_in_its_case() {
        assert_eq!(value(BLOCK, name::MSG_ID), Some(&b"a b"[..]));
        assert_eq!((find(BLOCK, "B"), value(BLOCK, "B")), (Some(&b""[..]), None));
        for absent in ["nats-msg-id", "Nats-Msg", "Msg-Id", "NATS/1.0", "a b"] {
            assert_eq!(find(BLOCK, absent), None, "{absent}");
        }
    }

    #[test]
    fn headers_are_added_changed_and_removed_and_the_rest_stays() {
        let mut block = Vec::new();
        add(&mut block, "A", "1");
        add(&mut block, "B", "2");
        add(&mut block, "Z", "0");
        assert_eq!(block, b"NATS/1.0\r\nA: 1\r\nB: 2\r\nZ: 0\r\n\r\n");
        set(&mut block, "A", b"100");
        set(&mut block, "C", b"3");
        remove(&mut block, "Z");
        assert_eq!(block, b"NATS/1.0\r\nA: 100\r\nB: 2\r\nC: 3\r\n\r\n");
        remove_all(&mut block, "B");
        assert_eq!(block, b"NATS/1.0\r\nA: 100\r\nC: 3\r\n\r\n");
        remove(&mut block, "A");
        remove(&mut block, "C");
        assert_eq!(block, b"");
        let mut block = b"NATS/1.0\r\nNats-A: 1\r\n\r\n".to_vec();
        remove_all(&mut block, "Nats-");
        assert_eq!(block, b"");
    }

    #[test]
    fn a_status_is_not_stored() {
        assert_eq!(&*without_status(b"NATS/1.0 503\r\n\r\n"), b"");
        assert_eq!(
            &*without_status(b"NATS/1.0 100 a\r\nB: c\r\n\r\n"),
            b"NATS/1.0\r\nB: c\r\n\r\n"
        );
        assert_eq!(&*without_status(BLOCK), BLOCK);
        assert!(needs_higher_level(b"NATS/1.0\r\nNats-Required-Api-Level: 99\r\n\r\n"));
        assert!(needs_higher_level(b"NATS/1.0\r\nNats-Required-Api-Level: x\r\n\r\n"));
        assert!(!needs_higher_level(b"NATS/1.0\r\nNats-Required-Api-Level: 5\r\n\r\n"));
        assert!(!needs_higher_level(BLOCK));
    }
}
