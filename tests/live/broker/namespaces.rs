//! Network namespaces of the test's own, with a router between them that can be told to drop
//! everything. Needs root.

use std::fs::File;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Two namespaces that reach each other through a third, all removed when dropped.
pub(crate) struct Partitionable {
    name: String,
}

impl Partitionable {
    /// `None`, with the reason printed, where namespaces cannot be made; as root under `CI` they
    /// have to be.
    pub(crate) fn new() -> Option<Self> {
        let this = Self { name: format!("shardcast-{}", std::process::id()) };
        let Err(reason) = this.set_up() else { return Some(this) };
        let required = std::env::var_os("CI").is_some() && rustix::process::geteuid().is_root();
        assert!(!required, "no network namespaces: {reason}");
        let line = format!("skipped: no network namespaces: {reason}\n");
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).ok();
        None
    }

    fn set_up(&self) -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("they need root".to_owned());
        }
        let router = self.router();
        ip(&format!("netns add {router}"))?;
        for side in 0..2 {
            let (own, at) = (self.side(side), Self::address(side));
            let gateway = format!("10.213.{side}.1");
            ip(&format!("netns add {own}"))?;
            ip(&format!("-n {own} link set lo up"))?;
            let link = format!("link add uplink type veth peer name side{side} netns {router}");
            ip(&format!("-n {own} {link}"))?;
            ip(&format!("-n {own} addr add {at}/24 dev uplink"))?;
            ip(&format!("-n {own} link set uplink up"))?;
            ip(&format!("-n {router} addr add {gateway}/24 dev side{side}"))?;
            ip(&format!("-n {router} link set side{side} up"))?;
            ip(&format!("-n {own} route add default via {gateway}"))?;
        }
        self.forward(true)
    }

    fn router(&self) -> String {
        format!("{}-router", self.name)
    }

    /// The name of one of the two.
    pub(crate) fn side(&self, side: usize) -> String {
        format!("{}-{side}", self.name)
    }

    /// Where one of the two is reached.
    pub(crate) fn address(side: usize) -> String {
        format!("10.213.{side}.2")
    }

    /// Lets packets pass, or drops them all without a word.
    pub(crate) fn join(&self, joined: bool) {
        self.forward(joined).expect("the namespaces are there");
    }

    fn forward(&self, forwards: bool) -> Result<(), String> {
        let value = if forwards { "1" } else { "0" };
        let switch = "/proc/sys/net/ipv4/ip_forward";
        within(&self.router(), move || std::fs::write(switch, value)).map_err(|e| e.to_string())
    }
}

impl Drop for Partitionable {
    fn drop(&mut self) {
        for name in [self.side(0), self.side(1), self.router()] {
            // What was never made cannot be removed.
            ip(&format!("netns del {name}")).ok();
        }
    }
}

/// Runs something on a thread that is in a namespace; sockets made there stay there.
pub(crate) fn within<T: Send + 'static>(
    namespace: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> T {
    let path = format!("/run/netns/{namespace}");
    let thread = std::thread::spawn(move || {
        let namespace = File::open(path).expect("the namespace is there");
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )
        .expect("root may enter it");
        run()
    });
    thread.join().expect("it does not panic")
}

fn ip(args: &str) -> Result<(), String> {
    let output = Command::new("ip").args(args.split(' ')).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
