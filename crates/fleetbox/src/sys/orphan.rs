//! Owns looking at ended children without reaping them, for a process that inherits orphans.

use rustix::process::Pid;

/// A child that has ended and that nobody has reaped yet.
pub(crate) fn ended_child() -> Option<Pid> {
    // SAFETY: all-zero is a valid siginfo_t; waitid only writes to it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a live local.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) } != 0 {
        return None;
    }
    // SAFETY: waitid filled in the fields of a child's end, or left si_pid zero.
    Pid::from_raw(unsafe { info.si_pid() })
}
