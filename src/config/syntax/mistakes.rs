//! What is wrong with a configuration, all of it at once, and where.

use std::fmt;
use std::sync::Arc;

/// Mistakes that are told; of more only the number is.
pub(in crate::config) const MISTAKES_MAX: usize = 100;

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) struct Position {
    /// The how-manieth of the files that were read; what they include comes later.
    pub(in crate::config) order: u32,
    pub(in crate::config) line: u32,
    pub(in crate::config) column: u32,
    pub(in crate::config) file: Arc<str>,
}

impl Position {
    /// An error that begins with this place.
    pub(in crate::config) fn error(&self, reason: impl fmt::Display) -> StartError {
        StartError::of(Some(self.clone()), &reason.to_string())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What the operator has to mend before the server can start: cause and remedy of each mistake in
/// one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    mistakes: Vec<Mistake>,
    /// Mistakes beyond [`MISTAKES_MAX`].
    untold: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    position: Option<Position>,
    reason: String,
}

impl StartError {
    /// A single mistake, told on one line whatever it quotes.
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

    /// The same mistakes; those without a place are here.
    pub(in crate::config) fn at(mut self, position: &Position) -> Self {
        for mistake in &mut self.mistakes {
            mistake.position.get_or_insert_with(|| position.clone());
        }
        self
    }

    /// About something that has been complained about already.
    pub(in crate::config) fn told_already() -> Self {
        Self { mistakes: Vec::new(), untold: 0 }
    }

    fn add(&mut self, other: Self) {
        self.untold += other.untold;
        for mistake in other.mistakes {
            // One that is in a variable's value is found wherever the variable is used.
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

    /// Each mistake on a line, in the order of their places.
    pub fn lines(&self) -> Vec<String> {
        let mut mistakes: Vec<&Mistake> = self.mistakes.iter().collect();
        // What has no place is about all of it, and comes last.
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

/// Gathers what is wrong, so that the rest is looked at too.
#[derive(Debug, Default)]
pub(in crate::config) struct Mistakes(Option<StartError>);

impl Mistakes {
    /// The value, or none if there is something wrong with it, which is kept.
    pub(in crate::config) fn take<T>(&mut self, result: Result<T, StartError>) -> Option<T> {
        match (result, &mut self.0) {
            (Ok(value), _) => return Some(value),
            (Err(error), Some(all)) => all.add(error),
            (Err(error), none) => *none = Some(error),
        }
        None
    }

    /// Nothing, if nothing was wrong.
    ///
    /// # Errors
    ///
    /// All that was.
    pub(in crate::config) fn result(self) -> Result<(), StartError> {
        self.0.map_or(Ok(()), Err)
    }
}

/// All the values.
///
/// # Errors
///
/// All that is wrong with any of them.
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
