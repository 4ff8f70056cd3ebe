//! The block `tls`: certificates, verification of the peer, and the handshake.
//!
//! Files are read and checked with the options: a configuration with a certificate that cannot be
//! used is refused as a whole, at start and at a reload.

pub(super) mod certificates;
mod ciphers;
mod insecure;
mod staples;
mod status;
mod verifier;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as crypto;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};

use super::syntax::field::Action::{Refuse, Set};
use super::syntax::field::{Field, Key, bind_map};
use super::syntax::file::ValueKind;
use super::syntax::mistakes::{Mistakes, all};
use super::syntax::{StartError, field, nearest};
use crate::auth::certificate;
use crate::ocsp::PeerPolicy;
use crate::transport::{DialedTls, HandshakeFirst, MutualTls, Staple, Tls};
use certificates::{Certificates, Pair, roots};
use ciphers::{CipherSuites, bind_curves};
pub(super) use ciphers::{curves, suites};
use insecure::Anybody;

/// Milliseconds for a handshake, by default.
pub const TIMEOUT_MS: u64 = 2000;
/// Milliseconds that `handshake_first: auto` stands for.
const FALLBACK_AUTO_MS: u64 = 50;

/// The block `tls` as it is written, or as flags replace it.
#[derive(Debug, Clone)]
pub(in crate::config) struct TlsBlock {
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
    pub(in crate::config) peers: Option<PeerPolicy>,
}

impl Default for TlsBlock {
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
            peers: None,
        }
    }
}

/// Keys of the block `tls` that this server supports.
pub(in crate::config) const HERE: &[Key<TlsBlock>] = &[
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
    Key(&["ocsp_peer"], Set(|b, v| status::peers(v).map(|peers| b.peers = peers))),
];

const REFUSED: &[Key<TlsBlock>] = &[
    Key(&["cert_store", "cert_match", "cert_match_by"], Refuse(any)),
    Key(
        &["ca_certs_match", "cert_match_skip_invalid", "verify_cert_and_check_known_urls"],
        Refuse(any),
    ),
];

/// TLS towards a server that is neither a client nor a peer.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Settings of the handshake.
    pub config: Arc<ClientConfig>,
    /// Certificates of the authorities that vouch for the server.
    pub(crate) authorities: Arc<[CertificateDer<'static>]>,
    /// The digest of all files, so that a reload sees a change.
    digest: [u8; 32],
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// Binds a block `tls` towards a server that is neither a client nor a peer, and reads its files.
pub(in crate::config) fn client(v: &mut Field<'_>) -> Result<ServerTls, StartError> {
    let mut block = TlsBlock::default();
    bind_map(&[HERE, REFUSED], v.map()?, &mut block, v.warnings)?;
    block.load_client(true).map_err(|error| v.place(error))
}

/// Returns TLS towards responders: with the authorities of this system, if it has any.
pub(crate) fn of_this_system() -> Result<ServerTls, StartError> {
    client_of_this_system(true).or_else(|_| client_of_this_system(false))
}

/// Returns TLS without a block: with the authorities of this system, or with none at all.
pub(in crate::config) fn client_of_this_system(trusts: bool) -> Result<ServerTls, StartError> {
    TlsBlock::default().load_client(trusts)
}

/// Accepts a value of any kind, of a key that is refused anyway.
fn any(_: &mut Field<'_>) -> Result<(), StartError> {
    Ok(())
}

/// Binds a block `tls` for clients, and reads the files it names.
pub(in crate::config) fn bind(v: &mut Field<'_>) -> Result<Tls, StartError> {
    let mut block = TlsBlock::default();
    bind_map(&[HERE, REFUSED], v.map()?, &mut block, v.warnings)?;
    if block.is_insecure {
        v.warn_missing("insecure has no effect: it is for outgoing connections");
    }
    if block.peers.is_some() && !block.verify {
        let reason = "OCSP peer verification for client connections requires TLS verify (mTLS) to \
                      be enabled; set verify: true beside ocsp_peer";
        return Err(v.error(reason));
    }
    block.load().map_err(|error| v.place(error))
}

/// Binds a block `tls` for connections between servers, and reads the files it names. Errors name
/// the other server as `peer`.
pub(in crate::config) fn bind_mutual(
    v: &mut Field<'_>,
    peer: &'static str,
) -> Result<MutualTls, StartError> {
    let mut block = TlsBlock::default();
    bind_map(&[HERE, REFUSED], v.map()?, &mut block, v.warnings)?;
    (block.verify, block.map) = (true, false);
    if block.peers.take().is_some() {
        v.warn_missing("ocsp_peer has no effect between servers: they check each other's staples");
    }
    block.load_mutual(peer).map_err(|error| v.place(error))
}

/// Binds a block `tls` for connections that are dialled to one other server, and reads the files it
/// names.
pub(in crate::config) fn bind_dialed(v: &mut Field<'_>) -> Result<DialedTls, StartError> {
    let mut block = TlsBlock::default();
    bind_map(&[HERE, REFUSED], v.map()?, &mut block, v.warnings)?;
    block.load_dialed().map_err(|error| v.place(error))
}

/// Returns TLS for connections that are dialled to a server whose certificate this host trusts.
pub(in crate::config) fn dialed_by_default() -> Result<DialedTls, StartError> {
    TlsBlock::default().load_dialed()
}

const PAIR: &[Key<Pair>] = &[
    Key(&["cert_file"], Set(|p, v| v.text().map(|file| p.cert_file = Some(file.into())))),
    Key(&["key_file"], Set(|p, v| v.text().map(|file| p.key_file = Some(file.into())))),
];

/// Binds an entry of `certs`: one of several certificates.
fn pair(v: &mut Field<'_>) -> Result<Pair, StartError> {
    let mut pair = Pair::default();
    bind_map(&[PAIR], v.map()?, &mut pair, v.warnings)?;
    if pair.cert_file.is_none() || pair.key_file.is_none() {
        return Err(v.error("each of certs has a cert_file and a key_file; name both"));
    }
    Ok(pair)
}

fn handshake_first(block: &mut TlsBlock, v: &mut Field<'_>) -> Result<(), StartError> {
    block.first = match &v.value.kind {
        ValueKind::Boolean(false) => HandshakeFirst::No,
        ValueKind::Boolean(true) => HandshakeFirst::Always,
        ValueKind::Text(text)
            if ["auto", "auto_fallback"].contains(&&*text.to_ascii_lowercase()) =>
        {
            HandshakeFirst::Within(FALLBACK_AUTO_MS)
        }
        ValueKind::Text(text) if ["true", "on"].contains(&text.to_ascii_lowercase().as_str()) => {
            HandshakeFirst::Always
        }
        ValueKind::Text(text) if ["false", "off"].contains(&text.to_ascii_lowercase().as_str()) => {
            HandshakeFirst::No
        }
        _ => HandshakeFirst::Within(v.duration_ms()?),
    };
    Ok(())
}

fn min_version(block: &mut TlsBlock, v: &mut Field<'_>) -> Result<(), StartError> {
    block.since_tls13 = match v.text()?.trim_start_matches("TLS").trim() {
        "1.2" | "v1.2" => false,
        "1.3" | "v1.3" => true,
        _ => return Err(v.error("min_version is \"1.2\" or \"1.3\"; older ones are not safe")),
    };
    Ok(())
}

fn pinned_certs(block: &mut TlsBlock, v: &mut Field<'_>) -> Result<(), StartError> {
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

/// Contents of the block's files, and algorithms to use with them.
struct Materials {
    certificates: Vec<Arc<Staple>>,
    roots: Arc<RootCertStore>,
    /// The certificates of `roots`.
    authorities: Arc<[CertificateDer<'static>]>,
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    digest: [u8; 32],
}

impl TlsBlock {
    /// Reads the files and builds the TLS settings for clients.
    pub(in crate::config) fn load(self) -> Result<Tls, StartError> {
        let materials = self.read()?;
        self.assemble(&materials)
    }

    fn load_mutual(self, peer: &'static str) -> Result<MutualTls, StartError> {
        let materials = self.read()?;
        let provider = Arc::clone(&materials.provider);
        let Some(own) = materials.certificates.first() else {
            return Err(StartError::new("tls needs cert_file and key_file; name both"));
        };
        let key = SingleCertAndKey::from(Arc::clone(own.key()));
        let verifier = staples::verifier(own, &materials, peer)?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&materials.provider))
            .with_protocol_versions(materials.versions)
            .map_err(|error| StartError::new(format!("tls: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(key));
        if self.is_insecure {
            client.dangerous().set_certificate_verifier(Arc::new(Anybody(provider)));
        }
        // Routes are seldom opened: resuming a session would save little.
        client.resumption = Resumption::disabled();
        let is_insecure = self.is_insecure;
        Ok(MutualTls { client: Arc::new(client), tls: self.assemble(&materials)?, is_insecure })
    }

    fn load_client(mut self, trusts: bool) -> Result<ServerTls, StartError> {
        // Whoever vouches for the server is needed, whether or not clients are verified.
        self.verify = trusts;
        let materials = self.read()?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&materials.provider))
            .with_protocol_versions(materials.versions)
            .map_err(|error| StartError::new(format!("tls: {error}")))?
            .with_root_certificates(Arc::clone(&materials.roots));
        let mut client = match materials.certificates.first() {
            Some(own) => {
                let own = SingleCertAndKey::from(Arc::clone(own.key()));
                builder.with_client_cert_resolver(Arc::new(own))
            }
            None => builder.with_no_client_auth(),
        };
        if self.is_insecure {
            let provider = Arc::clone(&materials.provider);
            client.dangerous().set_certificate_verifier(Arc::new(Anybody(provider)));
        }
        let authorities = materials.authorities;
        Ok(ServerTls { config: Arc::new(client), authorities, digest: materials.digest })
    }

    fn load_dialed(self) -> Result<DialedTls, StartError> {
        let (timeout_ms, is_first) = (self.timeout_ms, self.first != HandshakeFirst::No);
        let (is_insecure, peers) = (self.is_insecure, self.peers.clone().map(Arc::new));
        let ServerTls { config, authorities, digest } = self.load_client(true)?;
        let mut client = ClientConfig::clone(&config);
        client.resumption = Resumption::disabled();
        let digest = Sha256::new().chain_update(digest).chain_update([u8::from(is_insecure)]);
        let digest = digest.finalize().into();
        let client = Arc::new(client);
        Ok(DialedTls { client, timeout_ms, is_first, authorities, peers, digest })
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
        digest.update(format!("{:?}", self.peers));
        let mut mistakes = Mistakes::default();
        let certificates = all(pairs.iter().map(|pair| pair.read(&provider, &mut digest)));
        let certificates = mistakes.take(certificates).unwrap_or_default();
        let ca_file = self.ca_file.as_deref();
        let needs_roots = self.verify || ca_file.is_some();
        let roots = needs_roots.then(|| roots(ca_file, &mut digest)).transpose();
        let roots = mistakes.take(roots).flatten();
        let (roots, authorities) = roots.unwrap_or_else(|| (RootCertStore::empty(), Vec::new()));
        mistakes.result()?;
        let authorities: Arc<[CertificateDer<'static>]> = authorities.into();
        let staple = |(key, pair): (Arc<CertifiedKey>, &Pair)| {
            let file = pair.cert_file.clone().unwrap_or_default();
            Arc::new(Staple::new(key, file, Arc::clone(&authorities)))
        };
        Ok(Materials {
            certificates: certificates.into_iter().zip(pairs).map(staple).collect(),
            roots: Arc::new(roots),
            authorities,
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
        let first = certificates.first().and_then(|own| own.key().cert.first());
        let ends_at = first.and_then(|der| certificate::ends_at(der));
        let staples = certificates.clone();
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
        // The cheapest safe suite first, as nats-server orders them.
        server.ignore_client_order = true;
        // Clients keep their sessions themselves, encrypted: any shard can resume one.
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
            authorities: Arc::clone(&materials.authorities),
            map: self.map,
            first: self.first,
            pinned_certs: self.pinned_certs,
            staples,
            peers: self.peers.map(Arc::new),
            connections_per_second_max: self.connections_per_second_max,
            digest: materials.digest,
        })
    }
}
