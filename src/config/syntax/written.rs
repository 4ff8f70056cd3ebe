//! What a file says, and where in it a rule between options is broken.

use super::file::{Kind, Map};
use super::mistakes::{Mistakes, Position, StartError};

/// A rule between several options that does not hold.
#[derive(Debug)]
pub(in crate::config) struct Violation {
    /// The keys that it is about, with their synonyms.
    keys: &'static [&'static str],
    /// The way from the first of them that is there: keys, and numbers in lists.
    path: Vec<String>,
    reason: String,
}

impl Violation {
    pub(in crate::config) fn of(keys: &'static [&'static str], reason: impl Into<String>) -> Self {
        Self { keys, path: Vec::new(), reason: reason.into() }
    }

    /// The same, further within its key.
    pub(in crate::config) fn within<const N: usize>(self, path: [&str; N]) -> Self {
        Self { path: path.map(str::to_owned).to_vec(), ..self }
    }
}

/// What a file says, as far as it is known where.
#[derive(Debug, Default)]
pub(in crate::config) struct Written {
    /// The file.
    pub(in crate::config) map: Map,
    /// Keys with mistakes in what they say; what follows from them is not told besides.
    pub(in crate::config) mistaken: Vec<&'static str>,
}

impl Written {
    fn error(&self, violation: &Violation) -> StartError {
        let is_mistaken = |key: &&str| self.mistaken.contains(key);
        if self.map.is_partial() || violation.keys.iter().any(is_mistaken) {
            return StartError::told_already();
        }
        match self.place(violation) {
            Some(place) => place.error(&violation.reason),
            None => StartError::new(&violation.reason),
        }
    }

    fn place(&self, violation: &Violation) -> Option<&Position> {
        let entry = violation.keys.iter().find_map(|key| self.map.get(key))?;
        let (mut place, mut value) = (&entry.position, &entry.value);
        for step in &violation.path {
            match &value.kind {
                Kind::Map(map) => {
                    let entry = map.get(step)?;
                    (place, value) = (&entry.position, &entry.value);
                }
                Kind::List(values) => {
                    value = values.get(step.parse::<usize>().ok()?)?;
                    place = &value.position;
                }
                _ => break,
            }
        }
        Some(place)
    }

    /// Takes all that is broken as what is wrong with the file.
    pub(in crate::config) fn tell(&self, broken: &[Violation], mistakes: &mut Mistakes) {
        for violation in broken {
            mistakes.take::<()>(Err(self.error(violation)));
        }
    }
}
