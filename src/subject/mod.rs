//! Subjects.
#![forbid(unsafe_code)]
