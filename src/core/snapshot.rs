//! Pages of a shard's connections and subscriptions for monitoring, one at a time.
//!
//! A page costs the shard a bounded amount of work, however many connections there are; an entry
//! that changes between two pages may be seen twice or not at all.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::auth::token_users::TokenUser;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::{Core, events};
use crate::interest::ids::ConnId;
use crate::interest::subscription::{NO_MAX, Sub};
use crate::measure::Traffic;
use crate::output::Dropped;
use crate::transport::{TlsInfo, Transport};

/// Entries looked at for one page.
const PAGE_ENTRIES_MAX: u64 = 512;

/// Bytes of text after which a page ends.
const PAGE_TEXT_BYTES_MAX: usize = 128 * 1024;

/// Bytes that a shard keeps of connections that have ended.
const CLOSED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Subscriptions that are kept of a connection that has ended.
const CLOSED_SUBS_MAX: usize = 256;

/// Bytes of their text after which no more subscriptions of such a connection are kept.
const CLOSED_SUBS_BYTES_MAX: usize = 32 * 1024;

/// One page of a table, in its order.
#[derive(Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Start of the next page; `None` after the last.
    pub next: Option<u64>,
}

/// A connection, open or as it was at its end. Times are nanoseconds since the process began.
#[derive(Debug, Clone)]
pub struct ConnSnapshot {
    /// Number of the connection, unique in the server.
    pub cid: u64,
    /// The client's address without the port.
    pub ip: Box<str>,
    /// The client's port.
    pub port: u16,
    /// Transport of the connection.
    pub transport: Transport,
    /// Time of acceptance.
    pub opened_ns: u64,
    /// Time of the last input, or of the last message delivered.
    pub last_active_ns: u64,
    /// The last measured round trip, in nanoseconds; 0 before the first.
    pub rtt_ns: u64,
    /// Output not yet taken by the kernel, in bytes.
    pub pending_bytes: usize,
    /// Messages and bytes in both directions.
    pub traffic: Traffic,
    /// Pauses of the connection's input because most receivers of a run were behind.
    pub stalls: u64,
    /// Messages for this connection dropped by overflow policies.
    pub dropped: Dropped,
    /// Number of subscriptions.
    pub subscriptions: usize,
    /// Account of the user.
    pub account: Arc<str>,
    /// Client's name from CONNECT; empty if not given.
    pub name: Box<str>,
    /// Client's language from CONNECT; empty if not given.
    pub lang: Box<str>,
    /// Client's version from CONNECT; empty if not given.
    pub version: Box<str>,
    /// Result of the TLS handshake.
    pub tls: Option<Arc<TlsInfo>>,
    /// User or key of the login, or the user that the server assigned; for a secret token a
    /// placeholder.
    pub user: Option<Box<str>>,
    /// Claims of the user's token, for a login by token.
    pub token: Option<Arc<TokenUser>>,
    /// Whether the login was by a configured nkey.
    pub has_nkey: bool,
}

/// A connection that has ended.
#[derive(Debug, Clone)]
pub struct ClosedConn {
    /// State at the end; `subscriptions` counts all subscriptions.
    pub conn: ConnSnapshot,
    /// Time of the end, in nanoseconds since the start of the process.
    pub stopped_ns: u64,
    /// Reason of the end.
    pub reason: Reason,
    /// Subscriptions at the end; of very many not all.
    pub subs: Vec<SubSnapshot>,
}

/// The connections that ended last, oldest first, in bounds of number and bytes.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    pub(crate) conns: VecDeque<(ClosedConn, usize)>,
    /// Number of connections that ended before the first of these.
    pub(crate) forgotten: u64,
    pub(crate) bytes: usize,
}

/// A subscription of a connection.
#[derive(Debug, Clone)]
pub struct SubSnapshot {
    /// The number of the subscription's connection.
    pub cid: u64,
    /// The account of the subscription's connection.
    pub account: Arc<str>,
    /// Filter of the subscription.
    pub subject: Box<str>,
    /// Queue group, if it is a member of one.
    pub queue: Option<Box<str>>,
    /// The client's name for the subscription.
    pub sid: Box<str>,
    /// Messages delivered.
    pub msgs: u64,
    /// Number of messages after which the subscription ends.
    pub max: Option<u64>,
}

impl Closed {
    fn push(&mut self, closed: ClosedConn, text_bytes: usize, conns_max: usize) {
        let bytes = size_of::<ClosedConn>() + closed.subs.len() * size_of::<SubSnapshot>();
        self.bytes += bytes + text_bytes;
        self.conns.push_back((closed, bytes + text_bytes));
        while self.conns.len() > conns_max || self.bytes > CLOSED_BYTES_MAX {
            let Some((_, bytes)) = self.conns.pop_front() else { return };
            self.bytes -= bytes;
            self.forgotten += 1;
        }
    }
}

impl Conn {
    /// Returns the monitoring's view of the connection.
    pub(crate) fn snapshot(&self) -> ConnSnapshot {
        of_conn(self).0
    }
}

/// Returns the monitoring's view of a connection, and the bytes of its text.
pub(crate) fn of_conn(conn: &Conn) -> (ConnSnapshot, usize) {
    let (connect, liveness) = (&conn.connect, &conn.liveness);
    let token = conn.pass();
    let snapshot = ConnSnapshot {
        cid: conn.peer.cid,
        ip: conn.peer.ip.clone(),
        port: conn.peer.port,
        transport: conn.transport,
        opened_ns: liveness.opened,
        last_active_ns: conn.last_active_ns(),
        rtt_ns: liveness.rtt,
        pending_bytes: conn.outbox.pending_bytes(),
        traffic: conn.traffic,
        stalls: conn.input.brakes.stalls(),
        dropped: conn.lag.dropped,
        subscriptions: conn.subs.len(),
        account: conn.account_name(),
        name: connect.name.clone(),
        lang: connect.lang.clone(),
        version: connect.version.clone(),
        tls: conn.layers.tls().cloned(),
        user: user_of(conn),
        token: token.map(|pass| Arc::clone(&pass.says)),
        has_nkey: token.is_none() && conn.login.user().is_some() && !connect.nkey.is_empty(),
    };
    let ConnSnapshot { name, lang, version, user, tls, .. } = &snapshot;
    let user_bytes = user.as_ref().map_or(0, |user| user.len());
    let certs = tls.iter().flat_map(|tls| &tls.peer_certs);
    let certs_bytes: usize = certs.map(|cert| cert.subject.len() + 2 * 64).sum();
    let token_bytes = token.map_or(0, |pass| pass.says.bytes());
    let text_bytes =
        token_bytes + name.len() + lang.len() + version.len() + user_bytes + certs_bytes;
    (snapshot, text_bytes)
}

fn user_of(conn: &Conn) -> Option<Box<str>> {
    let connect = &conn.connect;
    let given = [&connect.nkey, &connect.user].into_iter().find(|text| !text.is_empty());
    let guest = || conn.login.user().and_then(|user| user.name.clone());
    let token = || (!connect.auth_token.is_empty()).then(|| "[REDACTED]".into());
    given.cloned().or_else(guest).or_else(token)
}

/// Returns the monitoring's view of a subscription, and the bytes of its text.
pub(crate) fn of_sub(conn: &Conn, sub: &Sub) -> (SubSnapshot, usize) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
    let snapshot = SubSnapshot {
        cid: conn.peer.cid,
        account: conn.account_name(),
        subject: text(sub.subject()),
        queue: sub.queue().map(text),
        sid: text(sub.sid()),
        msgs: sub.delivered,
        max: (sub.max != NO_MAX).then_some(sub.max),
    };
    (snapshot, sub.text_bytes())
}

/// Collects the results of `entry` for the numbers from `from` up to `end`, each with the bytes of
/// its text.
pub(crate) fn page<T>(
    from: u64,
    end: u64,
    mut entry: impl FnMut(u64) -> Option<(T, usize)>,
) -> Page<T> {
    let (mut entries, mut text_bytes) = (Vec::new(), 0);
    let stop = end.min(from.saturating_add(PAGE_ENTRIES_MAX));
    for number in from..stop {
        if let Some((snapshot, bytes)) = entry(number) {
            entries.push(snapshot);
            text_bytes += bytes;
        }
        if text_bytes > PAGE_TEXT_BYTES_MAX {
            return Page { entries, next: Some(number + 1) };
        }
    }
    Page { entries, next: (stop < end).then_some(stop) }
}

impl Core {
    /// Keeps the monitoring's view of a connection that ends now.
    pub(crate) fn remember(&mut self, id: ConnId, reason: Reason) {
        let link = self.conns.get(id).and_then(|conn| conn.link.as_ref());
        if let Some(link) = link {
            if link.leaf().is_some() && link.is_registered() {
                events::tell_disconnected(self, id, reason);
            }
            return;
        }
        events::tell_disconnected(self, id, reason);
        let conns_max = self.settings.closed_conns_max;
        let conn = self.conns.get(id).filter(|conn| conns_max > 0 && conn.layers.is_understood());
        let Some(conn) = conn else { return };
        let (snapshot, mut text_bytes) = of_conn(conn);
        let mut subs = Vec::new();
        for key in conn.subs.iter().take(CLOSED_SUBS_MAX) {
            let (sub, sub_text_bytes) = of_sub(conn, &self.subs[*key as usize]);
            subs.push(sub);
            text_bytes += sub_text_bytes;
            if text_bytes > CLOSED_SUBS_BYTES_MAX {
                break;
            }
        }
        let closed = ClosedConn { conn: snapshot, stopped_ns: self.times.now, reason, subs };
        self.monitor.closed.push(closed, text_bytes, conns_max);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::config::{HttpOptions, Options};
    use crate::engine::{Engine, Identity, Peer, Settings, ShardId};

    #[test]
    fn all_pages_together_are_the_table() {
        for slots in [0, 1, 511, 512, 513, 2000] {
            let mut seen = Vec::new();
            let mut from = Some(0);
            while let Some(at) = from {
                let odd = page(at, slots, |slot| (slot % 2 == 1).then_some((slot, 1)));
                assert!(odd.entries.len() as u64 <= PAGE_ENTRIES_MAX);
                seen.extend(odd.entries);
                from = odd.next;
            }
            let wanted: Vec<u64> = (0..slots).filter(|slot| slot % 2 == 1).collect();
            assert_eq!(seen, wanted, "{slots} slots");
        }
    }

    #[test]
    fn long_texts_make_short_pages() {
        let long = page(0, 100, |slot| Some((slot, PAGE_TEXT_BYTES_MAX)));
        assert_eq!((long.entries.len(), long.next), (2, Some(2)));
        let last = page(99, 100, |slot| Some((slot, 2 * PAGE_TEXT_BYTES_MAX)));
        assert_eq!((last.entries.len(), last.next), (1, Some(100)));
        assert_eq!(page(100, 100, |slot| Some((slot, 1))).next, None);
    }

    /// Returns an engine that keeps `closed_conns_max` ends; one connection after the other was
    /// opened, sent `wire`, and was ended by its client.
    fn ended(closed_conns_max: usize, conns: u64, wire: &[u8]) -> Engine {
        let mut options = Options::default();
        options.monitoring.http = Some(HttpOptions { host: None, port: 0, is_tls: false });
        options.monitoring.closed_conns_max = closed_conns_max;
        let settings = Settings::new(&options, &Identity::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        for cid in 0..conns {
            let generation = u32::try_from(cid).unwrap();
            let id = ConnId { slot: 0, generation };
            engine.open(id, Peer { cid, ip: "127.0.0.1".into(), port: 1 }, true);
            engine.on_bytes(id, wire);
            engine.on_ended(id, false);
            engine.end_turn();
            let batch = engine.take_batch(id).unwrap();
            let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
            engine.on_sent(id, bytes, Some(batch));
            engine.on_closed(id, None);
            while engine.next_output().is_some() {}
        }
        engine
    }

    fn remembered(engine: &Engine) -> Vec<ClosedConn> {
        let (mut all, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let page = engine.view().closed_page(at);
            all.extend(page.entries);
            from = page.next;
        }
        all
    }

    #[test]
    fn the_last_connections_that_ended_are_remembered_in_order() {
        let engine = ended(1000, 1700, b"CONNECT {\"name\":\"n\",\"user\":\"u\"}\r\nSUB a q 1\r\n");
        let closed = remembered(&engine);
        let cids: Vec<u64> = closed.iter().map(|closed| closed.conn.cid).collect();
        assert_eq!(cids, (700..1700).collect::<Vec<_>>());
        let last = closed.last().unwrap();
        assert_eq!((&*last.conn.name, last.conn.user.as_deref()), ("n", Some("u")));
        assert_eq!((last.conn.subscriptions, last.reason), (1, Reason::ClientClosed));
        assert_eq!((&*last.subs[0].subject, last.subs[0].queue.as_deref()), ("a", Some("q")));
        assert!(remembered(&ended(0, 3, b"")).is_empty(), "nobody will ask");
    }

    #[test]
    fn what_is_remembered_of_the_ended_has_a_bound_in_bytes() {
        let mut wire = b"CONNECT {}\r\n".to_vec();
        for sid in 0..40 {
            wire.extend(format!("SUB {}.{sid} {sid}\r\n", "x".repeat(1000)).as_bytes());
        }
        let engine = ended(10_000, 400, &wire);
        let closed = remembered(&engine);
        assert_eq!(closed.last().unwrap().conn.cid, 399);
        assert!(closed.iter().all(|closed| closed.conn.subscriptions == 40));
        assert!((200..300).contains(&closed.len()), "{} of 400", closed.len());
        assert!(engine.core.monitor.closed.bytes <= CLOSED_BYTES_MAX);
    }
}
