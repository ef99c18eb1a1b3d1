//! Owns [`Capture`], the hand on a running packet capture. It must not read packets; the holder does.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

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
    /// None if it was the caller who opened the file.
    path: Option<PathBuf>,
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
        let capture = Self::to_file(client, vm, file.as_fd()).await?;
        Ok(Self { path: Some(path.to_owned()), ..capture })
    }

    pub(crate) async fn to_file(
        client: &Client,
        vm: Option<&Name>,
        file: BorrowedFd<'_>,
    ) -> Result<Self> {
        Ok(Self { hold: client.capture(vm, file).await?, path: None })
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

    /// Ends the capture and removes its file: for the end of a test that went well. One that fails on
    /// its way there, by a panic or by `?`, drops the capture instead, which leaves the file, with
    /// whole records. A file that the caller opened stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be removed.
    ///
    /// ```no_run
    /// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let capture = cluster.capture("target/election.pcap").await?;
    /// cluster.vm("node-1")?.ssh("./elect").await?; // what fails here leaves the packets to look at
    /// capture.discard().await
    /// # }
    /// ```
    pub async fn discard(self) -> Result<()> {
        let Self { hold, path } = self;
        // What could not be written is not wanted either.
        drop(hold.stop().await);
        match path.map(|path| (std::fs::remove_file(&path), path)) {
            Some((Err(e), path)) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, e))
            }
            _ => Ok(()),
        }
    }
}
