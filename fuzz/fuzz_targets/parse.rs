//! Whatever bytes come: the operations and the error do not depend on where TCP cuts them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::{ParseLimits, Parsed, ProtoError, parse};

/// Every cut is tried up to this many bytes; longer inputs are cut into equal pieces only.
const EVERY_CUT_BYTES_MAX: usize = 300;

// The first two bytes choose the limits and the size of the pieces.
fuzz_target!(|data: &[u8]| {
    let [choice, piece, stream @ ..] = data else { return };
    let limits = ParseLimits {
        control_line_bytes_max: if choice & 1 == 0 { 64 } else { 4096 },
        payload_bytes_max: if choice & 2 == 0 { 32 } else { 1 << 20 },
        headers: choice & 4 != 0,
    };
    let whole = read(stream, &limits, |_| stream.len());
    let piece = usize::from(*piece) + 1;
    assert_eq!(read(stream, &limits, |shown| shown + piece), whole, "pieces of {piece}");
    if stream.len() <= EVERY_CUT_BYTES_MAX {
        assert_eq!(read(stream, &limits, |shown| shown + 1), whole, "byte by byte");
        for cut in 1..stream.len() {
            let parts = |shown| if shown < cut { cut } else { stream.len() };
            assert_eq!(read(stream, &limits, parts), whole, "cut at {cut}");
        }
    }
});

/// What came of a stream: each operation with its length, and how it went on.
#[derive(Debug, PartialEq)]
enum Read {
    Op(String, usize),
    Rest(usize),
    Error(Option<&'static str>, &'static str),
}

/// Shows `parse` the stream as it arrives; `arrive` says how much is there after `shown` bytes.
fn read(stream: &[u8], limits: &ParseLimits, arrive: impl Fn(usize) -> usize) -> Vec<Read> {
    let mut reads = Vec::new();
    let (mut start, mut shown) = (0, arrive(0).min(stream.len()));
    loop {
        let input = &stream[start..shown];
        match parse(input, limits) {
            Ok(Parsed::Op { op, used }) => {
                assert!(0 < used && used <= input.len(), "used {used} of {}", input.len());
                reads.push(Read::Op(format!("{op:?}"), used));
                start += used;
            }
            Ok(Parsed::Incomplete { need }) => {
                assert!(need > input.len(), "needs {need}, has {}", input.len());
                let wanted = (start + need).min(stream.len());
                holds_its_tongue(stream, start, shown, wanted, limits);
                while shown < wanted {
                    shown = arrive(shown).min(stream.len());
                }
                if start + need > stream.len() {
                    reads.push(Read::Rest(stream.len() - start));
                    return reads;
                }
            }
            Err(error) => {
                reads.push(failure(&error));
                return reads;
            }
        }
    }
}

/// Up to the length that the parser asked for, nothing can come of the bytes.
fn holds_its_tongue(
    stream: &[u8],
    start: usize,
    shown: usize,
    wanted: usize,
    limits: &ParseLimits,
) {
    if wanted > shown + 1 {
        let early = parse(&stream[start..wanted - 1], limits);
        assert!(matches!(early, Ok(Parsed::Incomplete { .. })), "{early:?} before it was due");
    }
}

/// The snippet of an unknown operation depends on how much had come; nothing else may.
fn failure(error: &ProtoError) -> Read {
    Read::Error(error.wire(), error.reason())
}
