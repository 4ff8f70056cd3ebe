//! Short names made of longer texts, as nats-server makes them.

use sha2::{Digest, Sha256};

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Characters of a short name.
const CHARACTERS: usize = 8;

/// Returns a name of eight letters and digits that is always the same for a text.
pub fn short_name(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
    digest.iter().take(CHARACTERS).map(letter).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_is_that_of_nats_server() {
        for (text, name) in [("$G", "szMpdrwD"), ("$JS.hub.API", "bTMUkJQk")] {
            assert_eq!(super::short_name(text), name, "{text}");
        }
    }
}
