//! Rules between options, whether they come from the file or from flags.

pub(super) use super::written::BrokenRule;
use super::{Options, accounts, callout, cluster, gateway, jetstream, leafnodes, listeners};

/// Returns the rules that `options` break.
pub(in crate::config) fn check(options: &Options) -> Vec<BrokenRule> {
    let mut broken = Vec::new();
    let mut refuse = |keys, reason: String| broken.push(BrokenRule::of(keys, reason));
    let network = &options.network;
    let has_certificate = network.tls.as_ref().map(|tls| tls.has_certificate);
    if has_certificate == Some(false) && network.requires_tls() {
        let reason = "tls without certificates keeps everybody out: name cert_file and key_file, \
                      or set allow_non_tls: true";
        refuse(&["tls", "allow_non_tls"], reason.to_owned());
    }
    let websocket = network.websocket.as_ref().and_then(|websocket| websocket.tls.as_ref());
    if websocket.is_some_and(|tls| !tls.has_certificate) {
        let reason = "tls of websocket needs cert_file and key_file; name both";
        refuse(&["websocket", "ws"], reason.to_owned());
    }
    if options.monitoring.is_tls() && has_certificate != Some(true) {
        let reason = "https needs a certificate: name cert_file and key_file in a block tls";
        refuse(&["https", "https_port", "tls"], reason.to_owned());
    }
    if let Some(name) = options.server.name.as_ref().filter(|name| name.contains(' ')) {
        refuse(&["server_name"], format!("server name \"{name}\" cannot contain spaces"));
    }
    let (payload, pending) = (options.limits.payload_bytes_max, options.limits.pending_bytes_max);
    if payload > pending {
        let reason =
            format!("max_payload ({payload}) cannot be higher than max_pending ({pending})");
        refuse(&["max_payload", "max_pending"], reason);
    }
    let (grace_ms, duration_ms) = (options.lame_duck.grace_ms, options.lame_duck.duration_ms);
    if grace_ms >= duration_ms {
        let reason = format!(
            "lame_duck_grace_period ({grace_ms} ms) must be less than lame_duck_duration \
             ({duration_ms} ms)"
        );
        refuse(&["lame_duck_grace_period", "lame_duck_duration"], reason);
    }
    let auth = &options.auth;
    if auth.token.is_some() && !auth.users.is_empty() {
        let reason = "cannot have a token and a users array; keep one";
        refuse(&["authorization", "accounts"], reason.to_owned());
    }
    if let Some(name) = &auth.no_auth_user
        && !auth.users.iter().any(|user| user.name == *name)
    {
        let reason = format!("no_auth_user \"{name}\" is not in users; add it there");
        refuse(&["no_auth_user", "authorization", "accounts"], reason);
    }
    listeners::check(options, &mut broken);
    cluster::check(options, &mut broken);
    gateway::check(options, &mut broken);
    leafnodes::check(options, &mut broken);
    accounts::check(options, &mut broken);
    jetstream::check(options, &mut broken);
    callout::check(options, &mut broken);
    broken
}
