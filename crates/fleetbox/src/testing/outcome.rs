//! Owns what a test may return. It must not run one.

use std::fmt::Debug;

/// What a test may return: `()` or a `Result` of it.
///
/// ```
/// fn accepts<T: fleetbox::testing::Outcome>() {}
/// accepts::<()>();
/// accepts::<fleetbox::Result<()>>();
/// accepts::<Result<(), Box<dyn std::error::Error>>>();
/// ```
pub trait Outcome {
    /// What a skipped test returns.
    fn skipped() -> Self;
    /// Why the test failed, if it did.
    fn failure(&self) -> Option<String>;
}

impl Outcome for () {
    fn skipped() -> Self {}

    fn failure(&self) -> Option<String> {
        None
    }
}

impl<E: Debug> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }

    fn failure(&self) -> Option<String> {
        self.as_ref().err().map(|error| format!("{error:?}"))
    }
}
