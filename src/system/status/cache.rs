//! The memory of answers about peers, and its file, which is that of nats-server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

use super::now;
use crate::config::PeerCacheOptions;
use crate::ocsp::{ANSWER_BYTES_MAX, CertAnswer, CertLink, CertStatus};
use crate::transport::{S2Reader, S2Writer};

/// Answers that are remembered, at most; the one that was added first goes for a further one.
const ANSWERS_MAX: usize = 4096;
/// The length of the file, at most, in bytes; a longer one is not read.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// An answer as the file has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct CachedAnswer {
    #[serde(default)]
    subject: String,
    cached_at: String,
    resp_status: String,
    #[serde(default)]
    resp_expires: String,
    /// The answer in DER form, compressed, in base64.
    resp: String,
}

/// Answers about peers, by the SHA-256 of their certificates in base64.
pub(super) struct PeerCache {
    options: PeerCacheOptions,
    answers: BTreeMap<String, CachedAnswer>,
    has_changed: bool,
}

impl PeerCache {
    /// Returns what the file remembers.
    pub(super) fn open(options: PeerCacheOptions) -> Self {
        let mut cache = Self { options, answers: BTreeMap::new(), has_changed: false };
        if !cache.options.is_kept {
            return cache;
        }
        let path = cache.path();
        match read_file(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(answers) => cache.answers = answers,
                Err(error) => tracing::error!("Unable to load OCSP peer cache: {error}"),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!("Unable to load OCSP peer cache: {error}"),
        }
        while cache.answers.len() > ANSWERS_MAX {
            cache.answers.pop_first();
        }
        cache
    }

    pub(super) fn options(&self) -> &PeerCacheOptions {
        &self.options
    }

    fn path(&self) -> PathBuf {
        self.options.directory.join("cache.json")
    }

    /// Returns the answer about a certificate; what is none any more is forgotten.
    pub(super) fn get(&mut self, link: &CertLink) -> Option<CertAnswer> {
        let key = key(link);
        let cached = self.answers.get(&key)?;
        let der = STANDARD.decode(&cached.resp).ok().and_then(|packed| unpack(&packed));
        let answer = der.and_then(|der| link.judge(&der, now()).ok());
        if answer.is_none() {
            self.answers.remove(&key);
            self.has_changed = true;
        }
        answer
    }

    /// Forgets an answer that has ended, unless it is to be kept.
    pub(super) fn on_ended(&mut self, link: &CertLink, status: CertStatus) {
        let stays = status == CertStatus::Revoked && self.options.preserves_revoked;
        if !stays && self.answers.remove(&key(link)).is_some() {
            self.has_changed = true;
        }
    }

    /// Remembers an answer.
    pub(super) fn put(&mut self, link: &CertLink, der: &[u8], answer: &CertAnswer) {
        if !self.options.is_kept {
            return;
        }
        let text = |at: i64| {
            let at = DateTime::from_timestamp(at, 0).unwrap_or_default();
            at.to_rfc3339_opts(SecondsFormat::Secs, true)
        };
        let cached = CachedAnswer {
            subject: link.subject(),
            cached_at: text(now()),
            resp_status: answer.status.word().to_owned(),
            // The time that nats-server writes for none.
            resp_expires: answer
                .next_update
                .map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), text),
            resp: STANDARD.encode(pack(der)),
        };
        let key = key(link);
        if self.answers.len() >= ANSWERS_MAX && !self.answers.contains_key(&key) {
            let oldest = self.answers.iter().min_by(|a, b| a.1.cached_at.cmp(&b.1.cached_at));
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.answers.remove(&oldest);
            }
        }
        self.answers.insert(key, cached);
        self.has_changed = true;
    }

    /// Writes the file if anything has changed.
    pub(super) fn save(&mut self) {
        if !self.options.is_kept || !std::mem::take(&mut self.has_changed) {
            return;
        }
        if let Err(error) = self.write() {
            self.has_changed = true;
            let path = self.path();
            tracing::error!("Unable to save OCSP peer cache: {}: {error}", path.display());
        }
    }

    fn write(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.options.directory)?;
        let (path, new) = (self.path(), self.options.directory.join("cache.json.new"));
        let mut file = fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(&self.answers)?)?;
        file.sync_all()?;
        fs::rename(new, path)
    }
}

/// Reads the file, which may be of anybody.
fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match read as u64 > FILE_BYTES_MAX {
        true => Err(std::io::Error::other(format!("{} is too long", path.display()))),
        false => Ok(bytes),
    }
}

fn key(link: &CertLink) -> String {
    STANDARD.encode(link.fingerprint())
}

fn pack(der: &[u8]) -> Vec<u8> {
    let mut writer = S2Writer::default();
    writer.write(der);
    writer.flush();
    writer.take(usize::MAX)
}

/// Returns what was compressed; `None` if it is no such stream, or too long.
fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let (mut reader, mut rest, mut out) = (S2Reader::trusted(), packed, Vec::new());
    while reader.next(&mut rest, &mut out).ok()? {
        if out.len() > ANSWER_BYTES_MAX {
            return None;
        }
    }
    Some(out)
}
