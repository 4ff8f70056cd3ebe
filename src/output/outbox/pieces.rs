//! A queue of pieces that may grow long without ever being moved.
//!
//! Connections that stall together have queues of the same length. If those doubled, all would be
//! copied at the same message, and every other connection would wait for that.

use std::collections::VecDeque;

use crate::output::Piece;

/// Pieces in a chunk: 4 KiB.
const CHUNK_PIECES: usize = 128;

/// Pieces in order, in chunks that stay where they are.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// The first chunk; empty only if there are no pieces.
    first: VecDeque<Piece>,
    /// The chunks behind `first`; all but the last one are full.
    rest: VecDeque<VecDeque<Piece>>,
}

impl Pieces {
    pub(super) fn len(&self) -> usize {
        let Some(last) = self.rest.back() else { return self.first.len() };
        self.first.len() + (self.rest.len() - 1) * CHUNK_PIECES + last.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub(super) fn push_back(&mut self, piece: Piece) {
        if self.rest.is_empty() && self.first.len() < CHUNK_PIECES {
            self.first.push_back(piece);
        } else {
            self.push_behind(piece);
        }
    }

    #[cold]
    fn push_behind(&mut self, piece: Piece) {
        match self.rest.back_mut().filter(|last| last.len() < CHUNK_PIECES) {
            Some(last) => last.push_back(piece),
            None => {
                let mut chunk = VecDeque::with_capacity(CHUNK_PIECES);
                chunk.push_back(piece);
                self.rest.push_back(chunk);
            }
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Piece> {
        let piece = self.first.pop_front();
        if self.first.is_empty()
            && let Some(next) = self.rest.pop_front()
        {
            self.first = next;
        }
        piece
    }

    /// Returns the piece at `place`, counted from the front.
    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut Piece> {
        match place.checked_sub(self.first.len()) {
            None => self.first.get_mut(place),
            Some(behind) => {
                self.rest.get_mut(behind / CHUNK_PIECES)?.get_mut(behind % CHUNK_PIECES)
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.first.iter().chain(self.rest.iter().flatten())
    }

    /// Takes out all pieces.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Piece> + use<> {
        let Self { first, rest } = std::mem::take(self);
        first.into_iter().chain(rest.into_iter().flatten())
    }

    /// Drops all pieces but those for which `is_kept` is true.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&Piece) -> bool) {
        for piece in self.drain() {
            if is_kept(&piece) {
                self.push_back(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(number: usize) -> Piece {
        Piece::Own(number.to_le_bytes().to_vec())
    }

    proptest! {
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec((0..6u8, 0..1000usize), 0..40)) {
            let (mut pieces, mut model) = (Pieces::default(), VecDeque::<usize>::new());
            let same = |piece: &Piece, number: usize| piece.bytes() == number.to_le_bytes();
            for (step, count) in steps {
                match step {
                    0..=2 => for number in 0..count {
                        pieces.push_back(piece(number));
                        model.push_back(number);
                    },
                    3 | 4 => for _ in 0..count {
                        match (pieces.pop_front(), model.pop_front()) {
                            (Some(piece), Some(number)) => prop_assert!(same(&piece, number)),
                            (piece, number) => prop_assert!(piece.is_none() && number.is_none()),
                        }
                    },
                    _ => {
                        let is_kept = |number: usize| number % 3 != count % 3;
                        pieces.retain(|piece| {
                            is_kept(usize::from_le_bytes(piece.bytes().try_into().unwrap()))
                        });
                        model.retain(|number| is_kept(*number));
                    }
                }
                prop_assert_eq!(pieces.len(), model.len());
                prop_assert_eq!(pieces.is_empty(), model.is_empty());
                prop_assert!(pieces.iter().zip(&model).all(|(piece, number)| same(piece, *number)));
                prop_assert_eq!(pieces.iter().count(), model.len());
                match (pieces.get_mut(count), model.get(count)) {
                    (Some(piece), Some(number)) => prop_assert!(same(piece, *number)),
                    (piece, number) => prop_assert!(piece.is_none() && number.is_none()),
                }
            }
            prop_assert_eq!(pieces.drain().count(), model.len());
            prop_assert!(pieces.is_empty());
        }
    }

    #[test]
    fn what_is_in_a_chunk_stays_where_it_is() {
        let mut pieces = Pieces::default();
        let places = |pieces: &Pieces| pieces.iter().map(std::ptr::from_ref).collect::<Vec<_>>();
        (0..10 * CHUNK_PIECES).for_each(|number| pieces.push_back(piece(number)));
        let before = places(&pieces);
        (0..1000 * CHUNK_PIECES).for_each(|number| pieces.push_back(piece(number)));
        assert_eq!(places(&pieces)[..before.len()], before);
    }
}
