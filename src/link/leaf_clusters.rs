//! Clusters of connected leaf nodes: their names, for members of this server's cluster.

use std::collections::HashMap;
use std::sync::Arc;

use crate::interest::ids::Origin;

/// Names of the clusters of leaf nodes, each with the number of leaf connections on all shards.
#[derive(Debug, Default)]
pub(crate) struct LeafClusters(HashMap<Origin, (Arc<str>, usize)>);

impl LeafClusters {
    /// Enters a leaf node of a cluster, or takes it out.
    pub(crate) fn note(&mut self, name: &Arc<str>, is_in: bool) {
        let origin = Origin::of_leaves(name.as_bytes());
        let (_, count) = self.0.entry(origin).or_insert_with(|| (Arc::clone(name), 0));
        *count = if is_in { *count + 1 } else { count.saturating_sub(1) };
        // Messages of the last one may still be on a lane.
        if self.0.len() > CLUSTERS_KEPT_MAX {
            self.0.retain(|_, (_, count)| *count > 0);
        }
    }

    /// Returns the name of a cluster.
    pub(crate) fn name(&self, origin: Origin) -> Option<&Arc<str>> {
        self.0.get(&origin).map(|(name, _)| name)
    }
}

/// Clusters of which those that have nobody left are kept, at most.
const CLUSTERS_KEPT_MAX: usize = 1024;
