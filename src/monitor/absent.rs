//! Pages of nats-server's features that this server does not have: complete, without entries.

use serde_json::{Map, Value};

use super::query::{BadQuery, Query};

/// Returns the page of waiting internal queues, empty: this server has none of nats-server's.
pub(super) fn ipqueuesz(query: &Query) -> Result<Map<String, Value>, BadQuery> {
    query.boolean("all")?;
    Ok(Map::new())
}
