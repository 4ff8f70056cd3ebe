//! The configuration file's format: a superset of JSON, as nats-server reads it.
//!
//! [`parse`] yields a [`Map`] of [`Value`]s with positions, so that a mistake in a value can be
//! located. The known keys are in `bind`. ISO dates are plain text here: no option takes one.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StartError;
use super::mistakes::{Mistakes, Position};

/// Bytes of one file, at most.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Depth of maps and lists within each other, at most; variables and included files count.
const NESTING_MAX: usize = 64;
/// Depth of files included by files, and of variables in environment variables, at most.
const INCLUDE_DEPTH_MAX: usize = 16;
/// Included files in all, at most.
const INCLUDES_MAX: usize = 1024;
/// Bytes that uses of variables may copy in all.
const COPIED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A value and its position.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) struct Value {
    /// The position of the value's first character; for a variable, that of the variable's use.
    pub(in crate::config) position: Position,
    /// The value itself, by its kind.
    pub(in crate::config) kind: ValueKind,
}

/// A value by its kind.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) enum ValueKind {
    /// `true`, `yes`, `on` or one of their opposites.
    Boolean(bool),
    /// A whole number, its suffix applied.
    Integer(i64),
    /// A number with a point.
    Float(f64),
    /// Text, quoted or bare.
    Text(String),
    /// A list: `[ … ]`.
    List(Vec<Value>),
    /// A map: `{ … }`.
    Map(Map),
    /// A value that could not be parsed; the reason is among the mistakes.
    Unknown,
}

/// Keys and their values, in the order of the file. Of equal keys the last counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::config) struct Map {
    entries: Vec<MapEntry>,
    latest: HashMap<String, usize>,
    is_partial: bool,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) struct MapEntry {
    /// The key as written.
    pub(in crate::config) key: String,
    /// The position of the key.
    pub(in crate::config) position: Position,
    /// The key's value.
    pub(in crate::config) value: Value,
    /// Whether some `$key` uses the value; such a key need not be known.
    pub(in crate::config) is_variable: bool,
}

impl Map {
    /// Returns the entries that count: the last one of each key.
    pub(in crate::config) fn entries(&self) -> impl Iterator<Item = &MapEntry> {
        let latest = |(i, entry): &(usize, &MapEntry)| self.latest.get(&entry.key) == Some(i);
        self.entries.iter().enumerate().filter(latest).map(|(_, entry)| entry)
    }

    /// Returns the entry of a key, in lower or upper case.
    pub(in crate::config) fn get(&self, key: &str) -> Option<&MapEntry> {
        let exact = self.latest.get(key).map(|at| &self.entries[*at]);
        exact.or_else(|| self.entries().find(|entry| entry.key.eq_ignore_ascii_case(key)))
    }

    /// Whether entries may be missing, because the file could not be read to its end.
    pub(in crate::config) fn is_partial(&self) -> bool {
        self.is_partial
    }

    fn insert(&mut self, key: String, position: Position, value: Value) {
        self.latest.insert(key.clone(), self.entries.len());
        self.entries.push(MapEntry { key, position, value, is_variable: false });
    }

    fn take_variable(&mut self, name: &str) -> Option<&Value> {
        let entry = &mut self.entries[*self.latest.get(name)?];
        entry.is_variable = true;
        Some(&entry.value)
    }
}

impl Value {
    /// Returns roughly the bytes that a copy needs, and the depth of maps and lists in the value.
    fn extent(&self) -> (usize, usize) {
        let parts: Vec<&Value> = match &self.kind {
            ValueKind::List(values) => values.iter().collect(),
            ValueKind::Map(map) => map.entries.iter().map(|entry| &entry.value).collect(),
            ValueKind::Text(text) => return (size_of::<Value>() + text.len(), 0),
            _ => return (size_of::<Value>(), 0),
        };
        parts
            .iter()
            .map(|value| value.extent())
            .fold((size_of::<Value>(), 1), |(bytes, depth), part| {
                (bytes + size_of::<MapEntry>() + part.0, depth.max(part.1 + 1))
            })
    }
}

/// Reads a file of at most `FILE_BYTES_MAX` bytes.
pub(in crate::config) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let length = File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    Ok(bytes)
}

/// Parses the file at `path`, whose content is `bytes`, and the files it includes. Mistakes go to
/// `mistakes`; bad syntax ends the reading of its file.
pub(in crate::config) fn parse(path: &Path, bytes: &[u8], mistakes: &mut Mistakes) -> Map {
    parse_with(path, bytes, &|name| std::env::var(name).ok(), mistakes)
}

fn parse_with(
    path: &Path,
    bytes: &[u8],
    environment: &dyn Fn(&str) -> Option<String>,
    mistakes: &mut Mistakes,
) -> Map {
    let mut parser = Parser {
        environment,
        mistakes,
        scopes: vec![Map::default()],
        nesting: 0,
        include_depth: 0,
        includes: 0,
        copied_bytes: 0,
        cursors: 0,
    };
    let read = parser.file(path, bytes);
    parser.scopes.truncate(1);
    parser.take_whole(read);
    parser.scopes.pop().unwrap_or_default()
}

struct Parser<'e> {
    environment: &'e dyn Fn(&str) -> Option<String>,
    mistakes: &'e mut Mistakes,
    /// The open maps, the outermost first; variables are looked up in them.
    scopes: Vec<Map>,
    nesting: usize,
    include_depth: usize,
    includes: usize,
    copied_bytes: usize,
    /// Texts begun so far: files and variables of the environment.
    cursors: u32,
}

impl Parser<'_> {
    fn cursor<'t>(&mut self, file: String, directory: PathBuf, text: &'t str) -> Cursor<'t> {
        self.cursors += 1;
        let (file, rest) = (file.into(), text.chars());
        Cursor { order: self.cursors, file, directory, rest, line: 1, column: 1 }
    }

    /// Calls `read` for a text of its own within the open maps. Restores their depth afterwards,
    /// because the text may end anywhere.
    fn apart<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, StartError>,
    ) -> Result<T, StartError> {
        let (depth, nesting) = (self.scopes.len(), self.nesting);
        self.include_depth += 1;
        let result = read(self);
        self.include_depth -= 1;
        self.scopes.truncate(depth);
        self.nesting = nesting;
        result
    }

    /// Marks the innermost map as partial if `read` failed.
    fn take_whole(&mut self, read: Result<(), StartError>) {
        if self.mistakes.take(read).is_none()
            && let Some(scope) = self.scopes.last_mut()
        {
            scope.is_partial = true;
        }
    }

    fn file(&mut self, path: &Path, bytes: &[u8]) -> Result<(), StartError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            let line = line + 1;
            StartError::new(format!("{}:{line}:1: the file is not UTF-8 text", path.display()))
        })?;
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let mut cursor = self.cursor(path.display().to_string(), directory, text);
        cursor.skip_to_key();
        let braced = cursor.eat('{');
        self.entries(&mut cursor, braced)?;
        cursor.skip_to_key();
        match cursor.peek() {
            None => Ok(()),
            Some(other) => {
                Err(cursor.error(format!("expected the end of the file, not {other:?}")))
            }
        }
    }

    /// Parses entries into the innermost scope, up to `}` if `braced`, else up to the end of the
    /// file.
    fn entries(&mut self, cursor: &mut Cursor<'_>, braced: bool) -> Result<(), StartError> {
        loop {
            cursor.skip_to_key();
            match cursor.peek() {
                None if braced => return Err(cursor.error("expected }, not the end of the file")),
                None => return Ok(()),
                Some('}') if braced => {
                    cursor.bump();
                    return Ok(());
                }
                Some(_) => self.entry(cursor)?,
            }
            cursor.end_of_value(if braced { Some('}') } else { None })?;
        }
    }

    fn entry(&mut self, cursor: &mut Cursor<'_>) -> Result<(), StartError> {
        let position = cursor.position();
        let quoted = matches!(cursor.peek(), Some('"' | '\''));
        let key = cursor.key()?;
        cursor.skip_blanks();
        if key == "include"
            && !quoted
            && !matches!(cursor.peek(), Some(':' | '=' | '{' | '\n' | '\r'))
        {
            return self.include(cursor);
        }
        cursor.skip_space();
        if matches!(cursor.peek(), Some(':' | '=')) {
            cursor.bump();
            cursor.skip_blanks();
        }
        if matches!(cursor.peek(), None | Some('\n' | '\r' | ',' | ';' | '}')) {
            return Err(position.error(format!("key \"{key}\" has no value")));
        }
        let value = self.value(cursor)?;
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(key, position, value);
        }
        Ok(())
    }

    fn include(&mut self, cursor: &mut Cursor<'_>) -> Result<(), StartError> {
        let position = cursor.position();
        let name = match cursor.peek() {
            Some('"' | '\'') => cursor.quoted()?,
            _ => cursor.bare()?,
        };
        let path = cursor.directory.join(&name);
        let read = self.apart(|parser| {
            if parser.include_depth > INCLUDE_DEPTH_MAX || parser.includes == INCLUDES_MAX {
                let reason = format!("too many includes at \"{name}\"; does it include itself?");
                return Err(position.error(reason));
            }
            let bytes = read(&path).map_err(|reason| position.error(reason))?;
            parser.includes += 1;
            parser.file(&path, &bytes)
        });
        self.take_whole(read);
        Ok(())
    }

    fn value(&mut self, cursor: &mut Cursor<'_>) -> Result<Value, StartError> {
        let position = cursor.position();
        let kind = match cursor.peek() {
            None => return Err(cursor.error("expected a value, not the end of the file")),
            Some('{') => self.nested(cursor, Self::map)?,
            Some('[') => self.nested(cursor, Self::list)?,
            Some('(') => ValueKind::Text(cursor.block()?),
            Some('"' | '\'') => ValueKind::Text(cursor.quoted()?),
            Some(_) => {
                let word = cursor.bare()?;
                let kind = match word.strip_prefix('$') {
                    Some(name) if !is_bcrypt(&word) => self.variable(name, &position),
                    _ => scalar(word).map_err(|reason| position.error(reason)),
                };
                self.mistakes.take(kind).unwrap_or(ValueKind::Unknown)
            }
        };
        Ok(Value { position, kind })
    }

    fn nested(
        &mut self,
        cursor: &mut Cursor<'_>,
        content: fn(&mut Self, &mut Cursor<'_>) -> Result<ValueKind, StartError>,
    ) -> Result<ValueKind, StartError> {
        if self.nesting == NESTING_MAX {
            let reason = format!("more than {NESTING_MAX} maps and lists within each other");
            return Err(cursor.error(reason));
        }
        cursor.bump();
        self.nesting += 1;
        let kind = content(self, cursor)?;
        self.nesting -= 1;
        Ok(kind)
    }

    fn map(&mut self, cursor: &mut Cursor<'_>) -> Result<ValueKind, StartError> {
        self.scopes.push(Map::default());
        self.entries(cursor, true)?;
        Ok(ValueKind::Map(self.scopes.pop().unwrap_or_default()))
    }

    fn list(&mut self, cursor: &mut Cursor<'_>) -> Result<ValueKind, StartError> {
        let mut values = Vec::new();
        loop {
            cursor.skip_to_key();
            if cursor.eat(']') {
                return Ok(ValueKind::List(values));
            }
            values.push(self.value(cursor)?);
            cursor.end_of_value(Some(']'))?;
        }
    }

    fn variable(&mut self, name: &str, position: &Position) -> Result<ValueKind, StartError> {
        let in_scope = self.scopes.iter_mut().rev().find_map(|scope| scope.take_variable(name));
        if let Some(value) = in_scope {
            let (bytes, depth) = value.extent();
            self.copied_bytes += bytes;
            if self.copied_bytes > COPIED_BYTES_MAX || self.nesting + depth > NESTING_MAX {
                return Err(position.error(format!("variable ${name} makes the file too large")));
            }
            return Ok(value.kind.clone());
        }
        let Some(text) = (self.environment)(name) else {
            if self.scopes.iter().any(Map::is_partial) {
                return Err(StartError::told_already());
            }
            let reason = format!("variable ${name} is neither a key above nor in the environment");
            return Err(position.error(reason));
        };
        self.apart(|parser| {
            if parser.include_depth > INCLUDE_DEPTH_MAX {
                return Err(position.error(format!("variable ${name} refers to itself")));
            }
            parser.environment_value(name, &text)
        })
    }

    fn environment_value(&mut self, name: &str, text: &str) -> Result<ValueKind, StartError> {
        let mut cursor = self.cursor(format!("${name}"), PathBuf::new(), text);
        cursor.skip_space();
        if cursor.peek().is_none() {
            return Ok(ValueKind::Text(String::new()));
        }
        let value = self.value(&mut cursor)?;
        cursor.skip_to_key();
        match cursor.peek() {
            None => Ok(value.kind),
            Some(other) => Err(cursor.error(format!("expected one value, then {other:?} follows"))),
        }
    }
}

/// A position in a text.
struct Cursor<'t> {
    /// The number of the text, in the order in which texts were begun.
    order: u32,
    file: Arc<str>,
    /// The directory to which paths of included files are relative.
    directory: PathBuf,
    rest: std::str::Chars<'t>,
    line: u32,
    column: u32,
}

impl Cursor<'_> {
    fn position(&self) -> Position {
        let Self { order, line, column, .. } = *self;
        Position { order, line, column, file: Arc::clone(&self.file) }
    }

    fn error(&self, reason: impl fmt::Display) -> StartError {
        self.position().error(reason)
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.rest.next();
        match next {
            Some('\n') => {
                self.line += 1;
                self.column = 1;
            }
            Some(_) => self.column += 1,
            None => {}
        }
        next
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.bump();
        }
        found
    }

    fn skip_while(&mut self, mut wanted: impl FnMut(char) -> bool) {
        while self.peek().is_some_and(&mut wanted) {
            self.bump();
        }
    }

    fn skip_blanks(&mut self) {
        self.skip_while(|c| c == ' ' || c == '\t');
    }

    fn skip_space(&mut self) {
        self.skip_while(is_space);
    }

    fn at_comment(&self) -> bool {
        let rest = self.rest.as_str();
        rest.starts_with('#') || rest.starts_with("//")
    }

    /// Skips to where a key, or a list's value, may start: past comments, too.
    fn skip_to_key(&mut self) {
        loop {
            self.skip_space();
            if !self.at_comment() {
                return;
            }
            self.skip_while(|c| c != '\n');
        }
    }

    /// Checks that nothing follows a value on its line but a separator, which is skipped, a
    /// comment, or `closing`.
    fn end_of_value(&mut self, closing: Option<char>) -> Result<(), StartError> {
        self.skip_blanks();
        match self.peek() {
            None | Some('\n' | '\r') => Ok(()),
            Some(',') => {
                self.bump();
                Ok(())
            }
            Some(';') if closing != Some(']') => {
                self.bump();
                Ok(())
            }
            Some(_) if self.at_comment() => Ok(()),
            other if other == closing => Ok(()),
            Some(other) => {
                Err(self.error(format!("expected a new line or a comma, not {other:?}")))
            }
        }
    }

    fn key(&mut self) -> Result<String, StartError> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return self.quoted();
        }
        let start = self.rest.as_str();
        self.skip_while(|c| !is_space(c) && !":={},;".contains(c));
        let key = &start[..start.len() - self.rest.as_str().len()];
        if key.is_empty() {
            let found = self.peek().map_or("the end of the file".into(), |c| format!("{c:?}"));
            return Err(self.error(format!("expected a key, not {found}")));
        }
        Ok(key.to_owned())
    }

    /// Parses a value without quotes.
    fn bare(&mut self) -> Result<String, StartError> {
        let mut word = String::new();
        while let Some(c) = self.peek() {
            if is_space(c) || ",;]}".contains(c) {
                break;
            }
            self.bump();
            word.push(if c == '\\' { self.escaped()? } else { c });
        }
        if word.is_empty() {
            let found = self.peek().map_or("the end of the file".into(), |c| format!("{c:?}"));
            return Err(self.error(format!("expected a value, not {found}")));
        }
        Ok(word)
    }

    /// Parses `'…'` literally, or `"…"` with escapes.
    fn quoted(&mut self) -> Result<String, StartError> {
        let start = self.position();
        let quote = self.bump();
        let mut text = String::new();
        loop {
            match self.bump() {
                None => return Err(start.error("this quote is never closed")),
                end if end == quote => return Ok(text),
                Some('\\') if quote == Some('"') => text.push(self.escaped()?),
                Some(other) => text.push(other),
            }
        }
    }

    /// Parses the rest of an escape and returns its character.
    fn escaped(&mut self) -> Result<char, StartError> {
        let start = self.position();
        match self.bump() {
            Some('t') => Ok('\t'),
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('"') => Ok('"'),
            Some('\\') => Ok('\\'),
            Some('x') => {
                let mut digit = || self.bump().and_then(|c| c.to_digit(16));
                let code = digit().zip(digit()).map(|(high, low)| high * 16 + low);
                let character = code.and_then(char::from_u32);
                character.ok_or_else(|| start.error("expected two hexadecimal digits after \\x"))
            }
            _ => Err(start.error("expected one of t n r \" \\ xHH after \\")),
        }
    }

    /// Parses `( … )`, with the closing bracket alone on its line.
    fn block(&mut self) -> Result<String, StartError> {
        let start = self.position();
        self.bump();
        let mut lines = self.rest.as_str().split_inclusive('\n');
        let mut length = 0;
        loop {
            let Some(line) = lines.next() else {
                return Err(start.error("expected ) alone on a line to close this block"));
            };
            if line.trim() == ")" && length > 0 {
                break;
            }
            length += line.len();
        }
        let text = self.rest.as_str()[..length].to_owned();
        for _ in text.chars() {
            self.bump();
        }
        self.skip_blanks();
        self.bump();
        Ok(text)
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// Whether a word that begins with `$` is a bcrypt hash instead of a variable.
fn is_bcrypt(word: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| word.starts_with(prefix))
}

/// Converts a word without quotes into a value.
fn scalar(word: String) -> Result<ValueKind, String> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => return Ok(ValueKind::Boolean(true)),
        "false" | "no" | "off" => return Ok(ValueKind::Boolean(false)),
        _ => {}
    }
    let unsigned = word.strip_prefix('-').unwrap_or(&word);
    let digits_len = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
    if digits_len == 0 {
        return Ok(ValueKind::Text(word));
    }
    let after = &unsigned[digits_len..];
    if let Some(factor) = factor(after) {
        let number = word[..word.len() - after.len()].parse::<i64>().ok();
        let number = number.and_then(|number| number.checked_mul(factor));
        return number
            .map(ValueKind::Integer)
            .ok_or_else(|| format!("number {word} is out of range"));
    }
    let fraction = after.strip_prefix('.').unwrap_or_default();
    if !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return word.parse().map(ValueKind::Float).map_err(|_| format!("{word} is not a number"));
    }
    Ok(ValueKind::Text(word))
}

/// Returns the factor of a number's suffix: 1000 for k, 1024 for kb, ki and kib, …
fn factor(suffix: &str) -> Option<i64> {
    let suffix = suffix.to_ascii_lowercase();
    let mut letters = suffix.chars();
    let Some(letter) = letters.next() else {
        return Some(1);
    };
    let power = u32::try_from("kmgtpe".find(letter)?).ok()? + 1;
    match letters.as_str() {
        "" => Some(1000_i64.pow(power)),
        "b" | "i" | "ib" => Some(1024_i64.pow(power)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        let value = match name {
            "PORT" => "4333",
            "NAMES" => "[a, 'b c']",
            "LOOP" => "$LOOP",
            "EMPTY" => "",
            "TWO" => "a b",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn parsed(text: &str) -> Map {
        outcome(text.as_bytes()).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    fn outcome(text: &[u8]) -> Result<Map, StartError> {
        let mut mistakes = Mistakes::default();
        let map = parse_with(Path::new("c.conf"), text, &environment, &mut mistakes);
        mistakes.result().map(|()| map)
    }

    fn file(path: &Path) -> Result<Map, StartError> {
        let mut mistakes = Mistakes::default();
        let map = parse(path, &std::fs::read(path).unwrap(), &mut mistakes);
        mistakes.result().map(|()| map)
    }

    fn refused(text: &str) -> String {
        match outcome(text.as_bytes()) {
            Err(error) => error.to_string(),
            Ok(map) => panic!("{text}\n{map:?}"),
        }
    }

    fn kind(map: &Map, key: &str) -> ValueKind {
        map.entries().find(|entry| entry.key == key).unwrap().value.kind.clone()
    }

    fn text(text: &str) -> ValueKind {
        ValueKind::Text(text.to_owned())
    }

    fn texts(map: &Map, key: &str) -> Vec<String> {
        let ValueKind::List(values) = kind(map, key) else { panic!("{key} is no list") };
        let text = |value: Value| match value.kind {
            ValueKind::Text(text) => text,
            other => panic!("{other:?}"),
        };
        values.into_iter().map(text).collect()
    }

    #[test]
    fn a_key_and_its_value_are_parted_by_a_colon_an_equals_sign_or_a_blank() {
        for line in ["k: v", "k = v", "k v", "k:v", "k=v", "\"k\" v", "'k': v", "{k: v}", "k\n: v"]
        {
            assert_eq!(kind(&parsed(line), "k"), text("v"), "{line}");
        }
        for line in ["k { a: 1 }", "k: {a: 1}", "k{a: 1}", "k = {\na 1\n}", "\"k\":{\"a\":1}"] {
            let ValueKind::Map(map) = kind(&parsed(line), "k") else { panic!("{line}") };
            assert_eq!(kind(&map, "a"), ValueKind::Integer(1), "{line}");
        }
    }

    #[test]
    fn pairs_are_parted_by_a_new_line_a_comma_or_a_semicolon() {
        for between in ["\n", ",", ";", ", ", ",\n", " # c\n", " // c\n", "\r\n"] {
            let map = parsed(&format!("a: 1{between}b: 2"));
            assert_eq!(kind(&map, "b"), ValueKind::Integer(2), "{between:?}");
        }
        assert!(refused("a: 1 b: 2").starts_with("c.conf:1:6: expected a new line or a comma"));
    }

    #[test]
    fn comments_start_where_a_key_or_a_value_of_a_list_may_start() {
        let map = parsed("# one\n// two\na: 1 # three\nl: [ # four\n x // five\n y ]\nu: a//b#c");
        assert_eq!(texts(&map, "l"), ["x", "y"]);
        assert_eq!(kind(&map, "u"), text("a//b#c"));
    }

    #[test]
    fn lists_are_parted_by_commas_or_new_lines() {
        for line in ["l: [a, b]", "l [a,b,]", "l = [\na\nb\n]", "l [\n 'a' ,\n \"b\"]"] {
            assert_eq!(texts(&parsed(line), "l"), ["a", "b"], "{line}");
        }
        for line in ["l: [a;b]", "l: [a,,b]", "l: [,a]", "l: [a\n,b]"] {
            assert!(refused(line).starts_with("c.conf:"), "{line}");
        }
        assert_eq!(texts(&parsed("l: []"), "l"), [""; 0]);
    }

    #[test]
    fn quotes_keep_blanks_and_double_quotes_know_escapes() {
        assert_eq!(kind(&parsed("k: 'a\\t b'"), "k"), text("a\\t b"));
        assert_eq!(kind(&parsed(r#"k: "a\t\n\r\"\\\x41""#), "k"), text("a\t\n\r\"\\A"));
        assert_eq!(kind(&parsed("k: \"$PORT\""), "k"), text("$PORT"));
        assert!(refused(r#"k: "a\q""#).starts_with("c.conf:1:7: expected one of t n r"));
        assert!(refused("k: \"abc\n").starts_with("c.conf:1:4: this quote is never closed"));
    }

    #[test]
    fn a_block_ends_at_a_parenthesis_alone_on_its_line() {
        let map = parsed("k: (\n a (b)\n c )\n  )\nn: 1");
        assert_eq!(kind(&map, "k"), text("\n a (b)\n c )\n"));
        assert_eq!(kind(&map, "n"), ValueKind::Integer(1));
        assert!(refused("k: ( a )").contains("expected ) alone on a line"));
    }

    #[test]
    fn bare_words_are_booleans_numbers_or_text() {
        let cases = [
            ("true", ValueKind::Boolean(true)),
            ("YES", ValueKind::Boolean(true)),
            ("on", ValueKind::Boolean(true)),
            ("False", ValueKind::Boolean(false)),
            ("no", ValueKind::Boolean(false)),
            ("off", ValueKind::Boolean(false)),
            ("-12", ValueKind::Integer(-12)),
            ("1k", ValueKind::Integer(1000)),
            ("1KB", ValueKind::Integer(1024)),
            ("2mib", ValueKind::Integer(2 << 20)),
            ("1Gi", ValueKind::Integer(1 << 30)),
            ("1M", ValueKind::Integer(1_000_000)),
            ("1e", ValueKind::Integer(1_000_000_000_000_000_000)),
            ("-5k", ValueKind::Integer(-5000)),
            ("0.4", ValueKind::Float(0.4)),
            ("-1.5", ValueKind::Float(-1.5)),
            ("1.2.3.4", text("1.2.3.4")),
            ("127.0.0.1:4222", text("127.0.0.1:4222")),
            ("42h", text("42h")),
            ("1kbb", text("1kbb")),
            ("-", text("-")),
            ("$2a$10$abc", text("$2a$10$abc")),
            ("$2y$10$abc", text("$2y$10$abc")),
            ("2020-01-01T00:00:00Z", text("2020-01-01T00:00:00Z")),
        ];
        for (word, wanted) in cases {
            assert_eq!(kind(&parsed(&format!("k: {word}")), "k"), wanted, "{word}");
        }
        for word in ["99999999999999999999", "10e", "9999999999999g"] {
            assert!(refused(&format!("k: {word}")).contains("is out of range"), "{word}");
        }
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        let map = parsed("a: 1\nb: 2\na: 3");
        assert_eq!(kind(&map, "a"), ValueKind::Integer(3));
        assert_eq!(map.entries().count(), 2);
    }

    #[test]
    fn a_variable_is_a_key_of_an_enclosing_map_or_of_the_environment() {
        let map = parsed("x: 7\nm { y: $x, x: 8, z: $x, l: [$x] }\nv: $x\np: $PORT");
        let ValueKind::Map(inner) = kind(&map, "m") else { panic!() };
        assert_eq!(kind(&inner, "y"), ValueKind::Integer(7));
        assert_eq!(kind(&inner, "z"), ValueKind::Integer(8));
        assert_eq!(kind(&map, "v"), ValueKind::Integer(7));
        assert_eq!(kind(&map, "p"), ValueKind::Integer(4333));
        assert_eq!(texts(&parsed("k: $NAMES"), "k"), ["a", "b c"]);
        assert_eq!(kind(&parsed("k: $EMPTY"), "k"), text(""));
        assert!(map.entries().find(|entry| entry.key == "x").unwrap().is_variable);
        assert!(!map.entries().find(|entry| entry.key == "v").unwrap().is_variable);
    }

    #[test]
    fn a_variable_that_is_nowhere_or_goes_in_circles_is_refused() {
        let nowhere = "c.conf:1:4: variable $NO is neither a key above nor in the environment";
        assert_eq!(refused("k: $NO"), nowhere);
        assert!(refused("k: $k").contains("neither"));
        assert!(refused("k: $LOOP").contains("refers to itself"));
        assert!(refused("k: $TWO").starts_with("$TWO:1:3: "));
    }

    #[test]
    fn included_files_are_looked_for_beside_the_including_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/a.conf"), "a: 1\ninclude b.conf\n").unwrap();
        std::fs::write(dir.path().join("sub/b.conf"), "{ b: 2 }").unwrap();
        let main = dir.path().join("main.conf");
        let text = "include 'sub/a.conf'\nm { include \"sub/b.conf\" }\nc: $a";
        std::fs::write(&main, text).unwrap();
        let map = file(&main).unwrap();
        assert_eq!(kind(&map, "a"), ValueKind::Integer(1));
        assert_eq!(kind(&map, "b"), ValueKind::Integer(2));
        assert_eq!(kind(&map, "c"), ValueKind::Integer(1));
        let ValueKind::Map(inner) = kind(&map, "m") else { panic!() };
        assert_eq!(kind(&inner, "b"), ValueKind::Integer(2));
    }

    #[test]
    fn an_include_that_includes_itself_ends_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conf");
        std::fs::write(&path, "include a.conf\ninclude a.conf\n").unwrap();
        let error = file(&path).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert!(error.contains("does it include itself?"), "{error}");
        assert!(refused("include no/such").starts_with("c.conf:1:9: cannot read no/such"));
        assert_eq!(kind(&parsed("include: 3"), "include"), ValueKind::Integer(3));
    }

    #[test]
    fn every_complaint_says_where() {
        let cases = [
            ("a: 1\n  b", "c.conf:2:3: key \"b\" has no value"),
            ("a:\nb: 1", "c.conf:1:1: key \"a\" has no value"),
            ("a {\n b: 1\n", "c.conf:3:1: expected }, not the end of the file"),
            ("a: [1", "c.conf:1:6: expected a value, not the end of the file"),
            ("a: 1\n}", "c.conf:2:1: expected a key, not '}'"),
            ("{ a: 1 }\nb: 2", "c.conf:2:1: expected the end of the file, not 'b'"),
            ("a: ]", "c.conf:1:4: expected a value, not ']'"),
            (
                "max_payload: { this is wrong",
                "c.conf:1:24: expected a new line or a comma, not 'w'",
            ),
        ];
        for (text, complaint) in cases {
            assert_eq!(refused(text), complaint, "{text}");
        }
        let error = outcome(b"a: 1\nb: \xff\n").unwrap_err().to_string();
        assert_eq!(error, "c.conf:2:1: the file is not UTF-8 text");
    }

    #[test]
    fn nesting_is_bounded_however_it_comes_about() {
        for open in ["[", "{a:"] {
            let text = format!("k: {}", open.repeat(100_000));
            assert!(refused(&text).contains("within each other"), "{open}");
        }
        let mut chain = "x0: 1\n".to_owned();
        for i in 1..1000 {
            chain += &format!("x{i} {{ y: $x{} }}\n", i - 1);
        }
        assert!(refused(&chain).contains("makes the file too large"));
    }

    #[test]
    fn variables_of_variables_cannot_fill_the_memory() {
        let mut bomb = format!("x0: '{}'\n", "x".repeat(1000));
        for i in 1..40 {
            bomb += &format!("x{i}: [{}]\n", vec![format!("$x{}", i - 1); 10].join(","));
        }
        assert!(refused(&bomb).contains("makes the file too large"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = outcome(&bytes);
        }

        #[test]
        fn no_soup_of_tokens_makes_the_parser_panic(
            tokens in proptest::collection::vec(
                proptest::sample::select(vec![
                    "a", "k", ":", "=", " ", "\n", "{", "}", "[", "]", "(", ")", "\"", "'", "$a",
                    "$PORT", "$LOOP", "#", "//", ",", ";", "1", "1k", "-", ".", "\\", "\\x4",
                    "include", "é", "\r\n", "true", "$2a$",
                ]),
                0..64,
            )
        ) {
            let _ = outcome(tokens.concat().as_bytes());
        }
    }
}
