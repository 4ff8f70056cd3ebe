//! The two queues shared with the kernel, and the system call that serves both.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, squeue};

use super::TurnWait;
#[cfg(test)]
use super::faults;
use crate::host::Tier;

/// Completion entries per submission entry: a multishot operation answers many times.
const COMPLETIONS_PER_SUBMISSION: u32 = 4;
/// Entries into the kernel of one turn, before the rest waits for the next turn. Since Linux 6.14
/// each entry does at most twenty of the things that have become possible, and the rest waits for
/// all that the turn does in between.
const ENTERS_MAX: usize = 64;

/// A completion of an operation by the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    /// The name of the operation; see [`super::token::OpToken`].
    pub(super) user_data: u64,
    /// The result, or minus the error.
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl From<cqueue::Entry> for Completion {
    fn from(entry: cqueue::Entry) -> Self {
        Self { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() }
    }
}

/// An element of the submission queue, which goes in as a whole.
enum Queued {
    One(squeue::Entry),
    Linked([squeue::Entry; 2]),
}

impl Queued {
    fn entries(&self) -> &[squeue::Entry] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Linked(both) => both,
        }
    }
}

/// An io_uring with room for every entry that is pushed.
pub(super) struct Ring {
    uring: IoUring,
    /// Entries for which the kernel had no room yet, in order.
    backlog: VecDeque<Queued>,
    /// Linked pairs that the kernel has not taken, or may not have taken.
    linked: usize,
    /// Occasions on which the kernel stopped taking entries and may have cut a link.
    cuts: u64,
    /// Operations whose last completion has not been seen.
    in_flight: usize,
    /// System calls since the start, and the completions that they brought.
    enters: u64,
    completions: u64,
}

impl Ring {
    /// Sets up a ring of a tier; the error is the kernel's.
    pub(super) fn new(tier: Tier, entries: u32) -> io::Result<Self> {
        #[cfg(test)]
        faults::at_setup()?;
        // A linked pair enters as a whole.
        let entries = entries.max(2);
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_SUBMISSION));
        match tier {
            Tier::Base => {}
            Tier::Rings => {
                builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
            }
            Tier::TaskRun => {
                builder
                    .setup_submit_all()
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag();
            }
        }
        let uring = builder.build(entries)?;
        Ok(Self {
            uring,
            backlog: VecDeque::new(),
            linked: 0,
            cuts: 0,
            in_flight: 0,
            enters: 0,
            completions: 0,
        })
    }

    /// Returns the kernel's answer at setup.
    pub(super) fn params(&self) -> &io_uring::Parameters {
        self.uring.params()
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.uring.submitter()
    }

    /// Returns a second descriptor of this ring, by which other rings can reach it.
    pub(super) fn duplicate_fd(&self) -> io::Result<OwnedFd> {
        // SAFETY: the ring is open for as long as `self.uring` lives, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
        fd.as_fd().try_clone_to_owned()
    }

    /// Returns the operations that have not had their last completion.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues an operation for the next entry into the kernel; none is ever lost.
    ///
    /// # Safety
    ///
    /// All memory that `entry` names stays allocated and is not touched (for writes by the
    /// kernel) or changed (for reads) until the operation's last completion has been reaped.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        #[cfg(test)]
        let Some(entry) = faults::at_push(entry) else { return };
        self.queue(Queued::One(entry));
    }

    /// Queues two operations of which the kernel begins the second when the first has succeeded;
    /// `first` is marked with `IO_LINK`. This holds as long as [`Ring::cuts`] has not changed.
    ///
    /// # Safety
    ///
    /// As for [`Ring::push`], for both.
    pub(super) unsafe fn push_linked(&mut self, first: squeue::Entry, second: squeue::Entry) {
        self.in_flight += 2;
        #[cfg(test)]
        let [first, second] = match faults::at_push_linked(first, second) {
            [Some(first), Some(second)] => [first, second],
            left => {
                left.into_iter().flatten().for_each(|entry| self.queue(Queued::One(entry)));
                return;
            }
        };
        self.linked += 1;
        self.queue(Queued::Linked([first, second]));
    }

    /// Returns the count of occasions that may have cut links: a pair that was pushed before the
    /// count changed, and completed after it, may not have been linked.
    pub(super) fn cuts(&self) -> u64 {
        self.cuts
    }

    fn queue(&mut self, queued: Queued) {
        if !self.backlog.is_empty() || !self.try_push(&queued) {
            self.backlog.push_back(queued);
            self.flush();
        }
    }

    /// Submits everything, waits as told, and returns when there may be completions.
    pub(super) fn enter(&mut self, wait: TurnWait) -> io::Result<()> {
        let mut wait = wait;
        #[cfg(test)]
        {
            wait = faults::at_wait(wait);
        }
        for entered in 0..ENTERS_MAX {
            self.shift_backlog();
            let submission = self.uring.submission();
            let (queued, has_overflown) = (submission.len(), submission.cq_overflow());
            // Completions that have overflown come when the queue has been reaped.
            let is_futile = has_overflown && entered > 0;
            let is_idle = queued == 0 && !submission.taskrun() && !has_overflown;
            drop(submission);
            if is_futile || (is_idle && matches!(wait, TurnWait::No)) {
                return Ok(());
            }
            match self.enter_once(queued, wait, EnterFlags::GETEVENTS) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            wait = TurnWait::No;
        }
        Ok(())
    }

    /// Returns the count of entries into the kernel.
    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    /// Returns the count of reaped completions.
    pub(super) fn completions(&self) -> u64 {
        self.completions
    }

    /// Moves all completions into `into`.
    pub(super) fn reap(&mut self, into: &mut Vec<Completion>) {
        #[cfg(test)]
        let is_overflowing = self.uring.submission().cq_overflow();
        into.extend(self.uring.completion().map(Completion::from));
        #[cfg(test)]
        faults::at_reap(into, is_overflowing);
        self.completions += into.len() as u64;
    }

    /// Counts the last completion of an operation.
    pub(super) fn retire(&mut self) {
        debug_assert!(self.in_flight > 0, "more last completions than operations");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Makes room in the submission queue without waiting. Entries that do not fit stay in the
    /// backlog; an error shows again in the next turn, which can report it.
    fn flush(&mut self) {
        let queued = self.uring.submission().len();
        if self.enter_once(queued, TurnWait::No, EnterFlags::empty()).is_ok() {
            self.shift_backlog();
        }
    }

    fn shift_backlog(&mut self) {
        while let Some(queued) = self.backlog.pop_front() {
            if !self.try_push(&queued) {
                self.backlog.push_front(queued);
                return;
            }
        }
    }

    fn try_push(&mut self, queued: &Queued) -> bool {
        // SAFETY: the caller of `push` with these entries has promised that their memory stays as
        // it is until the last completion, which cannot come before the entry is in the queue.
        unsafe { self.uring.submission().push_multiple(queued.entries()) }.is_ok()
    }

    fn enter_once(
        &mut self,
        queued: usize,
        wait: TurnWait,
        flags: EnterFlags,
    ) -> io::Result<usize> {
        self.enters += 1;
        #[cfg(test)]
        faults::at_enter()?;
        let timeout;
        let mut args = SubmitArgs::new();
        if let TurnWait::For(duration) = wait {
            timeout = Timespec::from(duration);
            args = args.timespec(&timeout);
        }
        let min_complete = u32::from(!matches!(wait, TurnWait::No));
        let queued = u32::try_from(queued).unwrap_or(u32::MAX);
        let flags = (flags | EnterFlags::EXT_ARG).bits();
        // SAFETY: `EXT_ARG` says that the argument is a `SubmitArgs`, and both it and the timeout
        // it points to outlive the call.
        let taken =
            unsafe { self.uring.submitter().enter(queued, min_complete, flags, Some(&args)) };
        self.look_for_cuts(queued as usize, taken.as_ref().map_or(0, |taken| *taken));
        taken
    }

    /// Looks for links that were cut: none outlasts the system call that takes its first half.
    pub(super) fn look_for_cuts(&mut self, queued: usize, taken: usize) {
        if self.linked == 0 {
            return;
        }
        if taken < queued {
            self.cuts += u64::from(taken > 0);
        } else {
            let waits = |queued: &&Queued| matches!(queued, Queued::Linked(_));
            self.linked = self.backlog.iter().filter(waits).count();
        }
    }
}

/// Whether the turn goes on after this error: a signal, the timeout, or a kernel that first wants
/// its completions reaped or a moment to find memory. Queued entries stay queued.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN))
}
