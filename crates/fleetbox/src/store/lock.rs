//! Owns kernel file locks: who holds one is known by the kernel, so a killed process never leaves
//! one behind. It must not store anything in the locked files.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::error::{Error, Result};

/// A held exclusive lock; dropping it, or dying, releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Error::io("open lock", path, e))
}

/// Takes the lock if nobody has it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<Lock>> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
    }
}

/// Waits for a lock that is only ever held for an instant; it blocks the thread.
pub(crate) fn lock_briefly(path: &Path) -> Result<Lock> {
    let file = open(path)?;
    file.lock().map_err(|e| Error::io("lock", path, e))?;
    Ok(Lock { _file: file })
}

/// Waits for the lock without holding up the runtime; `waiting` is called once if somebody has it.
/// When the future is dropped while it waits, a thread stays in the kernel until the lock comes
/// free and gives it back at once.
pub(crate) async fn lock(path: &Path, waiting: impl FnOnce()) -> Result<Lock> {
    if let Some(lock) = try_lock(path)? {
        return Ok(lock);
    }
    waiting();
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let file = open(&path)?;
        file.lock().map_err(|e| Error::io("lock", &path, e))?;
        Ok(Lock { _file: file })
    })
    .await
    .map_err(|e| Error::new(crate::ErrorKind::Internal, "the lock's thread died").source(e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_refused_until_the_first_drops() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = try_lock(&path).unwrap();
        assert!(first.is_some());
        assert!(try_lock(&path).unwrap().is_none());
        drop(first);
        assert!(try_lock(&path).unwrap().is_some());
    }
}
