//! One publisher, many subscribers, two servers in one process: what each message becomes.
//!
//! `cargo run --release --example fan_out -- [subscribers] [messages]`

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use shardcast::Server;

type Failure = Box<dyn Error + Send + Sync>;

const PAYLOAD: &str = "a message for everybody";

/// A connection that has said hello, with lines to be read.
fn connect(port: u16) -> Result<BufReader<TcpStream>, Failure> {
    let mut conn = BufReader::new(TcpStream::connect(("127.0.0.1", port))?);
    conn.read_line(&mut String::new())?;
    conn.get_mut().write_all(b"CONNECT {\"verbose\":false}\r\n")?;
    Ok(conn)
}

fn sync(conn: &mut BufReader<TcpStream>) -> Result<(), Failure> {
    conn.get_mut().write_all(b"PING\r\n")?;
    let mut line = String::new();
    conn.read_line(&mut line)?;
    if line == "PONG\r\n" { Ok(()) } else { Err(line.into()) }
}

/// Reads until all messages are there; tells of the first sign that any can be.
fn read(
    mut conn: BufReader<TcpStream>,
    messages: usize,
    ready: &Sender<()>,
) -> Result<usize, Failure> {
    let (mut line, mut count, mut is_ready) = (String::new(), 0, false);
    while count < messages {
        line.clear();
        if conn.read_line(&mut line)? == 0 {
            return Err("the server has gone".into());
        }
        if line.starts_with("MSG ready") && !is_ready {
            is_ready = true;
            ready.send(())?;
        }
        count += usize::from(line.starts_with("MSG all"));
    }
    Ok(count)
}

#[expect(clippy::disallowed_methods, reason = "a demonstration measures")]
fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let subscribers = numbers.next().unwrap_or(Ok(50))?;
    let messages = numbers.next().unwrap_or(Ok(1000))?;

    // Two members of a cluster: half of the subscribers are with the other one.
    let alone = "cluster { name: demo, listen: \"127.0.0.1:-1\" }";
    let first = Server::builder().name("first").config_text(alone).start()?;
    let routes = first.ports().cluster.ok_or("it has a port for routes")?;
    let joined = format!(
        "cluster {{ name: demo, listen: \"127.0.0.1:-1\", routes: [\"nats://127.0.0.1:{routes}\"] }}"
    );
    let second = Server::builder().name("second").config_text(joined).start()?;
    let ports = [first.ports().client, second.ports().client];

    let (ready_to, ready) = mpsc::channel();
    let mut readers = Vec::new();
    for number in 0..subscribers {
        let mut conn = connect(ports[number % 2])?;
        conn.get_mut().write_all(b"SUB ready 1\r\nSUB all 2\r\n")?;
        sync(&mut conn)?;
        let ready_to = ready_to.clone();
        readers.push(thread::spawn(move || read(conn, messages, &ready_to)));
    }
    let mut publisher = connect(ports[0])?;
    // The interest of the other server's clients takes a moment to arrive.
    for _ in 0..subscribers {
        while ready.try_recv().is_err() {
            publisher.get_mut().write_all(b"PUB ready 0\r\n\r\n")?;
            sync(&mut publisher)?;
            thread::sleep(Duration::from_millis(5));
        }
    }
    let started = Instant::now();
    let message = format!("PUB all {}\r\n{PAYLOAD}\r\n", PAYLOAD.len());
    publisher.get_mut().write_all(message.repeat(messages).as_bytes())?;
    let mut delivered = 0;
    for reader in readers {
        delivered += reader.join().map_err(|_| "a reader has panicked")??;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{messages} messages became {delivered} on two servers in {seconds:.3} s");
    second.stop()?;
    first.stop()?;
    Ok(())
}
