//! Remotes of leaf nodes on the control side: a thread that decides when to dial, with
//! [`crate::cluster::LeafRemotes`], and one for each server that is being dialled.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use tracing::{error, info};

use super::deciders::{DecidingInputs, DecidingThreads};
use super::links::{dial, greeted, now, report_attempt};
use super::listen::host_port;
use super::shards::{LeafParts, Shards};
use crate::cluster::{LeafPause, LeafPlan, LeafRemotes, LeafScheme, LeafStep, LeafTarget, LeafUrl};
use crate::config::{LeafProxy, LeafRemoteOptions, Options, Secret, StartError};
use crate::engine::{LeafDial, LeafEnd, LeafLogin, LeafNotice, LeafRemote, NewLeaf};
use crate::shard::{Address, Control, ShardSeats};

/// Servers dialled at one time; the others are dialled later.
const DIALS_MAX: usize = 32;

/// The outcome of dialling a server, with the connection as it is to begin.
struct DialedLeaf {
    target: u64,
    attempt: u32,
    url: LeafUrl,
    outcome: io::Result<(TcpStream, LeafDial)>,
}

/// Starts the thread, whether there are remotes or not: a reload may add some.
pub(super) fn start(
    options: &Arc<Options>,
    shards: &Shards,
) -> Result<DecidingThreads, StartError> {
    let failed = |error: io::Error| {
        StartError::new(format!("cannot start the thread of leaf nodes: {error}"))
    };
    let LeafParts { addresses, notices, started, seats } = shards.for_leaves();
    let (dialed_to, dialed) = bounded(DIALS_MAX);
    let decider = LeafDecider {
        remotes: LeafRemotes::new(plan(options, None), fastrand::u64(..)),
        options: Arc::clone(options),
        addresses,
        started,
        seats,
        dialing: 0,
        dialed_to,
    };
    let decide = move |inputs: &DecidingInputs| decider.run(&notices, &dialed, inputs);
    DecidingThreads::start("leafnodes", None, decide).map_err(failed)
}

/// Returns the plan for the remotes; `old` are the options before and the plan for them.
fn plan(options: &Options, old: Option<(&Options, &LeafPlan)>) -> LeafPlan {
    let leaf = &options.leaf;
    let target = |(number, remote): (usize, &LeafRemoteOptions)| LeafTarget {
        number,
        identity: format!("{} {:?}", remote.link.account, remote.credentials),
        urls: remote.urls.clone(),
        no_randomize: remote.no_randomize,
        ignores_discovered: remote.ignores_discovered,
        is_disabled: remote.is_disabled,
        revision: revision(remote, old),
    };
    LeafPlan {
        reconnect_ns: leaf.reconnect_ms.saturating_mul(1_000_000),
        targets: leaf.remotes.iter().enumerate().map(target).collect(),
    }
}

/// Returns the revision of a remote: another one if it was configured otherwise before.
fn revision(remote: &LeafRemoteOptions, old: Option<(&Options, &LeafPlan)>) -> u64 {
    let Some((options, plan)) = old else { return 0 };
    let mut before = options.leaf.remotes.iter().zip(&plan.targets);
    let is_same = |(other, _): &(&LeafRemoteOptions, &LeafTarget)| {
        (&other.link.account, &other.credentials, &other.urls)
            == (&remote.link.account, &remote.credentials, &remote.urls)
    };
    let Some((was, target)) = before.find(is_same) else { return 0 };
    let is_other = (&was.link, &was.seed) != (&remote.link, &remote.seed);
    target.revision + u64::from(is_other)
}

/// State of the deciding thread.
struct LeafDecider {
    remotes: LeafRemotes,
    options: Arc<Options>,
    addresses: Vec<Address>,
    started: Instant,
    /// The numbers of connections.
    seats: Arc<ShardSeats>,
    dialing: usize,
    dialed_to: Sender<DialedLeaf>,
}

impl LeafDecider {
    fn run(
        mut self,
        notices: &Receiver<LeafNotice>,
        dialed: &Receiver<DialedLeaf>,
        inputs: &DecidingInputs,
    ) {
        let DecidingInputs { reloads, stopped, .. } = inputs;
        loop {
            self.remotes.set_now(self.now());
            while let Some(step) = self.remotes.next_step() {
                self.carry_out(step);
            }
            let due = self.remotes.next_deadline().map(Duration::from_nanos);
            let due = due.map(|due| (self.started + due).saturating_duration_since(now()));
            let timer = due.map_or_else(never, crossbeam_channel::after);
            select! {
                recv(stopped) -> _ => return,
                recv(notices) -> notice => match notice {
                    Ok(notice) => self.on_notice(notice),
                    Err(_) => return,
                },
                recv(dialed) -> dialed => if let Ok(dialed) = dialed {
                    self.on_dialed(dialed);
                },
                recv(reloads) -> options => if let Ok(options) = options {
                    self.reload(&options);
                },
                recv(timer) -> _ => {}
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(now().duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    fn reload(&mut self, options: &Arc<Options>) {
        let plan = plan(options, Some((&self.options, self.remotes.plan())));
        self.options = Arc::clone(options);
        self.remotes.reload(plan);
    }

    fn on_notice(&mut self, notice: LeafNotice) {
        match notice {
            LeafNotice::Up { lid } => self.remotes.on_up(lid),
            LeafNotice::Urls { lid, urls } => self.remotes.on_urls(lid, &urls),
            LeafNotice::Ended { lid, end } => {
                let pause = match end {
                    LeafEnd::Other => LeafPause::Usual,
                    LeafEnd::Misplaced => LeafPause::Misplaced,
                    LeafEnd::TooOld => LeafPause::TooOld,
                };
                self.remotes.on_ended(lid, pause);
            }
        }
    }

    fn carry_out(&mut self, step: LeafStep) {
        match step {
            LeafStep::Close(lid) => self.shard_of(lid).send(Control::CloseLeaf(lid)),
            LeafStep::Dial { target, .. } if self.dialing >= DIALS_MAX => {
                self.remotes.on_dialed(target, None);
            }
            LeafStep::Dial { target, number, url, attempt } => {
                self.dial(target, number, url, attempt);
            }
        }
    }

    /// Dials on a thread of its own.
    fn dial(&mut self, target: u64, number: usize, url: LeafUrl, attempt: u32) {
        let Some(remote) = self.options.leaf.remotes.get(number).cloned() else {
            return self.remotes.on_dialed(target, None);
        };
        let timeout_ms = remote.dial_timeout_ms.unwrap_or(self.options.leaf.dial_timeout_ms);
        let timeout = Duration::from_millis(timeout_ms);
        let dialed_to = self.dialed_to.clone();
        let run = move || {
            let outcome = login(&remote, &url).and_then(|login| {
                let socket = match &remote.proxy {
                    Some(proxy) => dial_through(proxy, &url, timeout)?,
                    None => dial(&url.host, url.port, timeout)?,
                };
                Ok((socket, leaf_dial(&remote, &url, login)))
            });
            let _ = dialed_to.send(DialedLeaf { target, attempt, url, outcome });
        };
        let thread = std::thread::Builder::new().name("leaf-dial".to_owned());
        match thread.spawn(run) {
            Ok(_) => self.dialing += 1,
            Err(failure) => {
                error!("Cannot start a thread to connect to a remote leaf node: {failure}");
                self.remotes.on_dialed(target, None);
            }
        }
    }

    fn on_dialed(&mut self, DialedLeaf { target, attempt, url, outcome }: DialedLeaf) {
        self.dialing -= 1;
        let lid = match outcome {
            Ok((socket, dial)) => self.hand_over(socket, dial),
            Err(failure) => {
                let (at, number) = (host_port(&url.host, url.port), attempt.saturating_add(1));
                let line = format!(
                    "Error trying to connect as leafnode to remote server {at:?} (attempt \
                     {number}): dial tcp {at}: {failure}"
                );
                report_attempt(attempt, &line);
                None
            }
        };
        self.remotes.on_dialed(target, lid);
    }

    /// Gives a connected socket to a shard; returns its number.
    fn hand_over(&mut self, socket: TcpStream, dial: LeafDial) -> Option<u64> {
        let lid = self.seats.number();
        let peer = greeted(&socket, lid)?;
        let account = &dial.remote.account;
        info!("Connecting as leafnode of account {account:?} to {}", peer.ip);
        let leaf = NewLeaf { lid, dialed: Some(Box::new(dial)) };
        self.shard_of(lid).send(Control::AdoptLeaf { socket: socket.into(), peer, leaf });
        Some(lid)
    }

    fn shard_of(&self, lid: u64) -> &Address {
        let at = usize::try_from(lid).unwrap_or_default() % self.addresses.len();
        &self.addresses[at]
    }
}

/// Bytes of a proxy's answer, at most.
const PROXY_ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Connects to a server through a proxy for HTTP.
fn dial_through(proxy: &LeafProxy, url: &LeafUrl, patience: Duration) -> io::Result<TcpStream> {
    let patience = proxy.timeout_ms.map_or(patience, Duration::from_millis);
    let mut socket = dial(&proxy.host, proxy.port, patience)?;
    let at = host_port(&url.host, url.port);
    let mut request = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n");
    if let Some((user, password)) = &proxy.login {
        let login = STANDARD.encode(format!("{user}:{}", password.revealed()));
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    request.push_str("\r\n");
    socket.set_read_timeout(Some(patience))?;
    socket.write_all(request.as_bytes())?;
    let (mut answer, mut byte) = (Vec::new(), [0]);
    // Byte by byte: what comes behind the answer is the server's.
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < PROXY_ANSWER_BYTES_MAX {
        socket.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    socket.set_read_timeout(None)?;
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    match line.split(' ').nth(1) {
        Some("200") => Ok(socket),
        _ => Err(io::Error::other(format!("the proxy answers {line:?}"))),
    }
}

/// Returns the connection to a remote as it is to begin.
fn leaf_dial(remote: &LeafRemoteOptions, url: &LeafUrl, login: LeafLogin) -> LeafDial {
    let is_name = |url: &&LeafUrl| url.host.parse::<std::net::IpAddr>().is_err();
    let named = std::iter::once(url).chain(&remote.urls).find(is_name);
    LeafDial {
        remote: Arc::new(LeafRemote::clone(&remote.link)),
        login,
        host: named.unwrap_or(url).host.clone(),
        websocket: url
            .scheme
            .is_websocket()
            .then(|| (host_port(&url.host, url.port), url.path.clone())),
        is_tls: matches!(url.scheme, LeafScheme::Tls | LeafScheme::Wss)
            || remote.link.tls.is_some(),
    }
}

/// Returns the credentials for a server, the file of credentials being read each time.
fn login(remote: &LeafRemoteOptions, url: &LeafUrl) -> io::Result<LeafLogin> {
    // A server that the remote has told of takes the login of the first that is configured.
    let login = url.login.as_ref().or_else(|| remote.urls.first()?.login.as_ref());
    let (user, password) = match login {
        Some((user, password)) => (Some(user.clone()), password.clone()),
        None => (None, None),
    };
    let mut login = LeafLogin { user, password, jwt: None, seed: remote.seed.clone() };
    if let Some(path) = &remote.credentials {
        let text = std::fs::read_to_string(path).map_err(|failure| {
            io::Error::new(failure.kind(), format!("{}: {failure}", path.display()))
        })?;
        let mut sections = sections(&text);
        login.jwt = sections.next().map(str::to_owned);
        login.seed = sections.next().map(Secret::new);
        if login.jwt.is_none() {
            let reason = format!("{}: no token in it", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
    }
    Ok(login)
}

/// Returns what is between the lines of dashes in a file of credentials, in order.
fn sections(text: &str) -> impl Iterator<Item = &str> {
    let mut is_in = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if line.starts_with("---") {
            is_in = !line.contains("END");
            return None;
        }
        let is_first = is_in && !line.is_empty();
        is_in &= !is_first;
        is_first.then_some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_credentials_has_a_token_and_a_seed() {
        let text = "-----BEGIN NATS USER JWT-----\nabc.def.ghi\n------END NATS USER JWT------\n\n\
            ************************* IMPORTANT *************************\nKeep it secret.\n\n\
            -----BEGIN USER NKEY SEED-----\nSUABC\n------END USER NKEY SEED------\n";
        assert_eq!(sections(text).collect::<Vec<_>>(), ["abc.def.ghi", "SUABC"]);
        assert_eq!(sections("nothing").count(), 0);
    }
}
