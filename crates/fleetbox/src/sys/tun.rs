//! Owns the one ioctl that makes a tap. Linux only.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

pub(crate) const PATH: &str = "/dev/net/tun";

/// Makes a tap named `name` in the calling thread's network namespace. It lives as long as the fd
/// and its copies: it is not persistent, so nothing is left when the last process dies.
pub(crate) fn tap(name: &str) -> io::Result<OwnedFd> {
    // VNET_HDR lets the guest hand over large segments with checksums left to do; both VMMs want it.
    make(name, libc::IFF_VNET_HDR)
}

/// The same for a program that reads and writes frames as they would be on a wire: without
/// offloads the kernel cuts large segments and fills in checksums before they are read.
pub(crate) fn plain_tap(name: &str) -> io::Result<OwnedFd> {
    make(name, 0)
}

fn make(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(PATH)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.as_bytes_with_nul().len() > request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as libc::c_short;
    // SAFETY: the fd is open and the request lives through the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}
