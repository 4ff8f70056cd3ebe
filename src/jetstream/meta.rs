//! The meta shard: requests of the API, and the catalogue.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::audit::note_answer;
use super::call::{
    ApiCall, ConsumerCall, META_FILTERS, StreamCall, api_prefixes, check_body, without_prefix,
};
use super::catalogue::{Catalogue, CataloguedStream, LimitsInForce, stream_limits};
use super::order::{Create, FoundStreams, Order, OwnerCall, ReplyTo, Update};
use super::{ActiveJetStream, TapUse, wall};

use crate::api::account_info::{ApiAccountInfo, ApiCounts, LimitsShown, StreamsShown};
use crate::core::Core;
use crate::delivery::inside::{self, InnerMessage};
use crate::interest::account_settings::{AccountAssetLimits, Import};
use crate::interest::ids::{AccountId, ShardId};
use crate::interest::taps::TapId;
use crate::run::tapped::{TapMessage, TapRun};
use crate::store::StreamId;
use crate::stream::time::Timestamp;
use crate::stream::{
    AnswerKind, ApiError, KeptStream, StorageKind, StreamConfig, StreamRequest, headers, json,
};
use crate::subject;

/// Names of streams in one answer.
const NAMES_PER_PAGE: usize = 1024;
/// Streams with their states in one answer.
const INFOS_PER_PAGE: usize = 256;
/// Lists that wait for other shards at one time; further requests are refused.
const LISTINGS_MAX: usize = 256;

/// A list of streams whose states are being collected.
#[derive(Debug)]
struct Listing {
    reply: ReplyTo,
    page: PageHead,
    /// The streams in the order of the answer, with their states as far as they have come.
    infos: BTreeMap<(usize, StreamId), Option<String>>,
}

/// Position of a page in its list.
#[derive(Debug, Clone, Copy, Serialize)]
struct PageHead {
    total: usize,
    offset: usize,
    limit: usize,
}

/// The catalogue, and what is asked of it.
#[derive(Debug)]
pub(super) struct Meta {
    catalogue: Catalogue,
    /// Logs of each shard, once it has found them.
    logs: Vec<Option<usize>>,
    last_id: u32,
    listings: HashMap<u64, Listing>,
    last_listing: u64,
    /// Taps for the API: one list for each account.
    taps: HashMap<AccountId, AccountTaps>,
}

/// The taps for the API in an account.
#[derive(Debug)]
struct AccountTaps {
    has_streams: bool,
    /// Whether another account answers.
    imports_api: bool,
    taps: Vec<(TapId, String)>,
}

impl Meta {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            catalogue: Catalogue::default(),
            logs: vec![None; shards],
            last_id: 0,
            listings: HashMap::new(),
            last_listing: 0,
            taps: HashMap::new(),
        }
    }

    /// Whether all shards have found their streams.
    pub(super) fn is_complete(&self) -> bool {
        self.logs.iter().all(Option::is_some)
    }

    /// The log for a new stream: one with the fewest streams.
    fn place(&self) -> Option<(ShardId, usize)> {
        let mut streams: BTreeMap<(ShardId, usize), usize> = BTreeMap::new();
        for (shard, logs) in (0..).map(ShardId).zip(&self.logs) {
            streams.extend((0..logs.unwrap_or(0)).map(|log| ((shard, log), 0)));
        }
        for entry in self.catalogue.iter() {
            if let Some(count) = streams.get_mut(&(entry.owner, entry.log)) {
                *count += 1;
            }
        }
        streams.into_iter().min_by_key(|(_, count)| *count).map(|(place, _)| place)
    }
}

/// LimitsInForce of an account's streams; `None` if it has no JetStream.
pub(super) fn account_limits(core: &Core, account: AccountId) -> Option<AccountAssetLimits> {
    core.settings.streams.as_ref()?;
    let all = &core.settings.accounts.all;
    let (_, config, _) = all.iter().find(|(id, ..)| *id == account)?;
    config.streams
}

/// Whether an account imports the API of another.
fn imports_api(core: &Core, account: AccountId) -> bool {
    let all = &core.settings.accounts.all;
    let config = all.iter().find(|(id, ..)| *id == account).map(|(_, config, _)| config);
    let filters = config.into_iter().flat_map(|config| &config.imports);
    filters.filter_map(Import::filter).any(|filter| subject::overlap(&filter, b"$JS.API.>"))
}

/// A request as it came.
#[derive(Clone)]
struct Request<'a> {
    reply: ReplyTo,
    account_name: Arc<str>,
    /// The subject without the prefix of the API.
    subject: &'a str,
    body: &'a [u8],
}

impl ActiveJetStream {
    /// Adds the taps for the API of all accounts, as they are configured now.
    pub(super) fn tap_api(&mut self, core: &mut Core) {
        if self.meta.is_none() {
            return;
        }
        let prefixes = api_prefixes(core);
        let accounts: Vec<AccountId> =
            core.settings.accounts.all.iter().map(|(id, ..)| *id).collect();
        for account in accounts {
            if core.settings.accounts.system == Some(account) {
                continue;
            }
            let has_streams = account_limits(core, account).is_some();
            let imports_api = !has_streams && imports_api(core, account);
            let Some(meta) = &mut self.meta else { return };
            let is_same = |taps: &AccountTaps| {
                taps.has_streams == has_streams && taps.imports_api == imports_api
            };
            if meta.taps.get(&account).is_some_and(is_same) {
                continue;
            }
            for (tap, filter) in meta.taps.remove(&account).map_or(Vec::new(), |old| old.taps) {
                self.remove_tap(core, account, filter.as_bytes(), tap);
            }
            let mut taps = Vec::new();
            for prefix in prefixes.iter().filter(|_| !imports_api) {
                for filter in META_FILTERS {
                    let purpose = if has_streams { TapUse::Api } else { TapUse::NoApi };
                    let filter = format!("{prefix}{filter}");
                    taps.push((self.add_tap(core, account, filter.as_bytes(), purpose), filter));
                }
            }
            let Some(meta) = &mut self.meta else { return };
            meta.taps.insert(account, AccountTaps { has_streams, imports_api, taps });
        }
    }

    /// Takes the streams that a shard has found.
    pub(super) fn on_found(&mut self, core: &Core, from: ShardId, found: FoundStreams) {
        let Some(meta) = &mut self.meta else { return };
        meta.last_id = meta.last_id.max(found.last_id);
        for (id, log, kept) in found.streams {
            let account: Arc<str> = kept.account.as_str().into();
            if meta.catalogue.find(&account, &kept.config.name).is_some() {
                tracing::error!(
                    "Two streams '{account} > {}' were found; the one with the number {} is not \
                     served",
                    kept.config.name,
                    id.0
                );
                continue;
            }
            meta.catalogue.insert(
                &account,
                CataloguedStream { id, owner: from, log, config: kept.config, is_partial: false },
            );
        }
        if let Some(logs) = meta.logs.get_mut(from.index()) {
            *logs = Some(found.logs);
        }
        if meta.is_complete() {
            tracing::debug!("shard {} knows all streams", core.shard.0);
        }
    }

    /// Takes a request of the API.
    pub(super) fn on_request(
        &mut self,
        core: &mut Core,
        run: &TapRun,
        message: &TapMessage<'_>,
        is_enabled: bool,
    ) {
        let Some(subject) = without_prefix(message.subject) else { return };
        let Some(call) = ApiCall::parse(subject) else { return };
        if matches!(call, ApiCall::OfStream(_, StreamCall::Consumer(ConsumerCall::Reset(_)))) {
            // The consumer itself takes it, or nobody does.
            return;
        }
        let account = run.account;
        let account_name = core.accounts.name(account);
        let reply = ReplyTo::of(core, run, message);
        let request = Request { reply, account_name, subject, body: message.body };
        let usage = Arc::clone(core.accounts.at(account).stream_usage());
        let outcome = if !is_enabled {
            Err(ApiError::NOT_ENABLED_FOR_ACCOUNT)
        } else if headers::needs_higher_level(message.headers) {
            Err(ApiError::REQUIRED_API_LEVEL)
        } else {
            self.carry_out(core, &request, call)
        };
        usage.api_total.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let text = match outcome {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => call.kind().error(&error),
        };
        answer(core, &request.reply, &text);
    }

    /// Carries a request out. Returns its answer, unless another shard answers it, or a later turn.
    fn carry_out(
        &mut self,
        core: &mut Core,
        request: &Request<'_>,
        call: ApiCall<'_>,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(meta) = &self.meta else { return Ok(None) };
        match call {
            ApiCall::AccountInfo => Ok(Some(self.account_info(core, request))),
            ApiCall::StreamNames => {
                let (page, found) = meta.page(core, request, NAMES_PER_PAGE)?;
                let names: Vec<&str> = found.iter().map(|entry| &*entry.config.name).collect();
                let streams = Some(names).filter(|names| !names.is_empty());
                Ok(Some(AnswerKind::STREAM_NAMES.answer(&NamesPage { page, streams })))
            }
            ApiCall::StreamList => self.begin_listing(core, request),
            ApiCall::StreamCreate(name) => self.create(core, request, name),
            ApiCall::StreamUpdate(name) => self.update(core, request, name),
            ApiCall::StreamRestore(name) => begin_restore(self, core, request, name),
            ApiCall::ClusterOnly(_) => Err(ApiError::CLUSTER_REQUIRED),
            ApiCall::OfStream(name, call) => {
                if call == StreamCall::Delete && !json::is_empty_request(request.body) {
                    return Err(ApiError::NOT_EMPTY_REQUEST);
                }
                let entry = meta.catalogue.find(&request.account_name, name);
                let found = entry.map(|entry| (entry.id, entry.owner));
                let Some((id, owner)) = found else {
                    let server = core.settings.streams.as_ref();
                    let is_strict = server.is_none_or(|server| server.is_strict);
                    check_body(name, call, request.body, is_strict)?;
                    return Err(ApiError::STREAM_NOT_FOUND);
                };
                if call == StreamCall::Delete
                    && let Some(meta) = &mut self.meta
                {
                    meta.catalogue.remove(id);
                }
                self.send(core, owner, Order::Call(Box::new(request.forward(id))));
                Ok(None)
            }
        }
    }

    fn create(
        &mut self,
        core: &mut Core,
        request: &Request<'_>,
        name: &str,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(meta) = &mut self.meta else { return Ok(None) };
        let (asked, limits) = read(core, request)?;
        let account = &request.account_name;
        let Some(config) = meta.catalogue.check_create(account, &limits, name, &asked)? else {
            let Some(entry) = meta.catalogue.find(account, name) else { return Ok(None) };
            let (id, owner) = (entry.id, entry.owner);
            // The owner answers with the state of the stream, as if it had been made.
            self.send(core, owner, Order::Call(Box::new(request.forward(id))));
            return Ok(None);
        };
        let (owner, log) = meta.place().ok_or(ApiError::INSUFFICIENT_RESOURCES)?;
        meta.last_id += 1;
        let id = StreamId(meta.last_id);
        meta.catalogue.insert(
            account,
            CataloguedStream { id, owner, log, config: config.clone(), is_partial: false },
        );
        let created = Timestamp(i64::try_from(wall(core)).unwrap_or(i64::MAX));
        let kept = KeptStream { account: account.to_string(), created, config, is_partial: false };
        let create = Create { reply: request.reply.clone(), stream: id, log, kept };
        self.send(core, owner, Order::Create(Box::new(create)));
        Ok(None)
    }

    fn update(
        &mut self,
        core: &mut Core,
        request: &Request<'_>,
        name: &str,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(meta) = &mut self.meta else { return Ok(None) };
        let (asked, limits) = read(core, request)?;
        let account = &request.account_name;
        let config = meta.catalogue.check_update(account, &limits, name, &asked)?;
        let found = meta.catalogue.find(account, name).map(|entry| (entry.id, entry.owner));
        let (id, owner) = found.ok_or(ApiError::STREAM_NOT_FOUND)?;
        if let Some(entry) = meta.catalogue.by_id_mut(id) {
            entry.config = config.clone();
        }
        let update = Update { reply: request.reply.clone(), stream: id, config };
        self.send(core, owner, Order::Update(Box::new(update)));
        Ok(None)
    }

    fn begin_listing(
        &mut self,
        core: &mut Core,
        request: &Request<'_>,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(meta) = &mut self.meta else { return Ok(None) };
        let (page, found) = meta.page(core, request, INFOS_PER_PAGE)?;
        let mut of_owner: BTreeMap<ShardId, Vec<StreamId>> = BTreeMap::new();
        let mut infos = BTreeMap::new();
        for (place, entry) in found.iter().enumerate() {
            infos.insert((place, entry.id), None);
            of_owner.entry(entry.owner).or_default().push(entry.id);
        }
        if meta.listings.len() >= LISTINGS_MAX {
            return Err(ApiError::INSUFFICIENT_RESOURCES);
        }
        let listing = Listing { reply: request.reply.clone(), page, infos };
        if of_owner.is_empty() {
            return Ok(Some(listing.text()));
        }
        meta.last_listing += 1;
        let number = meta.last_listing;
        meta.listings.insert(number, listing);
        for (owner, streams) in of_owner {
            self.send(core, owner, Order::Describe { listing: number, streams });
        }
        Ok(None)
    }

    /// Takes the states of streams for a list.
    pub(super) fn on_described(
        &mut self,
        core: &mut Core,
        number: u64,
        infos: Vec<(StreamId, String)>,
    ) {
        let Some(meta) = &mut self.meta else { return };
        let Some(listing) = meta.listings.get_mut(&number) else { return };
        for (id, info) in infos {
            let place = listing.infos.iter_mut().find(|((_, other), _)| *other == id);
            if let Some((_, place)) = place {
                *place = Some(info);
            }
        }
        if listing.infos.values().all(Option::is_some)
            && let Some(listing) = meta.listings.remove(&number)
        {
            answer(core, &listing.reply, &listing.text());
        }
    }

    /// Finds the stream of that name in the account of a copy, and its owner.
    pub(super) fn origin_of(&self, copy: StreamId, name: &str) -> Option<(StreamId, ShardId)> {
        let catalogue = &self.meta.as_ref()?.catalogue;
        let origin = catalogue.find(catalogue.account_of(copy)?, name)?;
        Some((origin.id, origin.owner))
    }

    /// Forgets a stream that could not be made.
    pub(super) fn on_gone(&mut self, stream: StreamId) {
        if let Some(meta) = &mut self.meta {
            meta.catalogue.remove(stream);
        }
    }

    /// Takes back an update that was not stored.
    pub(super) fn on_kept(&mut self, stream: StreamId, config: StreamConfig) {
        if let Some(entry) = self.meta.as_mut().and_then(|meta| meta.catalogue.by_id_mut(stream)) {
            entry.config = config;
        }
    }

    fn account_info(&self, core: &mut Core, request: &Request<'_>) -> Vec<u8> {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(meta) = &self.meta else { return Vec::new() };
        let account = &*request.account_name;
        let usage = Arc::clone(core.accounts.at(request.reply.account).stream_usage());
        let limits = account_limits(core, request.reply.account).unwrap_or_default();
        let shown =
            |limit: Option<u64>| limit.map_or(-1, |it| i64::try_from(it).unwrap_or(i64::MAX));
        let streams = StreamsShown {
            memory: usage.bytes(StorageKind::Memory),
            storage: usage.bytes(StorageKind::File),
            reserved_memory: meta.catalogue.reserved(account, StorageKind::Memory),
            reserved_storage: meta.catalogue.reserved(account, StorageKind::File),
            streams: meta.catalogue.of(account).count(),
            consumers: usage.consumers.load(Relaxed),
            limits: LimitsShown {
                max_memory: shown(limits.memory_bytes_max),
                max_storage: shown(limits.file_bytes_max),
                max_streams: shown(limits.streams_max),
                max_consumers: shown(limits.consumers_max),
                max_ack_pending: shown(limits.max_ack_pending),
                memory_max_stream_bytes: shown(limits.memory_stream_bytes_max),
                storage_max_stream_bytes: shown(limits.file_stream_bytes_max),
                max_bytes_required: limits.max_bytes_required,
            },
        };
        let api = ApiCounts {
            level: crate::JETSTREAM_API_LEVEL,
            total: usage.api_total.load(Relaxed),
            errors: usage.api_errors.load(Relaxed),
        };
        let domain = core.settings.streams.as_ref().and_then(|streams| streams.domain.as_deref());
        let info = ApiAccountInfo::new(streams, domain, api);
        let info = if limits.is_tiered { info.tiered() } else { info };
        AnswerKind::ACCOUNT_INFO.answer(&info)
    }
}

impl Request<'_> {
    /// The request as the owner of a stream gets it.
    fn forward(&self, stream: StreamId) -> OwnerCall {
        OwnerCall {
            reply: self.reply.clone(),
            stream,
            subject: self.subject.into(),
            body: self.body.into(),
        }
    }
}

impl Listing {
    fn text(&self) -> Vec<u8> {
        let infos = self.infos.values().flatten().filter(|info| !info.is_empty());
        let streams = infos.filter_map(|info| RawValue::from_string(info.clone()).ok()).collect();
        AnswerKind::STREAM_LIST.answer(&InfosPage { page: self.page, streams })
    }
}

impl Meta {
    /// The page of an account's streams that a request asks for, in order of their names.
    fn page(
        &self,
        core: &Core,
        request: &Request<'_>,
        limit: usize,
    ) -> Result<(PageHead, Vec<&CataloguedStream>), ApiError> {
        let is_strict = core.settings.streams.as_ref().is_some_and(|streams| streams.is_strict);
        let asked: PageRequest = if json::is_object_or_array(request.body) {
            json::parse_request(request.body, is_strict)?
        } else {
            PageRequest::default()
        };
        let matches = |entry: &&CataloguedStream| {
            !entry.is_partial && (asked.subject.is_empty() || entry.config.overlaps(&asked.subject))
        };
        let found: Vec<&CataloguedStream> =
            self.catalogue.of(&request.account_name).filter(matches).collect();
        let total = found.len();
        let offset = usize::try_from(asked.offset).unwrap_or(0);
        let page = found.into_iter().skip(offset).take(limit).collect();
        Ok((PageHead { total, offset: offset.min(total), limit }, page))
    }
}

/// A request to restore a stream from an archive.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct RestoreRequest {
    config: serde_json::Value,
    /// The state that the archive is said to have.
    #[serde(rename = "state")]
    _state: serde_json::Value,
}

/// A request for a page of streams.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct PageRequest {
    offset: i64,
    subject: String,
}

#[derive(Serialize)]
struct NamesPage<'a> {
    #[serde(flatten)]
    page: PageHead,
    streams: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
struct InfosPage {
    #[serde(flatten)]
    page: PageHead,
    streams: Vec<Box<RawValue>>,
}

fn read<'a>(
    core: &'a Core,
    request: &Request<'_>,
) -> Result<(StreamRequest, LimitsInForce<'a>), ApiError> {
    let Some(server) = &core.settings.streams else { return Err(ApiError::NOT_ENABLED) };
    let asked = StreamRequest::parse(request.body, server.is_strict)?;
    let account = account_limits(core, request.reply.account);
    let account = account.ok_or(ApiError::NOT_ENABLED_FOR_ACCOUNT)?;
    Ok((asked, LimitsInForce { server, account, streams: stream_limits(core) }))
}

/// Publishes an answer at once.
pub(super) fn answer(core: &mut Core, reply: &ReplyTo, text: &[u8]) {
    note_answer(core, reply, text);
    if !reply.subject.is_empty() {
        let mut block = Vec::new();
        if !reply.identity.is_empty() {
            headers::add(&mut block, headers::name::STREAM_IDENTITY, &reply.identity);
        }
        let subject = &reply.subject;
        let inner = InnerMessage { subject, reply: b"", headers: &block, body: text };
        inside::publish(core, reply.account, &inner);
    }
}

/// Shows a stream that was restored.
pub(super) fn on_restored(js: &mut ActiveJetStream, stream: StreamId) {
    if let Some(entry) = js.meta.as_mut().and_then(|meta| meta.catalogue.by_id_mut(stream)) {
        entry.is_partial = false;
    }
}

/// Lets an owner take the archive of a stream that is not there.
fn begin_restore(
    js: &mut ActiveJetStream,
    core: &mut Core,
    request: &Request<'_>,
    name: &str,
) -> Result<Option<Vec<u8>>, ApiError> {
    let Some(meta) = &mut js.meta else { return Ok(None) };
    if json::is_empty_request(request.body) {
        return Err(ApiError::BAD_REQUEST);
    }
    let is_strict = core.settings.streams.as_ref().is_none_or(|streams| streams.is_strict);
    let mut body: RestoreRequest = json::parse_request(request.body, is_strict)?;
    if body.config.is_null() {
        body.config = serde_json::json!({});
    }
    if body.config.get("name").is_none()
        && let Some(fields) = body.config.as_object_mut()
    {
        fields.insert("name".to_owned(), name.into());
    }
    let config = serde_json::to_vec(&body.config).unwrap_or_default();
    let (asked, limits) = read(core, &Request { body: &config, ..request.clone() })?;
    let account = &request.account_name;
    if asked.config.name == name && meta.catalogue.find(account, name).is_some() {
        return Err(ApiError::STREAM_NAME_EXIST_RESTORE_FAILED);
    }
    let config = meta.catalogue.check_create(account, &limits, name, &asked)?;
    let mut config = config.ok_or(ApiError::STREAM_NAME_EXIST_RESTORE_FAILED)?;
    config.metadata.clone_from(&asked.config.metadata);
    let (owner, log) = meta.place().ok_or(ApiError::INSUFFICIENT_RESOURCES)?;
    meta.last_id += 1;
    let id = StreamId(meta.last_id);
    meta.catalogue.insert(
        account,
        CataloguedStream { id, owner, log, config: config.clone(), is_partial: true },
    );
    let created = Timestamp(i64::try_from(wall(core)).unwrap_or(i64::MAX));
    let account = account.to_string();
    let kept = KeptStream { account, created, config, is_partial: true };
    let create = Create { reply: request.reply.clone(), stream: id, log, kept };
    js.send(core, owner, Order::Restore(Box::new(create)));
    Ok(None)
}
