//! A proxy's header: whatever bytes come, what is made of them does not depend on where TCP cuts
//! them, and no more is waited for than a header may be long.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::proxy::{Beginning, parse};

/// The longest header there can be, in bytes.
const HEADER_BYTES_MAX: usize = 16 + 4096;

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    if let Ok(Beginning::Header { used, .. }) = whole {
        assert!(0 < used && used <= bytes.len().min(HEADER_BYTES_MAX), "used {used}");
    }
    if whole == Ok(Beginning::Incomplete) {
        assert!(bytes.len() < HEADER_BYTES_MAX, "waits for more than a header");
    }
    for end in 0..bytes.len() {
        let first = parse(&bytes[..end]);
        if first != Ok(Beginning::Incomplete) {
            assert_eq!(first.is_ok(), whole.is_ok(), "cut at {end}: {first:?} of {whole:?}");
            if first.is_ok() {
                assert_eq!(first, whole, "cut at {end}");
            }
            return;
        }
    }
});
