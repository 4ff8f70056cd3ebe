//! The position of a consumer, as nats-server's file `o.dat` has it: numbers of seven bits a byte.

use crate::consumer::ConsumerPosition;

const MAGIC: u8 = 22;
const VERSION: u8 = 2;
const SECOND: i64 = 1_000_000_000;

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

pub(super) fn take_signed(bytes: &mut &[u8]) -> Option<i64> {
    let number = take(bytes)?;
    Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
}

impl ConsumerPosition {
    #[cfg(test)]
    /// Returns the bytes of the file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![MAGIC, VERSION];
        for number in [self.floor.0, self.floor.1, self.delivered.0, self.delivered.1] {
            put(&mut out, number);
        }
        put(&mut out, self.pending.len() as u64);
        if !self.pending.is_empty() {
            let newest = self.pending.iter().map(|(_, _, since)| since / SECOND).max().unwrap_or(0);
            put_signed(&mut out, newest);
            for (stream, consumer, since) in &self.pending {
                put(&mut out, stream.saturating_sub(self.floor.1));
                put(&mut out, consumer.saturating_sub(self.floor.0));
                put_signed(&mut out, newest - since / SECOND);
            }
        }
        put(&mut out, self.redelivered.len() as u64);
        for (sequence, count) in &self.redelivered {
            put(&mut out, sequence.saturating_sub(self.floor.1));
            put(&mut out, *count);
        }
        out
    }

    /// Reads the bytes of the file; `None` if they are damaged, or of another version.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[MAGIC, VERSION])?;
        let rest = &mut rest;
        let floor = (take(rest)?, take(rest)?);
        let delivered = (take(rest)?, take(rest)?);
        let mut position = Self { floor, delivered, ..Self::default() };
        let count = take(rest)?;
        if count > 0 {
            let newest = take_signed(rest)?;
            for _ in 0..count {
                let stream = take(rest)?.checked_add(floor.1)?;
                let consumer = take(rest)?.checked_add(floor.0)?;
                let since = newest.checked_sub(take_signed(rest)?)?.checked_mul(SECOND)?;
                position.pending.push((stream, consumer, since));
            }
        }
        for _ in 0..take(rest)? {
            let sequence = take(rest)?.checked_add(floor.1)?;
            position.redelivered.push((sequence, take(rest)?));
        }
        position.pending.sort_unstable();
        position.redelivered.sort_unstable();
        Some(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written_but_for_parts_of_seconds() {
        let position = ConsumerPosition {
            floor: (3, 300),
            delivered: (9, 1_000_000),
            pending: vec![(301, 4, 1_700_000_000 * SECOND), (500, 5, 1_700_000_007 * SECOND)],
            redelivered: vec![(301, 2)],
        };
        let bytes = position.to_bytes();
        assert_eq!(ConsumerPosition::from_bytes(&bytes).as_ref(), Some(&position));
        for cut in 0..bytes.len() {
            assert_eq!(ConsumerPosition::from_bytes(&bytes[..cut]), None, "{cut}");
        }
        let empty = ConsumerPosition::default();
        assert_eq!(ConsumerPosition::from_bytes(&empty.to_bytes()), Some(empty));
    }
}
