//! The block `tls`: certificates, who must have one, and how a handshake goes.
//!
//! Files are read and checked when the options are: a configuration with a certificate that cannot
//! be used is refused whole, at start and at a reload.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as crypto;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};

use super::certificates::{Certificates, Pair, roots};
use super::ciphers::{self, CipherSuites, bind_curves};
use super::field::Action::{Refuse, Set};
use super::field::{Field, Key, bind_map};
use super::file::Kind;
use super::insecure::Anybody;
use super::mistakes::{Mistakes, all};
use super::{StartError, unsupported, verifier};
use crate::auth::certificate;
use crate::transport::{HandshakeFirst, MutualTls, Tls};

/// How long a handshake may take if nothing is said.
pub const TIMEOUT_MS: u64 = 2000;
/// What `handshake_first: auto` means.
const FALLBACK_AUTO_MS: u64 = 50;

/// The block as it is written, or what flags say in its place.
#[derive(Debug, Clone)]
pub(in crate::config) struct Block {
    pub(in crate::config) pair: Pair,
    pub(in crate::config) pairs: Vec<Pair>,
    pub(in crate::config) ca_file: Option<PathBuf>,
    pub(in crate::config) verify: bool,
    pub(in crate::config) map: bool,
    pub(in crate::config) timeout_ms: u64,
    pub(in crate::config) first: HandshakeFirst,
    pub(in crate::config) cipher_suites: CipherSuites,
    pub(in crate::config) allows_insecure_suites: bool,
    pub(in crate::config) curves: Vec<&'static str>,
    pub(in crate::config) since_tls13: bool,
    pub(in crate::config) pinned_certs: Vec<String>,
    pub(in crate::config) connections_per_second_max: u64,
    pub(in crate::config) is_insecure: bool,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            pair: Pair::default(),
            pairs: Vec::new(),
            ca_file: None,
            verify: false,
            map: false,
            timeout_ms: TIMEOUT_MS,
            first: HandshakeFirst::No,
            cipher_suites: CipherSuites::default(),
            allows_insecure_suites: false,
            curves: Vec::new(),
            since_tls13: false,
            pinned_certs: Vec::new(),
            connections_per_second_max: 0,
            is_insecure: false,
        }
    }
}

/// What this server has of it.
pub(super) const HERE: &[Key<Block>] = &[
    Key(&["cert_file"], Set(|b, v| v.text().map(|file| b.pair.cert_file = Some(file.into())))),
    Key(&["key_file"], Set(|b, v| v.text().map(|file| b.pair.key_file = Some(file.into())))),
    Key(&["ca_file"], Set(|b, v| v.text().map(|file| b.ca_file = Some(file.into())))),
    Key(&["certs", "certificates"], Set(|b, v| v.each(pair).map(|pairs| b.pairs = pairs))),
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
    Key(
        &["cipher_suites"],
        Set(|b, v| CipherSuites::bind(v).map(|suites| b.cipher_suites = suites)),
    ),
    Key(
        &["allow_insecure_cipher_suites"],
        Set(|b, v| v.boolean().map(|allow| b.allows_insecure_suites = allow)),
    ),
    Key(&["curve_preferences"], Set(|b, v| bind_curves(v).map(|curves| b.curves = curves))),
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
];

const REFUSED: &[Key<Block>] = &[
    Key(&["ocsp_peer", "cert_store", "cert_match", "cert_match_by"], Refuse(unsupported::any)),
    Key(
        &["ca_certs_match", "cert_match_skip_invalid", "verify_cert_and_check_known_urls"],
        Refuse(unsupported::any),
    ),
];

/// Binds a block, and reads the files it names.
pub(super) fn bind(v: &mut Field<'_>) -> Result<Tls, StartError> {
    let mut block = Block::default();
    bind_map(&[HERE, REFUSED], v.map()?, &mut block, v.warnings)?;
    if block.is_insecure {
        v.warn_missing("insecure has no effect: only who dials others could use it");
    }
    block.load().map_err(|error| v.place(error))
}

/// The same for connections between servers.
pub(super) fn bind_mutual(v: &mut Field<'_>) -> Result<MutualTls, StartError> {
    let mut block = Block::default();
    bind_map(&[HERE, REFUSED], v.map()?, &mut block, v.warnings)?;
    (block.verify, block.map) = (true, false);
    block.load_mutual().map_err(|error| v.place(error))
}

const PAIR: &[Key<Pair>] = &[
    Key(&["cert_file"], Set(|p, v| v.text().map(|file| p.cert_file = Some(file.into())))),
    Key(&["key_file"], Set(|p, v| v.text().map(|file| p.key_file = Some(file.into())))),
];

/// One of several certificates.
fn pair(v: &mut Field<'_>) -> Result<Pair, StartError> {
    let mut pair = Pair::default();
    bind_map(&[PAIR], v.map()?, &mut pair, v.warnings)?;
    if pair.cert_file.is_none() || pair.key_file.is_none() {
        return Err(v.error("each of certs has a cert_file and a key_file; name both"));
    }
    Ok(pair)
}

fn handshake_first(block: &mut Block, v: &mut Field<'_>) -> Result<(), StartError> {
    block.first = match &v.value.kind {
        Kind::Boolean(false) => HandshakeFirst::No,
        Kind::Boolean(true) => HandshakeFirst::Always,
        Kind::Text(text) if ["auto", "auto_fallback"].contains(&&*text.to_ascii_lowercase()) => {
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
    certificates: Vec<Arc<CertifiedKey>>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    digest: [u8; 32],
}

impl Block {
    /// Reads the files and puts everything together.
    pub(in crate::config) fn load(self) -> Result<Tls, StartError> {
        let materials = self.read()?;
        self.assemble(&materials)
    }

    fn load_mutual(self) -> Result<MutualTls, StartError> {
        let materials = self.read()?;
        let provider = Arc::clone(&materials.provider);
        let Some(own) = materials.certificates.first() else {
            return Err(StartError::new("tls needs cert_file and key_file; name both"));
        };
        let own = SingleCertAndKey::from(Arc::clone(own));
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&materials.provider))
            .with_protocol_versions(materials.versions)
            .map_err(|error| StartError::new(format!("tls: {error}")))?
            .with_root_certificates(Arc::clone(&materials.roots))
            .with_client_cert_resolver(Arc::new(own));
        if self.is_insecure {
            client.dangerous().set_certificate_verifier(Arc::new(Anybody(provider)));
        }
        // Routes last: there is little to be won.
        client.resumption = Resumption::disabled();
        let is_insecure = self.is_insecure;
        Ok(MutualTls { client: Arc::new(client), tls: self.assemble(&materials)?, is_insecure })
    }

    fn read(&self) -> Result<Materials, StartError> {
        let is_single = self.pair.cert_file.is_some() || self.pair.key_file.is_some();
        if is_single && !self.pairs.is_empty() {
            return Err(StartError::new("tls has a cert_file or certs; keep one"));
        }
        self.cipher_suites.check(self.allows_insecure_suites).map_err(StartError::new)?;
        let pairs = if is_single { std::slice::from_ref(&self.pair) } else { &self.pairs };
        let provider = ciphers::provider(&self.cipher_suites, &self.curves);
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {:?} {}", self.cipher_suites, self.curves, self.since_tls13));
        let mut mistakes = Mistakes::default();
        let certificates = all(pairs.iter().map(|pair| pair.read(&provider, &mut digest)));
        let certificates = mistakes.take(certificates).unwrap_or_default();
        let ca_file = self.ca_file.as_deref();
        let needs_roots = self.verify || ca_file.is_some();
        let roots = needs_roots.then(|| roots(ca_file, &mut digest)).transpose();
        let roots = mistakes.take(roots).flatten().unwrap_or_else(RootCertStore::empty);
        mistakes.result()?;
        Ok(Materials {
            certificates,
            roots: Arc::new(roots),
            provider: Arc::new(provider),
            versions: match self.since_tls13 {
                true => TLS13_ALONE,
                false => rustls::ALL_VERSIONS,
            },
            digest: digest.finalize().into(),
        })
    }

    fn assemble(self, materials: &Materials) -> Result<Tls, StartError> {
        let Materials { certificates, roots, provider, .. } = materials;
        let has_certificate = !certificates.is_empty();
        let first = certificates.first().and_then(|own| own.cert.first());
        let ends_at = first.and_then(|der| certificate::ends_at(der));
        let certificates = Arc::new(Certificates(certificates.clone()));
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(materials.versions)
            .map_err(|error| StartError::new(format!("tls: {error}")))?;
        let monitoring = builder.clone().with_no_client_auth();
        let monitoring = monitoring.with_cert_resolver(Arc::<Certificates>::clone(&certificates));
        let builder = if self.verify {
            let (roots, provider) = (Arc::clone(roots), Arc::clone(provider));
            let verifier = verifier::of_clients(roots, provider).map_err(|error| {
                StartError::new(format!("tls: the certificates of ca_file cannot be used: {error}"))
            })?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut server = builder.with_cert_resolver(certificates);
        // The cheapest that is safe first, as nats-server does.
        server.ignore_client_order = true;
        // Clients keep their sessions themselves, encrypted: any shard can take one up again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let ticketer = crypto::Ticketer::new();
        server.ticketer = ticketer.map_err(|error| StartError::new(format!("tls: {error}")))?;
        Ok(Tls {
            server: Arc::new(server),
            monitoring: Arc::new(monitoring),
            has_certificate,
            ends_at,
            timeout_ms: self.timeout_ms,
            verify: self.verify,
            map: self.map,
            first: self.first,
            pinned_certs: self.pinned_certs,
            connections_per_second_max: self.connections_per_second_max,
            digest: materials.digest,
        })
    }
}
