//! Bodies of requests, read as nats-server reads them.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;

/// Whether a body has nothing to be read: no bytes, or an empty object.
pub fn is_empty_request(body: &[u8]) -> bool {
    body.is_empty()
        || matches!(serde_json::from_slice(body), Ok(Value::Object(fields)) if fields.is_empty())
}

/// Whether a body begins as an object or an array; all other bodies of some requests are ignored.
pub fn is_object_or_array(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
}

/// Reads the body of a request; one without a value gives the default.
///
/// # Errors
///
/// 10025 if it is no JSON, if a value has a wrong type, or, if the server is `strict`, if the
/// request knows a field not.
pub fn parse_request<T: DeserializeOwned + Default>(
    body: &[u8],
    is_strict: bool,
) -> Result<T, ApiError> {
    match parse_value(body)? {
        Some(value) => from_value(value, is_strict),
        None => Ok(T::default()),
    }
}

/// Reads the body of a request as a value without `null`s; `None` if there is none.
///
/// # Errors
///
/// 10025 if it is no JSON.
pub fn parse_value(body: &[u8]) -> Result<Option<Value>, ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    // Bytes that are no text are replaced, as in all texts of JetStream.
    let text = String::from_utf8_lossy(body);
    let mut value: Value = serde_json::from_str(&text).map_err(ApiError::invalid_json)?;
    if value.is_null() {
        return Ok(None);
    }
    drop_nulls(&mut value);
    make_names_small(&mut value);
    Ok(Some(value))
}

/// Makes a request of its fields.
///
/// # Errors
///
/// 10025 as [`parse_request`].
pub fn from_value<T: DeserializeOwned>(value: Value, is_strict: bool) -> Result<T, ApiError> {
    if !value.is_object() {
        return Err(ApiError::invalid_json("expected an object"));
    }
    let mut unknown = None;
    let mut note = |path: serde_ignored::Path<'_>| {
        unknown.get_or_insert_with(|| path.to_string());
    };
    let request = serde_ignored::deserialize(value, &mut note).map_err(ApiError::invalid_json)?;
    match unknown.filter(|_| is_strict) {
        Some(path) => Err(ApiError::invalid_json(format_args!("unknown field \"{path}\""))),
        None => Ok(request),
    }
}

/// Writes the names of fields in small letters: they are found whatever their case is.
fn make_names_small(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.keys().any(|name| name.bytes().any(|byte| byte.is_ascii_uppercase())) {
                let all = std::mem::take(fields).into_iter();
                fields.extend(all.map(|(name, field)| (name.to_ascii_lowercase(), field)));
            }
            // The names of metadata are the client's.
            let fields = fields.iter_mut().filter(|(name, _)| *name != "metadata");
            fields.for_each(|(_, field)| make_names_small(field));
        }
        Value::Array(items) => items.iter_mut().for_each(make_names_small),
        _ => {}
    }
}

/// Removes fields that are `null`: a field that is so is as good as left out.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Sample {
        seq: u64,
        filter: String,
    }

    fn parse(body: &str, is_strict: bool) -> Result<Sample, u16> {
        parse_request(body.as_bytes(), is_strict).map_err(|error| error.err_code)
    }

    #[test]
    fn requests_are_refused_for_what_is_wrong_and_what_is_unknown() {
        let sample = Sample { seq: 5, filter: String::new() };
        assert_eq!(parse(r#"{"seq":5,"filter":null}"#, true), Ok(sample));
        for empty in ["", " \r\n", "null", "{}"] {
            assert_eq!(parse(empty, true), Ok(Sample::default()), "{empty}");
        }
        for wrong in ["{bad", "[]", "5", "{\"seq\":-1}", "{\"seq\":\"5\"}", "{\"seq\":1.5}", "{} x"]
        {
            assert_eq!(parse(wrong, false), Err(10025), "{wrong}");
        }
        let unknown = r#"{"seq":5,"seek":1}"#;
        assert_eq!(parse(unknown, true), Err(10025));
        assert_eq!(parse(unknown, false).unwrap().seq, 5);
        assert_eq!(parse(r#"{"Seq":5,"FILTER":"A"}"#, true).unwrap().filter, "A");
        assert!(is_empty_request(b"{ }") && is_empty_request(b"") && !is_empty_request(b"[]"));
        assert!(is_object_or_array(b" {bad") && !is_object_or_array(b"bad"));
    }
}
