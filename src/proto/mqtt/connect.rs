//! CONNECT: the client's id, credentials and will.

use super::{ConnectCode, MqttError, Qos, check_text, split_text, split_u16};

/// The level of MQTT 3.1.1.
const LEVEL: u8 = 4;

/// Bits of the flags.
mod flag {
    pub(super) const RESERVED: u8 = 1;
    pub(super) const CLEAN: u8 = 2;
    pub(super) const WILL: u8 = 4;
    pub(super) const WILL_QOS: u8 = 0x18;
    pub(super) const WILL_RETAIN: u8 = 0x20;
    pub(super) const PASSWORD: u8 = 0x40;
    pub(super) const USER: u8 = 0x80;
}

/// The contents of CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MqttConnect<'a> {
    /// The client's id; empty if the server is to make one, which only clean sessions may.
    pub id: &'a str,
    /// Whether the session is to begin, and to end, without state.
    pub is_clean: bool,
    /// Seconds between two packets; 0 is without limit.
    pub keep_alive_s: u16,
    /// The will, if there is one.
    pub will: Option<MqttWill<'a>>,
    /// The user's name.
    pub user: Option<&'a str>,
    /// The password: any bytes.
    pub password: Option<&'a [u8]>,
}

/// A message that the server publishes when the connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MqttWill<'a> {
    /// The topic.
    pub topic: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
    /// The level of service.
    pub qos: Qos,
    /// Whether the message is to be retained.
    pub retain: bool,
}

/// The fault of a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFault {
    /// A violation of the protocol: there is no answer.
    Broken(MqttError),
    /// A refusal with this code.
    Refused(ConnectCode),
}

impl From<MqttError> for ConnectFault {
    fn from(error: MqttError) -> Self {
        Self::Broken(error)
    }
}

const fn broken(why: &'static str) -> ConnectFault {
    ConnectFault::Broken(MqttError(why))
}

const CUT: ConnectFault = broken("CONNECT cut short");

/// Reads the body of CONNECT.
///
/// # Errors
///
/// Returns the fault, and with it whether the client is told.
pub fn parse(body: &[u8]) -> Result<MqttConnect<'_>, ConnectFault> {
    let (name, rest) = split_text(body).ok_or(CUT)?;
    if name != b"MQTT" {
        return Err(broken("the protocol's name is not MQTT"));
    }
    let (&[level, flags], rest) = rest.split_first_chunk::<2>().ok_or(CUT)?;
    if level != LEVEL {
        return Err(ConnectFault::Refused(ConnectCode::WrongLevel));
    }
    check_flags(flags)?;
    let (keep_alive_s, rest) = split_u16(rest).ok_or(CUT)?;
    let is_clean = flags & flag::CLEAN != 0;
    let (id, rest) = text(rest, ConnectCode::WrongId)?;
    check_id(id, is_clean)?;
    let (will, rest) = will(flags, rest)?;
    let (user, rest) = match flags & flag::USER != 0 {
        true => text(rest, ConnectCode::WrongUser).map(|(user, rest)| (Some(user), rest))?,
        false => (None, rest),
    };
    if user.is_some_and(str::is_empty) {
        return Err(ConnectFault::Refused(ConnectCode::WrongUser));
    }
    let (password, rest) = match flags & flag::PASSWORD != 0 {
        true => split_text(rest).map(|(password, rest)| (Some(password), rest)).ok_or(CUT)?,
        false => (None, rest),
    };
    if !rest.is_empty() {
        return Err(broken("bytes behind the end of CONNECT"));
    }
    Ok(MqttConnect { id, is_clean, keep_alive_s, will, user, password })
}

fn check_flags(flags: u8) -> Result<(), ConnectFault> {
    let has_will = flags & flag::WILL != 0;
    if flags & flag::RESERVED != 0 {
        Err(broken("reserved flag in CONNECT"))
    } else if flags & flag::WILL_QOS == flag::WILL_QOS {
        Err(broken("will of QoS 3"))
    } else if !has_will && flags & (flag::WILL_QOS | flag::WILL_RETAIN) != 0 {
        Err(broken("QoS or retain of a will without a will"))
    } else if flags & flag::USER == 0 && flags & flag::PASSWORD != 0 {
        Err(broken("password without a user"))
    } else {
        Ok(())
    }
}

/// Checks a client's id, which becomes a token of subjects.
fn check_id(id: &str, is_clean: bool) -> Result<(), ConnectFault> {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || ".*>".contains(c);
    if (id.is_empty() && !is_clean) || id.contains(is_bad) {
        return Err(ConnectFault::Refused(ConnectCode::WrongId));
    }
    Ok(())
}

fn will(flags: u8, rest: &[u8]) -> Result<(Option<MqttWill<'_>>, &[u8]), ConnectFault> {
    if flags & flag::WILL == 0 {
        return Ok((None, rest));
    }
    let (topic, rest) = split_text(rest).ok_or(CUT)?;
    check_text(topic)?;
    if topic.is_empty() {
        return Err(broken("the will's topic is empty"));
    }
    let (payload, rest) = split_text(rest).ok_or(CUT)?;
    let (qos, retain) = ((flags & flag::WILL_QOS) >> 3, flags & flag::WILL_RETAIN != 0);
    Ok((Some(MqttWill { topic, payload, qos, retain }), rest))
}

/// Splits off a text, which is refused with `code` if it is none.
fn text(bytes: &[u8], code: ConnectCode) -> Result<(&str, &[u8]), ConnectFault> {
    let (text, rest) = split_text(bytes).ok_or(CUT)?;
    check_text(text).map_err(|_| ConnectFault::Refused(code))?;
    let text = core::str::from_utf8(text).map_err(|_| ConnectFault::Refused(code))?;
    Ok((text, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
        [b"\0\x04MQTT", &[level, flags, 0, 30][..], rest].concat()
    }

    #[test]
    fn all_parts_are_read() {
        let body = body(4, 0xcc, b"\0\x04dev1\0\x06will/t\0\x03bye\0\x01u\0\x01p");
        let will = MqttWill { topic: b"will/t", payload: b"bye", qos: 1, retain: false };
        let wanted = MqttConnect {
            id: "dev1",
            is_clean: false,
            keep_alive_s: 30,
            will: Some(will),
            user: Some("u"),
            password: Some(b"p"),
        };
        assert_eq!(parse(&body), Ok(wanted));
        for cut in 0..body.len() {
            assert!(parse(&body[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn faults_are_told_or_not_as_nats_server_has_it() {
        let code = |code| Err(ConnectFault::Refused(code));
        assert_eq!(parse(&body(5, 2, b"\0\x01x")), code(ConnectCode::WrongLevel));
        assert_eq!(parse(&body(4, 0, b"\0\0")), code(ConnectCode::WrongId));
        assert_eq!(parse(&body(4, 2, b"\0\x03a.b")), code(ConnectCode::WrongId));
        assert_eq!(parse(&body(4, 2, b"\0\x03a b")), code(ConnectCode::WrongId));
        assert_eq!(parse(&body(4, 0x82, b"\0\x01x\0\0")), code(ConnectCode::WrongUser));
        assert_eq!(parse(&body(4, 0x82, b"\0\x01x\0\x01\xff")), code(ConnectCode::WrongUser));
        assert_eq!(parse(&body(4, 2, b"\0\x01\0")), code(ConnectCode::WrongId));
        for (flags, rest) in [
            (0x03, &b"\0\x01x"[..]),
            (0x1e, b"\0\x01x\0\x01w\0\x01m"),
            (0x0a, b"\0\x01x"),
            (0x22, b"\0\x01x"),
            (0x42, b"\0\x01x\0\x01p"),
            (0x06, b"\0\x01x\0\0\0\x01m"),
            (0x02, b"\0\x01xy"),
        ] {
            let fault = parse(&body(4, flags, rest)).expect_err("a fault");
            assert!(matches!(fault, ConnectFault::Broken(_)), "{flags:x}: {fault:?}");
        }
        assert!(matches!(parse(b"\0\x06MQIsdp\x03\x02\0\0\0\x01x"), Err(ConnectFault::Broken(_))));
    }
}
