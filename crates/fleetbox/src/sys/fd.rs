//! Owns what is done to bare file descriptors: passing them over unix sockets, placing them at
//! fixed numbers for a child. It must not know what they are for.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Sends `bytes`, and `fd` with the first of them. Returns how many bytes went out.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // A peer that went away is an error to report, never a signal.
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Receives into `bytes`; an fd that came along is returned close-on-exec.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let mut passed = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            passed = passed.or(fds.last());
        }
    }
    Ok((received.bytes, passed))
}

/// Lets the child of `command` inherit each fd under the given number. The fds stay
/// close-on-exec in this process, so no other child sees them.
pub(crate) fn inherit(command: &mut Command, fds: Vec<(OwnedFd, RawFd)>) {
    // First moved out of the way of every target number, so that no dup2 can overwrite a source.
    let lowest_free = fds.iter().map(|(_, target)| target + 1).max().unwrap_or(0);
    let place = move || -> io::Result<()> {
        let mut moved = [(-1, -1); 8];
        for (slot, (fd, target)) in moved.iter_mut().zip(&fds) {
            // SAFETY: fcntl and dup2 are async-signal-safe and take plain integers.
            let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest_free) };
            if high < 0 {
                return Err(io::Error::last_os_error());
            }
            *slot = (high, *target);
        }
        for (source, target) in moved.iter().filter(|(source, _)| *source >= 0) {
            // SAFETY: as above.
            if unsafe { libc::dup2(*source, *target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it only calls async-signal-safe functions
    // and allocates nothing.
    unsafe { command.pre_exec(place) };
}

/// Whether `fd` is open at all.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD on any integer is harmless.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Takes ownership of an fd this process inherited.
///
/// The caller must know that nothing else in the process owns it.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: only called in the re-executed child, before any other code runs, for the number
    // its spawner placed there.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Closes every fd from `first` on: what a test runner left open must not outlive it in a holder.
#[cfg(target_os = "linux")]
pub(crate) fn close_from(first: RawFd) {
    let first = u32::try_from(first).unwrap_or(0);
    // SAFETY: called in the re-executed child before any Rust object owns an fd in that range.
    // Kernels before 5.9 lack the call; then the inherited fds merely stay open.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Gives the file's first bytes back to the disk; they read as zeros then, and its length stays (fallocate(2)).
#[cfg(target_os = "linux")]
pub(crate) fn give_back(file: impl AsFd, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, hole, 0, bytes)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn give_back(_file: impl AsFd, _bytes: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_fd_travels_with_its_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut left, right) = UnixStream::pair().unwrap();
        assert_eq!(send(a.as_fd(), b"hello", Some(right.as_fd())).unwrap(), 5);
        drop(right);
        let mut bytes = [0; 16];
        let (count, fd) = receive(b.as_fd(), &mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"hello");
        let mut right = UnixStream::from(fd.unwrap());
        left.write_all(b"x").unwrap();
        let mut one = [0];
        right.read_exact(&mut one).unwrap();
        assert_eq!(&one, b"x");
    }

    #[test]
    fn a_child_sees_an_fd_at_the_number_asked_for() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo seen >&7"]);
        inherit(&mut command, vec![(theirs.into(), 7)]);
        assert!(command.status().unwrap().success());
        drop(command);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "seen\n");
    }
}
