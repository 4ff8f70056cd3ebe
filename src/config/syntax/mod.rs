//! The configuration file as text: a tree of values with positions, and tables of keys.
//!
//! The room knows no option: the blocks name the keys and their meaning.

#[cfg(test)]
pub(super) mod consulted;
pub(super) mod duration;
pub(super) mod field;
pub(super) mod file;
pub(super) mod mistakes;
pub(super) mod written;

pub use mistakes::StartError;

/// Returns the candidate nearest to `name`, if at most a third of the letters differ, and four.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let wrong_max = name.chars().count().div_ceil(3).min(4);
    candidates
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .filter(|(wrong, _)| *wrong <= wrong_max)
        .min_by_key(|(wrong, _)| *wrong)
        .map(|(_, candidate)| candidate)
}
