//! Checks of configurations, and the values that the server fills in.

use std::collections::{BTreeMap, HashSet};

use super::config::{
    Discard, NAME_BYTES_MAX, PersistMode, Retention, StorageKind, StreamConfig, StreamRequest,
    StreamSource, SubjectTransformConfig,
};
use super::error::ApiError;
use super::hash::short_name;
use super::time;
use crate::subject::{Transform, covers, is_literal, is_valid_filter, overlap};

/// The error of a configuration without a name, or with one that is none.
pub const NAME_WANTED: &str =
    "stream name is required and can not contain '.', '*', '>', '\\', '/'";
const DESCRIPTION_BYTES_MAX: usize = 4096;
const METADATA_BYTES_MAX: usize = 128 * 1024;
const REPLICAS_MAX: i64 = 5;
/// Streams that one check follows through mirrors and sources.
const ORIGINS_MAX: usize = 10_000;
/// Shortest maximum age and window of duplicates, in nanoseconds.
const SHORTEST: i64 = 100_000_000;
const SECOND: i64 = 1_000_000_000;
/// Window of duplicates where none is given, in nanoseconds.
const DUPLICATE_WINDOW: i64 = 120 * SECOND;
/// Prefix of our own API.
const API_PREFIX: &str = "$JS.API";
/// Filters of all subjects that JetStream has for itself.
const OWN_SUBJECTS: [&str; 3] = ["$JS.>", "$JSC.>", "$NRG.>"];

/// Limits that the server sets for all streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLimits {
    /// Whether unknown fields of requests are errors.
    pub is_strict: bool,
    /// Longest window of duplicates in nanoseconds, also the default; 0 is none.
    pub duplicate_window: i64,
    /// Longest payload of a message with its headers, in bytes.
    pub payload_bytes_max: usize,
    /// Atomic batches that may be under way in one stream.
    pub batches_max: usize,
    /// Messages of one atomic batch.
    pub batch_messages_max: usize,
    /// Time after which an atomic batch without a new message is given up, in nanoseconds.
    pub batch_timeout: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            is_strict: true,
            duplicate_window: 0,
            payload_bytes_max: 1 << 20,
            batches_max: 50,
            batch_messages_max: 1000,
            batch_timeout: 10 * time::SECOND,
        }
    }
}

/// Facts that a check must know beside the configuration.
pub struct CheckContext<'a> {
    /// Limits of the server.
    pub limits: &'a StreamLimits,
    /// Other streams of the account, by name.
    pub find: &'a dyn Fn(&str) -> Option<&'a StreamConfig>,
    /// Whether the account asks that streams have a limit of bytes.
    pub needs_max_bytes: bool,
    /// Most bytes of a stream of this kind in the account; 0 is no limit.
    pub stream_bytes_max: i64,
}

/// Whether the name of a stream or consumer is one.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && !name.contains([' ', '\t', '\r', '\n', '\x0c', '.', '*', '>', '\\', '/'])
}

fn invalid<T>(why: impl std::fmt::Display) -> Result<T, ApiError> {
    Err(ApiError::stream_invalid_configuration(why))
}

impl StreamRequest {
    /// The first checks of a request to make a stream, for the name in its subject. The limits of
    /// the account come next, then [`Self::check`].
    ///
    /// # Errors
    ///
    /// 10056, 10128, and 10052 for what is for updates and mirrors only.
    pub fn check_create(&self, name: &str) -> Result<(), ApiError> {
        let config = &self.config;
        if config.name != name {
            return Err(ApiError::STREAM_MISMATCH);
        }
        if name.contains(['\\', '/']) {
            return Err(ApiError::STREAM_NAME_CONTAINS_PATH_SEPARATORS);
        }
        if config.sealed {
            return invalid("stream configuration for create can not be sealed");
        }
        if config.mirror_direct && config.mirror.is_none() {
            return invalid("stream has no mirror but does have mirror direct");
        }
        Ok(())
    }

    /// Returns the configuration with all values filled in. Overlaps with other streams are checked
    /// by [`StreamConfig::collides`], after this.
    ///
    /// # Errors
    ///
    /// Returns the first error of the configuration.
    pub fn check(&self, context: &CheckContext<'_>) -> Result<StreamConfig, ApiError> {
        let mut config = self.config.clone();
        Check { config: &mut config, is_pedantic: self.is_pedantic, context }.run()?;
        if config.num_replicas > 1 {
            return Err(ApiError::STREAM_REPLICAS_NOT_SUPPORTED);
        }
        config.mark();
        Ok(config)
    }
}

impl StreamConfig {
    /// Whether a request to make a stream asks for the one that is there: then it is answered as if
    /// it had been made, else with 10058.
    pub fn is_same(&self, other: &Self) -> bool {
        let own = |config: &Self| -> BTreeMap<String, String> {
            let all = config.metadata.iter().filter(|(key, _)| !key.starts_with("_nats."));
            all.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let mut copy = other.clone();
        copy.metadata.clone_from(&self.metadata);
        copy == *self && own(self) == own(other)
    }

    /// Returns the new configuration of a stream that has this one now, from one that was checked
    /// ([`StreamRequest::check`]).
    ///
    /// # Errors
    ///
    /// Returns the first error of the change.
    pub fn changed_to(&self, mut new: Self) -> Result<Self, ApiError> {
        self.check_change(&new)?;
        if new.sealed {
            new.max_age = 0;
            new.discard = Discard::New;
            (new.deny_delete, new.deny_purge) = (true, true);
            new.allow_rollup_hdrs = false;
        }
        Ok(new)
    }

    /// Checks what must not change.
    fn check_change(&self, new: &Self) -> Result<(), ApiError> {
        if new.name != self.name {
            return invalid("stream configuration name must match original");
        }
        if new.storage != self.storage {
            return invalid("stream configuration update can not change storage type");
        }
        let is_queue = |config: &Self| config.retention == Retention::WorkQueue;
        if is_queue(self) != is_queue(new) {
            return invalid(
                "stream configuration update can not change retention policy to/from workqueue",
            );
        }
        if self.sealed && !new.sealed {
            return invalid("stream configuration update can not unseal a sealed stream");
        }
        if self.deny_delete && !new.deny_delete {
            return invalid("stream configuration update can not cancel deny message deletes");
        }
        if self.deny_purge && !new.deny_purge {
            return invalid("stream configuration update can not cancel deny purge");
        }
        if new.mirror.is_some() && new.mirror != self.mirror {
            return Err(ApiError::STREAM_MIRROR_NOT_UPDATABLE);
        }
        if self.allow_msg_ttl && !new.allow_msg_ttl {
            return invalid("message TTL status can not be disabled");
        }
        if self.allow_msg_counter != new.allow_msg_counter {
            return invalid("stream configuration update can not change message counter setting");
        }
        if self.allow_msg_schedules && !new.allow_msg_schedules {
            return invalid("message schedules can not be disabled");
        }
        if self.persist_mode != new.persist_mode {
            return invalid("stream configuration update can not change persist mode");
        }
        Ok(())
    }

    /// Checks the filters of mirror and sources. Of a new stream they are checked after the limits
    /// of the account.
    ///
    /// # Errors
    ///
    /// 10049 for a filter that is none.
    pub fn check_filters(&self) -> Result<(), ApiError> {
        let is_bad = |source: &&StreamSource| {
            let filter = &source.filter_subject;
            !filter.is_empty() && !is_valid_filter(filter.as_bytes())
        };
        if let Some(mirror) = self.mirror.iter().find(is_bad) {
            let text = format!(
                "subject filter '{}' for the mirror invalid subject",
                mirror.filter_subject
            );
            return Err(ApiError::stream_create(text));
        }
        match self.sources.iter().find(is_bad) {
            Some(source) => Err(ApiError::stream_create(format_args!(
                "subject filter '{}' for the source: invalid subject",
                source.filter_subject
            ))),
            None => Ok(()),
        }
    }
}

/// One check of a configuration, which fills in values as it goes.
struct Check<'a, 'b> {
    config: &'a mut StreamConfig,
    is_pedantic: bool,
    context: &'a CheckContext<'b>,
}

impl Check<'_, '_> {
    fn run(&mut self) -> Result<(), ApiError> {
        self.names()?;
        self.limits()?;
        self.ages()?;
        self.features()?;
        let external = self.origins()?;
        self.external_prefixes(&external)?;
        self.cycles()?;
        self.subjects()?;
        let config = &*self.config;
        if self.context.needs_max_bytes && config.max_bytes <= 0 {
            return Err(ApiError::STREAM_MAX_BYTES_REQUIRED);
        }
        let bytes_max = self.context.stream_bytes_max;
        if bytes_max > 0 && config.max_bytes > bytes_max {
            return Err(ApiError::STREAM_MAX_STREAM_BYTES_EXCEEDED);
        }
        self.transforms()?;
        self.placement()
    }

    /// Refuses a value that is to be changed, if the request wants to be told.
    fn pedantic(&self, why: &str) -> Result<(), ApiError> {
        if self.is_pedantic { Err(ApiError::pedantic(why)) } else { Ok(()) }
    }

    fn names(&self) -> Result<(), ApiError> {
        let config = &*self.config;
        if !is_valid_name(&config.name) {
            return invalid(NAME_WANTED);
        }
        if config.name.len() > NAME_BYTES_MAX {
            return invalid("stream name is too long, maximum allowed is 255");
        }
        if config.description.len() > DESCRIPTION_BYTES_MAX {
            return invalid("stream description is too long, maximum allowed is 4096");
        }
        let bytes = config.metadata.iter().map(|(key, value)| key.len() + value.len());
        if bytes.sum::<usize>() > METADATA_BYTES_MAX {
            return invalid("stream metadata exceeds maximum size of 131072 bytes");
        }
        Ok(())
    }

    fn limits(&mut self) -> Result<(), ApiError> {
        let config = &mut *self.config;
        if config.num_replicas == 0 {
            config.num_replicas = 1;
        }
        if config.num_replicas > REPLICAS_MAX {
            return invalid("maximum replicas is 5");
        }
        if config.num_replicas < 0 {
            return Err(ApiError::REPLICAS_COUNT_CANNOT_BE_NEGATIVE);
        }
        let mut size = i64::from(config.max_msg_size);
        let limits = [
            (&mut config.max_msgs, "max_msgs must be set to -1"),
            (&mut config.max_msgs_per_subject, "max_msgs_per_subject must be set to -1"),
            (&mut config.max_bytes, "max_bytes must be set to -1"),
            (&mut size, "max_msg_size must be set to -1"),
            (&mut config.max_consumers, "max_consumers must be set to -1"),
        ];
        for (limit, why) in limits {
            if *limit < -1 && self.is_pedantic {
                return Err(ApiError::pedantic(why));
            }
            if *limit <= 0 {
                *limit = -1;
            }
        }
        if size < 0 {
            config.max_msg_size = -1;
        }
        Ok(())
    }

    fn ages(&mut self) -> Result<(), ApiError> {
        let age = self.config.max_age;
        if age < 0 {
            return invalid("max age can not be negative");
        }
        if age != 0 && age < SHORTEST {
            return invalid("max age needs to be >= 100ms");
        }
        let longest = self.context.limits.duplicate_window;
        let is_copy = self.config.mirror.is_some() || !self.config.sources.is_empty();
        if self.config.duplicate_window == 0 && !is_copy {
            let mut window = DUPLICATE_WINDOW;
            if longest > 0 && window > longest {
                self.pedantic("duplicate window limits are higher than current limits")?;
                window = longest;
            }
            if age != 0 && age < window {
                self.pedantic("duplicate window cannot be bigger than max age")?;
                window = age;
            }
            self.config.duplicate_window = window;
        }
        let window = self.config.duplicate_window;
        if window < 0 {
            return invalid("duplicates window can not be negative");
        }
        if age != 0 && window > age {
            return invalid("duplicates window can not be larger then max age");
        }
        if longest > 0 && window > longest {
            let limit = time::duration(longest.cast_unsigned());
            return invalid(format_args!(
                "duplicates window can not be larger then server limit of {limit}"
            ));
        }
        if window > 0 && window < SHORTEST {
            return invalid("duplicates window needs to be >= 100ms");
        }
        Ok(())
    }

    fn features(&mut self) -> Result<(), ApiError> {
        let is_new = self.config.discard == Discard::New;
        if self.config.deny_purge && self.config.allow_rollup_hdrs {
            return invalid("roll-ups require the purge permission");
        }
        if self.config.allow_msg_counter {
            if is_new {
                return invalid("counter stream cannot use discard new");
            }
            if self.config.allow_msg_ttl {
                return invalid("counter stream cannot use message TTLs");
            }
            if self.config.allow_msg_schedules {
                return invalid("counter stream cannot use message schedules");
            }
            if self.config.retention != Retention::Limits {
                return invalid("counter stream can only use limits retention");
            }
        }
        if self.config.discard_new_per_subject {
            if !is_new {
                return invalid("discard new per subject requires discard new policy to be set");
            }
            if self.config.max_msgs_per_subject <= 0 {
                return invalid("discard new per subject requires max msgs per subject > 0");
            }
        }
        self.markers()?;
        if self.config.allow_msg_schedules {
            if is_new {
                return invalid("message scheduling cannot use discard new");
            }
            self.allow_rollups("message scheduling cannot be set if roll-ups are disabled")?;
        }
        if self.config.persist_mode == PersistMode::Async {
            if self.config.storage != StorageKind::File {
                return invalid("async persist mode is only supported on file storage");
            }
            if self.config.num_replicas > 1 {
                return invalid("async persist mode is not supported on replicated streams");
            }
            if self.config.allow_atomic {
                return invalid("async persist mode is not supported with atomic batch publish");
            }
        }
        Ok(())
    }

    fn markers(&mut self) -> Result<(), ApiError> {
        let ttl = self.config.subject_delete_marker_ttl;
        if ttl < 0 {
            return invalid("subject delete marker TTL must not be negative");
        }
        if ttl == 0 {
            return Ok(());
        }
        if ttl < SECOND {
            return invalid("subject delete marker TTL must be at least 1 second");
        }
        if !self.config.allow_msg_ttl {
            if self.is_pedantic {
                return invalid("subject delete marker cannot be set if message TTLs are disabled");
            }
            self.config.allow_msg_ttl = true;
        }
        self.allow_rollups("subject delete marker cannot be set if roll-ups are disabled")
    }

    fn allow_rollups(&mut self, why: &str) -> Result<(), ApiError> {
        if self.config.allow_rollup_hdrs {
            return Ok(());
        }
        if self.is_pedantic {
            return invalid(why);
        }
        (self.config.allow_rollup_hdrs, self.config.deny_purge) = (true, false);
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&StreamConfig> {
        (self.context.find)(name)
    }

    /// Checks mirror and sources. Returns prefixes of external ones, and subjects of the others.
    fn origins(&mut self) -> Result<External, ApiError> {
        let mut external = External::default();
        if self.config.mirror.is_some() {
            self.mirror(&mut external)?;
        }
        let config = &*self.config;
        if !config.sources.is_empty() && config.allow_msg_schedules {
            return Err(ApiError::SOURCE_WITH_MESSAGE_SCHEDULES);
        }
        let (mut names, mut consumers) = (HashSet::new(), HashSet::new());
        for source in &config.sources {
            if !is_valid_name(&source.name) {
                return Err(ApiError::SOURCE_INVALID_STREAM_NAME);
            }
            if !names.insert(source.index_name()) {
                return Err(ApiError::SOURCE_DUPLICATE_DETECTED);
            }
            check_source(source)?;
            if let Some(consumer) = &source.consumer {
                let external = source.external.as_ref().map(|external| &external.api);
                if !consumers.insert((&source.name, external, &consumer.name)) {
                    return Err(ApiError::SOURCE_DURABLE_CONSUMER_DUPLICATE_DETECTED);
                }
            }
            let other = external.note(source, self.context.find);
            if other.is_some_and(|other| is_too_small(config, other)) {
                return Err(ApiError::SOURCE_MAX_MESSAGE_SIZE_TOO_BIG);
            }
        }
        Ok(external)
    }

    fn mirror(&mut self, external: &mut External) -> Result<(), ApiError> {
        let config = &*self.config;
        let Some(mirror) = &config.mirror else { return Ok(()) };
        let refused = [
            (config.first_seq > 0, ApiError::MIRROR_WITH_FIRST_SEQUENCE),
            (!config.subjects.is_empty(), ApiError::MIRROR_WITH_SUBJECTS),
            (!config.sources.is_empty(), ApiError::MIRROR_WITH_SOURCES),
            (config.allow_msg_counter, ApiError::MIRROR_WITH_COUNTERS),
            (config.allow_atomic, ApiError::MIRROR_WITH_ATOMIC_PUBLISH),
            (config.allow_batched, ApiError::MIRROR_WITH_BATCH_PUBLISH),
            (config.allow_msg_schedules, ApiError::MIRROR_WITH_MESSAGE_SCHEDULES),
            (has_bad_consumer(mirror), ApiError::MIRROR_DURABLE_CONSUMER_CONFIGURATION_INVALID),
            (
                !mirror.filter_subject.is_empty() && !mirror.subject_transforms.is_empty(),
                ApiError::MIRROR_MULTIPLE_FILTERS_NOT_ALLOWED,
            ),
        ];
        if let Some((_, error)) = refused.into_iter().find(|(is_wrong, _)| *is_wrong) {
            return Err(error);
        }
        if config.subject_delete_marker_ttl > 0 {
            return invalid("subject delete markers forbidden on mirrors");
        }
        for (at, transform) in mirror.subject_transforms.iter().enumerate() {
            check_transform(
                transform,
                ApiError::mirror_invalid_subject_filter,
                ApiError::mirror_invalid_transform_destination,
            )?;
            let mut others = mirror.subject_transforms.iter().enumerate();
            if others.any(|(other, second)| {
                other != at && overlap(transform.src.as_bytes(), second.src.as_bytes())
            }) {
                return Err(ApiError::MIRROR_OVERLAPPING_SUBJECT_FILTERS);
            }
        }
        if mirror.external.is_none() && !is_valid_name(&mirror.name) {
            return Err(ApiError::MIRROR_INVALID_STREAM_NAME);
        }
        let Some(origin) = external.note(mirror, self.context.find) else { return Ok(()) };
        if is_too_small(config, origin) {
            return Err(ApiError::MIRROR_MAX_MESSAGE_SIZE_TOO_BIG);
        }
        let is_direct = origin.allow_direct;
        if config.mirror_direct != is_direct {
            self.pedantic("origin stream has direct get set, mirror has it disabled")?;
        }
        self.config.mirror_direct = is_direct;
        Ok(())
    }

    fn external_prefixes(&self, external: &External) -> Result<(), ApiError> {
        let is_subject =
            |prefix: &str| is_valid_filter(prefix.as_bytes()) && is_literal(prefix.as_bytes());
        for prefix in &external.deliver {
            if !is_subject(prefix) {
                return Err(ApiError::stream_invalid_external_delivery_subj(prefix));
            }
            for subject in &external.subjects {
                let delivered = format!("{prefix}.{subject}");
                if overlap(subject.as_bytes(), delivered.as_bytes()) {
                    return Err(ApiError::stream_external_delivery_prefix_overlaps(
                        prefix, subject,
                    ));
                }
            }
        }
        for prefix in &external.api {
            if !is_subject(prefix) {
                return invalid(format_args!(
                    "stream external api prefix {prefix:?} must be a valid subject without \
                     wildcards"
                ));
            }
            if prefix == API_PREFIX {
                return Err(ApiError::stream_external_api_overlap(prefix, API_PREFIX));
            }
        }
        Ok(())
    }

    /// Follows mirrors and sources to where they come from.
    fn cycles(&self) -> Result<(), ApiError> {
        let mut visited: HashSet<&str> = HashSet::new();
        let mut to_visit: Vec<&StreamConfig> = vec![self.config];
        while let Some(config) = to_visit.pop() {
            visited.insert(&config.name);
            if visited.len() > ORIGINS_MAX {
                return invalid("detected cycle");
            }
            for source in config.sources.iter().filter(|source| source.external.is_none()) {
                if visited.contains(&*source.name) {
                    let filter = &source.filter_subject;
                    if filter.is_empty() || config.overlaps(filter) {
                        return invalid("detected cycle");
                    }
                } else {
                    to_visit.extend((self.context.find)(&source.name));
                }
            }
            if let Some(mirror) = config.mirror.as_ref().filter(|it| it.external.is_none()) {
                if visited.contains(&*mirror.name) {
                    return invalid("detected cycle");
                }
                to_visit.extend(self.find(&mirror.name));
            }
        }
        Ok(())
    }

    fn subjects(&mut self) -> Result<(), ApiError> {
        let config = &mut *self.config;
        if config.subjects.is_empty() {
            if config.mirror.is_none() && config.sources.is_empty() {
                config.subjects.push(config.name.clone());
            }
            return Ok(());
        }
        for (at, subject) in config.subjects.iter().enumerate() {
            let filter = subject.as_bytes();
            if !is_valid_filter(filter) {
                return invalid("invalid subject");
            }
            if subject == ">" {
                if !config.no_ack {
                    return invalid("capturing all subjects requires no-ack to be true");
                }
                if config.num_replicas != 1 {
                    return invalid("capturing all subjects requires replicas of 1");
                }
            }
            if !config.no_ack {
                let is_own = OWN_SUBJECTS.iter().any(|own| overlap(filter, own.as_bytes()));
                if is_own && !covers(b"$JS.EVENT.>", filter) {
                    return invalid(
                        "subjects that overlap with jetstream api require no-ack to be true",
                    );
                }
                if overlap(filter, b"$SYS.>") && !covers(b"$SYS.ACCOUNT.>", filter) {
                    return invalid(
                        "subjects that overlap with system api require no-ack to be true",
                    );
                }
            }
            let mut others = config.subjects[at + 1..].iter();
            if let Some(other) = others.find(|other| overlap(filter, other.as_bytes())) {
                return invalid(format_args!("subject \"{subject}\" overlaps with \"{other}\""));
            }
        }
        Ok(())
    }

    fn transforms(&mut self) -> Result<(), ApiError> {
        if let Some(transform) = &self.config.subject_transform {
            check_transform(
                transform,
                ApiError::stream_transform_invalid_source,
                ApiError::stream_transform_invalid_destination,
            )?;
        }
        if self.config.republish.is_none() {
            return Ok(());
        }
        self.fill_republish()?;
        let config = &*self.config;
        let Some(republish) = &config.republish else { return Ok(()) };
        if config.overlaps(&republish.dest) {
            return invalid("stream configuration for republish destination forms a cycle");
        }
        let is_bad = !republish.dest.is_empty()
            && Transform::new(republish.src.as_bytes(), republish.dest.as_bytes()).is_err();
        if is_bad {
            return invalid(format_args!(
                "stream configuration for republish with transform from '{}' to '{}' not valid",
                republish.src, republish.dest
            ));
        }
        Ok(())
    }

    fn fill_republish(&mut self) -> Result<(), ApiError> {
        let (has_source, is_of_all) = match &self.config.republish {
            Some(republish) => {
                (!republish.src.is_empty(), republish.dest == ">" && republish.src == ">")
            }
            None => return Ok(()),
        };
        if !has_source {
            self.pedantic("republish source can not be empty")?;
        }
        let config = &mut *self.config;
        let Some(republish) = &mut config.republish else { return Ok(()) };
        if !has_source {
            ">".clone_into(&mut republish.src);
        }
        // All to the same subject is no cycle if the stream's own transform changes it before.
        let is_of_all = is_of_all || (!has_source && republish.dest == ">");
        if let (Some(transform), [only]) = (&config.subject_transform, &config.subjects[..])
            && is_of_all
            && transform.src == *only
        {
            if self.is_pedantic {
                return Err(ApiError::pedantic("implicit republish based on subject transform"));
            }
            republish.src.clone_from(&transform.dest);
            republish.dest.clone_from(&transform.dest);
        }
        Ok(())
    }

    fn placement(&mut self) -> Result<(), ApiError> {
        self.config.placement = self.config.placement.take().filter(|it| *it != <_>::default());
        match &self.config.placement {
            Some(placement) if !placement.preferred.is_empty() => {
                invalid("preferred server not permitted in placement")
            }
            _ => Ok(()),
        }
    }
}

/// Prefixes of origins in other accounts and domains, and subjects of those that are here.
#[derive(Default)]
struct External {
    deliver: Vec<String>,
    api: Vec<String>,
    subjects: Vec<String>,
}

impl External {
    /// Notes an origin. Returns its configuration if it is here.
    fn note<'a>(
        &mut self,
        source: &StreamSource,
        find: &dyn Fn(&str) -> Option<&'a StreamConfig>,
    ) -> Option<&'a StreamConfig> {
        let Some(external) = &source.external else {
            let origin = find(&source.name)?;
            self.subjects.extend_from_slice(&origin.subjects);
            return Some(origin);
        };
        let given = |prefix: &String| Some(prefix.clone()).filter(|prefix| !prefix.is_empty());
        self.deliver.extend(given(&external.deliver));
        self.api.extend(given(&external.api));
        None
    }
}

/// Whether messages of the origin may be longer than the copy takes.
fn is_too_small(copy: &StreamConfig, origin: &StreamConfig) -> bool {
    copy.max_msg_size > 0 && origin.max_msg_size > 0 && copy.max_msg_size < origin.max_msg_size
}

fn has_bad_consumer(source: &StreamSource) -> bool {
    let Some(consumer) = &source.consumer else { return false };
    let subject = consumer.deliver_subject.as_bytes();
    !is_valid_name(&consumer.name)
        || !is_literal(subject)
        || !is_valid_filter(subject)
        || source.opt_start_seq != 0
        || source.opt_start_time.is_some()
        || !source.filter_subject.is_empty()
}

fn check_source(source: &StreamSource) -> Result<(), ApiError> {
    if !source.filter_subject.is_empty() && !source.subject_transforms.is_empty() {
        return Err(ApiError::SOURCE_MULTIPLE_FILTERS_NOT_ALLOWED);
    }
    for transform in &source.subject_transforms {
        check_transform(
            transform,
            ApiError::source_invalid_subject_filter,
            ApiError::source_invalid_transform_destination,
        )?;
    }
    for (at, transform) in source.subject_transforms.iter().enumerate() {
        let mut others = source.subject_transforms.iter().enumerate();
        if others.any(|(other, second)| {
            other != at && covers(second.src.as_bytes(), transform.src.as_bytes())
        }) {
            return Err(ApiError::SOURCE_OVERLAPPING_SUBJECT_FILTERS);
        }
    }
    if has_bad_consumer(source) {
        return Err(ApiError::SOURCE_DURABLE_CONSUMER_CONFIGURATION_INVALID);
    }
    Ok(())
}

fn check_transform(
    transform: &SubjectTransformConfig,
    bad_source: fn(String) -> ApiError,
    bad_destination: fn(String) -> ApiError,
) -> Result<(), ApiError> {
    let SubjectTransformConfig { src, dest } = transform;
    if !src.is_empty() && !is_valid_filter(src.as_bytes()) {
        return Err(bad_source(format!("invalid subject {src}")));
    }
    match transform.compile() {
        Some(Err(error)) => {
            debug_assert!(!dest.is_empty(), "no destination is no transform");
            Err(bad_destination(error.to_string()))
        }
        _ => Ok(()),
    }
}

impl SubjectTransformConfig {
    /// Compiles the transform; `None` if it changes nothing.
    pub(crate) fn compile(&self) -> Option<Result<Transform, crate::subject::TransformError>> {
        if self.dest.is_empty() {
            return None;
        }
        let source = if self.src.is_empty() { ">" } else { &self.src };
        Some(Transform::new(source.as_bytes(), self.dest.as_bytes()))
    }
}

impl StreamSource {
    /// Name of the source among those of its stream: origin, filters and destinations.
    pub fn index_name(&self) -> String {
        self.index_parts().join(" ")
    }

    /// Origin, filters and destinations, as headers of copied messages name them.
    pub fn index_parts(&self) -> [String; 3] {
        let mut name = self.name.clone();
        if let Some(external) = &self.external {
            name.push(':');
            name.push_str(&short_name(&external.api));
        }
        if let Some(consumer) = &self.consumer {
            name.push_str(":C=");
            name.push_str(&short_name(&consumer.name));
        }
        let or_all = |text: &str| if text.is_empty() { ">".to_owned() } else { text.to_owned() };
        let (sources, destinations) = if self.subject_transforms.is_empty() {
            (or_all(&self.filter_subject), ">".to_owned())
        } else {
            let all = self.subject_transforms.iter();
            let sources: Vec<String> = all.clone().map(|it| or_all(&it.src)).collect();
            let destinations: Vec<String> = all.map(|it| or_all(&it.dest)).collect();
            (sources.join("\x0c"), destinations.join("\x0c"))
        };
        [name, sources, destinations]
    }
}
