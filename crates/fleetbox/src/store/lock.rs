//! Owns kernel file locks: who holds one is known by the kernel, so a killed process never leaves
//! one behind. It must not store anything in the locked files.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// A held shared lock: others may share it, and nobody takes it alone until the last has dropped it or
/// died.
#[derive(Debug)]
pub(crate) struct SharedLock {
    _file: File,
}

/// Shares the lock on a file that exists, unless somebody has it alone.
pub(crate) fn try_share(path: &Path) -> Result<Option<SharedLock>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    match file.try_lock_shared() {
        Ok(()) if is_current(&file, path) => Ok(Some(SharedLock { _file: file })),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
    }
}

/// A held exclusive lock; dropping it, or dying, releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    #[cfg_attr(not(test), expect(dead_code, reason = "held, not used"))]
    file: File,
}

/// Opens the lock file, making its directory anew if a tidier just removed it.
fn open(path: &Path) -> Result<File> {
    let open =
        // A shared lock takes the right to read where locks go over the network (flock(2), NFS).
        || {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
        };
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                super::whole::make_private_dir(dir)?;
            }
            open()
        }
        opened => opened,
    }
    .map_err(|e| Error::io("open lock", path, e))
}

/// Whether the locked file is still the one at `path`: whoever had the lock may have removed it,
/// and then the lock is worth nothing.
fn is_current(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Takes the lock if nobody has it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<Lock>> {
    loop {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) if is_current(&file, path) => return Ok(Some(Lock { file })),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path, e)),
        }
    }
}

/// Waits for a lock that is only ever held for an instant; it blocks the thread.
pub(crate) fn lock_briefly(path: &Path) -> Result<Lock> {
    loop {
        let file = open(path)?;
        file.lock().map_err(|e| Error::io("lock", path, e))?;
        if is_current(&file, path) {
            return Ok(Lock { file });
        }
    }
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
    tokio::task::spawn_blocking(move || lock_briefly(&path))
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "wait for a lock").source(e))?
}

/// A share in a file that counts for as long as anybody has one. Whoever lets go last removes it; if
/// they died, [`is_shared`] does.
#[derive(Debug)]
pub(crate) struct Share {
    file: File,
    path: PathBuf,
}

/// Takes a share, making the file if nobody has one. It waits only for those who look whether anybody
/// does.
pub(crate) fn share(path: &Path) -> Result<Share> {
    loop {
        let file = open(path)?;
        file.lock_shared().map_err(|e| Error::io("lock", path, e))?;
        if is_current(&file, path) {
            return Ok(Share { file, path: path.to_owned() });
        }
    }
}

/// Whether anybody has a share in the file; what nobody has is removed. Whose shares cannot be seen
/// counts as somebody's.
pub(crate) fn is_shared(path: &Path) -> Result<bool> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(true),
        Err(e) => return Err(Error::io("open lock", path, e)),
    };
    match file.try_lock() {
        Ok(()) => remove_locked(&file, path).map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
    }
}

/// Removes the file whose lock we have, unless another is there by now.
fn remove_locked(file: &File, path: &Path) -> Result<()> {
    if !is_current(file, path) {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

impl Share {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Where another has a share, ours alone goes (flock(2): the old lock is given up first). What
        // cannot be removed now is by whoever looks next.
        if self.file.try_lock().is_ok() {
            drop(remove_locked(&self.file, &self.path));
        }
        // A process forked at this moment has the file, too, until it runs its program.
        drop(self.file.unlock());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_counts_until_the_last_is_dropped_and_takes_the_file_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shares/web");
        let first = share(&path).unwrap();
        let second = share(&path).unwrap();
        assert!(is_shared(&path).unwrap());
        drop(first);
        assert!(is_shared(&path).unwrap() && path.exists());
        drop(second);
        assert!(!path.exists() && !is_shared(&path).unwrap());
    }

    #[test]
    fn a_share_left_by_the_dead_is_none_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web");
        std::fs::write(&path, "4096").unwrap();
        assert!(!is_shared(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn shares_taken_and_dropped_side_by_side_are_never_in_a_file_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let held = share(&path).unwrap();
                        assert!(is_shared(&path).unwrap());
                        assert!(is_current(held.file(), &path));
                    }
                });
            }
        });
        assert!(!path.exists());
    }

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

    #[test]
    fn a_lock_on_a_removedfile_is_not_taken_for_the_lock() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("cluster");
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("lock");
        let first = try_lock(&path).unwrap().unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || lock_briefly(&path).unwrap()
        });
        std::fs::remove_dir_all(&dir).unwrap();
        drop(first);
        let second = waiter.join().unwrap();
        assert!(is_current(&second.file, &path));
    }
}
