//! A key with its value, converted to an option, and tables of such keys.

use super::file::{Map, MapEntry, Value, ValueKind};
use super::mistakes::{Mistakes, all};
use super::{StartError, duration, nearest};

/// A check of a value that is not used otherwise.
pub(in crate::config) type ValueCheck = fn(&mut Field<'_>) -> Result<(), StartError>;

/// The treatment of a key's value; `T` is the result of the block of keys.
pub(in crate::config) enum Action<T> {
    /// A conversion that sets an option.
    Set(fn(&mut T, &mut Field<'_>) -> Result<(), StartError>),
    /// A key of a feature that this server does not have; leaving it out changes no access to
    /// subjects.
    Ignore(ValueCheck),
    /// A whole feature that this server does not have.
    Absent(AbsentPart<T>),
    /// A key of a feature that this server does not have; leaving it out would change permissions
    /// or the receivers of messages.
    Refuse(ValueCheck),
}

/// A feature of nats-server that this server does not have.
pub(in crate::config) struct AbsentPart<T> {
    /// Whether the value asks for the feature; checks the value either way.
    pub(in crate::config) is_wanted: fn(&mut Field<'_>) -> Result<bool, StartError>,
    /// The loss for clients, for humans.
    pub(in crate::config) misses: &'static str,
    /// Notes in the target that the feature is asked for.
    pub(in crate::config) note: fn(&mut T),
}

/// A row of a table of keys: the synonyms, in lower case, and the treatment of the value.
pub(in crate::config) struct Key<T>(
    pub(in crate::config) &'static [&'static str],
    pub(in crate::config) Action<T>,
);

/// Binds every entry of `map` by the first row of `tables` that has its key.
///
/// # Errors
///
/// Returns the mistakes in all entries. Rules for the block as a whole are only checked if each
/// entry is valid.
pub(in crate::config) fn bind_map<T>(
    tables: &[&[Key<T>]],
    map: &Map,
    target: &mut T,
    warnings: &mut Warnings,
) -> Result<(), StartError> {
    #[cfg(test)]
    super::consulted::note(tables);
    let mut mistakes = Mistakes::default();
    for entry in map.entries() {
        mistakes.take(bind_entry(tables, entry, target, warnings));
    }
    if map.is_partial() {
        mistakes.take::<()>(Err(StartError::told_already()));
    }
    mistakes.result()
}

/// Returns the row for a key, in lower or upper case.
pub(in crate::config) fn row_of<'t, T>(tables: &[&'t [Key<T>]], key: &str) -> Option<&'t Key<T>> {
    let key = key.to_ascii_lowercase();
    tables.iter().copied().flatten().find(|Key(names, _)| names.contains(&key.as_str()))
}

/// Returns all names of keys.
pub(in crate::config) fn names<T>(tables: &[&[Key<T>]]) -> impl Iterator<Item = &'static str> {
    tables.iter().copied().flatten().flat_map(|Key(names, _)| names.iter().copied())
}

/// Binds one entry by the row for its key.
pub(in crate::config) fn bind_entry<T>(
    tables: &[&[Key<T>]],
    entry: &MapEntry,
    target: &mut T,
    warnings: &mut Warnings,
) -> Result<(), StartError> {
    let Some(Key(_, action)) = row_of(tables, &entry.key) else {
        if entry.is_variable {
            return Ok(());
        }
        return Err(unknown(names(tables), entry));
    };
    let key = entry.key.to_ascii_lowercase();
    let mut field = Field { key: &key, value: &entry.value, warnings: &mut *warnings };
    match action {
        Action::Set(set) => set(target, &mut field),
        Action::Absent(part) => {
            if (part.is_wanted)(&mut field)? {
                (part.note)(target);
                let (place, misses) = (&entry.position, part.misses);
                warnings.absent.push(format!("{place}: {}", absent(&key, misses)));
            }
            Ok(())
        }
        Action::Ignore(check) => {
            check(&mut field)?;
            let place = &entry.position;
            warnings.missing.push(format!("{place}: {key} is not supported yet and has no effect"));
            Ok(())
        }
        Action::Refuse(_) if entry.value.kind == ValueKind::Boolean(false) => Ok(()),
        Action::Refuse(check) => {
            let mut mistakes = Mistakes::default();
            let reason = format!("{key} is not supported yet; start without it");
            mistakes.take(check(&mut field));
            mistakes.take::<()>(Err(entry.position.error(reason)));
            mistakes.result()
        }
    }
}

/// Returns the remark about a feature that is asked for and that this server does not have.
pub(in crate::config) fn absent(wanted: &str, misses: &str) -> String {
    format!("{wanted} is not supported yet and has no effect: {misses}")
}

/// Returns an error about a key that is none of `names`.
pub(in crate::config) fn unknown<'a>(
    names: impl Iterator<Item = &'a str>,
    entry: &MapEntry,
) -> StartError {
    let hint = match nearest(&entry.key.to_ascii_lowercase(), names) {
        Some(near) => format!("; did you mean \"{near}\"?"),
        None => String::new(),
    };
    entry.position.error(format!("unknown field \"{}\"{hint}", entry.key))
}

/// Remarks for the operator about a valid file.
#[derive(Debug, Default)]
pub(in crate::config) struct Warnings {
    /// Settings that should be written otherwise.
    pub(in crate::config) doubtful: Vec<String>,
    /// Keys without effect here.
    pub(in crate::config) missing: Vec<String>,
    /// Whole features that clients may count on and that this server does not have.
    pub(in crate::config) absent: Vec<String>,
}

/// A key of the file and its value.
pub(in crate::config) struct Field<'a> {
    pub(in crate::config) key: &'a str,
    pub(in crate::config) value: &'a Value,
    pub(in crate::config) warnings: &'a mut Warnings,
}

impl<'a> Field<'a> {
    /// Returns an error about the value. Quotes no part of it, because it may be a secret.
    pub(in crate::config) fn error(&self, reason: impl std::fmt::Display) -> StartError {
        match self.value.kind {
            ValueKind::Unknown => StartError::told_already(),
            _ => self.value.position.error(reason),
        }
    }

    /// Gives the value's place to an error that has none.
    pub(in crate::config) fn place(&self, error: StartError) -> StartError {
        error.at(&self.value.position)
    }

    pub(in crate::config) fn expected(&self, what: &str) -> StartError {
        self.error(format!("{} is {what}", self.key))
    }

    pub(in crate::config) fn text(&self) -> Result<String, StartError> {
        match &self.value.kind {
            ValueKind::Text(text) => Ok(text.clone()),
            _ => Err(self.expected("text; put it in quotes")),
        }
    }

    pub(in crate::config) fn boolean(&self) -> Result<bool, StartError> {
        match self.value.kind {
            ValueKind::Boolean(value) => Ok(value),
            _ => Err(self.expected("true or false, without quotes")),
        }
    }

    pub(in crate::config) fn integer(&self) -> Result<i64, StartError> {
        match self.value.kind {
            ValueKind::Integer(value) => Ok(value),
            _ => Err(self.expected("a whole number, such as 1024 or 1MB, without quotes")),
        }
    }

    /// Reads a number from 0 to `max`.
    pub(in crate::config) fn size(&self, max: u32) -> Result<usize, StartError> {
        let value = u32::try_from(self.integer()?).ok().filter(|value| *value <= max);
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| self.expected(&format!("a number from 0 to {max}")))
    }

    /// Reads a number of things; a negative one means no limit.
    pub(in crate::config) fn limit(&self) -> Result<Option<usize>, StartError> {
        match self.integer()? {
            i64::MIN..0 => Ok(None),
            value => {
                usize::try_from(value).map(Some).map_err(|_| self.expected("a smaller number"))
            }
        }
    }

    /// Reads a port; -1 becomes 0, any free one.
    pub(in crate::config) fn port(&self) -> Result<u16, StartError> {
        match self.integer()? {
            -1 => Ok(0),
            value => u16::try_from(value).map_err(|_| self.expected(PORT)),
        }
    }

    /// Reads `host:port`, `[address]:port`, `:port` or a port alone.
    pub(in crate::config) fn address(&self) -> Result<(Option<String>, u16), StartError> {
        let ValueKind::Text(text) = &self.value.kind else {
            return Ok((None, self.port()?));
        };
        let expected = || self.expected("\"host:port\", or a port without quotes");
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let port = match port.trim() {
            "-1" => 0,
            port => port.parse().map_err(|_| expected())?,
        };
        let host = host.trim();
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(self.error(format!("write \"[{host}]:{port}\" for an IPv6 address")));
        }
        let host = bracketed.unwrap_or(host);
        Ok(((!host.is_empty()).then(|| host.to_owned()), port))
    }

    /// Reads milliseconds, not negative.
    pub(in crate::config) fn duration_ms(&mut self) -> Result<u64, StartError> {
        let ms = self.signed_duration_ms()?;
        u64::try_from(ms).map_err(|_| self.expected("a duration, which cannot be negative"))
    }

    /// Reads milliseconds; a bare number is seconds, and yields a warning.
    pub(in crate::config) fn signed_duration_ms(&mut self) -> Result<i64, StartError> {
        match &self.value.kind {
            ValueKind::Text(text) => {
                let ns = duration::parse_ns(text).map_err(|reason| self.error(reason))?;
                Ok(duration::ns_to_ms(ns))
            }
            ValueKind::Integer(seconds) => {
                let ms = seconds.checked_mul(1000);
                let ms = ms.ok_or_else(|| self.expected("a duration of less than 292 years"))?;
                self.warn(format!("{} is a duration; write \"{seconds}s\"", self.key));
                Ok(ms)
            }
            _ => Err(self.expected("a duration in quotes, such as \"1m30s\"")),
        }
    }

    /// Reads milliseconds from a number of seconds, fractions allowed, or from a duration.
    pub(in crate::config) fn seconds_ms(&mut self) -> Result<u64, StartError> {
        let seconds = match self.value.kind {
            #[expect(clippy::cast_precision_loss, reason = "nobody waits 2^53 seconds")]
            ValueKind::Integer(seconds) => seconds as f64,
            ValueKind::Float(seconds) => seconds,
            _ => return self.duration_ms(),
        };
        let duration = std::time::Duration::try_from_secs_f64(seconds);
        let ms = duration.ok().and_then(|duration| u64::try_from(duration.as_millis()).ok());
        ms.ok_or_else(|| self.expected("a number of seconds, which cannot be negative"))
    }

    /// Reads the milliseconds that a peer has for its login; at most a minute.
    pub(in crate::config) fn login_timeout_ms(&mut self) -> Result<u64, StartError> {
        const USUAL_MS_MAX: u64 = 60_000;
        let ms = self.seconds_ms()?;
        if ms > USUAL_MS_MAX {
            self.warn("timeout is more than a minute; is a unit missing, as in \"2s\"?");
        }
        Ok(ms)
    }

    pub(in crate::config) fn map(&self) -> Result<&'a Map, StartError> {
        match &self.value.kind {
            ValueKind::Map(map) => Ok(map),
            _ => Err(self.expected("a block { … }")),
        }
    }

    /// Binds each value of a list as a field of its own.
    pub(in crate::config) fn each<T>(
        &mut self,
        mut bind: impl FnMut(&mut Field<'_>) -> Result<T, StartError>,
    ) -> Result<Vec<T>, StartError> {
        let key = self.key;
        let ValueKind::List(values) = &self.value.kind else {
            return Err(self.expected("a list [ … ]"));
        };
        all(values
            .iter()
            .map(|value| bind(&mut Field { key, value, warnings: &mut *self.warnings })))
    }

    /// Binds each value of a list as a field of its own; a value that is no list counts as a list
    /// of one.
    pub(in crate::config) fn one_or_each<T>(
        &mut self,
        mut bind: impl FnMut(&mut Field<'_>) -> Result<T, StartError>,
    ) -> Result<Vec<T>, StartError> {
        match &self.value.kind {
            ValueKind::List(_) => self.each(bind),
            _ => Ok(vec![bind(self)?]),
        }
    }

    /// Binds each entry of a block with arbitrary keys as a field of its own.
    pub(in crate::config) fn each_entry<T>(
        &mut self,
        mut bind: impl FnMut(&'a MapEntry, &mut Field<'_>) -> Result<T, StartError>,
    ) -> Result<Vec<T>, StartError> {
        let map = self.map()?;
        let mut mistakes = Mistakes::default();
        let bound = map.entries().map(|entry| {
            let (key, value) = (entry.key.as_str(), &entry.value);
            bind(entry, &mut Field { key, value, warnings: &mut *self.warnings })
        });
        let values = mistakes.take(all(bound)).unwrap_or_default();
        if map.is_partial() {
            mistakes.take::<()>(Err(StartError::told_already()));
        }
        mistakes.result().map(|()| values)
    }

    /// Reads a list of texts, or one text.
    pub(in crate::config) fn texts(&mut self) -> Result<Vec<String>, StartError> {
        self.one_or_each(|field| field.text())
    }

    pub(in crate::config) fn warn_missing(&mut self, text: impl std::fmt::Display) {
        self.warnings.missing.push(format!("{}: {text}", self.value.position));
    }

    pub(in crate::config) fn warn(&mut self, text: impl std::fmt::Display) {
        self.warnings.doubtful.push(format!("{}: {text}", self.value.position));
    }
}

const PORT: &str = "a port from 0 to 65535, or -1 for any free port";
