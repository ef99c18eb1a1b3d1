//! Owns a guest's kernel, initrd and command line: taken out of the image once, kept by the image's
//! digest; or the finding that only the image's own boot loader can boot it. It must not decide on
//! consoles or devices, which belong to the backend.

mod entry;
mod filesystem;
mod find;
mod initrd;
mod partition;

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::images::{CachedImage, qcow2, work};
use crate::progress::{ProgressSink, Stage};
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;
use crate::store::whole::{half_made_dir, make_private_dir, write_atomic};

use find::Found;

const RECORD_VERSION: u32 = 1;
const KERNEL_BYTES_MAX: u64 = 256 << 20;
const INITRD_BYTES_MAX: u64 = 1 << 30;

/// Arguments every guest gets because they make its boot shorter and cost a test nothing. Chosen by
/// the monitor's processor time until the first login of an emulated Debian 12, one boot each on a
/// busy host: 50.6 s without, 47.5 s with these, 41.3 s with [`EMULATED_BOOT_ARGS`] too. No gain was seen from
/// `audit=0`, `nokaslr`, `loglevel=4` or `ds=nocloud`.
pub(crate) const FAST_BOOT_ARGS: &[&str] = &[
    // The disk is new or its journal is replayed at mount; a check reads it all for nothing.
    "fsck.mode=skip",
    // Looks for leftover LVM snapshots of e2scrub, of which a cloud image has none.
    "systemd.mask=e2scrub_reap.service",
];

/// What an emulated guest gets besides. An emulated processor does not speculate, so guarding one
/// guest process against another's speculation only costs time; on a real one it stays on.
pub(crate) const EMULATED_BOOT_ARGS: &[&str] = &["mitigations=off"];

/// And one of x86. Early in its boot the kernel waits for some ticks of the timer, counted by its
/// processor's own time, and panics if none comes (`check_timer` in its `io_apic.c`): "IO-APIC + timer
/// doesn't work". Seen of an emulated guest on a host with four others for two cores. Under KVM the
/// kernel leaves the check out by itself.
pub(crate) const EMULATED_X86_BOOT_ARG: &str = "no_timer_check";

/// How a guest of an image is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BootSource {
    /// Directly, with the image's kernel.
    Kernel(BootFiles),
    /// By a firmware and the image's own boot loader, as no kernel can be read here.
    Loader { why: String },
}

/// What a direct boot needs from the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootFiles {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    /// The root device, the image's own arguments without consoles, and [`FAST_BOOT_ARGS`].
    pub cmdline: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    has_initrd: bool,
    /// Without [`FAST_BOOT_ARGS`]: another version of fleetbox may have others.
    cmdline: String,
    /// Why no kernel was taken out; then there are no files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loader: Option<String>,
}

/// How `image` is booted: known from the cache, or found out now.
pub(crate) async fn extract(
    paths: &Paths,
    image: &CachedImage,
    progress: &ProgressSink,
) -> Result<BootSource> {
    let dir = paths.kernels().join(&image.digest);
    if let Some(source) = cached(&dir) {
        return Ok(source);
    }
    make_private_dir(&paths.kernels())?;
    let lock_path = paths.kernels().join(format!("{}.lock", image.digest));
    let held = lock::lock(&lock_path, || {
        progress.note(format!(
            "waiting for another process that takes the kernel out of {}",
            image.reference
        ));
    })
    .await?;
    if let Some(source) = cached(&dir) {
        return Ok(source);
    }
    progress.begin(Stage::Prepare);
    let (kernels, image) = (paths.kernels(), image.clone());
    work::run("take out a kernel", move |_| {
        let _held = held;
        take_out(&kernels, &dir, &image)
    })
    .await
}

fn cached(dir: &Path) -> Option<BootSource> {
    let record = std::fs::read(dir.join("boot.json")).ok()?;
    let record: Record = serde_json::from_slice(&record).ok()?;
    if record.version == RECORD_VERSION
        && let Some(why) = record.loader
    {
        return Some(BootSource::Loader { why });
    }
    let kernel = dir.join("vmlinuz");
    let initrd = record.has_initrd.then(|| dir.join("initrd"));
    let is_whole = record.version == RECORD_VERSION
        && kernel.is_file()
        && initrd.as_ref().is_none_or(|initrd| initrd.is_file());
    is_whole.then(|| {
        BootSource::Kernel(BootFiles {
            kernel,
            initrd,
            cmdline: format!("{} {}", record.cmdline, FAST_BOOT_ARGS.join(" ")),
        })
    })
}

/// Builds the directory under a temporary name and renames it when it is whole.
fn take_out(kernels: &Path, dir: &Path, image: &CachedImage) -> Result<BootSource> {
    let disk = open(kernels, image)?;
    let partitions = find::partitions(&disk, image)?;
    let io = |e| Error::io("write", kernels, e);
    let new = half_made_dir(kernels)?;
    let taken = find::find(&disk, &partitions, image)
        .and_then(|found| write_files(found, image, new.path()));
    let record = match taken {
        Ok(record) => record,
        // Its own loader may know better.
        Err(e) if is_about_the_image(&e) && partitions.iter().any(|p| p.is_efi) => Record {
            version: RECORD_VERSION,
            has_initrd: false,
            cmdline: String::new(),
            loader: Some(e.message().to_owned()),
        },
        Err(e) => return Err(e),
    };
    let json = serde_json::to_vec_pretty(&record)
        .map_err(|e| Error::new(ErrorKind::Internal, "record a kernel").source(e))?;
    write_atomic(&new.path().join("boot.json"), &json)?;
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove the damaged", dir, e));
        }
        _ => {}
    }
    std::fs::rename(new.path(), dir).map_err(io)?;
    // Renamed away: there is nothing left to remove.
    let _ = new.keep();
    cached(dir).ok_or_else(|| {
        Error::new(ErrorKind::Internal, format!("read back the kernel in {}", dir.display()))
    })
}

/// The image's disk; of a derived image, a file of its own for as long as it is read.
fn open(kernels: &Path, image: &CachedImage) -> Result<File> {
    if image.layers.is_empty() {
        return File::open(&image.path).map_err(|e| Error::io("open image", &image.path, e));
    }
    let flat = tempfile::tempfile_in(kernels).map_err(|e| Error::io("write", kernels, e))?;
    qcow2::flatten(&image.path, &image.layers, &flat)?;
    Ok(flat)
}

/// Lets the image of the digest `to` have the kernel of another, as they have the same.
pub(crate) fn share(paths: &Paths, of: &str, to: &str) -> Result<()> {
    let (kernels, target) = (paths.kernels(), paths.kernels().join(to));
    let from = kernels.join(of);
    if cached(&target).is_some() || cached(&from).is_none() {
        return Ok(());
    }
    let io = |e| Error::io("write", &kernels, e);
    let new = half_made_dir(&kernels)?;
    for entry in std::fs::read_dir(&from).map_err(|e| Error::io("list", &from, e))? {
        let entry = entry.map_err(|e| Error::io("list", &from, e))?;
        std::fs::hard_link(entry.path(), new.path().join(entry.file_name())).map_err(io)?;
    }
    match std::fs::rename(new.path(), &target) {
        Err(e) if !target.exists() => return Err(io(e)),
        // What is there is as good.
        Err(_) => return Ok(()),
        Ok(()) => {}
    }
    // Renamed away: there is nothing left to remove.
    let _ = new.keep();
    Ok(())
}

fn is_about_the_image(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ImageWithoutKernel | ErrorKind::ImageUnreadable)
}

fn write_files(found: Found, image: &CachedImage, dir: &Path) -> Result<Record> {
    write_kernel(&found, image, &dir.join("vmlinuz"))?;
    if let Some(initrd) = &found.initrd {
        let packed = found.boot.read(initrd, INITRD_BYTES_MAX)?;
        let content = initrd::unpacked(&packed).unwrap_or(packed);
        write_atomic(&dir.join("initrd"), &content)?;
    }
    Ok(Record {
        version: RECORD_VERSION,
        has_initrd: found.initrd.is_some(),
        cmdline: found.cmdline,
        loader: None,
    })
}

fn write_kernel(found: &Found, image: &CachedImage, path: &Path) -> Result<()> {
    let mut kernel = found.boot.read(&found.kernel, KERNEL_BYTES_MAX)?;
    if kernel.starts_with(&[0x1f, 0x8b]) {
        kernel = gunzip(&kernel).ok_or_else(|| unbootable(image, "its kernel does not unpack"))?;
    }
    // Offsets from the kernel's Documentation: arch/x86/boot.rst and arch/arm64/booting.rst.
    let is_bootable = match image.arch {
        Arch::X86_64 => kernel.get(0x202..0x206) == Some(b"HdrS"),
        Arch::Aarch64 => kernel.get(56..60) == Some(b"ARM\x64"),
    };
    if !is_bootable {
        return Err(unbootable(
            image,
            &format!("{} is no kernel for {}", found.kernel, image.arch),
        ));
    }
    write_atomic(path, &kernel)
}

/// Arm images come as a gzip of the flat kernel, which nothing below the boot loader unpacks.
fn gunzip(packed: &[u8]) -> Option<Vec<u8>> {
    // The last word is the length, if the packer told the truth; it only bounds the buffer.
    let length = u32::from_le_bytes(*packed.last_chunk::<4>()?);
    if u64::from(length) > KERNEL_BYTES_MAX {
        return None;
    }
    let mut kernel = vec![0; length as usize];
    let written = libdeflater::Decompressor::new().gzip_decompress(packed, &mut kernel).ok()?;
    kernel.truncate(written);
    Some(kernel)
}

fn unbootable(image: &CachedImage, what: &str) -> Error {
    Error::new(ErrorKind::ImageWithoutKernel, format!("boot the image {}: {what}", image.reference))
        .hint("use an image with a kernel in /boot of an ext4 root, such as debian-12, or one with an EFI system partition")
}

#[cfg(test)]
mod tests;
