//! Owns reading and writing one JSON message a line on a unix socket, with at most one fd beside
//! it, and the bound on a line's length. It must not look into the messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Far above any real message; a peer that sends more is broken or hostile.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// One side of a connection.
#[derive(Debug)]
pub(crate) struct Frames {
    socket: UnixStream,
    buffer: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl Frames {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket, buffer: Vec::new(), fd: None }
    }

    /// The peer's user id, as the kernel knows it.
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        Ok(self.socket.peer_cred()?.uid())
    }

    /// The process that made the peer's end, in this process's numbering.
    pub(crate) fn peer_pid(&self) -> Option<u32> {
        let pid = self.socket.peer_cred().ok()?.pid()?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    /// The same socket once more.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.socket, 0)?)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)?)
    }

    /// Sends a message, and `fd` with its first byte.
    pub(crate) async fn send(
        &mut self,
        message: &impl Serialize,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut sent = 0;
        while sent < line.len() {
            let with = if sent == 0 { fd } else { None };
            let rest = &line[sent..];
            sent += self
                .socket
                .async_io(Interest::WRITABLE, || {
                    crate::sys::fd::send(self.socket.as_fd(), rest, with)
                })
                .await?;
        }
        Ok(())
    }

    /// The next message, or `None` at the end of the connection. Safe to cancel: what was read
    /// stays in the buffer.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
            }
            searched = self.buffer.len();
            if searched > LINE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
            }
            let mut chunk = [0; 8192];
            let (count, fd) = self
                .socket
                .async_io(Interest::READABLE, || {
                    crate::sys::fd::receive(self.socket.as_fd(), &mut chunk)
                })
                .await?;
            self.fd = fd.or(self.fd.take());
            if count == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    /// The fd that came with the messages read so far, once.
    pub(crate) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fd.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_message_and_its_fd_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Frames::new(a), Frames::new(b));
        let file = tempfile::tempfile().unwrap();
        a.send(&"one", Some(file.as_fd())).await.unwrap();
        a.send(&"two", None).await.unwrap();
        assert_eq!(b.receive::<String>().await.unwrap().as_deref(), Some("one"));
        assert!(b.take_fd().is_some());
        assert_eq!(b.receive::<String>().await.unwrap().as_deref(), Some("two"));
        assert!(b.take_fd().is_none());
        drop(a);
        assert!(b.receive::<String>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn garbage_is_an_error_not_a_panic() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Frames::new(b);
        a.write_all(b"{not json\n").await.unwrap();
        assert_eq!(b.receive::<String>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        a.write_all(b"half").await.unwrap();
        drop(a);
        assert_eq!(b.receive::<String>().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Frames::new(b);
        let flood = tokio::spawn(async move {
            let chunk = vec![b'x'; 64 * 1024];
            while a.write_all(&chunk).await.is_ok() {}
        });
        assert_eq!(b.receive::<String>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(b);
        flood.await.unwrap();
    }
}
