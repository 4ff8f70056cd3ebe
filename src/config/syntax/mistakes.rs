//! Mistakes in a configuration, gathered, with their positions.

use std::fmt;
use std::sync::Arc;

/// Mistakes that are reported, at most; the others are only counted.
pub(in crate::config) const MISTAKES_MAX: usize = 100;

/// A position in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) struct Position {
    /// The number of the file in the order of reading; included files come later.
    pub(in crate::config) order: u32,
    pub(in crate::config) line: u32,
    pub(in crate::config) column: u32,
    pub(in crate::config) file: Arc<str>,
}

impl Position {
    /// Returns an error at this position.
    pub(in crate::config) fn error(&self, reason: impl fmt::Display) -> StartError {
        StartError::of(Some(self.clone()), &reason.to_string())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Mistakes that keep the server from starting: cause and remedy of each in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    mistakes: Vec<Mistake>,
    /// The number of mistakes beyond [`MISTAKES_MAX`].
    untold: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    position: Option<Position>,
    reason: String,
}

impl StartError {
    /// Returns a single mistake; control characters in it are escaped, so that it fits one line.
    pub fn new(reason: impl Into<String>) -> Self {
        Self::of(None, &reason.into())
    }

    fn of(position: Option<Position>, reason: &str) -> Self {
        let escape = |char: char| match char.is_control() {
            true => char.escape_default().to_string(),
            false => char.to_string(),
        };
        let reason = reason.chars().map(escape).collect();
        Self { mistakes: vec![Mistake { position, reason }], untold: 0 }
    }

    /// Returns the mistakes, with `position` for those that have none.
    pub(in crate::config) fn at(mut self, position: &Position) -> Self {
        for mistake in &mut self.mistakes {
            mistake.position.get_or_insert_with(|| position.clone());
        }
        self
    }

    /// Returns an error for a mistake that is already reported.
    pub(in crate::config) fn told_already() -> Self {
        Self { mistakes: Vec::new(), untold: 0 }
    }

    fn add(&mut self, other: Self) {
        self.untold += other.untold;
        for mistake in other.mistakes {
            // A mistake in a variable's value is found at every use of the variable.
            if self.mistakes.iter().any(|known| known.is_told_as(&mistake)) {
                continue;
            }
            if self.mistakes.len() < MISTAKES_MAX {
                self.mistakes.push(mistake);
            } else {
                self.untold += 1;
            }
        }
    }

    /// Returns each mistake as a line, in the order of their positions.
    pub fn lines(&self) -> Vec<String> {
        let mut mistakes: Vec<&Mistake> = self.mistakes.iter().collect();
        // Mistakes without a position are about the whole, and come last.
        mistakes.sort_by_key(|mistake| (mistake.position.is_none(), mistake.position.as_ref()));
        let mut lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        if self.untold > 0 {
            lines.push(format!("{} more mistakes; mend these first", self.untold));
        }
        lines
    }
}

impl Mistake {
    /// Whether both read the same, also when a file was read twice.
    fn is_told_as(&self, other: &Self) -> bool {
        let place = |mistake: &Self| mistake.position.as_ref().map(|at| (at.line, at.column));
        let file = |mistake: &Self| mistake.position.as_ref().map(|at| Arc::clone(&at.file));
        place(self) == place(other) && self.reason == other.reason && file(self) == file(other)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.position {
            Some(position) => write!(f, "{position}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for StartError {}

/// A collection of mistakes, so that reading goes on after one.
#[derive(Debug, Default)]
pub(in crate::config) struct Mistakes(Option<StartError>);

impl Mistakes {
    /// Returns the value, or keeps the mistake in it and returns `None`.
    pub(in crate::config) fn take<T>(&mut self, result: Result<T, StartError>) -> Option<T> {
        match (result, &mut self.0) {
            (Ok(value), _) => return Some(value),
            (Err(error), Some(all)) => all.add(error),
            (Err(error), none) => *none = Some(error),
        }
        None
    }

    /// Succeeds if no mistake was taken.
    ///
    /// # Errors
    ///
    /// Returns all mistakes taken.
    pub(in crate::config) fn result(self) -> Result<(), StartError> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Returns all the values.
///
/// # Errors
///
/// Returns the mistakes of all results.
pub(in crate::config) fn all<T>(
    results: impl IntoIterator<Item = Result<T, StartError>>,
) -> Result<Vec<T>, StartError> {
    let mut mistakes = Mistakes::default();
    let values = results.into_iter().filter_map(|result| mistakes.take(result)).collect();
    mistakes.result().map(|()| values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(order: u32, line: u32, column: u32) -> Position {
        Position { order, line, column, file: format!("{order}.conf").into() }
    }

    #[test]
    fn mistakes_are_told_once_in_the_order_of_their_places_and_what_has_none_last() {
        let mut mistakes = Mistakes::default();
        for error in [
            StartError::new("no place"),
            place(1, 1, 1).error("included"),
            place(0, 10, 2).error("late"),
            place(0, 9, 30).error("right"),
            place(0, 9, 4).error("left"),
            place(0, 9, 4).error("left"),
            StartError::told_already(),
        ] {
            assert_eq!(mistakes.take::<()>(Err(error)), None);
        }
        let lines = mistakes.result().unwrap_err().lines();
        let wanted = [
            "0.conf:9:4: left",
            "0.conf:9:30: right",
            "0.conf:10:2: late",
            "1.conf:1:1: included",
            "no place",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn of_too_many_mistakes_the_rest_is_counted() {
        let wrong = |line| Err::<(), _>(place(0, line, 1).error("wrong"));
        let lines = all((1..=150).map(wrong)).unwrap_err().lines();
        assert_eq!(lines.len(), MISTAKES_MAX + 1);
        assert_eq!(lines[MISTAKES_MAX], "50 more mistakes; mend these first");
    }

    #[test]
    fn a_mistake_is_one_line_whatever_it_quotes() {
        assert_eq!(StartError::new("a\nb\u{1b}").to_string(), "a\\nb\\u{1b}");
    }
}
