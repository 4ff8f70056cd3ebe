//! Labels: the first page of each file of a log, from which its key is known.
//!
//! A label is in each sector of the page, so that the key outlives the loss of any single one.

use super::checksum::LogKey;
use super::record::{u32_at, u64_at};
use crate::disk::PAGE_BYTES;

const MAGIC: [u8; 4] = *b"shcL";
const FORMAT: u32 = 1;
const LABEL_BYTES: usize = 24;
const SECTOR_BYTES: usize = 512;

/// The content of a file's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The file's number.
    pub file: u32,
    /// The key of the file's log.
    pub key: LogKey,
}

impl Label {
    /// Fills a page with the label.
    pub fn encode(&self, page: &mut [u8]) {
        let mut bytes = Vec::with_capacity(LABEL_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.file.to_le_bytes());
        bytes.extend_from_slice(&self.key.0.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        for sector in page[..PAGE_BYTES].chunks_mut(SECTOR_BYTES) {
            sector.fill(0);
            sector[..LABEL_BYTES].copy_from_slice(&bytes);
        }
    }

    /// Returns the label of a file that begins with `page`, if any sector of it has one.
    pub fn decode(page: &[u8]) -> Option<Self> {
        page.chunks(SECTOR_BYTES).take(PAGE_BYTES / SECTOR_BYTES).find_map(|sector| {
            let bytes = sector.get(..LABEL_BYTES)?;
            let (content, checksum) = bytes.split_at(LABEL_BYTES - 4);
            let is_label = bytes.starts_with(&MAGIC)
                && u32_at(bytes, 4)? == FORMAT
                && u32_at(checksum, 0)? == crc32c::crc32c(content);
            is_label.then_some(Self { file: u32_at(bytes, 8)?, key: LogKey(u64_at(bytes, 12)?) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sector_that_is_left_is_enough() {
        let label = Label { file: 3, key: LogKey(5) };
        let mut page = [0xff; PAGE_BYTES];
        assert_eq!(Label::decode(&page), None);
        label.encode(&mut page);
        for kept in 0..PAGE_BYTES / SECTOR_BYTES {
            let mut damaged = [1; PAGE_BYTES];
            let place = kept * SECTOR_BYTES..(kept + 1) * SECTOR_BYTES;
            damaged[place.clone()].copy_from_slice(&page[place.clone()]);
            assert_eq!(Label::decode(&damaged), Some(label));
            assert_eq!(Label::decode(&damaged[..place.start + 10]), None);
        }
    }
}
