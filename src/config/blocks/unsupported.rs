//! Blocks of nats-server's features that this server does not have. Mistakes in them are found
//! nevertheless.

use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use super::{StartError, tls};
use crate::auth::jwt;

/// Returns a row whose value `set` checks.
const fn key(
    names: &'static [&'static str],
    set: fn(&mut (), &mut Field<'_>) -> Checked,
) -> Key<()> {
    Key(names, Set(set))
}

type Checked = Result<(), StartError>;

/// Accepts a value of any kind.
pub(super) fn any(_: &mut Field<'_>) -> Checked {
    Ok(())
}

fn duration(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.signed_duration_ms().map(drop)
}

fn one_of(v: &Field<'_>, words: &[&str]) -> Checked {
    if words.contains(&v.text()?.as_str()) {
        return Ok(());
    }
    Err(v.error(format!("{} is one of {}", v.key, words.join(", "))))
}

fn write_timeout(_: &mut (), v: &mut Field<'_>) -> Checked {
    one_of(v, &["default", "close", "retry"])
}

fn block(keys: &[Key<()>], v: &mut Field<'_>) -> Checked {
    bind_map(&[keys], v.map()?, &mut (), v.warnings)
}

fn blocks(keys: &[Key<()>], v: &mut Field<'_>) -> Checked {
    v.each(|v| block(keys, v)).map(drop)
}

/// Checks `jetstream_cluster_migrate` of a remote of leaf nodes.
pub(super) fn migration(v: &mut Field<'_>) -> Result<(), StartError> {
    match &v.value.kind {
        ValueKind::Boolean(_) => Ok(()),
        ValueKind::Map(_) => v
            .each_entry(|entry, v| match entry.key.as_str() {
                "leader_migrate_delay" => duration(&mut (), v),
                _ => Ok(()),
            })
            .map(drop),
        _ => Err(v.expected("true, false, or {leader_migrate_delay: …}")),
    }
}

/// Checks `write_timeout` of links to servers.
pub(super) fn timeout(v: &mut Field<'_>) -> Result<(), StartError> {
    write_timeout(&mut (), v)
}

/// Checks the block `tls` in a block of an unsupported feature.
pub(super) fn tls(v: &mut Field<'_>) -> Checked {
    bind_map(&[tls::HERE, TLS_ELSEWHERE], v.map()?, &mut tls::TlsBlock::default(), v.warnings)
}

/// Keys of the block `tls` that are refused where this server has TLS, and accepted elsewhere.
const TLS_ELSEWHERE: &[Key<tls::TlsBlock>] = &[
    Key(&["cert_store", "cert_match", "cert_match_by"], Set(|_, v| v.text().map(drop))),
    Key(
        &["cert_match_skip_invalid", "verify_cert_and_check_known_urls"],
        Set(|_, v| v.boolean().map(drop)),
    ),
    Key(&["ca_certs_match"], Set(|_, _| Ok(()))),
];

/// Checks the block `proxies`.
pub(super) fn proxies(v: &mut Field<'_>) -> Result<bool, StartError> {
    block(PROXIES, v).map(|()| true)
}

const PROXIES: &[Key<()>] = &[key(&["trusted"], |_, v| blocks(PROXY, v))];

const PROXY: &[Key<()>] = &[key(&["key", "public_key"], |_, v| {
    let text = v.text()?;
    let is_key = jwt::is_key(&text, &['N', 'C', 'O', 'A', 'U', 'X']);
    if is_key { Ok(()) } else { Err(v.error(format!("\"{text}\" is not a public key"))) }
})];
