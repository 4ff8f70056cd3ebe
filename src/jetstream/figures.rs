//! Figures for monitoring.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::consumers;
use super::{ActiveJetStream, JetStream};
use crate::core::Core;
use crate::core::snapshot::Page;
use crate::store::StreamId;
use crate::stream::{InfoContext, StorageKind, StreamFigures, UsageFigures};

/// Streams of one page.
const STREAMS_PER_PAGE: usize = 64;
/// Streams of one page that shows consumers, too.
const STREAMS_WITH_CONSUMERS_PER_PAGE: usize = 8;

impl JetStream {
    /// Returns a page of this shard's streams, from a number on.
    pub(crate) fn figures(
        &mut self,
        core: &mut Core,
        from: u64,
        with_consumers: bool,
    ) -> Page<StreamFigures> {
        match &mut self.0 {
            Some(running) => running.figures(core, from, with_consumers),
            None => Page { entries: Vec::new(), next: None },
        }
    }

    /// Returns the use of JetStream by each account that may, over all shards.
    pub(crate) fn usage(&self, core: &mut Core) -> Vec<UsageFigures> {
        if self.0.is_none() {
            return Vec::new();
        }
        let accounts = core.settings.accounts.all.iter();
        let accounts = accounts.filter(|(_, account, _)| account.streams.is_some());
        let accounts: Vec<_> = accounts.map(|(id, ..)| *id).collect();
        accounts
            .into_iter()
            .map(|account| {
                let usage = Arc::clone(core.accounts.at(account).stream_usage());
                UsageFigures {
                    account: core.accounts.name(account),
                    memory_bytes: usage.bytes(StorageKind::Memory),
                    file_bytes: usage.bytes(StorageKind::File),
                    api_total: usage.api_total.load(Ordering::Relaxed),
                    api_errors: usage.api_errors.load(Ordering::Relaxed),
                }
            })
            .collect()
    }
}

impl ActiveJetStream {
    fn figures(&mut self, core: &mut Core, from: u64, with_consumers: bool) -> Page<StreamFigures> {
        let Ok(from) = u32::try_from(from) else {
            return Page { entries: Vec::new(), next: None };
        };
        let len = if with_consumers { STREAMS_WITH_CONSUMERS_PER_PAGE } else { STREAMS_PER_PAGE };
        let all = self.streams.all.range((Bound::Included(StreamId(from)), Bound::Unbounded));
        let mut ids: Vec<StreamId> = all.map(|(id, _)| *id).take(len + 1).collect();
        let next = if ids.len() > len { ids.pop() } else { None };
        let streams = ids.into_iter().filter_map(|id| self.figures_of(core, id, with_consumers));
        Page { entries: streams.collect(), next: next.map(|id| u64::from(id.0)) }
    }

    fn figures_of(
        &mut self,
        core: &mut Core,
        id: StreamId,
        with_consumers: bool,
    ) -> Option<StreamFigures> {
        let consumers_shown =
            if with_consumers { consumers::list_consumers(self, core, id) } else { None };
        let context = InfoContext { shows_version: false, ..self.info_context(core, id) };
        let stream = self.streams.all.get(&id)?;
        let store = self.logs.store(stream.log)?;
        let state = store.stream(id)?.state();
        let config = stream.live.config();
        let leader = Some(core.settings.server_name().to_owned());
        let info = stream.live.info(store, &InfoContext { leader, ..context });
        Some(StreamFigures {
            account: core.accounts.name(stream.account),
            name: config.name.clone(),
            storage: config.storage,
            reserved_bytes: u64::try_from(config.max_bytes).unwrap_or(0),
            messages: state.totals.messages,
            bytes: state.totals.bytes,
            consumers: consumers::consumers_of(self, id),
            info,
            consumers_shown: consumers_shown.unwrap_or_default(),
        })
    }
}
