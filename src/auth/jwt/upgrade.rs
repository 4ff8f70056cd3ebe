//! Conversion of claims from version 1 to version 2.

use serde_json::{Map, Value};

/// Members of the body of each kind of token of version 1; others are ignored.
const KEYS: [(&str, &[&str]); 4] = [
    (
        "operator",
        &["signing_keys", "account_server_url", "operator_service_urls", "system_account"],
    ),
    ("account", &["imports", "exports", "limits", "signing_keys", "revocations"]),
    ("user", &["pub", "sub", "resp", "src", "times", "times_location", "bearer_token"]),
    ("activation", &["subject", "type"]),
];
const USER_LIMITS: [&str; 3] = ["subs", "data", "payload"];
const ACCOUNT_LIMITS: [&str; 9] = [
    "subs",
    "data",
    "payload",
    "imports",
    "exports",
    "wildcards",
    "disallow_bearer",
    "conn",
    "leaf",
];

/// Whether claims are of version 1: they have their kind beside their body instead of in it.
pub(super) fn is_old(claims: &Value) -> bool {
    claims["type"].as_str().is_some_and(|kind| !kind.is_empty())
}

/// Converts claims of version 1 to version 2. `None` if their kind is not known.
pub(super) fn upgrade(claims: &mut Value) -> Option<()> {
    let claims = claims.as_object_mut()?;
    let kind = claims.remove("type")?;
    let (tags, issuer_account) = (claims.remove("tags"), claims.remove("issuer_account"));
    let old = claims.remove("nats").unwrap_or_default();
    let (_, keys) = KEYS.iter().find(|(name, _)| kind == *name)?;
    let mut body = only(&old, keys);
    match kind.as_str()? {
        "account" => {
            if let Some(limits) = body.get_mut("limits") {
                *limits = only(limits, &ACCOUNT_LIMITS).into();
            }
        }
        "user" => {
            for limit in USER_LIMITS {
                body.insert(limit.to_owned(), old.get(limit).cloned().unwrap_or((-1).into()));
            }
        }
        "activation" => {
            if let Some(shared) = body.remove("type") {
                body.insert("kind".to_owned(), shared);
            }
        }
        _ => {}
    }
    body.insert("type".to_owned(), kind);
    body.insert("version".to_owned(), super::VERSION.into());
    for (key, value) in [("tags", tags), ("issuer_account", issuer_account)] {
        body.extend(value.map(|value| (key.to_owned(), value)));
    }
    claims.insert("nats".to_owned(), body.into());
    Some(())
}

/// The members of an object that have one of these names.
fn only(object: &Value, keys: &[&str]) -> Map<String, Value> {
    let member = |key: &&str| Some(((*key).to_owned(), object.get(key)?.clone()));
    keys.iter().filter_map(member).collect()
}
