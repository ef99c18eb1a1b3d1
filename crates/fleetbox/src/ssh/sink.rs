//! Owns what becomes of a command's output. It must keep no more than it was told to.

use bytes::Bytes;
use tokio::sync::mpsc;

const TAIL_BYTES: usize = 16 * 1024;

/// Output its reader has no room for yet.
pub(super) type Held = Option<(mpsc::Sender<Bytes>, Bytes)>;

/// What becomes of an output stream.
pub(super) enum Sink {
    Discard,
    Collect {
        bytes: Vec<u8>,
        limit: u64,
    },
    /// Keeps about the last `TAIL_BYTES`.
    Tail(Vec<u8>),
    /// To a reader that may stand still: needs a connection of its own.
    Stream(mpsc::Sender<Bytes>),
}

impl Sink {
    /// Takes output in; returns the limit, if it was exceeded.
    pub(super) fn put(&mut self, held: &mut Held, data: Bytes) -> Option<u64> {
        match self {
            Sink::Discard => None,
            Sink::Collect { bytes, limit } => {
                if bytes.len() as u64 + data.len() as u64 > *limit {
                    return Some(*limit);
                }
                bytes.extend_from_slice(&data);
                None
            }
            Sink::Tail(bytes) => {
                bytes.extend_from_slice(&data);
                if bytes.len() > 2 * TAIL_BYTES {
                    bytes.drain(..bytes.len() - TAIL_BYTES);
                }
                None
            }
            Sink::Stream(reader) => {
                if !data.is_empty() {
                    *held = Some((reader.clone(), data));
                }
                None
            }
        }
    }

    pub(super) fn collected(self) -> Vec<u8> {
        match self {
            Sink::Collect { bytes, .. } | Sink::Tail(bytes) => bytes,
            Sink::Discard | Sink::Stream(_) => Vec::new(),
        }
    }
}
