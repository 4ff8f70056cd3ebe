//! Credential checks that take too long for a shard: bcrypt hashes and signatures.
//!
//! A plain secret is compared at once, in constant time. A bcrypt hash takes up to seconds, a
//! signature a good part of a millisecond. A CONNECT with one leaves a `Claim`; what follows it
//! waits unparsed, and the connection is not read from (`Brakes::claims`). The shard hands the
//! [`Proof`] (`Engine::pop_proof`) to the thread `proofs`, and `Engine::on_proof` accepts or
//! refuses the client.
//!
//! A stranger costs little: its waiting input is bounded (`UNDECIDED_BYTES_MAX`, in TLS
//! `HELLO_BYTES_MAX`), the login's timeout includes the check, and the thread skips connections
//! that have ended.

#![forbid(unsafe_code)]

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nkeys::KeyPair;

use crate::auth::Secret;
use crate::auth::jwt;

/// Bytes of a nonce, before it is text.
const NONCE_BYTES: usize = 11;

/// Something to be checked on any thread that has the time.
pub enum Proof {
    /// A password against a hash.
    Password {
        /// The hash.
        secret: Secret,
        /// What the client said.
        given: String,
    },
    /// A token, and that the client is the one it is about.
    Token {
        /// Who has signed the token.
        token: jwt::Signature,
        /// The client's own signature, unless whoever bears the token may use it.
        own: Option<Box<Proof>>,
    },
    /// A signature of the nonce in its INFO.
    Signature {
        /// The public key that the user is known by.
        key: String,
        /// What was to be signed.
        nonce: String,
        /// What the client said, in base64.
        signature: String,
    },
}

impl Proof {
    /// Whether the client has proved it. Takes up to seconds for a password, by its hash.
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

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof")
    }
}

/// Makes nonces that nobody else can foretell.
#[derive(Clone, Default)]
pub struct NonceKey([u8; 32]);

impl NonceKey {
    /// Takes 32 bytes that nobody else knows.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// The nonce of the connection with this number: 15 characters.
    pub(super) fn nonce(&self, cid: u64) -> String {
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
        let proof = |signer: &KeyPair, signed: &str| Proof::Signature {
            key: ann.public_key(),
            nonce: nonce.clone(),
            signature: URL_SAFE_NO_PAD.encode(signer.sign(signed.as_bytes()).unwrap()),
        };
        assert!(proof(&ann, &nonce).holds());
        assert!(!proof(&eve, &nonce).holds(), "another key");
        assert!(!proof(&ann, &NonceKey::new([7; 32]).nonce(2)).holds(), "another connection's");
        assert!(!proof(&ann, &NonceKey::new([8; 32]).nonce(1)).holds(), "another server's");
        for signature in ["", "%", "AAAA"] {
            let signature = signature.to_owned();
            let (key, nonce) = (ann.public_key(), nonce.clone());
            assert!(!Proof::Signature { key, nonce, signature }.holds());
        }
    }

    use std::rc::Rc;

    use crate::config::{Options, User};
    use crate::engine::{Action, ConnId, Engine, Identity, Peer, Settings, ShardId};

    /// An engine whose one user has a hashed password, and a connection that has shown it.
    fn claimant() -> (Engine, ConnId) {
        let mut options = Options::default();
        let password = Secret::new("$2a$04$abcdefghijklmnopqrstuuAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let user = User { password, ..User::named("ann") };
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
        let actions: Vec<Action> = std::iter::from_fn(|| engine.next_action()).collect();
        assert!(actions.contains(&Action::Pause(id)), "nothing more is read meanwhile");
        let Some((claimant, Proof::Password { .. })) = engine.pop_proof() else { panic!() };
        assert_eq!(claimant, id);
        engine.on_proof(id, true);
        assert_eq!(output(&mut engine, id), "PONG\r\nPONG\r\n");
        let actions: Vec<Action> = std::iter::from_fn(|| engine.next_action()).collect();
        assert!(actions.contains(&Action::Resume(id)));
    }

    #[test]
    fn the_end_of_a_stream_waits_until_a_password_is_checked() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        engine.on_ended(id, false);
        assert_eq!(engine.open_conns(), 1);
        engine.on_proof(id, true);
        assert_eq!(output(&mut engine, id), "PONG\r\nPONG\r\n", "what came before is answered");
        assert_eq!(engine.open_conns(), 0);
    }

    #[test]
    fn what_follows_a_connect_with_a_wrong_password_is_never_looked_at() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        engine.on_proof(id, false);
        assert_eq!(output(&mut engine, id), "-ERR 'Authorization Violation'\r\n");
        engine.on_proof(id, true);
        assert_eq!(engine.open_conns(), 0, "a second answer changes nothing");
    }

    #[test]
    fn who_sends_on_and_on_while_a_password_is_checked_takes_no_memory_and_is_sent_away() {
        let (mut engine, id) = claimant();
        output(&mut engine, id);
        for _ in 0..100 {
            engine.on_bytes(id, &[b'x'; 1000]);
        }
        assert_eq!(output(&mut engine, id), "-ERR 'Authorization Violation'\r\n");
        engine.on_proof(id, true);
        assert_eq!(engine.open_conns(), 0);
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
        engine.on_proof(id, true);
        assert!(output(&mut engine, id).starts_with("-ERR 'Authorization Violation'"));
    }
}
