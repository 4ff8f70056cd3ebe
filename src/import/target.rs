//! Our own store, opened as a starting server opens it, and written by nobody else.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::disk::ImmediateDisk;
use super::foreign::ForeignBlock;
use crate::archive::ArchivePart;
use crate::config::StartError;
use crate::consumer::{
    ArchivedConsumer, ConsumerOutput, ConsumerRules, Consumers, Moment, StreamAbout, keep_all,
    take_consumer,
};
use crate::store::{LogKey, LogSizes, Recovery, RecoveryError, StreamId, StreamStore, WalSettings};
use crate::stream::time::Timestamp;
use crate::stream::{
    CheckContext, KeptStream, LiveStream, Opening, PublishContext, Published, StreamConfig,
    StreamLimits, StreamRequest, restore,
};

/// The longest message, in bytes: it was taken once.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// A log that is open.
struct TargetLog {
    store: StreamStore,
    disk: ImmediateDisk,
    streams: usize,
}

/// The logs.
pub(super) struct ImportTarget {
    logs: Vec<TargetLog>,
    last_id: u32,
    /// Configurations of the streams that are there, by account and name.
    streams: BTreeMap<(String, String), StreamConfig>,
    rng: fastrand::Rng,
}

/// A stream that is being imported.
pub(super) struct Coming {
    live: LiveStream,
    log: usize,
    problems: Vec<String>,
}

/// A stream that was imported.
pub(super) struct Imported {
    messages: u64,
    consumers: usize,
    /// Losses and changes, in words for people.
    pub(super) problems: Vec<String>,
}

impl Imported {
    /// Returns a line for people.
    pub(super) fn told(&self) -> String {
        let Self { messages, consumers, problems } = self;
        let problems: String = problems.iter().map(|problem| format!("; {problem}")).collect();
        format!("{messages} messages, {consumers} consumers{problems}")
    }
}

impl ImportTarget {
    /// Opens the logs in these directories.
    pub(super) fn open(directories: &[Box<Path>]) -> Result<Self, StartError> {
        let (mut rng, mut logs) = (fastrand::Rng::new(), Vec::new());
        for directory in directories {
            logs.push(TargetLog::open(directory, &mut rng)?);
        }
        let mut target = Self { logs, last_id: 0, streams: BTreeMap::new(), rng };
        for log in &mut target.logs {
            for (id, kept) in log.store.streams() {
                target.last_id = target.last_id.max(id.0);
                let kept = kept.and_then(KeptStream::from_bytes).filter(|kept| !kept.is_partial);
                log.streams += 1;
                let named =
                    |kept: KeptStream| ((kept.account, kept.config.name.clone()), kept.config);
                target.streams.extend(kept.map(named));
            }
        }
        Ok(target)
    }

    /// Begins a stream: nobody is served it before [`Self::finish`].
    pub(super) fn begin(
        &mut self,
        account: &str,
        name: &str,
        meta: &[u8],
    ) -> Result<Coming, String> {
        let mut problems = Vec::new();
        let kept = kept_stream(account, name, meta, &mut problems)?;
        let place = (account.to_owned(), name.to_owned());
        if self.streams.contains_key(&place) {
            return Err("a stream of this name is here already, and stays as it is".to_owned());
        }
        let mut others = self.streams.iter().filter(|((of, _), _)| of == account);
        if let Some(((_, rival), _)) = others.find(|(_, there)| there.collides(&kept.config)) {
            return Err(format!(
                "its subjects overlap those of the stream {rival}, which is here already"
            ));
        }
        self.streams.insert(place, kept.config.clone());
        let log = (0..self.logs.len()).min_by_key(|log| self.logs[*log].streams).unwrap_or(0);
        self.last_id += 1;
        let opening = Opening {
            now: now(),
            seed: self.rng.u64(..),
            limits: StreamLimits { payload_bytes_max: PAYLOAD_BYTES_MAX, ..<_>::default() },
            domain: None,
        };
        let id = StreamId(self.last_id);
        let Some(TargetLog { store, streams, .. }) = self.logs.get_mut(log) else {
            return Err("there is no log".to_owned());
        };
        *streams += 1;
        let made = LiveStream::create(id, kept, store, &opening);
        let (live, _) = made.map_err(|error| format!("{error:?}"))?;
        Ok(Coming { live, log, problems })
    }

    /// Takes the messages of a block.
    pub(super) fn take_block(
        &mut self,
        coming: &mut Coming,
        block: ForeignBlock,
    ) -> Result<(), String> {
        let ForeignBlock { number, file, index } = block;
        let index = index.unwrap_or_default();
        let problem = |why: &str| format!("block {number}: {why}, the messages behind are lost");
        let Some(log) = self.logs.get_mut(coming.log) else { return Ok(()) };
        match file {
            Ok(mut file) => loop {
                match file.next_part() {
                    Ok(None) => break,
                    Ok(Some(part)) => {
                        let is_gone = matches!(&part, ArchivePart::Message(message)
                            if message.sequence < index.first
                                || index.deleted.contains(&message.sequence));
                        if !is_gone {
                            log.take(coming, part)?;
                        }
                    }
                    Err(error) => {
                        coming.problems.push(problem(error.0));
                        break;
                    }
                }
            },
            Err(why) => coming.problems.push(problem(&why)),
        }
        log.go_on_behind(coming, index.last)
    }

    /// Ends a stream: its limits and its consumers are in force, and all of it is on the disk.
    pub(super) fn finish(
        &mut self,
        coming: Coming,
        consumers: Vec<Result<ArchivedConsumer, String>>,
    ) -> Result<Imported, String> {
        let Coming { mut live, log, mut problems } = coming;
        let Some(log) = self.logs.get_mut(log) else { return Err("there is no log".to_owned()) };
        let count = log.keep_consumers(&live, consumers, &mut problems)?;
        log.settle()?;
        let commit = restore::end_restore(&mut live, &mut log.store);
        commit.map_err(|error| format!("{error:?}"))?;
        log.settle()?;
        let messages = log.store.stream(live.id()).map_or(0, |it| it.totals().messages);
        Ok(Imported { messages, consumers: count, problems })
    }
}

impl TargetLog {
    fn open(directory: &Path, rng: &mut fastrand::Rng) -> Result<Self, StartError> {
        let LogSizes { file_bytes, memory_bytes } = LogSizes::default();
        let settings = WalSettings {
            directory: directory.into(),
            file_bytes,
            first_file: 0,
            first_token: 0,
            memory_bytes,
        };
        let mut recovery = Recovery::new(settings, LogKey(rng.u64(..)));
        let mut disk = ImmediateDisk::default();
        while !recovery.is_over() {
            let Some(op) = recovery.next_op() else { break };
            recovery.on_disk(disk.run(op));
        }
        let unusable = |error: RecoveryError| {
            let directory = directory.display();
            StartError::new(format!(
                "import: the log in {directory} cannot be read ({error:?}); start the server, and \
                 do what its log says"
            ))
        };
        let recovered = recovery.finish().map_err(unusable)?;
        let (store, _) = StreamStore::new(recovered, rng.u64(..));
        let mut log = Self { store, disk, streams: 0 };
        log.settle().map_err(|why| StartError::new(format!("import: {why}")))?;
        Ok(log)
    }

    /// Carries out all operations, until nothing waits for the disk.
    fn settle(&mut self) -> Result<(), String> {
        loop {
            self.store.end_turn();
            let Some(op) = self.store.next_op() else { break };
            self.store.on_disk(self.disk.run(op));
        }
        while self.store.next_event().is_some() {}
        match self.store.wal().is_at_rest() && !self.store.wal().is_read_only() {
            true => Ok(()),
            false => Err("the log takes no more; look at the disk, and import again".to_owned()),
        }
    }

    /// Makes room for what comes.
    fn make_room(&mut self) -> Result<(), String> {
        if self.store.wal().is_full() { self.settle() } else { Ok(()) }
    }

    fn take(&mut self, coming: &mut Coming, part: ArchivePart) -> Result<(), String> {
        self.make_room()?;
        let (live, store) = (&mut coming.live, &mut self.store);
        match part {
            ArchivePart::Message(message) => {
                let has_interest = &|_: &[u8]| true;
                let now = now();
                let context =
                    PublishContext { now, is_full: false, bytes_left: u64::MAX, has_interest };
                match restore::restore_message(live, store, &context, &message.stored()) {
                    Published::Refused(error) => {
                        let (sequence, why) = (message.sequence, &error.description);
                        coming.problems.push(format!("message {sequence} is refused: {why}"));
                    }
                    Published::Failed(error) => return Err(format!("{error:?}")),
                    _ => {}
                }
                while live.next_event().is_some() {}
                Ok(())
            }
            ArchivePart::Erased(sequence) => self.go_on_behind(coming, sequence),
            ArchivePart::Deleted(sequence) => {
                let deleted = restore::restore_deleted(live, store, sequence);
                deleted.map_err(|error| format!("{error:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Lets the stream go on behind a sequence that was given.
    fn go_on_behind(&mut self, coming: &mut Coming, sequence: u64) -> Result<(), String> {
        self.make_room()?;
        let gone = restore::restore_gap(&mut coming.live, &mut self.store, sequence);
        gone.map_err(|error| format!("{error:?}"))
    }

    /// Keeps the consumers that there are, and returns how many.
    fn keep_consumers(
        &mut self,
        live: &LiveStream,
        archived: Vec<Result<ArchivedConsumer, String>>,
        problems: &mut Vec<String>,
    ) -> Result<usize, String> {
        let config = live.config();
        let about = StreamAbout::of(config, PAYLOAD_BYTES_MAX);
        let mut all = Consumers::new(about, ConsumerRules::default(), 1);
        let now = Moment { mono: 1, wall: now() };
        let mut count = 0;
        for consumer in archived {
            match consumer {
                Ok(consumer) if take_consumer(&mut all, &consumer, config, now) => count += 1,
                Ok(consumer) => {
                    let name = &consumer.name;
                    problems.push(format!("the configuration of the consumer {name} is refused"));
                }
                Err(why) => problems.push(why),
            }
        }
        keep_all(&mut all, now);
        while let Some(output) = all.next_output() {
            let ConsumerOutput::Keep(record) = output else { continue };
            self.make_room()?;
            let kept = self.store.keep_consumers(live.id(), &record);
            kept.map_err(|error| format!("{error:?}"))?;
        }
        Ok(count)
    }
}

/// The fields of a stream's `meta.inf` beside its configuration.
#[derive(serde::Deserialize)]
struct MetaFile {
    #[serde(rename = "Created")]
    created: Option<Timestamp>,
    #[serde(flatten)]
    config: StreamConfig,
}

/// Reads a stream's `meta.inf`.
fn kept_stream(
    account: &str,
    name: &str,
    meta: &[u8],
    problems: &mut Vec<String>,
) -> Result<KeptStream, String> {
    let file: MetaFile = serde_json::from_slice(meta)
        .map_err(|error| format!("its configuration cannot be read: {error}"))?;
    let mut request = StreamRequest { config: file.config, is_pedantic: false };
    if request.config.name != name {
        return Err(format!("its configuration is of a stream {}", request.config.name));
    }
    if request.config.num_replicas > 1 {
        problems.push(format!("{} replicas become one", request.config.num_replicas));
        request.config.num_replicas = 1;
    }
    let limits = StreamLimits { payload_bytes_max: PAYLOAD_BYTES_MAX, ..<_>::default() };
    let find = &|_: &str| None;
    let context =
        CheckContext { limits: &limits, find, needs_max_bytes: false, stream_bytes_max: 0 };
    let config = request.check(&context).map_err(|error| error.description.to_string())?;
    let created = file.created.unwrap_or(Timestamp(i64::try_from(now()).unwrap_or(0)));
    Ok(KeptStream { account: account.to_owned(), created, config, is_partial: true })
}

/// Returns the time in nanoseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "no shard runs, and nothing is replayed")]
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
