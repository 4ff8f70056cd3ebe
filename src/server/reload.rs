//! What a reload may change, and what it did change.

#![forbid(unsafe_code)]

use crate::config::Options;

/// The changes from `old` to `new`, as the log names them; the error names one that needs a
/// restart.
pub(super) fn changes(old: &Options, new: &Options) -> Result<Vec<String>, String> {
    refuse("Host", &old.host, &new.host)?;
    refuse("Port", &old.port, &new.port)?;
    refuse("ServerName", &old.server_name, &new.server_name)?;
    refuse("HTTP", &old.http, &new.http)?;
    refuse("HTTPBasePath", &old.http_base_path, &new.http_base_path)?;
    refuse("PidFile", &old.pid_file, &new.pid_file)?;
    refuse("PortsFileDir", &old.ports_file_dir, &new.ports_file_dir)?;
    if old.log != new.log {
        return Err("config reload not supported for log settings: restart to change them".into());
    }
    refuse("Shards", &old.runtime, &new.runtime)?;
    refuse("LameDuckDuration", &old.lame_duck_duration_ms, &new.lame_duck_duration_ms)?;
    refuse("LameDuckGracePeriod", &old.lame_duck_grace_ms, &new.lame_duck_grace_ms)?;
    let mut changes = Vec::new();
    let mut note = |name: &str, was: &dyn ToString, is: &dyn ToString| {
        let (was, is) = (was.to_string(), is.to_string());
        if was != is {
            changes.push(format!("{name} = {is}"));
        }
    };
    let (was, is) = (&old.limits, &new.limits);
    note("max_control_line", &was.control_line_bytes_max, &is.control_line_bytes_max);
    note("max_payload", &was.payload_bytes_max, &is.payload_bytes_max);
    note("max_pending", &was.pending_bytes_max, &is.pending_bytes_max);
    note("max_connections", &was.connections_max, &is.connections_max);
    note("max_closed_clients", &old.closed_conns_max, &new.closed_conns_max);
    note("max_subscriptions", &was.subscriptions_max, &is.subscriptions_max);
    let (was_tokens, is_tokens) = (was.subscription_tokens_max, is.subscription_tokens_max);
    note("max_subscription_tokens", &was_tokens, &is_tokens);
    note("ping_interval", &millis(old.ping_interval_ms), &millis(new.ping_interval_ms));
    note("ping_max", &old.ping_max, &new.ping_max);
    note("write_deadline", &millis(old.write_deadline_ms), &millis(new.write_deadline_ms));
    note("no_header_support", &old.no_header_support, &new.no_header_support);
    if old.auth != new.auth {
        changes.push("authorization".to_owned());
    }
    Ok(changes)
}

fn millis(ms: u64) -> String {
    format!("{:?}", std::time::Duration::from_millis(ms))
}

fn refuse<T: PartialEq + std::fmt::Debug>(name: &str, old: &T, new: &T) -> Result<(), String> {
    if old == new {
        return Ok(());
    }
    Err(format!("config reload not supported for {name}: old={old:?}, new={new:?}"))
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
        assert_eq!(changes(&old, &old.clone()).unwrap(), Vec::<String>::new());
        assert_eq!(changes(&old, &new).unwrap(), ["max_payload = 1000", "ping_interval = 250ms"]);
    }

    #[test]
    fn what_needs_a_restart_is_refused_by_name() {
        let new = Options { port: 4333, ..Options::default() };
        let refused = changes(&Options::default(), &new).unwrap_err();
        assert_eq!(refused, "config reload not supported for Port: old=4222, new=4333");
    }
}
