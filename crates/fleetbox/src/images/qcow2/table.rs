//! Owns the two levels of mapping tables: from a place on the disk to a place in the file.
//! It must not read data clusters.

use super::Source;
use super::header::Header;
use crate::error::Result;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const FLAG_COMPRESSED: u64 = 1 << 62;
const FLAG_ZERO: u64 = 1;

/// Where one cluster of the disk has its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nowhere: it reads as what the file lies on, and as zeros if that is nothing.
    Absent,
    /// It reads as zeros.
    Zero,
    Plain {
        offset: u64,
    },
    /// `length` is rounded up to sectors, so the bytes may run past the stream and past the file.
    Compressed {
        offset: u64,
        length: usize,
    },
}

/// Reads the first-level table: for each stretch of the disk the offset of its second-level table,
/// 0 for none. Two stretches with one table would be a loop in disguise and are refused.
pub(super) fn read_l1(source: &Source<'_>, header: &Header) -> Result<Vec<u64>> {
    let table: Vec<u64> = read_entries(source, header.l1_offset, header.l1_entries)?
        .into_iter()
        .map(|entry| entry & OFFSET_MASK)
        .collect();
    let mut used: Vec<u64> = table.iter().copied().filter(|offset| *offset != 0).collect();
    used.sort_unstable();
    let l2_bytes = header.cluster_bytes() as u64;
    if used.iter().any(|offset| offset % l2_bytes != 0) {
        return Err(source.damaged("a table is not where a table can be"));
    }
    if used.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(source.damaged("one table serves two places of the disk"));
    }
    Ok(table)
}

/// Reads `count` mappings from the second-level table at `l2_offset`, beginning with entry `first`.
pub(super) fn read_mappings(
    source: &Source<'_>,
    header: &Header,
    l2_offset: u64,
    first: usize,
    count: usize,
) -> Result<Vec<Mapping>> {
    read_entries(source, l2_offset.saturating_add(first as u64 * 8), count)?
        .into_iter()
        .map(|entry| mapping(source, header, entry))
        .collect()
}

fn read_entries(source: &Source<'_>, offset: u64, count: usize) -> Result<Vec<u64>> {
    // The bound comes first: nothing is allocated for a table that the file cannot hold.
    if (count as u64).saturating_mul(8).saturating_add(offset) > source.length_bytes {
        return Err(source.damaged("a table is beyond its end (truncated download?)"));
    }
    let mut bytes = vec![0; count * 8];
    source.read_at(&mut bytes, offset)?;
    let (entries, _) = bytes.as_chunks::<8>();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

fn mapping(source: &Source<'_>, header: &Header, entry: u64) -> Result<Mapping> {
    if entry & FLAG_COMPRESSED != 0 {
        // The higher the cluster bits, the more bits count sectors and the fewer hold the offset.
        let offset_bits = 62 - (header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & (FLAG_COMPRESSED - 1)) >> offset_bits) + 1;
        let length = (sectors * 512 - offset % 512) as usize;
        if offset >= source.length_bytes {
            return Err(source.damaged("compressed data is beyond its end (truncated download?)"));
        }
        return Ok(Mapping::Compressed { offset, length });
    }
    let offset = entry & OFFSET_MASK;
    if header.has_zero_flag && entry & FLAG_ZERO != 0 {
        return Ok(Mapping::Zero);
    }
    if offset == 0 {
        return Ok(Mapping::Absent);
    }
    if !offset.is_multiple_of(header.cluster_bytes() as u64) {
        return Err(source.damaged("a cluster is not where a cluster can be"));
    }
    Ok(Mapping::Plain { offset })
}
