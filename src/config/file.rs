//! The configuration file's format: a superset of JSON, as nats-server reads it.
//!
//! [`parse`] yields a [`Map`] of [`Value`]s that know where they were written, so that whoever
//! finds fault with one can say where. Which keys there are is `bind`'s business. ISO dates are
//! plain text here: no option takes one.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::StartError;

/// Bytes of one file; more is not a configuration file.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Maps and lists within each other, variables and included files followed.
const NESTING_MAX: usize = 64;
/// Files included by files included, variables in environment variables.
const INCLUDE_DEPTH_MAX: usize = 16;
/// Files included in all.
const INCLUDES_MAX: usize = 1024;
/// Bytes that uses of variables may copy in all.
const COPIED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    file: Rc<str>,
    line: u32,
    column: u32,
}

impl Position {
    /// An error that begins with this place.
    pub fn error(&self, reason: impl fmt::Display) -> StartError {
        StartError::new(format!("{self}: {reason}"))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its first character; of a variable's value, where the variable is used.
    pub position: Position,
    /// What it is.
    pub kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// `true`, `yes`, `on` and their opposites.
    Boolean(bool),
    /// A whole number, its suffix applied.
    Integer(i64),
    /// A number with a point.
    Float(f64),
    /// Text, quoted or bare.
    Text(String),
    /// `[ … ]`
    List(Vec<Value>),
    /// `{ … }`
    Map(Map),
}

/// Keys and their values, in the order of the file. Of equal keys the last counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Map {
    entries: Vec<Entry>,
    latest: HashMap<String, usize>,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key as written.
    pub key: String,
    /// Where the key was written.
    pub position: Position,
    /// Its value.
    pub value: Value,
    /// Whether some `$key` took the value; such a key need not be known.
    pub is_variable: bool,
}

impl Map {
    /// The entries that count.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let latest = |(i, entry): &(usize, &Entry)| self.latest.get(&entry.key) == Some(i);
        self.entries.iter().enumerate().filter(latest).map(|(_, entry)| entry)
    }

    fn insert(&mut self, key: String, position: Position, value: Value) {
        self.latest.insert(key.clone(), self.entries.len());
        self.entries.push(Entry { key, position, value, is_variable: false });
    }

    fn take_variable(&mut self, name: &str) -> Option<&Value> {
        let entry = &mut self.entries[*self.latest.get(name)?];
        entry.is_variable = true;
        Some(&entry.value)
    }
}

impl Value {
    /// Roughly the bytes that a copy needs, and how deep maps and lists are within it.
    fn extent(&self) -> (usize, usize) {
        let parts: Vec<&Value> = match &self.kind {
            Kind::List(values) => values.iter().collect(),
            Kind::Map(map) => map.entries.iter().map(|entry| &entry.value).collect(),
            Kind::Text(text) => return (size_of::<Value>() + text.len(), 0),
            _ => return (size_of::<Value>(), 0),
        };
        parts
            .iter()
            .map(|value| value.extent())
            .fold((size_of::<Value>(), 1), |(bytes, depth), part| {
                (bytes + size_of::<Entry>() + part.0, depth.max(part.1 + 1))
            })
    }
}

/// Reads a file, which must not be larger than a configuration file can be.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let length = File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    Ok(bytes)
}

/// Parses the file at `path`, whose content is `bytes`, and the files it includes.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Map, StartError> {
    parse_with(path, bytes, &|name| std::env::var(name).ok())
}

fn parse_with(
    path: &Path,
    bytes: &[u8],
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Map, StartError> {
    let mut parser = Parser {
        environment,
        scopes: vec![Map::default()],
        nesting: 0,
        include_depth: 0,
        includes: 0,
        copied_bytes: 0,
    };
    parser.file(path, bytes)?;
    Ok(parser.scopes.pop().unwrap_or_default())
}

struct Parser<'e> {
    environment: &'e dyn Fn(&str) -> Option<String>,
    /// The maps that are open, the outermost first; variables are looked up in them.
    scopes: Vec<Map>,
    nesting: usize,
    include_depth: usize,
    includes: usize,
    copied_bytes: usize,
}

impl Parser<'_> {
    fn file(&mut self, path: &Path, bytes: &[u8]) -> Result<(), StartError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            let line = line + 1;
            StartError::new(format!("{}:{line}:1: the file is not UTF-8 text", path.display()))
        })?;
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let mut cursor = Cursor::new(path.display().to_string(), directory, text);
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

    /// Fills the innermost scope, up to `}` if `braced`, else up to the end of the file.
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
        if key == "include" && !quoted && !matches!(cursor.peek(), Some(':' | '=' | '{' | '\n')) {
            return self.include(cursor);
        }
        cursor.skip_space();
        if matches!(cursor.peek(), Some(':' | '=')) {
            cursor.bump();
            cursor.skip_blanks();
        }
        if matches!(cursor.peek(), None | Some('\n' | ',' | ';' | '}')) {
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
        if self.include_depth == INCLUDE_DEPTH_MAX || self.includes == INCLUDES_MAX {
            let reason = format!("too many includes at \"{name}\"; does it include itself?");
            return Err(position.error(reason));
        }
        let path = cursor.directory.join(&name);
        let bytes = read(&path).map_err(|reason| position.error(reason))?;
        self.includes += 1;
        self.include_depth += 1;
        self.file(&path, &bytes)?;
        self.include_depth -= 1;
        Ok(())
    }

    fn value(&mut self, cursor: &mut Cursor<'_>) -> Result<Value, StartError> {
        let position = cursor.position();
        let kind = match cursor.peek() {
            None => return Err(cursor.error("expected a value, not the end of the file")),
            Some('{') => self.nested(cursor, Self::map)?,
            Some('[') => self.nested(cursor, Self::list)?,
            Some('(') => Kind::Text(cursor.block()?),
            Some('"' | '\'') => Kind::Text(cursor.quoted()?),
            Some(_) => {
                let word = cursor.bare()?;
                match word.strip_prefix('$') {
                    Some(name) if !is_bcrypt(&word) => self.variable(name, &position)?,
                    _ => scalar(word).map_err(|reason| position.error(reason))?,
                }
            }
        };
        Ok(Value { position, kind })
    }

    fn nested(
        &mut self,
        cursor: &mut Cursor<'_>,
        content: fn(&mut Self, &mut Cursor<'_>) -> Result<Kind, StartError>,
    ) -> Result<Kind, StartError> {
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

    fn map(&mut self, cursor: &mut Cursor<'_>) -> Result<Kind, StartError> {
        self.scopes.push(Map::default());
        self.entries(cursor, true)?;
        Ok(Kind::Map(self.scopes.pop().unwrap_or_default()))
    }

    fn list(&mut self, cursor: &mut Cursor<'_>) -> Result<Kind, StartError> {
        let mut values = Vec::new();
        loop {
            cursor.skip_to_key();
            if cursor.eat(']') {
                return Ok(Kind::List(values));
            }
            values.push(self.value(cursor)?);
            cursor.end_of_value(Some(']'))?;
        }
    }

    fn variable(&mut self, name: &str, position: &Position) -> Result<Kind, StartError> {
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
            let reason = format!("variable ${name} is neither a key above nor in the environment");
            return Err(position.error(reason));
        };
        if self.include_depth == INCLUDE_DEPTH_MAX {
            return Err(position.error(format!("variable ${name} refers to itself")));
        }
        self.include_depth += 1;
        let kind = self.environment_value(name, &text)?;
        self.include_depth -= 1;
        Ok(kind)
    }

    fn environment_value(&mut self, name: &str, text: &str) -> Result<Kind, StartError> {
        let mut cursor = Cursor::new(format!("${name}"), PathBuf::new(), text);
        cursor.skip_space();
        if cursor.peek().is_none() {
            return Ok(Kind::Text(String::new()));
        }
        let value = self.value(&mut cursor)?;
        cursor.skip_to_key();
        match cursor.peek() {
            None => Ok(value.kind),
            Some(other) => Err(cursor.error(format!("expected one value, then {other:?} follows"))),
        }
    }
}

/// A place in a text.
struct Cursor<'t> {
    file: Rc<str>,
    /// What the paths of included files are relative to.
    directory: PathBuf,
    rest: std::str::Chars<'t>,
    line: u32,
    column: u32,
}

impl<'t> Cursor<'t> {
    fn new(file: String, directory: PathBuf, text: &'t str) -> Self {
        Self { file: file.into(), directory, rest: text.chars(), line: 1, column: 1 }
    }

    fn position(&self) -> Position {
        Position { file: Rc::clone(&self.file), line: self.line, column: self.column }
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
        self.skip_while(|c| c != '\n' && c.is_whitespace());
    }

    fn skip_space(&mut self) {
        self.skip_while(char::is_whitespace);
    }

    fn at_comment(&self) -> bool {
        let rest = self.rest.as_str();
        rest.starts_with('#') || rest.starts_with("//")
    }

    /// To where a key, or a list's value, may start: past separators and comments too.
    fn skip_to_key(&mut self) {
        loop {
            self.skip_while(|c| c.is_whitespace() || c == ',' || c == ';');
            if !self.at_comment() {
                return;
            }
            self.skip_while(|c| c != '\n');
        }
    }

    /// Checks that nothing follows a value on its line but a separator, a comment or `closing`.
    fn end_of_value(&mut self, closing: Option<char>) -> Result<(), StartError> {
        self.skip_blanks();
        match self.peek() {
            None | Some('\n' | ',' | ';') => Ok(()),
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
        self.skip_while(|c| !c.is_whitespace() && !":={},;".contains(c));
        let key = &start[..start.len() - self.rest.as_str().len()];
        if key.is_empty() {
            let found = self.peek().map_or("the end of the file".into(), |c| format!("{c:?}"));
            return Err(self.error(format!("expected a key, not {found}")));
        }
        Ok(key.to_owned())
    }

    /// A value without quotes.
    fn bare(&mut self) -> Result<String, StartError> {
        let mut word = String::new();
        while let Some(c) = self.peek() {
            if c.is_whitespace() || ",;]}".contains(c) {
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

    /// `'…'`, as it is, or `"…"`, with escapes.
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

    /// The character that the rest of an escape stands for.
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

    /// `( … )`, the closing one alone on its line.
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

/// Whether a word that begins with `$` is a bcrypt hash instead of a variable.
fn is_bcrypt(word: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| word.starts_with(prefix))
}

/// What a word without quotes means.
fn scalar(word: String) -> Result<Kind, String> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => return Ok(Kind::Boolean(true)),
        "false" | "no" | "off" => return Ok(Kind::Boolean(false)),
        _ => {}
    }
    let unsigned = word.strip_prefix('-').unwrap_or(&word);
    let digits_len = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
    if digits_len == 0 {
        return Ok(Kind::Text(word));
    }
    let after = &unsigned[digits_len..];
    if let Some(factor) = factor(after) {
        let number = word[..word.len() - after.len()].parse::<i64>().ok();
        let number = number.and_then(|number| number.checked_mul(factor));
        return number.map(Kind::Integer).ok_or_else(|| format!("number {word} is out of range"));
    }
    let fraction = after.strip_prefix('.').unwrap_or_default();
    if !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return word.parse().map(Kind::Float).map_err(|_| format!("{word} is not a number"));
    }
    Ok(Kind::Text(word))
}

/// What a number with this suffix is multiplied by: 1000 for k, 1024 for kb, ki and kib, …
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
