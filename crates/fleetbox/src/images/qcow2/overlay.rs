//! Owns turning a raw image and the overlays that lie on it into one sparse raw file. It must not decide
//! where the files are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::Source;
use super::cluster::Inflater;
use super::header::Header;
use super::table::{self, Mapping};
use crate::error::{Error, Result};

const BLOCK_BYTES: usize = 1 << 20;

/// Writes into `raw`, an empty file, what a disk with these overlays on the raw image at `base` reads as;
/// the first overlay is the topmost. The file is as long as the topmost says.
pub(crate) fn flatten(base: &Path, layers: &[PathBuf], raw: &File) -> Result<()> {
    copy_sparse(base, raw).map_err(|e| Error::io("copy", base, e))?;
    for layer in layers.iter().rev() {
        lay(layer, raw)?;
    }
    Ok(())
}

/// Copies a file to one that is not there, holes and all, until it is on the disk.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = File::create_new(to).and_then(|file| {
        copy_sparse(from, &file)?;
        file.sync_all()
    });
    copied.map_err(|e| Error::io("write", to, e))
}

/// Holes stay holes.
fn copy_sparse(from: &Path, raw: &File) -> std::io::Result<()> {
    let file = File::open(from)?;
    let length = file.metadata()?.len();
    raw.set_len(length)?;
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            // Only a hole is left.
            Err(rustix::io::Errno::NXIO) => break,
            found => found?,
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
        copy_range(&file, raw, data, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, mut at: u64, end: u64) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    while at < end {
        let length = block.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut block[..length], at)?;
        to.write_all_at(&block[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

/// Writes what is in the overlay over what `raw` has.
fn lay(overlay: &Path, raw: &File) -> Result<()> {
    let file = File::open(overlay).map_err(|e| Error::io("open", overlay, e))?;
    let source = Source::new(&file, overlay)?;
    let header = Header::read_overlay(&source)?;
    let written = |e| Error::io("flatten", overlay, e);
    raw.set_len(header.size_bytes.next_multiple_of(512)).map_err(written)?;
    let cluster_bytes = header.cluster_bytes();
    let (mut inflater, mut buffer) = (Inflater::new(header.compression)?, vec![0; cluster_bytes]);
    for (number, l2_offset) in table::read_l1(&source, &header)?.into_iter().enumerate() {
        if l2_offset == 0 {
            continue;
        }
        let entries = header.l2_entries();
        let mappings = table::read_mappings(&source, &header, l2_offset, 0, entries)?;
        for (at, mapping) in mappings.into_iter().enumerate() {
            let disk_offset = ((number * entries + at) as u64) << header.cluster_bits;
            let left = header.size_bytes.next_multiple_of(512).saturating_sub(disk_offset);
            let length = cluster_bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
            match mapping {
                Mapping::Absent => continue,
                Mapping::Zero => buffer.fill(0),
                Mapping::Plain { offset } => read_plain(&source, offset, &mut buffer)?,
                Mapping::Compressed { offset, length } => {
                    inflater.inflate(&source, &header, (offset, length), &mut buffer)?;
                }
            }
            raw.write_all_at(&buffer[..length], disk_offset).map_err(written)?;
        }
    }
    Ok(())
}

/// QEMU does not pad the file: its last cluster may end early and reads as zeros from there.
fn read_plain(source: &Source<'_>, offset: u64, cluster: &mut [u8]) -> Result<()> {
    let rest = usize::try_from(source.length_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
    let (data, padding) = cluster.split_at_mut(rest.min(cluster.len()));
    if data.is_empty() {
        return Err(source.damaged("it refers to data beyond its end"));
    }
    padding.fill(0);
    source.read_at(data, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn tool(program: &str, args: &[&str]) -> bool {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    }

    #[test]
    fn a_chain_reads_as_qemu_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let text = |name: &str| path(name).to_str().unwrap().to_owned();
        if !tool("qemu-img", &["--version"]) || !tool("qemu-io", &["--version"]) {
            crate::skip::skipped("no qemu-img and qemu-io on PATH");
            return;
        }
        let base: Vec<u8> = (0..3u32 << 20).map(|n| (n / 512) as u8 | 1).collect();
        std::fs::write(path("base"), base).unwrap();
        let base = path("base");
        crate::prepare::disk::create_overlay(&path("low"), &base, 8 << 20).unwrap();
        crate::prepare::disk::create_overlay_on_layer(&path("top"), "low", 8 << 20).unwrap();
        for (disk, commands) in [
            ("low", ["write -P 7 0 100k", "write -z 1M 128k", "write -P 9 5M 64k"]),
            ("top", ["write -P 8 64k 4k", "write -z 5M 64k", "write -P 3 7M 1M"]),
        ] {
            for command in commands {
                assert!(tool("qemu-io", &["-f", "qcow2", "-c", command, &text(disk)]), "{command}");
            }
        }
        let raw = File::create(path("ours")).unwrap();
        flatten(&base, &[path("top"), path("low")], &raw).unwrap();
        assert!(tool("qemu-img", &["convert", "-O", "raw", &text("top"), &text("theirs")]));
        let (ours, theirs) = (std::fs::read(path("ours")), std::fs::read(path("theirs")));
        assert!(ours.unwrap() == theirs.unwrap(), "they differ");
    }
}
