//! Subjects made from other subjects: `orders.*.*` → `eu.$2.{{partition(8,1)}}`.
//!
//! A destination is written as tokens. `$N` or `{{wildcard(N)}}` stands for the token that the
//! source's N-th `*` matched, a last `>` for the tokens that the source's `>` matched, another
//! function for its result, and every other token for itself. Forms, results and errors are
//! nats-server's, odd ones included.

use std::fmt::{self, Write as _};

use memchr::memmem;
use smallvec::SmallVec;

use super::{covers, intersection, is_valid_filter, tokens};

/// A compiled rule that makes one subject of another.
///
/// A subject costs a step for each of its tokens and each part of the destination, and the result
/// is at most the destination's length times the subject's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transform {
    source: Box<[u8]>,
    destination: Box<[u8]>,
    parts: Box<[DestinationPart]>,
}

/// A part of the destination, which becomes one or several tokens. Tokens are numbers in the
/// source, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DestinationPart {
    Literal(Box<[u8]>),
    /// The tokens from this one on, which the source's `>` matched.
    Rest(usize),
    /// A function of one token.
    Of(usize, Function),
    /// The hash of these tokens, or of the whole subject if there are none, modulo a number.
    Partition(u32, Box<[usize]>),
    /// A random number below this one.
    Random(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Function {
    Same,
    Split(Box<[u8]>),
    SplitFromLeft(usize),
    SplitFromRight(usize),
    SliceFromLeft(usize),
    SliceFromRight(usize),
    Left(usize),
    Right(usize),
}

/// An error in the text of a transform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransformError {
    /// A source or destination that is not a filter, a destination with a `*`, or a `>` at the end
    /// of only one.
    BadSubject,
    /// A destination with an empty token or blanks.
    BadDestination,
    /// A token of the destination that is wrong, with the reason.
    BadToken(&'static str, String),
    /// A wildcard of the source that is missing in the destination, where all are needed.
    UnusedWildcards,
}

impl fmt::Display for TransformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PREFIX: &str = "invalid mapping destination";
        match self {
            Self::BadSubject => f.write_str("invalid subject"),
            Self::BadDestination => write!(f, "{PREFIX}: invalid transform"),
            Self::BadToken(what, token) => write!(f, "{PREFIX}: {what} in {token}"),
            Self::UnusedWildcards => write!(f, "{PREFIX}: not using all of the token wildcard(s)"),
        }
    }
}

impl std::error::Error for TransformError {}

const UNKNOWN_FUNCTION: &str = "unknown function";
const BAD_ARGUMENT: &str = "function argument is invalid or in the wrong format";
const TOO_FEW: &str = "not enough arguments passed to the function";
const TOO_MANY: &str = "too many arguments passed to the function";
const OUT_OF_RANGE: &str = "wildcard index out of range";

impl Transform {
    /// Compiles a mapping.
    ///
    /// # Errors
    ///
    /// Returns an error when source and destination do not fit, or when the destination has unknown
    /// functions or wrong arguments.
    pub fn new(source: &[u8], destination: &[u8]) -> Result<Self, TransformError> {
        let compiler = Compiler::new(source);
        let mut parts = Vec::new();
        let mut behind_rest = false;
        for token in tokens(destination) {
            if behind_rest {
                return Err(bad("invalid transform", token));
            }
            behind_rest = token == b">";
            parts.push(compiler.part(token)?);
        }
        let has_stars = tokens(destination).any(|token| token == b"*");
        if !is_valid_filter(source) || has_stars || ends_in_rest(source) != behind_rest {
            return Err(TransformError::BadSubject);
        }
        Ok(Self { source: source.into(), destination: destination.into(), parts: parts.into() })
    }

    /// Compiles a mapping that can be followed backwards, as imports need it: it only moves whole
    /// tokens, and keeps all tokens that the wildcards match.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Self::new`], and an error when the destination does more, or does
    /// not use a wildcard.
    pub fn strict(source: &[u8], destination: &[u8]) -> Result<Self, TransformError> {
        let transform = Self::new(source, destination)?;
        for (part, token) in transform.parts.iter().zip(tokens(destination)) {
            if !matches!(
                part,
                DestinationPart::Literal(_)
                    | DestinationPart::Rest(_)
                    | DestinationPart::Of(_, Function::Same)
            ) {
                let what =
                    "the only mapping function allowed for import transforms is {{Wildcard()}}";
                return Err(bad(what, token));
            }
        }
        let is_used =
            |at: usize| transform.parts.contains(&DestinationPart::Of(at, Function::Same));
        let mut stars = tokens(source).enumerate().filter(|(_, token)| *token == b"*");
        if stars.any(|(at, _)| !is_used(at)) {
            return Err(TransformError::UnusedWildcards);
        }
        Ok(transform)
    }

    /// Returns the filter of the subjects that the transform applies to.
    pub fn source(&self) -> &[u8] {
        &self.source
    }

    /// Returns the destination as it was written.
    pub fn destination(&self) -> &[u8] {
        &self.destination
    }

    /// Whether equal subjects always become equal ones.
    pub fn is_certain(&self) -> bool {
        !self.parts.iter().any(|part| matches!(part, DestinationPart::Random(_)))
    }

    /// Appends the transformed subject to `out`. Returns `false`, and appends nothing, if the
    /// source does not match it.
    pub fn apply(&self, subject: &[u8], rng: &mut fastrand::Rng, out: &mut Vec<u8>) -> bool {
        if !covers(&self.source, subject) {
            return false;
        }
        let given: SmallVec<[&[u8]; 16]> = tokens(subject).collect();
        for (number, part) in self.parts.iter().enumerate() {
            if number > 0 {
                out.push(b'.');
            }
            match part {
                DestinationPart::Literal(token) => out.extend_from_slice(token),
                DestinationPart::Rest(from) => join(&given[*from..], out),
                DestinationPart::Of(at, function) => function.apply(given[*at], out),
                DestinationPart::Partition(count, of) => {
                    let hash = match &**of {
                        [] => hash([subject]),
                        of => hash(of.iter().map(|at| given[*at])),
                    };
                    write_number(hash.checked_rem(*count).unwrap_or(0), out);
                }
                DestinationPart::Random(below) => {
                    write_number(if *below > 0 { rng.u32(..below) } else { 0 }, out);
                }
            }
        }
        true
    }

    /// Returns the filter of all results for subjects that match `filter`: an exact one if whole
    /// tokens are moved and each only once, else a somewhat wider one. `None` if there are no
    /// results, or if no filter has their number of tokens.
    pub fn apply_filter(&self, filter: &[u8]) -> Option<Vec<u8>> {
        let both = intersection(&self.source, filter)?;
        let given: SmallVec<[&[u8]; 16]> = tokens(&both).collect();
        let mut out = Vec::new();
        for (number, part) in self.parts.iter().enumerate() {
            if number > 0 {
                out.push(b'.');
            }
            match part {
                DestinationPart::Literal(token) => out.extend_from_slice(token),
                DestinationPart::Rest(from) => join(&given[*from..], &mut out),
                DestinationPart::Of(at, function) if !matches!(given[*at], b"*" | b">") => {
                    function.apply(given[*at], &mut out);
                }
                DestinationPart::Of(_, Function::Same | Function::Left(_) | Function::Right(_))
                | DestinationPart::Partition(..)
                | DestinationPart::Random(_) => out.push(b'*'),
                DestinationPart::Of(..) => return None,
            }
        }
        Some(out)
    }

    /// Returns the reverse transform, which makes the original subject of a result. `None` if this
    /// one does more than move whole tokens, or uses one twice or not at all.
    pub fn reversed(&self) -> Option<Self> {
        let mut places: SmallVec<[usize; 8]> = SmallVec::new();
        let mut source = Vec::new();
        for part in &self.parts {
            if !source.is_empty() {
                source.push(b'.');
            }
            match part {
                DestinationPart::Literal(token) => source.extend_from_slice(token),
                DestinationPart::Rest(_) => source.push(b'>'),
                DestinationPart::Of(at, Function::Same) if !places.contains(at) => {
                    places.push(*at);
                    source.push(b'*');
                }
                _ => return None,
            }
        }
        let mut destination = Vec::new();
        for (at, token) in tokens(&self.source).enumerate() {
            if at > 0 {
                destination.push(b'.');
            }
            match (token, places.iter().position(|place| *place == at)) {
                (b"*", Some(star)) => {
                    destination.extend_from_slice(format!("${}", star + 1).as_bytes());
                }
                (b"*", None) | (_, Some(_)) => return None,
                (token, None) => destination.extend_from_slice(token),
            }
        }
        Self::strict(&source, &destination).ok()
    }
}

impl Function {
    fn apply(&self, token: &[u8], out: &mut Vec<u8>) {
        let len = token.len();
        let cut = |at: usize, out: &mut Vec<u8>| {
            out.extend_from_slice(&token[..at]);
            if at > 0 && at < len {
                out.push(b'.');
            }
            out.extend_from_slice(&token[at..]);
        };
        match self {
            Self::Same => out.extend_from_slice(token),
            Self::Split(delimiter) => split(token, delimiter, out),
            Self::SplitFromLeft(at) => cut(*at.min(&len), out),
            Self::SplitFromRight(at) => cut(len.saturating_sub(*at), out),
            Self::SliceFromLeft(size) if *size > 0 => join_chunks(token.chunks(*size), out),
            Self::SliceFromRight(size) if *size > 0 => {
                let (head, tail) = token.split_at(len % size);
                out.extend_from_slice(head);
                if !head.is_empty() && !tail.is_empty() {
                    out.push(b'.');
                }
                join_chunks(tail.chunks(*size), out);
            }
            Self::Left(count) if *count > 0 => out.extend_from_slice(&token[..*count.min(&len)]),
            Self::Right(count) if *count > 0 => {
                out.extend_from_slice(&token[len.saturating_sub(*count)..]);
            }
            _ => out.extend_from_slice(token),
        }
    }
}

/// Appends the pieces between delimiters as tokens. Where two delimiters follow one another it is
/// as in nats-server: an empty piece is left out, but behind two in the beginning its dot stays,
/// and the subject has an empty token.
fn split(token: &[u8], delimiter: &[u8], out: &mut Vec<u8>) {
    if delimiter.is_empty() {
        for chunk in token.utf8_chunks() {
            let chars = chunk.valid().split("").map(str::as_bytes);
            join_chunks(chars.chain(chunk.invalid().chunks(1)), out);
        }
        return;
    }
    let ends = memmem::find_iter(token, delimiter).chain([token.len()]);
    let mut start = 0;
    let mut pieces = ends.map(|end| {
        let piece = &token[start..end];
        start = end + delimiter.len();
        piece
    });
    let mut piece = pieces.next().unwrap_or_default();
    out.extend_from_slice(piece);
    for (number, next) in pieces.enumerate() {
        let is_first = number == 0 && piece.is_empty();
        if !is_first && !next.is_empty() {
            out.push(b'.');
        }
        out.extend_from_slice(next);
        piece = next;
    }
}

fn join_chunks<'a>(chunks: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    for (number, chunk) in chunks.filter(|chunk| !chunk.is_empty()).enumerate() {
        if number > 0 {
            out.push(b'.');
        }
        out.extend_from_slice(chunk);
    }
}

fn join(tokens: &[&[u8]], out: &mut Vec<u8>) {
    join_chunks(tokens.iter().copied(), out);
}

fn write_number(number: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Returns FNV-1a with 32 bits.
fn hash<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let bytes = texts.into_iter().flatten();
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn ends_in_rest(filter: &[u8]) -> bool {
    tokens(filter).last() == Some(b">")
}

fn bad(what: &'static str, token: &[u8]) -> TransformError {
    TransformError::BadToken(what, String::from_utf8_lossy(token).into_owned())
}

/// A compiler of a destination's tokens into parts, for one source.
struct Compiler {
    /// Places of the source's `*`.
    stars: SmallVec<[usize; 8]>,
    /// The place of the source's `>`.
    rest: Option<usize>,
}

impl Compiler {
    fn new(source: &[u8]) -> Self {
        let stars = tokens(source).enumerate().filter(|(_, token)| *token == b"*");
        let rest = ends_in_rest(source).then(|| super::token_count(source) - 1);
        Self { stars: stars.map(|(at, _)| at).collect(), rest }
    }

    fn part(&self, token: &[u8]) -> Result<DestinationPart, TransformError> {
        if token == b">" {
            // Without one in the source it is refused as a whole.
            return Ok(DestinationPart::Rest(self.rest.unwrap_or(0)));
        }
        if let [b'$', number @ ..] = token
            && let Some(number) = integer(number)
        {
            return Ok(DestinationPart::Of(self.wildcard(number, token)?, Function::Same));
        }
        if token.len() > 4 && token.starts_with(b"{{") && token.ends_with(b"}}") {
            let call = Call::parse(token).ok_or_else(|| bad(UNKNOWN_FUNCTION, token))?;
            return self.call(&call);
        }
        if token.is_empty() || token.iter().any(u8::is_ascii_whitespace) {
            return Err(TransformError::BadDestination);
        }
        Ok(DestinationPart::Literal(token.into()))
    }

    fn call(&self, call: &Call<'_>) -> Result<DestinationPart, TransformError> {
        let function: fn(usize) -> Function = match call.name {
            "wildcard" => {
                let [number] = call.arguments()?;
                return Ok(DestinationPart::Of(self.of(number, call)?, Function::Same));
            }
            "partition" => return self.partition(call),
            "random" => {
                let [below] = &call.arguments[..] else { return Err(bad(TOO_FEW, call.token)) };
                return Ok(DestinationPart::Random(call.modulus(below)?));
            }
            "split" => {
                let [number, delimiter] = call.arguments()?;
                if delimiter.contains(&b' ') {
                    return Err(bad(BAD_ARGUMENT, call.token));
                }
                let at = self.of(number, call)?;
                return Ok(DestinationPart::Of(at, Function::Split(delimiter.into())));
            }
            "splitFromLeft" => Function::SplitFromLeft,
            "splitFromRight" => Function::SplitFromRight,
            "sliceFromLeft" => Function::SliceFromLeft,
            "sliceFromRight" => Function::SliceFromRight,
            "left" => Function::Left,
            _ => Function::Right,
        };
        let [number, size] = call.arguments()?;
        let number_of = call.integer(number)?;
        // Below zero is as good as zero, and both leave the token as it is.
        let size = match call.integer(size)? {
            size if size > i64::from(i32::MAX) => return Err(bad(BAD_ARGUMENT, call.token)),
            size => usize::try_from(size).unwrap_or(0),
        };
        Ok(DestinationPart::Of(self.wildcard(number_of, call.token)?, function(size)))
    }

    fn partition(&self, call: &Call<'_>) -> Result<DestinationPart, TransformError> {
        let (count, of) = call.arguments.split_first().ok_or_else(|| bad(TOO_FEW, call.token))?;
        let count = call.modulus(count)?;
        let numbers: Result<Vec<i64>, _> = of.iter().map(|text| call.integer(text)).collect();
        let numbers = numbers?;
        if self.stars.is_empty() && self.rest.is_none() {
            // Of a source without wildcards it hashes nothing.
            let number = hash([]).checked_rem(count).unwrap_or(0);
            return Ok(DestinationPart::Literal(number.to_string().into_bytes().into()));
        }
        let of = numbers.into_iter().map(|number| self.wildcard(number, call.token));
        Ok(DestinationPart::Partition(count, of.collect::<Result<_, _>>()?))
    }

    /// Returns the token that an argument names by the number of a wildcard.
    fn of(&self, argument: &[u8], call: &Call<'_>) -> Result<usize, TransformError> {
        self.wildcard(call.integer(argument)?, call.token)
    }

    /// Returns the token that the N-th wildcard matches, from 1; below 1 it is the first one.
    fn wildcard(&self, number: i64, token: &[u8]) -> Result<usize, TransformError> {
        if self.stars.is_empty() && self.rest.is_none() {
            return Err(bad(OUT_OF_RANGE, token));
        }
        match usize::try_from(number) {
            Err(_) | Ok(0) => Ok(0),
            Ok(number) => self.stars.get(number - 1).copied().ok_or_else(|| {
                let mut token = String::from_utf8_lossy(token).into_owned();
                let _ = write!(token, ": [{number}]");
                TransformError::BadToken(OUT_OF_RANGE, token)
            }),
        }
    }
}

/// A call of a function in a destination, `{{name(argument, …)}}`.
struct Call<'a> {
    token: &'a [u8],
    name: &'static str,
    arguments: SmallVec<[&'a [u8]; 4]>,
}

/// Names of functions. Letters whose case is free are large here, but for the first one, whose case
/// is always free.
const FUNCTIONS: [&str; 10] = [
    "wildcard",
    "partition",
    "splitFromLeft",
    "splitFromRight",
    "sliceFromLeft",
    "sliceFromRight",
    "split",
    "left",
    "right",
    "random",
];

impl<'a> Call<'a> {
    fn parse(token: &'a [u8]) -> Option<Self> {
        let inner = token.get(2..token.len() - 2)?.trim_ascii();
        let (name, arguments) = inner.split_at(memchr::memchr(b'(', inner)?);
        let name = name.trim_ascii_end();
        let name = FUNCTIONS.into_iter().find(|function| is_named(name, function))?;
        let arguments = arguments[1..].strip_suffix(b")")?;
        let arguments = arguments.split(|byte| *byte == b',').enumerate();
        let arguments =
            arguments.map(|(at, text)| if at == 0 { text } else { text.trim_ascii_start() });
        Some(Self { token, name, arguments: arguments.collect() })
    }

    /// Returns the arguments, if there are exactly `N`.
    fn arguments<const N: usize>(&self) -> Result<[&'a [u8]; N], TransformError> {
        let count = match &self.arguments[..] {
            [b""] => 0,
            arguments => arguments.len(),
        };
        if count < N {
            return Err(bad(TOO_FEW, self.token));
        }
        <[&[u8]; N]>::try_from(&self.arguments[..]).map_err(|_| bad(TOO_MANY, self.token))
    }

    fn integer(&self, argument: &[u8]) -> Result<i64, TransformError> {
        integer(argument.trim_ascii()).ok_or_else(|| bad(BAD_ARGUMENT, self.token))
    }

    /// Returns the limit of a count; below zero it wraps as nats-server's does.
    fn modulus(&self, argument: &[u8]) -> Result<u32, TransformError> {
        match i32::try_from(self.integer(argument)?) {
            Ok(number) => Ok(number.cast_unsigned()),
            Err(_) => Err(bad(BAD_ARGUMENT, self.token)),
        }
    }
}

fn is_named(text: &[u8], name: &str) -> bool {
    text.len() == name.len()
        && text.iter().zip(name.bytes()).enumerate().all(|(at, (given, letter))| {
            let either = at == 0 || letter.is_ascii_uppercase();
            *given == letter || (either && given.eq_ignore_ascii_case(&letter))
        })
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
