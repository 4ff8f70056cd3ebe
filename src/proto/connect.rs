//! What a client says about itself: the JSON object of CONNECT (§3).

#![forbid(unsafe_code)]

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// What all CONNECTs of a connection together said. The default is what holds before the first.
///
/// Texts that were not given are empty, as are texts given as `""`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Send +OK for each operation.
    pub verbose: bool,
    /// Check the subjects of publishes.
    pub pedantic: bool,
    /// Deliver the connection's own messages to it.
    pub echo: bool,
    /// HPUB allowed, HMSG wanted.
    pub headers: bool,
    /// 503 status wanted; needs headers.
    pub no_responders: bool,
    /// 0 or 1; the caller refuses other numbers.
    pub protocol: i64,
    /// Credentials: the user's name.
    pub user: String,
    /// Credentials: the user's password.
    pub pass: String,
    /// Credentials: a token.
    pub auth_token: String,
    /// Credentials: a signed claim.
    pub jwt: String,
    /// Credentials: a public key.
    pub nkey: String,
    /// Credentials: the nonce's signature, base64.
    pub sig: String,
    /// Shown in log and monitoring: the client's name.
    pub name: String,
    /// Shown in log and monitoring: the language of its library.
    pub lang: String,
    /// Shown in log and monitoring: the version of its library.
    pub version: String,
    /// Without meaning.
    pub tls_required: bool,
    /// The account asked for; the caller refuses any.
    pub account: String,
    /// Whether a new account is asked for; the caller refuses it.
    pub new_account: bool,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            verbose: true,
            pedantic: true,
            echo: true,
            headers: false,
            no_responders: false,
            protocol: 0,
            user: String::new(),
            pass: String::new(),
            auth_token: String::new(),
            jwt: String::new(),
            nkey: String::new(),
            sig: String::new(),
            name: String::new(),
            lang: String::new(),
            version: String::new(),
            tls_required: false,
            account: String::new(),
            new_account: false,
        }
    }
}

impl Connect {
    /// Takes over the fields of one CONNECT; those it leaves out, or gives as null, keep their
    /// values. Names are matched without regard to case, the last of equal ones counts, and
    /// unknown ones are ignored.
    ///
    /// # Errors
    ///
    /// If `json` is not one JSON object, or a field has the wrong type. The connection then
    /// closes silently; some fields may have been taken over.
    pub fn apply(&mut self, json: &[u8]) -> Result<(), ConnectError> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        deserializer
            .deserialize_map(Fields(self))
            .and_then(|()| deserializer.end())
            .map_err(|error| ConnectError { column: error.column() })
    }
}

/// A CONNECT that is no JSON object, or has a field of the wrong type.
///
/// It does not repeat what was sent: that may be a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    /// How many bytes of the JSON text were read when it was noticed.
    pub column: usize,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CONNECT is not a JSON object of the known types, see byte {}", self.column)
    }
}

impl std::error::Error for ConnectError {}

/// Writes each field to where it belongs.
struct Fields<'a>(&'a mut Connect);

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let connect = self.0;
        while let Some(mut name) = map.next_key_seed(Text)? {
            name.make_ascii_lowercase();
            match name.as_str() {
                "verbose" => set(&mut map, &mut connect.verbose)?,
                "pedantic" => set(&mut map, &mut connect.pedantic)?,
                "echo" => set(&mut map, &mut connect.echo)?,
                "headers" => set(&mut map, &mut connect.headers)?,
                "no_responders" => set(&mut map, &mut connect.no_responders)?,
                "protocol" => set(&mut map, &mut connect.protocol)?,
                "user" => set_text(&mut map, &mut connect.user)?,
                "pass" => set_text(&mut map, &mut connect.pass)?,
                "auth_token" => set_text(&mut map, &mut connect.auth_token)?,
                "jwt" => set_text(&mut map, &mut connect.jwt)?,
                "nkey" => set_text(&mut map, &mut connect.nkey)?,
                "sig" => set_text(&mut map, &mut connect.sig)?,
                "name" => set_text(&mut map, &mut connect.name)?,
                "lang" => set_text(&mut map, &mut connect.lang)?,
                "version" => set_text(&mut map, &mut connect.version)?,
                "tls_required" => set(&mut map, &mut connect.tls_required)?,
                "account" => set_text(&mut map, &mut connect.account)?,
                "new_account" => set(&mut map, &mut connect.new_account)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

fn set<'de, T, A>(map: &mut A, field: &mut T) -> Result<(), A::Error>
where
    T: serde::Deserialize<'de>,
    A: MapAccess<'de>,
{
    if let Some(value) = map.next_value()? {
        *field = value;
    }
    Ok(())
}

fn set_text<'de, A: MapAccess<'de>>(map: &mut A, field: &mut String) -> Result<(), A::Error> {
    if let Some(text) = map.next_value_seed(MaybeText)? {
        *field = text;
    }
    Ok(())
}

/// A text; bytes that are no UTF-8, and halves of surrogates, are replaced rather than refused.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        // As bytes, because a JSON text asked for as such must be UTF-8.
        from.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<String, E> {
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// A text or null.
struct MaybeText;

impl<'de> DeserializeSeed<'de> for MaybeText {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Option<String>, D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for MaybeText {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or null")
    }

    fn visit_none<E: Error>(self) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Option<String>, D::Error> {
        Text.deserialize(from).map(Some)
    }
}
