//! Real Linux machines as test fixtures.

#[cfg(feature = "unstable-fake")]
mod backend;
mod env;
mod error;
mod images;
mod prepare;
mod progress;
mod spec;
mod ssh;
mod store;
mod sys;

pub use error::{Error, ErrorKind, Fault, Result};
pub use progress::{Progress, Stage};
pub use spec::Arch;
pub use ssh::{
    Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Signal, Stdio,
    Terminal,
};
