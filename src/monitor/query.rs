//! Parameters of a request, read and refused as nats-server does, which shows Go's texts.

use std::num::{IntErrorKind, ParseIntError};

/// The parameters after the question mark.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

/// The reason why a request is refused, as the client sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadQuery(pub(super) String);

/// The detail of subscriptions in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    None,
    Subjects,
    All,
}

impl Query {
    pub(super) fn new(text: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(text.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// Returns the first value of that name; empty if there is none.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, BadQuery> {
        match self.text(name) {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            text => Err(BadQuery(format!(
                "Error decoding boolean for '{name}': strconv.ParseBool: parsing {text:?}: \
                 invalid syntax"
            ))),
        }
    }

    pub(super) fn detail(&self, name: &str) -> Result<Detail, BadQuery> {
        if self.text(name).eq_ignore_ascii_case("detail") {
            return Ok(Detail::All);
        }
        Ok(if self.boolean(name)? { Detail::Subjects } else { Detail::None })
    }

    /// Reads a count; 0 if absent or negative.
    pub(super) fn count(&self, name: &str) -> Result<usize, BadQuery> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(0);
        }
        let number: i64 =
            text.parse().map_err(|error| refusal("int", name, "Atoi", text, &error))?;
        Ok(usize::try_from(number).unwrap_or(0))
    }

    /// Reads a connection's number; 0 if absent.
    pub(super) fn number(&self, name: &str) -> Result<u64, BadQuery> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(0);
        }
        // Go's unsigned numbers have no sign.
        let unsigned = text.strip_prefix('+').map_or(text, |_| "+");
        unsigned.parse().map_err(|error| refusal("uint64", name, "ParseUint", text, &error))
    }
}

fn refusal(kind: &str, name: &str, function: &str, text: &str, error: &ParseIntError) -> BadQuery {
    let reason = match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    BadQuery(format!(
        "Error decoding {kind} for '{name}': strconv.{function}: parsing {text:?}: {reason}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_values_are_read() {
        let query = Query::new(Some("subs=DETAIL&auth=T&limit=3&offset=-1&cid=7&user=a%20b"));
        assert_eq!(query.detail("subs"), Ok(Detail::All));
        assert_eq!(query.boolean("auth"), Ok(true));
        assert_eq!((query.count("limit"), query.count("offset")), (Ok(3), Ok(0)));
        assert_eq!(query.number("cid"), Ok(7));
        assert_eq!(query.text("user"), "a b");
        let query = Query::new(None);
        assert_eq!(query.detail("subs"), Ok(Detail::None));
        assert_eq!((query.count("limit"), query.number("cid")), (Ok(0), Ok(0)));
    }

    #[test]
    fn bad_values_are_refused_in_the_words_of_nats_server() {
        let query = Query::new(Some("limit=foo&offset=99999999999999999999&cid=x&subs=x&n=+1"));
        let told = |refusal: Option<BadQuery>| refusal.unwrap().0;
        assert_eq!(
            told(query.count("limit").err()),
            "Error decoding int for 'limit': strconv.Atoi: parsing \"foo\": invalid syntax"
        );
        assert_eq!(
            told(query.count("offset").err()),
            "Error decoding int for 'offset': strconv.Atoi: parsing \"99999999999999999999\": \
             value out of range"
        );
        assert_eq!(
            told(query.number("cid").err()),
            "Error decoding uint64 for 'cid': strconv.ParseUint: parsing \"x\": invalid syntax"
        );
        assert_eq!(
            told(query.detail("subs").err()),
            "Error decoding boolean for 'subs': strconv.ParseBool: parsing \"x\": invalid syntax"
        );
        // A plus is a blank in a query.
        assert!(told(query.count("n").err()).contains("parsing \" 1\""));
    }
}
