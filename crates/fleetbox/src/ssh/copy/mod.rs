//! Owns copies between host and guest: what goes where, the two ends of the stream, and how a
//! failure of either is told. It must not follow a link a guest has made.
//!
//! Where things go, as with `cp -r` and `scp -r`:
//!
//! | destination | a file becomes | a directory becomes |
//! |---|---|---|
//! | an existing directory | `destination/base` | `destination/base`, merged into one that is there |
//! | an existing file | that file, replaced whole | an error |
//! | missing | `destination`; its parent must exist | the same |
//! | missing, with a final `/` | an error | the same as without |
//!
//! A source directory that ends in `/.` (or `..`, or is `/`) has no base name: its contents go into
//! the destination itself. Modes and modification times (whole seconds) are kept, owners are not.
//! A link named as the source is followed, links below it are copied as links. A file under several
//! names may arrive as several files. What a guest sends loses its setuid, setgid and sticky bits.

mod destination;
mod pack;
mod unpack;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use self::destination::{GuestPath, Kind};
use super::end::Mark;
use super::input::{Feed, Input};
use super::running::{Control, Ended, Request, Running};
use super::session::Session;
use super::sink::Sink;
use super::{output, quote};
use crate::error::{Error, ErrorKind, Result};

/// Bytes per chunk on the way to the guest.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks read ahead of the connection.
const CHUNKS_AHEAD: usize = 8;
/// Packets the connection may be ahead of the disk.
const PACKETS_AHEAD: usize = 64;
/// Characters of a path shown in messages.
const LABEL_CHARS: usize = 200;

/// Copies a file or directory of the host to an absolute path of the guest, as its user.
///
/// A file appears whole or not at all. Dropping the future ends both sides; of a directory, what
/// was copied until then stays.
pub(crate) async fn copy_to(session: &Session, host: &Path, guest: &str) -> Result<()> {
    copy_to_as(session, host, guest, User::Own).await
}

/// [`copy_to`] as root, through `sudo -n`; what is copied is root's.
pub(crate) async fn copy_to_as_root(session: &Session, host: &Path, guest: &str) -> Result<()> {
    copy_to_as(session, host, guest, User::Root).await
}

/// Who writes in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    Own,
    Root,
}

async fn copy_to_as(session: &Session, host: &Path, guest: &str, user: User) -> Result<()> {
    let what =
        format!("copy {} to {}", host.display(), output::label(guest.as_bytes(), LABEL_CHARS));
    let guest = GuestPath::new(guest).map_err(|e| e.vm(session.vm()))?;
    let path = host.to_owned();
    let source = blocking(move || pack::Source::of(&path)).await??;
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let kind = source.kind();
    let text = guest.receive(&source);
    let request = request(what.clone(), &text, user, Input::Chunks(receiver), Sink::Discard);
    let mut running = Running::start(session.clone(), request);
    let mut packing = tokio::task::spawn_blocking(move || pack::pack(&source, chunks));
    let mut packed = None;
    let ended = loop {
        tokio::select! {
            result = &mut packing, if packed.is_none() => {
                let result = result.map_err(died)?;
                // Without the end of its input the guest would wait for ever.
                if !matches!(result, Ok(()) | Err(pack::Failure::Closed)) {
                    running.send(Control::End);
                }
                packed = Some(result);
            }
            ended = running.ended() => break ended,
        }
    };
    let packed = match packed {
        Some(packed) => packed,
        None => packing.await.map_err(died)?,
    };
    if let Err(failure @ (pack::Failure::Read { .. } | pack::Failure::Special(_))) = packed {
        return Err(partly(failure.into_error(&what), kind, "the guest").vm(session.vm()));
    }
    check(&what, session, &ended?).map_err(|e| partly(e, kind, "the guest"))
}

/// Copies an absolute path of the guest, as its user sees it, to the host. Otherwise as
/// [`copy_to`].
pub(crate) async fn copy_from(session: &Session, guest: &str, host: &Path) -> Result<()> {
    let what =
        format!("copy {} to {}", output::label(guest.as_bytes(), LABEL_CHARS), host.display());
    let guest = GuestPath::new(guest).map_err(|e| e.vm(session.vm()))?;
    let path = host.to_owned();
    blocking(move || destination::check_host(&path)).await??;
    let (packets, receiver) = mpsc::channel(PACKETS_AHEAD);
    let text = guest.send();
    let request = request(what.clone(), &text, User::Own, Input::None, Sink::Stream(packets));
    let mut running = Running::start(session.clone(), request);
    let stream = Chunks { receiver, current: Bytes::new(), lost: running.lost() };
    let (path, base) = (host.to_owned(), guest.base());
    let mut unpacking =
        tokio::task::spawn_blocking(move || unpack::unpack(stream, &path, base.as_deref()));
    let mut unpacked = None;
    let ended = loop {
        tokio::select! {
            result = &mut unpacking, if unpacked.is_none() => {
                let result = result.map_err(died)?;
                if result.is_err() {
                    running.send(Control::End);
                }
                unpacked = Some(result);
            }
            ended = running.ended() => break ended,
        }
    };
    let unpacked = match unpacked {
        Some(unpacked) => unpacked,
        None => unpacking.await.map_err(died)?,
    };
    // The guest's own words say more than that its archive broke off, but not more than a rule it
    // broke or a full disk.
    let done = match (unpacked, ended) {
        (Err(unpack::Failure::Incomplete(source)), Ok(ended)) => {
            return Err(match check(&what, session, &ended) {
                Err(error) => error,
                Ok(()) => {
                    Error::new(ErrorKind::Copy, format!("{what}: the archive is not complete"))
                        .vm(session.vm())
                        .source(source)
                }
            });
        }
        (Err(unpack::Failure::Incomplete(_)), Err(error)) => return Err(error),
        (Err(failure), _) => return Err(failure.into_error(&what).vm(session.vm())),
        (Ok(done), ended) => {
            let kind = done.kind();
            check(&what, session, &ended?).map_err(|e| partly(e, kind, "the host"))?;
            done
        }
    };
    blocking(move || done.keep()).await?.map_err(|f| f.into_error(&what).vm(session.vm()))
}

fn request(label: String, text: &[u8], user: User, input: Input, stdout: Sink) -> Request {
    let mark = Mark::new();
    let mut marked = Vec::new();
    mark.export(&mut marked);
    let own = [&marked, text].concat();
    match user {
        User::Own => marked = own,
        User::Root => {
            marked.extend_from_slice(b"exec sudo -n -- sh -c");
            quote::words(&mut marked, [own.as_slice()]);
        }
    }
    Request {
        text: marked,
        mark,
        label,
        terminal: None,
        input,
        stdout,
        stderr: Sink::Tail(Vec::new()),
        deadline: None,
        alone: true,
        unwritten: false,
    }
}

/// Turns how the guest's side ended into the result.
fn check(what: &str, session: &Session, ended: &Ended) -> Result<()> {
    let said = output::tail(&ended.stderr);
    // GNU tar calls it a failure if a file changed under its hands, as a log does; what it sent is
    // whole all the same.
    let changed = |line: &str| line.ends_with("file changed as we read it");
    if ended.status.success()
        || (ended.status.code() == Some(1) && !said.is_empty() && said.lines().all(changed))
    {
        return Ok(());
    }
    let mut message = what.to_owned();
    message.push_str(": ");
    match said.lines().next_back() {
        Some(line) => message.push_str(line),
        None => message.push_str(&ended.status.to_string()),
    }
    let hint = if said.contains("ermission denied") {
        "the guest's user may not do that; copy to or from /tmp and move it with sudo"
    } else {
        "see what the guest said; it needs tar, and room for the copy"
    };
    let mut error = Error::new(ErrorKind::Copy, message).vm(session.vm()).hint(hint);
    if said.lines().count() > 1 {
        error = error.detail(said);
    }
    Err(error)
}

/// Says what a failed copy of a directory leaves behind.
fn partly(error: Error, kind: Kind, place: &str) -> Error {
    match kind {
        Kind::File => error,
        Kind::Dir => {
            let left = format!("what was copied before the failure stays on {place}");
            let text = match error.detail_text() {
                Some(detail) => format!("{detail}\n{left}"),
                None => left,
            };
            error.detail(text)
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(died)
}

fn died(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "the copy's thread died").source(error)
}

/// The guest's archive as a reader for a thread of its own.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
    lost: Arc<AtomicBool>,
}

impl std::io::Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None if self.lost.load(Ordering::Acquire) => {
                    return Err(std::io::ErrorKind::ConnectionReset.into());
                }
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current[..count]);
        self.current.advance(count);
        Ok(count)
    }
}

/// The archive on its way to the guest, from a thread of its own.
struct ChunkWriter {
    sender: mpsc::Sender<Feed>,
    buffer: Vec<u8>,
}

impl ChunkWriter {
    fn new(sender: mpsc::Sender<Feed>) -> Self {
        Self { sender, buffer: Vec::with_capacity(CHUNK_BYTES) }
    }

    fn finish(mut self) -> std::io::Result<()> {
        std::io::Write::flush(&mut self)?;
        self.send(Feed::End)
    }

    fn send(&self, feed: Feed) -> std::io::Result<()> {
        self.sender.blocking_send(feed).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

impl std::io::Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.send(Feed::Chunk(full.into()))
    }
}
