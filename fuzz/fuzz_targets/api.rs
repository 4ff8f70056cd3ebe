//! Requests of JetStream's API to one stream, and publishes: each is answered or refused, answers
//! are JSON, a checked configuration stays the same when it is checked again, and a restart changes
//! nothing that was on the disk.
//!
//! Each line is a request: a letter for its kind, and its body.

#![no_main]

#[allow(dead_code, reason = "the simulators use the rest")]
#[path = "../../tests/sim/disk.rs"]
mod disk;
#[path = "../store.rs"]
mod store;

use std::path::Path;

use disk::Disk;
use libfuzzer_sys::fuzz_target;
use shardcast::store::{StreamId, StreamStore, WalSettings};
use shardcast::stream::time::{SECOND, Timestamp};
use shardcast::stream::{
    ApiAnswer, ApiError, CheckContext, DirectRequest, Incoming, InfoContext, KeptStream,
    LiveStream, Opening, PublishContext, StorageKind, StreamConfig, StreamLimits, StreamRequest,
    delete_message, direct_get, get_message, headers, purge, stream_info,
};
use store::settle;

const STREAM: StreamId = StreamId(1);
const START: u64 = 1_700_000_000 * SECOND;
const LINES_MAX: usize = 60;

fn open(disk: &mut Disk, life: u32) -> Option<StreamStore> {
    let settings = WalSettings {
        directory: Path::new("/d").into(),
        file_bytes: 1 << 17,
        first_file: life * 10_000,
        first_token: 0,
        memory_bytes: 100_000,
    };
    store::open(disk, settings)
}

fn limits() -> StreamLimits {
    // Unknown fields are most of what mutation makes: it gets further where they are ignored.
    StreamLimits { is_strict: false, payload_bytes_max: 4096, ..StreamLimits::default() }
}

fn opening(now: u64) -> Opening {
    Opening { now, seed: 7, limits: limits(), domain: None }
}

/// A stream with its log, and the time.
struct Bench {
    disk: Disk,
    store: StreamStore,
    live: Option<LiveStream>,
    now: u64,
    lives: u32,
}

impl Bench {
    fn new() -> Self {
        let mut disk = Disk::new(1);
        let store = open(&mut disk, 0).expect("nothing fails");
        Self { disk, store, live: None, now: START, lives: 0 }
    }

    fn checked(&self, body: &[u8]) -> Result<StreamConfig, ApiError> {
        let request = StreamRequest::parse(body, false)?;
        let limits = limits();
        let find = |_: &str| None;
        let context = CheckContext {
            limits: &limits,
            find: &find,
            needs_max_bytes: false,
            stream_bytes_max: 0,
        };
        let config = match &self.live {
            None => {
                request.check_create(&request.config.name)?;
                request.check(&context)?
            }
            Some(live) => live.config().changed_to(request.check(&context)?)?,
        };
        let again = StreamRequest { config: config.clone(), ..request };
        assert_eq!(again.check(&context).as_ref(), Ok(&config), "it was checked");
        let kept = KeptStream {
            account: "$G".to_owned(),
            created: Timestamp(START.cast_signed()),
            config,
            is_partial: false,
        };
        assert_eq!(KeptStream::from_bytes(&kept.to_bytes()).as_ref(), Some(&kept));
        Ok(kept.config)
    }

    fn configure(&mut self, body: &[u8]) {
        let Ok(config) = self.checked(body) else { return };
        match &mut self.live {
            None => {
                let created = Timestamp(START.cast_signed());
                let account = "$G".to_owned();
                let kept = KeptStream { account, created, config, is_partial: false };
                let made = LiveStream::create(STREAM, kept, &mut self.store, &opening(self.now));
                self.live = made.ok().map(|(live, _)| live);
            }
            Some(live) => {
                let _ = live.update(&mut self.store, self.now, config);
            }
        }
    }

    /// Publishes `subject reply headers payload`, the headers as `name:value` with commas.
    fn publish(&mut self, line: &[u8]) {
        let Some(live) = &mut self.live else { return };
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut part = || parts.next().unwrap_or_default();
        let (subject, reply, heads, payload) = (part(), part(), part(), part());
        if !shardcast::subject::is_literal(subject) || subject.contains(&b'\t') {
            return;
        }
        let mut block = Vec::new();
        for head in heads.split(|byte| *byte == b',').filter(|head| !head.is_empty()).take(8) {
            let (name, value) = head.split_at(head.iter().position(|b| *b == b':').unwrap_or(0));
            if let Ok(name) = std::str::from_utf8(name) {
                headers::add(&mut block, name, value.get(1..).unwrap_or_default());
            }
        }
        let incoming = Incoming { subject, reply, headers: &block, payload };
        let has_interest = &|_: &[u8]| true;
        let context =
            PublishContext { now: self.now, is_full: false, bytes_left: u64::MAX, has_interest };
        let published = live.publish(&mut self.store, &context, &incoming);
        let mut text = Vec::new();
        if live.pub_ack(&published, &mut text).is_some() && !text.is_empty() {
            is_json(&text);
        }
        self.drain();
    }

    fn drain(&mut self) {
        while self.live.as_mut().is_some_and(|live| live.next_event().is_some()) {}
    }

    fn ask(&mut self, kind: u8, body: &[u8]) {
        let context = InfoContext {
            now: self.now,
            consumers: 0,
            leader: None,
            mirror: None,
            sources: Vec::new(),
            alternates: Vec::new(),
            shows_version: true,
        };
        let Some(live) = &mut self.live else { return };
        let store = &mut self.store;
        let answer: Result<ApiAnswer, ApiError> = match kind {
            b'i' => stream_info(live, store, &context, body),
            b'P' => purge(live, store, body),
            b'D' => delete_message(live, store, body),
            _ => get_message(live, store, body),
        };
        if let Ok(answer) = answer {
            is_json(&answer.text);
        }
        self.drain();
    }

    fn direct(&mut self, line: &[u8], subject: Option<&[u8]>) {
        let Some(live) = &self.live else { return };
        let mut is_over = false;
        let request = DirectRequest { headers: b"", body: line, subject };
        direct_get(live, &self.store, &request, &mut |heads, _| {
            assert!(!is_over || !heads.is_empty());
            assert!(heads.is_empty() || heads.ends_with(b"\r\n\r\n"), "{heads:?}");
            is_over |= heads.starts_with(b"NATS/1.0 4");
        });
    }

    fn restart(&mut self) {
        let Some(before) = &self.live else { return };
        let kept = before.kept().clone();
        settle(&mut self.store, &mut self.disk);
        let state = self.store.stream(STREAM).map(|index| index.state());
        if kept.config.storage == StorageKind::Memory {
            *self = Self::new();
            return;
        }
        self.disk.crash();
        self.lives += 1;
        self.store = open(&mut self.disk, self.lives).expect("nothing was damaged");
        settle(&mut self.store, &mut self.disk);
        let (id, bytes) = self.store.streams().next().expect("it was committed");
        assert_eq!(bytes.and_then(KeptStream::from_bytes).as_ref(), Some(&kept));
        assert_eq!(self.store.stream(STREAM).map(|index| index.state()), state);
        self.live = Some(LiveStream::open(id, kept, &self.store, &opening(self.now)));
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        let Some(live) = &mut self.live else { return };
        live.tick(&mut self.store, self.now);
        self.drain();
    }
}

fn is_json(text: &[u8]) {
    assert!(serde_json::from_slice::<serde_json::Value>(text).is_ok(), "{text:?}");
}

fuzz_target!(|bytes: &[u8]| {
    let mut bench = Bench::new();
    for line in bytes.split(|byte| *byte == b'\n').take(LINES_MAX) {
        let [kind, body @ ..] = line else { continue };
        match kind {
            b'c' => bench.configure(body),
            b'p' => bench.publish(body),
            b'i' | b'g' | b'P' | b'D' => bench.ask(*kind, body),
            b'd' => bench.direct(body, None),
            b'l' => bench.direct(b"", Some(body)),
            b'r' => bench.restart(),
            b't' => bench.pass(body.first().copied().unwrap_or(1).into()),
            _ => settle(&mut bench.store, &mut bench.disk),
        }
    }
    bench.restart();
});
