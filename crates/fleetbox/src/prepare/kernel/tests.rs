//! Kernels found in file systems that mke2fs makes here, and what is refused.

use std::os::unix::fs::FileExt;
use std::process::Command;

use super::*;

/// A kernel as far as its header goes.
fn kernel(arch: Arch) -> Vec<u8> {
    let mut kernel = vec![0; 4096];
    match arch {
        Arch::X86_64 => kernel[0x202..0x206].copy_from_slice(b"HdrS"),
        Arch::Aarch64 => kernel[56..60].copy_from_slice(b"ARM\x64"),
    }
    kernel
}

type Files<'a> = &'a [(&'a str, &'a [u8])];

/// An image of one ext4 without partitions, made of `files`; none where there is no mke2fs.
fn image(dir: &Path, arch: Arch, files: &[(&str, &[u8])]) -> Option<CachedImage> {
    let root = dir.join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/fstab"), "LABEL=x / ext4 defaults 0 1\n").unwrap();
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let path = dir.join("image.raw");
    let mke2fs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].iter().find(|p| Path::new(p).exists());
    let Some(mke2fs) = mke2fs else {
        crate::skip::skipped("no mke2fs");
        return None;
    };
    let status = Command::new(mke2fs)
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &path])
        .arg("8M")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    Some(cached_image(path, arch))
}

fn cached_image(path: PathBuf, arch: Arch) -> CachedImage {
    CachedImage {
        reference: "test".to_owned(),
        size_bytes: path.metadata().unwrap().len(),
        path,
        digest: "d".repeat(64),
        arch,
        layers: Vec::new(),
    }
}

async fn source(dir: &Path, image: &CachedImage) -> Result<BootSource> {
    let paths = Paths::at(&dir.join("home")).unwrap();
    extract(&paths, image, &ProgressSink::default()).await
}

async fn taken_out(dir: &Path, image: &CachedImage) -> Result<BootFiles> {
    match source(dir, image).await? {
        BootSource::Kernel(files) => Ok(files),
        BootSource::Loader { why } => panic!("nothing was taken out: {why}"),
    }
}

#[tokio::test]
async fn the_newest_kernel_is_taken_when_nothing_else_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = kernel(Arch::X86_64);
    let files: &[(&str, &[u8])] = &[
        ("boot/vmlinuz-6.1.0-9", &kernel),
        ("boot/vmlinuz-6.1.0-10", &kernel),
        ("boot/initrd.img-6.1.0-9", b"old"),
        ("boot/initrd.img-6.1.0-10", b"new"),
    ];
    let Some(image) = image(dir.path(), Arch::X86_64, files) else { return };
    let found = taken_out(dir.path(), &image).await.unwrap();
    assert_eq!(std::fs::read(found.initrd.as_ref().unwrap()).unwrap(), b"new");
    assert!(found.cmdline.starts_with("root=UUID="), "{}", found.cmdline);
    std::fs::remove_file(&image.path).unwrap();
    assert_eq!(taken_out(dir.path(), &image).await.unwrap(), found, "from the cache");
}

#[tokio::test]
async fn grubs_default_wins_and_its_arguments_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = kernel(Arch::X86_64);
    let grub = b"menuentry 'x' {\n linux /vmlinuz-1 root=/dev/sda1 ro quiet console=tty0 net.ifnames=0\n initrd /initrd-1\n}\n";
    let files: &[(&str, &[u8])] = &[
        ("boot/vmlinuz-1", &kernel),
        ("boot/vmlinuz-2", &kernel),
        ("boot/initrd-1", b"one"),
        ("boot/grub/grub.cfg", grub),
    ];
    let Some(image) = image(dir.path(), Arch::X86_64, files) else { return };
    let found = taken_out(dir.path(), &image).await.unwrap();
    assert_eq!(std::fs::read(found.initrd.unwrap()).unwrap(), b"one");
    assert!(found.cmdline.contains(" ro net.ifnames=0"), "{}", found.cmdline);
    assert!(!found.cmdline.contains("console") && !found.cmdline.contains("quiet"));
}

#[tokio::test]
async fn a_gzipped_arm_kernel_is_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = kernel(Arch::Aarch64);
    let mut packer = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut packed = vec![0; packer.gzip_compress_bound(kernel.len())];
    let length = packer.gzip_compress(&kernel, &mut packed).unwrap();
    let files: &[(&str, &[u8])] = &[("boot/vmlinuz-6", &packed[..length])];
    let Some(image) = image(dir.path(), Arch::Aarch64, files) else { return };
    let found = taken_out(dir.path(), &image).await.unwrap();
    assert_eq!(std::fs::read(&found.kernel).unwrap(), kernel);
    assert_eq!(found.initrd, None);
}

#[tokio::test]
async fn what_cannot_boot_is_refused_by_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = kernel(Arch::Aarch64);
    let cases: [(&str, Files<'_>); 2] =
        [("no kernel in", &[]), ("no kernel for x86_64", &[("boot/vmlinuz-1", &kernel)])];
    for (i, (reason, files)) in cases.into_iter().enumerate() {
        let dir = dir.path().join(i.to_string());
        std::fs::create_dir(&dir).unwrap();
        let Some(image) = image(&dir, Arch::X86_64, files) else { return };
        let error = taken_out(&dir, &image).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageWithoutKernel, "{error}");
        assert!(error.message().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn other_file_systems_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (magic, offset, name) in [(&b"XFSB"[..], 0, "xfs"), (b"_BHRfS_M", 0x1_0040, "btrfs")] {
        let path = dir.path().join(name);
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(magic, offset).unwrap();
        let error = taken_out(dir.path(), &cached_image(path, Arch::X86_64)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageWithoutKernel);
        assert!(error.message().contains(name), "{error}");
    }
}

/// With an EFI system partition its own loader is asked, and what was found out is kept.
#[tokio::test]
async fn what_cannot_be_read_but_has_a_loader_is_left_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.raw");
    let disk = File::create(&path).unwrap();
    disk.set_len(1 << 20).unwrap();
    for (entry, kind, first_sector) in [(0_u64, 0xef_u8, 64_u8), (1, 0x83, 128)] {
        let at = 446 + entry * 16;
        disk.write_all_at(&[kind], at + 4).unwrap();
        disk.write_all_at(&[first_sector, 0, 0, 0, 64], at + 8).unwrap();
    }
    disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
    disk.write_all_at(b"XFSB", 128 * 512).unwrap();
    let image = cached_image(path, Arch::X86_64);
    let found = source(dir.path(), &image).await.unwrap();
    assert!(matches!(&found, BootSource::Loader { why } if why.contains("xfs")), "{found:?}");
    std::fs::remove_file(&image.path).unwrap();
    assert_eq!(source(dir.path(), &image).await.unwrap(), found, "from the cache");
}

#[tokio::test]
async fn flipped_bits_in_a_file_system_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = kernel(Arch::X86_64);
    let files: &[(&str, &[u8])] = &[("boot/vmlinuz-1", &kernel), ("boot/initrd.img-1", b"one")];
    let Some(image) = image(dir.path(), Arch::X86_64, files) else { return };
    let whole = std::fs::read(&image.path).unwrap();
    let mut state = 0x5eed_u64;
    for round in 0..60u64 {
        let mut bytes = whole.clone();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % (256 << 10).min(bytes.len());
            bytes[at] ^= 1 << (state >> 60 & 7);
        }
        std::fs::write(&image.path, bytes).unwrap();
        let image = CachedImage { digest: format!("{round:064}"), ..image.clone() };
        // Either answer is right, a panic comes back as a defect of ours.
        if let Err(error) = source(dir.path(), &image).await {
            assert_ne!(error.kind(), ErrorKind::Internal, "round {round}: {error}");
        }
    }
}
