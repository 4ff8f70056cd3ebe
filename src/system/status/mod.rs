//! The status of certificates, asked of responders (OCSP) on a thread of its own.
//!
//! Two things are asked about: this server's own certificates, for staples (`staples`), and those
//! of peers (`peers`), whose answers are remembered (`cache`). The thread starts when there is
//! something to ask. Everything has a bound: questions that wait, those asked at once, the time
//! and the length of an answer, the memory. An answer is only bytes until `crate::ocsp` has judged
//! it.

mod cache;
mod peers;
mod staples;

use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crossbeam_channel::Sender;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};

use super::fetch::runtime;
use super::http::{HttpClient, HttpReply};
use super::{StartError, SystemOrder};
use crate::config::{Options, tls};
use crate::engine::{ConnId, ShardId};
use crate::ocsp::{ANSWER_BYTES_MAX, PeerQuestion};
use crate::shard::News;
use cache::PeerCache;
use peers::PeerChecks;
pub(crate) use staples::prepare as prepare_staples;

/// Questions that wait for the thread, at most; a peer about whom none can wait is refused.
const QUESTIONS_MAX: usize = 1024;

/// A question about the peer of a connection.
type AskedPeer = (ShardId, ConnId, Box<PeerQuestion>);

/// The running thread; dropping it saves what is remembered.
pub(super) struct StatusThread {
    options: watch::Sender<Arc<Options>>,
    questions: Option<mpsc::Sender<AskedPeer>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusThread {
    /// Starts the thread if these options have something to ask.
    pub(super) fn start(
        options: &Arc<Options>,
        news: Sender<News>,
        to_control: Sender<SystemOrder>,
    ) -> Result<Option<Self>, StartError> {
        if options.staplings().next().is_none() && !options.checks_peers() {
            return Ok(None);
        }
        let runtime = runtime("ocsp")?;
        let client = HttpClient::new(&tls::of_this_system()?.config);
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let (options, in_force) = watch::channel(Arc::clone(options));
        let work = move || {
            let worker = StatusWorker { client, news, to_control };
            LocalSet::new().block_on(&runtime, worker.run(in_force, asked));
            // A resolver of names that hangs holds up nobody.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("ocsp".to_owned()).spawn(work);
        let thread = thread.map_err(|error| {
            StartError::new(format!("cannot start a thread: {error}; raise `ulimit -u`"))
        })?;
        Ok(Some(Self { options, questions: Some(questions), thread: Some(thread) }))
    }

    /// Takes over changed options.
    pub(super) fn reload(&self, options: &Arc<Options>) {
        self.options.send_replace(Arc::clone(options));
    }

    /// Asks about a peer; `false` if too many questions wait already.
    pub(super) fn ask(&self, shard: ShardId, conn: ConnId, question: Box<PeerQuestion>) -> bool {
        let questions = self.questions.as_ref();
        questions.is_some_and(|questions| questions.try_send((shard, conn, question)).is_ok())
    }
}

impl Drop for StatusThread {
    fn drop(&mut self) {
        self.questions = None;
        if let Some(thread) = self.thread.take() {
            // A panicked thread has reported it.
            let _ = thread.join();
        }
    }
}

struct StatusWorker {
    client: HttpClient,
    news: Sender<News>,
    to_control: Sender<SystemOrder>,
}

impl StatusWorker {
    async fn run(
        self,
        mut in_force: watch::Receiver<Arc<Options>>,
        mut asked: mpsc::Receiver<AskedPeer>,
    ) {
        let mut options = in_force.borrow_and_update().clone();
        let mut staples = self.keep_staples(&options);
        let memory = PeerCache::open(options.ocsp.cache.clone());
        let peers = Rc::new(PeerChecks::new(self.client.clone(), self.news.clone(), memory));
        let mut ticks = save_ticks(&options);
        loop {
            tokio::select! {
                question = asked.recv() => match question {
                    None => break,
                    Some((shard, conn, question)) => peers.spawn(shard, conn, *question),
                },
                Ok(()) = in_force.changed() => {
                    let new = in_force.borrow_and_update().clone();
                    // Most changes are of accounts, and leave the certificates alone.
                    if !are_same(&options, &new) {
                        staples = self.keep_staples(&new);
                    }
                    if peers.reload(&new.ocsp.cache) {
                        ticks = save_ticks(&new);
                    }
                    options = new;
                },
                _ = ticks.tick() => peers.save(),
            }
        }
        drop(staples);
        peers.save();
    }

    /// Keeps the staples of the options fresh until the result is dropped.
    fn keep_staples(&self, options: &Options) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for stapling in options.staplings() {
            let (client, to_control) = (self.client.clone(), self.to_control.clone());
            let source = staples::StapleSource::new(options, client);
            tasks.spawn_local(staples::keep_fresh(stapling, source, to_control));
        }
        tasks
    }
}

/// Whether both have the same certificates in force, and ask for their staples alike.
fn are_same(before: &Options, now: &Options) -> bool {
    let staples = |options: &Options| -> Vec<_> {
        options.staplings().map(|stapling| Arc::as_ptr(&stapling.staple)).collect()
    };
    before.ocsp == now.ocsp && staples(before) == staples(now)
}

/// Returns the times at which what is remembered is saved.
fn save_ticks(options: &Options) -> tokio::time::Interval {
    let period = Duration::from_millis(options.ocsp.cache.save_interval_ms.max(1));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// Asks a responder by a GET. Returns its answer.
async fn get(client: &HttpClient, url: &str, question: &[u8]) -> Result<HttpReply, String> {
    let text = STANDARD.encode(question);
    let text: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    client.get(&format!("{}/{text}", url.trim_end_matches('/')), ANSWER_BYTES_MAX).await
}

/// The time now, in seconds since 1970.
fn now() -> i64 {
    chrono::Utc::now().timestamp()
}
