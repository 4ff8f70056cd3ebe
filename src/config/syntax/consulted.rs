//! Tables of keys in the order in which a file was bound by them, for tests of the tables.

use std::cell::RefCell;

use super::field::{Action, Key};

/// A row of a table of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownKey {
    /// The synonyms; the first is the usual one.
    pub(crate) names: &'static [&'static str],
    /// Whether the key belongs to a feature that this server does not have and is refused.
    pub(crate) is_refused: bool,
}

thread_local! {
    static CONSULTED: RefCell<Vec<Vec<KnownKey>>> = const { RefCell::new(Vec::new()) };
}

/// Remembers the tables of one block.
pub(in crate::config) fn note<T>(tables: &[&[Key<T>]]) {
    let rows = tables.iter().copied().flatten().map(|Key(names, action)| KnownKey {
        names,
        is_refused: matches!(action, Action::Refuse(_)),
    });
    let table = rows.collect();
    CONSULTED.with_borrow_mut(|consulted| consulted.push(table));
}

/// Returns what was remembered since the last call.
pub(in crate::config) fn take() -> Vec<Vec<KnownKey>> {
    CONSULTED.take()
}
