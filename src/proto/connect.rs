//! The JSON object of CONNECT: a client's options and credentials.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The options of all CONNECTs of a connection together. The default holds before the first.
///
/// Texts that were left out are empty, as are texts given as `""`. They are boxed: an idle
/// connection keeps them, and most are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Whether each operation is answered with +OK.
    pub verbose: bool,
    /// Whether the subjects of publishes are checked.
    pub pedantic: bool,
    /// Whether the connection receives its own messages.
    pub echo: bool,
    /// Whether HPUB is allowed and HMSG wanted.
    pub headers: bool,
    /// Whether the 503 status is wanted; needs headers.
    pub no_responders: bool,
    /// The protocol level, 0 or 1; the caller refuses other numbers.
    pub protocol: i64,
    /// Credentials: the user's name.
    pub user: Box<str>,
    /// Credentials: the user's password.
    pub pass: Box<str>,
    /// Credentials: a token.
    pub auth_token: Box<str>,
    /// Credentials: a signed claim.
    pub jwt: Box<str>,
    /// Credentials: a public key.
    pub nkey: Box<str>,
    /// Credentials: the nonce's signature, base64.
    pub sig: Box<str>,
    /// The client's name, for log and monitoring.
    pub name: Box<str>,
    /// The language of the client's library, for log and monitoring.
    pub lang: Box<str>,
    /// The version of the client's library, for log and monitoring.
    pub version: Box<str>,
    /// A field without meaning for the server.
    pub tls_required: bool,
    /// The account that the client asks for; the caller refuses any.
    pub account: Box<str>,
    /// Whether the client asks for a new account; the caller refuses it.
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
            user: Box::default(),
            pass: Box::default(),
            auth_token: Box::default(),
            jwt: Box::default(),
            nkey: Box::default(),
            sig: Box::default(),
            name: Box::default(),
            lang: Box::default(),
            version: Box::default(),
            tls_required: false,
            account: Box::default(),
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
    /// Returns an error if `json` is not one JSON object, or if a field has the wrong type. The
    /// connection then closes silently; some fields may have been taken over.
    pub fn apply(&mut self, json: &[u8]) -> Result<(), ConnectError> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        deserializer
            .deserialize_map(Fields(self))
            .and_then(|()| deserializer.end())
            .map_err(|error| ConnectError { column: error.column() })
    }
}

/// A CONNECT that is not a JSON object, or has a field of the wrong type.
///
/// It does not repeat the JSON text, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    /// Bytes of the JSON text that were read before the error.
    pub column: usize,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CONNECT is not a valid JSON object, error at byte {}", self.column)
    }
}

impl std::error::Error for ConnectError {}

/// A visitor that writes each field into a [`Connect`].
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

fn set_text<'de, A: MapAccess<'de>>(map: &mut A, field: &mut Box<str>) -> Result<(), A::Error> {
    if let Some(text) = map.next_value_seed(MaybeText)? {
        *field = text.into();
    }
    Ok(())
}

/// A text; bytes that are not UTF-8, and halves of surrogates, are replaced rather than refused.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        // As bytes, because a JSON text read as text must be UTF-8.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(json: &[u8]) -> Connect {
        let mut connect = Connect::default();
        connect.apply(json).unwrap();
        connect
    }

    #[test]
    fn before_connect_a_client_is_verbose_and_pedantic() {
        let connect = Connect::default();
        assert!(connect.verbose && connect.pedantic && connect.echo);
        assert!(!connect.headers && !connect.no_responders);
        assert_eq!(connect.protocol, 0);
        assert_eq!(applied(b"{}"), connect);
    }

    #[test]
    fn every_field_is_taken_over() {
        let connect = applied(
            br#"{"verbose":false,"pedantic":false,"echo":false,"headers":true,
                "no_responders":true,"protocol":1,"user":"a","pass":"b","auth_token":"c",
                "jwt":"d","nkey":"e","sig":"f","name":"g","lang":"h","version":"i",
                "tls_required":true,"account":"j","new_account":true}"#,
        );
        let expected = Connect {
            verbose: false,
            pedantic: false,
            echo: false,
            headers: true,
            no_responders: true,
            protocol: 1,
            user: "a".into(),
            pass: "b".into(),
            auth_token: "c".into(),
            jwt: "d".into(),
            nkey: "e".into(),
            sig: "f".into(),
            name: "g".into(),
            lang: "h".into(),
            version: "i".into(),
            tls_required: true,
            account: "j".into(),
            new_account: true,
        };
        assert_eq!(connect, expected);
    }

    #[test]
    fn fields_left_out_or_null_keep_their_values() {
        let mut connect = applied(br#"{"verbose":false,"user":"a","protocol":1}"#);
        let before = connect.clone();
        connect.apply(br#"{"verbose":null,"user":null,"protocol":null,"pass":null}"#).unwrap();
        assert_eq!(connect, before);
        connect.apply(br#"{"echo":false}"#).unwrap();
        assert_eq!(connect, Connect { echo: false, ..before });
    }

    #[test]
    fn names_have_no_case_and_the_last_of_equal_ones_counts() {
        let connect = applied(br#"{"VERBOSE":false,"Auth_Token":"a","auth_token":"b"}"#);
        assert!(!connect.verbose);
        assert_eq!(&*connect.auth_token, "b");
        assert!(applied(br#"{"verbose":false,"Verbose":true}"#).verbose);
    }

    #[test]
    fn unknown_fields_of_any_type_are_ignored() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        for value in ["1", "-1.5e300", "\"x\"", "null", "[1,{}]", "{\"verbose\":false}", &deep] {
            let json = format!("{{\"colour\":{value},\"echo\":false}}");
            let connect = applied(json.as_bytes());
            assert!(connect.verbose && !connect.echo, "{value}");
        }
    }

    #[test]
    fn anything_but_one_object_of_the_right_types_is_an_error() {
        for json in [
            "",
            "null",
            "true",
            "1",
            "\"a\"",
            "[]",
            "[{}]",
            "{",
            "{}x",
            "{} {}",
            "{\"a\"}",
            "{\"verbose\":false",
            "{\"verbose\":\"no\"}",
            "{\"verbose\":0}",
            "{\"user\":1}",
            "{\"user\":true}",
            "{\"user\":[]}",
            "{\"user\":[104,105]}",
            "{\"user\":{}}",
            "{\"protocol\":\"1\"}",
            "{\"protocol\":1.0}",
            "{\"protocol\":0.5}",
            "{\"protocol\":9223372036854775808}",
            "{\"protocol\":true}",
            "{\"protocol\":[]}",
            "{\"echo\":\"no\",\"echo\":false}",
            "{echo:false}",
            "{'echo':false}",
            "{,}",
            "{\"echo\":false,}",
        ] {
            assert!(Connect::default().apply(json.as_bytes()).is_err(), "{json}");
        }
        assert!(Connect::default().apply(b" {\"protocol\":-9223372036854775808} ").is_ok());
    }

    #[test]
    fn a_text_that_is_no_unicode_is_mended_rather_than_refused() {
        let connect = applied(b"{\"name\":\"caf\xe9\",\"lang\":\"a\\ud800b\",\"x\xff\":\"\xff\"}");
        assert_eq!(&*connect.name, "caf\u{fffd}");
        assert!(connect.lang.starts_with('a') && connect.lang.ends_with('b'));
        assert_eq!(&*applied(br#"{"name":"\u00e9\n\ud83d\ude00"}"#).name, "é\n😀");
    }

    #[test]
    fn an_error_does_not_repeat_what_was_sent() {
        let error = Connect::default().apply(b"{\"pass\":12345}").unwrap_err();
        assert!(!error.to_string().contains("12345"), "{error}");
    }
}
