//! Owns unpacking an initrd on the host, once per image, so that no guest does it at every boot:
//! emulated, that is a second of each. It must not look into the archive.

use std::io::Read;

/// Beyond this the packed one is kept: an unpacked initrd is in a guest's memory twice for a moment,
/// and small guests must still boot.
const UNPACKED_BYTES_MAX: usize = 128 << 20;
const GZIP: [u8; 4] = [0x1f, 0x8b, 8, 0];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The initrd unpacked, if it is one stream of gzip or zstd over a cpio archive, perhaps after an
/// uncompressed archive with microcode. Anything else is left to the guest's kernel, as it is.
pub(super) fn unpacked(initrd: &[u8]) -> Option<Vec<u8>> {
    let packed_at = if is_cpio(initrd) { end_of_cpio(initrd)? } else { 0 };
    let (early, packed) = initrd.split_at_checked(packed_at)?;
    let archive = inflate(packed)?;
    // The kernel takes archives one after the other when each begins at a multiple of four.
    if !is_cpio(&archive) || !early.len().is_multiple_of(4) {
        return None;
    }
    Some([early, &archive].concat())
}

fn inflate(packed: &[u8]) -> Option<Vec<u8>> {
    let magic = packed.first_chunk::<4>()?;
    if magic[..3] == GZIP[..3] {
        // The last word is the length of what the last member unpacks to.
        let length = u32::from_le_bytes(*packed.last_chunk::<4>()?) as usize;
        if length > UNPACKED_BYTES_MAX {
            return None;
        }
        let mut archive = vec![0; length];
        let mut inflater = libdeflater::Decompressor::new();
        // Only the first member is unpacked. If it is not the last, it does not need the last byte.
        if inflater.gzip_decompress(&packed[..packed.len() - 1], &mut archive).is_ok() {
            return None;
        }
        let written = inflater.gzip_decompress(packed, &mut archive).ok()?;
        return (written == length).then_some(archive);
    }
    if *magic == ZSTD {
        let mut archive = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
        decoder.take(UNPACKED_BYTES_MAX as u64 + 1).read_to_end(&mut archive).ok()?;
        return (archive.len() <= UNPACKED_BYTES_MAX).then_some(archive);
    }
    None
}

/// The two magics of "newc", without and with checksums.
fn is_cpio(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701") || bytes.starts_with(b"070702")
}

/// Where what follows the archive and its padding begins.
fn end_of_cpio(bytes: &[u8]) -> Option<usize> {
    const HEADER_BYTES: usize = 110;
    let mut at = 0usize;
    loop {
        let header = bytes.get(at..at.checked_add(HEADER_BYTES)?)?;
        if !is_cpio(header) {
            return None;
        }
        let field = |index: usize| {
            let digits = std::str::from_utf8(header.get(6 + index * 8..14 + index * 8)?).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let (file_bytes, name_bytes) = (field(6)?, field(11)?);
        let name_at = at + HEADER_BYTES;
        let name = bytes.get(name_at..name_at.checked_add(name_bytes)?)?;
        let content_at = name_at.checked_add(name_bytes)?.checked_next_multiple_of(4)?;
        at = content_at.checked_add(file_bytes)?.checked_next_multiple_of(4)?;
        if name == b"TRAILER!!!\0" {
            let rest = bytes.get(at..)?;
            return Some(at + rest.iter().position(|byte| *byte != 0)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpio(name: &str, content: &[u8]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, content) in [(name, content), ("TRAILER!!!", b"")] {
            let mut header = b"070701".to_vec();
            for field in [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
                header.extend(format!("{field:08x}").bytes());
            }
            archive.extend(header);
            archive.extend(name.bytes().chain([0]));
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend(content);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packer = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut packed = vec![0; packer.gzip_compress_bound(bytes.len())];
        let length = packer.gzip_compress(bytes, &mut packed).unwrap();
        packed.truncate(length);
        packed
    }

    #[test]
    fn both_packings_come_out_with_early_archives_in_front() {
        let archive = cpio("init", &[7; 10_000]);
        let zstd = zstd::encode_all(&archive[..], 3).unwrap();
        for packed in [gzip(&archive), zstd] {
            assert_eq!(unpacked(&packed).unwrap(), archive);
            let mut early = cpio("kernel/x86/microcode", &[1, 2, 3]);
            early.resize(early.len().next_multiple_of(512), 0);
            let both = [&early[..], &packed].concat();
            assert_eq!(unpacked(&both).unwrap(), [&early[..], &archive].concat());
        }
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let archive = cpio("init", b"x");
        let packed = gzip(&archive);
        let cut = &packed[..packed.len() / 2];
        let bomb = zstd::encode_all(std::io::repeat(0).take(200 << 20), 1).unwrap();
        let cases: [&[u8]; 7] = [
            b"",
            b"070701",
            &archive,
            cut,
            &gzip(b"no archive"),
            &bomb,
            &[&packed[..], &packed].concat(),
        ];
        for (i, case) in cases.into_iter().enumerate() {
            assert_eq!(unpacked(case), None, "case {i}");
        }
        for at in 0..packed.len() {
            let mut damaged = [&archive[..], &packed].concat();
            damaged[at] ^= 0xff;
            // Either answer is right; a panic is not.
            let _ = unpacked(&damaged);
        }
    }
}
