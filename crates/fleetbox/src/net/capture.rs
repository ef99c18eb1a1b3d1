//! Owns writing what passes an interface to a file in the pcap format, for as long as it is wanted.
//! It must not choose the interface or the file.

use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::sys::packet;

/// Of longer frames the rest is left out. A segment that is still to be cut up has 64 KiB.
const FRAME_BYTES_MAX: usize = 262_144;
/// So much is written at once.
const WRITE_BYTES: usize = 1024 * 1024;
/// The classic format with nanoseconds (draft-ietf-opsawg-pcap), version 2.4, Ethernet.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
const LINK_ETHERNET: u32 = 1;

/// What a capture has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    pub frames: u64,
    /// Frames that came faster than they could be written.
    pub lost: u64,
}

/// A running capture. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Capture {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    ended: oneshot::Receiver<io::Result<Captured>>,
}

impl Capture {
    /// Writes what `socket` receives. The file has a header when this returns, and whole records
    /// from then on.
    pub(crate) fn start(socket: OwnedFd, file: OwnedFd) -> io::Result<Self> {
        let mut file = std::fs::File::from(file);
        file.write_all(&header())?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (end, ended) = oneshot::channel();
        let wake = stop.clone();
        let thread = thread::Builder::new().name("capture".into()).spawn(move || {
            // Nobody may want to know.
            drop(end.send(run(&socket, &wake, file)));
        })?;
        Ok(Self { stop, thread: Some(thread), ended })
    }

    /// Waits until it fails, which a full disk is a reason for.
    pub(crate) async fn failed(&mut self) -> io::Error {
        match (&mut self.ended).await {
            Ok(Err(e)) => e,
            Ok(Ok(_)) | Err(_) => io::Error::other("the capture has ended"),
        }
    }

    /// Writes what has passed until now, and ends.
    pub(crate) async fn stop(mut self) -> io::Result<Captured> {
        self.wake();
        let ended = (&mut self.ended).await;
        ended.map_err(|_| io::Error::other("the capture's thread died"))?
    }

    fn wake(&self) {
        // It cannot be full.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(socket: &OwnedFd, stop: &OwnedFd, mut file: std::fs::File) -> io::Result<Captured> {
    let mut captured = Captured::default();
    let mut frame = vec![0; FRAME_BYTES_MAX];
    let mut records = Vec::new();
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let stopping = !fds[1].revents().is_empty();
        let mut more = true;
        while more {
            while records.len() < WRITE_BYTES {
                match packet::receive(socket.as_fd(), &mut frame) {
                    Ok(received) => {
                        captured.frames += 1;
                        push_record(&mut records, &frame[..received.bytes], received);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        more = false;
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // The machine has ended and its tap with it.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENETDOWN | libc::ENODEV)) => {
                        more = false;
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
            write_whole(&mut file, &records)?;
            records.clear();
            // A flood must not keep it from ending.
            more &= !stopping;
        }
        if stopping {
            captured.lost = packet::lost(socket.as_fd())?;
            return Ok(captured);
        }
    }
}

/// A file that takes only a part of the records is cut back to those it had before.
fn write_whole(file: &mut std::fs::File, records: &[u8]) -> io::Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    // A pipe has no position, and what it took is read already.
    let before = file.stream_position();
    let written = file.write_all(records);
    if written.is_err()
        && let Ok(before) = before
    {
        file.set_len(before)?;
    }
    written
}

fn header() -> Vec<u8> {
    let mut header = Vec::with_capacity(24);
    header.extend(MAGIC_NANOSECONDS.to_ne_bytes());
    header.extend(VERSION.iter().flat_map(|part| part.to_ne_bytes()));
    // No time zone, no accuracy.
    header.extend([0; 8]);
    header.extend((FRAME_BYTES_MAX as u32).to_ne_bytes());
    header.extend(LINK_ETHERNET.to_ne_bytes());
    header
}

fn push_record(records: &mut Vec<u8>, frame: &[u8], received: packet::Received) {
    for word in [
        // The format's own end is in 2106.
        received.at.as_secs() as u32,
        received.at.subsec_nanos(),
        frame.len() as u32,
        received.length as u32,
    ] {
        records.extend(word.to_ne_bytes());
    }
    records.extend(frame);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let words: Vec<u32> =
            header().chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!((words[0], words[4], words[5]), (0xa1b2_3c4d, 262_144, 1));
        assert_eq!(words.len(), 6);
        let mut records = Vec::new();
        let at = Duration::new(5, 7);
        push_record(&mut records, b"abc", packet::Received { bytes: 3, length: 9, at });
        let words: Vec<u32> = records[..16]
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [5, 7, 3, 9]);
        assert_eq!(&records[16..], b"abc");
    }
}
