//! What monitoring sees of a shard: its connections and subscriptions, one page at a time.
//!
//! A page costs the shard a bounded amount of work, however many connections there are; what
//! changes between two pages may be seen twice or not at all.

#![forbid(unsafe_code)]

use super::Engine;
use super::conn::Traffic;
use super::interest::NO_MAX;

/// Slots looked at for one page.
const PAGE_SLOTS_MAX: usize = 512;
/// Text in a page, in bytes, after which it ends.
const PAGE_TEXT_BYTES_MAX: usize = 128 * 1024;

/// Some entries of a table, in the order of their slots.
#[derive(Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// The slot at which the next page begins; `None` after the last.
    pub next: Option<u32>,
}

/// An open connection. Times are nanoseconds since the start of the process.
#[derive(Debug, Clone)]
pub struct ConnSnapshot {
    /// Its number over the whole server.
    pub cid: u64,
    /// The client's address without the port.
    pub ip: Box<str>,
    /// The client's port.
    pub port: u16,
    /// When it was accepted.
    pub opened_ns: u64,
    /// When the client last did something.
    pub last_active_ns: u64,
    /// The last measured round trip, in nanoseconds; 0 before the first.
    pub rtt_ns: u64,
    /// Output not yet taken by the kernel, in bytes.
    pub pending_bytes: usize,
    /// What went through it.
    pub traffic: Traffic,
    /// Its subscriptions.
    pub subscriptions: usize,
    /// From CONNECT; empty if not given.
    pub name: Box<str>,
    /// From CONNECT; empty if not given.
    pub lang: Box<str>,
    /// From CONNECT; empty if not given.
    pub version: Box<str>,
    /// Who it is, if users are told apart.
    pub user: Option<Box<str>>,
}

/// A subscription of an open connection.
#[derive(Debug, Clone)]
pub struct SubSnapshot {
    /// The number of its connection.
    pub cid: u64,
    /// What it matches.
    pub subject: Box<str>,
    /// Its queue group.
    pub queue: Option<Box<str>>,
    /// The client's name for it.
    pub sid: Box<str>,
    /// Messages delivered.
    pub msgs: u64,
    /// It ends after this many messages.
    pub max: Option<u64>,
}

impl Engine {
    /// The open connections from slot `from` on, as far as one page goes.
    pub fn conns_page(&self, from: u32) -> Page<ConnSnapshot> {
        page(from, self.conns.0.len(), |slot| {
            let conn = self.conns.at(slot).filter(|conn| conn.is_open())?;
            let connect = &conn.connect;
            let text: [&str; 3] = [&connect.name, &connect.lang, &connect.version];
            let snapshot = ConnSnapshot {
                cid: conn.peer.cid,
                ip: conn.peer.ip.clone(),
                port: conn.peer.port,
                opened_ns: conn.timing.opened,
                last_active_ns: conn.timing.last_active,
                rtt_ns: conn.timing.rtt,
                pending_bytes: conn.outbox.pending_bytes(),
                traffic: conn.traffic,
                subscriptions: conn.subs.len(),
                name: text[0].into(),
                lang: text[1].into(),
                version: text[2].into(),
                user: conn.user.as_ref().and_then(|user| user.name.clone()),
            };
            Some((snapshot, text.iter().map(|text| text.len()).sum()))
        })
    }

    /// The subscriptions from slot `from` on, as far as one page goes.
    pub fn subs_page(&self, from: u32) -> Page<SubSnapshot> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
        page(from, self.subs.capacity(), |slot| {
            let sub = self.subs.get(slot as usize)?;
            let conn = self.conns.at(sub.conn)?;
            let snapshot = SubSnapshot {
                cid: conn.peer.cid,
                subject: text(&sub.subject),
                queue: sub.queue.as_deref().map(text),
                sid: text(&sub.sid),
                msgs: sub.delivered,
                max: (sub.max != NO_MAX).then_some(sub.max),
            };
            let queue_bytes = sub.queue.as_ref().map_or(0, |queue| queue.len());
            Some((snapshot, sub.subject.len() + queue_bytes + sub.sid.len()))
        })
    }
}

/// Collects what `entry` makes of the slots from `from` on, with the bytes of its text.
fn page<T>(from: u32, slots: usize, mut entry: impl FnMut(u32) -> Option<(T, usize)>) -> Page<T> {
    let (mut entries, mut text_bytes) = (Vec::new(), 0);
    let slots = u32::try_from(slots).unwrap_or(u32::MAX);
    for slot in (from..slots).take(PAGE_SLOTS_MAX) {
        if let Some((snapshot, bytes)) = entry(slot) {
            entries.push(snapshot);
            text_bytes += bytes;
        }
        if text_bytes > PAGE_TEXT_BYTES_MAX {
            return Page { entries, next: Some(slot + 1) };
        }
    }
    let next = from.saturating_add(u32::try_from(PAGE_SLOTS_MAX).unwrap_or(u32::MAX));
    Page { entries, next: (next < slots).then_some(next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pages_together_are_the_table() {
        for slots in [0, 1, 511, 512, 513, 2000] {
            let mut seen = Vec::new();
            let mut from = Some(0);
            while let Some(at) = from {
                let odd = page(at, slots, |slot| (slot % 2 == 1).then_some((slot, 1)));
                assert!(odd.entries.len() <= PAGE_SLOTS_MAX);
                seen.extend(odd.entries);
                from = odd.next;
            }
            let wanted: Vec<u32> = (0..).take(slots).filter(|slot| slot % 2 == 1).collect();
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
}
