//! Remote interest in force: peers' interest entered in accounts and announced to other shards.

use crate::core::announce::{self, Changed};
use crate::core::{Core, leaf_interest};
use crate::interest::ids::{AccountId, ConnId, Origin};
use crate::interest::reach::{Kind, LinkSlot};
use crate::interest::{Behind, Wanted};
use crate::link::gateways::GatewayNotice;
use crate::link::remote_interest::{Known, REMOTE_BYTES_MIN, RemoteInterest};
use crate::link::{RouteNotice, Stage};
use crate::proto::route::InterestEntry;

impl Core {
    /// Whether a connection leads to another server.
    pub(crate) fn is_link(&self, id: ConnId) -> bool {
        self.conns.get(id).is_some_and(|conn| conn.link.is_some())
    }

    /// Returns the account that a peer names, or that its route is for.
    pub(crate) fn account_of(&self, id: ConnId, name: &[u8]) -> Option<AccountId> {
        let link = self.conns.get(id)?.link.as_ref()?;
        if let Some(leaf) = link.leaf() {
            return Some(leaf.account_id);
        }
        self.accounts.find(link.account_named(name))
    }

    /// Returns the bytes that all remote interest may cost on all shards: three quarters of the
    /// machine's memory. Half of the memory, at most, is for output, which then has to do with the
    /// rest.
    pub(crate) fn remote_bytes_max(&self) -> usize {
        let half = self.settings.memory_bytes_max.saturating_mul(self.lanes.to.len());
        half.saturating_add(half / 2).max(REMOTE_BYTES_MIN)
    }

    /// Sets the members that a peer has for its interest in a filter; of plain interest 1 or 0.
    pub(crate) fn set_remote_interest(
        &mut self,
        id: ConnId,
        account: AccountId,
        entry: &InterestEntry<'_>,
        members: u32,
    ) {
        let wanted = Wanted { filter: entry.subject, queue: entry.queue };
        let Some(link) = self.conns.get(id).and_then(|conn| conn.link.as_ref()) else { return };
        let origin = link.leaf().map_or(Origin::of(entry.origin), |leaf| leaf.origin);
        let link = LinkSlot::new(id.slot, link.kind());
        let behind = Behind { link, members, origin };
        let interest = &mut self.accounts.at(account).interest;
        let change = interest.set_link(behind, wanted);
        if let Some(all) = change.announce {
            self.announce(id, account, behind.via(), wanted, all);
        }
        announce::tell_servers(self, account, wanted, change);
        if let Some(members) = change.behind {
            let change = Changed { via: behind.via(), link: Some(link), members };
            announce::advertise_behind(self, account, change, wanted);
        }
    }

    /// Sets the members for remote interest that is known.
    pub(crate) fn set_known_interest(
        &mut self,
        id: ConnId,
        account: AccountId,
        known: &Known,
        members: u32,
    ) {
        let Some(link) = self.conns.get(id).and_then(|conn| conn.link.as_ref()) else { return };
        if let Some(entry) = known.parse(link.form()) {
            self.set_remote_interest(id, account, &entry, members);
        }
    }

    /// Removes a link from every table, but for its peer's interest.
    pub(crate) fn leave_link(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(link) = &mut conn.link else { return };
        let (rid, kind) = (link.rid, link.kind());
        let stage = std::mem::replace(&mut link.stage, Stage::Ended);
        self.links.newcomers.remove(id);
        if kind == Kind::Gateway {
            if stage != Stage::Ended {
                self.out.notify_of_gateway(GatewayNotice::Ended { rid });
            }
            let gateways = &mut self.links.gateways;
            gateways.outbounds.retain(|gateway| *gateway != id);
            gateways.inbounds.retain(|gateway| *gateway != id);
            return;
        }
        if matches!(kind, Kind::Leaf | Kind::Hub) {
            return leaf_interest::leave(self, id, stage);
        }
        if stage != Stage::Ended {
            self.out.notify(RouteNotice::Ended { rid, is_self: false });
        }
        if stage == Stage::Registered && self.settings.gateway.is_some() {
            self.out.notify_of_gateway(GatewayNotice::MemberGone { route: rid });
        }
        self.links.routes.retain(|route| *route != id);
    }

    /// Retracts up to `count` entries of a peer's interest. Returns their number.
    pub(crate) fn retract_remote_interest(&mut self, id: ConnId, count: usize) -> usize {
        let link = self.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
        let Some(link) = link else { return 0 };
        let (form, known) = (link.form(), link.remote.take(count));
        let taken = known.len();
        for known in known {
            let Some(entry) = known.parse(form) else { continue };
            self.links.remote_bytes.sub(RemoteInterest::cost_bytes(&entry, self.lanes.to.len()));
            if let Some(account) = self.account_of(id, entry.account) {
                self.set_remote_interest(id, account, &entry, 0);
            }
        }
        taken
    }
}
