//! Owns every call that is unsafe or particular to an operating system. It must not know what a
//! VM is.
#![expect(unsafe_code, reason = "the one place for it")]

pub(crate) mod fd;
#[cfg(target_os = "linux")]
pub(crate) mod kvm;
#[cfg(target_os = "linux")]
pub(crate) mod landlock;
pub(crate) mod memory;
#[cfg(target_os = "linux")]
pub(crate) mod namespace;
pub(crate) mod orphan;
#[cfg(target_os = "linux")]
pub(crate) mod packet;
pub(crate) mod random;
pub(crate) mod reexec;
#[cfg(feature = "unstable-fake")]
pub(crate) mod session;
#[cfg(target_os = "linux")]
pub(crate) mod tun;
pub(crate) mod user;

/// Swaps two names of one file system: at no instant is either without a file.
pub(crate) fn exchange(one: &std::path::Path, other: &std::path::Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}
