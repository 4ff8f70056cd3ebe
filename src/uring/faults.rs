//! Faults of a kernel, for tests, that seldom happen otherwise: operations fail without being
//! carried out, notifications come late, system calls are refused, memory is short.
//!
//! A test arms faults for its own thread, and with that for the reactors it makes. The ring asks
//! here at the four places where it meets the kernel.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;

use io_uring::{cqueue, squeue};

use super::TurnWait;
use super::ring::Completion;
use super::token::{OpToken, TokenKind};

/// Faults to inject. Every field is called at each occasion; the default has no faults.
pub(super) struct Faults {
    /// The error that this operation fails with, instead of being carried out.
    pub(super) operation: Box<dyn FnMut(TokenKind) -> Option<i32>>,
    /// Whether no more than one byte of a send is taken.
    pub(super) short_send: Box<dyn FnMut() -> bool>,
    /// Reaps by which the release of memory sent without a copy is late.
    pub(super) late_by: Box<dyn FnMut() -> u64>,
    /// The error that an entry into the kernel fails with.
    pub(super) enter: Box<dyn FnMut() -> Option<i32>>,
    /// The error of setting up a ring.
    pub(super) setup: Option<i32>,
    /// The error of registering its buffers.
    pub(super) registration: Option<i32>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            operation: Box::new(|_| None),
            short_send: Box::new(|| false),
            late_by: Box::new(|| 0),
            enter: Box::new(|| None),
            setup: None,
            registration: None,
        }
    }
}

#[derive(Default)]
struct Armed {
    faults: Faults,
    /// Answers of operations that failed, for the next reap.
    made: Vec<Completion>,
    /// Completions held back, and the reap that brings them.
    late: Vec<(u64, Completion)>,
    reaps: u64,
    /// Whether the kernel had more completions than their queue has room for.
    overflowed: bool,
}

thread_local! {
    static ARMED: RefCell<Option<Armed>> = const { RefCell::new(None) };
}

/// A guard of the faults of this thread, which end when it is dropped; it must be older than the
/// reactor.
pub(super) struct Guard(());

pub(super) fn arm(faults: Faults) -> Guard {
    ARMED.set(Some(Armed { faults, ..Armed::default() }));
    Guard(())
}

impl Guard {
    /// Whether the completion queue was ever too small.
    pub(super) fn overflowed(&self) -> bool {
        ARMED.with_borrow(|armed| armed.as_ref().is_some_and(|armed| armed.overflowed))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        ARMED.set(None);
    }
}

fn armed<T>(ask: impl FnOnce(&mut Armed) -> T) -> Option<T> {
    ARMED.with_borrow_mut(|armed| armed.as_mut().map(ask))
}

pub(super) fn at_setup() -> io::Result<()> {
    refuse(armed(|armed| armed.faults.setup).flatten())
}

pub(super) fn at_registration() -> io::Result<()> {
    refuse(armed(|armed| armed.faults.registration).flatten())
}

pub(super) fn at_enter() -> io::Result<()> {
    refuse(armed(|armed| (armed.faults.enter)()).flatten())
}

fn refuse(errno: Option<i32>) -> io::Result<()> {
    errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// Returns the operation for the kernel, or `None` when it has failed already.
pub(super) fn at_push(mut entry: squeue::Entry) -> Option<squeue::Entry> {
    let user_data = entry.get_user_data();
    let Some(token) = OpToken::from_user_data(user_data) else { return Some(entry) };
    let opcode = entry.get_opcode();
    let failed = armed(|armed| {
        let errno = (armed.faults.operation)(token.kind)?;
        armed.made.push(Completion { user_data, result: -errno, flags: 0 });
        Some(())
    });
    if failed.flatten().is_some() {
        return None;
    }
    let counts = [io_uring::opcode::Send::CODE, io_uring::opcode::Write::CODE];
    let is_plain = counts.into_iter().map(u32::from).any(|code| code == opcode);
    if is_plain && armed(|armed| (armed.faults.short_send)()) == Some(true) {
        shorten(&mut entry);
    }
    Some(entry)
}

/// Returns the entries of two linked operations: where the first has failed the second is not
/// begun.
pub(super) fn at_push_linked(
    first: squeue::Entry,
    second: squeue::Entry,
) -> [Option<squeue::Entry>; 2] {
    let user_data = second.get_user_data();
    match at_push(first) {
        Some(first) => match at_push(second) {
            Some(second) => [Some(first), Some(second)],
            None => [Some(first.clear_flags()), None],
        },
        None => {
            let canceled = Completion { user_data, result: -libc::ECANCELED, flags: 0 };
            armed(|armed| armed.made.push(canceled));
            [None, None]
        }
    }
}

/// Shortens a send to at most one byte, as a kernel without room for more would carry it out.
fn shorten(entry: &mut squeue::Entry) {
    /// Offset of `len` in `struct io_uring_sqe`, in bytes.
    const LEN_AT: usize = 24;
    let start = (&raw mut *entry).cast::<u8>();
    // SAFETY: an entry is a `struct io_uring_sqe` of 64 bytes in the kernel's layout, aligned to
    // eight, so that `len` is four aligned bytes inside it; no other borrow of it is alive.
    unsafe {
        let len = start.add(LEN_AT).cast::<u32>();
        *len = (*len).min(1);
    }
}

/// Returns `TurnWait::No` while a completion is there, so that no turn sleeps then.
pub(super) fn at_wait(wait: TurnWait) -> TurnWait {
    let has_answers = armed(|armed| !armed.made.is_empty() || !armed.late.is_empty());
    if has_answers == Some(true) { TurnWait::No } else { wait }
}

/// Takes late completions out, and adds those that are due and those of failed operations.
pub(super) fn at_reap(into: &mut Vec<Completion>, is_overflowing: bool) {
    armed(|armed| {
        armed.reaps += 1;
        armed.overflowed |= is_overflowing;
        let now = armed.reaps;
        for completion in std::mem::take(into) {
            let by = if cqueue::notif(completion.flags) { (armed.faults.late_by)() } else { 0 };
            if by > 0 {
                armed.late.push((now + by, completion));
            } else {
                into.push(completion);
            }
        }
        let due = |(at, completion): &(u64, Completion)| (*at <= now).then_some(*completion);
        into.extend(armed.late.iter().filter_map(due));
        armed.late.retain(|(at, _)| *at > now);
        into.append(&mut armed.made);
    });
}
