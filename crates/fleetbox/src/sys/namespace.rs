//! Owns entering namespaces, and forking into a pid namespace. Linux only. It must only be called
//! where the process (or, for the network, the thread) is known to be fresh.

use std::fs;
use std::io;

use rustix::process::{Pid, getgid, getuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// With which rights the holder makes its namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// An ordinary user, through a user namespace.
    User,
    /// Root itself.
    Root,
}

/// The steps that may meet a limit of the host.
pub(crate) const MAKE_USER: &str = "make a user namespace";
pub(crate) const MAKE_PID: &str = "make a pid namespace";

/// A step that failed, in words a user can act on.
#[derive(Debug)]
pub(crate) struct StepError {
    pub step: &'static str,
    pub source: io::Error,
}

fn step<T>(step: &'static str, result: io::Result<T>) -> Result<T, StepError> {
    result.map_err(|source| StepError { step, source })
}

/// The tier to try first: root needs no user namespace, and some hosts forbid one even to root.
pub(crate) fn preferred_tier() -> Tier {
    if rustix::process::geteuid().is_root() { Tier::Root } else { Tier::User }
}

/// Puts the next child of this process into a pid namespace of its own, in tier `User` together
/// with this process into a user namespace where it is root. The process must have one thread.
pub(crate) fn enter(tier: Tier) -> Result<(), StepError> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let flags = match tier {
        Tier::User => UnshareFlags::NEWUSER | UnshareFlags::NEWPID,
        Tier::Root => UnshareFlags::NEWPID,
    };
    // SAFETY: no flag here changes what file descriptors or memory the process shares.
    let unshared = unsafe { unshare_unsafe(flags) };
    step(
        match tier {
            Tier::User => MAKE_USER,
            Tier::Root => MAKE_PID,
        },
        unshared.map_err(io::Error::from),
    )?;
    if tier == Tier::User {
        // setgroups must be denied before an unprivileged gid_map is accepted (user_namespaces(7)).
        step("deny setgroups", fs::write("/proc/self/setgroups", "deny"))?;
        step("map the user", fs::write("/proc/self/uid_map", format!("0 {uid} 1")))?;
        step("map the group", fs::write("/proc/self/gid_map", format!("0 {gid} 1")))?;
    }
    Ok(())
}

/// Moves the calling thread, and it alone, into a new network namespace. Sockets made before keep
/// the old one.
pub(crate) fn enter_network() -> io::Result<()> {
    // SAFETY: a network namespace is a property of the thread; memory and fds stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Which side of a [`fork`] this is.
pub(crate) enum Forked {
    Parent(Pid),
    Child,
}

/// Forks. The process must have one thread.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: the caller guarantees a single thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid)
            .map(Forked::Parent)
            .ok_or_else(|| io::Error::other("fork gave no pid")),
    }
}

/// Ends the process at once, without running anything registered for its exit: code that belongs
/// to a test binary or a CLI must not run in a holder.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and never returns.
    unsafe { libc::_exit(code) }
}

/// A broken pipe shall be an error of the write, as Rust's own start-up arranges for `main`, which
/// a re-executed process never reaches.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: setting a disposition to SIG_IGN has no precondition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
