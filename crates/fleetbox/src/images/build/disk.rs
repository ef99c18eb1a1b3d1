//! Owns the built image's partition table: one root partition on a GPT disk.
//! It must not write the file system.

use std::fs::File;
use std::path::Path;

use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, partition_types};

use crate::error::{Error, ErrorKind, Result};

/// Room for the system and a little more; the guest grows it to its own disk's size.
const DISK_BYTES: u64 = 2 << 30;
/// The same with packages of the caller's choice. It is sparse: what is not used costs nothing.
const DISK_EXTRA_BYTES: u64 = 5 << 30;
const SECTOR_BYTES: u64 = 512;
/// Partitions begin and end on whole mebibytes, as every tool expects.
const ALIGN_SECTORS: u64 = 2048;

/// Where the root file system goes.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub offset_bytes: u64,
    pub length_bytes: u64,
    /// As the kernel prints it, in lowercase.
    pub partition_uuid: String,
}

/// Partitions an empty disk; `extra` leaves room for more packages.
pub(super) fn partition(disk: &File, path: &Path, extra: bool) -> Result<Layout> {
    let disk_bytes = if extra { DISK_EXTRA_BYTES } else { DISK_BYTES };
    let failed = |e: gpt::GptError| {
        Error::new(ErrorKind::Io, format!("partition {}", path.display())).source(e)
    };
    let io = |e| Error::io("partition", path, e);
    disk.set_len(disk_bytes).map_err(io)?;
    let mut device = disk.try_clone().map_err(io)?;
    let sectors = u32::try_from(disk_bytes / SECTOR_BYTES - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut device).map_err(|e| {
        Error::new(ErrorKind::Io, format!("partition {}", path.display())).source(e)
    })?;
    let mut table =
        GptConfig::new().writable(true).create_from_device(device, None).map_err(failed)?;
    // The backup table takes the last sectors, so the partition ends a mebibyte before the disk.
    let length_bytes = disk_bytes - 2 * ALIGN_SECTORS * SECTOR_BYTES;
    let id = table
        .add_partition("root", length_bytes, partition_types::LINUX_FS, 0, Some(ALIGN_SECTORS))
        .map_err(failed)?;
    let Some(root) = table.partitions().get(&id).cloned() else {
        return Err(Error::new(ErrorKind::Internal, "partition a disk: the partition is gone"));
    };
    table.write().map_err(failed)?;
    Ok(Layout {
        offset_bytes: root.first_lba * SECTOR_BYTES,
        length_bytes,
        partition_uuid: root.part_guid.to_string().to_lowercase(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let layout = partition(file.as_file(), file.path(), false).unwrap();
        assert_eq!(layout.offset_bytes, 1 << 20);
        let table = GptConfig::new().open(file.path()).unwrap();
        let root = table.partitions().values().find(|p| p.is_used()).unwrap();
        assert_eq!(root.bytes_len(*table.logical_block_size()).unwrap(), layout.length_bytes);
        assert_eq!(root.part_guid.to_string(), layout.partition_uuid);
    }
}
