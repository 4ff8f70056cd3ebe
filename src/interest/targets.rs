//! Receivers of one subject, grouped so that each group is rendered once.

use std::rc::Rc;

use smallvec::SmallVec;

use crate::interest::by_name::{Name, Named};
use crate::interest::cost::{
    DELIVERY_WORK, EXIT_WORK, MESSAGE_WORK, PICK_WORK, Price, RENDER_WORK,
};
use crate::interest::ids::ShardSet;
use crate::interest::outlets::Exit;
use crate::interest::reach::{Kind, LinkSlot, ShardsByKind, Via};
use crate::interest::subscription::SubKey;
use crate::interest::taps::Tap;
use crate::interest::{Behind, Remote, count};
use crate::output::Policy;
use crate::proto::encode;

/// A local subscription that a subject reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) conn: u32,
    pub(crate) sub: SubKey,
}

/// The beginning of all messages on one subject for subscriptions with the same sid.
#[derive(Debug)]
pub(crate) struct Prefix {
    /// `HMSG <subject> <sid> `, of which MSG is without the first byte.
    text: Box<[u8]>,
    sid_bytes: u32,
}

impl Prefix {
    pub(crate) fn new(subject: &[u8], sid: &[u8]) -> Self {
        let mut text = Vec::with_capacity(b"HMSG   ".len() + subject.len() + sid.len());
        encode::msg_prefix(&mut text, true, subject, sid);
        Self { text: text.into(), sid_bytes: count(sid.len()) }
    }

    pub(crate) fn sid(&self) -> &[u8] {
        let end = self.text.len() - 1;
        &self.text[end - self.sid_bytes as usize..end]
    }

    /// Returns the beginning of HMSG, or of MSG without `headers`.
    #[inline]
    pub(crate) fn of(&self, headers: bool) -> &[u8] {
        &self.text[usize::from(!headers)..]
    }

    /// Makes this the beginning of messages on another subject.
    fn rename(&mut self, subject: &[u8]) {
        let start = b"HMSG ".len();
        let end = self.text.len() - self.sid_bytes as usize - 2;
        if end - start == subject.len() {
            self.text[start..end].copy_from_slice(subject);
        } else {
            *self = Self::new(subject, self.sid());
        }
    }

    fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// Local plain subscriptions that get identical bytes.
#[derive(Debug)]
pub(crate) struct SidGroup {
    pub(crate) prefix: Prefix,
    /// Whether the members take headers.
    pub(crate) headers: bool,
    pub(crate) members: Vec<Member>,
}

/// A queue group over all filters that the subject matches.
#[derive(Debug)]
pub(crate) struct QueueTargets {
    pub(crate) name: Rc<[u8]>,
    pub(crate) local: Vec<Member>,
    /// Members behind own links, those at leaf nodes among them.
    pub(crate) links: SmallVec<[Behind; 1]>,
    /// Members on other shards.
    pub(crate) remote: SmallVec<[Remote; 4]>,
}

impl Name for QueueTargets {
    fn name(&self) -> &Rc<[u8]> {
        &self.name
    }
}

/// Everything one subject resolves to on this shard.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    pub(crate) groups: Vec<SidGroup>,
    /// Local plain subscriptions over all groups.
    pub(crate) members: usize,
    pub(crate) queues: Named<QueueTargets>,
    /// Other shards with plain interest.
    pub(crate) shards: ShardsByKind,
    /// Other shards that a client's message goes to.
    pub(crate) shards_from_client: ShardSet,
    /// Own links to servers with plain interest.
    pub(crate) links: SmallVec<[LinkSlot; 4]>,
    /// Exits into other accounts.
    pub(crate) exits: Vec<Exit>,
    /// Receivers inside the server, on this shard.
    pub(crate) taps: SmallVec<[Tap; 1]>,
    /// Overflow policy, by which plain subscriptions that are behind miss messages rather than
    /// being cut.
    pub(crate) overflow: Option<Rc<Policy>>,
    /// Work of delivering messages to these receivers.
    pub(crate) price: Price,
    /// Hash of the subject, equal on all shards.
    pub(crate) subject_hash: u64,
}

impl Targets {
    /// Makes these the targets of another subject with this hash, which has the same receivers.
    pub(super) fn rename(&mut self, subject: &[u8], hash: u64) {
        self.subject_hash = hash;
        self.groups.iter_mut().for_each(|group| group.prefix.rename(subject));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members == 0
            && self.queues.is_empty()
            && !self.has_plain_elsewhere()
            && !self.leaves_account()
    }

    /// Whether a client's message surely reaches another shard or server.
    fn has_plain_elsewhere(&self) -> bool {
        !self.shards_from_client.is_empty() || !self.links.is_empty()
    }

    /// Returns the other shards that a message from such a connection goes to, for plain interest.
    #[inline]
    pub(crate) fn shards_from(&self, from: Kind, subject: &[u8]) -> ShardSet {
        match from {
            Kind::Client => self.shards_from_client,
            from => self.shards.reachable_from(from, subject),
        }
    }

    /// Whether all receivers in the account are plain subscriptions of this shard.
    pub(crate) fn are_plain_and_here(&self) -> bool {
        self.queues.is_empty() && !self.has_plain_elsewhere()
    }

    /// Whether clients of this server receive the subject in its account.
    pub(crate) fn has_clients(&self) -> bool {
        let is_clients = |remote: &Remote| remote.via == Via::CLIENTS;
        let remote = |group: &QueueTargets| group.remote.iter().any(is_clients);
        self.members > 0
            || !self.shards.of(Kind::Client).is_empty()
            || self.queues.iter().any(|group| !group.local.is_empty() || remote(group))
    }

    /// Whether this queue group, by its position, is the only receiver behind an own link.
    ///
    /// Plain subscribers behind a link get every message that comes over it. So a message that is
    /// passed on late, for a member that has gone, goes only over links without other receivers.
    pub(crate) fn is_only_for(&self, link: LinkSlot, group: usize) -> bool {
        let goes = |queue: &QueueTargets| queue.links.iter().any(|other| other.link == link);
        let mut groups = self.queues.iter().enumerate();
        !self.links.contains(&link) && !groups.any(|(at, queue)| at != group && goes(queue))
    }

    /// Whether messages go anywhere else than to subscriptions of the account.
    pub(crate) fn leaves_account(&self) -> bool {
        !self.exits.is_empty() || !self.taps.is_empty()
    }

    /// Returns the work of delivering messages to these receivers. The part in other accounts is
    /// only a guess, for the length of runs; it is charged there.
    pub(crate) fn price(&self) -> Price {
        let wide = |count: usize| count as u64;
        let (groups, queues) = (wide(self.groups.len()), wide(self.queues.len()));
        let (members, links) = (wide(self.members), wide(self.links.len()));
        let exits = wide(self.exits.len() + self.taps.len());
        let once = DELIVERY_WORK * members;
        let apart = if self.overflow.is_some() { once } else { 0 };
        Price {
            once,
            each: MESSAGE_WORK
                + RENDER_WORK * (groups + links)
                + PICK_WORK * queues
                + EXIT_WORK * exits
                + apart,
            copies: groups + queues + links + exits,
            members,
        }
    }

    /// Returns the memory that these targets take, in bytes, about.
    pub(crate) fn cost(&self) -> usize {
        let members: usize = self.queues.iter().map(|queue| queue.local.len()).sum();
        let prefixes: usize = self.groups.iter().map(|group| group.prefix.bytes()).sum();
        200 + prefixes
            + 120 * (self.groups.len() + self.queues.len() + self.exits.len())
            + 8 * (self.members + members)
    }
}
