//! Owns who the user is: their home directory, under sudo the invoking user's.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};

/// The home directory: under sudo that of the user who called it, else `$HOME`, else the password
/// database's.
pub(crate) fn home() -> Result<PathBuf> {
    if let Some(home) = invoking_uid().and_then(passwd_home) {
        return Ok(home);
    }
    std::env::var_os("HOME")
        .filter(|h| !h.is_empty())
        .map(PathBuf::from)
        .or_else(|| passwd_home(rustix::process::getuid().as_raw()))
        .ok_or_else(|| {
            Error::new(ErrorKind::StateRoot, "find the user's home directory")
                .hint("set HOME or FLEETBOX_HOME")
        })
}

/// Under sudo the user who called it, if that was not root.
pub(crate) fn invoking_uid() -> Option<u32> {
    let named = std::env::var("SUDO_UID").ok()?.parse::<u32>().ok()?;
    (rustix::process::geteuid().is_root() && named != 0).then_some(named)
}

fn passwd_home(uid: u32) -> Option<PathBuf> {
    let mut buffer = vec![0; 16 * 1024];
    // SAFETY: an all-zero passwd is a valid value for getpwuid_r to overwrite.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: every pointer is to a live local and `buffer`'s true length is given.
    let status = unsafe {
        libc::getpwuid_r(uid, &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
    };
    if status != 0 || found.is_null() || entry.pw_dir.is_null() {
        return None;
    }
    // SAFETY: on success pw_dir points at a NUL-terminated string inside `buffer`, still alive.
    let dir = unsafe { CStr::from_ptr(entry.pw_dir) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(dir.to_bytes())))
}
