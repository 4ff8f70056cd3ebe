//! The block `tls`: certificates, who must have one, and how a handshake goes.
//!
//! Files are read and checked when the options are: a configuration with a certificate that cannot
//! be used is refused whole, at start and at a reload.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as crypto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};

use super::field::Action::{Ignore, Refuse, Set};
use super::field::{Field, Key, bind_map};
use super::file::Kind;
use super::{StartError, missing, verifier};

/// How long a handshake may take if nothing is said.
pub const TIMEOUT_MS: u64 = 2000;
/// What `handshake_first: auto` means.
const FALLBACK_AUTO_MS: u64 = 50;

/// TLS as it is configured, files included.
#[derive(Clone)]
pub struct Tls {
    /// What a handshake needs; shared by all connections, so that sessions can be resumed on any.
    pub server: Arc<ServerConfig>,
    /// The same for the monitoring, which asks nobody for a certificate.
    pub monitoring: Arc<ServerConfig>,
    /// Milliseconds a client has for its handshake (2000).
    pub timeout_ms: u64,
    /// Clients must show a certificate that `ca_file` vouches for (false).
    pub verify: bool,
    /// The certificate says which user a client is (false).
    pub map: bool,
    /// Whether INFO comes before the handshake.
    pub first: HandshakeFirst,
    /// SHA-256 of the public keys that clients may have, in hexadecimal; empty: any.
    pub pinned_certs: Vec<String>,
    /// New connections in a second, those without TLS included where they are allowed; 0 is
    /// without limit (0).
    pub connections_per_second_max: u64,
    /// Of all files and names, so that a reload sees what has changed.
    digest: [u8; 32],
}

/// TLS between servers: each has a certificate that the other's `ca_file` vouches for.
#[derive(Debug, Clone)]
pub struct MutualTls {
    /// For those who dial.
    pub tls: Tls,
    /// For dialling.
    pub client: Arc<ClientConfig>,
}

impl PartialEq for MutualTls {
    fn eq(&self, other: &Self) -> bool {
        // Both are made of the same files.
        self.tls == other.tls
    }
}

/// When the handshake begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFirst {
    /// After INFO.
    No,
    /// Before INFO, which is then never sent in clear.
    Always,
    /// Before INFO if the client begins it within so many milliseconds, else after.
    Within(u64),
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
            && (self.timeout_ms, self.verify, self.map, self.first, &self.pinned_certs)
                == (other.timeout_ms, other.verify, other.map, other.first, &other.pinned_certs)
            && self.connections_per_second_max == other.connections_per_second_max
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout_ms, verify, map, first, .. } = self;
        write!(f, "Tls {{ timeout_ms: {timeout_ms}, verify: {verify}, map: {map}, {first:?} }}")
    }
}

/// The block as it is written, or what flags say in its place.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) verify: bool,
    pub(super) map: bool,
    pub(super) timeout_ms: u64,
    pub(super) first: HandshakeFirst,
    pub(super) cipher_suites: Vec<String>,
    pub(super) curves: Vec<String>,
    pub(super) since_tls13: bool,
    pub(super) pinned_certs: Vec<String>,
    pub(super) connections_per_second_max: u64,
    pub(super) is_insecure: bool,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            cert_file: None,
            key_file: None,
            ca_file: None,
            verify: false,
            map: false,
            timeout_ms: TIMEOUT_MS,
            first: HandshakeFirst::No,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            since_tls13: false,
            pinned_certs: Vec::new(),
            connections_per_second_max: 0,
            is_insecure: false,
        }
    }
}

const TLS: &[Key<Block>] = &[
    Key(&["cert_file"], Set(|b, v| v.text().map(|file| b.cert_file = Some(file.into())))),
    Key(&["key_file"], Set(|b, v| v.text().map(|file| b.key_file = Some(file.into())))),
    Key(&["ca_file"], Set(|b, v| v.text().map(|file| b.ca_file = Some(file.into())))),
    Key(&["certs"], Set(certs)),
    Key(&["verify"], Set(|b, v| v.boolean().map(|on| b.verify |= on))),
    Key(
        &["verify_and_map"],
        Set(|b, v| {
            b.map = v.boolean()?;
            b.verify |= b.map;
            Ok(())
        }),
    ),
    Key(&["timeout"], Set(|b, v| v.seconds_ms().map(|ms| b.timeout_ms = ms))),
    Key(&["handshake_first", "first", "immediate"], Set(handshake_first)),
    Key(&["cipher_suites", "ciphers"], Set(|b, v| v.texts().map(|names| b.cipher_suites = names))),
    Key(&["curve_preferences"], Set(|b, v| v.texts().map(|names| b.curves = names))),
    Key(&["min_version"], Set(min_version)),
    Key(&["pinned_certs"], Set(pinned_certs)),
    Key(
        &["connection_rate_limit"],
        Set(|b, v| {
            b.connections_per_second_max = v.limit()?.unwrap_or(0) as u64;
            Ok(())
        }),
    ),
    Key(&["insecure"], Set(|b, v| v.boolean().map(|on| b.is_insecure = on))),
    Key(&["allow_insecure_cipher_suites"], Ignore(&missing::ANY)),
    Key(&["ocsp_peer", "cert_store", "cert_match", "cert_match_by"], Refuse(&missing::ANY)),
    Key(
        &["ca_certs_match", "cert_match_skip_invalid", "verify_cert_and_check_known_urls"],
        Refuse(&missing::ANY),
    ),
];

/// Binds a block, and reads the files it names.
pub(super) fn bind(v: &mut Field<'_>) -> Result<Tls, StartError> {
    let mut block = Block::default();
    bind_map(&[TLS], v.map()?, &mut block, v.warnings)?;
    if block.is_insecure {
        v.warn_missing("insecure has no effect: only who dials others could use it");
    }
    block.load().map_err(|error| v.error(error))
}

/// The same for connections between servers.
pub(super) fn bind_mutual(v: &mut Field<'_>) -> Result<MutualTls, StartError> {
    let mut block = Block::default();
    bind_map(&[TLS], v.map()?, &mut block, v.warnings)?;
    if block.is_insecure {
        let reason = "insecure is not supported between servers: anybody could answer for them; \
                      name the ca_file that vouches for all of them instead";
        return Err(v.error(reason));
    }
    (block.verify, block.map) = (true, false);
    block.load_mutual().map_err(|error| v.error(error))
}

/// A list of pairs of files; one pair is all that is supported.
fn certs(block: &mut Block, v: &mut Field<'_>) -> Result<(), StartError> {
    const PAIR: &[Key<Block>] = &[
        Key(&["cert_file"], Set(|b, v| v.text().map(|file| b.cert_file = Some(file.into())))),
        Key(&["key_file"], Set(|b, v| v.text().map(|file| b.key_file = Some(file.into())))),
    ];
    if v.each(|v| bind_map(&[PAIR], v.map()?, block, v.warnings))?.len() != 1 {
        return Err(v.error("certs with more than one pair is not supported yet; name one"));
    }
    Ok(())
}

fn handshake_first(block: &mut Block, v: &mut Field<'_>) -> Result<(), StartError> {
    block.first = match &v.value.kind {
        Kind::Boolean(false) => HandshakeFirst::No,
        Kind::Boolean(true) => HandshakeFirst::Always,
        Kind::Text(text) if text.eq_ignore_ascii_case("auto") => {
            HandshakeFirst::Within(FALLBACK_AUTO_MS)
        }
        Kind::Text(text) if ["true", "on"].contains(&text.to_ascii_lowercase().as_str()) => {
            HandshakeFirst::Always
        }
        Kind::Text(text) if ["false", "off"].contains(&text.to_ascii_lowercase().as_str()) => {
            HandshakeFirst::No
        }
        _ => HandshakeFirst::Within(v.duration_ms()?),
    };
    Ok(())
}

fn min_version(block: &mut Block, v: &mut Field<'_>) -> Result<(), StartError> {
    block.since_tls13 = match v.text()?.trim_start_matches("TLS").trim() {
        "1.2" | "v1.2" => false,
        "1.3" | "v1.3" => true,
        _ => return Err(v.error("min_version is \"1.2\" or \"1.3\"; older ones are not safe")),
    };
    Ok(())
}

fn pinned_certs(block: &mut Block, v: &mut Field<'_>) -> Result<(), StartError> {
    block.pinned_certs = v.one_or_each(|v| {
        let pin = v.text()?.to_ascii_lowercase();
        if pin.len() != 64 || !pin.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let reason = "a pinned certificate is the SHA-256 of its public key, 64 hex digits";
            return Err(v.error(reason));
        }
        Ok(pin)
    })?;
    Ok(())
}

const TLS13_ALONE: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What the files hold, and which algorithms are used with it.
struct Materials {
    cert_file: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    digest: [u8; 32],
}

impl Materials {
    fn mismatched(&self, error: &rustls::Error) -> StartError {
        unusable(&self.cert_file, &format!("{error}; does the key belong to it?"))
    }
}

impl Block {
    /// Reads the files and puts everything together.
    pub(super) fn load(self) -> Result<Tls, StartError> {
        let materials = self.read()?;
        self.assemble(&materials)
    }

    fn load_mutual(self) -> Result<MutualTls, StartError> {
        let materials = self.read()?;
        let (chain, key) = (materials.chain.clone(), materials.key.clone_key());
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&materials.provider))
            .with_protocol_versions(materials.versions)
            .map_err(|error| StartError::new(format!("tls: {error}")))?
            .with_root_certificates(Arc::clone(&materials.roots))
            .with_client_auth_cert(chain, key)
            .map_err(|error| materials.mismatched(&error))?;
        // Routes last: there is little to be won.
        client.resumption = Resumption::disabled();
        Ok(MutualTls { client: Arc::new(client), tls: self.assemble(&materials)? })
    }

    fn read(&self) -> Result<Materials, StartError> {
        let (Some(cert_file), Some(key_file)) = (&self.cert_file, &self.key_file) else {
            return Err(StartError::new("tls needs cert_file and key_file; name both"));
        };
        if self.verify && self.ca_file.is_none() {
            let reason = "tls with verify needs ca_file: who vouches for the clients";
            return Err(StartError::new(reason));
        }
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {:?} {}", self.cipher_suites, self.curves, self.since_tls13));
        let chain = certificates(cert_file, &mut digest)?;
        let key = private_key(key_file, &mut digest)?;
        let mut roots = RootCertStore::empty();
        if let Some(ca_file) = &self.ca_file {
            for root in certificates(ca_file, &mut digest)? {
                roots.add(root).map_err(|error| unusable(ca_file, &error.to_string()))?;
            }
        }
        Ok(Materials {
            cert_file: cert_file.clone(),
            chain,
            key,
            roots: Arc::new(roots),
            provider: Arc::new(self.provider()?),
            versions: match self.since_tls13 {
                true => TLS13_ALONE,
                false => rustls::ALL_VERSIONS,
            },
            digest: digest.finalize().into(),
        })
    }

    fn assemble(self, materials: &Materials) -> Result<Tls, StartError> {
        let Materials { chain, key, roots, provider, .. } = materials;
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(materials.versions)
            .map_err(|error| StartError::new(format!("tls: {error}")))?;
        let monitoring = builder.clone().with_no_client_auth();
        let monitoring = monitoring.with_single_cert(chain.clone(), key.clone_key());
        let builder = if self.verify {
            let (roots, provider) = (Arc::clone(roots), Arc::clone(provider));
            let verifier = verifier::of_clients(roots, provider).map_err(|error| {
                StartError::new(format!("tls: the certificates of ca_file cannot be used: {error}"))
            })?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mismatched = |error| materials.mismatched(&error);
        let monitoring = Arc::new(monitoring.map_err(mismatched)?);
        let server = builder.with_single_cert(chain.clone(), key.clone_key());
        let mut server = server.map_err(mismatched)?;
        // The cheapest that is safe first, as nats-server does.
        server.ignore_client_order = true;
        // Clients keep their sessions themselves, encrypted: any shard can take one up again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let ticketer = crypto::Ticketer::new();
        server.ticketer = ticketer.map_err(|error| StartError::new(format!("tls: {error}")))?;
        Ok(Tls {
            server: Arc::new(server),
            monitoring,
            timeout_ms: self.timeout_ms,
            verify: self.verify,
            map: self.map,
            first: self.first,
            pinned_certs: self.pinned_certs,
            connections_per_second_max: self.connections_per_second_max,
            digest: materials.digest,
        })
    }

    /// The cipher suites and curves that are asked for, as far as there are such.
    fn provider(&self) -> Result<CryptoProvider, StartError> {
        let mut provider = crypto::default_provider();
        // AES with the shorter key first: it is the fastest wherever there is hardware for it.
        provider.cipher_suites.sort_by_key(|suite| {
            let name = format!("{:?}", suite.suite());
            (!name.starts_with("TLS13"), !name.contains("AES_128"), !name.contains("AES"))
        });
        if !self.cipher_suites.is_empty() {
            provider.cipher_suites.retain(|suite| {
                let name = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
                self.cipher_suites.iter().any(|wanted| {
                    let wanted = wanted.to_ascii_uppercase();
                    name == wanted || name == format!("{wanted}_SHA256")
                })
            });
            // As in Go, the list is about TLS 1.2; version 1.3 has nothing unsafe to leave out.
            if !self.since_tls13 {
                let all = crypto::default_provider().cipher_suites;
                let is_13 = |suite: &rustls::SupportedCipherSuite| suite.tls13().is_some();
                if !provider.cipher_suites.iter().any(is_13) {
                    provider.cipher_suites.splice(0..0, all.into_iter().filter(is_13));
                }
            }
        }
        if !self.curves.is_empty() {
            let known = |wanted: &String| {
                let wanted = wanted.to_ascii_uppercase();
                let name = match wanted.strip_prefix("CURVE").unwrap_or(&wanted) {
                    "P256" => "secp256r1",
                    "P384" => "secp384r1",
                    "X25519" => "X25519",
                    _ => return None,
                };
                let groups = &provider.kx_groups;
                groups.iter().find(|group| format!("{:?}", group.name()) == name).copied()
            };
            provider.kx_groups = self.curves.iter().filter_map(known).collect();
        }
        if provider.cipher_suites.is_empty() || provider.kx_groups.is_empty() {
            let reason = "tls: none of the cipher_suites or curve_preferences is supported; \
                          leave them out, or name ones of TLS 1.3 or ECDHE with GCM or ChaCha20";
            return Err(StartError::new(reason));
        }
        Ok(provider)
    }
}

fn read(file: &Path, digest: &mut Sha256) -> Result<Vec<u8>, StartError> {
    let bytes = std::fs::read(file).map_err(|error| unusable(file, &error.to_string()))?;
    digest.update(&bytes);
    Ok(bytes)
}

fn certificates(
    file: &Path,
    digest: &mut Sha256,
) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let bytes = read(file, digest)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(unusable(file, "there is no certificate in PEM form in it")),
        Err(error) => Err(unusable(file, &error.to_string())),
    }
}

fn private_key(file: &Path, digest: &mut Sha256) -> Result<PrivateKeyDer<'static>, StartError> {
    let bytes = read(file, digest)?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| unusable(file, &format!("no private key in PEM form: {error}")))
}

fn unusable(file: &Path, reason: &str) -> StartError {
    StartError::new(format!("tls: cannot use {}: {reason}", file.display()))
}
