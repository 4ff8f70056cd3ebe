//! Tests of the reactor on a kernel that fails, on every tier that this host has.

use std::cell::Cell;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::super::listen::ACCEPTS_MAX;
use super::super::tests::{
    closed, connection, echo_among, events_of, events_until_quiet, hear_all, on_every_tier, own,
    pattern,
};
use super::super::{
    Closing, Event, Reactor, ReactorOptions, Tier, TurnWait, Unavailable, ZeroCopy,
};
use super::*;
use crate::output::{Piece, Segment};

/// Faults for the first operations of this kind: one for each error.
fn first(kind: TokenKind, errors: &[i32]) -> Faults {
    let mut errors = errors.to_vec();
    errors.reverse();
    let operation = move |of| if of == kind { errors.pop() } else { None };
    Faults { operation: Box::new(operation), ..Faults::default() }
}

/// Faults that pass, now and then, as the seed decides.
fn passing(seed: u64) -> Faults {
    fastrand::seed(seed);
    let pick = |errors: &[i32]| errors.get(fastrand::usize(..errors.len() * 6)).copied();
    let operation = move |kind| match kind {
        TokenKind::Receive => pick(&[libc::ENOBUFS, libc::EAGAIN, libc::ECANCELED, libc::EINTR]),
        TokenKind::Poll => pick(&[libc::EAGAIN, libc::ECANCELED, libc::EINTR]),
        TokenKind::Send | TokenKind::Linger | TokenKind::BellRead => {
            pick(&[libc::EAGAIN, libc::EINTR])
        }
        TokenKind::Accept => pick(&[libc::ECONNABORTED, libc::EINTR, libc::EPROTO]),
        _ => None,
    };
    Faults {
        operation: Box::new(operation),
        short_send: Box::new(|| fastrand::u64(..4) == 0),
        late_by: Box::new(|| fastrand::u64(..6)),
        enter: Box::new(move || pick(&[libc::EINTR, libc::EBUSY, libc::EAGAIN])),
        ..Faults::default()
    }
}

#[test]
fn what_fails_in_passing_is_done_again_and_nothing_is_lost() {
    on_every_tier(|options| {
        for seed in 0..4 {
            let _guard = arm(passing(seed));
            let zero_copy_from = if seed % 2 == 0 { 1 } else { usize::MAX };
            let options =
                ReactorOptions { zero_copy_from, send_bytes_max: 7_000, ..options.clone() };
            echo_among(&options, 5, 100_000);
        }
    });
}

#[test]
fn with_few_chunks_too_what_fails_in_passing_loses_nothing() {
    on_every_tier(|options| {
        let _guard = arm(passing(99));
        echo_among(
            &ReactorOptions { chunks: 2, chunk_bytes: 512, entries: 2, ..options },
            8,
            20_000,
        );
    });
}

#[test]
fn a_completion_queue_that_overflows_loses_nothing() {
    on_every_tier(|options| {
        let guard = arm(Faults::default());
        let mut reactor = Reactor::new(&ReactorOptions { entries: 1, ..options }).unwrap();
        let mut peers = Vec::new();
        for _ in 0..64 {
            let (ours, mut theirs) = connection();
            theirs.write_all(b"?").unwrap();
            let socket = reactor.adopt(ours, ZeroCopy::Never);
            reactor.read(socket);
            reactor.send(socket, own(b"!"));
            peers.push((socket, theirs));
        }
        let (mut received, mut sent) = (0, 0);
        while received < peers.len() || sent < peers.len() {
            for event in events_of(&mut reactor) {
                match event {
                    Event::Received { chunk, .. } => {
                        received += reactor.bytes(&chunk).len();
                        reactor.recycle(chunk);
                    }
                    Event::Sent { bytes, .. } => sent += bytes,
                    event => panic!("{event:?}"),
                }
            }
        }
        assert!(guard.overflowed(), "the queue was large enough: this test shows nothing");
        for (socket, theirs) in peers {
            reactor.close(socket, Closing::Graceful);
            theirs.shutdown(Shutdown::Write).unwrap();
            closed(&mut reactor, socket);
            assert_eq!(hear_all(&theirs), (b"!".to_vec(), true));
        }
    });
}

#[test]
fn where_memory_cannot_be_pinned_sends_are_copied() {
    on_every_tier(|options| {
        if options.tier == Some(Tier::Base) {
            return; // It never sends without a copy.
        }
        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EOPNOTSUPP] {
            let _guard = arm(first(TokenKind::Send, &[errno]));
            echo_among(&ReactorOptions { zero_copy_from: 1, ..options.clone() }, 1, 100_000);
        }
    });
}

#[test]
fn a_send_that_fails_for_good_gives_its_batch_back() {
    on_every_tier(|options| {
        for errno in [libc::ECONNRESET, libc::EPIPE, libc::ENOMEM, libc::ECANCELED] {
            let parts = Cell::new(0);
            let operation = move |kind| {
                parts.set(parts.get() + u32::from(kind == TokenKind::Send));
                (kind == TokenKind::Send && parts.get() == 3).then_some(errno)
            };
            let _guard = arm(Faults { operation: Box::new(operation), ..Faults::default() });
            let options = ReactorOptions { send_bytes_max: 10, ..options.clone() };
            let mut reactor = Reactor::new(&options).unwrap();
            let (ours, theirs) = connection();
            let socket = reactor.adopt(ours, ZeroCopy::Never);
            reactor.send(socket, own(&pattern(1, 100)));
            let (mut sent, mut failed) = (0, None);
            while failed.is_none() {
                for event in events_of(&mut reactor) {
                    match event {
                        Event::Sent { bytes, batch: None, .. } => sent += bytes,
                        Event::SendFailed { error, batch, .. } => failed = Some((error, batch)),
                        event => panic!("{event:?}"),
                    }
                }
            }
            let (error, batch) = failed.unwrap();
            assert_eq!((error.raw_os_error(), batch.len(), sent), (Some(errno), 100, 20));
            reactor.close(socket, Closing::Abort);
            closed(&mut reactor, socket);
            drop(theirs);
        }
    });
}

#[test]
fn a_batch_stays_until_the_kernel_says_that_it_does_not_read_it_any_more() {
    on_every_tier(|options| {
        if options.tier == Some(Tier::Base) {
            return;
        }
        for how in [None, Some(Closing::Graceful), Some(Closing::Abort)] {
            let _guard = arm(Faults { late_by: Box::new(|| 50), ..Faults::default() });
            let options = ReactorOptions { zero_copy_from: 1, ..options.clone() };
            let mut reactor = Reactor::new(&options).unwrap();
            let (ours, theirs) = connection();
            let socket = reactor.adopt(ours, ZeroCopy::Allowed);
            let shared: Segment = Rc::new(pattern(2, 3000));
            let piece = Piece::Shared { segment: Rc::clone(&shared), range: 0..3000 };
            reactor.send(socket, vec![piece].into());
            let events = events_of(&mut reactor);
            assert!(
                matches!(events[..], [Event::Sent { bytes: 3000, batch: None, .. }]),
                "{events:?}"
            );
            if let Some(how) = how {
                reactor.close(socket, how);
            }
            for _ in 0..20 {
                let mut events = Vec::new();
                reactor.turn(TurnWait::No, &mut events).unwrap();
                assert!(events.is_empty(), "{events:?} while the kernel reads the batch");
            }
            assert_eq!(Rc::strong_count(&shared), 2);
            drop(theirs);
            if how.is_some() {
                assert!(closed(&mut reactor, socket).is_some());
            } else {
                let mut home = events_of(&mut reactor);
                assert!(matches!(home.remove(0), Event::Sent { bytes: 0, batch: Some(_), .. }));
            }
            assert_eq!(Rc::strong_count(&shared), 1);
        }
    });
}

#[test]
fn an_accept_that_fails_for_want_of_something_is_reported_and_goes_on_when_told() {
    on_every_tier(|options| {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::ECANCELED] {
            let errors = [&[libc::ECONNABORTED], &[errno; ACCEPTS_MAX as usize][..]].concat();
            let _guard = arm(first(TokenKind::Accept, &errors));
            let mut reactor = Reactor::new(&options).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let id = reactor.listen(OwnedFd::from(listener));
            let events = events_of(&mut reactor);
            let [Event::AcceptFailed { error, .. }] = &events[..] else { panic!("{events:?}") };
            assert_eq!(error.raw_os_error(), Some(errno));
            assert!(events_until_quiet(&mut reactor).is_empty(), "it goes on by itself");
            reactor.accept(id);
            let events = events_of(&mut reactor);
            assert!(matches!(events[..], [Event::Accepted { .. }]), "{events:?}");
        }
    });
}

#[test]
fn what_a_reactor_is_refused_at_its_start_is_named() {
    on_every_tier(|options| {
        let refusal = |setup, registration| {
            let _guard = arm(Faults { setup, registration, ..Faults::default() });
            Reactor::new(&options).err()
        };
        let is_memlock = |refusal| matches!(refusal, Some(Unavailable::Memlock));
        assert!(is_memlock(refusal(Some(libc::ENOMEM), None)));
        let few = refusal(Some(libc::EMFILE), None);
        assert!(matches!(few, Some(Unavailable::Descriptors)), "{few:?}");
        if options.tier > Some(Tier::Base) {
            assert!(is_memlock(refusal(None, Some(libc::ENOMEM))));
            let old = refusal(None, Some(libc::EINVAL));
            assert!(matches!(old, Some(Unavailable::TooOld { .. })), "{old:?}");
        }
        assert!(refusal(None, None).is_none());
    });
}

#[test]
fn a_ring_that_cannot_be_entered_any_more_is_an_error_of_the_turn() {
    on_every_tier(|options| {
        let is_broken = Rc::new(Cell::new(false));
        let enter = {
            let is_broken = Rc::clone(&is_broken);
            move || is_broken.get().then_some(libc::EBADF)
        };
        let _guard = arm(Faults { enter: Box::new(enter), ..Faults::default() });
        let mut reactor = Reactor::new(&options).unwrap();
        is_broken.set(true);
        let error = reactor.turn(TurnWait::Forever, &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        is_broken.set(false);
    });
}

#[test]
fn a_linger_timer_that_fails_does_not_let_a_silent_peer_stay_for_ever() {
    on_every_tier(|options| {
        let _guard = arm(first(TokenKind::LingerTimer, &[libc::ENOMEM]));
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, theirs) = connection();
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        reactor.close(socket, Closing::Graceful);
        closed(&mut reactor, socket);
        assert_eq!(hear_all(&theirs), (Vec::new(), true));
    });
}

#[test]
fn an_interrupted_linger_does_not_cost_the_last_word() {
    on_every_tier(|options| {
        let _guard = arm(first(TokenKind::Linger, &[libc::EINTR, libc::EAGAIN]));
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, mut theirs) = connection();
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        theirs.write_all(b"unread").unwrap();
        // More than a peer takes that does not read yet.
        let last = pattern(4, 1_000_000);
        reactor.send(socket, own(&last));
        while !matches!(events_of(&mut reactor)[..], [Event::Sent { batch: Some(_), .. }]) {}
        reactor.close(socket, Closing::Graceful);
        let early = events_until_quiet(&mut reactor);
        let peer = std::thread::spawn(move || hear_all(&theirs));
        if early.is_empty() {
            closed(&mut reactor, socket);
        }
        let (heard, ended_well) = peer.join().unwrap();
        assert!(ended_well && heard == last, "{} of {} bytes", heard.len(), last.len());
    });
}

#[test]
fn a_reactor_that_cannot_be_woken_through_the_ring_is_woken_by_a_system_call() {
    on_every_tier(|options| {
        let _guard = arm(first(TokenKind::Wake, &[libc::EBADFD]));
        let mut sleeper = Reactor::new(&options).unwrap();
        let mut waker = Reactor::new(&options).unwrap();
        waker.wake(&sleeper.waker());
        waker.turn(TurnWait::No, &mut Vec::new()).unwrap();
        let events = events_of(&mut sleeper);
        assert!(matches!(events[..], [Event::Woken]), "{events:?}");
    });
}

#[test]
fn a_reset_in_every_state_ends_in_closed() {
    on_every_tier(|options| {
        let options = ReactorOptions { linger: Duration::from_secs(600), ..options };
        let mut reactor = Reactor::new(&options).unwrap();
        let much: Segment = Rc::new(pattern(0, 20_000_000));
        let all_of = |segment: &Segment| Piece::Shared {
            segment: Rc::clone(segment),
            range: 0..segment.len(),
        };
        let mut sockets = Vec::new();
        for state in 0..8 {
            let (ours, mut theirs) = connection();
            let socket = reactor.adopt(ours, ZeroCopy::Never);
            match state {
                0 => {}
                1 => reactor.read(socket),
                2 => theirs.write_all(b"unread").unwrap(),
                3 => {
                    reactor.read(socket);
                    reactor.pause(socket);
                    theirs.write_all(b"unread").unwrap();
                }
                4 => reactor.send(socket, vec![all_of(&much)].into()),
                5 => {
                    reactor.send(socket, vec![all_of(&much)].into());
                    reactor.close(socket, Closing::Graceful);
                }
                6 => reactor.close(socket, Closing::Graceful),
                _ => {
                    reactor.read(socket);
                    theirs.shutdown(Shutdown::Write).unwrap();
                }
            }
            sockets.push((socket, theirs));
        }
        for event in events_until_quiet(&mut reactor) {
            if let Event::Received { chunk, .. } = event {
                reactor.recycle(chunk);
            }
        }
        let ids: Vec<_> = sockets.iter().map(|(socket, _)| *socket).collect();
        for (_, theirs) in sockets {
            set_socket_linger(&theirs, Some(Duration::ZERO)).unwrap();
        }
        let mut left: Vec<_> = ids.clone();
        let mut told = events_until_quiet(&mut reactor);
        ids.iter().for_each(|socket| reactor.close(*socket, Closing::Graceful));
        while !left.is_empty() {
            for event in told.drain(..) {
                match event {
                    Event::Closed { socket, .. } => left.retain(|other| *other != socket),
                    Event::Received { chunk, .. } => reactor.recycle(chunk),
                    Event::Ended { .. } | Event::SendFailed { .. } | Event::Sent { .. } => {}
                    event => panic!("{event:?}"),
                }
            }
            if !left.is_empty() {
                told = events_of(&mut reactor);
            }
        }
        assert_eq!(Rc::strong_count(&much), 1);
    });
}
