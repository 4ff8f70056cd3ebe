//! Questions to the monitoring.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::{Broker, PATIENCE};

/// The port of the monitoring, as the log names it.
pub(crate) fn port(broker: &Broker) -> u16 {
    let banner = broker.banner();
    let line = banner.lines().find(|line| line.contains("Starting http monitor on "));
    let port = line.and_then(|line| line.rsplit(':').next()).and_then(|port| port.parse().ok());
    port.unwrap_or_else(|| panic!("no monitoring port in\n{banner}"))
}

/// Status, head in lower case, and body of the answer to a GET.
pub(crate) fn get(broker: &Broker, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port(broker))).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), head.to_ascii_lowercase(), body.to_owned())
}

/// The body of an answer in JSON.
pub(crate) fn json(broker: &Broker, path: &str) -> Value {
    let (status, head, body) = get(broker, path);
    assert_eq!(status, 200, "{path}: {head}{body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error} in {body}"))
}
