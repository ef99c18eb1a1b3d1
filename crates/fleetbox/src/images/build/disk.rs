//! Owns the built image's partition table: one root partition on a GPT disk.
//! It must not write the file system.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::error::{Error, Result};
use crate::sys::random::{self, Uuid};

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
    let table = Table {
        sectors: disk_bytes / SECTOR_BYTES,
        disk: random::uuid()?,
        partition: random::uuid()?,
        first: ALIGN_SECTORS,
        // The backup table takes the last sectors, so the partition ends a mebibyte before the disk.
        last: disk_bytes / SECTOR_BYTES - ALIGN_SECTORS - 1,
    };
    disk.set_len(disk_bytes)
        .and_then(|()| table.write(disk))
        .map_err(|e| Error::io("partition", path, e))?;
    Ok(Layout {
        offset_bytes: table.first * SECTOR_BYTES,
        length_bytes: (table.last + 1 - table.first) * SECTOR_BYTES,
        partition_uuid: table.partition.to_string(),
    })
}

/// A table with one partition, called `root` (UEFI specification 2.10, chapter 5, "GUID Partition
/// Table (GPT) Disk Layout").
struct Table {
    sectors: u64,
    disk: Uuid,
    partition: Uuid,
    /// The partition's first and last sector.
    first: u64,
    last: u64,
}

impl Table {
    const ENTRIES: u32 = 128;
    const ENTRY_BYTES: u32 = 128;
    const ENTRIES_SECTORS: u64 = (Self::ENTRIES * Self::ENTRY_BYTES) as u64 / SECTOR_BYTES;
    const HEADER_BYTES: u32 = 92;
    /// `0FC63DAF-8483-4772-8E79-3D69D8477DE4`, a Linux file system.
    const LINUX: Uuid = Uuid([
        0x0f, 0xc6, 0x3d, 0xaf, 0x84, 0x83, 0x47, 0x72, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d,
        0xe4,
    ]);

    /// Both copies, and the master boot record that keeps old tools away.
    fn write(&self, disk: &File) -> std::io::Result<()> {
        let end = self.sectors - 1;
        let entries = self.entries();
        let first = self.header(1, end, 2, &entries);
        let backup = self.header(end, 1, end - Self::ENTRIES_SECTORS, &entries);
        disk.write_all_at(&self.protective_record(), 0)?;
        disk.write_all_at(&first, SECTOR_BYTES)?;
        disk.write_all_at(&entries, 2 * SECTOR_BYTES)?;
        disk.write_all_at(&entries, (end - Self::ENTRIES_SECTORS) * SECTOR_BYTES)?;
        disk.write_all_at(&backup, end * SECTOR_BYTES)
    }

    fn protective_record(&self) -> Vec<u8> {
        let sectors = u32::try_from(self.sectors - 1).unwrap_or(u32::MAX);
        let mut record = vec![0; 446];
        // Not bootable, from the second sector on, of the type 0xee, to the end of what CHS can say.
        record.extend([0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
        record.extend(sectors.to_le_bytes());
        record.resize(510, 0);
        record.extend([0x55, 0xaa]);
        record
    }

    fn entries(&self) -> Vec<u8> {
        let mut entries = Vec::new();
        entries.extend(Self::LINUX.mixed().0);
        entries.extend(self.partition.mixed().0);
        entries.extend([self.first, self.last, 0].map(u64::to_le_bytes).as_flattened());
        entries.extend("root".encode_utf16().flat_map(u16::to_le_bytes));
        entries.resize((Self::ENTRIES * Self::ENTRY_BYTES) as usize, 0);
        entries
    }

    fn header(&self, own: u64, other: u64, entries_at: u64, entries: &[u8]) -> Vec<u8> {
        let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
        let first_usable = 2 + Self::ENTRIES_SECTORS;
        let last_usable = self.sectors - 2 - Self::ENTRIES_SECTORS;
        let mut header = b"EFI PART\0\0\x01\0".to_vec();
        // Its own checksum is taken with zeros in its place.
        header.extend([Self::HEADER_BYTES, 0, 0].map(u32::to_le_bytes).as_flattened());
        header.extend([own, other, first_usable, last_usable].map(u64::to_le_bytes).as_flattened());
        header.extend(self.disk.mixed().0);
        header.extend(entries_at.to_le_bytes());
        let sizes = [Self::ENTRIES, Self::ENTRY_BYTES, crc.checksum(entries)];
        header.extend(sizes.map(u32::to_le_bytes).as_flattened());
        let sum = crc.checksum(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header.resize(SECTOR_BYTES as usize, 0);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpt::GptConfig;

    /// By others' code, which checks the sums; then the copy alone.
    #[test]
    fn the_table_reads_back() {
        for extra in [false, true] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let layout = partition(file.as_file(), file.path(), extra).unwrap();
            assert_eq!(layout.offset_bytes, 1 << 20);
            for primary in [true, false] {
                if !primary {
                    file.as_file().write_all_at(&[0; 92], SECTOR_BYTES).unwrap();
                }
                let table = GptConfig::new().open(file.path()).unwrap();
                assert_eq!(table.primary_header().is_ok(), primary);
                let backup = table.backup_header().unwrap();
                assert_eq!(backup.current_lba, file.as_file().metadata().unwrap().len() / 512 - 1);
                let used: Vec<_> = table.partitions().values().filter(|p| p.is_used()).collect();
                let [root] = used[..] else { panic!("{used:?}") };
                assert_eq!(
                    root.bytes_len(*table.logical_block_size()).unwrap(),
                    layout.length_bytes
                );
                assert_eq!(root.first_lba * SECTOR_BYTES, layout.offset_bytes);
                assert_eq!(root.part_guid.to_string(), layout.partition_uuid);
                assert_eq!(root.part_type_guid, gpt::partition_types::LINUX_FS);
                assert_eq!(root.name, "root");
            }
        }
    }
}
