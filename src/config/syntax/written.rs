//! Contents of a configuration file, to locate broken rules between options.

use super::file::{Map, ValueKind};
use super::mistakes::{Mistakes, Position, StartError};

/// A broken rule between several options.
#[derive(Debug)]
pub(in crate::config) struct BrokenRule {
    /// The keys that the rule is about, with their synonyms.
    keys: &'static [&'static str],
    /// The path from the first of these keys in the file: keys, and indexes of lists.
    path: Vec<String>,
    reason: String,
}

impl BrokenRule {
    pub(in crate::config) fn of(keys: &'static [&'static str], reason: impl Into<String>) -> Self {
        Self { keys, path: Vec::new(), reason: reason.into() }
    }

    /// Returns the violation with a path within its key.
    pub(in crate::config) fn within<const N: usize>(self, path: [&str; N]) -> Self {
        Self { path: path.map(str::to_owned).to_vec(), ..self }
    }
}

/// Contents of a configuration file, with positions.
#[derive(Debug, Default)]
pub(in crate::config) struct Written {
    /// The file's entries.
    pub(in crate::config) map: Map,
    /// Keys with mistakes in their values; violations that follow from these are not reported.
    pub(in crate::config) mistaken: Vec<&'static str>,
}

impl Written {
    fn error(&self, violation: &BrokenRule) -> StartError {
        let is_mistaken = |key: &&str| self.mistaken.contains(key);
        if self.map.is_partial() || violation.keys.iter().any(is_mistaken) {
            return StartError::told_already();
        }
        match self.place(violation) {
            Some(place) => place.error(&violation.reason),
            None => StartError::new(&violation.reason),
        }
    }

    fn place(&self, violation: &BrokenRule) -> Option<&Position> {
        let entry = violation.keys.iter().find_map(|key| self.map.get(key))?;
        let (mut place, mut value) = (&entry.position, &entry.value);
        for step in &violation.path {
            match &value.kind {
                ValueKind::Map(map) => {
                    let entry = map.get(step)?;
                    (place, value) = (&entry.position, &entry.value);
                }
                ValueKind::List(values) => {
                    value = values.get(step.parse::<usize>().ok()?)?;
                    place = &value.position;
                }
                _ => break,
            }
        }
        Some(place)
    }

    /// Adds the broken rules to the file's mistakes.
    pub(in crate::config) fn tell(&self, broken: &[BrokenRule], mistakes: &mut Mistakes) {
        for violation in broken {
            mistakes.take::<()>(Err(self.error(violation)));
        }
    }
}
