//! Checksums: CRC-32C, begun with a number that no publisher knows.
//!
//! Bytes that are searched for whole records after damage may be the payload of a message, and look
//! like records. They are taken for none: the publisher does not know the key. Nor are bytes that
//! an earlier use of a file has left there, since records are bound to their batch.

/// The secret of one log, in each of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogKey(pub u64);

/// The beginning of a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(u32);

impl LogKey {
    /// Returns the seed for the headers of batches.
    pub(crate) fn for_headers(self) -> Seed {
        self.mixed(0)
    }

    /// Returns the seed for the records of a batch, by its number, which is never 0.
    pub fn for_records(self, batch: u64) -> Seed {
        self.mixed(batch)
    }

    /// Returns the seed for a number: half of its bits change with any bit of key or number (the
    /// finalizer of `SplitMix64`).
    fn mixed(self, number: u64) -> Seed {
        let mut bits = self.0 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let [a, b, c, d, ..] = bits.to_le_bytes();
        Seed(u32::from_le_bytes([a, b, c, d]))
    }
}

impl Seed {
    /// Returns the checksum of these bytes.
    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_crc_32c_and_depends_on_key_and_batch() {
        assert_eq!(Seed(0).checksum(b"123456789"), 0xe306_9283);
        let checksum = |key: u64, batch: u64| LogKey(key).for_records(batch).checksum(b"a");
        let all = [checksum(1, 1), checksum(1, 2), checksum(2, 1), checksum(2, 2)];
        let different: std::collections::BTreeSet<u32> = all.into_iter().collect();
        assert_eq!(different.len(), 4);
    }
}
