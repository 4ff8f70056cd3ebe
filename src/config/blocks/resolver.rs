//! The key `resolver`: where tokens of accounts come from.

use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use super::rules::BrokenRule;
use super::tls::ServerTls;
use super::trust::{ACCOUNTS_MAX, Directory, TrustOptions};
use super::{Options, StartError, tls};

/// A server that has tokens of accounts, over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct UrlResolver {
    /// The address that an account's key is put behind; it ends in `/`.
    pub url: String,
    /// TLS towards the server.
    pub tls: ServerTls,
}

/// Accounts that a cache keeps, unless another limit is set.
const CACHED_MAX: usize = 1000;

#[derive(Default)]
struct Resolver {
    kind: String,
    directory: Directory,
    limit: Option<usize>,
    ttl_ms: Option<u64>,
    has_interval: bool,
    has_hard_delete: bool,
}

const RESOLVER: &[Key<Resolver>] = &[
    Key(&["type"], Set(|r, v| v.text().map(|kind| r.kind = kind.to_ascii_lowercase()))),
    Key(&["dir"], Set(|r, v| v.text().map(|dir| r.directory.path = dir.into()))),
    Key(&["allow_delete"], Set(|r, v| v.boolean().map(|yes| r.directory.allow_delete = yes))),
    Key(
        &["hard_delete"],
        Set(|r, v| {
            r.has_hard_delete = true;
            v.boolean().map(|yes| r.directory.hard_delete = yes)
        }),
    ),
    Key(
        &["interval"],
        Set(|r, v| {
            r.has_interval = true;
            v.duration_ms().map(|ms| r.directory.interval_ms = ms)
        }),
    ),
    Key(&["limit"], Set(|r, v| v.limit().map(|max| r.limit = max))),
    Key(&["ttl"], Set(|r, v| v.duration_ms().map(|ms| r.ttl_ms = Some(ms)))),
    Key(&["timeout"], Set(|r, v| v.duration_ms().map(|ms| r.directory.timeout_ms = ms))),
];

const KINDS: &str = "resolver is MEMORY, URL(\"http://…\"), or { type: full or cache, dir: … }";

pub(super) fn resolver(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let trust = options.trust.get_or_insert_default();
    trust.is_resolved = true;
    if let ValueKind::Text(text) = &v.value.kind {
        let kind = text.trim().to_ascii_uppercase();
        return match kind.as_str() {
            "MEMORY" | "MEM" => Ok(()),
            _ if kind.starts_with("URL") => {
                let url = address(text).ok_or_else(|| v.error(KINDS))?;
                trust.wanted_url = Some(checked(&url).map_err(|reason| v.error(reason))?);
                Ok(())
            }
            _ => Err(v.error(KINDS)),
        };
    }
    let mut resolver = Resolver::default();
    bind_map(&[RESOLVER], v.map()?, &mut resolver, v.warnings)?;
    trust.directory = match resolver.kind.as_str() {
        "mem" | "memory" => None,
        "full" => Some(full(resolver).map_err(|reason| v.error(reason))?),
        "cache" => Some(cache(resolver).map_err(|reason| v.error(reason))?),
        _ => return Err(v.error(KINDS)),
    };
    Ok(())
}

/// Returns the address in `URL(…)`, with or without quotes.
fn address(text: &str) -> Option<String> {
    let inner = text.trim().get(3..)?.trim().strip_prefix('(')?.strip_suffix(')')?;
    let inner = inner.trim().trim_matches('"').trim();
    (!inner.contains(['"', ' '])).then(|| inner.to_owned())
}

fn checked(url: &str) -> Result<String, String> {
    let uri: Result<hyper::Uri, _> = url.parse();
    let is_http = uri.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
    });
    match is_http {
        true if url.ends_with('/') => Ok(url.to_owned()),
        true => Ok(format!("{url}/")),
        false => Err(format!(
            "could not fetch <\"{url}\">: the address begins with http:// or https:// and names a \
             host"
        )),
    }
}

fn full(resolver: Resolver) -> Result<Directory, &'static str> {
    let directory = directory(&resolver)?;
    if resolver.ttl_ms.is_some_and(|ms| ms > 0) {
        return Err("FULL does not accept ttl; leave it out");
    }
    if directory.hard_delete && !directory.allow_delete {
        return Err("hard_delete needs allow_delete; set both or neither");
    }
    if directory.interval_ms == 0 {
        return Err("interval is at least 1ms");
    }
    Ok(Directory { accounts_max: at_most(resolver.limit), ..directory })
}

fn cache(resolver: Resolver) -> Result<Directory, &'static str> {
    let directory = directory(&resolver)?;
    if resolver.has_interval {
        return Err("CACHE does not accept sync; leave interval out");
    }
    if directory.allow_delete {
        return Err("CACHE does not accept allow_delete; leave it out");
    }
    if resolver.has_hard_delete {
        return Err("CACHE does not accept hard_delete; leave it out");
    }
    let accounts_max = resolver.limit.filter(|max| *max > 0).unwrap_or(CACHED_MAX);
    let (ttl_ms, accounts_max) = (resolver.ttl_ms.unwrap_or(0), accounts_max.min(ACCOUNTS_MAX));
    // Files that are left out are removed: they are nobody's only copy.
    Ok(Directory { is_cache: true, hard_delete: true, ttl_ms, accounts_max, ..directory })
}

fn directory(resolver: &Resolver) -> Result<Directory, &'static str> {
    let directory = resolver.directory.clone();
    if directory.path.as_os_str().is_empty() {
        return Err("dir has no value and needs to point to a directory");
    }
    if directory.timeout_ms == 0 {
        return Err("Fetch timeout 0s is too small");
    }
    Ok(directory)
}

/// Returns a limit of accounts; none, and 0, become `ACCOUNTS_MAX`.
fn at_most(limit: Option<usize>) -> usize {
    limit.filter(|max| *max > 0).map_or(ACCOUNTS_MAX, |max| max.min(ACCOUNTS_MAX))
}

/// Binds `resolver_tls`.
pub(super) fn resolver_tls(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    options.trust.get_or_insert_default().client_tls = Some(tls::client(v)?);
    Ok(())
}

/// Puts address and TLS together once the whole file is read. `operator_url` is the operator's own
/// server, for a file that names no resolver.
pub(super) fn settle(trust: &mut TrustOptions, operator_url: &str) -> Result<(), BrokenRule> {
    const KEYS: &[&str] = &["resolver", "account_resolver", "accounts_resolver", "resolver_tls"];
    let refuse = |reason: String| BrokenRule::of(KEYS, reason);
    if !trust.is_resolved && !operator_url.is_empty() {
        let url = format!("{}/accounts", operator_url.trim_end_matches('/'));
        trust.wanted_url = Some(checked(&url).map_err(refuse)?);
        trust.is_resolved = true;
    }
    let Some(url) = trust.wanted_url.take() else { return Ok(()) };
    if !trust.preloaded.is_empty() {
        let reason = "resolver preloads only available for writeable resolver types \
                      MEM/DIR/CACHE_DIR: leave resolver_preload out";
        return Err(refuse(reason.to_owned()));
    }
    let tls = match trust.client_tls.take() {
        Some(configured) => configured,
        None => tls::client_of_this_system(url.starts_with("https://"))
            .map_err(|error| refuse(error.to_string()))?,
    };
    trust.url = Some(UrlResolver { url, tls });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_quotes() {
        for text in ["URL(http://h/x/)", "url(\"http://h/x/\")", "URL( \"http://h/x/\" )"] {
            assert_eq!(address(text).as_deref(), Some("http://h/x/"), "{text}");
        }
        for text in ["URL", "URL(", "URL)", "URL(a b)"] {
            assert_eq!(address(text), None, "{text}");
        }
        assert_eq!(checked("http://h:1/x"), Ok("http://h:1/x/".to_owned()));
        for url in ["", "ftp:/x", "/", "http:///x", "h/x"] {
            assert!(checked(url).unwrap_err().starts_with("could not fetch"), "{url}");
        }
    }
}
