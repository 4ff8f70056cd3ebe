//! Rules of a reload: the settings it may change, and those it has changed.

use std::fmt::Debug;
use std::time::Duration;

use crate::config::{HttpOptions, Options, Seating, ShardCount, StartError};
use crate::host::Tier;

/// Returns an error about a reload whose only changes need a restart.
pub(super) fn needs_restart(kept: &[String]) -> StartError {
    let kept = kept.join("; ");
    StartError::new(format!("a reload does not change {kept}; restart the server for that"))
}

/// Restores from `old` the settings that only a restart can change. Returns these changes, as the
/// log names them.
pub(super) fn keep_fixed(old: &Options, new: &mut Options) -> Vec<String> {
    let mut kept = Vec::new();
    new.accounts.keep_numbers(&old.accounts);
    keep("host", &old.network.host, &mut new.network.host, &mut kept);
    keep("port", &old.network.port, &mut new.network.port, &mut kept);
    let place = |options: &Options| {
        let unix = options.network.unix.as_ref();
        unix.map(|unix| (unix.path.clone(), unix.mode, unix.owner, unix.group))
    };
    if place(old) != place(new) {
        kept.push("listen_unix".to_owned());
        new.network.unix.clone_from(&old.network.unix);
    }
    let place = |options: &Options| {
        let websocket = options.network.websocket.as_ref();
        websocket.map(|w| (w.host.clone(), w.port, w.tls.is_some()))
    };
    if place(old) != place(new) {
        kept.push("websocket host, port and use of TLS".to_owned());
        new.network.websocket.clone_from(&old.network.websocket);
    }
    let mqtt = |options: &Options| {
        let mqtt = options.network.mqtt.as_ref();
        mqtt.map(|mqtt| (mqtt.host.clone(), mqtt.port, mqtt.tls.is_some()))
    };
    if mqtt(old) != mqtt(new) {
        kept.push("mqtt host, port and use of TLS".to_owned());
        new.network.mqtt.clone_from(&old.network.mqtt);
    }
    keep("server_name", &old.server.name, &mut new.server.name, &mut kept);
    keep("http", &old.monitoring.http, &mut new.monitoring.http, &mut kept);
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
    let place = |options: &Options| {
        let gateway = &options.gateway;
        (gateway.name.clone(), gateway.host.clone(), gateway.port, gateway.advertise.clone())
    };
    if place(old) != place(new) {
        kept.push("gateway: name, host, port and advertise".to_owned());
        new.gateway.clone_from(&old.gateway);
    }
    let place = |options: &Options| {
        let jetstream = &options.jetstream;
        (jetstream.is_enabled, jetstream.store_dir.clone(), jetstream.domain.clone())
    };
    if place(old) != place(new) {
        kept.push("jetstream: enabled, store_dir and domain".to_owned());
        new.jetstream.clone_from(&old.jetstream);
    }
    keep("http_base_path", &old.monitoring.base_path, &mut new.monitoring.base_path, &mut kept);
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

/// A setting in the form that the operator would write.
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

/// Returns the changes from `old` to `new`, as the log names them.
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
    note("pid_file", &path(old.server.pid_file.as_ref()), &path(new.server.pid_file.as_ref()));
    let directory = |options: &Options| path(options.server.ports_file_dir.as_ref());
    note("ports_file_dir", &directory(old), &directory(new));
    note("client_advertise", &old.network.client_advertise, &new.network.client_advertise);
    note("server_metadata", &old.server.metadata, &new.server.metadata);
    note("write_timeout", &old.timeouts.write_timeout, &new.timeouts.write_timeout);
    note("server_tags", &old.server.tags, &new.server.tags);
    let (was, is) = (&old.limits, &new.limits);
    note("max_control_line", &was.control_line_bytes_max, &is.control_line_bytes_max);
    note("max_payload", &was.payload_bytes_max, &is.payload_bytes_max);
    note("max_pending", &was.pending_bytes_max, &is.pending_bytes_max);
    note("max_connections", &was.connections_max, &is.connections_max);
    note("max_closed_clients", &old.monitoring.closed_conns_max, &new.monitoring.closed_conns_max);
    note("max_subscriptions", &was.subscriptions_max, &is.subscriptions_max);
    let (was_tokens, is_tokens) = (was.subscription_tokens_max, is.subscription_tokens_max);
    note("max_subscription_tokens", &was_tokens, &is_tokens);
    note("rate_limits", &old.rates, &new.rates);
    let (was, is) = (&old.timeouts, &new.timeouts);
    note("ping_interval", &millis(was.ping_interval_ms), &millis(is.ping_interval_ms));
    note("ping_max", &was.ping_max, &is.ping_max);
    note("write_deadline", &millis(was.write_deadline_ms), &millis(is.write_deadline_ms));
    let (was, is) = (&old.lame_duck, &new.lame_duck);
    note("lame_duck_duration", &millis(was.duration_ms), &millis(is.duration_ms));
    note("lame_duck_grace_period", &millis(was.grace_ms), &millis(is.grace_ms));
    let (was, is) = (&old.network, &new.network);
    note("no_header_support", &was.no_header_support, &is.no_header_support);
    note("system_account", &old.accounts.system, &new.accounts.system);
    note("proxy_protocol", &was.proxy_protocol, &is.proxy_protocol);
    changes.extend(changed_blocks(old, new));
    changes
}

/// Returns the names of blocks that are not equal.
fn changed_blocks(old: &Options, new: &Options) -> impl Iterator<Item = String> {
    let (was, is) = (&old.network, &new.network);
    let blocks = [
        ("proxy_protocol_trusted", was.trusted_proxies != is.trusted_proxies),
        ("listen_unix: peers", was.unix != is.unix),
        ("websocket", was.websocket != is.websocket),
        ("mqtt", was.mqtt != is.mqtt),
        ("tls", was.tls != is.tls || was.allow_non_tls != is.allow_non_tls),
        ("ocsp", old.ocsp != new.ocsp),
        ("jetstream", old.jetstream != new.jetstream),
        ("accounts", old.accounts.list != new.accounts.list),
        ("resolver", old.trust != new.trust),
        ("overflow", old.overflow != new.overflow),
        ("authorization", old.auth != new.auth),
    ];
    let without_routes = |options: &Options| crate::config::ClusterOptions {
        routes: Vec::new(),
        ..options.cluster.clone()
    };
    let blocks = blocks.into_iter().chain([
        ("cluster", without_routes(old) != without_routes(new)),
        ("cluster routes", old.cluster.routes != new.cluster.routes),
        ("gateway", old.gateway != new.gateway),
    ]);
    blocks.filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned())
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
        new.timeouts.ping_interval_ms = 250;
        new.log.file = Some("/tmp/log".into());
        assert_eq!(changes(&old, &old.clone()), Vec::<String>::new());
        let wanted = ["log_file = \"/tmp/log\"", "max_payload = 1000", "ping_interval = 250ms"];
        assert_eq!(changes(&old, &new), wanted);
    }

    #[test]
    fn what_needs_a_restart_is_named_and_stays_as_it_was() {
        let old = Options::default();
        let mut new = Options::default();
        new.network.port = 4333;
        new.timeouts.ping_max = 7;
        new.runtime.shards = ShardCount::Exactly(3);
        new.runtime.pin = false;
        let kept = keep_fixed(&old, &mut new);
        let wanted =
            ["port: from 4222 to 4333", "shards: from auto to 3", "no_pin: from false to true"];
        assert_eq!(kept, wanted);
        let mut wanted = old;
        wanted.timeouts.ping_max = 7;
        assert_eq!(new, wanted);
    }

    #[test]
    fn no_secret_is_named() {
        let old = Options::default();
        let mut new = Options::default();
        new.auth.token = Some(crate::config::Secret::new("hush"));
        assert_eq!(changes(&old, &new), ["authorization"]);
    }
}
