//! Owns files with holes: copying one that nobody writes to just now, as a clone where the file system can
//! make one, and giving back the room of zeros. It must not know what is in them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    FallocateFlags, SeekFrom, copy_file_range, fallocate, ftruncate, ioctl_ficlone, seek,
};
use rustix::io::Errno;

/// As much as one call is asked for.
const COPY_BYTES: usize = 1 << 30;
/// A hole is worth the trouble from this size on.
const HOLE_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 4 << 20;

/// Gives the file at `to` the content of the one at `from`.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).truncate(true).open(to)?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    ftruncate(&target, source.metadata()?.len())?;
    each_extent(&source, |mut at, end| {
        while at < end {
            let (mut read_at, mut write_at) = (at, at);
            let left = usize::try_from(end - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let copied =
                copy_file_range(&source, Some(&mut read_at), &target, Some(&mut write_at), left)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += copied as u64;
        }
        Ok(())
    })
}

/// Makes holes of what is zero in the file, where the file system can.
pub(super) fn dig(file: &File) -> io::Result<()> {
    let mut bytes = vec![0; READ_BYTES];
    each_extent(file, |mut at, end| {
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
            let bytes = &mut bytes[..left];
            file.read_exact_at(bytes, at)?;
            let mut block_at = at;
            for block in bytes.chunks(HOLE_BYTES) {
                let length = block.len() as u64;
                if block.iter().all(|byte| *byte == 0) {
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    match fallocate(file, hole, block_at, length) {
                        Err(Errno::OPNOTSUPP) => return Ok(()),
                        dug => dug?,
                    }
                }
                block_at += length;
            }
            at += left as u64;
        }
        Ok(())
    })
}

/// Calls back with the begin and end of each part that is no hole.
fn each_extent(file: &File, mut extent: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut at = 0;
    while let Some(begin) = found(seek(file, SeekFrom::Data(at)))? {
        at = found(seek(file, SeekFrom::Hole(begin)))?.unwrap_or(length);
        extent(begin, at)?;
    }
    Ok(())
}

/// Behind the last there is none (lseek(2)).
fn found(sought: rustix::io::Result<u64>) -> io::Result<Option<u64>> {
    match sought {
        Err(Errno::NXIO) => Ok(None),
        sought => Ok(sought.map(Some)?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_content_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        for at in [0, 5 << 20, (9 << 20) + 123] {
            file.write_all_at(&[7; 10_000], at).unwrap();
        }
        file.set_len(64 << 20).unwrap();
        std::fs::write(&to, vec![1; 1 << 20]).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(to.metadata().unwrap().blocks() < 1 << 11, "holes were filled");

        std::fs::write(&from, "").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 0);
    }

    #[test]
    fn zeros_become_holes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut content = vec![0; (9 << 20) + 123];
        for at in [0, 70_000, (5 << 20) - 1, (9 << 20) + 122] {
            content[at] = 7;
        }
        std::fs::write(&path, &content).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        dig(&file).unwrap();
        assert!(std::fs::read(&path).unwrap() == content);
        assert!(file.metadata().unwrap().blocks() < 1 << 11, "nothing was given back");
    }
}
