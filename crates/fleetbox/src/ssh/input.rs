//! Owns what is sent to a command's standard input, and the task that sends it. It must not end a
//! command's input unless it is all there.

use std::sync::Arc;

use bytes::Bytes;
use russh::ChannelWriteHalf;
use russh::client::Msg;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Bytes read from a pipe at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Where standard input comes from.
pub(super) enum Input {
    /// Nothing is sent.
    None,
    /// A pipe; its end is the input's end.
    Pipe(DuplexStream),
    /// Whole chunks. A sender that is dropped without [`Feed::End`] has been cancelled, and the
    /// guest must not take that for the end.
    Chunks(mpsc::Receiver<Feed>),
}

/// A piece of input.
pub(super) enum Feed {
    Chunk(Bytes),
    End,
}

impl Input {
    pub(super) fn bytes(bytes: Vec<u8>) -> Self {
        let (sender, receiver) = mpsc::channel(2);
        for feed in [Feed::Chunk(bytes.into()), Feed::End] {
            // There is room for both.
            let _ = sender.try_send(feed);
        }
        Input::Chunks(receiver)
    }
}

/// The task that sends standard input, ended with the command.
pub(super) struct Feeder(AbortHandle);

impl Feeder {
    pub(super) fn start(input: Input, write: Arc<ChannelWriteHalf<Msg>>) -> Self {
        let task = tokio::spawn(async move {
            if let Err(error) = feed(input, &write).await {
                // The channel is gone, and the command's own task says why.
                log::debug!("standard input: {error}");
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn feed(input: Input, write: &ChannelWriteHalf<Msg>) -> Result<(), russh::Error> {
    match input {
        Input::None => Ok(()),
        Input::Pipe(mut pipe) => loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            if pipe.read_buf(&mut chunk).await? == 0 {
                return write.eof().await;
            }
            write.data_bytes(chunk).await?;
        },
        Input::Chunks(mut chunks) => loop {
            match chunks.recv().await {
                Some(Feed::Chunk(chunk)) => write.data_bytes(chunk).await?,
                Some(Feed::End) => return write.eof().await,
                None => return Ok(()),
            }
        },
    }
}
