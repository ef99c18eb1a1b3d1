//! Owns getting a remote image into the cache: once per host, checked, resumed, tried again.
//! It must not choose what to fetch.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::{Origin, Record, Slot};
use super::transfer::{Failure, Transfer};
use super::work::{self, Cancel};
use super::{CachedImage, Settings, qcow2};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{ProgressSink, Stage};
use crate::spec::Arch;
use crate::store::lock;

/// Waits before the second and later tries. A transfer goes on where it broke off, so a few suffice.
const RETRY_DELAYS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(8),
];

/// A remote image and the slot it goes into.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub reference: String,
    pub arch: Arch,
    pub snapshot: String,
    pub url: String,
    /// The promised checksum of the file at `url`.
    pub sha256: Option<String>,
    pub slot: Slot,
}

/// The image from the cache, else from the network.
pub(super) async fn fetch(
    remote: Remote,
    settings: &Settings,
    progress: &ProgressSink,
) -> Result<CachedImage> {
    if let Some(image) = remote.slot.cached(remote.arch) {
        return Ok(image);
    }
    if settings.offline {
        return Err(Error::new(
            ErrorKind::Offline,
            format!("fetch the image {}: FLEETBOX_OFFLINE forbids it", remote.reference),
        )
        .hint(match super::build::suite(&remote.reference) {
            Some(_) => format!(
                "`fleetbox image build {}` makes one from Debian packages; or unset FLEETBOX_OFFLINE",
                remote.reference
            ),
            None => "unset FLEETBOX_OFFLINE, or `fleetbox image import` a file".to_owned(),
        }));
    }
    remote.slot.make_dir()?;
    let held = lock::lock(&remote.slot.lock(), || {
        progress.note(format!("waiting for another process that fetches {}", remote.reference));
    })
    .await?;
    if let Some(image) = remote.slot.cached(remote.arch) {
        return Ok(image);
    }
    progress.begin(Stage::Download);
    let progress = progress.clone();
    work::run("fetch an image", move |cancel| {
        // The lock moves to the thread: it may outlive the future and still be writing.
        let _held = held;
        fetch_blocking(&remote, &progress, cancel).map_err(|error| {
            if error.kind() == ErrorKind::Download {
                error.hint(without_network(&remote))
            } else {
                error
            }
        })
    })
    .await
}

fn without_network(remote: &Remote) -> String {
    if super::build::suite(&remote.reference).is_some() {
        format!(
            "build it from the host's Debian packages: `fleetbox image build {}`; or set FLEETBOX_MIRROR",
            remote.reference
        )
    } else {
        "fetch the file elsewhere and `fleetbox image import` it; or set FLEETBOX_MIRROR".to_owned()
    }
}

fn fetch_blocking(
    remote: &Remote,
    progress: &ProgressSink,
    cancel: &Cancel,
) -> Result<CachedImage> {
    let advance = |done, total| progress.advance(Stage::Download, done, total);
    let transfer = Transfer {
        url: &remote.url,
        part: remote.slot.part(),
        part_record: remote.slot.part_record(),
        cancel,
        progress: &advance,
    };
    let digest = with_retries(&transfer, cancel)?;
    if let Some(promised) = remote.sha256.as_deref().filter(|promised| *promised != digest) {
        transfer.discard()?;
        return Err(Error::new(
            ErrorKind::ChecksumMismatch,
            format!(
                "fetch the image {} from {}: its sha256 is {digest}, not {promised}",
                remote.reference, remote.url
            ),
        )
        .hint("nothing was kept; try again, and if it stays so, distrust the mirror or proxy"));
    }
    let record = Record {
        version: 0,
        reference: remote.reference.clone(),
        arch: remote.arch,
        snapshot: remote.snapshot.clone(),
        origin: Origin::Fetched,
        digest,
        size_bytes: 0,
        source: Some(remote.url.clone()),
        made_on: None,
        suite: None,
    };
    let image = store(&remote.slot, &transfer.part, record, Keep::Nothing, progress, cancel);
    // A whole file that is no image would only be found to be none again.
    if image.is_ok() || image.as_ref().is_err_and(|e| e.kind() == ErrorKind::ImageUnreadable) {
        transfer.discard()?;
    }
    image
}

/// Tries again, a little later each time, where that may help.
pub(crate) fn with_retries(transfer: &Transfer<'_>, cancel: &Cancel) -> Result<String> {
    let mut delays = RETRY_DELAYS.iter();
    loop {
        match transfer.run() {
            Ok(digest) => return Ok(digest),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Transient(error)) => {
                let Some(delay) = delays.next() else { return Err(error) };
                log::warn!("{}; trying again in {delay:?}", error.report());
                cancel.wait(*delay)?;
            }
        }
    }
}

/// What a disk image file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Qcow2,
}

/// Looks at the file's first bytes and refuses what is certainly no disk we can use.
pub(super) fn sniff(path: &Path) -> Result<Format> {
    let unreadable = |what: &str, hint: &str| {
        Err(Error::new(
            ErrorKind::ImageUnreadable,
            format!("use the image {}: {what}", path.display()),
        )
        .hint(hint))
    };
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| file.take(512).read_to_end(&mut first))
        .map_err(|e| Error::io("read image", path, e))?;
    let packed: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
    ];
    let foreign: [(&[u8], &str); 4] =
        [(b"KDMV", "VMDK"), (b"vhdxfile", "VHDX"), (b"conectix", "VHD"), (b"<!DOCTYPE", "HTML")];
    if first.is_empty() {
        return unreadable("it is empty", "fetch or build it again");
    }
    if first.starts_with(&qcow2::MAGIC) {
        return Ok(Format::Qcow2);
    }
    if let Some((_, name)) = packed.iter().find(|(magic, _)| first.starts_with(magic)) {
        return unreadable(&format!("it is packed with {name}"), "unpack it first");
    }
    if let Some((_, name)) = foreign.iter().find(|(magic, _)| first.starts_with(magic)) {
        return unreadable(
            &format!("it is a {name} file"),
            "give a raw or qcow2 disk; `qemu-img convert -O qcow2` makes one",
        );
    }
    if first.len() < 512 {
        return unreadable("it is shorter than a disk's sector", "fetch or build it again");
    }
    Ok(Format::Raw)
}

/// Whether the source of [`store`] may be used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Source,
    Nothing,
}

/// Puts the image file at `source` into the slot as a sparse raw disk.
pub(super) fn store(
    slot: &Slot,
    source: &Path,
    record: Record,
    keep: Keep,
    progress: &ProgressSink,
    cancel: &Cancel,
) -> Result<CachedImage> {
    let format = sniff(source)?;
    if format == Format::Raw && keep == Keep::Nothing {
        let file = File::open(source).map_err(|e| Error::io("open", source, e))?;
        let path = tempfile::TempPath::try_from_path(PathBuf::from(source))
            .map_err(|e| Error::io("take over", source, e))?;
        return slot.commit(tempfile::NamedTempFile::from_parts(file, path), record);
    }
    let disk = slot.temporary()?;
    let advance = |done, total| progress.advance(Stage::Prepare, done, Some(total));
    progress.begin(Stage::Prepare);
    match format {
        Format::Qcow2 => qcow2::convert(source, disk.as_file(), advance, cancel.flag())?,
        Format::Raw => copy_sparse(source, disk.as_file(), advance, cancel)?,
    }
    slot.commit(disk, record)
}

/// Copies a raw disk, leaving holes where it is zero.
fn copy_sparse(
    source: &Path,
    disk: &File,
    progress: impl Fn(u64, u64),
    cancel: &Cancel,
) -> Result<()> {
    let read = |e| Error::io("read image", source, e);
    let write = |e| Error::io("copy image", source, e);
    let mut file = File::open(source).map_err(read)?;
    let total = file.metadata().map_err(read)?.len();
    disk.set_len(total).map_err(write)?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0u64;
    loop {
        cancel.check()?;
        let length = file.read(&mut buffer).map_err(read)?;
        if length == 0 {
            return Ok(());
        }
        qcow2::write_sparse(disk, &buffer[..length], done).map_err(write)?;
        done += length as u64;
        progress(done, total);
    }
}

#[cfg(test)]
mod tests;
