//! What went wrong, and what the user can do about it.

use std::fmt;

/// The result of everything that can fail for a reason outside of this program.
pub(crate) type Outcome<T> = Result<T, Fault>;

/// A failure that ends the run: its cause and its remedy, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    cause: String,
    remedy: String,
}

impl Fault {
    /// A failure with its cause and the next thing to try.
    pub(crate) fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        // An -ERR text or a path may hold anything; the report stays one line.
        let one_line = |text: String| text.replace(['\r', '\n'], " ");
        Self { cause: one_line(cause.into()), remedy: one_line(remedy.into()) }
    }

    /// The same failure, with what it happened to in front.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self { cause: format!("{place}: {}", self.cause), remedy: self.remedy }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line_with_cause_and_remedy() {
        let fault = Fault::new("no\r\nserver", "start one").at("127.0.0.1:4222");
        assert_eq!(fault.to_string(), "127.0.0.1:4222: no  server; start one");
    }
}
