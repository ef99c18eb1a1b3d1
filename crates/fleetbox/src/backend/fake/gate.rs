//! Owns a connection that stands still while the fake machine is paused. It must not know what goes
//! over it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Whether the machine is paused.
pub(super) type Paused = watch::Receiver<bool>;

/// Returns once the machine is not paused.
pub(super) async fn opened(mut paused: Paused) {
    // Without its sender the machine is gone, and this with it.
    drop(paused.wait_for(|paused| !paused).await);
}

pub(super) struct Gated<S> {
    stream: S,
    paused: Paused,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Gated<S> {
    pub(super) fn new(stream: S, paused: Paused) -> Self {
        Self { stream, paused, waiting: None }
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.waiting.is_none() && *self.paused.borrow() {
            self.waiting = Some(Box::pin(opened(self.paused.clone())));
        }
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context));
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context));
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context));
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context));
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
