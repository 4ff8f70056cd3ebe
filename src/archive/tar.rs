//! Heads of files in a tar archive: in the form of 2001 (pax), and that of
//! 1988.

/// Bytes to whose multiples heads and files are filled up.
pub(super) const UNIT_BYTES: usize = 512;
/// Bytes of a name in a head, at most; a part of it may go before a `/`.
const NAME_BYTES: usize = 100;
const PREFIX_BYTES: usize = 155;

/// The head of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TarHead {
    /// A file.
    File { name: String, bytes: u64 },
    /// Further fields of the file that follows.
    Extension { bytes: u64 },
    /// The end of the archive.
    End,
}

/// A head that is none, or of what no archive of a stream has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadHead;

#[cfg(test)]
/// Returns the head of a file; a name that is too long for it has an extension before it.
pub(super) fn head(name: &str, bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > NAME_BYTES {
        // The length of a field includes its own digits.
        let base = " path=\n".len() + name.len();
        let len =
            (1..).map(|digits| base + digits).find(|len| base + len.to_string().len() == *len);
        let field = format!("{} path={name}\n", len.unwrap_or_default());
        out.extend_from_slice(&head_of("PaxHeaders.0", field.len(), b'x'));
        out.extend_from_slice(field.as_bytes());
        out.resize(out.len().next_multiple_of(UNIT_BYTES), 0);
    }
    let short = name.get(..name.len().min(NAME_BYTES)).unwrap_or("long");
    out.extend_from_slice(&head_of(short, bytes, b'0'));
    out
}

#[cfg(test)]
fn head_of(name: &str, bytes: usize, kind: u8) -> [u8; UNIT_BYTES] {
    let mut head = [0; UNIT_BYTES];
    let mut put = |at: usize, text: &[u8]| head[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{bytes:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(265, b"nats");
    put(297, b"nats");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

/// Reads a head.
pub(super) fn read_head(head: &[u8; UNIT_BYTES]) -> Result<TarHead, BadHead> {
    if head.iter().all(|byte| *byte == 0) {
        return Ok(TarHead::End);
    }
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    let of_sum: u32 = head[148..156].iter().map(|byte| u32::from(*byte)).sum();
    if octal(&head[148..156]) != Some(u64::from(sum - of_sum + 8 * u32::from(b' '))) {
        return Err(BadHead);
    }
    let bytes = octal(&head[124..136]).ok_or(BadHead)?;
    let mut name = text(&head[..NAME_BYTES])?;
    let prefix = text(&head[345..345 + PREFIX_BYTES])?;
    if head[257..262] == *b"ustar" && !prefix.is_empty() {
        name = format!("{prefix}/{name}");
    }
    match head[156] {
        b'0' | 0 => Ok(TarHead::File { name, bytes }),
        b'x' | b'g' => Ok(TarHead::Extension { bytes }),
        _ => Err(BadHead),
    }
}

/// Returns the name that an extension has for its file.
pub(super) fn name_in(extension: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(extension).ok()?;
    let name = text.lines().find_map(|line| line.split_once(" path="))?.1;
    Some(name.to_owned())
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(|c| c == ' ' || c == '\0');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn text(field: &[u8]) -> Result<String, BadHead> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec()).map_err(|_| BadHead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written() {
        let long = format!("obs/{}/meta.inf", "x".repeat(200));
        for (name, heads) in [("msgs/1.blk", 1), (&long[..], 3)] {
            let bytes = head(name, 1234);
            assert_eq!(bytes.len(), heads * UNIT_BYTES);
            let units: Vec<&[u8; UNIT_BYTES]> =
                bytes.chunks(UNIT_BYTES).map(|unit| unit.try_into().unwrap()).collect();
            let file = read_head(units[heads - 1]);
            match heads {
                1 => {
                    let name = name.to_owned();
                    assert_eq!(file, Ok(TarHead::File { name, bytes: 1234 }));
                }
                _ => {
                    assert!(matches!(read_head(units[0]), Ok(TarHead::Extension { bytes: 1.. })));
                    assert_eq!(name_in(&units[1][..]).as_deref(), Some(name));
                    assert!(matches!(file, Ok(TarHead::File { bytes: 1234, .. })));
                }
            }
        }
        assert_eq!(read_head(&[0; UNIT_BYTES]), Ok(TarHead::End));
        assert_eq!(read_head(&[1; UNIT_BYTES]), Err(BadHead));
    }
}
