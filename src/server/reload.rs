//! What a reload may change, and what it did change.

use std::fmt::Debug;
use std::time::Duration;

use crate::config::{HttpOptions, Options, Seating, ShardCount, StartError};
use crate::host::Tier;

/// An error about a reload that would change nothing but what only a restart can.
pub(super) fn needs_restart(kept: &[String]) -> StartError {
    let kept = kept.join("; ");
    StartError::new(format!("a reload does not change {kept}; restart the server for that"))
}

/// Keeps of `old` what only a restart can change. Returns what `new` would have changed, as the
/// log names it.
pub(super) fn keep_fixed(old: &Options, new: &mut Options) -> Vec<String> {
    let mut kept = Vec::new();
    new.accounts.keep_numbers(&old.accounts);
    keep("host", &old.host, &mut new.host, &mut kept);
    keep("port", &old.port, &mut new.port, &mut kept);
    let place = |options: &Options| {
        let unix = options.unix.as_ref();
        unix.map(|unix| (unix.path.clone(), unix.mode, unix.owner, unix.group))
    };
    if place(old) != place(new) {
        kept.push("listen_unix".to_owned());
        new.unix.clone_from(&old.unix);
    }
    let place = |options: &Options| {
        let websocket = options.websocket.as_ref();
        websocket.map(|w| (w.host.clone(), w.port, w.tls.is_some()))
    };
    if place(old) != place(new) {
        kept.push("websocket's host, port and whether it has TLS".to_owned());
        new.websocket.clone_from(&old.websocket);
    }
    keep("server_name", &old.server_name, &mut new.server_name, &mut kept);
    keep("http", &old.http, &mut new.http, &mut kept);
    if old.cluster.port.is_some() != new.cluster.port.is_some() {
        let is = if old.cluster.port.is_some() { "a" } else { "no" };
        kept.push(format!("cluster: this server is {is} member of one"));
        new.cluster.clone_from(&old.cluster);
    }
    keep("cluster host", &old.cluster.host, &mut new.cluster.host, &mut kept);
    keep("cluster port", &old.cluster.port, &mut new.cluster.port, &mut kept);
    let (was, is) = (&old.cluster, &mut new.cluster);
    keep("cluster pool_size", &was.pool_size, &mut is.pool_size, &mut kept);
    keep("cluster accounts", &was.accounts, &mut is.accounts, &mut kept);
    keep("http_base_path", &old.http_base_path, &mut new.http_base_path, &mut kept);
    let (was, is) = (&old.runtime, &mut new.runtime);
    keep("shards", &was.shards, &mut is.shards, &mut kept);
    keep("seating", &was.seating, &mut is.seating, &mut kept);
    keep("uring_tier", &was.uring_tier, &mut is.uring_tier, &mut kept);
    keep("no_pin", &!was.pin, &mut !is.pin, &mut kept);
    is.pin = was.pin;
    keep("busy_poll", &was.busy_poll_us, &mut is.busy_poll_us, &mut kept);
    keep("napi", &was.napi_us, &mut is.napi_us, &mut kept);
    kept
}

fn keep<T: Clone + Told + PartialEq>(name: &str, old: &T, new: &mut T, kept: &mut Vec<String>) {
    if old != new {
        kept.push(format!("{name}: from {} to {}", old.told(), new.told()));
        new.clone_from(old);
    }
}

/// A setting as the operator would write it.
trait Told {
    fn told(&self) -> String;
}

macro_rules! told_as_displayed {
    ($($kind:ty),*) => {
        $(impl Told for $kind {
            fn told(&self) -> String {
                self.to_string()
            }
        })*
    };
}

told_as_displayed!(bool, u16, u32, Tier);

impl Told for String {
    fn told(&self) -> String {
        format!("\"{self}\"")
    }
}

impl<T: Told> Told for Option<T> {
    fn told(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), Told::told)
    }
}

impl<T: Told> Told for Vec<T> {
    fn told(&self) -> String {
        format!("[{}]", self.iter().map(Told::told).collect::<Vec<_>>().join(", "))
    }
}

impl Told for HttpOptions {
    fn told(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host.as_deref().unwrap_or_default(), self.port)
    }
}

impl Told for Seating {
    fn told(&self) -> String {
        match self {
            Self::Fewest => "fewest".to_owned(),
            Self::RoundRobin => "round-robin".to_owned(),
        }
    }
}

impl Told for ShardCount {
    fn told(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Exactly(count) => count.to_string(),
        }
    }
}

/// The changes from `old` to `new`, as the log names them.
pub(super) fn changes(old: &Options, new: &Options) -> Vec<String> {
    let mut changes = Vec::new();
    let mut note = |name: &str, was: &dyn Debug, is: &dyn Debug| {
        let (was, is) = (format!("{was:?}"), format!("{is:?}"));
        if was != is {
            changes.push(format!("{name} = {is}"));
        }
    };
    let (was, is) = (&old.log, &new.log);
    note("log_file", &path(was.file.as_ref()), &path(is.file.as_ref()));
    note("log_size_limit", &was.file_bytes_max, &is.file_bytes_max);
    note("log_max_num", &was.files_max, &is.files_max);
    note("syslog", &was.syslog, &is.syslog);
    note("log_format", &was.format, &is.format);
    note("logtime", &was.timestamps, &is.timestamps);
    note("logtime_utc", &was.utc, &is.utc);
    note("debug", &was.debug, &is.debug);
    note("trace", &was.trace, &is.trace);
    note("trace_verbose", &was.trace_verbose, &is.trace_verbose);
    note("trace_headers", &was.trace_headers, &is.trace_headers);
    let (was_traced, is_traced) = (was.traced_message_bytes_max, is.traced_message_bytes_max);
    note("max_traced_msg_len", &was_traced, &is_traced);
    note("pid_file", &path(old.pid_file.as_ref()), &path(new.pid_file.as_ref()));
    let directory = |options: &Options| path(options.ports_file_dir.as_ref());
    note("ports_file_dir", &directory(old), &directory(new));
    note("client_advertise", &old.client_advertise, &new.client_advertise);
    note("server_metadata", &old.server_metadata, &new.server_metadata);
    note("write_timeout", &old.write_timeout, &new.write_timeout);
    note("server_tags", &old.server_tags, &new.server_tags);
    let (was, is) = (&old.limits, &new.limits);
    note("max_control_line", &was.control_line_bytes_max, &is.control_line_bytes_max);
    note("max_payload", &was.payload_bytes_max, &is.payload_bytes_max);
    note("max_pending", &was.pending_bytes_max, &is.pending_bytes_max);
    note("max_connections", &was.connections_max, &is.connections_max);
    note("max_closed_clients", &old.closed_conns_max, &new.closed_conns_max);
    note("max_subscriptions", &was.subscriptions_max, &is.subscriptions_max);
    let (was_tokens, is_tokens) = (was.subscription_tokens_max, is.subscription_tokens_max);
    note("max_subscription_tokens", &was_tokens, &is_tokens);
    note("rate_limits", &old.rates, &new.rates);
    note("ping_interval", &millis(old.ping_interval_ms), &millis(new.ping_interval_ms));
    note("ping_max", &old.ping_max, &new.ping_max);
    note("write_deadline", &millis(old.write_deadline_ms), &millis(new.write_deadline_ms));
    let (was, is) = (old.lame_duck_duration_ms, new.lame_duck_duration_ms);
    note("lame_duck_duration", &millis(was), &millis(is));
    let (was, is) = (old.lame_duck_grace_ms, new.lame_duck_grace_ms);
    note("lame_duck_grace_period", &millis(was), &millis(is));
    note("no_header_support", &old.no_header_support, &new.no_header_support);
    note("system_account", &old.accounts.system, &new.accounts.system);
    note("proxy_protocol", &old.proxy_protocol, &new.proxy_protocol);
    let blocks = [
        ("proxy_protocol_trusted", old.trusted_proxies != new.trusted_proxies),
        ("listen_unix: peers", old.unix != new.unix),
        ("websocket", old.websocket != new.websocket),
        ("tls", old.tls != new.tls || old.allow_non_tls != new.allow_non_tls),
        ("accounts", old.accounts.list != new.accounts.list),
        ("resolver", old.trust != new.trust),
        ("overflow", old.overflow != new.overflow),
        ("authorization", old.auth != new.auth),
    ];
    let without_routes = |options: &Options| crate::config::Cluster {
        routes: Vec::new(),
        ..options.cluster.clone()
    };
    let blocks = blocks.into_iter().chain([
        ("cluster", without_routes(old) != without_routes(new)),
        ("cluster routes", old.cluster.routes != new.cluster.routes),
    ]);
    changes.extend(blocks.filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()));
    changes
}

fn path(path: Option<&std::path::PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named_with_its_new_value() {
        let old = Options::default();
        let mut new = Options::default();
        new.limits.payload_bytes_max = 1000;
        new.ping_interval_ms = 250;
        new.log.file = Some("/tmp/log".into());
        assert_eq!(changes(&old, &old.clone()), Vec::<String>::new());
        let wanted = ["log_file = \"/tmp/log\"", "max_payload = 1000", "ping_interval = 250ms"];
        assert_eq!(changes(&old, &new), wanted);
    }

    #[test]
    fn what_needs_a_restart_is_named_and_stays_as_it_was() {
        let old = Options::default();
        let mut new = Options { port: 4333, ping_max: 7, ..Options::default() };
        new.runtime.shards = ShardCount::Exactly(3);
        new.runtime.pin = false;
        let kept = keep_fixed(&old, &mut new);
        let wanted =
            ["port: from 4222 to 4333", "shards: from auto to 3", "no_pin: from false to true"];
        assert_eq!(kept, wanted);
        assert_eq!(new, Options { ping_max: 7, ..old });
    }

    #[test]
    fn no_secret_is_named() {
        let old = Options::default();
        let mut new = Options::default();
        new.auth.token = Some(crate::config::Secret::new("hush"));
        assert_eq!(changes(&old, &new), ["authorization"]);
    }
}
