//! Owns keeping a member's console from filling the host's disk: of one that grows without end the beginning is
//! given back. It must not read it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::backend::Ended;
use crate::sys;

/// What a console may take of the disk, and what of its end is left then.
const BYTES_MAX: u64 = 64 * 1024 * 1024;
const BYTES_LEFT: u64 = 16 * 1024 * 1024;
/// A serial line at full speed writes less than the bound meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Unit of [`MetadataExt::blocks`] (stat(2)).
const BLOCK_BYTES: u64 = 512;
/// Holes are as large as this at least.
const PAGE_BYTES: u64 = 4096;

/// Looks at it until the machine has ended.
pub(super) async fn keep_bounded(console: PathBuf, mut ended: Ended) {
    loop {
        tokio::select! {
            // An error means that the machine is gone.
            _ = ended.wait_for(Option::is_some) => return,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
        match bound(&console) {
            Ok(0) => {}
            Ok(given_back) => {
                log::warn!(
                    "{}: {given_back} bytes of its beginning are given back",
                    console.display()
                );
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return log::warn!("bound {}: {e}", console.display()),
        }
    }
}

/// Makes a hole of the beginning: the monitor writes on where it was, and every reader's place stays right.
fn bound(console: &std::path::Path) -> io::Result<u64> {
    let file = File::options().write(true).open(console)?;
    let metadata = file.metadata()?;
    if metadata.blocks() * BLOCK_BYTES <= BYTES_MAX {
        return Ok(0);
    }
    let hole = metadata.len().saturating_sub(BYTES_LEFT) / PAGE_BYTES * PAGE_BYTES;
    sys::fd::give_back(&file, hole)?;
    Ok(hole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_flood_takes_no_more_than_its_bound_and_its_end_stays() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"first\n").unwrap();
        assert_eq!(bound(file.path()).unwrap(), 0);
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..=BYTES_MAX >> 20 {
            file.write_all(&chunk).unwrap();
        }
        file.write_all(b"last\n").unwrap();
        file.as_file().sync_all().unwrap();
        let before = file.as_file().metadata().unwrap().len();
        assert!(bound(file.path()).unwrap() > 0);
        let after = file.as_file().metadata().unwrap();
        assert_eq!(after.len(), before);
        assert!(after.blocks() * BLOCK_BYTES <= BYTES_LEFT + 2 * PAGE_BYTES);
        let end = crate::console::end(file.path(), 5).unwrap();
        assert_eq!(end, b"last\n");
    }
}
