//! Owns the qcow2 header: which images we can read and which we refuse, and why.
//! It must not read tables or clusters.

use super::{MAGIC, Source};
use crate::error::Result;

/// A disk larger than this is a damaged header, not a disk.
const SIZE_BYTES_MAX: u64 = 64 << 40;
/// QEMU's own bound (`QCOW_MAX_L1_SIZE`), so no image it makes is refused.
const L1_BYTES_MAX: u64 = 32 << 20;
const HEADER_V2_BYTES: usize = 72;
const HEADER_V3_BYTES: usize = 104;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate without a zlib header.
    Deflate,
    Zstd,
}

#[derive(Debug, Clone)]
pub(super) struct Header {
    /// Version 3 gave the lowest bit of a table entry the meaning "reads as zeros".
    pub has_zero_flag: bool,
    /// What is not in it is in the file it lies on.
    pub has_backing: bool,
    pub cluster_bits: u32,
    pub size_bytes: u64,
    pub l1_offset: u64,
    /// Entries needed to cover the disk; the table may have more.
    pub l1_entries: usize,
    pub compression: Compression,
}

impl Header {
    /// The header of an image that is whole in itself.
    pub(super) fn read(source: &Source<'_>) -> Result<Self> {
        let header = Self::read_overlay(source)?;
        if header.has_backing {
            return Err(source.unsupported("it needs a backing file"));
        }
        Ok(header)
    }

    /// The same of one that may lie on another.
    pub(super) fn read_overlay(source: &Source<'_>) -> Result<Self> {
        let mut bytes = [0u8; HEADER_V3_BYTES + 8];
        let present = usize::try_from(source.length_bytes).unwrap_or(usize::MAX).min(bytes.len());
        source.read_at(&mut bytes[..present], 0)?;
        if bytes[..4] != MAGIC {
            return Err(source.damaged("it does not begin as one"));
        }
        if present < HEADER_V2_BYTES {
            return Err(source.damaged("its header is cut off"));
        }
        let version = be32(&bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(source.unsupported(&format!("version {version} is unknown")));
        }
        let has_zero_flag = version == 3;
        if be32(&bytes, 32) != 0 {
            return Err(source.unsupported("it is encrypted"));
        }
        let cluster_bits = be32(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(source.damaged(&format!("clusters of 2^{cluster_bits} bytes do not exist")));
        }
        let compression = if has_zero_flag {
            compression(source, &bytes[..present])?
        } else {
            Compression::Deflate
        };
        let size_bytes = be64(&bytes, 24);
        if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX {
            return Err(source.damaged(&format!("a disk of {size_bytes} bytes makes no sense")));
        }
        let l1_entries = size_bytes.div_ceil(1 << (2 * cluster_bits - 3));
        if l1_entries > u64::from(be32(&bytes, 36)) || l1_entries * 8 > L1_BYTES_MAX {
            return Err(source.damaged("its first table does not fit its size"));
        }
        Ok(Self {
            has_zero_flag,
            has_backing: be64(&bytes, 8) != 0,
            cluster_bits,
            size_bytes,
            l1_offset: be64(&bytes, 40),
            l1_entries: usize::try_from(l1_entries).unwrap_or(usize::MAX),
            compression,
        })
    }

    pub(super) fn cluster_bytes(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Entries in one second-level table: a cluster of 8-byte numbers.
    pub(super) fn l2_entries(&self) -> usize {
        1 << (self.cluster_bits - 3)
    }
}

/// Checks the feature bits of a version 3 header; `bytes` is what there is of it.
fn compression(source: &Source<'_>, bytes: &[u8]) -> Result<Compression> {
    if bytes.len() < HEADER_V3_BYTES {
        return Err(source.damaged("its header is cut off"));
    }
    let incompatible = be64(bytes, 72);
    let known = INCOMPATIBLE_DIRTY
        | INCOMPATIBLE_CORRUPT
        | INCOMPATIBLE_DATA_FILE
        | INCOMPATIBLE_COMPRESSION
        | INCOMPATIBLE_EXTENDED_L2;
    // A dirty image has only stale reference counts, which reading does not need.
    for (bit, refusal) in [
        (INCOMPATIBLE_CORRUPT, "it is marked as corrupt"),
        (INCOMPATIBLE_DATA_FILE, "its data is in another file"),
        (INCOMPATIBLE_EXTENDED_L2, "it has extended table entries"),
        (!known, "it has a feature that is unknown here"),
    ] {
        if incompatible & bit != 0 {
            return Err(source.unsupported(refusal));
        }
    }
    let header_bytes = be32(bytes, 100) as usize;
    if header_bytes < HEADER_V3_BYTES {
        return Err(source.damaged("its header is too short"));
    }
    let word = if header_bytes > HEADER_V3_BYTES { bytes.get(HEADER_V3_BYTES) } else { None };
    match (word.copied().unwrap_or(0), incompatible & INCOMPATIBLE_COMPRESSION != 0) {
        (0, false) => Ok(Compression::Deflate),
        (1, true) => Ok(Compression::Zstd),
        (other, _) => Err(source.unsupported(&format!("compression type {other} is unknown"))),
    }
}

/// Both expect `at` within `bytes`; callers pass constants checked against the length before.
fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |n, b| n << 8 | u64::from(*b))
}
