//! Owns the blocks that were written to a file and not flushed. It must not know who writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK_BYTES: usize = 4096;
/// More than this is written out without being asked for, as disks do whose cache is full.
const CACHE_BYTES_MAX: usize = 64 << 20;

type Block = Box<[u8; BLOCK_BYTES]>;

/// A file and what is not in it yet. Dropping it loses that.
pub(super) struct Cache {
    file: File,
    size_bytes: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Cache {
    /// Everything beyond the file's end, up to the size, reads as zeros.
    pub(super) fn new(file: File, size_bytes: u64) -> Self {
        Self { file, size_bytes, blocks: BTreeMap::new() }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn unflushed_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Fills `into` from `offset` on.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len())?;
        read_file(&self.file, offset, into)?;
        let end = offset + into.len() as u64;
        for (&number, block) in self.blocks.range(number(offset)..=number(end)) {
            let at = number * BLOCK_BYTES as u64;
            let (from, to) = (offset.max(at), end.min(at + BLOCK_BYTES as u64));
            if from < to {
                into[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&block[(from - at) as usize..(to - at) as usize]);
            }
        }
        Ok(())
    }

    /// Keeps `bytes`. They are in the file after the next flush, or sooner.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        let mut rest = bytes;
        let mut offset = offset;
        while !rest.is_empty() {
            let inside = (offset % BLOCK_BYTES as u64) as usize;
            let (part, after) = rest.split_at(rest.len().min(BLOCK_BYTES - inside));
            let whole = part.len() == BLOCK_BYTES;
            self.block(number(offset), whole)?[inside..inside + part.len()].copy_from_slice(part);
            offset += part.len() as u64;
            rest = after;
        }
        if self.unflushed_bytes() > CACHE_BYTES_MAX {
            self.write_out()?;
        }
        Ok(())
    }

    /// Brings everything into the file and the file to the host's disk.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.file.sync_data()
    }

    /// The cached block; the file's content unless all of it is to be overwritten.
    fn block(&mut self, number: u64, overwritten: bool) -> io::Result<&mut Block> {
        match self.blocks.entry(number) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(free) => {
                let mut block = Box::new([0; BLOCK_BYTES]);
                if !overwritten {
                    read_file(&self.file, number * BLOCK_BYTES as u64, &mut block[..])?;
                }
                Ok(free.insert(block))
            }
        }
    }

    /// Neighbours at once. What was written stays cached if any of it fails.
    fn write_out(&mut self) -> io::Result<()> {
        let mut run: Vec<u8> = Vec::new();
        let mut start = 0;
        let mut next = 0;
        for (&number, block) in &self.blocks {
            if number != next || run.len() >= CACHE_BYTES_MAX / 16 {
                self.file.write_all_at(&run, start)?;
                run.clear();
                start = number * BLOCK_BYTES as u64;
            }
            run.extend_from_slice(&block[..]);
            next = number + 1;
        }
        self.file.write_all_at(&run, start)?;
        self.blocks.clear();
        Ok(())
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

fn number(offset: u64) -> u64 {
    offset / BLOCK_BYTES as u64
}

/// Zeros beyond the end.
fn read_file(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    into[done..].fill(0);
    Ok(())
}
