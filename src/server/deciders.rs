//! Threads that decide about connections to other servers: one for each kind, and one beside it
//! that accepts.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, never};
use tracing::error;

use crate::config::Options;
use crate::shard::ACCEPT_REST;

/// Reloads that wait to be taken over; a further one blocks its sender.
const RELOADS_MAX: usize = 1;
/// Accepted connections that wait for the deciding thread.
const ACCEPTED_MAX: usize = 16;

/// Channels from the rest of the server to a deciding thread.
pub(super) struct DecidingInputs {
    /// Connections that other servers have made, each with the address of the other end.
    pub(super) accepted: Receiver<(TcpStream, SocketAddr)>,
    /// New options, after the shards have them.
    pub(super) reloads: Receiver<Arc<Options>>,
    /// Closed when the thread is to end.
    pub(super) stopped: Receiver<()>,
}

/// A running deciding thread, and the one that accepts for it; stopped when dropped.
pub(super) struct DecidingThreads {
    listener: Option<TcpListener>,
    reload_to: Sender<Arc<Options>>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl DecidingThreads {
    /// Starts a thread called `name`, and another one if there is a listener; the log calls what
    /// it accepts by the noun beside it.
    pub(super) fn start(
        name: &str,
        listener: Option<(TcpListener, &'static str)>,
        decide: impl FnOnce(&DecidingInputs) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let (reload_to, reloads) = bounded(RELOADS_MAX);
        let mut all = Self { listener: None, reload_to, stop: Some(stop), threads: Vec::new() };
        let spawn = |name: String, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name).spawn(run)
        };
        let accepted = match listener {
            None => never(),
            Some((listener, noun)) => {
                let (accepted_to, accepted) = bounded(ACCEPTED_MAX);
                all.listener = Some(listener.try_clone()?);
                let accept = Box::new(move || accept(&listener, &accepted_to, noun));
                all.threads.push(spawn(format!("{name}-accept"), accept)?);
                accepted
            }
        };
        let inputs = DecidingInputs { accepted, reloads, stopped };
        all.threads.push(spawn(name.to_owned(), Box::new(move || decide(&inputs)))?);
        Ok(all)
    }

    /// Hands new options to the deciding thread, after the shards have them.
    pub(super) fn reload(&self, options: &Arc<Options>) {
        // If the thread has ended, the server is about to end, too.
        let _ = self.reload_to.send(Arc::clone(options));
    }
}

impl Drop for DecidingThreads {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(listener) = &self.listener {
            // Wakes the accepting thread; a failure means that it has ended.
            let _ = rustix::net::shutdown(listener.as_fd(), rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // A panicked thread has reported it.
            let _ = thread.join();
        }
    }
}

/// Accepts links, which the log calls `noun`, until the listener is shut down or the deciding
/// thread has ended.
fn accept(listener: &TcpListener, to: &Sender<(TcpStream, SocketAddr)>, noun: &'static str) {
    loop {
        match listener.accept() {
            Ok(accepted) => {
                if to.send(accepted).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                error!("Error accepting {noun} connection: {error}");
                rest();
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
fn rest() {
    std::thread::sleep(ACCEPT_REST);
}
