//! Credential checks that take too long for a shard: bcrypt hashes and signatures.
//!
//! A plain secret is compared at once, in constant time. A bcrypt hash takes up to seconds, a
//! signature a good part of a millisecond. A CONNECT with one leaves a `Claim`; the input after it
//! waits unparsed, and the connection is not read from (`Held::Check`). The shard hands the
//! [`CredentialCheck`] (`Output::Check`) to the thread `credentials`; with the result
//! `Engine::on_login_news` accepts or refuses the client.
//!
//! A client that is not logged in costs little: its waiting input is bounded
//! (`UNDECIDED_BYTES_MAX`, in TLS `HELLO_BYTES_MAX`), the login's timeout includes the check, and
//! the thread skips connections that have ended.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nkeys::KeyPair;

use crate::auth::{Secret, jwt};

/// The length of a nonce in bytes, before base64.
const NONCE_BYTES: usize = 11;

/// A check of a client's credentials, which any thread can make.
pub enum CredentialCheck {
    /// A password to check against a hash.
    Password {
        /// The configured hash.
        secret: Secret,
        /// The password that the client sent.
        given: String,
    },
    /// A token, and the check that the client is its subject.
    Token {
        /// The token's signature by its issuer.
        token: jwt::Signature,
        /// The client's signature of the nonce; `None` for a bearer token.
        own: Option<Box<CredentialCheck>>,
    },
    /// A signature of the nonce in the connection's INFO.
    Signature {
        /// The user's public key.
        key: String,
        /// The nonce that the client had to sign.
        nonce: String,
        /// The client's signature, in base64.
        signature: String,
    },
}

impl CredentialCheck {
    /// Whether they are valid. Takes up to seconds for a password, depending on its hash.
    pub fn holds(&self) -> bool {
        match self {
            Self::Password { secret, given } => secret.matches(given),
            Self::Token { token, own } => {
                token.holds() && own.as_ref().is_none_or(|own| own.holds())
            }
            Self::Signature { key, nonce, signature } => {
                let decoded = URL_SAFE_NO_PAD.decode(signature);
                let Ok(signature) = decoded.or_else(|_| STANDARD.decode(signature)) else {
                    return false;
                };
                let key = KeyPair::from_public_key(key);
                key.is_ok_and(|key| key.verify(nonce.as_bytes(), &signature).is_ok())
            }
        }
    }
}

impl fmt::Debug for CredentialCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialCheck")
    }
}

/// A generator of nonces that no client can predict.
#[derive(Clone, Default)]
pub struct NonceKey([u8; 32]);

impl NonceKey {
    /// Creates a generator from 32 secret bytes.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// Returns the nonce of the connection with this number: 15 characters.
    pub(crate) fn nonce(&self, cid: u64) -> String {
        use sha2::{Digest, Sha256};
        let digest = Sha256::new().chain_update(self.0).chain_update(cid.to_le_bytes()).finalize();
        URL_SAFE_NO_PAD.encode(&digest[..NONCE_BYTES])
    }
}

impl fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NonceKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_keys_own_signature_of_this_nonce_holds() {
        let (ann, eve) = (KeyPair::new_user(), KeyPair::new_user());
        let nonce = NonceKey::new([7; 32]).nonce(1);
        assert_eq!(nonce.len(), 15);
        let check = |signer: &KeyPair, signed: &str| CredentialCheck::Signature {
            key: ann.public_key(),
            nonce: nonce.clone(),
            signature: URL_SAFE_NO_PAD.encode(signer.sign(signed.as_bytes()).unwrap()),
        };
        assert!(check(&ann, &nonce).holds());
        assert!(!check(&eve, &nonce).holds(), "another key");
        assert!(!check(&ann, &NonceKey::new([7; 32]).nonce(2)).holds(), "another connection's");
        assert!(!check(&ann, &NonceKey::new([8; 32]).nonce(1)).holds(), "another server's");
        for signature in ["", "%", "AAAA"] {
            let signature = signature.to_owned();
            let (key, nonce) = (ann.public_key(), nonce.clone());
            assert!(!CredentialCheck::Signature { key, nonce, signature }.holds());
        }
    }

    use std::rc::Rc;

    use crate::config::{Options, UserOptions};
    use crate::engine::{ConnId, Engine, Identity, LoginNews, Output, Peer, Settings, ShardId};

    /// Returns an engine whose only user has a hashed password, and a connection that has sent one.
    fn claimant() -> (Engine, ConnId) {
        let mut options = Options::default();
        let password = Secret::new("$2a$04$abcdefghijklmnopqrstuuAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let user = UserOptions { password, ..UserOptions::named("ann") };
        options.auth.users.push(user);
        let settings = Settings::new(&options, &Identity::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let id = ConnId { slot: 0, generation: 0 };
        engine.open(id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
        let connect = b"CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"p\"}\r\nPING\r\nPI";
        engine.on_bytes(id, connect);
        engine.on_bytes(id, b"NG\r\n");
        (engine, id)
    }

    fn output(engine: &mut Engine, id: ConnId) -> String {
        let mut text = String::new();
        while let Some(batch) = engine.take_batch(id) {
            let bytes: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
            engine.on_sent(id, bytes.len(), Some(batch));
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        text
    }

    #[test]
    fn what_follows_a_connect_waits_until_its_password_is_checked() {
        let (mut engine, id) = claimant();
        let greeting = output(&mut engine, id);
        assert!(greeting.starts_with("INFO ") && greeting.lines().count() == 1, "{greeting}");
        let actions: Vec<Output> = std::iter::from_fn(|| engine.next_output()).collect();
        assert!(
            actions.iter().any(|it| matches!(it, Output::Pause(conn) if *conn == id)),
            "nothing more is read meanwhile"
        );
        assert!(actions.iter().any(|output| match output {
            Output::Check(conn, check) =>
                *conn == id && matches!(**check, CredentialCheck::Password { .. }),
            _ => false,
        }));
        engine.on_login_news(id, LoginNews::Checked(true));
        assert_eq!(output(&mut engine, id), "PONG\r\nPONG\r\n");
        let actions: Vec<Output> = std::iter::from_fn(|| engine.next_output()).collect();
        assert!(actions.iter().any(|it| matches!(it, Output::Resume(conn) if *conn == id)));
    }

    #[test]
    fn the_end_of_a_stream_waits_until_a_password_is_checked() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        engine.on_ended(id, false);
        assert_eq!(engine.view().open_conns(), 1);
        engine.on_login_news(id, LoginNews::Checked(true));
        assert_eq!(output(&mut engine, id), "PONG\r\nPONG\r\n", "what came before is answered");
        assert_eq!(engine.view().open_conns(), 0);
    }

    #[test]
    fn what_follows_a_connect_with_a_wrong_password_is_never_looked_at() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        engine.on_login_news(id, LoginNews::Checked(false));
        assert_eq!(output(&mut engine, id), "-ERR 'Authorization Violation'\r\n");
        engine.on_login_news(id, LoginNews::Checked(true));
        assert_eq!(engine.view().open_conns(), 0, "a second answer changes nothing");
    }

    #[test]
    fn who_sends_on_and_on_while_a_password_is_checked_takes_no_memory_and_is_sent_away() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        for _ in 0..100 {
            engine.on_bytes(id, &[b'x'; 1000]);
        }
        assert_eq!(output(&mut engine, id), "-ERR 'Authorization Violation'\r\n");
        engine.on_login_news(id, LoginNews::Checked(true));
        assert_eq!(engine.view().open_conns(), 0);
    }

    #[test]
    fn a_password_that_is_not_checked_in_time_is_not_waited_for() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        let due = engine.next_deadline().expect("a login has a deadline");
        engine.set_now(due);
        engine.tick();
        assert_eq!(output(&mut engine, id), "-ERR 'Authentication Timeout'\r\n");
    }

    #[test]
    fn a_reload_while_a_password_is_checked_sends_the_client_away() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        let settings = Settings::new(&Options::default(), &Identity::default(), usize::MAX);
        engine.reload(Rc::new(settings));
        engine.on_login_news(id, LoginNews::Checked(true));
        assert!(output(&mut engine, id).starts_with("-ERR 'Authorization Violation'"));
    }
}
