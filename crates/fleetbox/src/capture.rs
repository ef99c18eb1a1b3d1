//! Owns [`Capture`], the hand on a running packet capture, and which files of captures are kept. It
//! must not read packets; the holder does.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::client::{CaptureHold, Client};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;

/// The holder writes what has passed in milliseconds; a full disk may take its time.
const LAST_WRITE_WAIT: Duration = Duration::from_secs(5);

/// A packet capture that goes on until it is [stopped](Capture::stop) or dropped, or its process
/// ends. Made by [`Vm::capture`](crate::Vm::capture) and
/// [`Cluster::capture`](crate::Cluster::capture).
#[derive(Debug)]
#[must_use = "the capture ends when this is dropped"]
pub struct Capture {
    /// Until it is stopped.
    hold: Option<CaptureHold>,
    /// The file it made, unless it was open already.
    file: Option<CaptureFile>,
    only_on_failure: bool,
}

/// What a capture has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Captured {
    /// Frames in the file.
    pub frames: u64,
    /// Frames that came faster than they could be written, and are missing.
    pub lost: u64,
}

impl Capture {
    pub(crate) async fn to_path(client: &Client, vm: Option<&Name>, path: &Path) -> Result<Self> {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let (file, made) = opened
            .and_then(|file| CaptureFile::of(path, &file).map(|made| (file, made)))
            .map_err(|e| Error::io("write", path, e))?;
        let mut capture = Self::to_file(client, vm, file.as_fd()).await?;
        capture.file = Some(made);
        Ok(capture)
    }

    pub(crate) async fn to_file(
        client: &Client,
        vm: Option<&Name>,
        file: BorrowedFd<'_>,
    ) -> Result<Self> {
        let hold = Some(client.capture(vm, file).await?);
        Ok(Self { hold, file: None, only_on_failure: false })
    }

    /// Keeps the file only if the test fails. When this is stopped or dropped and the thread is not
    /// panicking, the file is removed; else it stays, with all that had passed. A panic waits for that,
    /// 5 s at most.
    ///
    /// A test that fails by what it returns does not panic: in one of
    /// [`#[fleetbox::test]`](macro@crate::test) the file stays then, too; elsewhere, `unwrap` what may fail
    /// while a capture goes on. A capture to what was open already
    /// ([`Vm::capture_to`](crate::Vm::capture_to)) has no file of its own, and nothing is removed.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let _capture = vm.capture("why.pcap").await?.only_on_failure();
    /// assert_eq!(vm.ssh("curl -s http://node-2/").await?, "hello");
    /// # Ok(())
    /// # }
    /// ```
    pub fn only_on_failure(mut self) -> Self {
        self.only_on_failure = true;
        self
    }

    /// Writes what has passed until now, and ends the capture.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it could not be written to its end;
    /// [`ErrorKind::HolderDied`](crate::ErrorKind::HolderDied) if the last VM of the cluster ended
    /// before. The file has whole records all the same.
    pub async fn stop(mut self) -> Result<Captured> {
        let Some(hold) = self.hold.take() else {
            return Err(Error::new(ErrorKind::Internal, "stop a capture twice"));
        };
        let (frames, lost) = hold.stop().await?;
        Ok(Captured { frames, lost })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let Some(file) = self.file.take().filter(|_| self.only_on_failure) else { return };
        let failing = std::thread::panicking();
        let in_test = TEST.with_borrow(Option::is_some);
        if (failing || in_test)
            && let Some(hold) = self.hold.take()
            && let Err(e) = hold.end_blocking(LAST_WRITE_WAIT)
        {
            tracing::warn!("wait for the last of {}: {e}", file.path.display());
        }
        if failing {
            return;
        }
        // Whether a test failed is known at its end.
        match TEST.with_borrow_mut(|test| test.as_mut().map(|files| files.push(file.clone()))) {
            Some(()) => {}
            None => file.remove(),
        }
    }
}

/// A file that a capture made.
#[derive(Debug, Clone)]
struct CaptureFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl CaptureFile {
    fn of(path: &Path, file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        // The process may go elsewhere meanwhile.
        let path = std::path::absolute(path)?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }

    /// Removes it, unless another file or a pipe is there.
    fn remove(&self) {
        let ours = self.path.symlink_metadata().is_ok_and(|there| {
            there.is_file() && (there.dev(), there.ino()) == (self.device, self.inode)
        });
        if ours && let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!("remove {}: {e}", self.path.display());
        }
    }
}

thread_local! {
    /// What goes if the test that runs on this thread succeeds.
    static TEST: RefCell<Option<Vec<CaptureFile>>> = const { RefCell::new(None) };
}

/// A test begins on this thread: the files of its captures go or stay at its end.
pub(crate) fn begin_test() {
    TEST.set(Some(Vec::new()));
}

/// It is over.
pub(crate) fn end_test(failed: bool) {
    let files = TEST.take().unwrap_or_default();
    if !failed {
        files.iter().for_each(CaptureFile::remove);
    }
}
