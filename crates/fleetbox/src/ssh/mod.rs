//! Owns how a guest is driven: keys, connections, commands and copies over SSH. It must not open a
//! socket itself: connections are dialled by whoever owns the guest's network.
//!
//! ```text
//! Command ─┐             ┌─ shared connections: collected output, always drained
//! copy ────┤── Session ──┤
//! signals ─┘  (the pool) └─ lone connections: one stream each, may stand still
//! ```

mod begin;
mod child;
mod command;
mod connection;
pub(crate) mod copy;
mod end;
mod input;
pub(crate) mod keys;
mod output;
mod quote;
mod running;
mod session;
mod sink;
mod transcript;
#[cfg(all(test, feature = "unstable-fake"))]
mod tests;

pub use child::{Child, ChildStderr, ChildStdin, ChildStdout};
pub(crate) use command::ssh;
pub use command::{Command, Signal, Stdio, Terminal};
#[cfg(all(test, feature = "unstable-fake"))]
pub(crate) use connection::Dial;
pub(crate) use connection::Target;
pub use output::{ExitStatus, Output};
pub(crate) use session::{Session, WeakSession};
pub(crate) use transcript::{End, Place, Spoken, Transcript};
