//! Owns the calls on a packet socket (packet(7)) that no safe crate has: binding it to an interface,
//! receiving a frame with the kernel's time, asking what was lost. Linux only.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

/// What waits to be read; above it frames are lost, and counted.
const BUFFER_BYTES: libc::c_int = 16 * 1024 * 1024;

/// A frame that was received into a caller's buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// How much of it is in the buffer.
    pub bytes: usize,
    /// How long it was.
    pub length: usize,
    /// When it passed, since 1970.
    pub at: Duration,
}

/// A socket that gets a copy of every frame that passes the interface, in both directions; of a
/// bridge, those between its ports, too. It must be called in the interface's network namespace.
pub(crate) fn listen(interface: u32) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0 receives nothing until it is bound: no frame of another interface slips in.
    // SAFETY: socket takes plain integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = libc::c_int::try_from(interface).map_err(io::Error::other)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1i32)?;
    // Only a larger buffer; an old kernel refuses it in a user namespace.
    drop(set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER_BYTES));
    // SAFETY: all-zero is a valid packet_mreq and sockaddr_ll.
    let (mut promiscuous, mut address): (libc::packet_mreq, libc::sockaddr_ll) =
        unsafe { (zeroed(), zeroed()) };
    promiscuous.mr_ifindex = index;
    promiscuous.mr_type = libc::PACKET_MR_PROMISC as u16;
    set(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    // SAFETY: the address is of the length told, and lives through the call.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// A socket that gets the payload of every frame of that type that comes in at any interface, and sends
/// such. Frames of a bridge's ports come in at the bridge.
pub(crate) fn of_type(ethertype: u16) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let protocol = libc::c_int::from(ethertype.to_be());
    // SAFETY: socket takes plain integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The socket as tokio waits for it.
pub(crate) fn waited_for(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always returns the one fd it owns, which is open until it is dropped.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Sends one frame of that type out of the interface, to whoever is there.
pub(crate) fn send_to_all(
    socket: BorrowedFd<'_>,
    interface: u32,
    ethertype: u16,
    payload: &[u8],
) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = libc::c_int::try_from(interface).map_err(io::Error::other)?;
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
    // SAFETY: payload and address are of the lengths told, and live through the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is of the length told, and lives through the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next frame; `WouldBlock` if there is none.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Aligned as a control message has to be.
    let mut control = [0u64; 16];
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message points to buffers of the lengths it tells, which live through the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    let mut at = Duration::ZERO;
    // SAFETY: the kernel filled the control buffer; the macros stay within its length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET
                && (*header).cmsg_type == libc::SCM_TIMESTAMPNS
            {
                let time: libc::timespec = std::ptr::read_unaligned(libc::CMSG_DATA(header).cast());
                at =
                    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned() as u32);
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Received { bytes: length.min(buffer.len()), length, at })
}

/// How many frames were lost for want of room since the last call.
pub(crate) fn lost(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all-zero is a valid tpacket_stats.
    let mut stats: libc::tpacket_stats = unsafe { zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the value is of the length told, and lives through the call.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops.into()) }
}
