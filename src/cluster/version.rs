//! Versions of servers.

use std::fmt;

/// The version of a server: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u64; 3]);

impl Version {
    /// Reads a version as in `2.10.3`, or `2.10.3-beta.1`, of which only the numbers count; `None`
    /// if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let numbers = text.split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(|part| part.parse().ok());
        let version = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(Self(version))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("2.9.10") < version("2.10.0"));
        assert_eq!(version("2.10.0-beta.1"), version("2.10.0"));
        assert_eq!(version("2.10.3").to_string(), "2.10.3");
        for wrong in ["", "2", "2.10", "2.10.x", "2.10.3.4"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }
}
