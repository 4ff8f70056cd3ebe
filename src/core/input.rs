//! Input of a connection: the part that waits, the reason for that, and the pause of reading.

use std::collections::VecDeque;

use crate::core::Core;
use crate::core::brakes::{Brakes, Pace};
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::layers::Unwrapping;
use crate::interest::ids::ConnId;
use crate::run::Run;
use crate::run::tapped::TapQueue;

/// Bytes that may follow a CONNECT during the credential check: no client has a claim to more
/// memory before that is done. Clients wait for the PONG anyway.
pub(crate) const UNDECIDED_BYTES_MAX: usize = 16 * 1024;

/// Waiting bytes above which a connection is not read from: as much as a chunk.
const WAITING_BYTES_MAX: usize = 64 * 1024;

/// The reason for which the input of a connection is held back from its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// A responder is asked about the peer's certificate. Little is kept of what it has sent.
    Status,
    /// A credential check is under way. Little is kept of the input behind it.
    Check,
    /// A login that takes effect when none of the earlier subscriptions is left.
    Retraction,
    /// A client of MQTT whose last packet waits for JetStream, or for answers to packets before.
    Mqtt,
    /// A peer that may speak when the process has decided, or when its interest sync is complete.
    Peer,
}

/// The way of input.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum InputState {
    /// Input goes to the protocol.
    #[default]
    Open,
    /// Input waits for its turn, the oldest since this time, in nanoseconds since the start.
    Waits(u64),
    /// Input is held back.
    Held(Held),
}

/// Input of a connection that is not handled, and the reasons not to read more.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// Head of an operation that has not wholly arrived, or all input that waits or is held back.
    bytes: Vec<u8>,
    /// Length at which `bytes` is worth parsing again, in bytes.
    need_bytes: u32,
    state: InputState,
    /// Whether the connection stands in line with waiting input.
    is_in_line: bool,
    /// The end of the stream behind `bytes`, if it has come; `true` if reading failed.
    end: Option<bool>,
    pub(crate) brakes: Brakes,
    pub(crate) pace: Pace,
}

impl Input {
    /// Whether the input waits for its turn.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.state, InputState::Waits(_))
    }

    pub(crate) fn held(&self) -> Option<Held> {
        match self.state {
            InputState::Held(why) => Some(why),
            InputState::Open | InputState::Waits(_) => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the number of bytes that are not handled.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends bytes that came behind the rest.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Sets the length, in bytes, at which the operation that was cut is whole; 0 if none was.
    pub(crate) fn need(&mut self, bytes: usize) {
        self.need_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// Completes the operation that was cut with its bytes at the front of `bytes`: the rest is
    /// handled where it is. Returns the operation as soon as it is worth parsing.
    pub(crate) fn complete(&mut self, bytes: &mut &[u8]) -> Option<Vec<u8>> {
        let need_bytes = self.need_bytes as usize;
        let missing = need_bytes.saturating_sub(self.bytes.len());
        let take = match missing {
            0 | 1 => memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1),
            _ => missing.min(bytes.len()),
        };
        let (head, rest) = bytes.split_at(take);
        self.bytes.extend_from_slice(head);
        *bytes = rest;
        (self.bytes.len() >= need_bytes).then(|| std::mem::take(&mut self.bytes))
    }

    /// Takes back the part of a completed operation that was not handled.
    pub(crate) fn put_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// Keeps an operation that is cut at the end of `bytes`.
    pub(crate) fn keep_head(&mut self, bytes: &[u8]) {
        self.bytes = Vec::new();
        // The announced length is reserved only in proportion to the bytes that have come.
        let need_bytes = self.need_bytes as usize;
        self.bytes.reserve(need_bytes.saturating_add(2).min(4 * bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes out the input whose turn has come, with the time since which it has waited.
    pub(crate) fn take_turn(&mut self) -> Option<(u64, Vec<u8>)> {
        let InputState::Waits(since) = self.state else { return None };
        self.state = InputState::Open;
        Some((since, std::mem::take(&mut self.bytes)))
    }

    /// Takes out the input that was held back; `None` if none was.
    pub(crate) fn take_held(&mut self) -> Option<Vec<u8>> {
        self.held()?;
        (self.state, self.need_bytes) = (InputState::Open, 0);
        Some(std::mem::take(&mut self.bytes))
    }

    /// Notes that the stream has ended behind all that came; an end noted before counts.
    pub(crate) fn end(&mut self, failed: bool) {
        self.end.get_or_insert(failed);
    }

    /// Notes that the protocol's own stream has ended; this end counts before that of a stream
    /// around it.
    pub(crate) fn end_within(&mut self, failed: bool) {
        self.end = Some(failed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Drops all input: nothing is read any more.
    pub(crate) fn clear(&mut self) {
        (self.bytes, self.state, self.end) = (Vec::new(), InputState::Open, None);
    }

    /// Whether a connection with waiting input has to be put in line.
    pub(crate) fn wants_place(&self) -> bool {
        self.waits() && !self.is_in_line && !self.brakes.holds()
    }

    /// Notes that the connection has left the line.
    pub(crate) fn leave_line(&mut self) {
        self.is_in_line = false;
    }
}

/// Input that waits in the engine.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// Connections whose input waits for its turn.
    pub(crate) line: VecDeque<ConnId>,
    /// Memory for the next run.
    pub(crate) spare_run: Run<'static>,
    pub(crate) layers: Unwrapping,
    /// Runs that wait for receivers inside the server.
    pub(crate) tapped: TapQueue,
    /// Runs that wait for the sessions of MQTT.
    pub(crate) mqtt: TapQueue,
}

/// The result of taking the beginning of some input.
pub(crate) enum Taken {
    /// An operation of so many bytes is handled, or is part of the run.
    Bytes(usize),
    /// An operation of so many bytes is handled, and the input behind it waits: for its turn, for a
    /// login, or for another layer.
    Last(usize),
    /// No operation: the turn of the connection is over.
    Nothing,
    /// No operation: it is whole with so many bytes.
    Needs(usize),
    /// The connection is at its end; no more of its input is handled.
    Ended,
}

impl Taken {
    /// The result of an operation of `used` bytes that was handled: input behind it may have to
    /// wait, because of a login or of compression that begins.
    pub(crate) fn after(core: &Core, id: ConnId, used: usize) -> Self {
        let is_held = |conn: &Conn| conn.input.held().is_some() || conn.layers.begins_s2();
        match core.conns.get(id).is_some_and(is_held) {
            true => Self::Last(used),
            false => Self::Bytes(used),
        }
    }
}

/// The operations of one kind of connection.
pub(crate) trait Operations<'a> {
    /// Handles the operation that `bytes` begin with, or takes it into the run.
    fn take(&mut self, core: &mut Core, id: ConnId, bytes: &'a [u8], run: &mut Run<'a>) -> Taken;
    /// Publishes the run, if there is one.
    fn flush(&mut self, core: &mut Core, id: ConnId, run: &mut Run<'a>);
}

/// Handles all whole operations, as far as the budget allows and nothing holds the connection back.
/// Returns the number of bytes that they took; that is all of them when the connection is at its
/// end.
pub(crate) fn consume<'a>(
    core: &mut Core,
    id: ConnId,
    bytes: &'a [u8],
    mut operations: impl Operations<'a>,
) -> usize {
    let mut run = Run::reusing(std::mem::take(&mut core.input.spare_run));
    let (mut rest, mut need_bytes) = (bytes, 0);
    while !rest.is_empty() {
        match operations.take(core, id, rest, &mut run) {
            Taken::Bytes(used) => rest = &rest[used..],
            Taken::Last(used) => {
                rest = &rest[used..];
                break;
            }
            Taken::Nothing => break,
            Taken::Needs(bytes) => {
                need_bytes = bytes;
                break;
            }
            Taken::Ended => {
                rest = &[];
                break;
            }
        }
    }
    operations.flush(core, id, &mut run);
    core.input.spare_run = Run::reusing(run);
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else {
        return bytes.len();
    };
    conn.input.need(need_bytes);
    bytes.len() - rest.len()
}

impl Core {
    /// Whether the input of a connection may be handled further.
    pub(crate) fn may_go_on(&self, id: ConnId) -> bool {
        !self.budget.is_spent()
            && self.conns.get(id).is_some_and(|conn| conn.is_open() && !conn.input.brakes.holds())
    }

    /// Lets the input of a connection wait for its turn.
    pub(crate) fn wait(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.input.waits() {
            conn.input.state = InputState::Waits(self.times.arrived);
        }
        self.stand_in_line(id);
    }

    /// Holds back the input of a connection, which is not read from meanwhile.
    pub(crate) fn hold(&mut self, id: ConnId, why: Held) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.input.state = InputState::Held(why);
        self.brake(id, |brakes| brakes.held = true);
    }

    /// Puts a connection with waiting input in line for its turn, unless it is held back.
    pub(crate) fn stand_in_line(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.input.waits()) else { return };
        let has_much = conn.input.len() > WAITING_BYTES_MAX;
        if conn.input.wants_place() {
            conn.input.is_in_line = true;
            self.input.line.push_back(id);
        }
        if has_much {
            self.brake(id, |brakes| brakes.turn = true);
        } else {
            self.release(id, |brakes| brakes.turn = false);
        }
    }
}

/// Ends a connection when all its input is handled, if the end of the stream has come.
pub(crate) fn end_if_heard(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    if conn.has_unheard() {
        return;
    }
    if let Some(failed) = conn.input.end.take() {
        let reason = if failed { Reason::ReadError } else { Reason::ClientClosed };
        core.fail(id, None, reason);
    }
}

impl Conn {
    /// Whether input is still to be handled that waits for its turn, for subscribers that are
    /// behind, for the login, or in a layer around the protocol.
    fn has_unheard(&self) -> bool {
        self.input.state != InputState::Open || self.layers.waits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_completed_with_nothing_but_what_belongs_to_it() {
        let mut input = Input::default();
        input.need(6);
        input.keep_head(b"PI");
        let mut bytes = &b"NG"[..];
        assert_eq!((input.complete(&mut bytes), input.len(), bytes), (None, 4, &b""[..]));
        let mut bytes = &b"\r\nPING"[..];
        assert_eq!(input.complete(&mut bytes).as_deref(), Some(&b"PING\r\n"[..]));
        assert_eq!((input.is_empty(), bytes), (true, &b"PING"[..]));
    }

    #[test]
    fn what_is_held_back_gets_no_turn_and_comes_out_once() {
        let mut input = Input { state: InputState::Held(Held::Check), ..Input::default() };
        input.push(b"PING\r\n");
        assert!(!input.waits() && !input.wants_place() && input.take_turn().is_none());
        assert_eq!(input.take_held().as_deref(), Some(&b"PING\r\n"[..]));
        assert_eq!((input.held(), input.take_held()), (None, None));
    }

    #[test]
    fn the_end_that_a_layer_tells_counts_before_that_of_what_is_around_it() {
        let mut input = Input::default();
        input.end(true);
        input.end_within(false);
        input.end(true);
        assert_eq!(input.end, Some(false));
        input.clear();
        assert!(!input.has_ended());
    }
}
