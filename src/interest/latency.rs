//! Requests to services that are measured: which they are, and those that have no answer yet.
//!
//! A service with a rule has a share of its requests measured, and all requests with headers by
//! which another system traces them. A shard keeps those of its own connections until they are
//! answered, their time is over, or nobody waits for the answer any more. They have a bound of
//! their own (`MEASURED_BYTES_MAX`), beyond which requests are not measured.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use crate::interest::account_settings::LatencyRule;
use crate::interest::halves::{FarHalf, OpenHalves};
use crate::interest::ids::{AccountId, ConnId};
use crate::subject::is_literal;

/// Bytes that a shard keeps of measured requests; beyond, requests are not measured.
const MEASURED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that a measured request takes besides its texts.
const MEASURED_BYTES: usize = 384;

/// Percentage at which all requests are measured.
const ALL: u8 = 100;

/// Headers by which a requester asked for its request to be measured, by name; empty if it did
/// not.
pub type AskedBy = BTreeMap<String, Vec<String>>;

impl LatencyRule {
    /// Decides whether a request with this header block is measured. Returns the headers that have
    /// asked for it.
    pub(crate) fn sample(&self, header: &[u8], rng: &mut fastrand::Rng) -> Option<AskedBy> {
        let is_chosen = self.percent >= ALL || (self.percent > 0 && rng.u8(..ALL) < self.percent);
        if is_chosen { Some(AskedBy::new()) } else { asked_by(header) }
    }
}

/// Returns the headers by which another system traces a message; `None` if it does not.
fn asked_by(header: &[u8]) -> Option<AskedBy> {
    const UBER: &str = "Uber-Trace-Id";
    const B3: &str = "B3";
    const SAMPLED: &str = "X-B3-Sampled";
    const B3_ID: &str = "X-B3-Traceid";
    const PARENT: &str = "Traceparent";
    let all = fields(header)?;
    let first = |name: &str| all.get(name).and_then(|values| values.first()).map(String::as_str);
    let with = |wanted: &dyn Fn(&str) -> bool| {
        let found = all.iter().filter(|(name, _)| wanted(name));
        found.map(|(name, values)| (name.clone(), values.clone())).collect::<AskedBy>()
    };
    let of_b3 = |name: &str| [SAMPLED, B3_ID, "X-B3-Parentspanid", "X-B3-Spanid"].contains(&name);
    if let Some(id) = first(UBER) {
        let parts: Vec<&str> = id.split(':').collect();
        let flags = Some(parts).filter(|parts| parts.len() == 4).and_then(|parts| hex(parts[3]));
        let is_sampled = flags.is_some_and(|flags| flags & 1 == 1);
        return is_sampled.then(|| with(&|name| name == UBER || name.starts_with("Uberctx-")));
    }
    match first(SAMPLED) {
        Some("1") => return Some(with(&of_b3)),
        Some("0") => return None,
        _ => {}
    }
    if first(B3_ID).is_some() {
        return Some(with(&of_b3));
    }
    if let Some(b3) = first(B3) {
        let is_denied = b3 == "0" || b3.split('-').nth(2) == Some("0");
        return (!is_denied).then(|| with(&|name| name == B3));
    }
    let parts: Vec<&str> = first(PARENT)?.split('-').collect();
    let flags = parts.get(3).filter(|flags| parts.len() == 4 && flags.len() == 2)?;
    // As in nats-server, whose number has a sign.
    let is_sampled = hex(flags).is_some_and(|flags| flags & 0x81 == 1);
    is_sampled.then(|| with(&|name| name == PARENT || name == "Tracestate"))
}

/// Returns the number of one or two hexadecimal digits.
fn hex(digits: &str) -> Option<u8> {
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hex && digits.len() <= 2)
}

/// Returns the headers of a block by their names as HTTP writes them; `None` if a line is none.
fn fields(header: &[u8]) -> Option<AskedBy> {
    let mut all = AskedBy::new();
    let lines = header.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    for line in lines.skip(1).take_while(|line| !line.is_empty()) {
        let colon = memchr::memchr(b':', line)?;
        let name = canonical(&line[..colon])?;
        let value = String::from_utf8_lossy(line[colon + 1..].trim_ascii()).into_owned();
        all.entry(name).or_default().push(value);
    }
    Some(all)
}

/// Returns a header's name with capitals at the beginnings of its words only.
fn canonical(name: &[u8]) -> Option<String> {
    let mut is_first = true;
    let mut letter = |byte: &u8| {
        let is_allowed = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let shown = if is_first { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        is_first = *byte == b'-';
        is_allowed.then_some(char::from(shown))
    };
    name.iter().map(&mut letter).collect()
}

/// A measured request of a local connection.
#[derive(Debug)]
pub(crate) struct MeasuredRequest {
    pub(crate) rule: Arc<LatencyRule>,
    /// The account that answers, and gets the report.
    pub(crate) asked: AccountId,
    /// The account of the request, where the answer goes to `reply`.
    pub(crate) asking: AccountId,
    pub(crate) reply: Rc<[u8]>,
    pub(crate) requester: ConnId,
    /// Whether the report tells who the requester is.
    pub(crate) share: bool,
    pub(crate) headers: AskedBy,
    /// The half of the responder's server, if it came before the answer.
    pub(crate) half: Option<Box<FarHalf>>,
    /// Time of the request, in nanoseconds.
    pub(crate) asked_ns: u64,
    /// Time at which the service is too late.
    pub(crate) expires: u64,
}

impl MeasuredRequest {
    fn cost_bytes(&self) -> usize {
        let values = self.headers.iter().map(|(name, values)| {
            name.len() + values.iter().map(|value| size_of::<String>() + value.len()).sum::<usize>()
        });
        let half = self.half.as_ref().map_or(0, |half| half.cost_bytes());
        MEASURED_BYTES + self.reply.len() + values.sum::<usize>() + half
    }
}

/// The measured requests of a shard that have no answer yet, by the number of the answer.
#[derive(Debug, Default)]
pub(crate) struct MeasuredRequests {
    open: BTreeMap<u64, MeasuredRequest>,
    /// Numbers by the time at which the service is too late.
    due: BTreeSet<(u64, u64)>,
    /// Numbers by the account of the request and the subject of the answer.
    replies: BTreeSet<(AccountId, Rc<[u8]>, u64)>,
    /// Subjects of answers that may have no receiver any more.
    left: BTreeSet<(AccountId, Rc<[u8]>)>,
    /// Accounts of which any answer may have none, with the place of the last look.
    swept: BTreeMap<AccountId, (Rc<[u8]>, u64)>,
    bytes: usize,
    /// Requests that other servers measure.
    pub(crate) halves: OpenHalves,
}

impl MeasuredRequests {
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn insert(&mut self, id: u64, measured: MeasuredRequest) {
        let cost = measured.cost_bytes();
        if self.bytes + cost > MEASURED_BYTES_MAX {
            return;
        }
        self.bytes += cost;
        self.due.insert((measured.expires, id));
        self.replies.insert((measured.asking, Rc::clone(&measured.reply), id));
        self.open.insert(id, measured);
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<MeasuredRequest> {
        let measured = self.open.remove(&id)?;
        self.bytes -= measured.cost_bytes();
        self.due.remove(&(measured.expires, id));
        self.replies.remove(&(measured.asking, Rc::clone(&measured.reply), id));
        Some(measured)
    }

    /// Keeps the half of the responder's server until the answer comes; the first one, if there is
    /// room.
    pub(crate) fn keep_half(&mut self, id: u64, half: Box<FarHalf>) {
        let cost = half.cost_bytes();
        if let Some(measured) = self.open.get_mut(&id).filter(|one| one.half.is_none())
            && self.bytes + cost <= MEASURED_BYTES_MAX
        {
            self.bytes += cost;
            measured.half = Some(half);
        }
    }

    /// Returns the account that answers a request.
    pub(crate) fn asked(&self, id: u64) -> Option<AccountId> {
        self.open.get(&id).map(|measured| measured.asked)
    }

    /// Returns the time at which the next service is too late.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due.first().map(|(expires, _)| *expires)
    }

    /// Takes a request whose service is too late.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<MeasuredRequest> {
        let (_, id) = self.due.first().copied().filter(|(expires, _)| *expires <= now)?;
        self.remove(id)
    }

    /// Notes that a subscription of an account has gone, and perhaps the receiver of answers. Costs
    /// the same however many requests are open.
    pub(crate) fn note_left(&mut self, account: AccountId, filter: &[u8]) {
        if !is_literal(filter) {
            self.swept.insert(account, (Rc::from(&b""[..]), 0));
            return;
        }
        let reply = Rc::from(filter);
        if self.of(account, &reply).is_some() {
            self.left.insert((account, reply));
        }
    }

    /// The first request with this subject of the answer.
    fn of(&self, account: AccountId, reply: &Rc<[u8]>) -> Option<u64> {
        let key = |id| (account, Rc::clone(reply), id);
        self.replies.range(key(0)..=key(u64::MAX)).next().map(|(.., id)| *id)
    }

    /// Returns a request of which the answer may have no receiver any more: its number, the account
    /// of the receiver and the subject. It is to be removed, or kept with [`Self::keep`].
    pub(crate) fn next_left(&mut self) -> Option<(u64, AccountId, Rc<[u8]>)> {
        while let Some((account, reply)) = self.left.first().cloned() {
            if let Some(id) = self.of(account, &reply) {
                return Some((id, account, reply));
            }
            self.left.pop_first();
        }
        while let Some((account, (reply, id))) = self.swept.pop_first() {
            let behind = (Bound::Excluded((account, reply, id)), Bound::Unbounded);
            let found = self.replies.range(behind).next();
            if let Some((_, reply, id)) = found.filter(|(of, ..)| *of == account) {
                self.swept.insert(account, (Rc::clone(reply), *id));
                return Some((*id, account, Rc::clone(reply)));
            }
        }
        None
    }

    /// Notes that answers with this subject have a receiver.
    pub(crate) fn keep(&mut self, account: AccountId, reply: Rc<[u8]>) {
        self.left.remove(&(account, reply));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(header: &str) -> Option<String> {
        let block = format!("NATS/1.0\r\n{header}\r\n\r\n");
        asked_by(block.as_bytes()).map(|headers| {
            let of =
                |(name, values): (&String, &Vec<String>)| format!("{name}={}", values.join("|"));
            headers.iter().map(of).collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn each_system_that_traces_has_its_headers() {
        for (header, expected) in [
            ("uber-trace-id: a:b:c:1\r\nuberctx-x: 7\r\nZ: 1", "Uber-Trace-Id=a:b:c:1 Uberctx-X=7"),
            ("Uber-Trace-Id: a:b:c:0d", "Uber-Trace-Id=a:b:c:0d"),
            ("X-B3-Sampled: 1\r\nX-B3-SpanId: s", "X-B3-Sampled=1 X-B3-Spanid=s"),
            ("X-B3-TraceId: t\r\nX-B3-ParentSpanId: p", "X-B3-Parentspanid=p X-B3-Traceid=t"),
            ("b3: t-s-1-p\r\nb3: other", "B3=t-s-1-p|other"),
            ("B3: d", "B3=d"),
            ("traceparent: 00-a-b-01\r\ntracestate: v=1", "Traceparent=00-a-b-01 Tracestate=v=1"),
            // The first system that is found decides.
            ("Uber-Trace-Id: a:b:c:1\r\ntraceparent: 00-a-b-00", "Uber-Trace-Id=a:b:c:1"),
        ] {
            assert_eq!(asked(header).as_deref(), Some(expected), "{header}");
        }
    }

    #[test]
    fn what_is_not_to_be_traced_or_is_no_header_is_not_measured() {
        for header in [
            "Nats-Msg-Id: 1",
            "Uber-Trace-Id: a:b:c:2",
            "Uber-Trace-Id: a:b:1",
            "Uber-Trace-Id: a:b:c:+1",
            "Uber-Trace-Id: a:b:c:0\r\nX-B3-Sampled: 1",
            "X-B3-Sampled: 0\r\nX-B3-TraceId: t",
            "B3: 0",
            "B3: t-s-0",
            "traceparent: 00-a-b-00",
            "traceparent: 00-a-b-ff",
            "traceparent: 00-a-b-1",
            "tracestate: v=1",
            "B3: 1\r\nnot a header",
            "B\u{e4}: 1\r\nB3: 1",
        ] {
            assert_eq!(asked(header), None, "{header}");
        }
        assert_eq!(asked_by(b""), None);
    }

    #[test]
    fn of_the_requests_a_share_is_measured_and_those_whose_headers_ask_for_it() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut count = |percent: u8, header: &[u8]| {
            let rule = LatencyRule { subject: "l".into(), percent };
            (0..1000).filter(|_| rule.sample(header, &mut rng).is_some()).count()
        };
        assert_eq!((count(100, b""), count(0, b"")), (1000, 0));
        assert!((200..300).contains(&count(25, b"")));
        assert_eq!(count(25, b"NATS/1.0\r\nB3: 1\r\n\r\n"), 1000);
        assert_eq!(count(0, b"NATS/1.0\r\nB3: 1\r\n\r\n"), 1000);
    }

    fn measured(asking: u32, reply: &str, expires: u64) -> MeasuredRequest {
        MeasuredRequest {
            rule: Arc::new(LatencyRule { subject: "l".into(), percent: 100 }),
            asked: AccountId::new(9),
            asking: AccountId::new(asking),
            reply: reply.as_bytes().into(),
            requester: ConnId { slot: 0, generation: 0 },
            share: false,
            headers: AskedBy::new(),
            half: None,
            asked_ns: 0,
            expires,
        }
    }

    #[test]
    fn the_service_that_is_late_first_is_found_first_and_an_answered_one_not_at_all() {
        let mut all = MeasuredRequests::default();
        for (id, expires) in [(1, 30), (2, 10), (3, 20)] {
            all.insert(id, measured(1, "r", expires));
        }
        assert_eq!(all.due(), Some(10));
        assert!(all.remove(2).is_some() && all.remove(2).is_none());
        assert!(all.pop_due(19).is_none());
        assert_eq!(all.pop_due(25).map(|one| one.expires), Some(20));
        assert!(all.pop_due(25).is_none());
        assert_eq!((all.remove(1).is_some(), all.is_empty(), all.bytes), (true, true, 0));
        assert!(all.due.is_empty() && all.replies.is_empty());
    }

    #[test]
    fn who_has_left_is_found_by_the_subject_of_the_answer() {
        let mut all = MeasuredRequests::default();
        for (id, asking, reply) in
            [(1, 1, "in.a"), (2, 1, "in.b"), (3, 2, "in.a"), (u64::MAX, 1, "in.a"), (5, 1, "x")]
        {
            all.insert(id, measured(asking, reply, 1));
        }
        let mut left = |account, filter: &str, heard: &[&[u8]]| {
            all.note_left(AccountId::new(account), filter.as_bytes());
            let mut ids = Vec::new();
            while let Some((id, account, reply)) = all.next_left() {
                assert!(ids.len() < 9, "it comes to an end");
                if heard.contains(&&*reply) {
                    all.keep(account, reply);
                } else {
                    assert!(all.remove(id).is_some());
                    ids.push(id);
                }
            }
            ids
        };
        assert_eq!(left(1, "in.a", &[b"in.a"]), [0_u64; 0]);
        assert_eq!(left(1, "in.a", &[]), [1, u64::MAX]);
        assert_eq!(left(1, "in", &[]), [0_u64; 0]);
        assert_eq!(left(1, "in.*", &[b"x"]), [2]);
        assert_eq!(left(3, ">", &[]), [0_u64; 0]);
        assert_eq!(left(2, ">", &[]), [3]);
        assert_eq!(left(1, ">", &[]), [5]);
        assert!(all.left.is_empty() && all.swept.is_empty());
    }

    #[test]
    fn requests_that_nobody_answers_have_a_bound() {
        let mut all = MeasuredRequests::default();
        for id in 0..100_000 {
            all.insert(id, measured(1, &"r".repeat(200), 1));
        }
        assert!(all.bytes <= MEASURED_BYTES_MAX && all.open.len() > 20_000, "{}", all.open.len());
    }
}
