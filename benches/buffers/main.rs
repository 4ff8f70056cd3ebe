//! Which memory to send from and receive into, by size: CPU time of this side per byte.
//!
//! ```text
//! cargo bench --bench buffers                             over loopback, the peer on another core
//! cargo bench --bench buffers -- --peer                   on another host: the other side …
//! cargo bench --bench buffers -- --to HOST:4999           … of what is measured here
//! ```
//!
//! What is counted is the CPU time of the thread, kernel included. On loopback that has in it
//! what a network card, or its driver on another core, does otherwise; sends without a copy are
//! copied there after all. So loopback shows what a host without a card should do, no more.

#![deny(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

#[expect(unsafe_code, reason = "operations that the reactor does not have")]
mod kernel;
#[path = "../measure/mod.rs"]
mod measure;

use std::env;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use kernel::{Arriving, Kernel, Leaving};
use measure::{cpu_ns, median};
use rustix::time::ClockId;

/// Where a peer on another host listens.
const PEER_PORT: u16 = 4999;
/// Sockets that each get the same bytes.
const RECEIVERS: usize = 8;
/// What is sent at once to each.
const SENT_BYTES: [usize; 6] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
/// What is received at once, at most.
const RECEIVED_BYTES: [usize; 3] = [4 << 10, 16 << 10, 64 << 10];
/// Buffers in the ring of buffers.
const BUFFERS: usize = 16;
/// Each case is measured once before any is again; the medians count.
const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_millis(30);
const MEASURED: Duration = Duration::from_millis(150);
/// What the peer writes at once.
const PEER_BYTES: usize = 256 << 10;
/// The first byte of a connection: what the peer is to do.
const DRAIN: u8 = b'D';
const POUR: u8 = b'P';

const LEAVING: [(&str, Leaving); 4] = [
    ("copied", Leaving::Copied),
    ("shared", Leaving::Shared),
    ("SEND_ZC", Leaving::ZeroCopy),
    ("SEND_ZC registered", Leaving::ZeroCopyRegistered),
];
const ARRIVING: [(&str, Arriving); 3] = [
    ("plain", Arriving::Plain),
    ("registered", Arriving::Registered),
    ("buffer ring", Arriving::BufferRing),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let texts = arguments.iter().map(String::as_str).filter(|text| *text != "--bench");
    let outcome = match texts.collect::<Vec<_>>()[..] {
        _ if !is_bench => {
            println!("buffers: not measured; run `cargo bench --bench buffers`");
            Ok(())
        }
        [] => over_loopback(),
        ["--peer"] => TcpListener::bind(("0.0.0.0", PEER_PORT)).map(|at| be_the_peer(&at)),
        ["--to", peer] => peer
            .parse()
            .map_err(|_| io::Error::other("give --to the peer's address and port"))
            .and_then(measure_all),
        _ => Err(io::Error::other("give nothing, --peer, or --to HOST:PORT")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("buffers: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn over_loopback() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        pin(0);
        be_the_peer(&listener);
    });
    pin(1);
    measure_all(address)
}

/// Pins the thread to one of the CPUs that it may use.
fn pin(number: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores.get(number % cores.len().max(1)) {
        core_affinity::set_for_current(*core);
    }
}

/// Drains or pours, as each connection wants, until this process ends.
fn be_the_peer(listener: &TcpListener) {
    for mut socket in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut buffer = vec![0; PEER_BYTES];
            let mut order = [0];
            if socket.read_exact(&mut order).is_err() {
                return;
            }
            // Both end with the other side's socket.
            match order[0] {
                POUR => while socket.write_all(&buffer).is_ok() {},
                _ => while socket.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {},
            }
        });
    }
}

fn connect(peer: SocketAddr, order: u8) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(peer)?;
    socket.set_nodelay(true)?;
    socket.write_all(&[order])?;
    Ok(socket)
}

fn measure_all(peer: SocketAddr) -> io::Result<()> {
    println!("Sending to {RECEIVERS} at once: CPU ns per KiB, GB/s");
    table("bytes", &SENT_BYTES, &LEAVING, |bytes, how| send(peer, bytes, how))?;
    println!("\nReceiving: CPU ns per KiB, GB/s");
    table("bytes", &RECEIVED_BYTES, &ARRIVING, |bytes, how| receive(peer, bytes, how))
}

/// Measures each way at each size, and prints the medians.
fn table<W: Copy>(
    name: &str,
    sizes: &[usize],
    ways: &[(&str, W)],
    measure: impl Fn(usize, W) -> io::Result<(f64, f64)>,
) -> io::Result<()> {
    let mut costs = vec![vec![(Vec::new(), Vec::new()); ways.len()]; sizes.len()];
    for _ in 0..ROUNDS {
        for (size, row) in sizes.iter().zip(&mut costs) {
            for ((_, way), (ns, rates)) in ways.iter().zip(row) {
                let (ns_per_kib, rate) = measure(*size, *way)?;
                ns.push(ns_per_kib);
                rates.push(rate);
            }
        }
    }
    print!("| {name:>9} |");
    ways.iter().for_each(|(way, _)| print!(" {way:>20} |"));
    print!("\n|----------:|");
    ways.iter().for_each(|_| print!("---------------------:|"));
    println!();
    for (size, row) in sizes.iter().zip(costs) {
        print!("| {size:>9} |");
        for (ns, rates) in row {
            print!(" {:>20} |", format!("{:.1}, {:.2}", median(ns), median(rates)));
        }
        println!();
    }
    Ok(())
}

/// Takes time and bytes once the warm-up is over, and says when to end.
struct Meter {
    began: Instant,
    /// When the warm-up was over: the time, and the CPU time until then.
    warm: Option<(Instant, f64)>,
    bytes: usize,
}

impl Meter {
    fn start() -> Self {
        Self { began: Instant::now(), warm: None, bytes: 0 }
    }

    /// Says whether it is over.
    fn add(&mut self, bytes: usize) -> bool {
        match self.warm {
            Some((warm, _)) => {
                self.bytes += bytes;
                warm.elapsed() >= MEASURED
            }
            None => {
                if self.began.elapsed() >= WARM_UP {
                    self.warm = Some((Instant::now(), cpu_ns(ClockId::ThreadCPUTime)));
                }
                false
            }
        }
    }

    /// CPU nanoseconds per KiB, and 10⁹ bytes per second.
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    fn read(&self) -> io::Result<(f64, f64)> {
        let Some((warm, cpu)) = self.warm else {
            return Err(io::Error::other("the peer ended too early"));
        };
        let (bytes, spent) = (self.bytes.max(1) as f64, cpu_ns(ClockId::ThreadCPUTime) - cpu);
        Ok((spent * 1024.0 / bytes, bytes / warm.elapsed().as_nanos() as f64))
    }
}

fn send(peer: SocketAddr, bytes: usize, how: Leaving) -> io::Result<(f64, f64)> {
    let sockets = (0..RECEIVERS).map(|_| connect(peer, DRAIN)).collect::<io::Result<Vec<_>>>()?;
    let mut kernel = Kernel::new(RECEIVERS, bytes)?;
    if how == Leaving::ZeroCopyRegistered {
        kernel.register()?;
    }
    let mut meter = Meter::start();
    loop {
        kernel.send(&sockets, bytes, how)?;
        if meter.add(bytes * sockets.len()) {
            return meter.read();
        }
    }
}

fn receive(peer: SocketAddr, bytes: usize, how: Arriving) -> io::Result<(f64, f64)> {
    let socket = connect(peer, POUR)?;
    let mut kernel = Kernel::new(BUFFERS, bytes)?;
    if how == Arriving::Registered {
        kernel.register()?;
    }
    let mut meter = Meter::start();
    kernel.receive(&socket, how, |bytes| meter.add(bytes))?;
    meter.read()
}
