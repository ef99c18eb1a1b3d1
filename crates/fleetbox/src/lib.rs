//! Real Linux machines as test fixtures.

mod env;
mod error;
pub mod images;
mod prepare;
mod progress;
#[cfg(test)]
mod skip;
mod spec;
mod ssh;
mod store;
mod sys;

pub use error::{Error, ErrorKind, Fault, Result};
pub use progress::{Progress, Stage};
pub use spec::Arch;
pub use ssh::command::Output;
