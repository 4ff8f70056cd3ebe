//! The block `mqtt`: the port for clients of MQTT, and the streams that keep their state.

use super::syntax::StartError;
use super::syntax::field::Action::Set;
use super::syntax::field::{Field, Key, bind_map};
use crate::auth::Secret;
use crate::session::settings::MqttSettings;
use crate::transport::Tls;

/// Nanoseconds of a millisecond.
const NS_PER_MS: u64 = 1_000_000;

/// Options of MQTT.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MqttOptions {
    /// Address or host name (none: the client port's).
    pub host: Option<String>,
    /// Port (none: no listener); 0 is any free port.
    pub port: Option<u16>,
    /// TLS for MQTT clients (none).
    pub tls: Option<Tls>,
    /// Credentials for MQTT clients.
    pub login: MqttLogin,
    /// The user for clients without credentials (none).
    pub no_auth_user: Option<String>,
    /// Milliseconds until a message that is not acknowledged is sent again (0: 30000).
    pub ack_wait_ms: u64,
    /// Messages of one filter that may be unacknowledged (0: 1024).
    pub ack_pending_max: u16,
    /// The domain of the JetStream in which state is kept (none: this server's).
    pub domain: Option<String>,
    /// Copies of each stream (0: one).
    pub replicas: u32,
    /// Whether the state of consumers is in memory only (false).
    pub has_memory_consumers: bool,
    /// Milliseconds after which the consumer of an absent session is deleted (0: never).
    pub inactive_ms: u64,
    /// Milliseconds that requests to JetStream may take (0: 5000).
    pub api_timeout_ms: u64,
    /// Whether clients that publish with QoS 2 are sent away (false).
    pub rejects_qos2: bool,
    /// Whether filters get QoS 1 where 2 was asked for (false).
    pub downgrades_qos2: bool,
}

impl MqttLogin {
    /// Whether clients have to show something else than at the other ports.
    pub(in crate::config) fn is_required(&self) -> bool {
        self.user.is_some() || self.token.is_some()
    }
}

impl MqttOptions {
    /// Returns the settings for the shards.
    pub(in crate::config) fn settings(&self) -> MqttSettings {
        let ns = |ms: u64| ms.saturating_mul(NS_PER_MS);
        let or = |ms: u64, default: u64| if ms == 0 { default } else { ms };
        MqttSettings {
            tls: self.tls.clone(),
            auth_timeout_ms: self.login.timeout_ms,
            no_auth_user: self.no_auth_user.clone(),
            ack_wait_ns: ns(or(self.ack_wait_ms, 30_000)),
            ack_pending_max: if self.ack_pending_max == 0 { 1024 } else { self.ack_pending_max },
            domain: self.domain.clone(),
            replicas: self.replicas,
            has_memory_consumers: self.has_memory_consumers,
            inactive_ns: ns(self.inactive_ms),
            api_timeout_ns: ns(or(self.api_timeout_ms, 5000)),
            rejects_qos2: self.rejects_qos2,
            downgrades_qos2: self.downgrades_qos2,
        }
    }
}

const MQTT: &[Key<MqttOptions>] = &[
    Key(
        &["listen"],
        Set(|m, v| {
            let (host, port) = v.address()?;
            m.port = Some(port);
            m.host = host.or_else(|| m.host.take());
            Ok(())
        }),
    ),
    Key(&["host", "net"], Set(|m, v| v.text().map(|host| m.host = Some(host)))),
    Key(&["port"], Set(|m, v| v.port().map(|port| m.port = Some(port)))),
    Key(&["tls"], Set(|m, v| super::tls::bind(v).map(|tls| m.tls = Some(tls)))),
    Key(&["authorization", "authentication"], Set(login)),
    Key(&["no_auth_user"], Set(|m, v| v.text().map(|name| m.no_auth_user = Some(name)))),
    Key(&["ack_wait", "ackwait"], Set(ack_wait)),
    Key(
        &["js_api_timeout", "api_timeout"],
        Set(|m, v| v.duration_ms().map(|ms| m.api_timeout_ms = ms)),
    ),
    Key(
        &["max_ack_pending", "max_pending", "max_inflight"],
        Set(|m, v| {
            let pending = v.size(u16::MAX.into())?;
            m.ack_pending_max = u16::try_from(pending).unwrap_or(u16::MAX);
            Ok(())
        }),
    ),
    Key(&["js_domain"], Set(|m, v| v.text().map(|domain| m.domain = Some(domain)))),
    Key(
        &["stream_replicas"],
        Set(|m, v| v.integer().map(|count| m.replicas = u32::try_from(count).unwrap_or(0))),
    ),
    Key(
        &["consumer_replicas"],
        Set(|_, v| {
            v.warn("consumer_replicas is ignored by nats-server too; leave it out");
            Ok(())
        }),
    ),
    Key(
        &["consumer_memory_storage"],
        Set(|m, v| v.boolean().map(|is| m.has_memory_consumers = is)),
    ),
    Key(
        &["consumer_inactive_threshold", "consumer_auto_cleanup"],
        Set(|m, v| v.duration_ms().map(|ms| m.inactive_ms = ms)),
    ),
    Key(&["reject_qos2_publish"], Set(|m, v| v.boolean().map(|is| m.rejects_qos2 = is))),
    Key(&["downgrade_qos2_subscribe"], Set(|m, v| v.boolean().map(|is| m.downgrades_qos2 = is))),
];

fn ack_wait(mqtt: &mut MqttOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let wait_ms = v.signed_duration_ms()?;
    let wait = u64::try_from(wait_ms).map_err(|_| v.error("ack wait must be a positive value"))?;
    mqtt.ack_wait_ms = wait;
    Ok(())
}

/// Credentials of a login of MQTT: those of one user, or a token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MqttLogin {
    /// The user's name (none: the users of all clients).
    pub user: Option<String>,
    /// The user's password (none: an empty one).
    pub password: Option<Secret>,
    /// The token in place of a user (none).
    pub token: Option<Secret>,
    /// Milliseconds that a login may take (none: as for all clients).
    pub timeout_ms: Option<u64>,
}

const LOGIN: &[Key<MqttLogin>] = &[
    Key(&["user", "username"], Set(|l, v| v.text().map(|name| l.user = Some(name)))),
    Key(&["password", "pass"], Set(|l, v| v.text().map(|p| l.password = Some(Secret::new(p))))),
    Key(&["token"], Set(|l, v| v.text().map(|token| l.token = Some(Secret::new(token))))),
    // As in nats-server, anything that is no number of seconds is the default.
    Key(
        &["timeout"],
        Set(|l, v| {
            l.timeout_ms = v.seconds_ms().ok();
            Ok(())
        }),
    ),
];

/// Binds `authorization`: one user, a token, or only a timeout.
fn login(mqtt: &mut MqttOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut login = MqttLogin::default();
    bind_map(&[LOGIN], v.map()?, &mut login, v.warnings)?;
    if login.token.is_some() && (login.user.is_some() || login.password.is_some()) {
        return Err(v.error("cannot have a user/password and a token; keep one"));
    }
    mqtt.login = login;
    Ok(())
}

/// Binds the block `mqtt`.
pub(in crate::config) fn bind(v: &mut Field<'_>) -> Result<Option<MqttOptions>, StartError> {
    let mut mqtt = MqttOptions::default();
    bind_map(&[MQTT], v.map()?, &mut mqtt, v.warnings)?;
    // As in nats-server, without a port there is no MQTT.
    Ok(Some(mqtt).filter(|mqtt| mqtt.port.is_some()))
}
