//! Kinds of client connections that a user may be bound to.

use std::str::FromStr;

/// The kind of connection that a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionType {
    /// A connection of the client protocol.
    Standard,
    /// The client protocol in a WebSocket.
    Websocket,
    /// A leaf connection of another server.
    Leafnode,
    /// A leaf connection in a WebSocket.
    LeafnodeWs,
    /// A connection of MQTT.
    Mqtt,
    /// MQTT in a WebSocket.
    MqttWs,
    /// A connection from within the process.
    InProcess,
}

impl FromStr for ConnectionType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_uppercase().as_str() {
            "STANDARD" => Ok(Self::Standard),
            "WEBSOCKET" => Ok(Self::Websocket),
            "LEAFNODE" => Ok(Self::Leafnode),
            "LEAFNODE_WS" => Ok(Self::LeafnodeWs),
            "MQTT" => Ok(Self::Mqtt),
            "MQTT_WS" => Ok(Self::MqttWs),
            "IN_PROCESS" => Ok(Self::InProcess),
            _ => Err("a connection type is one of STANDARD, WEBSOCKET, LEAFNODE, LEAFNODE_WS, \
                      MQTT, MQTT_WS and IN_PROCESS"
                .to_owned()),
        }
    }
}
