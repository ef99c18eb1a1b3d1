//! Owns running one test of this binary in a process of its own, with settings of its own.

use std::process::Command;

/// A test that is ignored otherwise.
#[expect(clippy::disallowed_methods, reason = "a test starts a process to test")]
pub(crate) fn test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads", "1"]);
    command
}
