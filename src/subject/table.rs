//! A table of filters, to find those that match the subject of a message.

use std::collections::HashMap;

use ahash::RandomState;
use memchr::{memchr, memrchr};

use super::parted::{Parted, Place};
use super::{has_empty_token, is_literal, split_first};

/// Values by filter, and for a subject all values whose filters match it.
///
/// Filters without wildcards are found by one hash of the whole subject. The others form a tree by
/// tokens, which is walked only if there are any: no step allocates or recurses, and none leads to
/// a node twice, so a subject costs at most as many steps as there are tokens in wildcard filters,
/// whatever its own length.
///
/// Invalid filters are kept like valid ones and match as [`super::matches`] says. All hashing is
/// keyed, since clients choose the subjects.
#[derive(Debug, Clone)]
pub struct Table<V> {
    /// Filters without wildcards and empty tokens. Boxed, since half of the places may be empty.
    literals: Parted<Box<Stored<V>>>,
    /// Filters with wildcards or empty tokens.
    wild: FilterTree<V>,
}

/// The progress of [`Table::scan`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scan {
    literal: Place,
    node: usize,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Table<V> {
    /// An empty table, hashing with random keys.
    pub fn new() -> Self {
        Self::with_hasher(RandomState::new())
    }

    /// An empty table whose keys follow from `seed`: equal seeds and equal calls give equal orders.
    pub fn with_seed(seed: u64) -> Self {
        // Arbitrary odd numbers that keep the four keys apart.
        let key = |factor: u64| (seed ^ factor.rotate_left(32)).wrapping_mul(factor);
        Self::with_hasher(RandomState::with_seeds(
            key(0x9e37_79b9_7f4a_7c15),
            key(0xd1b5_4a32_d192_ed03),
            key(0x8cb9_2ba7_2f3d_8dd7),
            key(0xaef1_7502_108e_f2d9),
        ))
    }

    fn with_hasher(hasher: RandomState) -> Self {
        let wild = FilterTree { nodes: Vec::new(), free: Vec::new(), len: 0, hasher };
        Self { literals: Parted::default(), wild }
    }

    /// Returns the number of filters.
    pub fn len(&self) -> usize {
        self.literals.len() + self.wild.len
    }

    /// Whether there is no filter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the value of this filter, made if there is none yet.
    pub fn entry(&mut self, filter: &[u8]) -> &mut V
    where
        V: Default,
    {
        if !is_keyed(filter) {
            return self.wild.entry(filter);
        }
        let hasher = &self.wild.hasher;
        let hash = hasher.hash_one(filter);
        let stored = self.literals.find_or_insert(
            hash,
            |stored| *stored.filter == *filter,
            |stored| hasher.hash_one(&*stored.filter),
            || Box::new(Stored { filter: filter.into(), value: V::default() }),
        );
        &mut stored.value
    }

    /// Returns the value of exactly this filter.
    pub fn get(&self, filter: &[u8]) -> Option<&V> {
        if is_keyed(filter) { self.literal(filter) } else { self.wild.get(filter) }
    }

    /// Returns the value of exactly this filter.
    pub fn get_mut(&mut self, filter: &[u8]) -> Option<&mut V> {
        if !is_keyed(filter) {
            return self.wild.get_mut(filter);
        }
        let hash = self.wild.hasher.hash_one(filter);
        let found = self.literals.find_mut(hash, |stored| *stored.filter == *filter);
        found.map(|stored| &mut stored.value)
    }

    /// Removes this filter and returns its value.
    pub fn remove(&mut self, filter: &[u8]) -> Option<V> {
        if !is_keyed(filter) {
            return self.wild.remove(filter);
        }
        let hasher = &self.wild.hasher;
        let hash = hasher.hash_one(filter);
        let stored = self.literals.remove(
            hash,
            |stored| *stored.filter == *filter,
            |stored| hasher.hash_one(&*stored.filter),
        );
        stored.map(|stored| stored.value)
    }

    fn literal(&self, filter: &[u8]) -> Option<&V> {
        let hash = self.wild.hasher.hash_one(filter);
        let found = self.literals.find(hash, |stored| *stored.filter == *filter);
        found.map(|stored| &stored.value)
    }

    /// Whether a filter without wildcards is equal to this subject.
    pub fn has_literal(&self, subject: &[u8]) -> bool {
        !self.literals.is_empty() && self.literal(subject).is_some()
    }

    /// Whether the filters with wildcards that match `subject` match all subjects that differ from
    /// it in the last token alone, and no others match one of these. `false` if that is not found
    /// out with little effort.
    pub fn ignores_last_token(&self, subject: &[u8]) -> bool {
        !has_empty_token(subject) && self.wild.ignores_last_token(subject)
    }

    /// Visits the value of each filter that matches `subject`, each once, in no promised order.
    /// Returns the number of places of the table at which it has looked.
    pub fn for_each_match<'t>(&'t self, subject: &[u8], mut visit: impl FnMut(&'t V)) -> usize {
        // One with an empty token is not found: no such filter is among them.
        if !self.literals.is_empty()
            && let Some(value) = self.literal(subject)
        {
            visit(value);
        }
        if self.wild.len > 0 && !has_empty_token(subject) {
            return 1 + self.wild.for_each_match(subject, visit);
        }
        1
    }

    /// Returns all filters with their values, in no promised order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        let literals = self.literals.iter().map(|stored| (&*stored.filter, &stored.value));
        literals.chain(self.wild.iter())
    }

    /// Visits filters from the place of an earlier call on, at no more than `places` places, which
    /// are used up. Returns whether all have been visited.
    ///
    /// The table may change between two calls, as [`Parted::scan`] says.
    pub fn scan(
        &self,
        at: &mut Scan,
        places: &mut usize,
        mut visit: impl FnMut(&[u8], &V),
    ) -> bool {
        let mut see = |stored: &Stored<V>| visit(&stored.filter, &stored.value);
        if !self.literals.scan(&mut at.literal, places, |stored| see(stored)) {
            return false;
        }
        let nodes = self.wild.nodes.len();
        while at.node < nodes && *places > 0 {
            *places -= 1;
            let node = &self.wild.nodes[at.node];
            node.exact.iter().chain(&node.rest).for_each(|stored| see(stored));
            at.node += 1;
        }
        at.node >= nodes
    }
}

/// Whether the filter is found by its whole text.
fn is_keyed(filter: &[u8]) -> bool {
    is_literal(filter) && !has_empty_token(filter)
}

/// Whether to give memory back because little of it is in use.
fn is_sparse(len: usize, capacity: usize) -> bool {
    const KEPT: usize = 64;
    capacity > KEPT && len < capacity / 8
}

/// The filters with wildcards, as a tree by tokens.
///
/// Nodes are numbered rather than boxed so that filters of any number of tokens can be walked
/// and dropped without recursion.
#[derive(Debug, Clone)]
struct FilterTree<V> {
    /// The nodes, the root first; empty without filters.
    nodes: Vec<Node<V>>,
    /// Numbers of nodes not in use.
    free: Vec<u32>,
    /// The number of filters.
    len: usize,
    hasher: RandomState,
}

/// A node, which stands for the tokens from the root to it: the beginning of all filters below it.
#[derive(Debug, Clone)]
struct Node<V> {
    parent: u32,
    /// The next node for a token `*`; [`ROOT`] if there is none.
    star: u32,
    /// The next nodes for other tokens; never an empty map.
    children: Option<Box<Children>>,
    /// The filter that ends here.
    exact: Option<Box<Stored<V>>>,
    /// The filter that goes on with `>` and ends.
    rest: Option<Box<Stored<V>>>,
}

type Children = HashMap<Box<[u8]>, u32, RandomState>;

#[derive(Debug, Clone)]
struct Stored<V> {
    filter: Box<[u8]>,
    value: V,
}

/// The root's number. The root is no child, so the number also stands for no child.
const ROOT: u32 = 0;

/// Ways through the tree that [`Table::ignores_last_token`] follows at a time.
const WAYS_MAX: usize = 32;

impl<V> Node<V> {
    fn new(parent: u32) -> Self {
        Self { parent, star: ROOT, children: None, exact: None, rest: None }
    }

    fn is_unused(&self) -> bool {
        self.star == ROOT && self.children.is_none() && self.exact.is_none() && self.rest.is_none()
    }

    fn child(&self, token: &[u8]) -> Option<u32> {
        self.children.as_ref()?.get(token).copied()
    }
}

impl<V> FilterTree<V> {
    fn entry(&mut self, filter: &[u8]) -> &mut V
    where
        V: Default,
    {
        if self.nodes.is_empty() {
            self.nodes.push(Node::new(ROOT));
        }
        let (path, is_rest) = split_rest(filter);
        let mut at = ROOT;
        let mut left = path;
        while let Some(text) = left {
            let (token, behind) = split_first(text);
            at = self.child_or_new(at, token);
            left = behind;
        }
        let node = &mut self.nodes[at as usize];
        let place = if is_rest { &mut node.rest } else { &mut node.exact };
        if place.is_none() {
            self.len += 1;
        }
        let new = || Box::new(Stored { filter: filter.into(), value: V::default() });
        &mut place.get_or_insert_with(new).value
    }

    fn child_or_new(&mut self, parent: u32, token: &[u8]) -> u32 {
        let node = &self.nodes[parent as usize];
        let is_star = token == b"*";
        let known =
            if is_star { Some(node.star).filter(|star| *star != ROOT) } else { node.child(token) };
        if let Some(child) = known {
            return child;
        }
        let child = self.new_node(parent);
        let node = &mut self.nodes[parent as usize];
        if is_star {
            node.star = child;
        } else {
            let empty = || Box::new(Children::with_hasher(self.hasher.clone()));
            node.children.get_or_insert_with(empty).insert(token.into(), child);
        }
        child
    }

    fn new_node(&mut self, parent: u32) -> u32 {
        if let Some(number) = self.free.pop() {
            self.nodes[number as usize] = Node::new(parent);
            return number;
        }
        let number = u32::try_from(self.nodes.len()).expect("memory ends before numbers do");
        self.nodes.push(Node::new(parent));
        number
    }

    /// Returns the node where the filter's value is, if its path is there.
    fn find(&self, filter: &[u8]) -> Option<u32> {
        let mut at = ROOT;
        let mut left = split_rest(filter).0;
        while let Some(text) = left {
            let (token, behind) = split_first(text);
            let node = self.nodes.get(at as usize)?;
            at = if token == b"*" { node.star } else { node.child(token).unwrap_or(ROOT) };
            if at == ROOT {
                return None;
            }
            left = behind;
        }
        Some(at)
    }

    fn get(&self, filter: &[u8]) -> Option<&V> {
        let node = self.nodes.get(self.find(filter)? as usize)?;
        let place = if split_rest(filter).1 { &node.rest } else { &node.exact };
        place.as_ref().map(|stored| &stored.value)
    }

    fn get_mut(&mut self, filter: &[u8]) -> Option<&mut V> {
        let number = self.find(filter)?;
        let node = self.nodes.get_mut(number as usize)?;
        let place = if split_rest(filter).1 { &mut node.rest } else { &mut node.exact };
        place.as_mut().map(|stored| &mut stored.value)
    }

    fn remove(&mut self, filter: &[u8]) -> Option<V> {
        let number = self.find(filter)?;
        let node = self.nodes.get_mut(number as usize)?;
        let (path, is_rest) = split_rest(filter);
        let stored = if is_rest { node.rest.take() } else { node.exact.take() }?;
        self.len -= 1;
        if self.len == 0 {
            self.nodes = Vec::new();
            self.free = Vec::new();
        } else {
            self.prune(number, path.unwrap_or_default());
        }
        Some(stored.value)
    }

    /// Removes the node at the end of `path`, and those before it, as far as they are not in use.
    fn prune(&mut self, mut number: u32, mut path: &[u8]) {
        while number != ROOT && self.nodes[number as usize].is_unused() {
            let parent = self.nodes[number as usize].parent;
            let token_start = memrchr(b'.', path).map_or(0, |dot| dot + 1);
            let token = &path[token_start..];
            let node = &mut self.nodes[parent as usize];
            if token == b"*" {
                node.star = ROOT;
            } else if let Some(children) = &mut node.children {
                children.remove(token);
                if is_sparse(children.len(), children.capacity()) {
                    children.shrink_to(children.len() * 2);
                }
                if children.is_empty() {
                    node.children = None;
                }
            }
            self.free.push(number);
            number = parent;
            path = &path[..token_start.saturating_sub(1)];
        }
    }

    /// Visits the values of matching filters; `subject` must have no empty token.
    ///
    /// The way back from a dead end is found by the nodes' parents and the subject's dots, so that
    /// no way has to be remembered.
    fn for_each_match<'t>(&'t self, subject: &[u8], mut visit: impl FnMut(&'t V)) -> usize {
        let mut number = ROOT;
        let mut places = 0;
        // Where the next token begins; behind the subject's end when there is none left.
        let mut at = 0;
        loop {
            places += 1;
            let node = &self.nodes[number as usize];
            let mut next = ROOT;
            if at > subject.len() {
                node.exact.iter().for_each(|stored| visit(&stored.value));
            } else {
                node.rest.iter().for_each(|stored| visit(&stored.value));
                let end = memchr(b'.', &subject[at..]).map_or(subject.len(), |dot| at + dot);
                next = node.child(&subject[at..end]).unwrap_or(node.star);
                if next != ROOT {
                    at = end + 1;
                }
            }
            // A dead end: back to the nearest node from which only a token's own child was tried.
            while next == ROOT {
                if number == ROOT {
                    return places;
                }
                let parent = self.nodes[number as usize].parent;
                let star = self.nodes[parent as usize].star;
                if star != ROOT && star != number {
                    next = star;
                } else {
                    at = memrchr(b'.', &subject[..at - 1]).map_or(0, |dot| dot + 1);
                    number = parent;
                }
            }
            number = next;
        }
    }

    /// Whether no node from which the last token of `subject` leads on knows tokens by name.
    fn ignores_last_token(&self, subject: &[u8]) -> bool {
        if self.nodes.is_empty() {
            return true;
        }
        let (mut level, mut rest) = (vec![ROOT], subject);
        while let (token, Some(behind)) = split_first(rest) {
            let ways = level.iter().flat_map(|number| {
                let node = &self.nodes[*number as usize];
                [node.child(token), Some(node.star).filter(|star| *star != ROOT)]
            });
            level = ways.flatten().collect();
            if level.len() > WAYS_MAX {
                return false;
            }
            rest = behind;
        }
        level.iter().all(|number| self.nodes[*number as usize].children.is_none())
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        let stored = self.nodes.iter().flat_map(|node| node.exact.iter().chain(&node.rest));
        stored.map(|stored| (&*stored.filter, &stored.value))
    }

    #[cfg(test)]
    fn nodes_in_use(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

/// Returns the tokens before a final `>`, `None` if it is the only one, and whether there is one.
fn split_rest(filter: &[u8]) -> (Option<&[u8]>, bool) {
    if filter == b">" {
        return (None, true);
    }
    match filter.strip_suffix(b".>") {
        Some(path) => (Some(path), true),
        None => (Some(filter), false),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::matches;
    use super::*;

    fn table(filters: &[&str]) -> Table<String> {
        let mut table = Table::with_seed(1);
        for filter in filters {
            *table.entry(filter.as_bytes()) = (*filter).to_owned();
        }
        table
    }

    fn found<'t>(table: &'t Table<String>, subject: &str) -> Vec<&'t str> {
        let mut found = Vec::new();
        table.for_each_match(subject.as_bytes(), |filter| found.push(filter.as_str()));
        found.sort_unstable();
        found
    }

    proptest! {
        #[test]
        fn a_scan_visits_all_that_stays_whatever_comes_and_goes_meanwhile(
            kept in 1..200usize,
            changes in prop::collection::vec((any::<bool>(), 0..3000usize), 0..4000),
            places_max in 1..40usize,
        ) {
            let name = |kind: &str, at: usize| match at % 3 {
                0 => format!("{kind}.{at}.*"),
                _ => format!("{kind}.{at}"),
            };
            let mut table = Table::<()>::with_seed(1);
            (0..kept).for_each(|at| *table.entry(name("kept", at).as_bytes()) = ());
            let mut seen = std::collections::BTreeSet::new();
            let (mut scan, mut changes, mut calls) = (Scan::default(), changes.into_iter(), 0);
            loop {
                let (mut places, mut visits) = (places_max, 0);
                let is_over = table.scan(&mut scan, &mut places, |filter, ()| {
                    seen.insert(filter.to_vec());
                    visits += 1;
                });
                let used = places_max - places;
                let visits_max = (2 * used) << scan.literal.factor;
                prop_assert!(visits <= visits_max, "{visits} at {used} places");
                if is_over {
                    break;
                }
                calls += 1;
                prop_assert!(calls < 20_000, "it comes to an end");
                for (comes, at) in changes.by_ref().take(50) {
                    let name = name("passing", at);
                    match comes {
                        true => *table.entry(name.as_bytes()) = (),
                        false => drop(table.remove(name.as_bytes())),
                    }
                }
            }
            prop_assert!((0..kept).all(|at| seen.contains(name("kept", at).as_bytes())));
        }
    }

    #[test]
    fn every_matching_filter_is_found_once() {
        let filters =
            ["a.b", "a.*", "*.b", "*.*", "a.>", "*.>", ">", "a.b.>", "a.c", "b.*", "*", "a"];
        let table = table(&filters);
        assert_eq!(found(&table, "a.b"), ["*.*", "*.>", "*.b", ">", "a.*", "a.>", "a.b"]);
        assert_eq!(found(&table, "a"), ["*", ">", "a"]);
        assert_eq!(found(&table, "a.b.c"), ["*.>", ">", "a.>", "a.b.>"]);
        assert_eq!(found(&table, "z.z"), ["*.*", "*.>", ">"]);
    }

    #[test]
    fn wildcards_in_a_published_subject_are_ordinary_tokens() {
        let table = table(&["w.*", "w.>", "w.abc", "w.*.x", ">.a"]);
        assert_eq!(found(&table, "w.*"), ["w.*", "w.>"]);
        assert_eq!(found(&table, "w.>"), ["w.*", "w.>"]);
        assert_eq!(found(&table, "w.*.x"), ["w.*.x", "w.>"]);
        assert_eq!(found(&table, ">.a"), [">.a"]);
    }

    #[test]
    fn a_subject_with_an_empty_token_finds_nothing() {
        let table = table(&[">", "*", "*.*", "*.>", "", ".", "a..b", "a.", ".>", "a..*"]);
        for subject in ["", ".", "a.", ".a", "a..b", "..", "a..c"] {
            assert!(found(&table, subject).is_empty(), "{subject:?}");
        }
    }

    #[test]
    fn an_emptied_table_holds_no_nodes() {
        let filters = ["a.b.*", "a.b.c.>", "a.*.c", ">", "*", "*.*.*.x", "a..*", "lit"];
        let mut table = table(&filters);
        assert_eq!(table.len(), filters.len());
        for filter in filters {
            assert_eq!(table.remove(filter.as_bytes()).as_deref(), Some(filter));
            assert_eq!(table.remove(filter.as_bytes()), None);
        }
        assert!(table.is_empty());
        assert_eq!(table.wild.nodes.capacity(), 0);
        assert_eq!(table.iter().count(), 0);
    }

    #[test]
    fn removing_prunes_what_no_other_filter_needs_and_its_nodes_are_used_again() {
        let mut table = table(&["a.*", "*.b.*"]);
        let before = table.wild.nodes_in_use();
        for round in 0..10 {
            *table.entry(b"a.*.c.d.*") = "long".to_owned();
            *table.entry(b"*.b.*.x.>") = "longer".to_owned();
            assert_eq!(found(&table, "q.b.q.x.q"), ["longer"], "{round}");
            assert!(table.remove(b"a.*.c.d.*").is_some());
            assert!(table.remove(b"*.b.*.x.>").is_some());
            assert_eq!(table.wild.nodes_in_use(), before);
        }
        assert!(table.wild.nodes.len() <= before + 5);
        assert_eq!(found(&table, "a.b"), ["a.*"]);
    }

    #[test]
    fn subjects_of_thousands_of_tokens_neither_recurse_nor_explode() {
        const TOKENS: usize = 20_000;
        let mut table = Table::<String>::with_seed(7);
        let stars = "*.".repeat(TOKENS);
        let names = "a.".repeat(TOKENS);
        for filter in [format!("{stars}x"), format!("{names}*.x"), format!("{stars}>")] {
            table.entry(filter.as_bytes()).clone_from(&filter);
        }
        // All ways of `*` and `a` through ten tokens, none of which ends where the subject does.
        for way in 0..1_u32 << 10 {
            let token = |bit: u32| if way >> bit & 1 == 1 { "*." } else { "a." };
            let filter: String = (0..10).map(token).chain(["*.x"]).collect();
            table.entry(filter.as_bytes()).clone_from(&filter);
        }
        assert_eq!(found(&table, &format!("{names}a")), [format!("{stars}>")]);
        assert_eq!(found(&table, &format!("{names}b.x")).len(), 2);
        assert_eq!(found(&table, &format!("{}x", "a.".repeat(11))).len(), 1 << 10);
        let clone = table.clone();
        drop(table);
        assert_eq!(clone.iter().count(), 3 + (1 << 10));
    }

    #[test]
    fn equal_seeds_give_equal_orders() {
        let filled = |seed| {
            let mut table = Table::<u32>::with_seed(seed);
            for number in 0..100 {
                *table.entry(format!("a.{number}").as_bytes()) = number;
                *table.entry(format!("a.{number}.*").as_bytes()) = number;
            }
            table.iter().map(|(_, number)| *number).collect::<Vec<_>>()
        };
        assert_eq!(filled(5), filled(5));
        assert_ne!(filled(5), filled(6));
    }

    #[test]
    fn memory_is_given_back_when_most_filters_are_gone() {
        let mut table = Table::<u32>::with_seed(1);
        for number in 0..10_000 {
            table.entry(format!("a.{number}").as_bytes());
        }
        for number in 0..10_000 {
            assert_eq!(table.remove(format!("a.{number}").as_bytes()), Some(0));
        }
        assert!(table.literals.capacity() < 200, "{}", table.literals.capacity());
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        let token = prop::sample::select(vec!["a", "a", "b", "*", "*", ">", "", "a*"]);
        prop::collection::vec(token, 1..5).prop_map(|tokens| tokens.join(".").into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn the_table_agrees_with_matching_one_by_one(
            steps in prop::collection::vec((any::<bool>(), name()), 1..60),
            subjects in prop::collection::vec(name(), 1..20),
        ) {
            let mut table = Table::<usize>::with_seed(3);
            let mut model = BTreeMap::new();
            for (number, (insert, filter)) in steps.iter().enumerate() {
                if *insert {
                    *table.entry(filter) = number;
                    model.insert(filter.clone(), number);
                } else {
                    prop_assert_eq!(table.remove(filter), model.remove(filter));
                }
                prop_assert_eq!(table.get(filter), model.get(filter));
                prop_assert_eq!(table.get_mut(filter), model.get_mut(filter));
                prop_assert_eq!(table.len(), model.len());
            }
            let mut all: Vec<_> = table.iter().map(|(filter, n)| (filter.to_vec(), *n)).collect();
            all.sort();
            prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
            for subject in &subjects {
                let mut found = Vec::new();
                table.for_each_match(subject, |number| found.push(*number));
                found.sort_unstable();
                let matching = model.iter().filter(|(filter, _)| matches(filter, subject));
                let mut expected: Vec<_> = matching.map(|(_, number)| *number).collect();
                expected.sort_unstable();
                prop_assert_eq!(found, expected, "{}", subject.escape_ascii());
            }
            for filter in model.keys() {
                table.remove(filter);
            }
            prop_assert_eq!(table.wild.nodes.capacity(), 0);
        }
    }
}
