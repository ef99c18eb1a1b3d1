//! Owns starting other programs and the errors of those that fail.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};

/// A program to run, without input.
#[expect(clippy::disallowed_methods, reason = "the one place where chores start programs")]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// cargo, in the workspace; the one that runs this chore if it does.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo
}

/// Runs it to its end; a failure shows what it wrote to standard error.
pub(crate) fn run(command: &mut Command) -> Outcome<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|e| Failure::new(format!("failed to run {program}: {e}")))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{program} failed with {}: {}", output.status, said.trim())))
}

/// How long it takes from its start to its end.
pub(crate) fn time(command: &mut Command) -> Outcome<Duration> {
    let began = Instant::now();
    run(command)?;
    Ok(began.elapsed())
}
