//! Gates of a leaf connection: the subjects that pass it, in each direction.

use crate::auth::grants::Grants;
use crate::interest::outlets::LOOP_PREFIX;
use crate::proto::route::Permitted;
use crate::subject;

/// Subjects that are subject to no permission: answers to services, acknowledgements, replies over
/// gateways, and what loops are detected by.
const EXEMPT: [&[u8]; 4] = [b"_R_.", b"_GR_.", b"$JS.ACK.", LOOP_PREFIX];

/// Subjects of JetStream that stay on their side: its API is reached by the name of a domain.
const JETSTREAM: [&[u8]; 3] = [b"$JS.API.", b"$KV.", b"$OBJ."];

/// Filters of subjects of one direction.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// `None`: all.
    allow: Option<Vec<Box<[u8]>>>,
    deny: Vec<Box<[u8]>>,
}

/// Filters in one list, at most: a hub says what it wants to have checked for each message.
const FILTERS_MAX: usize = 4096;

impl Gate {
    /// A gate that lets nothing of `deny` pass.
    pub(crate) fn denying(deny: &[String]) -> Self {
        Self { allow: None, deny: filters(deny) }
    }

    /// A gate for what a peer permits.
    pub(crate) fn permitting(permitted: Option<&Permitted>) -> Self {
        let Some(Permitted { allow, deny }) = permitted else { return Self::default() };
        Self { allow: (!allow.is_empty()).then(|| filters(allow)), deny: filters(deny) }
    }

    fn is_open(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }

    /// Whether a message to `subject` passes.
    fn passes(&self, subject: &[u8]) -> bool {
        let has = |list: &Vec<Box<[u8]>>| list.iter().any(|one| subject::matches(one, subject));
        self.allow.as_ref().is_none_or(has) && !has(&self.deny)
    }

    /// Whether any message to a subject of `filter` may pass.
    fn may_pass(&self, filter: &[u8]) -> bool {
        let is_denied = self.deny.iter().any(|one| subject::covers(one, filter));
        let overlaps = |list: &Vec<Box<[u8]>>| list.iter().any(|one| subject::overlap(one, filter));
        !is_denied && self.allow.as_ref().is_none_or(overlaps)
    }
}

fn filters(texts: &[String]) -> Vec<Box<[u8]>> {
    let first_words = texts.iter().filter_map(|text| text.split_ascii_whitespace().next());
    let valid = first_words.map(str::as_bytes).filter(|filter| subject::is_valid_filter(filter));
    valid.take(FILTERS_MAX).map(Into::into).collect()
}

/// The gates of a leaf connection: by configuration at each end, and by the user's permissions at
/// the hub.
#[derive(Debug, Default)]
pub(crate) struct LeafGates {
    /// For what is sent.
    out: Vec<Gate>,
    /// For what comes.
    into: Vec<Gate>,
    /// Whether requests to JetStream do not pass.
    pub(crate) keeps_jetstream: bool,
}

impl LeafGates {
    /// Adds a gate for what is sent.
    pub(crate) fn add_out(&mut self, gate: Gate) {
        self.out.extend((!gate.is_open()).then_some(gate));
    }

    /// Adds a gate for what comes.
    pub(crate) fn add_into(&mut self, gate: Gate) {
        self.into.extend((!gate.is_open()).then_some(gate));
    }

    /// Whether every subject passes in both directions, but those of JetStream.
    fn are_open(&self) -> bool {
        self.out.is_empty() && self.into.is_empty()
    }

    fn keeps(&self, subject: &[u8]) -> bool {
        self.keeps_jetstream
            && subject.first() == Some(&b'$')
            && JETSTREAM.iter().any(|prefix| subject.starts_with(prefix))
    }

    /// Whether a message to `subject` is sent, by the permissions of the other end's user, too.
    pub(crate) fn sends(&self, user: Option<&Grants>, subject: &[u8]) -> bool {
        if self.keeps(subject) {
            return false;
        }
        if self.are_open() && user.is_none() {
            return true;
        }
        is_exempt(subject)
            || (self.out.iter().all(|gate| gate.passes(subject))
                && user.is_none_or(|user| user.may_subscribe(subject, None)))
    }

    /// Whether a message to `subject` is taken from the other end, whatever its user may publish.
    pub(crate) fn takes(&self, subject: &[u8]) -> bool {
        if self.keeps(subject) {
            return false;
        }
        self.into.is_empty()
            || is_exempt(subject)
            || self.into.iter().all(|gate| gate.passes(subject))
    }

    /// Whether own interest in `filter` is told, by the permissions of the other end's user, too.
    pub(crate) fn tells(&self, user: Option<&Grants>, filter: &[u8]) -> bool {
        if self.keeps(filter) {
            return false;
        }
        let may_publish =
            || user.is_none_or(|user| !subject::is_literal(filter) || user.may_publish(filter));
        is_exempt(filter) || (self.into.iter().all(|gate| gate.may_pass(filter)) && may_publish())
    }

    /// Whether interest of the other end in `filter` counts.
    pub(crate) fn hears(&self, filter: &[u8]) -> bool {
        !self.keeps(filter)
            && (is_exempt(filter) || self.out.iter().all(|gate| gate.may_pass(filter)))
    }
}

pub(crate) fn is_exempt(subject: &[u8]) -> bool {
    matches!(subject.first(), Some(b'_' | b'$'))
        && EXEMPT.iter().any(|prefix| subject.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(allow: &[&str], deny: &[&str]) -> Permitted {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Permitted { allow: texts(allow), deny: texts(deny) }
    }

    #[test]
    fn a_wildcard_that_overlaps_is_told_and_its_messages_are_filtered_one_by_one() {
        let mut gates = LeafGates::default();
        gates.add_into(Gate::permitting(Some(&permitted(&["ok.>"], &["ok.no"]))));
        for (filter, told) in [("ok.a", true), ("*.a", true), ("no.a", false), ("ok.no", false)] {
            assert_eq!(gates.tells(None, filter.as_bytes()), told, "{filter}");
        }
        for (subject, taken) in [("ok.a", true), ("ok.no", false), ("no.a", false)] {
            assert_eq!(gates.takes(subject.as_bytes()), taken, "{subject}");
            assert!(gates.sends(None, subject.as_bytes()), "the other direction is open");
        }
        for exempt in ["_R_.a.b", "_GR_.a", "$JS.ACK.S.C.1", "$LDS.x"] {
            assert!(gates.takes(exempt.as_bytes()) && gates.tells(None, exempt.as_bytes()));
        }
    }

    #[test]
    fn jetstream_stays_on_its_side_but_for_requests_that_name_a_domain() {
        let gates = LeafGates { keeps_jetstream: true, ..LeafGates::default() };
        for subject in ["$JS.API.INFO", "$JS.API.>", "$KV.b.k", "$OBJ.b"] {
            let subject = subject.as_bytes();
            assert!(!gates.sends(None, subject) && !gates.takes(subject), "{subject:?}");
            assert!(!gates.tells(None, subject) && !gates.hears(subject), "{subject:?}");
        }
        for subject in ["$JS.hub.API.INFO", "$JS.ACK.S.C.1", "a"] {
            assert!(gates.sends(None, subject.as_bytes()) && gates.takes(subject.as_bytes()));
        }
    }
}
