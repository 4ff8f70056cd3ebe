//! Passwords and tokens, in clear or as bcrypt hashes.

use std::fmt;

use subtle::ConstantTimeEq;

/// A password or token, or its bcrypt hash. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`, which is a bcrypt hash if it looks like one (`$2a$10$…`).
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether `given` is the secret. Takes the same time wherever the two differ; for a bcrypt
    /// hash that is milliseconds to seconds, by the hash's own cost.
    pub fn matches(&self, given: &str) -> bool {
        if self.is_bcrypt() {
            return bcrypt::verify(given, &self.0).unwrap_or(false);
        }
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// The text in clear, for logging in to another server.
    pub(crate) fn revealed(&self) -> &str {
        &self.0
    }

    /// Whether the secret is empty: the user is known by other means.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the secret is a hash, so that a check is slow.
    pub fn is_bcrypt(&self) -> bool {
        let bytes = self.0.as_bytes();
        bytes.len() > 7
            && bytes.starts_with(b"$2")
            && matches!(bytes[2], b'a' | b'b' | b'x' | b'y')
            && bytes[3] == b'$'
            && bytes[4].is_ascii_digit()
            && bytes[5].is_ascii_digit()
            && bytes[6] == b'$'
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_secret_matches_itself_only() {
        let secret = Secret::new("s3cr3t");
        assert!(secret.matches("s3cr3t"));
        for other in ["", "s3cr3", "s3cr3tt", "S3cr3t"] {
            assert!(!secret.matches(other), "{other}");
        }
    }

    #[test]
    fn a_bcrypt_hash_matches_what_was_hashed_and_not_itself() {
        let hash = "$2a$04$zyxwvutsrqponmlkjihgfurQNWOPnczANr9Lnsgmk2Svikvt0pD4G";
        let secret = Secret::new(hash);
        assert!(secret.matches("tok3n"));
        assert!(!secret.matches(hash));
    }

    #[test]
    fn a_broken_bcrypt_hash_matches_nothing() {
        let secret = Secret::new("$2y$99$short");
        assert!(!secret.matches("$2y$99$short"));
        assert!(!secret.matches(""));
    }
}
