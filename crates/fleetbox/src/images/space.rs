//! Owns the question whether a disk has room for what is about to be written.
//! It must not write.

use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// Bytes an ordinary user may still write on the file system that holds the open file `fd`.
pub(crate) fn free_bytes_of(fd: impl AsFd, path: &Path) -> Result<u64> {
    let stat =
        rustix::fs::fstatvfs(fd).map_err(|e| Error::io("ask the space of", path, e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

pub(crate) fn too_little(action: &str, needed_bytes: u64, free_bytes: u64) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("{action}: it needs {} MiB, {} MiB are free", needed_bytes >> 20, free_bytes >> 20),
    )
    .hint(
        "free some space, `fleetbox image rm` what is not needed, or point FLEETBOX_HOME at a larger disk",
    )
}
