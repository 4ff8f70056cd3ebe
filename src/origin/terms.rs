//! Terms of a copy: where its origin is reached, and the request for a consumer there.

use serde_json::{Map, Value, json};

use crate::stream::time::Timestamp;
use crate::stream::{CopyPlace, CopyStart, StreamConfig, StreamSource, headers, short_name};

/// Prefix of the API where none is given.
const API: &str = "$JS.API";
const SECOND: i64 = 1_000_000_000;
/// Nanoseconds between two signs of life.
const HEARTBEAT: i64 = SECOND;
/// Nanoseconds after which a consumer ends to which nobody listens.
const INACTIVE: i64 = 10 * SECOND;
/// Nanoseconds for an acknowledgement, which none waits for.
const ACK_WAIT: i64 = 22 * 60 * 60 * SECOND;

/// The place where a copy is.
#[derive(Debug, Clone, Copy)]
pub struct CopyHome<'a> {
    /// Name of the account.
    pub account: &'a str,
    /// The domain of the server.
    pub domain: Option<&'a str>,
}

/// Level of the API that a request asks for: an older server refuses what it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AskedLevel {
    /// None: the consumer has nothing that is for copies.
    Plain,
    /// Consumers that are for copies.
    Copies,
    /// Origins that are told from others of their name.
    Identities,
}

/// The terms of one copy, as its configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowTerms {
    source: StreamSource,
    is_mirror: bool,
    /// Name of the consumer, which the origin's server makes longer.
    consumer: String,
    /// Facts of the copy, for people who look at the consumer.
    metadata: Map<String, Value>,
}

impl FollowTerms {
    /// The terms of a copy by its number; `None` if its origin is in the same account.
    pub fn of(config: &StreamConfig, copy: usize, home: CopyHome<'_>) -> Option<Self> {
        let is_mirror = config.mirror.is_some();
        let source = config.mirror.iter().chain(&config.sources).nth(copy)?;
        source.external.as_ref()?;
        let kind = if is_mirror { "mirror" } else { "src" };
        let mut metadata = Map::new();
        let facts = [
            ("stream", Some(&*config.name)),
            ("acc", Some(home.account)),
            ("domain", home.domain.filter(|domain| !domain.is_empty())),
        ];
        for (fact, text) in facts {
            if let Some(text) = text {
                metadata.insert(format!("_nats.{kind}.{fact}"), text.into());
            }
        }
        let consumer = consumer_name(config, source, home);
        Some(Self { source: source.clone(), is_mirror, consumer, metadata })
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.is_mirror
    }

    /// Whether the consumer is one that is there already.
    pub(super) fn is_durable(&self) -> bool {
        self.source.consumer.is_some()
    }

    /// The level of the first request.
    pub(super) fn first_level(&self) -> AskedLevel {
        if self.is_mirror { AskedLevel::Copies } else { AskedLevel::Identities }
    }

    /// The subject to which messages are to be delivered; `random` makes it a new one.
    pub(super) fn deliver_subject(&self, random: &str) -> String {
        if let Some(consumer) = &self.source.consumer {
            return consumer.deliver_subject.clone();
        }
        let prefix = self.source.external.as_ref().map_or("", |external| &external.deliver);
        let prefix = if prefix.is_empty() { "$JS" } else { prefix };
        let kind = if self.is_mirror { "M" } else { "S" };
        format!("{prefix}.{kind}.{random}").replace("..", ".")
    }

    fn api(&self) -> &str {
        let api = self.source.external.as_ref().map_or("", |external| &external.api);
        if api.is_empty() { API } else { api }
    }

    /// The subject of the request that a consumer is deleted.
    pub(super) fn delete_subject(&self, name: &str) -> String {
        format!("{}.CONSUMER.DELETE.{}.{name}", self.api(), self.source.name).replace("..", ".")
    }

    /// The subject of the request, on which its receivers depend.
    pub(super) fn subject(&self, name: &str) -> String {
        let (api, origin) = (self.api(), &self.source.name);
        let subject = match (&self.source.consumer, &self.filters()[..]) {
            (Some(consumer), _) => format!("{api}.CONSUMER.RESET.{origin}.{}", consumer.name),
            (None, [filter]) => format!("{api}.CONSUMER.CREATE.{origin}.{name}.{filter}"),
            (None, _) => format!("{api}.CONSUMER.CREATE.{origin}"),
        };
        subject.replace("..", ".")
    }

    /// The consumer's name at a level; `random` makes it a new one where the origin's server does
    /// not.
    pub(super) fn name(&self, level: AskedLevel, random: &str) -> String {
        match level {
            AskedLevel::Plain => format!("{}_{random}", self.consumer),
            _ => self.consumer.clone(),
        }
    }

    /// Headers of the request.
    pub(super) fn headers(&self, level: AskedLevel, identity: &str) -> Vec<u8> {
        let mut block = Vec::new();
        let number = match level {
            AskedLevel::Plain => return block,
            AskedLevel::Copies => "4",
            AskedLevel::Identities => "5",
        };
        headers::add(&mut block, headers::name::REQUIRED_API_LEVEL, number);
        if level == AskedLevel::Identities {
            headers::add(&mut block, headers::name::STREAM_IDENTITY, identity);
        }
        block
    }

    /// Body of the request.
    pub(super) fn body(&self, ask: &AskedConsumer<'_>) -> Vec<u8> {
        if self.is_durable() {
            return Vec::new();
        }
        let mut config = json!({
            "name": ask.name,
            "deliver_subject": ask.deliver,
            "ack_policy": "none",
            "ack_wait": ACK_WAIT,
            "max_deliver": 1,
            "replay_policy": "instant",
            "idle_heartbeat": HEARTBEAT,
            "flow_control": true,
            "direct": true,
            "inactive_threshold": INACTIVE,
            "num_replicas": 0,
            "metadata": self.metadata,
        });
        if ask.level != AskedLevel::Plain {
            config["sourcing"] = true.into();
        }
        let policy = match ask.place.start {
            CopyStart::Sequence(0 | 1) => "all",
            CopyStart::Sequence(sequence) => {
                config["opt_start_seq"] = sequence.into();
                "by_start_sequence"
            }
            CopyStart::Time(time) => {
                config["opt_start_time"] = json!(Timestamp(time));
                "by_start_time"
            }
        };
        config["deliver_policy"] = policy.into();
        match &self.filters()[..] {
            [] => {}
            [filter] => config["filter_subject"] = (*filter).into(),
            filters => config["filter_subjects"] = json!(filters),
        }
        let request = json!({"stream_name": self.source.name, "config": config, "action": ""});
        request.to_string().into_bytes()
    }

    fn filters(&self) -> Vec<&str> {
        let transforms = self.source.subject_transforms.iter().map(|it| it.src.as_str());
        let all = transforms.chain([self.source.filter_subject.as_str()]);
        all.filter(|filter| !filter.is_empty()).collect()
    }
}

/// A consumer that is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct AskedConsumer<'a> {
    pub(super) name: &'a str,
    pub(super) deliver: &'a str,
    pub(super) level: AskedLevel,
    pub(super) place: &'a CopyPlace,
}

/// Name of a copy's consumer, always the same: of a mirror by its stream, account and domain, of a
/// source also by its filters if an earlier one has the same origin.
fn consumer_name(config: &StreamConfig, source: &StreamSource, home: CopyHome<'_>) -> String {
    let mut id = format!("{} {}", config.name, home.account);
    if let Some(domain) = home.domain.filter(|domain| !domain.is_empty()) {
        id.push(' ');
        id.push_str(domain);
    }
    let id = short_name(&id);
    if config.mirror.is_some() {
        return format!("JS_MIRROR_{id}");
    }
    let same = config.sources.iter().filter(|other| other.name == source.name).count();
    let id = if same > 1 { format!("{id} {}", source.index_name()) } else { id };
    format!("JS_SRC_{}", short_name(&id))
}
