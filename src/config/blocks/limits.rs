//! Limits of clients: sizes, numbers, rates, and times.

use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::{Options, Rates, StartError};

/// Times after which a silent or slow client is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutOptions {
    /// Milliseconds of silence after which a client is sent a PING (120 000).
    pub ping_interval_ms: u64,
    /// PINGs without an answer before a connection counts as stale (2).
    pub ping_max: u32,
    /// Milliseconds one write to a client may take (10 000).
    pub write_deadline_ms: u64,
    /// The policy for clients beyond `write_deadline_ms`, as the monitoring shows it (none). Every
    /// policy closes them.
    pub write_timeout: Option<&'static str>,
}

impl Default for TimeoutOptions {
    fn default() -> Self {
        Self {
            ping_interval_ms: 120_000,
            ping_max: 2,
            write_deadline_ms: 10_000,
            write_timeout: None,
        }
    }
}

/// The pace at which clients are disconnected in lame duck mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LameDuckOptions {
    /// Milliseconds from entering the mode to the end (120 000; at least 30 000).
    pub duration_ms: u64,
    /// Milliseconds from entering the mode to the first closed connection (10 000).
    pub grace_ms: u64,
}

impl Default for LameDuckOptions {
    fn default() -> Self {
        Self { duration_ms: 120_000, grace_ms: 10_000 }
    }
}

/// The largest value of limits that become a 32-bit number on the wire or in a client.
pub(super) const SIZE_MAX: u32 = i32::MAX.unsigned_abs();

pub(super) const KEYS: &[Key<Options>] = &[
    Key(
        &["max_control_line"],
        Set(|o, v| {
            v.size(SIZE_MAX).map(|n| set_unless_zero(&mut o.limits.control_line_bytes_max, n))
        }),
    ),
    Key(
        &["max_payload"],
        Set(|o, v| v.size(SIZE_MAX).map(|n| set_unless_zero(&mut o.limits.payload_bytes_max, n))),
    ),
    Key(
        &["max_pending"],
        Set(|o, v| {
            let limit = v.limit()?.unwrap_or(usize::MAX);
            set_unless_zero(&mut o.limits.pending_bytes_max, limit);
            Ok(())
        }),
    ),
    Key(
        &["max_connections", "max_conn"],
        Set(|o, v| v.limit().map(|n| o.limits.connections_max = n.unwrap_or(usize::MAX))),
    ),
    Key(
        &["max_subscriptions", "max_subs"],
        Set(|o, v| v.limit().map(|n| o.limits.subscriptions_max = n.unwrap_or(0))),
    ),
    Key(
        &["max_subscription_tokens", "max_sub_tokens"],
        Set(|o, v| v.size(255).map(|n| o.limits.subscription_tokens_max = n)),
    ),
    Key(
        &["ping_interval"],
        Set(|o, v| v.duration_ms().map(|ms| set_unless_zero(&mut o.timeouts.ping_interval_ms, ms))),
    ),
    Key(
        &["ping_max"],
        Set(|o, v| {
            set_unless_zero(
                &mut o.timeouts.ping_max,
                u32::try_from(v.size(SIZE_MAX)?).unwrap_or(SIZE_MAX),
            );
            Ok(())
        }),
    ),
    Key(
        &["write_deadline"],
        Set(|o, v| {
            v.duration_ms().map(|ms| set_unless_zero(&mut o.timeouts.write_deadline_ms, ms))
        }),
    ),
    Key(&["overflow"], Set(|o, v| super::overflow::bind(&mut o.overflow, v))),
    Key(&["write_timeout"], Set(write_timeout)),
    Key(
        &["rate_limits"],
        Set(|o, v| {
            o.rates = Rates::default();
            bind_map(&[RATES], v.map()?, &mut o.rates, v.warnings)
        }),
    ),
    Key(
        &["lame_duck_duration"],
        Set(|o, v| {
            o.lame_duck.duration_ms = v.duration_ms()?;
            if o.lame_duck.duration_ms < LAME_DUCK_DURATION_MS_MIN {
                return Err(v.error("lame_duck_duration is at least \"30s\""));
            }
            Ok(())
        }),
    ),
    Key(
        &["lame_duck_grace_period"],
        Set(|o, v| v.duration_ms().map(|ms| o.lame_duck.grace_ms = ms)),
    ),
];

const RATES: &[Key<Rates>] = &[
    Key(&["connections"], Set(|r, v| rate(v).map(|n| r.connections = n))),
    Key(&["connections_per_ip"], Set(|r, v| rate(v).map(|n| r.connections_per_ip = n))),
    Key(&["msgs_per_connection"], Set(|r, v| rate(v).map(|n| r.msgs_per_connection = n))),
    Key(&["bytes_per_connection"], Set(|r, v| rate(v).map(|n| r.bytes_per_connection = n))),
];

/// Reads a rate per second; a negative one means no limit.
fn rate(v: &mut Field<'_>) -> Result<u64, StartError> {
    v.limit().map(|limit| limit.unwrap_or(0) as u64)
}

const LAME_DUCK_DURATION_MS_MIN: u64 = 30_000;

/// Reads the policy for clients whose writes take too long. All policies close a client.
fn write_timeout(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    options.timeouts.write_timeout = match v.text()?.as_str() {
        "default" => None,
        "close" => Some("close"),
        "retry" => {
            v.warn_missing("write_timeout: retry is not supported yet; such clients are closed");
            Some("close")
        }
        _ => return Err(v.error("write_timeout is default, close or retry")),
    };
    Ok(())
}

/// Sets `option` to `value`, or to its default if that is zero, as nats-server does.
pub(super) fn set_unless_zero<T: Default + PartialEq>(option: &mut T, value: T) {
    if value != T::default() {
        *option = value;
    }
}
