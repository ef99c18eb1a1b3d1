//! Owns turning a qcow2 image into a sparse raw file, on all cores and with bounded memory.
//! It must not decide where the files are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::Source;
use super::cluster::Inflater;
use super::header::Header;
use super::table::{self, Mapping};
use crate::error::{Error, ErrorKind, Result};

/// What one thread works on at a time, unless a single cluster is larger: large enough for few
/// system calls, small enough to share the work out evenly.
const CHUNK_BYTES: usize = 1 << 20;
/// Zeros are left out in aligned pieces of this size: smaller ones cost more calls than they save.
const HOLE_BYTES: usize = 16 << 10;
/// More threads than this only fight over the disk.
const THREADS_MAX: usize = 8;

/// Writes the disk in `source_path` into `raw`, an empty file that becomes as long as the disk with
/// holes where it is zero. `progress` gets the bytes done and in all; `cancel` ends the work early
/// with an error. On any error `raw` is left half-written, for the caller to discard.
pub(crate) fn convert(
    source_path: &Path,
    raw: &File,
    mut progress: impl FnMut(u64, u64),
    cancel: &AtomicBool,
) -> Result<()> {
    let file = File::open(source_path).map_err(|e| Error::io("open image", source_path, e))?;
    let source = Source::new(&file, source_path)?;
    let header = Header::read(&source)?;
    let l1 = table::read_l1(&source, &header)?;
    let work = Work { source, header, l1, raw, next: AtomicUsize::new(0), cancel };
    let total_bytes = work.mapped_bytes()?;
    work.check_space(total_bytes)?;
    raw.set_len(work.header.size_bytes.next_multiple_of(512)).map_err(|e| work.write_error(e))?;

    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let (sender, done) = mpsc::channel::<u64>();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (sender, work) = (sender.clone(), &work);
                scope.spawn(move || work.run(&sender))
            })
            .collect();
        drop(sender);
        let mut done_bytes = 0;
        for bytes in done {
            done_bytes += bytes;
            progress(done_bytes, total_bytes);
        }
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Internal, "convert an image: a thread panicked"))
            })
        })
    })
}

struct Work<'a> {
    source: Source<'a>,
    header: Header,
    l1: Vec<u64>,
    raw: &'a File,
    /// The next chunk nobody has taken yet; set past the end by whoever fails.
    next: AtomicUsize,
    cancel: &'a AtomicBool,
}

impl Work<'_> {
    fn chunk_clusters(&self) -> usize {
        (CHUNK_BYTES >> self.header.cluster_bits).clamp(1, self.header.l2_entries())
    }

    fn chunks_per_l2(&self) -> usize {
        self.header.l2_entries() / self.chunk_clusters()
    }

    /// Counts what is mapped to data, and refuses an image whose tables name the same data again
    /// and again: it would fill the disk from a small file.
    fn mapped_bytes(&self) -> Result<u64> {
        let (mut plain, mut compressed) = (0u64, 0u64);
        for l2_offset in self.l1.iter().filter(|offset| **offset != 0) {
            self.check_cancel()?;
            let entries = self.header.l2_entries();
            for mapping in table::read_mappings(&self.source, &self.header, *l2_offset, 0, entries)?
            {
                match mapping {
                    Mapping::Absent | Mapping::Zero => {}
                    Mapping::Plain { .. } => plain += 1,
                    Mapping::Compressed { .. } => compressed += 1,
                }
            }
        }
        // The shortest deflate or zstd stream that fills a cluster of 512 bytes has over 4 bytes.
        if plain > self.source.length_bytes.div_ceil(self.header.cluster_bytes() as u64)
            || compressed > self.source.length_bytes / 4
        {
            return Err(self.source.damaged("its tables claim more data than it has"));
        }
        Ok((plain + compressed) << self.header.cluster_bits)
    }

    fn check_space(&self, needed_bytes: u64) -> Result<()> {
        let free_bytes = crate::images::space::free_bytes_of(self.raw, self.source.path)?;
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(crate::images::space::too_little(
            &format!("unpack the image {}", self.source.path.display()),
            needed_bytes,
            free_bytes,
        ))
    }

    fn check_cancel(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Io,
                format!("convert {}: cancelled", self.source.path.display()),
            ));
        }
        Ok(())
    }

    fn write_error(&self, error: std::io::Error) -> Error {
        Error::io("unpack image", self.source.path, error)
    }

    /// One thread's life: take a chunk, convert it, until none is left or one failed.
    fn run(&self, done: &mpsc::Sender<u64>) -> Result<()> {
        let result = self.run_chunks(done);
        if result.is_err() {
            self.next.store(usize::MAX / 2, Ordering::Relaxed);
        }
        result
    }

    fn run_chunks(&self, done: &mpsc::Sender<u64>) -> Result<()> {
        let mut inflater = Inflater::new(self.header.compression)?;
        let mut buffer = vec![0; self.chunk_clusters() << self.header.cluster_bits];
        let chunks_per_l2 = self.chunks_per_l2();
        loop {
            self.check_cancel()?;
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(l2_offset) = self.l1.get(chunk / chunks_per_l2) else { return Ok(()) };
            if *l2_offset == 0 {
                // Skip the rest of this table in one step; others may skip too, which is harmless.
                let next_table = (chunk / chunks_per_l2 + 1) * chunks_per_l2;
                self.next.fetch_max(next_table, Ordering::Relaxed);
                continue;
            }
            let bytes = self.convert_chunk(chunk, *l2_offset, &mut inflater, &mut buffer)?;
            if bytes > 0 && done.send(bytes).is_err() {
                return Ok(());
            }
        }
    }

    /// Converts one chunk and returns the bytes of mapped clusters in it.
    fn convert_chunk(
        &self,
        chunk: usize,
        l2_offset: u64,
        inflater: &mut Inflater,
        buffer: &mut [u8],
    ) -> Result<u64> {
        let first = chunk % self.chunks_per_l2() * self.chunk_clusters();
        let mappings = table::read_mappings(
            &self.source,
            &self.header,
            l2_offset,
            first,
            self.chunk_clusters(),
        )?;
        let disk_offset = chunk as u64 * buffer.len() as u64;
        let length = self.header.size_bytes.next_multiple_of(512).saturating_sub(disk_offset);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let is_data = |mapping: &&Mapping| !matches!(mapping, Mapping::Absent | Mapping::Zero);
        let mapped = mappings.iter().filter(is_data).count();
        if mapped > 0 && length > 0 {
            self.fill(&mappings, inflater, buffer)?;
            write_sparse(self.raw, &buffer[..length], disk_offset)
                .map_err(|e| self.write_error(e))?;
        }
        Ok((mapped as u64) << self.header.cluster_bits)
    }

    fn fill(&self, mappings: &[Mapping], inflater: &mut Inflater, buffer: &mut [u8]) -> Result<()> {
        let cluster_bytes = self.header.cluster_bytes();
        let mut at = 0;
        while let Some(mapping) = mappings.get(at) {
            let mut run = 1;
            let begin = at * cluster_bytes;
            match *mapping {
                Mapping::Absent | Mapping::Zero => buffer[begin..begin + cluster_bytes].fill(0),
                Mapping::Compressed { offset, length } => inflater.inflate(
                    &self.source,
                    &self.header,
                    (offset, length),
                    &mut buffer[begin..begin + cluster_bytes],
                )?,
                Mapping::Plain { offset } => {
                    // Neighbours on the disk are mostly neighbours in the file: one read for all.
                    let follows = |(i, next): (usize, &Mapping)| {
                        let expected = offset.saturating_add((i * cluster_bytes) as u64);
                        *next == Mapping::Plain { offset: expected }
                    };
                    run = mappings[at..].iter().enumerate().take_while(|x| follows(*x)).count();
                    let bytes = self.plain_bytes(offset, run * cluster_bytes);
                    let (data, rest) =
                        buffer[begin..begin + run * cluster_bytes].split_at_mut(bytes);
                    self.source.read_at(data, offset)?;
                    rest.fill(0);
                }
            }
            at += run;
        }
        Ok(())
    }

    /// QEMU does not pad the file: its last cluster may end early and reads as zeros from there.
    fn plain_bytes(&self, offset: u64, wanted: usize) -> usize {
        let rest = self.source.length_bytes.saturating_sub(offset);
        let missing = (wanted as u64).saturating_sub(rest);
        if rest > 0 && missing < self.header.cluster_bytes() as u64 {
            wanted - missing as usize
        } else {
            wanted
        }
    }
}

/// Writes `data` at `offset`, leaving holes where aligned pieces are zero.
pub(crate) fn write_sparse(raw: &File, data: &[u8], offset: u64) -> std::io::Result<()> {
    let mut begin = 0;
    while begin < data.len() {
        let piece = &data[begin..data.len().min(begin + HOLE_BYTES)];
        if is_zero(piece) {
            begin += piece.len();
            continue;
        }
        let mut end = begin + piece.len();
        while let Some(next) = data.get(end..data.len().min(end + HOLE_BYTES)) {
            if next.is_empty() || is_zero(next) {
                break;
            }
            end += next.len();
        }
        raw.write_all_at(&data[begin..end], offset + begin as u64)?;
        begin = end;
    }
    Ok(())
}

/// `data` is at most one piece. The comparison of slices is memcmp, fast in every build profile, and
/// real data ends it at its first bytes.
fn is_zero(data: &[u8]) -> bool {
    static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    ZEROS.get(..data.len()).is_some_and(|zeros| data == zeros)
}
