//! Owns the cache of raw disks: the record beside each, what makes one valid, who still needs it.
//! A disk is cached when its record is there, whole, and fits; the record is written last and a
//! recorded disk is never changed, only removed. It must not fetch, build or convert.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::CachedImage;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;
use crate::store::whole::{HALF_MADE, make_private_dir, write_atomic};

const RECORD_VERSION: u32 = 1;
/// A record is a few hundred bytes; a config.json of a VM a few thousand.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// Where a cached disk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Origin {
    /// Fetched from the catalog or a URL.
    Fetched,
    /// Built from packages on this host.
    Built,
    /// Brought in by the user under an alias.
    Imported,
    /// Unpacked from a local file, named by its path.
    Unpacked,
}

/// What stands beside each cached disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub version: u32,
    pub reference: String,
    pub arch: Arch,
    pub snapshot: String,
    pub origin: Origin,
    /// Identity of the content, 64 hex digits.
    pub digest: String,
    pub size_bytes: u64,
    /// The URL or path it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The day it was built or imported, as 2026-11-23.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_on: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
}

/// The files of one cached disk, whether or not they exist.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    dir: PathBuf,
    stem: String,
}

impl Slot {
    pub(super) fn new(paths: &Paths, name: &str, snapshot: &str, arch: Arch) -> Self {
        let stem = if snapshot.is_empty() {
            format!("{name}-{}", arch.debian())
        } else {
            format!("{name}-{snapshot}-{}", arch.debian())
        };
        Self { dir: paths.images(), stem }
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.stem))
    }

    pub(super) fn raw(&self) -> PathBuf {
        self.file("raw")
    }

    pub(super) fn record(&self) -> PathBuf {
        self.file("json")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.file("lock")
    }

    /// The transfer so far.
    pub(super) fn part(&self) -> PathBuf {
        self.file("part")
    }

    /// What the transfer so far belongs to.
    pub(super) fn part_record(&self) -> PathBuf {
        self.file("part.json")
    }

    pub(super) fn make_dir(&self) -> Result<()> {
        make_private_dir(&self.dir)
    }

    /// The record if the disk is cached; a damaged record or a disk of the wrong length is not.
    pub(super) fn load(&self) -> Option<Record> {
        let record: Record = serde_json::from_slice(&read_small(&self.record())?).ok()?;
        let metadata = self.raw().symlink_metadata().ok()?;
        let fits = record.version == RECORD_VERSION
            && metadata.is_file()
            && metadata.len() == record.size_bytes
            && record.digest.len() == 64
            && record.digest.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then_some(record)
    }

    /// The cached image for a caller, if it is for `arch`.
    pub(super) fn cached(&self, arch: Arch) -> Option<CachedImage> {
        let record = self.load().filter(|record| record.arch == arch)?;
        Some(self.image(record))
    }

    pub(super) fn image(&self, record: Record) -> CachedImage {
        CachedImage {
            reference: record.reference,
            path: self.raw(),
            digest: record.digest,
            size_bytes: record.size_bytes,
            arch: record.arch,
            layers: Vec::new(),
        }
    }

    /// Makes a finished temporary disk the cached one: bytes to the platter, name, then record.
    pub(super) fn commit(
        &self,
        disk: tempfile::NamedTempFile,
        mut record: Record,
    ) -> Result<CachedImage> {
        let raw = self.raw();
        let io = |e| Error::io("write image", &raw, e);
        disk.as_file().sync_all().map_err(io)?;
        record.version = RECORD_VERSION;
        record.size_bytes = disk.as_file().metadata().map_err(io)?.len();
        disk.persist(&raw).map_err(|e| io(e.error))?;
        let json = serde_json::to_vec_pretty(&record)
            .map_err(|e| Error::new(ErrorKind::Internal, "write an image's record").source(e))?;
        write_atomic(&self.record(), &json)?;
        Ok(self.image(record))
    }

    /// A temporary file in the cache, gone when dropped, readable by its owner only.
    pub(super) fn temporary(&self) -> Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(HALF_MADE)
            .tempfile_in(&self.dir)
            .map_err(|e| Error::io("make a file in", &self.dir, e))
    }

    /// Removes the disk and its kernel; the record goes first, so what is left by a crash is not
    /// taken for cached. Returns the bytes of disk given back.
    pub(super) fn remove(&self, paths: &Paths) -> Result<u64> {
        let raw = self.raw();
        let freed = raw.symlink_metadata().map_or(0, |m| m.blocks().saturating_mul(512));
        if let Some(record) = self.load() {
            let kernel = paths.kernels().join(record.digest);
            absent_is_fine("remove", &kernel, std::fs::remove_dir_all(&kernel))?;
        }
        for path in [self.record(), raw, self.part(), self.part_record()] {
            absent_is_fine("remove", &path, std::fs::remove_file(&path))?;
        }
        Ok(freed)
    }

    /// The VMs whose disk is backed by this one, and the derived images and snapshots that lie on it;
    /// golden machines are made anew.
    pub(super) fn users(&self, paths: &Paths) -> Vec<String> {
        let raw = self.raw();
        let mut users = Vec::new();
        for cluster in subdirectories(&paths.clusters()) {
            for member in subdirectories(&cluster) {
                let backing = read_small(&member.join("config.json"))
                    .and_then(|bytes| serde_json::from_slice::<BackedBy>(&bytes).ok());
                if backing.is_some_and(|config| config.image_path == raw) {
                    let name = member.file_name().unwrap_or_default().to_string_lossy();
                    users.push(format!("the disk of {name}"));
                }
            }
        }
        let images = super::layer::on_image(paths, &raw);
        users.extend(images.into_iter().map(|image| format!("the image {image}")));
        let snapshots = crate::snapshot::on_image(paths, &raw);
        users.extend(snapshots.into_iter().map(|name| format!("the snapshot {name}")));
        users.sort();
        users
    }
}

/// The one field of a VM's record that concerns images.
#[derive(Deserialize)]
struct BackedBy {
    image_path: PathBuf,
}

/// Every cached disk, newest snapshot of a name first.
pub(super) fn all(paths: &Paths) -> Vec<(Slot, Record)> {
    scan(paths, "")
}

/// Removes those that are outdated, unless a VM needs them or somebody works on them.
pub(super) fn forget(paths: &Paths, is_outdated: impl Fn(&Slot, &Record) -> bool) -> Result<()> {
    for (slot, record) in all(paths) {
        if is_outdated(&slot, &record)
            && slot.users(paths).is_empty()
            && let Some(_held) = lock::try_lock(&slot.lock())?
        {
            slot.remove(paths)?;
        }
    }
    Ok(())
}

/// The newest built or imported image of this name and architecture.
pub(super) fn local(paths: &Paths, name: &str, arch: Arch) -> Option<(Slot, Record)> {
    scan(paths, &format!("{name}-")).into_iter().find(|(_, record)| {
        record.reference == name
            && record.arch == arch
            && matches!(record.origin, Origin::Built | Origin::Imported)
    })
}

fn scan(paths: &Paths, prefix: &str) -> Vec<(Slot, Record)> {
    let dir = paths.images();
    // No directory, no images; whoever wants to write there gets the error.
    let Ok(entries) = std::fs::read_dir(&dir) else { return Vec::new() };
    let mut found: Vec<(Slot, Record)> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix) && !name.starts_with('.'))
        .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
        .filter_map(|stem| {
            // The record of a transfer, too, ends in .json; it does not read as one of a disk.
            let slot = Slot { dir: dir.clone(), stem };
            let record = slot.load()?;
            Some((slot, record))
        })
        .collect();
    found.sort_by(|(_, a), (_, b)| (&a.reference, &b.snapshot).cmp(&(&b.reference, &a.snapshot)));
    found
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

/// The content of a small file that may be missing or damaged, both of which count as absent.
pub(super) fn read_small(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

pub(super) fn absent_is_fine(action: &str, path: &Path, result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(action, path, e)),
        _ => Ok(()),
    }
}

/// What a local file is without reading it: path, size, times and inode, as 64 hex digits.
pub(super) fn file_identity(path: &Path, metadata: &std::fs::Metadata) -> String {
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    for number in [metadata.len(), metadata.dev(), metadata.ino()] {
        hash.update(number.to_le_bytes());
    }
    for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()]
    {
        hash.update(number.to_le_bytes());
    }
    hex(&hash.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn committed(paths: &Paths, name: &str, snapshot: &str, origin: Origin) -> Slot {
        let slot = Slot::new(paths, name, snapshot, Arch::X86_64);
        slot.make_dir().unwrap();
        let mut disk = slot.temporary().unwrap();
        disk.write_all(&[7; 4096]).unwrap();
        let record = Record {
            version: 0,
            reference: name.to_owned(),
            arch: Arch::X86_64,
            snapshot: snapshot.to_owned(),
            origin,
            digest: hex(&Sha256::digest(snapshot)),
            size_bytes: 0,
            source: None,
            made_on: None,
            suite: None,
        };
        slot.commit(disk, record).unwrap();
        slot
    }

    #[test]
    fn only_a_whole_record_with_its_disk_is_cached() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(dir.path()).unwrap();
        let slot = committed(&paths, "debian-12", "1", Origin::Fetched);
        assert!(slot.cached(Arch::X86_64).is_some());
        assert!(slot.cached(Arch::Aarch64).is_none());
        let json = std::fs::read(slot.record()).unwrap();
        for length in 0..json.len() {
            std::fs::write(slot.record(), &json[..length]).unwrap();
            assert!(slot.load().is_none(), "cut at {length}");
        }
        std::fs::write(slot.record(), &json).unwrap();
        std::fs::OpenOptions::new().write(true).open(slot.raw()).unwrap().set_len(10).unwrap();
        assert!(slot.load().is_none());
        assert!(all(&paths).is_empty());
    }

    #[test]
    fn the_newest_local_image_is_found_and_published_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(dir.path()).unwrap();
        committed(&paths, "debian-12", "20991231", Origin::Fetched);
        committed(&paths, "debian-12", "20260102", Origin::Built);
        committed(&paths, "debian-12", "20260103", Origin::Built);
        committed(&paths, "debian-12-mine", "20990101", Origin::Imported);
        let (_, record) = local(&paths, "debian-12", Arch::X86_64).unwrap();
        assert_eq!(record.snapshot, "20260103");
        assert!(local(&paths, "debian-12", Arch::Aarch64).is_none());
        assert_eq!(all(&paths).len(), 4);
    }

    #[test]
    fn users_are_the_vms_that_name_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(dir.path()).unwrap();
        let slot = committed(&paths, "debian-12", "1", Origin::Fetched);
        for (vm, path) in [("web-1", slot.raw()), ("web-2", "/elsewhere".into())] {
            let member = paths.clusters().join("web").join(vm);
            std::fs::create_dir_all(&member).unwrap();
            let config = serde_json::json!({ "image_path": path, "other": 1 });
            std::fs::write(member.join("config.json"), config.to_string()).unwrap();
        }
        assert_eq!(slot.users(&paths), ["the disk of web-1"]);
        slot.remove(&paths).unwrap();
        assert!(!slot.raw().exists());
    }
}
