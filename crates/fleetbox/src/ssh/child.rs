//! Owns what a caller holds of a running command: its streams, its end, signals to it. It must not
//! know how any of that travels.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use super::command::{Command, Signal};
use super::end::{self, Mark};
use super::input::Input;
use super::output::{ExitStatus, Output};
use super::running::{Control, Running};
use super::session::Session;
use super::sink::Sink;
use crate::error::{Error, ErrorKind, Result};

/// Bytes a writer to standard input may be ahead of the connection.
const STDIN_BYTES: usize = 256 * 1024;
/// Packets a reader may be behind its task, beyond what the connection keeps.
const STREAM_PACKETS: usize = 8;

/// A running command, from [`Command::spawn`].
///
/// Dropping it ends the command, as described there; to let it run on, keep the `Child` or start it
/// as a service of the guest.
#[derive(Debug)]
pub struct Child {
    /// Standard input, if it is piped. Dropping it, or shutting it down, ends the input.
    pub stdin: Option<ChildStdin>,
    /// Standard output, if it is piped.
    pub stdout: Option<ChildStdout>,
    /// Standard error, if it is piped; with a terminal there is none.
    pub stderr: Option<ChildStderr>,
    running: Running,
    status: Option<ExitStatus>,
    session: Session,
    mark: Mark,
    limit_bytes: u64,
}

impl Child {
    pub(super) async fn spawn(command: &Command) -> Result<Self> {
        let (stdin, stdout, stderr) = command.pipes();
        let stream = |piped: bool| {
            if !piped {
                return (Sink::Discard, None);
            }
            let (sender, receiver) = mpsc::channel(STREAM_PACKETS);
            (Sink::Stream(sender), Some(receiver))
        };
        let (out, out_reader) = stream(stdout);
        let (err, err_reader) = stream(stderr);
        let mut request = command.request(out, err, stdin)?;
        let pipe = stdin.then(|| {
            let (near, far) = tokio::io::duplex(STDIN_BYTES);
            request.input = Input::Pipe(far);
            near
        });
        let mark = request.mark.clone();
        let session = command.session().clone();
        let mut running = Running::start(session.clone(), request);
        running.started().await?;
        let lost = running.lost();
        let reader = |chunks| Stream { chunks, current: Bytes::new(), lost: lost.clone() };
        Ok(Self {
            stdin: pipe.map(ChildStdin),
            stdout: out_reader.map(|chunks| ChildStdout(reader(chunks))),
            stderr: err_reader.map(|chunks| ChildStderr(reader(chunks))),
            running,
            status: None,
            session,
            mark,
            limit_bytes: command.limit_bytes(),
        })
    }

    /// Waits for the end, after closing standard input if it is still held here. Output that is
    /// piped must be read meanwhile, or the command may never end.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionLost`] if how it ended will never be known, [`ErrorKind::TimedOut`].
    ///
    /// Dropping the future leaves the command running; it may be awaited again, also after the end.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        drop(self.stdin.take());
        if let Some(status) = &self.status {
            return Ok(status.clone());
        }
        let status = self.running.ended().await?.status;
        self.status = Some(status.clone());
        Ok(status)
    }

    /// Reads what is left of the piped streams, and waits for the end.
    ///
    /// # Errors
    /// As [`Child::wait`]; [`ErrorKind::CommandFailed`] beyond
    /// [`output_limit_bytes`](Command::output_limit_bytes).
    ///
    /// Dropping the future ends the command.
    pub async fn wait_with_output(mut self) -> Result<Output> {
        drop(self.stdin.take());
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let limit = self.limit_bytes;
        let read = async |stream: Option<Stream>, name| match stream {
            Some(stream) => collect(stream, limit, name).await,
            None => Ok(Vec::new()),
        };
        let (stdout, stderr) = tokio::try_join!(
            read(stdout.map(|s| s.0), "standard output"),
            read(stderr.map(|s| s.0), "standard error"),
        )
        .map_err(|e| e.vm(self.session.vm()))?;
        let status = self.wait().await?;
        Ok(Output { status, stdout, stderr })
    }

    /// Sends a signal to the command and all it has started, also to what runs as root.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionLost`] and its kin if the guest could not be told.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        end::signal(&self.session, &self.mark, signal).await
    }

    /// Ends the command and all it has started with `KILL` and waits until it is gone. Piped output
    /// that was not read is dropped.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.running.send(Control::Kill);
        self.wait().await
    }

    /// Tells the command's terminal its new size. Without a terminal it does nothing.
    pub fn resize(&self, columns: u32, rows: u32) {
        self.running.send(Control::Resize { columns, rows });
    }
}

async fn collect(mut stream: Stream, limit: u64, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more tells a full stream from one that is too long.
    (&mut stream).take(limit.saturating_add(1)).read_to_end(&mut bytes).await.map_err(|e| {
        Error::new(ErrorKind::ConnectionLost, format!("read the command's {name}")).source(e)
    })?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(
            ErrorKind::CommandFailed,
            format!("collect a command's output: it wrote more than {limit} bytes to {name}"),
        )
        .hint("raise output_limit_bytes, or read the stream as it comes"));
    }
    Ok(bytes)
}

/// Standard input of a [`Child`]. Shutting it down, or dropping it, ends the command's input.
#[derive(Debug)]
pub struct ChildStdin(DuplexStream);

impl AsyncWrite for ChildStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Standard output of a [`Child`]. It ends with the command; if the connection is lost, with
/// [`io::ErrorKind::ConnectionReset`]. Dropping it discards what the command still writes.
#[derive(Debug)]
pub struct ChildStdout(Stream);

/// Standard error of a [`Child`], otherwise as [`ChildStdout`].
#[derive(Debug)]
pub struct ChildStderr(Stream);

#[derive(Debug)]
struct Stream {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    lost: Arc<AtomicBool>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.current.is_empty() {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.current = chunk,
                None if self.lost.load(Ordering::Acquire) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = buffer.remaining().min(self.current.len());
        buffer.put_slice(&self.current[..count]);
        self.current.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ChildStdout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncRead for ChildStderr {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}
