//! Tests of the reactor with real sockets, on every tier that this host has.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::rc::Rc;
use std::thread;

use rustix::process::{Resource, getrlimit, setrlimit};

use super::*;
use crate::output::Piece;

/// The sleep of a turn without an event after which something is stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time for bytes to arrive over loopback; used only where nothing is expected.
const QUIET: Duration = Duration::from_millis(30);

pub(super) fn on_every_tier(test: impl Fn(ReactorOptions)) {
    let best = probe(None).unwrap().tier;
    for tier in Tier::ALL.into_iter().filter(|tier| *tier <= best) {
        eprintln!("tier {tier}");
        test(ReactorOptions { tier: Some(tier), entries: 256, ..ReactorOptions::default() });
    }
}

/// Both ends of a connection: the reactor's and the peer's.
pub(super) fn connection() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (OwnedFd::from(ours), theirs)
}

pub(super) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251 + seed * 7).to_le_bytes()[0]).collect()
}

pub(super) fn own(bytes: &[u8]) -> Batch {
    Batch::from(vec![Piece::Own(bytes.to_vec())])
}

#[test]
fn a_ring_that_polls_network_cards_says_so_and_receives_as_ever() {
    on_every_tier(|options| {
        let mut reactor = match Reactor::new(&ReactorOptions { napi_us: 50, ..options }) {
            Ok(reactor) => reactor,
            Err(Unavailable::NoNapi(_)) => return,
            Err(other) => panic!("{other}"),
        };
        let (ours, mut theirs) = connection();
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        reactor.read(socket);
        theirs.write_all(b"hello").unwrap();
        let Some(Event::Received { chunk, .. }) = events_of(&mut reactor).pop() else {
            panic!("nothing was received");
        };
        assert_eq!(reactor.bytes(&chunk), b"hello");
        reactor.recycle(chunk);
        // A new registration returns the settings that were in force.
        let mut napi = Napi::new();
        reactor.ring.submitter().register_napi(&mut napi).unwrap();
        assert_eq!(napi.busy_poll_timeout(), 50);
    });
}

#[test]
fn a_slot_that_was_given_up_never_gets_an_old_name_again() {
    let mut sockets = Sockets::default();
    let mut names = HashSet::new();
    for count in [1, 5, 3, 8, 2] {
        let ids: Vec<_> = (0..count).map(|_| sockets.insert(connection().0)).collect();
        ids.iter().for_each(|id| assert!(names.insert(*id), "{id:?} for the second time"));
        // All but the first, so that some slots stay and others go.
        ids[1..].iter().for_each(|id| sockets.remove(id.slot));
        sockets.shrink();
        sockets.remove(ids[0].slot);
        assert_eq!(sockets.occupied(), []);
    }
}

#[test]
fn a_flood_that_takes_all_chunks_keeps_nobody_from_being_read_for_more_than_four_turns() {
    /// Chunks that a turn handles, as a shard does it.
    const CHUNKS_PER_TURN: usize = 2;
    /// Turns until the socket is heard: one finds no chunk, one feeds it, one receives.
    const TURNS_MAX: usize = 4;
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let [(flood, mut flooder), (quiet, mut asker)] = [connection(), connection()];
        let [flood, quiet] = [flood, quiet].map(|ours| reactor.adopt(ours, ZeroCopy::Never));
        [flood, quiet].into_iter().for_each(|socket| reactor.read(socket));
        flooder.set_nonblocking(true).unwrap();
        let (mut inbox, mut events) = (VecDeque::new(), Vec::new());
        for round in 0..200 {
            let mut asked = None;
            for turn in 0.. {
                // As much as the socket takes.
                while flooder.write(&[b'x'; 65536]).is_ok() {}
                if turn == round % 7 {
                    asker.write_all(b"PING").unwrap();
                    asked = Some(turn);
                }
                reactor.turn(TurnWait::For(PATIENCE), &mut events).unwrap();
                inbox.extend(events.drain(..));
                // Input of the quiet connection is heard; some of the flood's waits.
                let sender = |event: &Event| match event {
                    Event::Received { socket, .. } => Some(*socket),
                    _ => None,
                };
                let heard = inbox.iter().position(|event| sender(event) == Some(quiet));
                if let Some(Event::Received { chunk, .. }) = heard.and_then(|at| inbox.remove(at)) {
                    reactor.recycle(chunk);
                    break;
                }
                for _ in 0..CHUNKS_PER_TURN {
                    if let Some(Event::Received { chunk, .. }) = inbox.pop_front() {
                        reactor.recycle(chunk);
                    }
                }
                let waited = asked.map_or(0, |asked| turn - asked);
                assert!(waited < TURNS_MAX, "not heard {waited} turns after it has asked");
            }
        }
        for event in inbox {
            let Event::Received { chunk, .. } = event else { panic!("{event:?}") };
            reactor.recycle(chunk);
        }
    });
}

#[test]
fn floods_that_take_all_chunks_keep_no_newcomer_from_being_read() {
    /// Chunks that a turn handles, as a shard does it.
    const CHUNKS_PER_TURN: usize = 2;
    const TURNS_MAX: usize = 20;
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let (floods, mut flooders): (Vec<_>, Vec<_>) = (0..4).map(|_| connection()).unzip();
        flooders.iter().for_each(|flooder| flooder.set_nonblocking(true).unwrap());
        floods.into_iter().for_each(|ours| {
            let flood = reactor.adopt(ours, ZeroCopy::Never);
            reactor.read(flood);
        });
        let (mut inbox, mut newcomer, mut theirs) = (VecDeque::new(), None, None);
        for turn in 0..200 + TURNS_MAX {
            for flooder in &mut flooders {
                while flooder.write(&[b'x'; 65536]).is_ok() {}
            }
            if turn == 200 {
                let (ours, mut client) = connection();
                client.write_all(b"CONNECT").unwrap();
                let socket = reactor.adopt(ours, ZeroCopy::Never);
                reactor.read(socket);
                (newcomer, theirs) = (Some(socket), Some(client));
            }
            let mut events = Vec::new();
            reactor.turn(TurnWait::For(PATIENCE), &mut events).unwrap();
            inbox.extend(events);
            let is_newcomers = |event: &Event| match event {
                Event::Received { socket, .. } => Some(*socket) == newcomer,
                _ => false,
            };
            if inbox.iter().any(is_newcomers) {
                break;
            }
            for _ in 0..CHUNKS_PER_TURN {
                if let Some(Event::Received { chunk, .. }) = inbox.pop_front() {
                    reactor.recycle(chunk);
                }
            }
            assert!(turn < 199 + TURNS_MAX, "not read in {TURNS_MAX} turns");
        }
        for event in inbox {
            let Event::Received { chunk, .. } = event else { panic!("{event:?}") };
            reactor.recycle(chunk);
        }
        drop(theirs);
    });
}

#[test]
fn a_crowd_of_newcomers_keeps_nobody_who_was_there_from_being_read() {
    const CROWD: usize = 60;
    const TURNS_MAX: usize = 4;
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&ReactorOptions { chunks: 4, ..options }).unwrap();
        let (ours, mut asker) = connection();
        let quiet = reactor.adopt(ours, ZeroCopy::Never);
        reactor.read(quiet);
        let mut ask = |reactor: &mut Reactor, turns_max: usize| {
            asker.write_all(b"PING").unwrap();
            let mut events = Vec::new();
            let is_heard = (0..turns_max).any(|_| {
                reactor.turn(TurnWait::For(PATIENCE), &mut events).unwrap();
                events.drain(..).fold(false, |is_heard, event| {
                    let Event::Received { socket, chunk } = event else { return is_heard };
                    reactor.recycle(chunk);
                    is_heard || socket == quiet
                })
            });
            assert!(is_heard, "not in {turns_max} turns");
        };
        // It has been there for a while.
        (0..20).for_each(|_| ask(&mut reactor, 100));
        for _ in 0..10 {
            let (mut crowd, mut newcomers) = (Vec::new(), Vec::new());
            for _ in 0..CROWD {
                let (ours, mut theirs) = connection();
                theirs.write_all(b"hello").unwrap();
                let newcomer = reactor.adopt(ours, ZeroCopy::Never);
                reactor.read(newcomer);
                crowd.push(theirs);
                newcomers.push(newcomer);
            }
            ask(&mut reactor, TURNS_MAX);
            for newcomer in newcomers {
                reactor.close(newcomer, Closing::Abort);
            }
            for event in events_until_quiet(&mut reactor) {
                if let Event::Received { chunk, .. } = event {
                    reactor.recycle(chunk);
                }
            }
        }
    });
}

/// Takes turns until one brings events.
pub(super) fn events_of(reactor: &mut Reactor) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..1000 {
        reactor.turn(TurnWait::For(PATIENCE), &mut events).unwrap();
        if !events.is_empty() {
            return events;
        }
    }
    panic!("nothing happens any more");
}

/// Takes turns until no events come for a while.
pub(super) fn events_until_quiet(reactor: &mut Reactor) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let before = events.len();
        for _ in 0..3 {
            reactor.turn(TurnWait::For(QUIET), &mut events).unwrap();
        }
        if events.len() == before {
            return events;
        }
    }
}

pub(super) fn closed(reactor: &mut Reactor, socket: SocketId) -> Option<Batch> {
    loop {
        for event in events_of(reactor) {
            match event {
                Event::Closed { socket: of, batch } if of == socket => return batch,
                Event::Closed { .. } => {}
                event => panic!("{event:?} after close"),
            }
        }
    }
}

/// Returns all bytes that a peer receives until the other side ends; `false` when it ended by a
/// reset.
pub(super) fn hear_all(mut peer: &TcpStream) -> (Vec<u8>, bool) {
    let mut heard = Vec::new();
    let ended_well = peer.read_to_end(&mut heard).is_ok();
    (heard, ended_well)
}

/// Sends input back, one batch at a time, until `ends` sockets are closed.
fn echo(reactor: &mut Reactor, ends: usize) {
    let mut outboxes: HashMap<SocketId, (VecDeque<Piece>, bool, bool)> = HashMap::new();
    let mut left = ends;
    while left > 0 {
        let mut touched = HashSet::new();
        for event in events_of(reactor) {
            match event {
                Event::Accepted { socket, .. } => {
                    let socket = reactor.adopt(socket, ZeroCopy::Allowed);
                    reactor.read(socket);
                }
                Event::Received { socket, chunk } => {
                    let bytes = reactor.bytes(&chunk).to_vec();
                    assert_eq!(bytes.len(), chunk.len());
                    reactor.recycle(chunk);
                    outboxes.entry(socket).or_default().0.push_back(Piece::Own(bytes));
                    touched.insert(socket);
                }
                Event::Ended { socket, error } => {
                    assert!(error.is_none(), "{error:?}");
                    outboxes.entry(socket).or_default().2 = true;
                    touched.insert(socket);
                }
                Event::Sent { socket, batch, .. } => {
                    if batch.is_some() {
                        outboxes.get_mut(&socket).unwrap().1 = false;
                        touched.insert(socket);
                    }
                }
                Event::Closed { .. } => left -= 1,
                event => panic!("{event:?}"),
            }
        }
        for socket in touched {
            let (pieces, is_sending, has_ended) = outboxes.get_mut(&socket).unwrap();
            if *is_sending {
                continue;
            }
            if !pieces.is_empty() {
                *is_sending = true;
                reactor.send(socket, Batch::from(pieces.drain(..).collect::<Vec<_>>()));
            } else if *has_ended {
                outboxes.remove(&socket);
                reactor.close(socket, Closing::Graceful);
            }
        }
    }
}

/// Peers that each send `len` bytes and check that the same bytes come back.
fn start_echo_peers(address: SocketAddr, peers: usize, len: usize) -> Vec<thread::JoinHandle<()>> {
    let start = |seed| {
        thread::spawn(move || {
            let stream = TcpStream::connect(address).unwrap();
            let wrote = pattern(seed, len);
            thread::scope(|scope| {
                scope.spawn(|| {
                    (&stream).write_all(&wrote).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                });
                let (heard, ended_well) = hear_all(&stream);
                assert!(ended_well);
                assert!(heard == wrote, "peer {seed} heard something else than it said");
            });
        })
    };
    (0..peers).map(start).collect()
}

pub(super) fn echo_among(options: &ReactorOptions, peers: usize, len: usize) {
    let mut reactor = Reactor::new(options).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    reactor.listen(OwnedFd::from(listener));
    let peers: Vec<_> = start_echo_peers(address, peers, len);
    echo(&mut reactor, peers.len());
    peers.into_iter().for_each(|peer| peer.join().unwrap());
}

#[test]
fn what_a_peer_says_comes_back_whole() {
    on_every_tier(|options| echo_among(&options, 4, 3_000_000));
}

#[test]
fn more_senders_than_chunks_lose_nothing_and_all_come_to_an_end() {
    on_every_tier(|options| {
        echo_among(&ReactorOptions { chunks: 2, chunk_bytes: 512, ..options }, 24, 60_000);
    });
}

#[test]
fn queues_that_are_too_small_for_a_turn_lose_nothing() {
    on_every_tier(|options| echo_among(&ReactorOptions { entries: 2, ..options }, 40, 50_000));
}

#[test]
fn sends_without_a_copy_arrive_as_they_are() {
    on_every_tier(|options| {
        echo_among(
            &ReactorOptions { zero_copy_from: 1, send_bytes_max: 10_000, ..options },
            4,
            500_000,
        );
    });
}

#[test]
fn a_batch_of_many_pieces_arrives_whole_and_in_order_at_a_slow_reader() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, mut theirs) = connection();
        let shared: crate::output::Segment = Rc::new(pattern(1, 100_000));
        let pieces: Vec<Piece> = (0..5000)
            .map(|n| match n % 3 {
                0 => Piece::Own(pattern(n, n % 700)),
                1 => Piece::Own(Vec::new()),
                _ => Piece::Shared { segment: Rc::clone(&shared), range: n..n + n },
            })
            .collect();
        let wanted: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes().to_vec()).collect();
        let wanted_len = wanted.len();
        let reader = thread::spawn(move || {
            let mut heard = Vec::new();
            let mut buffer = [0; 30_011];
            loop {
                match theirs.read(&mut buffer).unwrap() {
                    0 => break,
                    len => heard.extend_from_slice(&buffer[..len]),
                }
            }
            assert!(heard == wanted);
        });
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        let batch = Batch::from(pieces);
        assert_eq!(batch.len(), wanted_len);
        reactor.send(socket, batch);
        let mut sent = 0;
        let home = loop {
            let Event::Sent { bytes, batch, .. } = events_of(&mut reactor).remove(0) else {
                panic!()
            };
            sent += bytes;
            if let Some(batch) = batch {
                break batch;
            }
        };
        assert_eq!(sent, wanted_len);
        assert_eq!(home.pieces.len(), 5000);
        drop(home);
        assert_eq!(Rc::strong_count(&shared), 1);
        reactor.close(socket, Closing::Graceful);
        closed(&mut reactor, socket);
        reader.join().unwrap();
    });
}

/// Returns how many of these sockets the process still has open.
fn open_sockets(names: &HashSet<String>) -> usize {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let links = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| names.contains(link.to_str().unwrap())).count()
}

#[test]
fn a_thousand_sockets_close_in_every_state_and_leave_nothing() {
    on_every_tier(|options| {
        let options = ReactorOptions { linger: Duration::from_millis(20), ..options };
        let mut reactor = Reactor::new(&options).unwrap();
        let much: crate::output::Segment = Rc::new(pattern(0, 8_000_000));
        let mut names = HashSet::new();
        let mut peers = Vec::new();
        let mut ids = Vec::new();
        for n in 0..1000 {
            let (ours, theirs) = connection();
            let link = fs::read_link(format!("/proc/self/fd/{}", ours.as_raw_fd())).unwrap();
            names.insert(link.to_str().unwrap().to_owned());
            let socket = reactor.adopt(ours, ZeroCopy::Never);
            assert_eq!(socket.slot, n);
            match n % 8 {
                0 => {}
                1 => reactor.read(socket),
                2 => {
                    (&theirs).write_all(b"unread").unwrap();
                }
                3 => {
                    (&theirs).write_all(b"read").unwrap();
                    reactor.read(socket);
                }
                4 => {
                    let (segment, range) = (Rc::clone(&much), 0..much.len());
                    reactor.send(socket, vec![Piece::Shared { segment, range }].into());
                }
                5 => reactor.send(socket, own(b"short")),
                6 => theirs.shutdown(Shutdown::Write).unwrap(),
                _ => {
                    reactor.read(socket);
                    theirs.shutdown(Shutdown::Both).unwrap();
                }
            }
            ids.push(socket);
            peers.push(theirs);
        }
        let mut events = Vec::new();
        reactor.turn(TurnWait::No, &mut events).unwrap();
        for event in events.drain(..) {
            if let Event::Received { chunk, .. } = event {
                reactor.recycle(chunk);
            }
        }
        for (n, socket) in ids.iter().enumerate() {
            let graceful = n % 16 < 8 && n % 8 != 4;
            reactor.close(*socket, if graceful { Closing::Graceful } else { Closing::Abort });
        }
        peers.iter().step_by(2).for_each(|peer| peer.shutdown(Shutdown::Write).unwrap_or(()));
        let mut left: HashSet<SocketId> = ids.into_iter().collect();
        while !left.is_empty() {
            for event in events_of(&mut reactor) {
                let Event::Closed { socket, .. } = event else { panic!("{event:?} after close") };
                assert!(left.remove(&socket), "{socket:?} was closed twice");
            }
        }
        assert_eq!(open_sockets(&names), 0);
        assert_eq!(Rc::strong_count(&much), 1);
        let slots: HashSet<u32> =
            (0..1000).map(|_| reactor.adopt(connection().0, ZeroCopy::Never).slot).collect();
        assert_eq!(slots, (0..1000).collect());
    });
}

#[test]
fn a_pause_stops_delivery_and_reading_resumes_without_loss() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, mut theirs) = connection();
        let wrote = pattern(3, 20_000_000);
        let expected = wrote.clone();
        let writer = thread::spawn(move || theirs.write_all(&wrote).unwrap());
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        reactor.read(socket);
        let mut heard = Vec::new();
        let mut hear = |reactor: &mut Reactor, events: Vec<Event>| {
            for event in events {
                match event {
                    Event::Received { chunk, .. } => {
                        heard.extend_from_slice(reactor.bytes(&chunk));
                        reactor.recycle(chunk);
                    }
                    Event::Ended { error: None, .. } => return (heard.len(), true),
                    event => panic!("{event:?}"),
                }
            }
            (heard.len(), false)
        };
        let mut has_ended = false;
        for round in 0.. {
            let events = events_of(&mut reactor);
            has_ended |= hear(&mut reactor, events).1;
            if has_ended {
                break;
            }
            match round % 4 {
                0 => {
                    reactor.pause(socket);
                    reactor.read(socket);
                }
                1 => {
                    reactor.pause(socket);
                    reactor.read(socket);
                    reactor.pause(socket);
                    let mut events = Vec::new();
                    reactor.turn(TurnWait::No, &mut events).unwrap();
                    has_ended |= hear(&mut reactor, events).1;
                    reactor.read(socket);
                }
                2 if round < 100 => {
                    reactor.pause(socket);
                    let events = events_until_quiet(&mut reactor);
                    let (before, ended) = hear(&mut reactor, events);
                    has_ended |= ended;
                    let events = events_until_quiet(&mut reactor);
                    assert_eq!(hear(&mut reactor, events).0, before, "heard while paused");
                    reactor.read(socket);
                }
                _ => {}
            }
            if has_ended {
                break;
            }
        }
        writer.join().unwrap();
        assert!(heard == expected);
    });
}

#[test]
fn without_descriptors_accepting_fails_once_and_goes_on_when_told() {
    const NAME: &str =
        "uring::tests::without_descriptors_accepting_fails_once_and_goes_on_when_told";
    const CHILD: &str = "SHARDCAST_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        // The limit is the whole process's: other tests must not feel it.
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", NAME]).env(CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let limit = getrlimit(Resource::Nofile);
        let first_free = peer.try_clone().unwrap().as_raw_fd();
        let mut low = limit;
        low.current = Some(u64::try_from(first_free).unwrap());
        setrlimit(Resource::Nofile, low).unwrap();
        let id = reactor.listen(OwnedFd::from(listener));
        let events = events_of(&mut reactor);
        let [Event::AcceptFailed { listener, error }] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!((*listener, error.raw_os_error()), (id, Some(libc::EMFILE)));
        assert!(events_until_quiet(&mut reactor).is_empty());
        setrlimit(Resource::Nofile, limit).unwrap();
        reactor.accept(id);
        assert!(matches!(events_of(&mut reactor).as_slice(), [Event::Accepted { .. }]));
    });
}

#[test]
fn a_crowd_is_accepted_a_few_at_a_time() {
    const CROWD: usize = 100;
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let crowd: Vec<_> = (0..CROWD).map(|_| TcpStream::connect(address).unwrap()).collect();
        reactor.listen(OwnedFd::from(listener));
        let mut accepted = 0;
        while accepted < CROWD {
            let events = events_of(&mut reactor);
            assert!(events.len() <= listen::ACCEPTS_MAX as usize, "{} in one turn", events.len());
            assert!(events.iter().all(|event| matches!(event, Event::Accepted { .. })));
            accepted += events.len();
        }
        drop(crowd);
    });
}

#[test]
fn a_bell_wakes_a_sleeping_turn_from_any_thread() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        for _ in 0..20 {
            let waker = reactor.waker();
            let ringer = thread::spawn(move || waker.wake());
            let mut events = Vec::new();
            while events.is_empty() {
                reactor.turn(TurnWait::For(PATIENCE), &mut events).unwrap();
            }
            assert!(matches!(events.as_slice(), [Event::Woken]), "{events:?}");
            ringer.join().unwrap();
        }
    });
}

#[test]
fn a_bell_wakes_a_sleeping_turn_from_another_reactor() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        for _ in 0..20 {
            let (waker, options) = (reactor.waker(), options.clone());
            let ringer = thread::spawn(move || {
                let mut other = Reactor::new(&options).unwrap();
                other.wake(&waker);
                other.turn(TurnWait::No, &mut Vec::new()).unwrap();
            });
            let events = events_of(&mut reactor);
            assert!(matches!(events.as_slice(), [Event::Woken]), "{events:?}");
            ringer.join().unwrap();
        }
    });
}

#[test]
fn a_bell_of_a_reactor_that_is_gone_harms_nobody() {
    on_every_tier(|options| {
        let gone = thread::scope(|scope| {
            scope.spawn(|| Reactor::new(&options).unwrap().waker()).join().unwrap()
        });
        let mut reactor = Reactor::new(&options).unwrap();
        reactor.wake(&gone);
        let own_waker = reactor.waker();
        reactor.wake(&own_waker);
        assert!(matches!(events_of(&mut reactor).as_slice(), [Event::Woken]));
        assert!(events_until_quiet(&mut reactor).is_empty());
    });
}

#[test]
fn an_abort_ends_a_send_that_is_stuck() {
    on_every_tier(|options| {
        for zero_copy_from in [usize::MAX, 1] {
            let options = ReactorOptions { zero_copy_from, ..options.clone() };
            let mut reactor = Reactor::new(&options).unwrap();
            let (ours, theirs) = connection();
            let socket = reactor.adopt(ours, ZeroCopy::Allowed);
            reactor.read(socket);
            reactor.send(socket, own(&[0; 20_000_000]));
            for event in events_until_quiet(&mut reactor) {
                assert!(matches!(event, Event::Sent { batch: None, .. }), "{event:?}");
            }
            reactor.close(socket, Closing::Abort);
            let batch = closed(&mut reactor, socket).unwrap();
            assert_eq!(batch.len(), 20_000_000);
            assert!(!hear_all(&theirs).1, "what is unsent is dropped by a reset");
        }
    });
}

#[test]
fn of_many_sockets_with_unsent_output_one_is_closed_a_turn() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..5).map(|_| connection()).unzip();
        let sockets: Vec<_> =
            ours.into_iter().map(|socket| reactor.adopt(socket, ZeroCopy::Never)).collect();
        for &socket in &sockets {
            reactor.send(socket, own(&[0; 20_000_000]));
        }
        events_until_quiet(&mut reactor);
        for &socket in &sockets {
            reactor.close(socket, Closing::Abort);
        }
        let mut waiting = Vec::new();
        while waiting.last() != Some(&0) {
            // As long as one waits no turn sleeps.
            reactor.turn(TurnWait::For(PATIENCE), &mut Vec::new()).unwrap();
            waiting.push(reactor.discarded.len());
        }
        let most = waiting.iter().position(|&count| count == 4).expect("all but one wait");
        assert_eq!(waiting[most..], [4, 3, 2, 1, 0]);
        assert!(theirs.iter().all(|peer| !hear_all(peer).1));
    });
}

#[test]
fn the_last_word_of_a_graceful_close_arrives_though_input_was_left_unread() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, theirs) = connection();
        (&theirs).write_all(&pattern(0, 200_000)).unwrap();
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        let last_word = pattern(5, 9_000_000);
        reactor.send(socket, own(&last_word));
        reactor.close(socket, Closing::Graceful);
        let peer = thread::spawn(move || {
            let (heard, ended_well) = hear_all(&theirs);
            assert!(ended_well && heard == last_word);
            (&theirs).write_all(b"a late remark").unwrap();
        });
        assert!(closed(&mut reactor, socket).is_some());
        peer.join().unwrap();
    });
}

#[test]
fn a_graceful_close_does_not_wait_forever_for_the_peer() {
    on_every_tier(|options| {
        let options = ReactorOptions { linger: Duration::from_millis(5), ..options };
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, _theirs) = connection();
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        reactor.read(socket);
        reactor.close(socket, Closing::Graceful);
        assert!(closed(&mut reactor, socket).is_none());
    });
}

#[test]
fn a_port_is_free_as_soon_as_its_listener_has_stopped() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let id = reactor.listen(OwnedFd::from(listener));
        assert!(events_until_quiet(&mut reactor).is_empty());
        reactor.stop_listening(id);
        let events = events_of(&mut reactor);
        assert!(matches!(events.as_slice(), [Event::StoppedListening { .. }]), "{events:?}");
        TcpListener::bind(address).unwrap();
    });
}

#[test]
fn a_listener_that_stops_before_its_accept_is_submitted_accepts_nothing_elsewhere() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let stopped = TcpListener::bind("127.0.0.1:0").unwrap();
        let id = reactor.listen(OwnedFd::from(stopped));
        reactor.stop_listening(id);
        // Takes the lowest free descriptor: the stopped one's, if that were closed already.
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let _peer = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        let events = events_until_quiet(&mut reactor);
        assert!(matches!(events.as_slice(), [Event::StoppedListening { .. }]), "{events:?}");
    });
}

#[test]
fn a_send_to_a_peer_that_is_gone_fails_and_its_batch_comes_home() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let (ours, theirs) = connection();
        let socket = reactor.adopt(ours, ZeroCopy::Never);
        drop(theirs);
        reactor.send(socket, own(&pattern(0, 5_000_000)));
        let failed = loop {
            match events_of(&mut reactor).pop() {
                Some(Event::SendFailed { batch, .. }) => break batch,
                Some(Event::Sent { batch: None, .. }) => {}
                event => panic!("{event:?}"),
            }
        };
        assert_eq!(failed.len(), 5_000_000);
        reactor.close(socket, Closing::Graceful);
        closed(&mut reactor, socket);
    });
}

#[test]
fn a_dropped_reactor_takes_everything_back_from_the_kernel() {
    on_every_tier(|options| {
        let mut reactor = Reactor::new(&options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        reactor.listen(OwnedFd::from(listener));
        let (stuck, stuck_peer) = connection();
        let (read, read_peer) = connection();
        let stuck = reactor.adopt(stuck, ZeroCopy::Allowed);
        let read = reactor.adopt(read, ZeroCopy::Never);
        reactor.read(read);
        let shared: crate::output::Segment = Rc::new(vec![0; 20_000_000]);
        let range = 0..shared.len();
        let piece = Piece::Shared { segment: Rc::clone(&shared), range };
        reactor.send(stuck, Batch::from(vec![piece]));
        drop(events_until_quiet(&mut reactor));
        drop(reactor);
        assert_eq!(Rc::strong_count(&shared), 1, "the batch was left to the kernel");
        hear_all(&stuck_peer);
        hear_all(&read_peer);
        TcpListener::bind(address).unwrap();
    });
}

#[test]
fn an_idle_socket_costs_next_to_nothing() {
    assert!(size_of::<socket::Slot>() <= 64);
}

#[test]
fn a_graceful_close_leaves_the_kernel_what_it_has_taken() {
    on_every_tier(|options| {
        let options = ReactorOptions { linger: Duration::from_millis(50), ..options };
        let mut reactor = Reactor::new(&options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 8192).unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&theirs, 8192).unwrap();
        let (ours, _) = listener.accept().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 400_000).unwrap();
        let socket = reactor.adopt(OwnedFd::from(ours), ZeroCopy::Never);
        let last = pattern(5, 250_000);
        reactor.send(socket, own(&last));
        let events = events_of(&mut reactor);
        assert!(matches!(&events[..], [Event::Sent { batch: Some(_), .. }]), "{events:?}");
        reactor.close(socket, Closing::Graceful);
        closed(&mut reactor, socket);
        let (heard, ended_well) = hear_all(&theirs);
        assert!(ended_well && heard == last, "{} of {}", heard.len(), last.len());
    });
}
