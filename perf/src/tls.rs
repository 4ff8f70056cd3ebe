//! TLS, without I/O: bytes from the socket in, bytes for the socket out.

use crate::fault::{Fault, Outcome};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the user says about TLS.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TlsArgs {
    /// Speak TLS where the server offers it; where it requires it, that is done without asking
    #[arg(long)]
    tls: bool,
    /// Certificates of the authorities to trust (PEM) [default: those of this system]
    #[arg(long, value_name = "FILE")]
    tlsca: Option<PathBuf>,
    /// Certificate of the client (PEM)
    #[arg(long, value_name = "FILE", requires = "tlskey")]
    tlscert: Option<PathBuf>,
    /// Key of the client's certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    tlskey: Option<PathBuf>,
    /// Begin with TLS, before INFO, as the server's handshake_first wants it
    #[arg(long)]
    tlsfirst: bool,
    /// Trust any certificate
    #[arg(long, conflicts_with = "tlsca")]
    tlsinsecure: bool,
}

/// How to speak TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    /// Speak it where it is not required, too.
    pub(crate) wanted: bool,
    /// Speak it before INFO.
    pub(crate) first: bool,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn load(args: &TlsArgs) -> Outcome<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unusable = |e: &dyn std::fmt::Display| {
            Fault::new(format!("TLS cannot be set up ({e})"), "check --tlsca, --tlscert, --tlskey")
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&e))?;
        let roots = Arc::new(authorities(args.tlsca.as_deref())?);
        let builder = if args.tlsinsecure || roots.is_empty() {
            let trusting = args.tlsinsecure;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unchecked { provider, trusting }))
        } else {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            builder.with_webpki_verifier(verifier.map_err(|e| unusable(&e))?)
        };
        let mut config = match (&args.tlscert, &args.tlskey) {
            (Some(cert), Some(key)) => {
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key, &e))?;
                let chain = certificates(cert)?;
                builder.with_client_auth_cert(chain, key).map_err(|e| unusable(&e))?
            }
            _ => builder.with_no_client_auth(),
        };
        // Each connection is as dear as a new client's.
        config.resumption = Resumption::disabled();
        let TlsArgs { tls, tlsca, tlscert, tlsfirst, tlsinsecure, .. } = args;
        let wanted = *tls || *tlsfirst || *tlsinsecure || tlsca.is_some() || tlscert.is_some();
        Ok(Self { config: Arc::new(config), wanted, first: *tlsfirst })
    }

    /// Begins a session with the server of this name or address.
    pub(crate) fn begin(&self, host: &str) -> Outcome<Session> {
        let bad = |e: &dyn std::fmt::Display| {
            let cause = format!("'{host}' cannot be a server's name in TLS ({e})");
            Fault::new(cause, "name the host as its certificate does")
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| bad(&e))?;
        let mut conn =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(|e| bad(&e))?;
        conn.set_buffer_limit(None);
        Ok(Session { conn })
    }
}

/// The authorities in `file`, or those of this system: there may be none.
fn authorities(file: Option<&Path>) -> Outcome<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|e| unreadable(file, &e))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Outcome<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let all: Vec<_> = all.map_err(|e| unreadable(file, &e))?;
    if all.is_empty() { Err(unreadable(file, &"no certificate")) } else { Ok(all) }
}

fn unreadable(file: &Path, why: &dyn std::fmt::Display) -> Fault {
    let cause = format!("{}: {why}", file.display());
    Fault::new(cause, "give a readable PEM file with --tlsca, --tlscert and --tlskey")
}

/// A session: clear text on one side, the socket's bytes on the other.
#[derive(Debug)]
pub(crate) struct Session {
    conn: ClientConnection,
}

impl Session {
    /// Whether the handshake still goes on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.conn.is_handshaking()
    }

    /// Whether [`Session::output`] has something.
    pub(crate) fn has_output(&self) -> bool {
        self.conn.wants_write()
    }

    /// Takes bytes to send in clear. [`Session::output`] has what goes to the socket.
    pub(crate) fn send(&mut self, clear: &[u8]) {
        // Its buffer is memory without a limit.
        let _ = self.conn.writer().write_all(clear);
    }

    /// What must be written to the socket now; also received bytes may make some.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.conn.wants_write() {
            // Writing to a Vec cannot fail.
            let _ = self.conn.write_tls(&mut bytes);
        }
        bytes
    }

    /// Takes bytes from the socket and appends what they say to `clear`.
    pub(crate) fn receive(&mut self, mut bytes: &[u8], clear: &mut Vec<u8>) -> Outcome<()> {
        while !bytes.is_empty() {
            // It takes as much as it has room for, which the reading below makes.
            self.conn.read_tls(&mut bytes).map_err(|e| refused(&e))?;
            let state = self.conn.process_new_packets().map_err(|e| refused(&e))?;
            let count = state.plaintext_bytes_to_read() as u64;
            let mut reader = self.conn.reader().take(count);
            reader.read_to_end(clear).map_err(|e| refused(&e))?;
        }
        Ok(())
    }
}

fn refused(why: &dyn std::fmt::Display) -> Fault {
    let remedy = "give --tlsca with its authority, --tlscert and --tlskey if it wants the \
                  client's, or --tlsinsecure";
    Fault::new(format!("TLS failed ({why})"), remedy)
}

/// Believes every certificate, or, where there is no authority, none; signatures are checked.
#[derive(Debug)]
struct Unchecked {
    provider: Arc<rustls::crypto::CryptoProvider>,
    trusting: bool,
}

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.trusting {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("this system trusts no authority".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
