//! Callouts: an account's service decides who may log in.
//!
//! The server asks by a token that it signs with its own key; it says all that is known of the
//! client, and names a fresh public key for the user. The service answers by a token with an error,
//! or with the token of a user who has that key. Keys of the service may be a curve key, too: then
//! the question is sealed, and the answer may be.
//!
//! Pure: [`Question::ask`] makes the request, [`OpenQuestion::judge`] judges the answer; both take
//! keys and time as arguments. What the user's token grants is for the shard to find out, which has
//! the accounts: `Settings::allow`.

use std::sync::Arc;

use nkeys::{KeyPair, XKey};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::auth::jwt::{self, Body, Claims, UserClaims};
use crate::host::hex;
use crate::interest::ids::AccountId;

/// The subject on which the service is asked, in its account.
pub const SUBJECT: &str = "$SYS.REQ.USER.AUTH";
/// The audience of a request's token.
const REQUEST_AUDIENCE: &str = "nats-authorization-request";
/// The header with the server's public curve key, in a request that is sealed.
const XKEY_HEADER: &str = "Nats-Server-Xkey";
/// The first letters of every token: a bare answer begins with them, a sealed one does not.
const TOKEN_PREFIX: &[u8] = b"eyJ";
/// Bytes that a question takes besides its texts.
const QUESTION_BYTES: usize = 512;

/// A service that decides who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The account in which the service is asked.
    pub account: AccountId,
    /// The name of that account.
    pub account_name: Arc<str>,
    /// The public key of an account that signs answers.
    pub issuer: String,
    /// Further public keys that sign answers of the service.
    pub signing_keys: Vec<String>,
    /// The public curve key of the service, if questions are sealed.
    pub xkey: Option<String>,
    /// Whether accounts come by tokens: the issuer of a user's token decides its account, not the
    /// audience.
    pub has_operator: bool,
}

impl Service {
    fn signs(&self, key: &str) -> bool {
        key == self.issuer || self.signing_keys.iter().any(|signing| signing == key)
    }
}

/// The keys of this server, new at each start.
#[derive(Debug)]
pub struct ServerKeys {
    /// The key that signs requests; its public part is the server's id.
    pub id: KeyPair,
    /// The curve key for sealed messages.
    pub xkey: XKey,
}

impl Default for ServerKeys {
    fn default() -> Self {
        Self { id: KeyPair::new_server(), xkey: XKey::new() }
    }
}

/// The server that asks, as its request shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AskingServer {
    /// The server's name.
    pub name: String,
    /// The host for clients.
    pub host: String,
    /// The server's id.
    pub id: String,
    /// The version of NATS that the server speaks.
    pub version: String,
    /// The name of the server's cluster (empty: none).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Labels of the server.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// A client that is asked about, as the server sees it. Empty texts are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AskedClient {
    /// The client's address without the port.
    pub host: Box<str>,
    /// The number of the connection.
    pub id: u64,
    /// The user's nkey, else the name; a placeholder for a token.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub user: Box<str>,
    /// The client's name from CONNECT.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: Box<str>,
    /// Labels in the client's own token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The name in the client's own token.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name_tag: Box<str>,
    /// `Client` or `Leafnode`.
    pub kind: &'static str,
    /// The protocol: `nats`, `websocket`, `mqtt` or `mqtt_websocket`; empty for a leaf node.
    #[serde(rename = "type", skip_serializing_if = "str::is_empty")]
    pub protocol: &'static str,
    /// The id of a client of MQTT.
    #[serde(rename = "mqtt_id", skip_serializing_if = "str::is_empty")]
    pub mqtt_client: Box<str>,
    /// The nonce that the client has signed (empty if it has signed nothing).
    #[serde(skip_serializing_if = "str::is_empty")]
    pub nonce: Box<str>,
}

/// The fields of a client's CONNECT; empty texts are left out.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct AskedConnect {
    /// The client's own token; only with an operator.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub jwt: Box<str>,
    /// A public key.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub nkey: Box<str>,
    /// The nonce's signature, base64.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub sig: Box<str>,
    /// A token.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub auth_token: Box<str>,
    /// The user's name.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub user: Box<str>,
    /// The user's password.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub pass: Box<str>,
    /// The client's name.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: Box<str>,
    /// The language of the client's library.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub lang: Box<str>,
    /// The version of the client's library.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub version: Box<str>,
    /// The protocol level.
    pub protocol: i64,
}

impl std::fmt::Debug for AskedConnect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AskedConnect")
    }
}

/// The TLS session of a client that is asked about.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AskedTls {
    /// The version of TLS.
    pub version: &'static str,
    /// The name of the cipher suite.
    pub cipher: String,
    /// Certificates of the client that are not verified, its own first, in PEM form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certs: Vec<String>,
    /// Verified chains of certificates, each from the client's own to that of a trusted authority,
    /// in PEM form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verified_chains: Vec<Vec<String>>,
}

/// A question to a service: may this client log in, and as whom?
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The service that is asked.
    pub service: Arc<Service>,
    /// The server that asks.
    pub server: AskingServer,
    /// The client.
    pub client: AskedClient,
    /// The credentials of the client.
    pub connect: AskedConnect,
    /// The TLS session of the client, if it has one.
    pub tls: Option<AskedTls>,
}

/// A request in its form on the wire.
#[derive(Debug)]
pub struct CalloutRequest {
    /// The header block; empty for a request that is not sealed.
    pub header: Vec<u8>,
    /// The token, or the sealed token.
    pub payload: Vec<u8>,
}

/// A question that was asked and waits for its answer.
#[derive(Debug)]
pub struct OpenQuestion {
    service: Arc<Service>,
    server_id: String,
    /// The public key that the answer has to give to the user: no answer can be used twice.
    user_nkey: String,
}

impl Question {
    /// Returns the memory that the question takes, in bytes.
    pub fn cost_bytes(&self) -> usize {
        let AskedConnect { jwt, nkey, sig, auth_token, user, pass, name, lang, version, .. } =
            &self.connect;
        let texts = [jwt, nkey, sig, auth_token, user, pass, name, lang, version];
        let texts: usize = texts.iter().map(|text| text.len()).sum();
        let client = self.client.user.len() + self.client.name.len();
        let tls = self.tls.as_ref();
        let certs = tls.iter().flat_map(|tls| tls.certs.iter());
        let chains = tls.iter().flat_map(|tls| tls.verified_chains.iter().flatten());
        let certs: usize = certs.chain(chains).map(String::len).sum();
        QUESTION_BYTES + texts + client + certs
    }

    /// Makes the request, which is signed by the server and, if the service has a curve key, sealed
    /// for it. `user` is a new key pair; `now` and `expires` are seconds since 1970.
    ///
    /// # Errors
    ///
    /// Returns the reason for the log, if a key is of no use.
    pub fn ask(
        &self,
        keys: &ServerKeys,
        user: &KeyPair,
        now: i64,
        expires: i64,
    ) -> Result<(CalloutRequest, OpenQuestion), String> {
        let (user_nkey, service) = (user.public_key(), &self.service);
        let mut server = json!(self.server);
        if service.xkey.is_some() {
            server["xkey"] = keys.xkey.public_key().into();
        }
        let mut body = json!({
            "server_id": server,
            "user_nkey": user_nkey,
            "client_info": self.client,
            "connect_opts": self.connect,
        });
        if let Some(tls) = &self.tls {
            body["client_tls"] = json!(tls);
        }
        body["type"] = "authorization_request".into();
        body["version"] = jwt::VERSION.into();
        let number = hex(&Sha256::digest(user_nkey.as_bytes()));
        let claims = json!({
            "aud": REQUEST_AUDIENCE,
            "exp": expires,
            "jti": number,
            "iat": now,
            "iss": keys.id.public_key(),
            "sub": service.issuer,
            "nats": body,
        });
        let token = jwt::encode(&claims, &keys.id).ok_or("the server's key does not sign")?;
        let request = match &service.xkey {
            None => CalloutRequest { header: Vec::new(), payload: token.into_bytes() },
            Some(xkey) => sealed(&token, keys, xkey)?,
        };
        let (service, server_id) = (Arc::clone(service), self.server.id.clone());
        Ok((request, OpenQuestion { service, server_id, user_nkey }))
    }
}

fn sealed(token: &str, keys: &ServerKeys, xkey: &str) -> Result<CalloutRequest, String> {
    let to = XKey::from_public_key(xkey).map_err(|error| error.to_string())?;
    let payload = keys.xkey.seal(token.as_bytes(), &to).map_err(|error| error.to_string())?;
    let own = keys.xkey.public_key();
    let header = format!("NATS/1.0\r\n{XKEY_HEADER}: {own}\r\n\r\n").into_bytes();
    Ok(CalloutRequest { header, payload })
}

/// The decision of a service about a client: the claims of its user, or the reason of a refusal,
/// for the log and for events.
pub type Decision = Result<Box<Claims<UserClaims>>, String>;

/// The answer of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ServiceAnswer {
    /// The token of the user.
    jwt: String,
    /// The reason of a refusal.
    error: String,
    /// The account for which a signing key has signed.
    issuer_account: String,
}

impl Body for ServiceAnswer {
    const KIND: &'static str = "authorization_response";
    const ISSUERS: &'static [char] = &['A'];
    const SUBJECTS: &'static [char] = &['U'];
}

impl OpenQuestion {
    /// Judges an answer at `now`, in seconds since 1970. Returns the claims of the user, which the
    /// service's key has signed; their account and rights are still to be found out.
    ///
    /// # Errors
    ///
    /// Returns the reason of a refusal, for the log and for events.
    pub fn judge(&self, answer: &[u8], keys: &ServerKeys, now: i64) -> Decision {
        let account = &self.service.account_name;
        if answer.is_empty() {
            return Err(violation(&format!("{:?} on account {account:?}", "no reason supplied")));
        }
        let opened = self.open(answer, keys)?;
        let token = std::str::from_utf8(opened.as_deref().unwrap_or(answer)).unwrap_or_default();
        let answer: Claims<ServiceAnswer> = jwt::decode_signed(token)
            .map_err(|error| format!("Auth callout response is no valid token: {error}"))?;
        let is_sealed = opened.is_some();
        self.check(&answer, is_sealed, now)?;
        if !answer.body.error.is_empty() {
            let error = &answer.body.error;
            return Err(format!("Auth callout service returned an error: {error}"));
        }
        let user: Claims<UserClaims> = jwt::decode_signed(&answer.body.jwt)
            .map_err(|error| format!("Error validating user JWT: {error}"))?;
        if !user.is_in_time(now) {
            return Err("Error validating user JWT: it is not valid now".to_owned());
        }
        if user.subject != self.user_nkey {
            return Err(format!(
                "Expected authorized user of {:?} but got {:?} on account {account:?}",
                self.user_nkey, user.subject
            ));
        }
        self.check_issuer(&user)?;
        Ok(Box::new(user))
    }

    /// Opens an answer that is sealed; `None` if it is not.
    fn open(&self, answer: &[u8], keys: &ServerKeys) -> Result<Option<Vec<u8>>, String> {
        let Some(xkey) = self.service.xkey.as_ref().filter(|_| !answer.starts_with(TOKEN_PREFIX))
        else {
            return Ok(None);
        };
        let from = XKey::from_public_key(xkey);
        let opened = from.and_then(|from| keys.xkey.open(answer, &from)).map_err(|error| {
            let account = &self.service.account_name;
            format!("Error decrypting auth callout response on account {account:?}: {error}")
        })?;
        Ok(Some(opened))
    }

    /// Checks the claims of an answer; only the service can have sealed it, whoever has signed it.
    fn check(
        &self,
        answer: &Claims<ServiceAnswer>,
        is_sealed: bool,
        now: i64,
    ) -> Result<(), String> {
        let invalid =
            |reason| Err(format!("Authorization response had validation errors: {reason}"));
        let ServiceAnswer { jwt, error, issuer_account } = &answer.body;
        match (jwt.is_empty(), error.is_empty()) {
            (true, true) => return invalid("Error or Jwt is required"),
            (false, false) => return invalid("Only Error or Jwt can be set"),
            _ => {}
        }
        if !issuer_account.is_empty() && !jwt::is_key(issuer_account, &['A']) {
            return invalid("issuer_account is not an account public key");
        }
        if !answer.is_in_time(now) {
            return invalid("it is not valid now");
        }
        if answer.subject != self.user_nkey {
            return Err(violation("auth callout response is not for expected user"));
        }
        if answer.audience != self.server_id {
            return Err(violation("auth callout response is not for server"));
        }
        let of_other = !issuer_account.is_empty() && *issuer_account != self.service.issuer;
        if !is_sealed && self.service.has_operator && of_other {
            return Err(format!(
                "Auth callout response issuer account {issuer_account:?} is not the callout account"
            ));
        }
        if !is_sealed && !self.service.signs(&answer.issuer) {
            return Err("Auth callout signing key is unknown".to_owned());
        }
        Ok(())
    }

    /// Checks the issuer of a user's token, where it is the configured one.
    fn check_issuer(&self, user: &Claims<UserClaims>) -> Result<(), String> {
        let Service { account_name: account, issuer, has_operator, .. } = &*self.service;
        if *has_operator {
            return Ok(()); // The account's keys decide.
        }
        if !user.body.issuer_account.is_empty() {
            return Err(format!(
                "Error non operator mode account {account:?}: attempted to use issuer_account"
            ));
        }
        if user.issuer != *issuer {
            return Err(format!(
                "Wrong issuer for auth callout response on account {account:?}, expected \
                 {issuer:?} got {:?}",
                user.issuer
            ));
        }
        Ok(())
    }
}

fn violation(what: &str) -> String {
    format!("Auth callout violation: {what}")
}

#[cfg(test)]
mod tests;
