//! Records that are left of a batch that is damaged.

use std::collections::BTreeMap;

use crate::record::checksum::Seed;
use crate::record::record::{LogRecord, RECORD_ALIGNMENT, RecordError, u32_at};

/// Bytes that may be checked for one byte that is searched: payloads may look like long records.
const WORK_MAX: usize = 64;

/// Returns the records in `bytes` that were written with this seed, by the places where they begin.
pub(in super::super) fn salvage(bytes: &[u8], seed: Seed) -> BTreeMap<usize, &[u8]> {
    let (mut kept, mut at) = (BTreeMap::new(), 0);
    let mut work = bytes.len().saturating_mul(WORK_MAX);
    while at < bytes.len() && work > 0 {
        let rest = &bytes[at..];
        match LogRecord::decode(rest, seed) {
            Ok(decoded) => {
                kept.insert(at, &rest[..decoded.used]);
                at += decoded.used;
            }
            Err(error) => {
                if error == RecordError::Checksum {
                    work = work.saturating_sub(u32_at(rest, 4).unwrap_or(0) as usize);
                }
                at += RECORD_ALIGNMENT;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::batch::{BatchBody, Records};
    use crate::record::checksum::LogKey;
    use crate::record::record::{StoredMessage, StreamId};

    const STREAM: StreamId = StreamId(1);

    fn message(sequence: u64, payload: &[u8]) -> LogRecord<'_> {
        let (subject, headers) = (&b"a"[..], &b""[..]);
        LogRecord::Message(StoredMessage { sequence, time: 0, flags: 0, subject, headers, payload })
    }

    fn sequences(body: &[u8]) -> Vec<u64> {
        let records = Records::of(body).map(|(_, decoded)| decoded.record);
        let sequence = |record| match record {
            LogRecord::Message(message) => message.sequence,
            _ => 0,
        };
        records.map(sequence).collect()
    }

    #[test]
    fn damage_costs_the_records_that_it_hits() {
        let key = LogKey(1);
        let mut body = BatchBody::new(key, 5);
        let starts: Vec<usize> = (0..20)
            .map(|sequence| body.push(STREAM, &message(sequence, &[7; 100])).unwrap())
            .collect();
        let mut bytes = body.into_bytes();
        // A length, and a payload.
        bytes[starts[3] + 5] ^= 1;
        bytes[starts[9] + 90] ^= 1;
        let kept = salvage(&bytes, key.for_records(5)).into_values().collect::<Vec<_>>().concat();
        let expected: Vec<u64> = (0..20).filter(|number| ![3, 9].contains(number)).collect();
        assert_eq!(sequences(&kept), expected);
        assert!(salvage(&bytes, key.for_records(6)).is_empty());
    }

    #[test]
    fn a_payload_that_looks_like_records_is_none_and_takes_a_bounded_time() {
        let key = LogKey(1);
        let mut forged = BatchBody::new(LogKey(2), 5);
        forged.push(STREAM, &message(9, b"forged")).unwrap();
        let mut payload = forged.into_bytes();
        for _ in 0..20_000 {
            payload.extend_from_slice(&[0, 0, 0, 0, 0, 0, 4, 0]);
        }
        let mut body = BatchBody::new(key, 5);
        body.push(STREAM, &message(1, &payload)).unwrap();
        let mut bytes = body.into_bytes();
        bytes[17] ^= 1;
        assert!(salvage(&bytes, key.for_records(5)).is_empty());
    }
}
