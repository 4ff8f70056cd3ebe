//! The blocks `ocsp` and `ocsp_cache`: staples of the server's certificates, and the memory of what
//! responders have said about those of peers.

use std::path::PathBuf;

use super::syntax::StartError;
use super::syntax::field::Action::Set;
use super::syntax::field::{Field, Key, bind_map};
use super::syntax::file::ValueKind;

/// Options of the status of certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OcspOptions {
    /// Certificates that are stapled (those that demand it).
    pub mode: StapleMode,
    /// Responders that are asked (none: those that the certificates name).
    pub urls: Vec<String>,
    /// The memory of answers about peers.
    pub cache: PeerCacheOptions,
}

/// The choice of certificates that are stapled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StapleMode {
    /// Certificates that demand it, whatever their status is.
    #[default]
    Auto,
    /// All certificates; the server ends when one is not good.
    Always,
    /// Certificates that demand it; the server ends when one is not good.
    Must,
    /// None.
    Never,
}

/// Options of the memory of answers about peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCacheOptions {
    /// Whether answers are remembered at all (true).
    pub is_kept: bool,
    /// The directory of the file with the answers (`_rc_`).
    pub directory: PathBuf,
    /// Whether a revoked certificate stays so when the answer has ended (false).
    pub preserves_revoked: bool,
    /// Milliseconds between two looks whether the file is to be written (300000).
    pub save_interval_ms: u64,
}

impl Default for PeerCacheOptions {
    fn default() -> Self {
        Self {
            is_kept: true,
            directory: "_rc_".into(),
            preserves_revoked: false,
            save_interval_ms: 300_000,
        }
    }
}

const OCSP: &[Key<OcspOptions>] = &[
    Key(&["mode"], Set(mode)),
    Key(&["url", "urls"], Set(|o, v| v.one_or_each(responder).map(|urls| o.urls = urls))),
];

/// Binds the value of `ocsp`.
pub(in crate::config) fn bind(
    options: &mut OcspOptions,
    v: &mut Field<'_>,
) -> Result<(), StartError> {
    match &v.value.kind {
        ValueKind::Boolean(true) => options.mode = StapleMode::Auto,
        ValueKind::Boolean(false) => options.mode = StapleMode::Never,
        ValueKind::Map(map) => bind_map(&[OCSP], map, options, v.warnings)?,
        _ => return Err(v.expected("true, false, or a block { mode: …, url: … }")),
    }
    Ok(())
}

fn mode(options: &mut OcspOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    options.mode = match v.text()?.to_ascii_lowercase().as_str() {
        "auto" => StapleMode::Auto,
        "always" => StapleMode::Always,
        "must" => StapleMode::Must,
        "never" => StapleMode::Never,
        other => {
            let modes = "write auto, always, must or never";
            return Err(v.error(format!("unsupported ocsp mode \"{other}\"; {modes}")));
        }
    };
    Ok(())
}

fn responder(v: &mut Field<'_>) -> Result<String, StartError> {
    let url = v.text()?;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(v.error("a responder has an address like http://host:port"));
    }
    Ok(url)
}

const CACHE: &[Key<PeerCacheOptions>] = &[
    Key(&["type"], Set(kind)),
    Key(&["local_store"], Set(|c, v| v.text().map(|path| c.directory = path.into()))),
    Key(&["preserve_revoked"], Set(|c, v| v.boolean().map(|on| c.preserves_revoked = on))),
    Key(
        &["save_interval"],
        Set(|c, v| v.seconds_ms().map(|ms| c.save_interval_ms = ms.max(SAVE_INTERVAL_MS_MIN))),
    ),
];

/// The shortest time between two looks whether the file is to be written, in milliseconds.
const SAVE_INTERVAL_MS_MIN: u64 = 1000;

/// Binds the value of `ocsp_cache`.
pub(in crate::config) fn bind_cache(
    cache: &mut PeerCacheOptions,
    v: &mut Field<'_>,
) -> Result<(), StartError> {
    match &v.value.kind {
        ValueKind::Boolean(on) => cache.is_kept = *on,
        ValueKind::Map(map) => bind_map(&[CACHE], map, cache, v.warnings)?,
        _ => return Err(v.expected("true, false, or a block { type: local, … }")),
    }
    Ok(())
}

fn kind(cache: &mut PeerCacheOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    cache.is_kept = match v.text()?.to_ascii_lowercase().as_str() {
        "local" => true,
        "none" => false,
        other => {
            let reason = format!("unknown type [{other}] of ocsp_cache; write local or none");
            return Err(v.error(reason));
        }
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::of_text;

    fn of(text: &str) -> OcspOptions {
        of_text(text).unwrap().ocsp
    }

    #[test]
    fn a_mode_is_a_word_or_a_truth_value() {
        assert_eq!(of("").mode, StapleMode::Auto);
        assert_eq!(of("ocsp: true").mode, StapleMode::Auto);
        assert_eq!(of("ocsp: false").mode, StapleMode::Never);
        assert_eq!(of("ocsp { mode: Always }").mode, StapleMode::Always);
        assert_eq!(of("ocsp { mode: must }").mode, StapleMode::Must);
        let urls = of("ocsp { mode: never, urls: [\"http://a:1\", \"https://b\"] }").urls;
        assert_eq!(urls, ["http://a:1", "https://b"]);
        assert_eq!(of("ocsp { url: \"http://a:1\" }").urls, ["http://a:1"]);
    }

    #[test]
    fn a_cache_is_local_or_none() {
        assert_eq!(of("").cache, PeerCacheOptions::default());
        assert!(!of("ocsp_cache: false").cache.is_kept);
        assert!(!of("ocsp_cache { type: none }").cache.is_kept);
        let text = "ocsp_cache { type: local, local_store: \"d\", preserve_revoked: true, \
                    save_interval: 0.5 }";
        let wanted = PeerCacheOptions {
            is_kept: true,
            directory: "d".into(),
            preserves_revoked: true,
            save_interval_ms: 1000,
        };
        assert_eq!(of(text).cache, wanted);
    }
}
