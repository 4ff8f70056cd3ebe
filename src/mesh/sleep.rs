//! The handshake between a shard that falls asleep and those that have something for it.
//!
//! The sleeper sets its flag, then looks once more; the others publish, then read the flag. A
//! fence on both sides makes sure that one of them sees the other, so no wake is lost, and taking
//! the flag makes sure that only one of them rings.

#[cfg(shardcast_loom)]
use loom::sync::atomic::{AtomicU8, Ordering, fence};
#[cfg(not(shardcast_loom))]
use std::sync::atomic::{AtomicU8, Ordering, fence};

const AWAKE: u8 = 0;
/// Asleep; records have to wake it.
const ASLEEP: u8 = 1;
/// Asleep with records of its own that found no room; room has to wake it, too.
const ASLEEP_BEHIND: u8 = 2;

/// Whether one shard sleeps; shared by all.
#[derive(Debug)]
#[cfg_attr(not(shardcast_loom), repr(align(128)))] // Two lines: neighbours are fetched in pairs.
pub struct Sleep {
    state: AtomicU8,
}

impl Default for Sleep {
    fn default() -> Self {
        Self { state: AtomicU8::new(AWAKE) }
    }
}

impl Sleep {
    /// Announces that the shard is about to sleep, then looks whether it may: `idle` says that
    /// there is nothing to do. If there is, false, and it is awake.
    pub fn fall_asleep(&self, behind: bool, idle: impl FnOnce() -> bool) -> bool {
        self.state.store(if behind { ASLEEP_BEHIND } else { ASLEEP }, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let asleep = idle();
        if !asleep {
            self.wake();
        }
        asleep
    }

    /// The shard is awake.
    pub fn wake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// After publishing to the shard: whether the caller has to ring it. Others need not then.
    pub fn must_be_rung(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) != AWAKE
            && self.state.swap(AWAKE, Ordering::Relaxed) != AWAKE
    }

    /// After making room for the shard: whether it waits for that and has to be rung.
    pub fn must_be_rung_for_room(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) == ASLEEP_BEHIND
            && self.state.swap(AWAKE, Ordering::Relaxed) != AWAKE
    }
}

#[cfg(all(test, shardcast_loom))]
mod tests {
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Notify};
    use loom::thread;

    use super::Sleep;

    /// A shard sleeps until it is rung; the model finds a deadlock if nobody rings.
    fn sleep_until(sleep: &Sleep, behind: bool, bell: &Notify, idle: impl Fn() -> bool) {
        while idle() {
            if sleep.fall_asleep(behind, &idle) {
                bell.wait();
                sleep.wake();
            }
        }
    }

    #[test]
    fn loom_a_published_record_always_wakes_the_sleeper() {
        loom::model(|| {
            let sleep = Arc::new(Sleep::default());
            let (lane, bell) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
            let sender = {
                let (sleep, lane, bell) = (sleep.clone(), lane.clone(), bell.clone());
                thread::spawn(move || {
                    lane.store(1, Ordering::Release);
                    if sleep.must_be_rung() {
                        bell.notify();
                    }
                })
            };
            sleep_until(&sleep, false, &bell, || lane.load(Ordering::Acquire) == 0);
            sender.join().unwrap();
        });
    }

    #[test]
    fn loom_room_always_wakes_the_sender_that_waits_for_it() {
        loom::model(|| {
            let sleep = Arc::new(Sleep::default());
            let (full, bell) = (Arc::new(AtomicUsize::new(1)), Arc::new(Notify::new()));
            let receiver = {
                let (sleep, full, bell) = (sleep.clone(), full.clone(), bell.clone());
                thread::spawn(move || {
                    full.store(0, Ordering::Release);
                    if sleep.must_be_rung_for_room() {
                        bell.notify();
                    }
                })
            };
            sleep_until(&sleep, true, &bell, || full.load(Ordering::Acquire) == 1);
            receiver.join().unwrap();
        });
    }

    #[test]
    fn loom_of_two_senders_one_rings() {
        loom::model(|| {
            let sleep = Arc::new(Sleep::default());
            assert!(sleep.fall_asleep(false, || true));
            let rings = Arc::new(AtomicUsize::new(0));
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let (sleep, rings) = (sleep.clone(), rings.clone());
                    thread::spawn(move || {
                        if sleep.must_be_rung() {
                            rings.fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            assert_eq!(rings.load(Ordering::SeqCst), 1);
        });
    }
}
