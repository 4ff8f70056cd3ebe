//! Whatever is shown as a token: claims or an error; and nothing that is made up holds.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use shardcast::auth::Permissions;
use shardcast::auth::jwt::{AccountClaims, Activation, Jwt, Operator, UserClaims, decode};

// The first byte says whether the rest is a token, or what a token says.
fuzz_target!(|data: &[u8]| {
    let [choice, rest @ ..] = data else { return };
    let text = if choice & 1 == 0 {
        String::from_utf8_lossy(rest).into_owned()
    } else {
        let header = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
        let nothing = URL_SAFE_NO_PAD.encode([0; 64]);
        format!("{header}.{}.{nothing}", URL_SAFE_NO_PAD.encode(rest))
    };
    let user: Option<Jwt<UserClaims>> = decode(&text).ok();
    if let Some(token) = &user {
        let _ = Permissions::from_token(&token.claims.body.permissions);
        let _ = (token.claims.body.is_empty(), token.claims.is_in_time(0));
    }
    let account: Option<Jwt<AccountClaims>> = decode(&text).ok();
    let operator: Option<Jwt<Operator>> = decode(&text).ok();
    let activation: Option<Jwt<Activation>> = decode(&text).ok();
    let signatures = [
        user.map(|token| token.signature),
        account.map(|token| token.signature),
        operator.map(|token| token.signature),
        activation.map(|token| token.signature),
    ];
    assert!(signatures.into_iter().flatten().count() <= 1, "a token is of one kind");
});
