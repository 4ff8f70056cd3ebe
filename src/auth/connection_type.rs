//! Kinds of client connections that a user may be bound to.

use std::str::FromStr;

/// What kind of connection a client comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionType {
    /// The client protocol.
    Standard,
    /// The same in a WebSocket.
    Websocket,
    /// Another server's, as a leaf.
    Leafnode,
    /// The same in a WebSocket.
    LeafnodeWs,
    /// MQTT.
    Mqtt,
    /// The same in a WebSocket.
    MqttWs,
    /// From within the process.
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
