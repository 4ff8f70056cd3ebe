//! Lists of things with names, in the order in which they came, found by name in constant time.

use std::collections::HashMap;
use std::ops::Deref;
use std::rc::Rc;

use ahash::RandomState;
use thin_vec::ThinVec;

/// Things up to which a list is searched; with more there is an index.
const UNINDEXED_MAX: usize = 16;

/// A thing with a name, which never changes.
pub(crate) trait Name {
    fn name(&self) -> &Rc<[u8]>;
}

/// Positions in the list by name.
type Positions = HashMap<Rc<[u8]>, usize, RandomState>;

/// A list of things with different names.
#[derive(Debug)]
pub(crate) struct Named<T> {
    list: ThinVec<T>,
    places: Option<Box<Positions>>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self { list: ThinVec::new(), places: None }
    }
}

impl<T> Deref for Named<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.list
    }
}

impl<T: Name> Named<T> {
    /// Returns the position of the thing with this name.
    pub(crate) fn place(&self, name: &[u8]) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(name).copied(),
            None => self.list.iter().position(|one| **one.name() == *name),
        }
    }

    /// Returns the thing with this name, which is made if there is none.
    pub(crate) fn entry(&mut self, name: &[u8], make: impl FnOnce(Rc<[u8]>) -> T) -> &mut T {
        let at = self.place(name).unwrap_or_else(|| self.push(make(name.into())));
        &mut self.list[at]
    }

    fn push(&mut self, one: T) -> usize {
        let at = self.list.len();
        if at == 0 {
            // Most lists have one thing, and there are as many lists as filters.
            self.list.reserve_exact(1);
        }
        if at == UNINDEXED_MAX && self.places.is_none() {
            let known = self.list.iter().enumerate();
            self.places =
                Some(Box::new(known.map(|(at, one)| (Rc::clone(one.name()), at)).collect()));
        }
        if let Some(places) = &mut self.places {
            places.insert(Rc::clone(one.name()), at);
        }
        self.list.push(one);
        at
    }

    /// Removes the thing with this name if it is `empty`. In a list with an index the last one
    /// moves to its position.
    pub(crate) fn remove_if(&mut self, name: &[u8], empty: impl FnOnce(&T) -> bool) {
        let Some(at) = self.place(name).filter(|at| empty(&self.list[*at])) else { return };
        let Some(places) = &mut self.places else {
            self.list.remove(at);
            return;
        };
        places.remove(name);
        self.list.swap_remove(at);
        if let Some(moved) = self.list.get(at) {
            places.insert(Rc::clone(moved.name()), at);
        }
        if self.list.len() <= UNINDEXED_MAX / 2 {
            self.places = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Thing(Rc<[u8]>, u32);

    impl Name for Thing {
        fn name(&self) -> &Rc<[u8]> {
            &self.0
        }
    }

    proptest! {
        #[test]
        fn each_name_leads_to_its_own_whatever_comes_and_goes(
            steps in prop::collection::vec((any::<bool>(), 0..60_u32), 1..300),
        ) {
            let (mut named, mut model) = (Named::default(), std::collections::BTreeMap::new());
            for (number, (adds, name)) in (0..).zip(steps) {
                let name = format!("name-{name}").into_bytes();
                if adds {
                    named.entry(&name, |name| Thing(name, 0)).1 = number;
                    model.insert(name, number);
                } else {
                    named.remove_if(&name, |thing| thing.1 % 5 != 0);
                    if model.get(&name).is_some_and(|number| number % 5 != 0) {
                        model.remove(&name);
                    }
                }
                prop_assert_eq!(named.len(), model.len());
                for (name, number) in &model {
                    let found = named.place(name).map(|at| named[at].1);
                    prop_assert_eq!(found, Some(*number));
                }
            }
        }
    }

    #[test]
    fn few_stay_in_the_order_in_which_they_came() {
        let mut named = Named::default();
        for name in ["c", "a", "b", "d"] {
            named.entry(name.as_bytes(), |name| Thing(name, 0));
        }
        named.remove_if(b"a", |_| true);
        let names: Vec<&[u8]> = named.iter().map(|thing| &*thing.0).collect();
        assert_eq!(names, [b"c", b"b", b"d"]);
    }
}
