//! Owns how a child process gets a session of its own, as sshd gives every command.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The child will lead a new session and process group, so that a signal to the group reaches all
/// it starts and nobody else; and ends by the signals of a terminal, though we may ignore them as
/// whatever a shell starts in the background does.
pub(crate) fn lead_new_session(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes system calls that are async-signal-safe, and it
    // neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                if libc::signal(signal, libc::SIG_DFL) == libc::SIG_ERR {
                    return Err(std::io::Error::last_os_error());
                }
            }
            rustix::process::setsid()?;
            Ok(())
        })
    }
}

/// Lets the child see the processes of its own pid namespace below /proc, as a guest's commands do,
/// instead of the host's. Only for a process that is pid 1 of a namespace of its own.
pub(crate) fn see_own_processes(command: &mut Command) {
    let mount_proc = || -> std::io::Result<()> {
        let check = |status: libc::c_int| match status {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        };
        let nothing = std::ptr::null::<libc::c_char>();
        let (root, proc) = (c"/".as_ptr(), c"/proc".as_ptr());
        // SAFETY: unshare and mount are plain system calls; every pointer is to a constant or null.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            // Nothing mounted here may be seen outside.
            check(libc::mount(
                nothing.cast(),
                root,
                nothing.cast(),
                libc::MS_REC | libc::MS_PRIVATE,
                nothing.cast(),
            ))?;
            check(libc::mount(c"proc".as_ptr(), proc, c"proc".as_ptr(), 0, nothing.cast()))
        }
    };
    // SAFETY: between fork and exec the closure makes system calls alone, and neither allocates nor
    // takes a lock.
    unsafe { command.pre_exec(mount_proc) };
}
