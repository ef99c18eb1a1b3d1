//! Owns telling what the start of a test's machines has to say, such as what it waits for. It must not
//! tell a thing twice: each of several machines says it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::progress::Progress;

/// What a test's machines are started with.
pub(super) fn of(test: &str) -> impl Fn(Progress) + Send + Sync + 'static {
    let (test, told) = (test.to_owned(), Mutex::new(HashSet::new()));
    #[expect(clippy::print_stderr, reason = "a test that waits has no other voice")]
    move |event| {
        let Progress::Note(note) = event else { return };
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(note.clone()) {
            eprintln!("{test}: {note}");
        }
    }
}
