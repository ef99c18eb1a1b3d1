//! Owns a VM's own disk: an empty qcow2 overlay on a raw image, written in process.
//! It must not copy or change the image.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::store::whole::write_atomic;

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// One cluster of 8-byte entries maps this much of the disk.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER_BYTES * CLUSTER_BYTES / 8;
const HEADER_BYTES: u32 = 104;
/// QEMU refuses longer names of a backing file.
const BACKING_PATH_MAX: usize = 1023;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What an overlay lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    Raw,
    Qcow2,
}

/// What precedes the first-level table: header, table of reference counts, their one block.
const FIXED_CLUSTERS: u64 = 3;

/// Writes an empty disk of `size_bytes` at `path` that reads as the raw image `backing` until it is
/// written to. The image must stay where it is, unchanged, for as long as the disk is used.
pub(crate) fn create_overlay(path: &Path, backing: &Path, size_bytes: u64) -> Result<()> {
    let metadata = backing.metadata().map_err(|e| Error::io("open image", backing, e))?;
    if size_bytes < metadata.len() {
        let image_gib = metadata.len().div_ceil(1 << 30);
        return Err(Error::new(
            ErrorKind::InvalidSpec,
            format!(
                "make a disk of {} MiB: the image alone has {} MiB",
                size_bytes >> 20,
                metadata.len() >> 20
            ),
        )
        .hint(format!("give the disk {image_gib} GiB or more")));
    }
    let name = backing.as_os_str().as_bytes();
    if !backing.is_absolute() || name.len() > BACKING_PATH_MAX {
        return Err(Error::new(
            ErrorKind::InvalidPath,
            format!("use the image {}: its path is relative or too long", backing.display()),
        )
        .hint("move the state directory (FLEETBOX_HOME) or the image to a shorter absolute path"));
    }
    write_atomic(path, &render(name, Below::Raw, size_bytes.next_multiple_of(512)))
}

/// The same on another overlay, which has that name in whatever directory the disk is in.
pub(crate) fn create_overlay_on_layer(path: &Path, layer: &str, size_bytes: u64) -> Result<()> {
    write_atomic(path, &render(layer.as_bytes(), Below::Qcow2, size_bytes.next_multiple_of(512)))
}

/// The whole file: the guest's first write finds its tables ready.
fn render(backing: &[u8], below: Below, size_bytes: u64) -> Vec<u8> {
    let l1_entries = size_bytes.div_ceil(BYTES_PER_L1_ENTRY).max(1);
    let clusters = FIXED_CLUSTERS + (l1_entries * 8).div_ceil(CLUSTER_BYTES);
    let mut file = Vec::new();
    let backing_offset = HEADER_BYTES + 8 + 8 + 8;
    file.extend(b"QFI\xfb");
    file.extend(3u32.to_be_bytes());
    file.extend(u64::from(backing_offset).to_be_bytes());
    file.extend((backing.len() as u32).to_be_bytes());
    file.extend(CLUSTER_BITS.to_be_bytes());
    file.extend(size_bytes.to_be_bytes());
    file.extend(0u32.to_be_bytes()); // not encrypted
    file.extend((l1_entries as u32).to_be_bytes());
    file.extend((FIXED_CLUSTERS * CLUSTER_BYTES).to_be_bytes());
    file.extend(CLUSTER_BYTES.to_be_bytes()); // table of reference counts
    file.extend(1u32.to_be_bytes()); // of one cluster
    file.extend([0; 12]); // no snapshots
    file.extend([0; 24]); // no features
    file.extend(4u32.to_be_bytes()); // reference counts of 2^4 bits
    file.extend(HEADER_BYTES.to_be_bytes());
    file.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
    let (length, format) = match below {
        Below::Raw => (3u32, b"raw\0\0\0\0\0"),
        Below::Qcow2 => (5u32, b"qcow2\0\0\0"),
    };
    file.extend(length.to_be_bytes());
    file.extend(format);
    file.extend([0; 8]); // end of extensions
    debug_assert_eq!(file.len(), backing_offset as usize);
    file.extend(backing);

    file.resize(CLUSTER_BYTES as usize, 0);
    file.extend((2 * CLUSTER_BYTES).to_be_bytes());
    file.resize(2 * CLUSTER_BYTES as usize, 0);
    // 64 TiB need 16 clusters of first-level table; one block counts 32768.
    for _ in 0..clusters {
        file.extend(1u16.to_be_bytes());
    }
    file.resize((clusters * CLUSTER_BYTES) as usize, 0);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    fn raw(dir: &Path, size_bytes: u64) -> std::path::PathBuf {
        let path = dir.join("base.raw");
        std::fs::File::create(&path).unwrap().set_len(size_bytes).unwrap();
        path
    }

    #[test]
    fn qemu_img_finds_no_fault_at_any_size() {
        let dir = tempfile::tempdir().unwrap();
        let base = raw(dir.path(), 1 << 20);
        let disk = dir.path().join("disk.qcow2");
        for size_bytes in [1 << 20, 20 << 30, 3 << 40, 64 << 40] {
            create_overlay(&disk, &base, size_bytes).unwrap();
            assert_eq!(disk.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let Ok(check) = Command::new("qemu-img").arg("check").arg(&disk).output() else {
                crate::skip::skipped("no qemu-img on PATH");
                return;
            };
            assert!(check.status.success(), "{check:?}");
            let info = Command::new("qemu-img")
                .args(["info", "--output=json"])
                .arg(&disk)
                .output()
                .unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            assert_eq!(info["virtual-size"], size_bytes);
            assert_eq!(info["backing-filename"], base.to_str().unwrap());
            assert_eq!(info["backing-filename-format"], "raw");
        }
    }

    #[test]
    fn a_disk_smaller_than_its_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = raw(dir.path(), 3 << 30);
        let disk = dir.path().join("disk.qcow2");
        let error = create_overlay(&disk, &base, 2 << 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSpec);
        assert!(error.hint_text().unwrap().contains("3 GiB"), "{error:?}");
        assert!(!disk.exists());
        let error = create_overlay(&disk, &dir.path().join("absent"), 1 << 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}
