//! Decentralised trust: the signed tokens of operators, accounts and users.
//!
//! A token names its subject and the subject's rights, and is signed by a key for which another
//! token or the configuration vouches. Pure: reads only the given text, and takes the time as an
//! argument.

mod hours;
#[cfg(test)]
mod tests;
mod upgrade;

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};
use serde_json::Value;

use crate::interest::account_settings::LatencyRule;
use crate::subject::is_valid_publish;
pub use hours::{Hours, stay_until};

/// Bytes of the longest token that is read.
pub const TOKEN_BYTES_MAX: usize = 1024 * 1024;
/// The two names of the only signature algorithm accepted; the older one belongs to version 1.
const ALGORITHMS: [&str; 2] = ["ed25519-nkey", "ed25519"];
/// The version of tokens that are made here, and that older claims are converted to.
pub(super) const VERSION: i64 = 2;

/// A token that was decoded; its signature is still to be checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Jwt<T> {
    /// The token's claims.
    pub claims: Claims<T>,
    /// The signature of the claims.
    pub signature: Signature,
}

/// Claims of a token.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Claims<T> {
    /// The public key that signed the token.
    #[serde(rename = "iss")]
    pub issuer: String,
    /// The public key that the token is about.
    #[serde(rename = "sub")]
    pub subject: String,
    /// The receiver that the token is meant for; for an answered user its account (empty: any).
    #[serde(rename = "aud", default)]
    pub audience: String,
    /// The time of issue, in seconds since 1970 (0: not given).
    #[serde(rename = "iat", default)]
    pub issued_at: i64,
    /// The end of validity, in seconds since 1970 (0: none).
    #[serde(rename = "exp", default)]
    pub expires: i64,
    /// The beginning of validity, in seconds since 1970 (0: none).
    #[serde(rename = "nbf", default)]
    pub not_before: i64,
    /// A name for humans.
    #[serde(default)]
    pub name: String,
    /// Claims particular to the token's kind.
    #[serde(rename = "nats")]
    pub body: T,
    /// The encoded token.
    #[serde(skip)]
    pub text: String,
}

impl<T> Claims<T> {
    /// Whether the token is valid at `now`, in seconds since 1970.
    pub fn is_in_time(&self, now: i64) -> bool {
        (self.expires == 0 || now < self.expires) && self.not_before <= now
    }
}

/// Claims particular to a kind of token.
pub trait Body: DeserializeOwned {
    /// The kind's name in a token.
    const KIND: &'static str;
    /// Whether a token of this kind may leave out the kind's name.
    const IS_ANONYMOUS: bool = false;
    /// First letters of public keys that may sign this kind.
    const ISSUERS: &'static [char];
    /// First letters of public keys that this kind may be about.
    const SUBJECTS: &'static [char];
}

/// An operator: the owner of servers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Operator {
    /// Further keys that sign for the operator.
    pub signing_keys: Vec<String>,
    /// The account in which servers publish their events (empty: none).
    pub system_account: String,
    /// Whether accounts may be signed only by `signing_keys` (false).
    pub strict_signing_key_usage: bool,
    /// The operator's server for tokens of accounts, over HTTP (empty: none).
    pub account_server_url: String,
}

impl Body for Operator {
    const KIND: &'static str = "operator";
    const ISSUERS: &'static [char] = &['O'];
    const SUBJECTS: &'static [char] = &['O'];
}

/// An account: a separate space of subjects, with its users.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AccountClaims {
    /// Streams and services imported from other accounts.
    pub imports: Vec<ImportClaim>,
    /// Streams and services that other accounts may import.
    pub exports: Vec<ExportClaim>,
    /// Limits on the account's use.
    pub limits: OperatorLimits,
    /// Further keys that sign users for the account.
    pub signing_keys: Vec<SigningKey>,
    /// Revocations, by the public key of a user, or `*` for all: tokens issued at or before the
    /// given second are not valid.
    pub revocations: BTreeMap<String, i64>,
    /// Permissions of users whose tokens have none.
    pub default_permissions: PermissionsClaim,
    /// Mappings of subjects that the account's users publish to, by filter.
    pub mappings: BTreeMap<String, Vec<WeightedMapping>>,
    /// The external service that decides about the account's users.
    pub authorization: ExternalAuthorization,
    /// Labels, as `name:value`.
    pub tags: Vec<String>,
}

impl Body for AccountClaims {
    const KIND: &'static str = "account";
    const ISSUERS: &'static [char] = &['O', 'A'];
    const SUBJECTS: &'static [char] = &['A'];
}

impl AccountClaims {
    /// Whether a token of `user`, made at `issued_at`, was revoked.
    pub fn has_revoked(&self, user: &str, issued_at: i64) -> bool {
        is_revoked(&self.revocations, user, issued_at)
    }
}

fn is_revoked(revocations: &BTreeMap<String, i64>, key: &str, issued_at: i64) -> bool {
    [key, "*"].iter().any(|key| revocations.get(*key).is_some_and(|until| issued_at <= *until))
}

/// One destination of a mapped subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WeightedMapping {
    /// The destination subject.
    pub subject: String,
    /// The share of messages, in percent (0: all).
    pub weight: u8,
    /// The cluster whose servers apply the mapping (empty: all).
    pub cluster: String,
}

/// Authorization of an account's users by an external service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExternalAuthorization {
    /// Public keys of the service's own users, which log in by their tokens (none: all users do).
    pub auth_users: Vec<String>,
    /// Accounts besides this one that the service may place users in; `*` alone allows all.
    pub allowed_accounts: Vec<String>,
    /// The service's public curve key, for which requests are sealed (empty: they are not).
    pub xkey: String,
}

impl ExternalAuthorization {
    /// Whether a service decides about users.
    pub fn is_on(&self) -> bool {
        !self.auth_users.is_empty()
    }

    /// Whether the service may place users in `account`, which is not its own.
    pub fn allows(&self, account: &str) -> bool {
        let is_open = matches!(&self.allowed_accounts[..], [only] if only == "*");
        is_open || self.allowed_accounts.iter().any(|allowed| allowed == account)
    }
}

/// A key that signs users for an account.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum SigningKey {
    /// A key whose users may have any permissions.
    Plain(String),
    /// A key whose users all have the same permissions.
    Scoped {
        /// The public key.
        key: String,
        /// The permissions of these users; their own tokens have none.
        #[serde(default)]
        template: Box<UserClaims>,
    },
}

impl SigningKey {
    /// The public key.
    pub fn key(&self) -> &str {
        match self {
            Self::Plain(key) | Self::Scoped { key, .. } => key,
        }
    }
}

/// Limits of an account; a negative one means no limit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct OperatorLimits {
    /// Subscriptions of the account, at most.
    pub subs: i64,
    /// Bytes of a message, at most.
    pub payload: i64,
    /// Connections of the account, at most.
    pub conn: i64,
    /// Leaf connections of the account, at most.
    pub leaf: i64,
    /// Whether bearer tokens are refused: all users have to sign (false).
    pub disallow_bearer: bool,
    /// Streams and their storage, if no tiers are told.
    #[serde(flatten)]
    pub streams_claim: AccountStreamsClaim,
    /// Streams and their storage by tier, which is a number of replicas: `R1`, `R3`.
    pub tiered_limits: BTreeMap<String, AccountStreamsClaim>,
}

impl Default for OperatorLimits {
    fn default() -> Self {
        Self {
            subs: -1,
            payload: -1,
            conn: -1,
            leaf: -1,
            disallow_bearer: false,
            streams_claim: AccountStreamsClaim::default(),
            tiered_limits: BTreeMap::new(),
        }
    }
}

/// Streams that an account may have; a negative number means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AccountStreamsClaim {
    /// Bytes in memory; 0 is none at all.
    pub mem_storage: i64,
    /// Bytes on disk; 0 is none at all.
    pub disk_storage: i64,
    /// Streams, at most; 0 is no limit.
    pub streams: i64,
    /// Consumers, at most; 0 is no limit.
    pub consumer: i64,
    /// Messages that a consumer may have unacknowledged; 0 is no limit.
    pub max_ack_pending: i64,
    /// Bytes of one stream in memory; 0 is no limit.
    pub mem_max_stream_bytes: i64,
    /// Bytes of one stream on disk; 0 is no limit.
    pub disk_max_stream_bytes: i64,
    /// Whether streams must have a limit of bytes.
    pub max_bytes_required: bool,
}

/// A stream or service that an account imports from another.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ImportClaim {
    /// The kind of share: `stream` or `service`.
    #[serde(rename = "type")]
    pub shared: String,
    /// The exporting account.
    pub account: String,
    /// The subject in the exporting account.
    pub subject: String,
    /// The subject in the importing account (empty: see `to`).
    pub local_subject: String,
    /// The older form of `local_subject`: a prefix for streams, the local subject for services
    /// (empty: the same subject).
    pub to: String,
    /// The activation, if the export requires one.
    pub token: String,
    /// Whether the service is told the requester's identity.
    pub share: bool,
    /// For a stream: whether the publisher may trace its messages beyond the import.
    pub allow_trace: bool,
}

/// A stream or service that other accounts may import.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ExportClaim {
    /// The kind of share: `stream` or `service`.
    #[serde(rename = "type")]
    pub shared: String,
    /// The exported subjects.
    pub subject: String,
    /// Whether an import requires an activation.
    pub token_req: bool,
    /// Revocations, by the public key of an importing account: activations issued at or before the
    /// given second are not valid.
    pub revocations: BTreeMap<String, i64>,
    /// For a service: `Singleton`, `Stream` or `Chunked`.
    pub response_type: String,
    /// For a service: nanoseconds after which an answer is no longer accepted (0: the default).
    pub response_threshold: i64,
    /// The token of the subject, from 1, that has to be the importer's key (0: none).
    pub account_token_position: usize,
    /// For a service: whether the requester may trace its requests beyond the export.
    pub allow_trace: bool,
    /// For a service: the measurement of its requests.
    pub service_latency: Option<LatencyClaim>,
}

/// The measurement of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LatencyClaim {
    /// The share of requests, in percent, or `headers` for those whose headers ask for it.
    pub sampling: Sampling,
    /// Subject of the reports, in the exporting account.
    pub results: String,
}

impl LatencyClaim {
    /// Returns the rule; `None` if it is invalid.
    pub fn rule(&self) -> Option<LatencyRule> {
        let (subject, percent) = (self.results.clone(), self.sampling.percent()?);
        is_valid_publish(subject.as_bytes()).then_some(LatencyRule { subject, percent })
    }
}

/// The share of a service's requests that is measured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Sampling {
    /// A share in percent; 0 is as the word `headers`.
    Percent(i64),
    /// The word `headers`.
    Word(String),
}

impl Default for Sampling {
    fn default() -> Self {
        Self::Percent(0)
    }
}

impl Sampling {
    /// Returns the share in percent, 0 for the requests whose headers ask for it; `None` if it is
    /// none.
    fn percent(&self) -> Option<u8> {
        match self {
            Self::Percent(percent @ 0..=100) => u8::try_from(*percent).ok(),
            Self::Word(word) if word.eq_ignore_ascii_case("headers") => Some(0),
            _ => None,
        }
    }
}

impl ExportClaim {
    /// Whether `token` permits `importer` to use `import` from the account `exporter` at `now`, in
    /// seconds since 1970.
    pub fn is_activated(
        &self,
        token: &Jwt<Activation>,
        exporter: &Claims<AccountClaims>,
        importer: &str,
        import: &ImportClaim,
        now: i64,
    ) -> bool {
        let claims = &token.claims;
        let signs = exporter.body.signing_keys.iter().any(|key| key.key() == claims.issuer);
        let (subject, wanted) = (claims.body.subject.as_bytes(), import.subject.as_bytes());
        claims.subject == importer
            && claims.body.kind == import.shared
            && (claims.issuer == exporter.subject
                || (signs && claims.body.issuer_account == exporter.subject))
            && claims.is_in_time(now)
            && !is_revoked(&self.revocations, importer, claims.issued_at)
            && crate::subject::is_valid_filter(subject)
            && covers(subject, wanted)
            && token.signature.holds()
    }
}

/// Whether `outer` matches every subject that `inner` matches.
fn covers(outer: &[u8], inner: &[u8]) -> bool {
    let open = |filter: &[u8]| filter == b">" || filter.ends_with(b".>");
    (!open(inner) || open(outer)) && crate::subject::matches(outer, inner)
}

/// Permission to import, given by the exporting account.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Activation {
    /// The subjects that may be imported.
    pub subject: String,
    /// The kind of share: `stream` or `service`.
    pub kind: String,
    /// The exporting account, if the token is signed by one of the account's signing keys.
    pub issuer_account: String,
}

impl Body for Activation {
    const KIND: &'static str = "activation";
    const ISSUERS: &'static [char] = &['A', 'O'];
    const SUBJECTS: &'static [char] = &['A'];
}

/// A request to delete accounts, signed by an operator.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Deletion {
    /// The public keys of the accounts.
    pub accounts: Option<Vec<String>>,
}

impl Body for Deletion {
    const KIND: &'static str = "generic";
    const IS_ANONYMOUS: bool = true;
    const ISSUERS: &'static [char] = &['O'];
    const SUBJECTS: &'static [char] = &['O'];
}

/// A user: a client that may connect.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct UserClaims {
    /// The user's permissions.
    #[serde(flatten)]
    pub permissions: PermissionsClaim,
    /// Networks that the user may connect from, as `address/bits` (empty: any).
    #[serde(deserialize_with = "networks")]
    pub src: Vec<String>,
    /// Hours at which the user may be connected (empty: any).
    pub times: Vec<Hours>,
    /// The time zone of `times`, as `Europe/Berlin` (empty or `Local`: the server's).
    #[serde(rename = "times_location")]
    pub location: String,
    /// Subscriptions, at most; negative: no limit.
    pub subs: i64,
    /// Bytes of a message, at most; negative: no limit.
    pub payload: i64,
    /// Bytes in all, at most; negative: no limit.
    pub data: i64,
    /// Whether the token alone suffices: the client need not sign a nonce.
    pub bearer_token: bool,
    /// Kinds of connections that the user may use (empty: all).
    pub allowed_connection_types: Vec<String>,
    /// The user's account, if the token is signed by one of the account's signing keys.
    pub issuer_account: String,
    /// Labels, as `name:value`.
    pub tags: Vec<String>,
}

/// Deserializes a list of networks, or a text with commas between them.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Networks {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Networks::deserialize(deserializer)? {
        Networks::List(list) => list,
        Networks::Text(text) => {
            let parts = text.split(',').map(|part| part.trim().to_lowercase());
            parts.filter(|part| !part.is_empty()).collect()
        }
    })
}

impl Body for UserClaims {
    const KIND: &'static str = "user";
    const ISSUERS: &'static [char] = &['A'];
    const SUBJECTS: &'static [char] = &['U'];
}

impl UserClaims {
    /// Whether the token sets no permissions, as a scoped key requires it.
    pub fn is_empty(&self) -> bool {
        let Self { permissions, src, times, location, .. } = self;
        let Self { subs, payload, data, bearer_token, .. } = self;
        *permissions == PermissionsClaim::default()
            && src.is_empty()
            && times.is_empty()
            && location.is_empty()
            && [subs, payload, data].iter().all(|limit| **limit == 0)
            && !bearer_token
            && self.allowed_connection_types.is_empty()
    }
}

/// Permissions to publish, subscribe and respond.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PermissionsClaim {
    /// Subjects that the user may publish to.
    #[serde(rename = "pub")]
    pub publish: SubjectsClaim,
    /// Subjects that the user may subscribe to, each optionally with a queue after a blank.
    #[serde(rename = "sub")]
    pub subscribe: SubjectsClaim,
    /// Permission to answer requests.
    #[serde(rename = "resp")]
    pub responses: Option<ResponsesClaim>,
}

/// Subjects that are allowed and subjects that are denied; a denial wins.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SubjectsClaim {
    /// Allowed subjects; empty: all.
    pub allow: Vec<String>,
    /// Denied subjects; empty: none.
    pub deny: Vec<String>,
}

/// Limits on the answers to a request.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ResponsesClaim {
    /// Messages, at most; 0: the default; negative: no limit.
    pub max: i64,
    /// Nanoseconds from the request to the last answer; 0: the default; negative: no limit.
    pub ttl: i64,
}

/// The reason why a token is invalid. Does not quote the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// A token longer than [`TOKEN_BYTES_MAX`].
    TooLong,
    /// A text that is not three parts of base64 with points between them.
    Form,
    /// A token signed by an unknown algorithm.
    Algorithm,
    /// Claims that cannot be deserialized.
    Claims,
    /// A token of another kind or version than expected.
    Kind,
    /// An issuer or subject whose key is not of the right kind.
    Keys,
    /// A signature that was not made by the issuer's key.
    Signature,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "it is longer than a megabyte",
            Self::Form => "it is not a JWT: three parts separated by dots",
            Self::Algorithm => "it is not a JWT that is signed by ed25519-nkey",
            Self::Claims => "its claims cannot be read",
            Self::Kind => "it is of another kind or version than expected",
            Self::Keys => "its issuer or subject is not a key of the right kind",
            Self::Signature => "its signature is not valid",
        })
    }
}

impl std::error::Error for TokenError {}

/// Signed bytes, their signature and the signer's key. A check takes a good part of a millisecond.
#[derive(Clone, PartialEq)]
pub struct Signature {
    key: String,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Signature {
    /// Whether the signature was made by the key.
    pub fn holds(&self) -> bool {
        KeyPair::from_public_key(&self.key)
            .is_ok_and(|key| key.verify(&self.signed, &self.signature).is_ok())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature by {}", self.key)
    }
}

#[derive(Deserialize)]
struct JwtHeader {
    #[serde(default)]
    typ: String,
    #[serde(default)]
    alg: String,
}

impl JwtHeader {
    fn is_known(&self) -> bool {
        let alg = self.alg.to_ascii_lowercase();
        self.typ.eq_ignore_ascii_case("JWT") && ALGORITHMS.contains(&alg.as_str())
    }
}

/// The three parts of a token, in base64.
struct JwtParts<'a> {
    header: &'a str,
    body: &'a str,
    signature: &'a str,
}

impl<'a> JwtParts<'a> {
    fn of(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(header), Some(body), Some(signature), None) => {
                Ok(Self { header, body, signature })
            }
            _ => Err(TokenError::Form),
        }
    }
}

/// Returns the token with these claims, signed by `key`; `None` if that is only a public key.
pub fn encode(claims: &Value, key: &KeyPair) -> Option<String> {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
    let signed = format!("{}.{}", part(header), part(&claims.to_string()));
    let signature = key.sign(signed.as_bytes()).ok()?;
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn decoded(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form)
}

/// Returns the claims of a token of any kind, in the form of the current version; null if `text` is
/// no token.
pub fn document(text: &str) -> Value {
    let body = JwtParts::of(text).and_then(|parts| decoded(parts.body)).unwrap_or_default();
    let mut claims: Value = serde_json::from_slice(&body).unwrap_or_default();
    if upgrade::is_old(&claims) && upgrade::upgrade(&mut claims).is_none() {
        return Value::Null;
    }
    claims
}

/// Decodes a token; its signature is still to be checked.
///
/// # Errors
///
/// Fails if `text` is no token of the kind `T`.
pub fn decode<T: Body>(text: &str) -> Result<Jwt<T>, TokenError> {
    let JwtParts { header, body, signature } = JwtParts::of(text)?;
    let header_json = decoded(header)?;
    let is_known =
        serde_json::from_slice::<JwtHeader>(&header_json).map(|header| header.is_known());
    if !is_known.map_err(|_| TokenError::Form)? {
        return Err(TokenError::Algorithm);
    }
    let mut json: Value =
        serde_json::from_slice(&decoded(body)?).map_err(|_| TokenError::Claims)?;
    let is_old = upgrade::is_old(&json);
    if is_old {
        upgrade::upgrade(&mut json).ok_or(TokenError::Kind)?;
    }
    let (kind, version) = (&json["nats"]["type"], &json["nats"]["version"]);
    if !(kind == T::KIND || T::IS_ANONYMOUS && kind.is_null()) || *version != VERSION {
        return Err(TokenError::Kind);
    }
    let mut claims: Claims<T> = serde_json::from_value(json).map_err(|_| TokenError::Claims)?;
    if !is_key(&claims.issuer, T::ISSUERS) || !is_key(&claims.subject, T::SUBJECTS) {
        return Err(TokenError::Keys);
    }
    text.clone_into(&mut claims.text);
    // In version 1 the header is not signed.
    let signed = if is_old { body } else { &text[..header.len() + 1 + body.len()] };
    let signature = Signature {
        key: claims.issuer.clone(),
        signed: signed.as_bytes().to_vec(),
        signature: decoded(signature)?,
    };
    Ok(Jwt { claims, signature })
}

/// Decodes a token and checks its signature.
///
/// # Errors
///
/// Fails as [`decode`] does, and if the signature does not hold.
pub fn decode_signed<T: Body>(text: &str) -> Result<Claims<T>, TokenError> {
    let token = decode(text)?;
    if token.signature.holds() { Ok(token.claims) } else { Err(TokenError::Signature) }
}

/// Whether `ip` is in one of the networks; an empty list contains all addresses.
pub fn comes_from(networks: &[String], ip: &str) -> bool {
    let Ok(ip) = ip.parse::<IpAddr>() else { return networks.is_empty() };
    let contains = |network: &String| {
        let (base, bits) = network.split_once('/')?;
        let (base, bits): (IpAddr, u32) = (base.parse().ok()?, bits.parse().ok()?);
        match (base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                let apart = (base.to_bits() ^ ip.to_bits()).leading_zeros();
                Some(bits <= 32 && apart >= bits)
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                let apart = (base.to_bits() ^ ip.to_bits()).leading_zeros();
                Some(bits <= 128 && apart >= bits)
            }
            _ => Some(false),
        }
    };
    networks.is_empty() || networks.iter().any(|network| contains(network).unwrap_or(false))
}

/// Whether `text` is a public key of one of these kinds.
pub fn is_key(text: &str, kinds: &[char]) -> bool {
    text.starts_with(kinds) && nkeys::from_public_key(text).is_ok()
}

/// Returns the token in a file that has it between lines of dashes, or alone.
pub fn undecorated(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| !line.is_empty() && !line.starts_with('-')).unwrap_or("")
}
