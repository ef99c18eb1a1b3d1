//! Owns reading files from one partition's ext4, with a limit on every read.
//! It must not know which files matter.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ext4_view::{Ext4, Ext4Read};

use super::partition::Partition;
use crate::error::{Error, ErrorKind, Result};

const TEXT_BYTES_MAX: u64 = 1 << 20;
const ENTRIES_MAX: usize = 10_000;

/// What a partition holds, by its magic numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
    Other,
}

pub(super) fn sniff(disk: &File, partition: &Partition) -> Kind {
    let is_at = |offset: u64, magic: &[u8]| {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..magic.len()];
        offset + magic.len() as u64 <= partition.length_bytes
            // What cannot be read is of no kind.
            && disk.read_exact_at(bytes, partition.offset_bytes + offset).is_ok()
            && bytes == magic
    };
    if is_at(1080, &[0x53, 0xef]) {
        Kind::Ext4
    } else if is_at(0, b"XFSB") {
        Kind::Xfs
    } else if is_at(0x1_0040, b"_BHRfS_M") {
        Kind::Btrfs
    } else {
        Kind::Other
    }
}

/// One ext4 file system of the image.
pub(super) struct FileSystem {
    ext4: Ext4,
    image: String,
}

impl FileSystem {
    pub(super) fn open(disk: &File, partition: &Partition, image: &str) -> Result<Self> {
        let failed = || {
            Error::new(ErrorKind::ImageUnreadable, format!("read the ext4 of the image {image}"))
                .hint("is the image whole? fetch or build it again")
        };
        let window = Window {
            file: disk.try_clone().map_err(|e| failed().source(e))?,
            offset_bytes: partition.offset_bytes,
            length_bytes: partition.length_bytes,
        };
        let ext4 = Ext4::load(Box::new(window)).map_err(|e| failed().source(e))?;
        Ok(Self { ext4, image: image.to_owned() })
    }

    /// The file system's own identity, for `root=UUID=…`.
    pub(super) fn uuid(&self) -> String {
        self.ext4.uuid().to_string()
    }

    pub(super) fn is_file(&self, path: &str) -> bool {
        self.ext4.metadata(path).is_ok_and(|metadata| metadata.file_type().is_regular_file())
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.ext4.symlink_metadata(path).is_ok()
    }

    /// The path with every symbolic link followed.
    pub(super) fn resolve(&self, path: &str) -> Option<String> {
        let path = self.ext4.canonicalize(path).ok()?;
        path.to_str().ok().map(str::to_owned)
    }

    /// The names in a directory; none if it is missing.
    pub(super) fn names(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = self.ext4.read_dir(dir) else { return Vec::new() };
        entries
            .take(ENTRIES_MAX)
            .filter_map(|entry| Some(entry.ok()?.file_name().as_str().ok()?.to_owned()))
            .collect()
    }

    /// A small text file; none if it is missing, too large or unreadable.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let bytes = self.read(path, TEXT_BYTES_MAX).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A whole file, unless it is larger than makes sense.
    pub(super) fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>> {
        let failed = |e: ext4_view::Ext4Error| {
            Error::new(
                ErrorKind::ImageUnreadable,
                format!("read {} in the image {}", path.escape_debug(), self.image),
            )
            .source(e)
        };
        let mut file = self.ext4.open(path).map_err(failed)?;
        let length_bytes = file.metadata().len();
        if length_bytes > bytes_max {
            return Err(Error::new(
                ErrorKind::ImageUnreadable,
                format!(
                    "read {} in the image {}: it has {} MiB, {} at most make sense",
                    path.escape_debug(),
                    self.image,
                    length_bytes >> 20,
                    bytes_max >> 20
                ),
            ));
        }
        let mut content = Vec::new();
        let mut piece = vec![0; 256 << 10];
        // The length is what the inode claims: memory is taken only for what comes.
        while (content.len() as u64) < length_bytes {
            let read = file.read_bytes(&mut piece).map_err(failed)?;
            if read == 0 {
                break;
            }
            content.extend_from_slice(&piece[..read]);
        }
        Ok(content)
    }
}

/// One partition of the disk, and nothing outside it.
struct Window {
    file: File,
    offset_bytes: u64,
    length_bytes: u64,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = start_byte.checked_add(dst.len() as u64);
        if end.is_none_or(|end| end > self.length_bytes) {
            return Err("it reads beyond its partition".into());
        }
        self.file.read_exact_at(dst, self.offset_bytes + start_byte)?;
        Ok(())
    }
}
