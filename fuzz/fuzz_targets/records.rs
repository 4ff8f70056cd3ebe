//! Records and headers of a log: whatever bytes there are, what is read of them is within them, and
//! is the same when it was written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::store::{BatchHeader, LogKey, LogRecord, Records};

const KEY: LogKey = LogKey(7);

fuzz_target!(|bytes: &[u8]| {
    let _ = LogRecord::decode(bytes, KEY.for_records(1));
    let mut end = 0;
    for (at, decoded) in Records::of(bytes) {
        assert_eq!(at, end, "records follow one another");
        end = at + decoded.used;
        assert!(decoded.len <= decoded.used && end <= bytes.len(), "{decoded:?}");
        let mut again = Vec::new();
        let seed = KEY.for_records(9);
        if decoded.record.encode(decoded.stream, seed, &mut again).is_ok() {
            let read = LogRecord::decode(&again, seed).expect("it was just written");
            assert_eq!((read.stream, read.record), (decoded.stream, decoded.record));
        }
    }
    if let Some(header) = BatchHeader::decode(KEY, bytes) {
        let mut again = vec![0; bytes.len()];
        header.encode(KEY, &mut again);
        assert_eq!(BatchHeader::decode(KEY, &again), Some(header));
        let _ = header.check(KEY, &bytes[shardcast::store::BATCH_HEADER_BYTES..]);
    }
});
