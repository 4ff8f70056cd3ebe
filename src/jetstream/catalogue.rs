//! The catalogue: all streams of all shards, by account and name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::Core;
use crate::core::settings::StreamSettings;
use crate::interest::account_settings::AccountAssetLimits;
use crate::interest::ids::ShardId;
use crate::store::StreamId;
use crate::stream::{
    ApiError, CheckContext, StorageKind, StreamConfig, StreamLimits, StreamRequest,
};

/// A stream as the catalogue knows it.
#[derive(Debug)]
pub(super) struct CataloguedStream {
    pub(super) id: StreamId,
    pub(super) owner: ShardId,
    /// Place of the log among those of the owner.
    pub(super) log: usize,
    pub(super) config: StreamConfig,
    /// Whether the stream is being restored: lists do not have it.
    pub(super) is_partial: bool,
}

/// All streams.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    accounts: BTreeMap<Arc<str>, BTreeMap<String, CataloguedStream>>,
    /// The account and name of each stream.
    names: BTreeMap<StreamId, (Arc<str>, String)>,
}

impl Catalogue {
    pub(super) fn insert(&mut self, account: &Arc<str>, entry: CataloguedStream) {
        let name = entry.config.name.clone();
        self.names.insert(entry.id, (Arc::clone(account), name.clone()));
        self.accounts.entry(Arc::clone(account)).or_default().insert(name, entry);
    }

    pub(super) fn remove(&mut self, id: StreamId) {
        let Some((account, name)) = self.names.remove(&id) else { return };
        if let Some(streams) = self.accounts.get_mut(&account) {
            streams.remove(&name);
            if streams.is_empty() {
                self.accounts.remove(&account);
            }
        }
    }

    pub(super) fn find(&self, account: &str, name: &str) -> Option<&CataloguedStream> {
        self.accounts.get(account)?.get(name)
    }

    /// The account of a stream.
    pub(super) fn account_of(&self, id: StreamId) -> Option<&str> {
        self.names.get(&id).map(|(account, _)| &**account)
    }

    /// The stream with this number.
    pub(super) fn by_id_mut(&mut self, id: StreamId) -> Option<&mut CataloguedStream> {
        let (account, name) = self.names.get(&id)?;
        self.accounts.get_mut(account)?.get_mut(name)
    }

    /// The streams of an account in order of their names.
    pub(super) fn of(&self, account: &str) -> impl Iterator<Item = &CataloguedStream> {
        self.accounts.get(account).into_iter().flat_map(BTreeMap::values)
    }

    /// All streams.
    pub(super) fn iter(&self) -> impl Iterator<Item = &CataloguedStream> {
        self.accounts.values().flat_map(BTreeMap::values)
    }

    /// Bytes that streams of a kind reserve by their limits, in an account.
    pub(super) fn reserved(&self, account: &str, storage: StorageKind) -> u64 {
        sum_reserved(self.of(account), storage)
    }

    /// Whether a request asks for a new stream, and then its configuration; `None` if it asks for
    /// the one that is there.
    ///
    /// # Errors
    ///
    /// Returns the error that the request is answered with.
    pub(super) fn check_create(
        &self,
        account: &str,
        limits: &LimitsInForce<'_>,
        name: &str,
        request: &StreamRequest,
    ) -> Result<Option<StreamConfig>, ApiError> {
        request.check_create(name)?;
        let found = self.find(account, name);
        let find = |name: &str| self.find(account, name).map(|entry| &entry.config);
        let config = request.check(&limits.context(&find, request.config.storage))?;
        if let Some(entry) = found {
            return match entry.config.is_same(&config) {
                true => Ok(None),
                false => Err(ApiError::STREAM_NAME_EXIST),
            };
        }
        let streams_max = limits.account.streams_max;
        if streams_max.is_some_and(|max| self.of(account).count() as u64 >= max) {
            return Err(ApiError::MAXIMUM_STREAMS_LIMIT);
        }
        self.check_reservation(account, limits, &config, 0)?;
        if self.of(account).any(|entry| entry.config.collides(&config)) {
            return Err(ApiError::STREAM_SUBJECT_OVERLAP);
        }
        config.check_filters()?;
        Ok(Some(config))
    }

    /// Returns the new configuration that a request asks for.
    ///
    /// # Errors
    ///
    /// Returns the error that the request is answered with.
    pub(super) fn check_update(
        &self,
        account: &str,
        limits: &LimitsInForce<'_>,
        name: &str,
        request: &StreamRequest,
    ) -> Result<StreamConfig, ApiError> {
        let find = |name: &str| self.find(account, name).map(|entry| &entry.config);
        let config = request.check(&limits.context(&find, request.config.storage))?;
        if config.name != name {
            return Err(ApiError::STREAM_MISMATCH);
        }
        let old = find(name).ok_or(ApiError::STREAM_NOT_FOUND)?;
        let config = old.changed_to(config)?;
        let reserved = u64::try_from(old.max_bytes).unwrap_or(0);
        self.check_reservation(account, limits, &config, reserved)?;
        let others = self.of(account).filter(|entry| entry.config.name != name);
        if others.into_iter().any(|entry| entry.config.collides(&config)) {
            return Err(ApiError::STREAM_SUBJECT_OVERLAP);
        }
        Ok(config)
    }

    /// Refuses a stream whose limit of bytes does not fit into those of its account and the server;
    /// `released` bytes of them were its own before.
    fn check_reservation(
        &self,
        account: &str,
        limits: &LimitsInForce<'_>,
        config: &StreamConfig,
        released: u64,
    ) -> Result<(), ApiError> {
        let Ok(bytes) = u64::try_from(config.max_bytes) else { return Ok(()) };
        let is_over =
            |reserved: u64, max: u64| reserved.saturating_sub(released).saturating_add(bytes) > max;
        let (of_account, of_server, error) = match config.storage {
            StorageKind::File => (
                limits.account.file_bytes_max,
                limits.server.limits.file_bytes_max,
                ApiError::STORAGE_RESOURCES_EXCEEDED,
            ),
            StorageKind::Memory => (
                limits.account.memory_bytes_max,
                limits.server.limits.memory_bytes_max,
                ApiError::MEMORY_RESOURCES_EXCEEDED,
            ),
        };
        if of_account.is_some_and(|max| is_over(self.reserved(account, config.storage), max)) {
            return Err(error);
        }
        if is_over(sum_reserved(self.iter(), config.storage), of_server) {
            return Err(error);
        }
        Ok(())
    }
}

fn sum_reserved<'a>(
    streams: impl Iterator<Item = &'a CataloguedStream>,
    storage: StorageKind,
) -> u64 {
    let of_kind = streams.filter(|entry| entry.config.storage == storage);
    let bytes = of_kind.map(|entry| u64::try_from(entry.config.max_bytes).unwrap_or(0));
    bytes.fold(0, u64::saturating_add)
}

/// The limits of an account and of the server.
#[derive(Debug)]
pub(super) struct LimitsInForce<'a> {
    pub(super) server: &'a StreamSettings,
    pub(super) account: AccountAssetLimits,
    pub(super) streams: StreamLimits,
}

impl LimitsInForce<'_> {
    fn context<'a>(
        &'a self,
        find: &'a dyn Fn(&str) -> Option<&'a StreamConfig>,
        storage: StorageKind,
    ) -> CheckContext<'a> {
        let stream_bytes_max = match storage {
            StorageKind::File => self.account.file_stream_bytes_max,
            StorageKind::Memory => self.account.memory_stream_bytes_max,
        };
        CheckContext {
            limits: &self.streams,
            find,
            needs_max_bytes: self.account.max_bytes_required,
            stream_bytes_max: stream_bytes_max
                .map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        }
    }
}

/// Returns the limits of streams that follow from the server's settings.
pub(super) fn stream_limits(core: &Core) -> StreamLimits {
    let mut limits = StreamLimits::default();
    if let Some(streams) = &core.settings.streams {
        limits.is_strict = streams.is_strict;
        limits.duplicate_window = i64::try_from(streams.duplicate_window_max).unwrap_or(i64::MAX);
        limits.payload_bytes_max = core.settings.limits.payload_bytes_max;
        limits.batches_max = streams.batch.batches_per_stream_max;
        limits.batch_messages_max = streams.batch.messages_max;
        limits.batch_timeout = streams.batch.timeout_ns;
    }
    limits
}
