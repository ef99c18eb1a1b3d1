//! Owns the one error of the chores: a sentence for whoever runs them.

use std::fmt;
use std::path::Path;

/// What a chore gives back.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// Why a chore could not be done.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Adds what would help.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.0 = format!("{}\nhint: {hint}", self.0);
        self
    }

    /// For `map_err`: what was being done to which file.
    pub(crate) fn io(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Self(format!("failed to {action} {}: {e}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<fleetbox::Error> for Failure {
    fn from(error: fleetbox::Error) -> Self {
        Self(error.report())
    }
}
