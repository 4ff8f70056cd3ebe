//! INFO to clients: the greeting, and news of the cluster.

use crate::cluster::ClientUrls;
use crate::core::Core;
use crate::core::conn::Conn;
use crate::interest::ids::ConnId;
use crate::proto::encode;
use crate::transport::Transport;

/// Sends INFO anew to the clients over the transports concerned, if their protocol allows that.
pub(crate) fn inform_clients(core: &mut Core, concerns: impl Fn(Transport) -> bool) {
    for id in core.conns.client_ids() {
        // A connection at its end gets nothing after its last error.
        let understands = |conn: &Conn| {
            let is_meant = concerns(conn.transport) && conn.connect.protocol >= 1;
            is_meant && conn.is_open() && conn.login.is_greeted()
        };
        if core.conns.get(id).is_some_and(understands) {
            send_info(core, id, false);
        }
    }
    core.settle_deliveries();
}

pub(crate) fn send_info(core: &mut Core, id: ConnId, after_connect: bool) {
    send_info_of(core, id, after_connect, core.endings.lame_duck.is_some());
}

pub(crate) fn send_info_of(core: &mut Core, id: ConnId, after_connect: bool, lame_duck: bool) {
    // MQTT has no greeting.
    if core.conns.get(id).is_some_and(|conn| conn.transport.is_mqtt()) {
        return;
    }
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.login.on_info();
    let (account, is_system) = (conn.account_name(), core.accounts.system == Some(conn.account));
    let account = after_connect.then_some((&*account, is_system));
    let info = core.settings.info(&conn.peer, conn.transport, &core.links, lame_duck, account);
    core.reply(id, |out| encode::info(out, info.as_bytes()));
}

/// Sets the addresses of other servers for clients, and informs the clients over the transports of
/// which they changed.
pub(crate) fn set_cluster_urls(core: &mut Core, urls: ClientUrls) {
    let old = std::mem::replace(&mut core.links.urls, urls);
    let new = core.links.urls.clone();
    inform_clients(core, |transport| old.of(transport) != new.of(transport));
}
