//! Input that waits in the engine: its connection has had its turn, or is held back.
//!
//! Input is handled as far as the budget of the turn allows, and not while subscribers that get its
//! messages are behind. The rest waits behind the head of the operation that was cut, and its
//! connection stands in line. The place of the cut makes no difference. A connection with much
//! input waiting is not read from, so there is never more than that and what the reactor had in
//! hand.

use crate::client::ClientOperations;
use crate::client::login::{self, LoginNews};
use crate::core::input::{self, Held, UNDECIDED_BYTES_MAX};
use crate::core::{Core, backpressure};
use crate::engine::{Engine, peer_status};
use crate::gateway::GatewayOperations;
use crate::interest::ids::ConnId;
use crate::leaf::{LeafOperations, handshake};
use crate::mqtt::{self, MqttOperations};
use crate::route::RouteOperations;

impl Engine {
    /// Handles bytes of a client or a peer. The places where they are cut make no difference.
    pub fn on_bytes(&mut self, id: ConnId, bytes: &[u8]) {
        self.core.budget.serve_input();
        match self.core.conns.get(id) {
            Some(conn) if conn.layers.is_bare() => self.on_plaintext(id, bytes),
            Some(_) => self.on_wrapped(id, bytes),
            None => {}
        }
        backpressure::keep_pace(&mut self.core, id, bytes.len());
    }

    /// Hands input to the protocol of its connection. Returns the number of bytes handled; that is
    /// all of them when the connection is at its end.
    fn consume(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let conn = self.core.conns.get(id);
        let (is_link, is_mqtt) =
            conn.map_or((false, false), |conn| (conn.link.is_some(), conn.transport.is_mqtt()));
        match (is_link, is_mqtt) {
            (false, false) => {
                input::consume(&mut self.core, id, bytes, ClientOperations::default())
            }
            (true, _) => consume_of_server(&mut self.core, id, bytes),
            (false, true) => {
                input::consume(&mut self.core, id, bytes, MqttOperations(&mut self.mqtt))
            }
        }
    }

    /// Takes news about a login: the input that waited for it goes on, or the client is sent away.
    pub fn on_login_news(&mut self, id: ConnId, news: LoginNews) {
        if let LoginNews::PeerStatus(is_good) = news {
            return peer_status::on_peer_status(self, id, is_good);
        }
        let Some(rest) = login::on_news(&mut self.core, id, news) else { return };
        handshake::admit_if_in(&mut self.core, id);
        mqtt::open::on_login(&mut self.mqtt, &mut self.core, id);
        self.go_on_behind(id, &rest);
    }

    /// Goes on with the input that was held back until a login was decided.
    pub(super) fn go_on_behind(&mut self, id: ConnId, rest: &[u8]) {
        if self.core.conns.get(id).is_some_and(|conn| conn.input.held().is_none()) {
            self.core.release(id, |brakes| brakes.held = false);
        }
        self.on_plaintext(id, rest);
        input::end_if_heard(&mut self.core, id);
    }

    /// Handles bytes of the protocol itself, without the layers around it.
    pub(crate) fn on_plaintext(&mut self, id: ConnId, mut bytes: &[u8]) {
        if put_off(self, id, bytes) {
            return;
        }
        while let Some(conn) = self.core.conns.get_mut(id).filter(|conn| !conn.input.is_empty()) {
            let Some(mut operation) = conn.input.complete(&mut bytes) else { return };
            let used = self.consume(id, &operation);
            let Some(conn) = self.core.conns.get_mut(id).filter(|conn| conn.is_open()) else {
                return;
            };
            if used < operation.len() {
                operation.drain(..used);
                conn.input.put_back(operation);
            }
            if bytes.is_empty() || put_off(self, id, bytes) {
                return;
            }
        }
        let used = self.consume(id, bytes);
        if used < bytes.len() && put_off(self, id, &bytes[used..]) {
            return;
        }
        if let Some(conn) = self.core.conns.get_mut(id)
            && conn.is_open()
            && used < bytes.len()
        {
            conn.input.keep_head(&bytes[used..]);
        }
    }

    /// Goes on with input that waits, each connection in its turn.
    pub(crate) fn advance_input(&mut self) {
        while self.core.budget.has_left()
            && let Some(id) = self.core.input.line.pop_front()
        {
            self.go_on(id);
        }
    }

    fn go_on(&mut self, id: ConnId) {
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        conn.input.leave_line();
        if !conn.is_open() || conn.input.brakes.holds() {
            return;
        }
        let Some((since, mut rest)) = conn.input.take_turn() else { return };
        let arrived = std::mem::replace(&mut self.core.times.arrived, since);
        self.core.budget.serve_input();
        let used = self.consume(id, &rest);
        if let Some(conn) = self.core.conns.get_mut(id).filter(|conn| conn.is_open()) {
            rest.drain(..used);
            if conn.input.held().is_some() || conn.layers.begins_s2() {
                put_off(self, id, &rest);
            } else {
                // Memory that only a long wait needed is not kept.
                rest.shrink_to(4 * rest.len());
                conn.input.put_back(rest);
                if !conn.input.is_empty() && !self.core.may_go_on(id) {
                    self.core.wait(id);
                }
            }
        }
        self.core.times.arrived = arrived;
        backpressure::keep_pace(&mut self.core, id, 0);
        let waits = self.core.conns.get(id).is_some_and(|conn| conn.input.waits());
        if !waits {
            self.core.release(id, |brakes| brakes.turn = false);
            self.resume_unwrapping(id);
        }
    }
}

/// Admits a client that waits until its subscriptions from before its CONNECT are gone.
pub(super) fn admit_if_left(engine: &mut Engine, id: ConnId) {
    let held = engine.core.conns.get(id).and_then(|conn| conn.input.held());
    if held == Some(Held::Retraction) {
        engine.on_login_news(id, LoginNews::Checked(true));
    }
}

/// Handles what clients of MQTT wait for, as far as JetStream answers in this turn.
pub(super) fn advance_mqtt(engine: &mut Engine) {
    for _ in 0..mqtt::ROUNDS_MAX {
        if !engine.mqtt.has_work(&engine.core) {
            return;
        }
        engine.mqtt.turn(&mut engine.core);
        for id in engine.mqtt.take_resumed() {
            let conn = engine.core.conns.get_mut(id).filter(|conn| conn.is_open());
            if let Some(conn) = conn.filter(|conn| conn.input.held() == Some(Held::Mqtt))
                && let Some(rest) = conn.input.take_held()
            {
                engine.go_on_behind(id, &rest);
            }
        }
        engine.jetstream.turn(&mut engine.core);
    }
}

/// Hands input to the protocol of a link. Returns the number of bytes handled.
fn consume_of_server(core: &mut Core, id: ConnId, bytes: &[u8]) -> usize {
    if let Some(operations) = LeafOperations::of(core, id) {
        input::consume(core, id, bytes, operations)
    } else if let Some(operations) = RouteOperations::of(core, id) {
        input::consume(core, id, bytes, operations)
    } else if let Some(operations) = GatewayOperations::of(core, id) {
        input::consume(core, id, bytes, operations)
    } else {
        bytes.len()
    }
}

/// Puts off input that cannot be handled now; `false` if it can.
fn put_off(engine: &mut Engine, id: ConnId, bytes: &[u8]) -> bool {
    let is_spent = engine.core.budget.is_spent();
    let Some(conn) = engine.core.conns.get_mut(id).filter(|conn| conn.is_open()) else {
        return false;
    };
    if let Some(why) = conn.input.held() {
        // A peer goes on with all its interest at once; it is not read from meanwhile.
        let is_undecided = matches!(why, Held::Check | Held::Status);
        if is_undecided && conn.input.len() + bytes.len() > UNDECIDED_BYTES_MAX {
            tracing::error!(
                "{} - over {UNDECIDED_BYTES_MAX} bytes received before the end of the login",
                conn.label()
            );
            login::refuse_login(&mut engine.core, id);
        } else {
            conn.input.push(bytes);
        }
        return true;
    }
    // Compression may have begun with the last operation.
    if conn.layers.begins_s2() {
        conn.layers.put_aside(bytes);
        return true;
    }
    let must_wait = conn.input.waits() || is_spent || conn.input.brakes.holds();
    if must_wait && !bytes.is_empty() {
        conn.input.push(bytes);
        engine.core.wait(id);
    }
    must_wait
}
