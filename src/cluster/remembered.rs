//! Limits of the memory that peers can take.

use super::{Members, RouteUrl, TargetKind};
use crate::proto::route::RouteInfo;

/// Bytes that peers may have this server remember, all together: servers to dial, and addresses for
/// clients. Names of usual length are those of thousands.
const REMEMBERED_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a server to dial besides its names; so there are no more than a few thousand.
const TARGET_BYTES: usize = 512;
/// Bytes of an address besides its text.
const URL_BYTES: usize = 24;
impl Members {
    /// Returns the bytes that peers have had this server remember.
    fn remembered_bytes(&self) -> usize {
        let gossiped = self.targets.values().filter(|target| target.kind == TargetKind::Gossiped);
        let targets = gossiped.map(|target| target_bytes(&target.url, target.server_id.as_deref()));
        let peers = self.links.values().filter_map(|link| link.peer.as_ref());
        targets.chain(peers.map(urls_bytes)).sum()
    }

    /// Whether there is room to remember one more server to dial.
    pub(super) fn has_room_for(&self, url: &RouteUrl, server_id: &str) -> bool {
        self.remembered_bytes() + target_bytes(url, Some(server_id)) <= REMEMBERED_BYTES_MAX
    }

    /// Empties the addresses for clients in a peer's INFO if there is no room for them, in place of
    /// its earlier ones.
    pub(super) fn bound_urls(&self, rid: u64, info: &mut RouteInfo) {
        let peer = self.links.get(&rid).and_then(|link| link.peer.as_ref());
        let others = self.remembered_bytes().saturating_sub(peer.map_or(0, urls_bytes));
        if others + urls_bytes(info) > REMEMBERED_BYTES_MAX {
            (info.connect_urls, info.ws_connect_urls, info.leafnode_urls) = Default::default();
        }
    }
}

/// Returns the bytes remembered of a server to dial.
fn target_bytes(url: &RouteUrl, server_id: Option<&str>) -> usize {
    TARGET_BYTES + url.host.len() + server_id.map_or(0, str::len)
}

/// Returns the bytes remembered of a peer's addresses for clients.
fn urls_bytes(info: &RouteInfo) -> usize {
    let urls = info.connect_urls.iter().chain(&info.ws_connect_urls).chain(&info.leafnode_urls);
    urls.map(|url| URL_BYTES + url.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::{Plan, RouteStep};
    use super::*;

    /// Dials and addresses of a server whose one peer sends `count` INFOs about itself and others.
    fn dials(count: usize, of: impl Fn(usize) -> RouteInfo) -> (usize, usize) {
        let mut members = Members::new(Plan { id: "me".to_owned(), ..Plan::default() }, 1);
        members.on_accepted(1);
        let peer = RouteInfo { server_id: "peer".to_owned(), ..RouteInfo::default() };
        members.on_greeted(1, peer, "host");
        (0..count).for_each(|at| members.on_heard(1, of(at)));
        members.set_now(1_000_000_000);
        let steps: Vec<RouteStep> = std::iter::from_fn(|| members.next_step()).collect();
        let dials = steps.iter().filter(|step| matches!(step, RouteStep::Dial { .. })).count();
        assert!(members.remembered_bytes() <= REMEMBERED_BYTES_MAX);
        let mut told = steps.iter().filter_map(|step| match step {
            RouteStep::Urls(urls) => urls.tcp.as_ref(),
            _ => None,
        });
        (dials, told.next_back().map_or(0, Vec::len))
    }

    fn gossip(at: usize, host_bytes: usize) -> RouteInfo {
        let host = format!("{at:0host_bytes$}");
        RouteInfo { server_id: format!("S{at}"), host, port: 1, ..RouteInfo::default() }
    }

    #[test]
    fn whoever_is_spoken_of_is_dialled_as_long_as_all_of_them_fit() {
        assert_eq!(dials(1000, |at| gossip(at, 20)).0, 1000);
        let many = dials(5000, |at| gossip(at, 20)).0;
        assert!((1500..3000).contains(&many), "{many}");
        let long = dials(1000, |at| gossip(at, 60_000)).0;
        assert!((1..=REMEMBERED_BYTES_MAX / 60_000).contains(&long), "{long}");
    }

    #[test]
    fn where_clients_connect_is_remembered_as_long_as_it_fits() {
        let urls = |count: usize| RouteInfo {
            server_id: "peer".to_owned(),
            connect_urls: (0..count).map(|at| format!("host{at}:4222")).collect(),
            ..RouteInfo::default()
        };
        assert_eq!(dials(3, |_| urls(1000)).1, 1000);
        assert_eq!(dials(2, |at| urls([1000, 100_000][at])).1, 0);
        let all = dials(2, |at| if at == 0 { urls(25_000) } else { gossip(at, 60_000) });
        assert_eq!(all, (1, 25_000));
    }
}
