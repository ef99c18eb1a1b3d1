//! Owns getting one cluster's bytes: read as they are, or decompressed into exactly one cluster.
//! It must not write anything.

use libdeflater::Decompressor;
use zstd::zstd_safe;

use super::Source;
use super::header::{Compression, Header};
use crate::error::{Error, ErrorKind, Result};

/// Decompresses clusters; one per thread, its buffers are used again.
pub(super) struct Inflater {
    engine: Engine,
    input: Vec<u8>,
}

enum Engine {
    Deflate(Decompressor),
    Zstd(zstd_safe::DCtx<'static>),
}

impl Inflater {
    pub(super) fn new(compression: Compression) -> Result<Self> {
        let engine = match compression {
            Compression::Deflate => Engine::Deflate(Decompressor::new()),
            Compression::Zstd => {
                Engine::Zstd(zstd_safe::DCtx::try_create().ok_or_else(|| {
                    Error::new(ErrorKind::Io, "make a zstd context: out of memory")
                })?)
            }
        };
        Ok(Self { engine, input: Vec::new() })
    }

    /// Fills `cluster` from the stream at `offset`; more or fewer bytes than a cluster are damage.
    pub(super) fn inflate(
        &mut self,
        source: &Source<'_>,
        header: &Header,
        (offset, length): (u64, usize),
        cluster: &mut [u8],
    ) -> Result<()> {
        // `length` is at most 2^(cluster_bits - 8) sectors, twice a cluster.
        let rest = source.length_bytes.saturating_sub(offset);
        let length = length.min(usize::try_from(rest).unwrap_or(usize::MAX));
        if self.input.len() < length {
            self.input.resize(length.max(header.cluster_bytes()), 0);
        }
        let input = &mut self.input[..length];
        source.read_at(input, offset)?;
        let filled = match &mut self.engine {
            Engine::Deflate(inflater) => inflater.deflate_decompress(input, cluster).unwrap_or(0),
            Engine::Zstd(context) => zstd_frames(context, input, cluster),
        };
        if filled == cluster.len() {
            return Ok(());
        }
        Err(source.damaged("compressed data does not decompress to a cluster"))
    }
}

/// Decompresses frame after frame until the cluster is full. The input is padded to a sector, so
/// its end is found by asking for the length of each frame. Returns the bytes written.
fn zstd_frames(context: &mut zstd_safe::DCtx<'_>, input: &[u8], cluster: &mut [u8]) -> usize {
    let (mut read, mut filled) = (0, 0);
    while filled < cluster.len() {
        let Ok(frame) = zstd_safe::find_frame_compressed_size(&input[read..]) else { break };
        let frame_end = read.saturating_add(frame);
        let Some(bytes) = input.get(read..frame_end).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        let Ok(written) = context.decompress(&mut cluster[filled..], bytes) else { break };
        read = frame_end;
        filled += written;
    }
    filled
}
