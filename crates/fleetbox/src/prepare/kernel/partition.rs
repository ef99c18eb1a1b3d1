//! Owns the partition table of an image: GPT, MBR or none. The `gpt` crate asserts on odd entry
//! sizes and believes any count of entries, so an image that is not to be trusted is read here.
//! It must not know file systems.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::sys::random::Uuid;

const SECTOR_BYTES: u64 = 512;
/// The standard asks for 128 entries of 128 bytes; more is no table.
const GPT_ENTRIES_MAX: u32 = 1024;
const GPT_ENTRY_BYTES: std::ops::RangeInclusive<u32> = 128..=1024;
/// The type of an EFI system partition (UEFI specification, "GPT Partition Entry Array").
const EFI_SYSTEM: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// A stretch of the disk and the name the kernel finds it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    pub offset_bytes: u64,
    pub length_bytes: u64,
    /// For `root=PARTUUID=…`; none when the disk has no table.
    pub uuid: Option<String>,
    /// It is an EFI system partition: a firmware finds boot loaders in it.
    pub is_efi: bool,
}

/// The partitions in the table's order; a disk without a table is one.
pub(super) fn read(disk: &File) -> std::io::Result<Vec<Partition>> {
    let length_bytes = disk.metadata()?.len();
    let mut sectors = [0; 1024];
    if length_bytes < 1024 {
        return Ok(Vec::new());
    }
    disk.read_exact_at(&mut sectors, 0)?;
    let (mbr, header) = sectors.split_at(512);
    let mut found = if header.starts_with(b"EFI PART") { gpt(disk, header)? } else { Vec::new() };
    if found.is_empty() && mbr[510..] == [0x55, 0xaa] {
        found = self::mbr(mbr);
    }
    if found.is_empty() {
        found.push(Partition { offset_bytes: 0, length_bytes, uuid: None, is_efi: false });
    }
    found.retain(|partition| {
        partition.length_bytes > 0
            && partition
                .offset_bytes
                .checked_add(partition.length_bytes)
                .is_some_and(|end| end <= length_bytes)
    });
    Ok(found)
}

fn gpt(disk: &File, header: &[u8]) -> std::io::Result<Vec<Partition>> {
    let (entries, entry_bytes) = (le32(header, 80), le32(header, 84));
    if entries > GPT_ENTRIES_MAX || !GPT_ENTRY_BYTES.contains(&entry_bytes) {
        return Ok(Vec::new());
    }
    let mut table = vec![0; (entries * entry_bytes) as usize];
    disk.read_exact_at(&mut table, le64(header, 72).saturating_mul(SECTOR_BYTES))?;
    let used = table.chunks_exact(entry_bytes as usize).filter(|e| e[..16] != [0; 16]);
    Ok(used
        .map(|entry| {
            let (first, last) = (le64(entry, 32), le64(entry, 40));
            let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1)).unwrap_or(0);
            Partition {
                offset_bytes: first.saturating_mul(SECTOR_BYTES),
                length_bytes: sectors.saturating_mul(SECTOR_BYTES),
                uuid: Some(guid(&entry[16..32])),
                is_efi: guid(&entry[..16]) == EFI_SYSTEM,
            }
        })
        .collect())
}

/// The text of 16 bytes.
fn guid(bytes: &[u8]) -> String {
    let mut guid = [0; 16];
    guid.copy_from_slice(bytes);
    Uuid(guid).mixed().to_string()
}

fn mbr(sector: &[u8]) -> Vec<Partition> {
    const EMPTY: u8 = 0;
    const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
    const PROTECTIVE: u8 = 0xee;
    const EFI: u8 = 0xef;
    let signature = le32(sector, 440);
    let entries = sector[446..510].chunks_exact(16).enumerate();
    entries
        .filter(|(_, entry)| {
            let kind = entry[4];
            kind != EMPTY && kind != PROTECTIVE && !EXTENDED.contains(&kind)
        })
        .map(|(i, entry)| Partition {
            offset_bytes: u64::from(le32(entry, 8)) * SECTOR_BYTES,
            length_bytes: u64::from(le32(entry, 12)) * SECTOR_BYTES,
            uuid: Some(format!("{signature:08x}-{:02x}", i + 1)),
            is_efi: entry[4] == EFI,
        })
        .collect()
}

/// Both expect `at` within `bytes`: callers pass constants inside slices of known length.
fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(edit: impl FnOnce(&mut [u8])) -> File {
        let mut bytes = vec![0; 1 << 20];
        edit(&mut bytes);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    fn gpt_header(bytes: &mut [u8], entries: u32, entry_bytes: u32) {
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes[512 + 72] = 2;
        bytes[512 + 80..512 + 84].copy_from_slice(&entries.to_le_bytes());
        bytes[512 + 84..512 + 88].copy_from_slice(&entry_bytes.to_le_bytes());
    }

    #[test]
    fn a_gpt_partition_has_the_kernels_uuid() {
        let file = disk(|b| {
            gpt_header(b, 128, 128);
            b[1024..1040].fill(1);
            b[1040..1056].copy_from_slice(&[
                0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
                0xee, 0xff,
            ]);
            b[1056] = 100;
            b[1064] = 199;
        });
        let found = read(&file).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].offset_bytes, 51_200);
        assert_eq!(found[0].length_bytes, 51_200);
        assert_eq!(found[0].uuid.as_deref(), Some("00112233-4455-6677-8899-aabbccddeeff"));
        assert!(!found[0].is_efi);
    }

    #[test]
    fn an_efi_system_partition_is_told_by_its_type() {
        let file = disk(|b| {
            gpt_header(b, 128, 128);
            b[1024..1040].copy_from_slice(&[
                0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e,
                0xc9, 0x3b,
            ]);
            b[1056] = 100;
            b[1064] = 199;
        });
        assert!(read(&file).unwrap()[0].is_efi);
        let file = disk(|b| {
            b[446 + 4] = 0xef;
            b[446 + 8] = 1;
            b[446 + 12] = 9;
            b[510..512].copy_from_slice(&[0x55, 0xaa]);
        });
        assert!(read(&file).unwrap()[0].is_efi);
    }

    #[test]
    fn an_mbr_partition_has_the_kernels_uuid() {
        let file = disk(|b| {
            b[510..512].copy_from_slice(&[0x55, 0xaa]);
            b[440..444].copy_from_slice(&0xdead_beefu32.to_le_bytes());
            b[446 + 16 + 4] = 0x83;
            b[446 + 16 + 8] = 8;
            b[446 + 16 + 12] = 16;
        });
        let found = read(&file).unwrap();
        assert_eq!(found[0].uuid.as_deref(), Some("deadbeef-02"));
        assert_eq!((found[0].offset_bytes, found[0].length_bytes), (4096, 8192));
    }

    #[test]
    fn hostile_tables_are_no_tables() {
        for (entries, entry_bytes) in [(u32::MAX, 128), (128, 0), (128, u32::MAX), (4, 64)] {
            let found = read(&disk(|b| gpt_header(b, entries, entry_bytes))).unwrap();
            assert_eq!(found.len(), 1, "the disk itself");
            assert_eq!(found[0].uuid, None);
        }
        let beyond = disk(|b| {
            gpt_header(b, 4, 128);
            b[1024..1072].fill(0xff);
        });
        assert!(read(&beyond).unwrap().is_empty());
        let far = disk(|b| {
            gpt_header(b, 4, 128);
            b[512 + 72..512 + 80].fill(0xff);
        });
        assert!(read(&far).is_err());
    }
}
