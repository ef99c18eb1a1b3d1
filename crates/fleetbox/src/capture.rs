//! Owns [`Capture`], the hand on a running packet capture. It must not read packets; the holder does.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::control::client::{CaptureHold, Client};
use crate::error::{Error, Result};
use crate::spec::Name;

/// A packet capture that goes on until it is [stopped](Capture::stop) or dropped, or its process
/// ends. Made by [`Vm::capture`](crate::Vm::capture) and
/// [`Cluster::capture`](crate::Cluster::capture).
#[derive(Debug)]
#[must_use = "the capture ends when this is dropped"]
pub struct Capture {
    hold: CaptureHold,
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
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(|e| Error::io("write", path, e))?;
        Self::to_file(client, vm, file.as_fd()).await
    }

    pub(crate) async fn to_file(
        client: &Client,
        vm: Option<&Name>,
        file: BorrowedFd<'_>,
    ) -> Result<Self> {
        Ok(Self { hold: client.capture(vm, file).await? })
    }

    /// Writes what has passed until now, and ends the capture.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it could not be written to its end;
    /// [`ErrorKind::HolderDied`](crate::ErrorKind::HolderDied) if the last VM of the cluster ended
    /// before. The file has whole records all the same.
    pub async fn stop(self) -> Result<Captured> {
        let (frames, lost) = self.hold.stop().await?;
        Ok(Captured { frames, lost })
    }
}
