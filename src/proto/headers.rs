//! Header blocks of messages: the values of a header, and a block with one set; the headers of
//! message tracing.

/// Subject of the reports on a message.
pub const DEST: &[u8] = b"Nats-Trace-Dest:";
/// Whether the message is traced and not delivered.
pub const ONLY: &[u8] = b"Nats-Trace-Only:";
/// Number under which a server reports its part of the way.
pub const HOP: &[u8] = b"Nats-Trace-Hop:";
/// Account in which the message came into the system.
pub const ORIGIN_ACCOUNT: &[u8] = b"Nats-Trace-Origin-Account:";

/// Destination that a message gets where it leaves the accounts that may follow it.
pub const DISABLED: &[u8] = b"trace disabled";

/// Returns the lines of a header block, if it is one as nats-server reads it: only CRLF ends a
/// line.
fn lines(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = header.strip_prefix(b"NATS/1.0\r\n").filter(|lines| lines.ends_with(b"\r\n"));
    let mut rest = lines.unwrap_or_default();
    std::iter::from_fn(move || {
        let end = memchr::memmem::find(rest, b"\r\n")?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        Some(line)
    })
    .filter(|line| !line.is_empty())
}

/// Returns the first value of a header; `name` has its colon.
pub fn value_of<'a>(header: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    lines(header).find_map(|line| line.strip_prefix(name)).map(trimmed)
}

/// Returns a value without the blanks around it.
fn trimmed(value: &[u8]) -> &[u8] {
    let is_shown = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let Some(first) = value.iter().position(is_shown) else { return b"" };
    let last = value.iter().rposition(is_shown).unwrap_or(first);
    &value[first..=last]
}

/// Returns names and values of a header block, each name once, in the order of names; empty values
/// are left out.
pub fn header_values(header: &[u8]) -> Vec<(&[u8], Vec<&[u8]>)> {
    let mut all: std::collections::BTreeMap<&[u8], Vec<&[u8]>> = std::collections::BTreeMap::new();
    for line in lines(header) {
        let Some(colon) = memchr::memchr(b':', line).filter(|colon| *colon > 0) else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !value.is_empty() {
            all.entry(name).or_default().push(value);
        }
    }
    all.into_iter().collect()
}

/// Whether another system traces the message: `traceparent` with its flag for that.
pub fn is_sampled(header: &[u8]) -> bool {
    const NAME: &[u8] = b"traceparent:";
    let parent = lines(header).find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value.trim_ascii())
    });
    let mut fields = parent.unwrap_or_default().split(|byte| *byte == b'-');
    let flags = fields.nth(3).filter(|flags| flags.len() == 2 && fields.next().is_none());
    let flags = flags.and_then(|flags| std::str::from_utf8(flags).ok());
    flags.and_then(|flags| u8::from_str_radix(flags, 16).ok()).is_some_and(|flags| flags & 1 == 1)
}

/// Returns a header block in which `name`, with its colon, has this value alone, as the last of
/// all.
pub fn with_header(header: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut new = Vec::with_capacity(header.len() + name.len() + value.len() + 16);
    let lines = header.strip_suffix(b"\r\n\r\n").unwrap_or(b"NATS/1.0");
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_old = line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        if !is_old {
            new.extend_from_slice(line);
            new.extend_from_slice(b"\r\n");
        }
    }
    new.extend_from_slice(name);
    new.push(b' ');
    new.extend_from_slice(value);
    new.extend_from_slice(b"\r\n\r\n");
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_counts_only_as_nats_server_reads_it() {
        let dest = |header: &str| {
            let header = header.as_bytes().to_vec();
            value_of(&header, DEST).map(|value| String::from_utf8(value.to_vec()).unwrap())
        };
        for header in [
            "NATS/1.0\r\nNats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nNats-Trace-Dest:a\r\n\r\n",
            "NATS/1.0\r\nX: y\r\nNats-Trace-Dest:   a  \r\nNats-Trace-Dest: b\r\n\r\n",
        ] {
            assert_eq!(dest(header).as_deref(), Some("a"), "{header}");
        }
        for header in [
            "",
            "NATS/1.0\r\n\r\n",
            "NATS/1.0 503\r\nNats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nnats-trace-dest: a\r\n\r\n",
            "NATS/1.0\r\n Nats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nNats-Trace-Dest : a\r\n\r\n",
            "NATS/1.0\r\nX-Nats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nNats-Trace-Dest: a",
            "NATS/1.0\nNats-Trace-Dest: a\n\n",
            "Nats-Trace-Dest: a\r\n\r\n",
        ] {
            assert_eq!(dest(header), None, "{header}");
        }
    }

    #[test]
    fn values_are_gathered_by_name_and_empty_ones_left_out() {
        let header = b"NATS/1.0\r\nB: 1\r\na: 2\r\nB:3 \r\nE: \r\nnone\r\n: x\r\n\r\n";
        let found = header_values(header);
        let expected: [(&[u8], Vec<&[u8]>); 2] = [(b"B", vec![b"1", b"3"]), (b"a", vec![b"2"])];
        assert_eq!(found, expected);
    }

    #[test]
    fn another_systems_trace_counts_when_its_flag_says_so() {
        let is = |value: &str| is_sampled(format!("NATS/1.0\r\n{value}\r\n\r\n").as_bytes());
        assert!(is("traceparent: 00-a-b-01") && is("TraceParent:00-a-b-03"));
        for value in ["traceparent: 00-a-b-00", "traceparent: 00-a-b", "traceparent: 00-a-b-1"] {
            assert!(!is(value), "{value}");
        }
        assert!(!is("traceparent: 00-a-b-01-c") && !is("tracestate: 00-a-b-01"));
    }

    #[test]
    fn a_header_is_set_in_place_of_all_of_its_name() {
        let set =
            |header: &str| String::from_utf8(with_header(header.as_bytes(), HOP, b"2")).unwrap();
        assert_eq!(set(""), "NATS/1.0\r\nNats-Trace-Hop: 2\r\n\r\n");
        let twice = "NATS/1.0\r\nNats-Trace-Hop: 1\r\nA: b\r\nnats-trace-hop: 7\r\n\r\n";
        assert_eq!(set(twice), "NATS/1.0\r\nA: b\r\nNats-Trace-Hop: 2\r\n\r\n");
    }

    #[test]
    fn a_requester_cannot_say_itself_who_it_is() {
        let with = |header: &str| {
            String::from_utf8(with_header(header.as_bytes(), b"Nats-Request-Info:", b"{}")).unwrap()
        };
        assert_eq!(with(""), "NATS/1.0\r\nNats-Request-Info: {}\r\n\r\n");
        let given = "NATS/1.0\r\nA: b\r\nnats-request-info: {\"acc\":\"X\"}\r\n\r\n";
        assert_eq!(with(given), "NATS/1.0\r\nA: b\r\nNats-Request-Info: {}\r\n\r\n");
    }
}
