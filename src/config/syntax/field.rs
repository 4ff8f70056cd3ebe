//! One key and its value on their way to an option, and tables of such keys.

use super::file::{Entry, Kind, Map, Value};
use super::mistakes::{Mistakes, all};
use super::{StartError, duration, nearest};

/// Finds what is wrong with a value, and keeps nothing of it.
pub(in crate::config) type Check = fn(&mut Field<'_>) -> Result<(), StartError>;

/// What is done with the value of a key; `T` is what the block of keys amounts to.
pub(in crate::config) enum Action<T> {
    /// Bind it.
    Set(fn(&mut T, &mut Field<'_>) -> Result<(), StartError>),
    /// It belongs to what this server does not have, and nobody gets more or less than without.
    Ignore(Check),
    /// It is a whole part that this server does not have.
    Absent(Part<T>),
    /// It belongs to what this server does not have, and leaving it out would change who may do
    /// what, or whom messages reach.
    Refuse(Check),
}

/// A part of nats-server that this server does not have.
pub(in crate::config) struct Part<T> {
    /// Whether the value asks for it; what is wrong with it is found either way.
    pub(in crate::config) is_wanted: fn(&mut Field<'_>) -> Result<bool, StartError>,
    /// What clients do not have then, for people.
    pub(in crate::config) misses: &'static str,
    /// Takes note that it is wanted.
    pub(in crate::config) note: fn(&mut T),
}

/// A row of a table of keys: the synonyms, in lower case, and what is done with the value.
pub(in crate::config) struct Key<T>(
    pub(in crate::config) &'static [&'static str],
    pub(in crate::config) Action<T>,
);

/// Binds every entry of `map` by the first row of `tables` that has its key.
///
/// # Errors
///
/// All that is wrong with any of them. What must hold of the block as a whole is only looked at
/// when each of its parts holds.
pub(in crate::config) fn bind_map<T>(
    tables: &[&[Key<T>]],
    map: &Map,
    target: &mut T,
    warnings: &mut Warnings,
) -> Result<(), StartError> {
    let mut mistakes = Mistakes::default();
    for entry in map.entries() {
        mistakes.take(bind_entry(tables, entry, target, warnings));
    }
    if map.is_partial() {
        mistakes.take::<()>(Err(StartError::told_already()));
    }
    mistakes.result()
}

/// The row for a key, however it is written.
pub(in crate::config) fn row_of<'t, T>(tables: &[&'t [Key<T>]], key: &str) -> Option<&'t Key<T>> {
    let key = key.to_ascii_lowercase();
    tables.iter().copied().flatten().find(|Key(names, _)| names.contains(&key.as_str()))
}

/// All that a key may be called.
pub(in crate::config) fn names<T>(tables: &[&[Key<T>]]) -> impl Iterator<Item = &'static str> {
    tables.iter().copied().flatten().flat_map(|Key(names, _)| names.iter().copied())
}

/// Binds one entry.
pub(in crate::config) fn bind_entry<T>(
    tables: &[&[Key<T>]],
    entry: &Entry,
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
        Action::Refuse(_) if entry.value.kind == Kind::Boolean(false) => Ok(()),
        Action::Refuse(check) => {
            let mut mistakes = Mistakes::default();
            let reason = format!("{key} is not supported yet; start without it");
            mistakes.take(check(&mut field));
            mistakes.take::<()>(Err(entry.position.error(reason)));
            mistakes.result()
        }
    }
}

/// What is told of a part that is wanted and not there.
pub(in crate::config) fn absent(wanted: &str, misses: &str) -> String {
    format!("{wanted} is not supported yet and has no effect: {misses}")
}

/// An error about a key that is none of `names`.
pub(in crate::config) fn unknown<'a>(
    names: impl Iterator<Item = &'a str>,
    entry: &Entry,
) -> StartError {
    let hint = match nearest(&entry.key.to_ascii_lowercase(), names) {
        Some(near) => format!("; did you mean \"{near}\"?"),
        None => String::new(),
    };
    entry.position.error(format!("unknown field \"{}\"{hint}", entry.key))
}

/// What the operator should know about a file that is valid.
#[derive(Debug, Default)]
pub(in crate::config) struct Warnings {
    /// What ought to be written otherwise.
    pub(in crate::config) doubtful: Vec<String>,
    /// What has no effect here.
    pub(in crate::config) missing: Vec<String>,
    /// Whole parts that clients may count on and that are not here.
    pub(in crate::config) absent: Vec<String>,
}

/// A key of the file and its value.
pub(in crate::config) struct Field<'a> {
    pub(in crate::config) key: &'a str,
    pub(in crate::config) value: &'a Value,
    pub(in crate::config) warnings: &'a mut Warnings,
}

impl<'a> Field<'a> {
    /// An error about the value, which names no part of it: it may be a secret.
    pub(in crate::config) fn error(&self, reason: impl std::fmt::Display) -> StartError {
        match self.value.kind {
            Kind::Unknown => StartError::told_already(),
            _ => self.value.position.error(reason),
        }
    }

    /// What came of the value, where the value is.
    pub(in crate::config) fn place(&self, error: StartError) -> StartError {
        error.at(&self.value.position)
    }

    pub(in crate::config) fn expected(&self, what: &str) -> StartError {
        self.error(format!("{} is {what}", self.key))
    }

    pub(in crate::config) fn text(&self) -> Result<String, StartError> {
        match &self.value.kind {
            Kind::Text(text) => Ok(text.clone()),
            _ => Err(self.expected("text; put it in quotes")),
        }
    }

    pub(in crate::config) fn boolean(&self) -> Result<bool, StartError> {
        match self.value.kind {
            Kind::Boolean(value) => Ok(value),
            _ => Err(self.expected("true or false, without quotes")),
        }
    }

    pub(in crate::config) fn integer(&self) -> Result<i64, StartError> {
        match self.value.kind {
            Kind::Integer(value) => Ok(value),
            _ => Err(self.expected("a whole number, such as 1024 or 1MB, without quotes")),
        }
    }

    /// A number from 0 to `max`.
    pub(in crate::config) fn size(&self, max: u32) -> Result<usize, StartError> {
        let value = u32::try_from(self.integer()?).ok().filter(|value| *value <= max);
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| self.expected(&format!("a number from 0 to {max}")))
    }

    /// A number of things; what is negative is without limit.
    pub(in crate::config) fn limit(&self) -> Result<Option<usize>, StartError> {
        match self.integer()? {
            i64::MIN..0 => Ok(None),
            value => {
                usize::try_from(value).map(Some).map_err(|_| self.expected("a smaller number"))
            }
        }
    }

    /// A port; -1 becomes 0, any free one.
    pub(in crate::config) fn port(&self) -> Result<u16, StartError> {
        match self.integer()? {
            -1 => Ok(0),
            value => u16::try_from(value).map_err(|_| self.expected(PORT)),
        }
    }

    /// `host:port`, `[address]:port`, `:port` or only a port.
    pub(in crate::config) fn address(&self) -> Result<(Option<String>, u16), StartError> {
        let Kind::Text(text) = &self.value.kind else {
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

    /// Milliseconds, not negative.
    pub(in crate::config) fn duration_ms(&mut self) -> Result<u64, StartError> {
        let ms = self.signed_duration_ms()?;
        u64::try_from(ms).map_err(|_| self.expected("a duration, which cannot be negative"))
    }

    /// Milliseconds; a bare number is seconds, which deserves a warning.
    pub(in crate::config) fn signed_duration_ms(&mut self) -> Result<i64, StartError> {
        match &self.value.kind {
            Kind::Text(text) => {
                let ns = duration::parse_ns(text).map_err(|reason| self.error(reason))?;
                Ok(duration::ns_to_ms(ns))
            }
            Kind::Integer(seconds) => {
                let ms = seconds.checked_mul(1000);
                let ms = ms.ok_or_else(|| self.expected("a duration of less than 292 years"))?;
                self.warn(format!("{} is a duration; write \"{seconds}s\"", self.key));
                Ok(ms)
            }
            _ => Err(self.expected("a duration in quotes, such as \"1m30s\"")),
        }
    }

    /// Milliseconds of a number of seconds, fractions allowed, or of a duration.
    pub(in crate::config) fn seconds_ms(&mut self) -> Result<u64, StartError> {
        let seconds = match self.value.kind {
            #[expect(clippy::cast_precision_loss, reason = "nobody waits 2^53 seconds")]
            Kind::Integer(seconds) => seconds as f64,
            Kind::Float(seconds) => seconds,
            _ => return self.duration_ms(),
        };
        let duration = std::time::Duration::try_from_secs_f64(seconds);
        let ms = duration.ok().and_then(|duration| u64::try_from(duration.as_millis()).ok());
        ms.ok_or_else(|| self.expected("a number of seconds, which cannot be negative"))
    }

    /// Milliseconds that others have to say who they are; a minute is plenty.
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
            Kind::Map(map) => Ok(map),
            _ => Err(self.expected("a block { … }")),
        }
    }

    /// The values of a list, each bound as a field of its own.
    pub(in crate::config) fn each<T>(
        &mut self,
        mut bind: impl FnMut(&mut Field<'_>) -> Result<T, StartError>,
    ) -> Result<Vec<T>, StartError> {
        let key = self.key;
        let Kind::List(values) = &self.value.kind else {
            return Err(self.expected("a list [ … ]"));
        };
        all(values
            .iter()
            .map(|value| bind(&mut Field { key, value, warnings: &mut *self.warnings })))
    }

    /// The same; what is no list is the only one.
    pub(in crate::config) fn one_or_each<T>(
        &mut self,
        mut bind: impl FnMut(&mut Field<'_>) -> Result<T, StartError>,
    ) -> Result<Vec<T>, StartError> {
        match &self.value.kind {
            Kind::List(_) => self.each(bind),
            _ => Ok(vec![bind(self)?]),
        }
    }

    /// The entries of a block whose keys are anybody's, each bound as a field of its own.
    pub(in crate::config) fn each_entry<T>(
        &mut self,
        mut bind: impl FnMut(&'a Entry, &mut Field<'_>) -> Result<T, StartError>,
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

    /// A list of texts, or one text.
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
