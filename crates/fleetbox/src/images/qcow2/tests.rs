//! Conversions checked against qemu-img, and images made to do harm.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use super::*;

/// A fixed sequence of bytes (xorshift), so a failure can be repeated.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn qemu_img(args: &[&str]) -> bool {
    Command::new("qemu-img")
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn converted(source: &Path, dir: &Path) -> Result<PathBuf> {
    let raw = dir.join("out.raw");
    let file = File::create(&raw).unwrap();
    convert(source, &file, |_, _| {}, &AtomicBool::new(false))?;
    Ok(raw)
}

/// Text, noise, zeros, and a tail that fills no cluster.
fn sample_disk(dir: &Path) -> PathBuf {
    let path = dir.join("disk.raw");
    let file = File::create(&path).unwrap();
    file.set_len(9 * 1024 * 1024 + 512).unwrap();
    let mut noise = Noise(7);
    let random: Vec<u8> = (0..700_000).map(|_| noise.next() as u8).collect();
    let text = "the quick brown fox jumps over the lazy dog\n".repeat(30_000);
    file.write_all_at(text.as_bytes(), 100_000).unwrap();
    file.write_all_at(&random, 3 << 20).unwrap();
    file.write_all_at(b"the end", 9 * 1024 * 1024 + 505).unwrap();
    path
}

#[test]
fn every_kind_qemu_img_writes_reads_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let raw = sample_disk(dir.path());
    let raw_text = raw.to_str().unwrap();
    let image = dir.path().join("image.qcow2");
    let mut tried = 0;
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,compression_type=zstd",
        "compat=1.1,compression_type=zstd,cluster_size=4k",
    ] {
        for compress in [&[][..], &["-c"][..]] {
            let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
            args.extend(compress);
            args.extend([raw_text, image.to_str().unwrap()]);
            if !qemu_img(&args) {
                continue;
            }
            tried += 1;
            let out = converted(&image, dir.path()).unwrap();
            assert!(std::fs::read(&out).unwrap() == std::fs::read(&raw).unwrap(), "{options}");
        }
    }
    if tried == 0 {
        crate::skip::skipped("no qemu-img on PATH");
    }
}

#[test]
fn a_disk_that_needs_another_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.qcow2");
    let top = dir.path().join("top.qcow2");
    let (base_text, top_text) = (base.to_str().unwrap(), top.to_str().unwrap());
    if !qemu_img(&["create", "-f", "qcow2", base_text, "4M"]) {
        crate::skip::skipped("no qemu-img on PATH");
        return;
    }
    assert!(qemu_img(&["create", "-f", "qcow2", "-b", base_text, "-F", "qcow2", top_text]));
    let error = converted(&top, dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageUnreadable);
    assert!(error.message().contains("backing file"), "{error}");
}

/// A valid version 3 image by hand: 64 KiB clusters, one table each, one plain data cluster.
fn handmade() -> Vec<u8> {
    let mut image = vec![0; 4 << 16];
    image[..4].copy_from_slice(&MAGIC);
    put(&mut image, 4, &3u32.to_be_bytes());
    put(&mut image, 20, &16u32.to_be_bytes());
    put(&mut image, 24, &(1u64 << 20).to_be_bytes());
    put(&mut image, 36, &1u32.to_be_bytes());
    put(&mut image, 40, &(1u64 << 16).to_be_bytes());
    put(&mut image, 100, &104u32.to_be_bytes());
    put(&mut image, 1 << 16, &((2u64 << 16) | 1 << 63).to_be_bytes());
    put(&mut image, (2 << 16) + 8, &((3u64 << 16) | 1 << 63).to_be_bytes());
    image[3 << 16..].fill(0xa5);
    image
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn convert_bytes(image: &[u8]) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    std::fs::write(&path, image).unwrap();
    let raw = converted(&path, dir.path())?;
    // Damaged sizes may make a huge sparse file: look at its beginning only.
    let mut bytes = vec![0; 1 << 20];
    let read = File::open(raw).unwrap().read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    Ok(bytes)
}

#[test]
fn a_handmade_image_reads_as_written() {
    let raw = convert_bytes(&handmade()).unwrap();
    assert_eq!(raw.len(), 1 << 20);
    for (i, byte) in raw.iter().enumerate() {
        assert_eq!(*byte == 0xa5, i >> 16 == 1, "at {i}");
    }
}

#[test]
fn hostile_headers_and_tables_are_refused_with_a_reason() {
    type Damage = fn(&mut Vec<u8>);
    let cases: &[(&str, Damage)] = &[
        ("not begin", |i| i[0] = 0),
        ("version 4", |i| put(i, 4, &4u32.to_be_bytes())),
        ("clusters of 2^8", |i| put(i, 20, &8u32.to_be_bytes())),
        ("clusters of 2^22", |i| put(i, 20, &22u32.to_be_bytes())),
        ("clusters of 2^4294967295", |i| put(i, 20, &u32::MAX.to_be_bytes())),
        ("encrypted", |i| put(i, 32, &1u32.to_be_bytes())),
        ("backing file", |i| put(i, 8, &512u64.to_be_bytes())),
        ("makes no sense", |i| put(i, 24, &u64::MAX.to_be_bytes())),
        ("makes no sense", |i| put(i, 24, &0u64.to_be_bytes())),
        ("first table", |i| put(i, 24, &(64u64 << 40).to_be_bytes())),
        ("first table", |i| {
            put(i, 20, &9u32.to_be_bytes());
            put(i, 24, &(64u64 << 40).to_be_bytes());
            put(i, 36, &u32::MAX.to_be_bytes());
        }),
        ("beyond its end", |i| put(i, 40, &u64::MAX.to_be_bytes())),
        ("beyond its end", |i| put(i, 1 << 16, &(1u64 << 50).to_be_bytes())),
        ("beyond its end", |i| put(i, (2 << 16) + 8, &(1u64 << 50).to_be_bytes())),
        ("beyond its end", |i| put(i, (2 << 16) + 8, &(1u64 << 62 | 1 << 40).to_be_bytes())),
        ("decompress", |i| put(i, (2 << 16) + 8, &(1u64 << 62 | 3 << 16).to_be_bytes())),
        ("not where", |i| put(i, (2 << 16) + 8, &(1u64 << 10).to_be_bytes())),
        ("marked as corrupt", |i| put(i, 72, &2u64.to_be_bytes())),
        ("another file", |i| put(i, 72, &4u64.to_be_bytes())),
        ("extended", |i| put(i, 72, &16u64.to_be_bytes())),
        ("unknown here", |i| put(i, 72, &(1u64 << 40).to_be_bytes())),
        ("compression type", |i| {
            put(i, 72, &8u64.to_be_bytes());
            put(i, 100, &112u32.to_be_bytes());
            i[104] = 9;
        }),
        ("cut off", |i| i.truncate(80)),
        ("cut off", |i| i.truncate(20)),
        ("beyond its end", |i| i.truncate(2 << 16)),
        ("two places", |i| {
            put(i, 24, &(1u64 << 30).to_be_bytes());
            put(i, 36, &2u32.to_be_bytes());
            let first: [u8; 8] = i[1 << 16..(1 << 16) + 8].try_into().unwrap();
            put(i, (1 << 16) + 8, &first);
        }),
        ("more data than it has", |i| {
            for entry in 0..16 {
                put(i, (2 << 16) + entry * 8, &(3u64 << 16).to_be_bytes());
            }
        }),
    ];
    for (reason, damage) in cases {
        let mut image = handmade();
        damage(&mut image);
        let error = convert_bytes(&image).expect_err(reason);
        assert_eq!(error.kind(), ErrorKind::ImageUnreadable, "{reason}: {error}");
        assert!(error.message().contains(reason), "{reason}: {error}");
        assert!(error.hint_text().is_some());
    }
}

#[test]
fn flipped_bits_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut images = vec![handmade()];
    let raw = sample_disk(dir.path());
    let path = dir.path().join("c.qcow2");
    for kind in ["zlib", "zstd"] {
        let options = format!("compression_type={kind},cluster_size=4k");
        let (raw, out) = (raw.to_str().unwrap(), path.to_str().unwrap());
        if qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, raw, out]) {
            images.push(std::fs::read(&path).unwrap());
        }
    }
    let mut noise = Noise(0x5eed);
    for round in 0..300 {
        let mut image = images[round % images.len()].clone();
        for _ in 0..=noise.next() % 4 {
            // Mostly the header and tables at the front, where flips do the most harm.
            let span =
                if noise.next().is_multiple_of(3) { image.len() } else { 512.min(image.len()) };
            let at = (noise.next() % span as u64) as usize;
            image[at] ^= 1 << (noise.next() % 8);
        }
        if noise.next().is_multiple_of(8) {
            let keep = noise.next() % image.len() as u64;
            image.truncate(keep as usize);
        }
        // Either answer is right; a panic, a hang or a crash is not.
        if let Err(error) = convert_bytes(&image) {
            assert!(!error.message().is_empty());
        }
    }
}

#[test]
fn a_raised_flag_ends_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    std::fs::write(&path, handmade()).unwrap();
    let out = File::create(dir.path().join("out")).unwrap();
    let error = convert(&path, &out, |_, _| {}, &AtomicBool::new(true)).unwrap_err();
    assert!(error.message().contains("cancelled"));
}
