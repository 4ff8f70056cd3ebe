//! The same fan-out on three runtimes: ours, tokio-uring and glommio.
//!
//! `cargo bench --bench reactors [-- PART OF A NAME]`. One connection publishes messages of 128
//! bytes, N connections get them all. Each relay is a process of its own that does nothing but copy
//! each message to each subscriber and send; what counts is deliveries per second of its CPU time,
//! kernel threads included. A plain blocking generator publishes and reads on another core.
//!
//! Two loads: *bulk*, as fast as the relay takes it, and *light*, eight messages at a time, the
//! next ones when all subscribers have these.

#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod measure;
mod relays;

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use measure::median;
use relays::{MESSAGE_BYTES, Runtime};

const SUBSCRIBERS: [usize; 3] = [1, 10, 100];
/// All cases are measured once before any of them is again; the medians count.
const ROUNDS: usize = 5;
/// How long one measurement publishes.
const PUBLISH_FOR: Duration = Duration::from_millis(350);
/// Nothing arrives for so long: the relay has lost something.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the publisher goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Light,
    Bulk,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Bulk => "bulk",
        }
    }

    fn messages_per_write(self) -> usize {
        match self {
            Self::Light => 8,
            Self::Bulk => 512,
        }
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [first, runtime, subscribers] = &arguments[..]
        && first == "--relay"
    {
        let runtime = Runtime::named(runtime).expect("we have chosen it");
        let subscribers = subscribers.parse().expect("we have written it");
        pin(1);
        relays::run(runtime, subscribers);
        return;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("reactors: not measured; run `cargo bench --bench reactors`");
        return;
    }
    pin(0);
    let part = arguments.iter().find(|argument| !argument.starts_with('-'));
    let cases = all_cases()
        .into_iter()
        .filter(|case| part.is_none_or(|part| name(case).contains(part.as_str())));
    let cases: Vec<(Load, usize)> = cases.collect();
    let mut rates = vec![Runtime::ALL.map(|_| Vec::new()); cases.len()];
    for _ in 0..ROUNDS {
        for ((load, subscribers), rates) in cases.iter().zip(&mut rates) {
            for (runtime, rates) in Runtime::ALL.into_iter().zip(rates) {
                match measure(runtime, *subscribers, *load) {
                    Ok(rate) => rates.push(rate),
                    Err(problem) => eprintln!("reactors: {}: {problem}", runtime.name()),
                }
            }
        }
    }
    println!("Millions of deliveries per second of CPU; against ours in brackets");
    print!("{:<18}", "");
    Runtime::ALL.iter().for_each(|runtime| print!("{:>20}", runtime.name()));
    println!();
    for (case, rates) in cases.iter().zip(rates) {
        print!("{:<18}", name(case));
        let rates = rates.map(|rates| (!rates.is_empty()).then(|| median(rates)));
        for rate in rates {
            let text = match (rate, rates[0]) {
                (None, _) => "missing".to_owned(),
                (Some(rate), None) => format!("{rate:.2}"),
                (Some(rate), Some(ours)) => format!("{rate:.2} ({:.2})", rate / ours),
            };
            print!("{text:>20}");
        }
        println!();
    }
}

fn all_cases() -> Vec<(Load, usize)> {
    let of = |load| SUBSCRIBERS.map(|subscribers| (load, subscribers));
    [Load::Bulk, Load::Light].into_iter().flat_map(of).collect()
}

fn name((load, subscribers): &(Load, usize)) -> String {
    format!("{} 1 to {subscribers}", load.name())
}

/// To one core of those this process may use, as far as there are so many.
fn pin(number: usize) {
    if let Some(core) = core_affinity::get_core_ids().unwrap_or_default().get(number) {
        core_affinity::set_for_current(*core);
    }
}

/// A relay in a process of its own.
struct Relay {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Relay {
    fn start(runtime: Runtime, subscribers: usize) -> Result<(Self, u16), String> {
        let program = env::current_exe().map_err(|error| error.to_string())?;
        let mut process = Command::new(program)
            .args(["--relay", runtime.name(), &subscribers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("the relay does not start: {error}"))?;
        let ask = process.stdin.take().ok_or("the relay has no input")?;
        let answers = process.stdout.take().ok_or("the relay has no output")?;
        let mut relay = Self { process, ask, answers: BufReader::new(answers) };
        let port = relay.answer()?;
        Ok((relay, port))
    }

    fn answer<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| error.to_string())?;
        line.trim().parse().map_err(|_| format!("the relay says {line:?}"))
    }

    /// CPU nanoseconds since its start.
    fn cpu_ns(&mut self) -> Result<f64, String> {
        self.ask.write_all(b"\n").map_err(|error| error.to_string())?;
        self.answer()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It ends by itself when the publisher has gone; not if it hangs.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Deliveries per microsecond of the relay's CPU time.
fn measure(runtime: Runtime, subscribers: usize, load: Load) -> Result<f64, String> {
    let (mut relay, port) = Relay::start(runtime, subscribers)?;
    let connect = || TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string());
    // The relay takes the first for the publisher.
    let mut publisher = connect()?;
    publisher.set_nodelay(true).map_err(|error| error.to_string())?;
    let received = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for _ in 0..subscribers {
        readers.push(read_all(connect()?, Arc::clone(&received)));
    }
    let mut sent = 0;
    let block = vec![b'x'; load.messages_per_write() * MESSAGE_BYTES];
    let mut publish = || -> Result<(), String> {
        publisher.write_all(&block).map_err(|error| error.to_string())?;
        sent += (block.len() * subscribers) as u64;
        if load == Load::Light { await_all(&received, sent) } else { Ok(()) }
    };
    // Until all subscribers are known to the relay, and the first buffers are there.
    (0..64).try_for_each(|_| publish())?;
    let (cpu, before) = (relay.cpu_ns()?, received.load(Ordering::Acquire));
    let start = Instant::now();
    while start.elapsed() < PUBLISH_FOR {
        publish()?;
    }
    await_all(&received, sent)?;
    let deliveries = (received.load(Ordering::Acquire) - before) as f64 / MESSAGE_BYTES as f64;
    let cpu = relay.cpu_ns()? - cpu;
    drop(publisher);
    drop(relay);
    readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| "a reader panicked"))?;
    Ok(deliveries * 1e3 / cpu)
}

/// Reads to the end, and wakes the publisher at each read.
fn read_all(mut socket: TcpStream, received: Arc<AtomicU64>) -> JoinHandle<()> {
    let publisher = thread::current();
    thread::spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(bytes @ 1..) = socket.read(&mut buffer) {
            received.fetch_add(bytes as u64, Ordering::AcqRel);
            publisher.unpark();
        }
    })
}

fn await_all(received: &AtomicU64, bytes: u64) -> Result<(), String> {
    let start = Instant::now();
    while received.load(Ordering::Acquire) < bytes {
        if start.elapsed() > PATIENCE {
            return Err(format!("{} of {bytes} bytes", received.load(Ordering::Acquire)));
        }
        thread::park_timeout(PATIENCE);
    }
    Ok(())
}
