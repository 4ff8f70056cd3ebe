//! Decentralised trust: the tokens that operators, accounts and users show.
//!
//! A token says who it is about and what that one may do, and is signed by a key that somebody
//! else vouches for. Pure: nothing is read but the text, and no time but what is handed in.

mod hours;
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

pub use hours::{Hours, stay_until};

/// Longer tokens are not looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 1024 * 1024;
/// The one way to sign that is known, by its two names; the older one is that of version 1.
const ALGORITHMS: [&str; 2] = ["ed25519-nkey", "ed25519"];
/// Older claims are brought into the form of this version.
const VERSION: i64 = 2;

/// A token that was read; whether its signature holds is another question.
#[derive(Debug, Clone, PartialEq)]
pub struct Token<T> {
    /// What it says.
    pub claims: Claims<T>,
    /// What vouches for that.
    pub signature: Signature,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Claims<T> {
    /// The public key that signed it.
    #[serde(rename = "iss")]
    pub issuer: String,
    /// Whom it is about: a public key.
    #[serde(rename = "sub")]
    pub subject: String,
    /// When it was made, in seconds since 1970 (0: not said).
    #[serde(rename = "iat", default)]
    pub issued_at: i64,
    /// From when on it does not hold any more, in seconds since 1970 (0: never).
    #[serde(rename = "exp", default)]
    pub expires: i64,
    /// From when on it holds, in seconds since 1970 (0: ever).
    #[serde(rename = "nbf", default)]
    pub not_before: i64,
    /// A name for people.
    #[serde(default)]
    pub name: String,
    /// What is particular to its kind.
    #[serde(rename = "nats")]
    pub body: T,
    /// The token itself.
    #[serde(skip)]
    pub text: String,
}

impl<T> Claims<T> {
    /// Whether it holds at `now`, in seconds since 1970.
    pub fn is_in_time(&self, now: i64) -> bool {
        (self.expires == 0 || now < self.expires) && self.not_before <= now
    }
}

/// What is particular to a kind of token.
pub trait Body: DeserializeOwned {
    /// How the token names its kind.
    const KIND: &'static str;
    /// The token need not name it.
    const IS_ANONYMOUS: bool = false;
    /// What the public keys of those begin with who can sign it.
    const ISSUERS: &'static [char];
    /// What the public keys begin with that it can be about.
    const SUBJECTS: &'static [char];
}

/// Who runs servers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Operator {
    /// Other keys that sign for it.
    pub signing_keys: Vec<String>,
    /// The account in which servers tell of themselves (empty: none).
    pub system_account: String,
    /// Accounts are signed by the other keys only (false).
    pub strict_signing_key_usage: bool,
}

impl Body for Operator {
    const KIND: &'static str = "operator";
    const ISSUERS: &'static [char] = &['O'];
    const SUBJECTS: &'static [char] = &['O'];
}

/// A world of subjects, and who may be in it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Account {
    /// What it has of others.
    pub imports: Vec<Import>,
    /// What others may have of it.
    pub exports: Vec<Export>,
    /// What its users may use.
    pub limits: AccountLimits,
    /// Other keys that sign users for it.
    pub signing_keys: Vec<SigningKey>,
    /// By the public key of a user, or `*` for all: tokens made up to that second do not hold.
    pub revocations: BTreeMap<String, i64>,
    /// What users may do whose tokens do not say.
    pub default_permissions: Permissions,
    /// What becomes of subjects that its users publish to, by filter.
    pub mappings: BTreeMap<String, Vec<WeightedMapping>>,
    /// Who decides who its users are.
    pub authorization: ExternalAuthorization,
    /// Labels, as `name:value`.
    pub tags: Vec<String>,
}

impl Body for Account {
    const KIND: &'static str = "account";
    const ISSUERS: &'static [char] = &['O', 'A'];
    const SUBJECTS: &'static [char] = &['A'];
}

impl Account {
    /// Whether a token of `user`, made at `issued_at`, was revoked.
    pub fn has_revoked(&self, user: &str, issued_at: i64) -> bool {
        is_revoked(&self.revocations, user, issued_at)
    }
}

fn is_revoked(revocations: &BTreeMap<String, i64>, key: &str, issued_at: i64) -> bool {
    [key, "*"].iter().any(|key| revocations.get(*key).is_some_and(|until| issued_at <= *until))
}

/// What a subject becomes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WeightedMapping {
    /// The subject.
    pub subject: String,
    /// Of a hundred messages, how many (0: all).
    pub weight: u8,
    /// Only on servers of this cluster (empty: on all).
    pub cluster: String,
}

/// That somebody outside decides who the users of an account are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExternalAuthorization {
    /// The public keys of those who decide; they come in by their tokens (none: all do).
    pub auth_users: Vec<String>,
}

/// A key that signs users for an account.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum SigningKey {
    /// Users that may be anything.
    Plain(String),
    /// Users that all may do the same.
    Scoped {
        /// The public key.
        key: String,
        /// What they may do; their own tokens say nothing of it.
        #[serde(default)]
        template: Box<User>,
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

/// What an account may use; what is negative is without limit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct AccountLimits {
    /// Subscriptions of the account.
    pub subs: i64,
    /// Bytes of a message.
    pub payload: i64,
    /// Connections.
    pub conn: i64,
    /// Leafnode connections.
    pub leaf: i64,
    /// Users must sign (false).
    pub disallow_bearer: bool,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self { subs: -1, payload: -1, conn: -1, leaf: -1, disallow_bearer: false }
    }
}

/// Something that an account has of another.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Import {
    /// `stream` or `service`.
    #[serde(rename = "type")]
    pub shared: String,
    /// The exporting account.
    pub account: String,
    /// The subjects there.
    pub subject: String,
    /// Where they are here (empty: see `to`).
    pub local_subject: String,
    /// The old form: a prefix for streams, for services the subject here (empty: the same).
    pub to: String,
    /// The exporter's leave, where it is needed.
    pub token: String,
    /// The service is told who asks.
    pub share: bool,
    /// Of a stream: who publishes may trace what becomes of it.
    pub allow_trace: bool,
}

/// Something that other accounts may have.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Export {
    /// `stream` or `service`.
    #[serde(rename = "type")]
    pub shared: String,
    /// The subjects.
    pub subject: String,
    /// An importer needs an activation.
    pub token_req: bool,
    /// By the public key of an importing account: activations made up to then do not hold.
    pub revocations: BTreeMap<String, i64>,
    /// Of a service: `Singleton`, `Stream` or `Chunked`.
    pub response_type: String,
    /// Of a service: nanoseconds until an answer is no longer taken (0: the default).
    pub response_threshold: i64,
    /// The token of the subject, from 1, that has to be the importer's key (0: none).
    pub account_token_position: usize,
    /// Of a service: who asks may trace what becomes of it.
    pub allow_trace: bool,
}

impl Export {
    /// Whether `token` lets `importer` have `import` of the account `exporter` at `now`.
    pub fn is_activated(
        &self,
        token: &Token<Activation>,
        exporter: &Claims<Account>,
        importer: &str,
        import: &Import,
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

/// Whether every subject that `inner` matches is matched by `outer`, too.
fn covers(outer: &[u8], inner: &[u8]) -> bool {
    let open = |filter: &[u8]| filter == b">" || filter.ends_with(b".>");
    (!open(inner) || open(outer)) && crate::subject::matches(outer, inner)
}

/// Leave to import, given by the exporting account.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Activation {
    /// What may be imported.
    pub subject: String,
    /// `stream` or `service`.
    pub kind: String,
    /// The exporting account, where one of its signing keys has signed.
    pub issuer_account: String,
}

impl Body for Activation {
    const KIND: &'static str = "activation";
    const ISSUERS: &'static [char] = &['A', 'O'];
    const SUBJECTS: &'static [char] = &['A'];
}

/// Leave to forget accounts.
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

/// Somebody who may connect.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct User {
    /// What it may do.
    #[serde(flatten)]
    pub permissions: Permissions,
    /// Networks it may come from, as `address/bits` (empty: any).
    #[serde(deserialize_with = "networks")]
    pub src: Vec<String>,
    /// When it may be here (empty: ever).
    pub times: Vec<Hours>,
    /// Whose clock `times` are by, as `Europe/Berlin` (empty or `Local`: the server's).
    #[serde(rename = "times_location")]
    pub location: String,
    /// Subscriptions; negative is without limit.
    pub subs: i64,
    /// Bytes of a message; negative is without limit.
    pub payload: i64,
    /// Bytes in all; negative is without limit.
    pub data: i64,
    /// The token is enough: nothing is to be signed.
    pub bearer_token: bool,
    /// The kinds of connections it may come by (empty: all).
    pub allowed_connection_types: Vec<String>,
    /// Its account, where one of the account's signing keys has signed.
    pub issuer_account: String,
    /// Labels, as `name:value`.
    pub tags: Vec<String>,
}

/// A list of networks, or a text with commas between them.
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

impl Body for User {
    const KIND: &'static str = "user";
    const ISSUERS: &'static [char] = &['A'];
    const SUBJECTS: &'static [char] = &['U'];
}

impl User {
    /// Whether it says nothing of what the user may do, as a scoped key wants it.
    pub fn is_empty(&self) -> bool {
        let Self { permissions, src, times, location, .. } = self;
        let Self { subs, payload, data, bearer_token, .. } = self;
        *permissions == Permissions::default()
            && src.is_empty()
            && times.is_empty()
            && location.is_empty()
            && [subs, payload, data].iter().all(|limit| **limit == 0)
            && !bearer_token
            && self.allowed_connection_types.is_empty()
    }
}

/// What a user may publish and subscribe to.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// Subjects to publish to.
    #[serde(rename = "pub")]
    pub publish: SubjectList,
    /// Subjects to subscribe to, each perhaps with a queue behind a blank.
    #[serde(rename = "sub")]
    pub subscribe: SubjectList,
    /// Leave to answer requests.
    #[serde(rename = "resp")]
    pub responses: Option<Responses>,
}

/// What is allowed, and what is not even then.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SubjectList {
    /// Empty is everything.
    pub allow: Vec<String>,
    /// Empty is nothing.
    pub deny: Vec<String>,
}

/// How often and how long a request may be answered.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Responses {
    /// Messages; 0 is the default, negative without limit.
    pub max: i64,
    /// Nanoseconds; the same.
    pub ttl: i64,
}

/// What is wrong with a token. It does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// It is longer than [`TOKEN_BYTES_MAX`].
    TooLong,
    /// It is not three parts of base64 with points between them.
    Form,
    /// It is not signed in the way that is known.
    Algorithm,
    /// What it says is not understood.
    Claims,
    /// It is of another kind, or version, than what is asked for.
    Kind,
    /// The keys in it are not those of ones who could sign it, or be meant.
    Keys,
    /// Its signature is not by the key that it names.
    Signature,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "it is longer than a megabyte",
            Self::Form => "it is not a JWT: three parts with points between them",
            Self::Algorithm => "it is not a JWT that is signed by ed25519-nkey",
            Self::Claims => "its claims cannot be understood",
            Self::Kind => "it is of another kind or version than expected",
            Self::Keys => "its issuer or subject is not a key of the right kind",
            Self::Signature => "its signature does not hold",
        })
    }
}

impl std::error::Error for TokenError {}

/// Something signed, and by whom. To check it takes a good part of a millisecond.
#[derive(Clone, PartialEq)]
pub struct Signature {
    key: String,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Signature {
    /// Whether the key has signed it.
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
struct Header {
    #[serde(default)]
    typ: String,
    #[serde(default)]
    alg: String,
}

impl Header {
    fn is_known(&self) -> bool {
        let alg = self.alg.to_ascii_lowercase();
        self.typ.eq_ignore_ascii_case("JWT") && ALGORITHMS.contains(&alg.as_str())
    }
}

/// The parts of a token, still in base64.
struct Parts<'a> {
    header: &'a str,
    body: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
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

fn decoded(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form)
}

/// What a token says, whatever its kind, in the form of today; null if it is none.
pub fn document(text: &str) -> Value {
    let body = Parts::of(text).and_then(|parts| decoded(parts.body)).unwrap_or_default();
    let mut claims: Value = serde_json::from_slice(&body).unwrap_or_default();
    if upgrade::is_old(&claims) && upgrade::upgrade(&mut claims).is_none() {
        return Value::Null;
    }
    claims
}

/// Reads a token; its signature is still to be checked.
///
/// # Errors
///
/// If it is no such token, or of another kind.
pub fn decode<T: Body>(text: &str) -> Result<Token<T>, TokenError> {
    let Parts { header, body, signature } = Parts::of(text)?;
    let header_json = decoded(header)?;
    let is_known = serde_json::from_slice::<Header>(&header_json).map(|header| header.is_known());
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
    Ok(Token { claims, signature })
}

/// Reads a token whose signature holds.
///
/// # Errors
///
/// As [`decode`], and if it does not.
pub fn decode_signed<T: Body>(text: &str) -> Result<Claims<T>, TokenError> {
    let token = decode(text)?;
    if token.signature.holds() { Ok(token.claims) } else { Err(TokenError::Signature) }
}

/// Whether `ip` is in one of the networks; none are all.
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

/// The token in a file that has it between lines of dashes, or alone.
pub fn undecorated(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| !line.is_empty() && !line.starts_with('-')).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn signed(key: &KeyPair, header: &str, claims: &Value) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part(header), part(&claims.to_string()));
        let signature = key.sign(signed.as_bytes()).expect("a key with a seed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

    fn user_claims(account: &KeyPair, user: &KeyPair) -> Value {
        json!({"iss": account.public_key(), "sub": user.public_key(), "iat": 5, "exp": 10,
            "name": "ann", "nats": {"type": "user", "version": 2, "subs": -1,
            "pub": {"allow": ["a"]}, "resp": {"max": 3}}})
    }

    #[test]
    fn what_a_token_says_is_read_and_its_signature_is_its_issuers() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let text = signed(&account, HEADER, &user_claims(&account, &user));
        let claims: Claims<User> = decode_signed(&text).unwrap();
        assert_eq!((claims.issuer, claims.name.as_str()), (account.public_key(), "ann"));
        assert_eq!(claims.body.permissions.publish.allow, ["a"]);
        assert_eq!(claims.body.permissions.responses, Some(Responses { max: 3, ttl: 0 }));
        assert_eq!((claims.body.subs, claims.body.payload), (-1, 0));
        let forged = signed(&KeyPair::new_account(), HEADER, &user_claims(&account, &user));
        assert_eq!(decode_signed::<User>(&forged), Err(TokenError::Signature));
    }

    #[test]
    fn a_token_holds_from_its_beginning_up_to_its_end() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let mut claims = user_claims(&account, &user);
        claims["nbf"] = 7.into();
        let claims = decode_signed::<User>(&signed(&account, HEADER, &claims)).unwrap();
        let in_time: Vec<i64> = (0..20).filter(|now| claims.is_in_time(*now)).collect();
        assert_eq!(in_time, [7, 8, 9]);
    }

    #[test]
    fn no_other_algorithm_kind_version_or_key_is_taken() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let claims = user_claims(&account, &user);
        for header in [
            r#"{"typ":"JWT","alg":"none"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"ed25519-nkey"}"#,
            r#"{"typ":"JWT","alg":"ed25519-x"}"#,
        ] {
            let text = signed(&account, header, &claims);
            assert_eq!(decode::<User>(&text), Err(TokenError::Algorithm));
        }
        let text = signed(&account, HEADER, &claims);
        assert_eq!(decode::<Account>(&text), Err(TokenError::Kind));
        for (field, value) in [("type", json!("account")), ("version", json!(1))] {
            let mut other = claims.clone();
            other["nats"][field] = value;
            assert_eq!(decode::<User>(&signed(&account, HEADER, &other)), Err(TokenError::Kind));
        }
        // A user that signs for itself, and an account that is meant as a user.
        for (field, key) in [("iss", user.public_key()), ("sub", account.public_key())] {
            let mut other = claims.clone();
            other[field] = key.into();
            assert_eq!(decode::<User>(&signed(&user, HEADER, &other)), Err(TokenError::Keys));
        }
    }

    fn signed_as_of_old(key: &KeyPair, claims: &Value) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let (header, body) = (part(r#"{"typ":"jwt","alg":"ed25519"}"#), part(&claims.to_string()));
        let signature = key.sign(body.as_bytes()).expect("a key with a seed");
        format!("{header}.{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_user_of_version_1_has_no_limits_that_it_does_not_name() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let old = json!({"iss": account.public_key(), "sub": user.public_key(), "iat": 5,
            "type": "user", "tags": ["a:b"], "issuer_account": "A",
            "nats": {"payload": 7, "max": 9, "src": "10.0.0.0/8, 127.0.0.1/32",
                "bearer_token": true, "allowed_connection_types": ["MQTT"]}});
        let claims = decode_signed::<User>(&signed_as_of_old(&account, &old)).unwrap();
        let body = claims.body;
        assert_eq!((body.subs, body.data, body.payload), (-1, -1, 7));
        assert_eq!((body.issuer_account.as_str(), &*body.tags), ("A", &["a:b".to_owned()][..]));
        assert_eq!(body.src, ["10.0.0.0/8", "127.0.0.1/32"]);
        assert!(body.bearer_token && body.allowed_connection_types.is_empty());
    }

    #[test]
    fn a_signature_is_of_what_its_version_signs_and_of_nothing_else() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let mut old = json!({"iss": account.public_key(), "sub": user.public_key(),
            "type": "user", "nats": {}});
        // Signed as the other version would be.
        let text = signed(&account, HEADER, &old);
        assert_eq!(decode_signed::<User>(&text), Err(TokenError::Signature));
        let text = signed_as_of_old(&account, &user_claims(&account, &user));
        assert_eq!(decode_signed::<User>(&text), Err(TokenError::Signature));
        // No kind, and none that is known.
        for kind in ["", "x"] {
            old["type"] = kind.into();
            let text = signed_as_of_old(&account, &old);
            assert_eq!(decode_signed::<User>(&text), Err(TokenError::Kind), "{kind}");
        }
    }

    #[test]
    fn a_revocation_is_for_what_was_made_up_to_then() {
        let revocations = [("UA".to_owned(), 10), ("*".to_owned(), 3)].into();
        let account = Account { revocations, ..Account::default() };
        assert!(account.has_revoked("UA", 10) && !account.has_revoked("UA", 11));
        assert!(account.has_revoked("UB", 3) && !account.has_revoked("UB", 4));
    }

    #[test]
    fn a_token_is_found_between_its_lines_of_dashes() {
        let file = "-----BEGIN NATS OPERATOR JWT-----\na.b.c\n------END NATS OPERATOR JWT------\n";
        assert_eq!(
            (undecorated(file), undecorated("a.b.c\n"), undecorated("")),
            ("a.b.c", "a.b.c", "")
        );
    }

    #[test]
    fn an_address_is_in_a_network_by_its_first_bits() {
        let networks = ["10.1.0.0/16".to_owned(), "2001:db8::/32".to_owned()];
        for ip in ["10.1.2.3", "2001:db8::1"] {
            assert!(comes_from(&networks, ip), "{ip}");
        }
        for ip in ["10.2.0.1", "2001:db9::1", "", "10.1"] {
            assert!(!comes_from(&networks, ip), "{ip}");
        }
        assert!(comes_from(&["0.0.0.0/0".to_owned()], "1.2.3.4"));
        assert!(!comes_from(&["10.0.0.0/33".to_owned(), "x".to_owned()], "10.0.0.0"));
        assert!(comes_from(&[], "anything"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = decode::<User>(&text);
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Whatever is changed in a token, it does not hold any more, or says the same.
        #[test]
        fn one_other_letter_anywhere_makes_a_token_worthless(at in 0_usize..2000, to in 0_u8..64) {
            let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
            let text = signed(&account, HEADER, &user_claims(&account, &user));
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let mut bytes = text.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] = alphabet[usize::from(to)];
            let changed = String::from_utf8(bytes).unwrap();
            prop_assert!(changed == text || decode_signed::<User>(&changed).is_err());
        }
    }
}
