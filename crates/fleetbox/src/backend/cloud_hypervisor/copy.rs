//! Owns copying the file of a disk that nobody writes to just now: a clone where the file system can,
//! else its data without its holes. It must not know what is in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// As much as one call is asked for.
const CHUNK_BYTES: usize = 1 << 30;

/// Gives the file at `to` the content of the one at `from`.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).truncate(true).open(to)?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    copy_data(&source, &target)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    ftruncate(target, length)?;
    let mut at = 0;
    while let Some(begin) = found(seek(source, SeekFrom::Data(at)))? {
        let end = found(seek(source, SeekFrom::Hole(begin)))?.unwrap_or(length);
        at = begin;
        while at < end {
            let (mut read_at, mut write_at) = (at, at);
            let left = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let copied =
                copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), left)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += copied as u64;
        }
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
    use std::os::unix::fs::{FileExt, MetadataExt};

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
}
