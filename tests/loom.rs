//! The handshake between shards that sleep and shards that send, in every order of its accesses.

#![forbid(unsafe_code)]

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use crate::sleep::Sleep;

/// The atomics of `src/mesh/sleep.rs`, here those of the model.
mod sync {
    pub(super) use loom::sync::atomic::{AtomicU8, Ordering, fence};
}

#[allow(unreachable_pub, reason = "a file of the library, here the module of a test")]
#[path = "../src/mesh/sleep.rs"]
mod sleep;

/// Sleeps until the bell rings; the model finds a deadlock if no other shard rings it.
fn sleep_until(sleep: &Sleep, behind: bool, bell: &Notify, idle: impl Fn() -> bool) {
    while idle() {
        if sleep.fall_asleep(behind, &idle) {
            bell.wait();
            sleep.wake();
        }
    }
}

#[test]
fn a_published_record_always_wakes_the_sleeper() {
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
fn room_always_wakes_the_sender_that_waits_for_it() {
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
fn of_two_senders_one_rings() {
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
