//! Owns how a child process gets a session of its own, as sshd gives every command.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The child will lead a new session and process group, so that a signal to the group reaches all
/// it starts and nobody else.
pub(crate) fn lead_new_session(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one system call that is async-signal-safe,
    // and it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        })
    }
}
