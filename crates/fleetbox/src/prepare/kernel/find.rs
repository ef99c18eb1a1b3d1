//! Owns finding the root, the kernel, its initrd and its arguments in an image.
//! It must not write anything.

use std::fs::File;
use std::path::Path;

use super::entry::{self, Entry};
use super::filesystem::{FileSystem, Kind, sniff};
use super::partition::{self, Partition};
use super::unbootable;
use crate::error::{Error, ErrorKind, Result};
use crate::images::CachedImage;

/// What was found; the paths are on `boot`.
pub(super) struct Found {
    pub boot: FileSystem,
    pub kernel: String,
    pub initrd: Option<String>,
    /// The root and the image's own arguments.
    pub cmdline: String,
}

pub(super) fn partitions(disk: &File, image: &CachedImage) -> Result<Vec<Partition>> {
    partition::read(disk).map_err(|e| {
        Error::new(
            ErrorKind::ImageUnreadable,
            format!("read the partition table of the image {}", image.reference),
        )
        .source(e)
    })
}

pub(super) fn find(disk: &File, partitions: &[Partition], image: &CachedImage) -> Result<Found> {
    let (root, mut others) = open_root(disk, partitions, image)?;
    let root_args = root_args(&root);
    others.insert(0, root.file_system);
    // The root first: its /boot is empty when that is a partition of its own.
    for file_system in others {
        if let Some(entry) = choose(&file_system) {
            let mut args = vec![root_args];
            args.extend(entry::kept_args(&entry.args).into_iter().map(str::to_owned));
            return Ok(Found {
                boot: file_system,
                kernel: entry.kernel,
                initrd: entry.initrd,
                cmdline: args.join(" "),
            });
        }
    }
    Err(unbootable(image, "there is no kernel in its /boot"))
}

struct Root {
    file_system: FileSystem,
    partition: Partition,
}

/// The root file system, and the other ext4 ones that may hold /boot.
fn open_root(
    disk: &File,
    partitions: &[Partition],
    image: &CachedImage,
) -> Result<(Root, Vec<FileSystem>)> {
    let (mut root, mut others, mut foreign, mut damage) = (None, Vec::new(), None, None);
    for partition in partitions {
        match sniff(disk, partition) {
            Kind::Ext4 => match FileSystem::open(disk, partition, &image.reference) {
                Ok(file_system) if root.is_none() && is_root(&file_system) => {
                    root = Some(Root { file_system, partition: partition.clone() });
                }
                Ok(file_system) => others.push(file_system),
                Err(error) => damage = Some(error),
            },
            Kind::Xfs => foreign = Some("xfs"),
            Kind::Btrfs => foreign = Some("btrfs"),
            Kind::Other => {}
        }
    }
    match (root, damage, foreign) {
        (Some(root), _, _) => Ok((root, others)),
        (None, Some(error), _) => Err(error),
        (None, None, Some(name)) => Err(unbootable(
            image,
            &format!("its root is {name}, of which no kernel can be read here"),
        )),
        (None, None, None) => {
            Err(unbootable(image, "it has no ext4 partition with a system in it"))
        }
    }
}

fn is_root(file_system: &FileSystem) -> bool {
    ["/etc/fstab", "/etc/os-release", "/sbin/init", "/usr/lib/os-release"]
        .iter()
        .any(|path| file_system.exists(path))
}

/// The partition's own identity needs no help from an initrd and is what was really found; fstab's
/// name for it may be a label that two disks share.
fn root_args(root: &Root) -> String {
    let device = match &root.partition.uuid {
        Some(uuid) => format!("PARTUUID={uuid}"),
        None => format!("UUID={}", root.file_system.uuid()),
    };
    // Read-only at first where systemd checks the root and remounts it, which takes an fstab entry.
    let fstab = root.file_system.text("/etc/fstab").unwrap_or_default();
    let mode = if entry::fstab_has_root(&fstab) { "ro" } else { "rw" };
    format!("root={device} {mode}")
}

/// The way this file system says, or seems, to be booted, with paths that exist on it.
fn choose(file_system: &FileSystem) -> Option<Entry> {
    grub_entry(file_system)
        .or_else(|| bls_entry(file_system))
        .or_else(|| linked_kernel(file_system))
        .or_else(|| newest_kernel(file_system))
}

fn grub_entry(file_system: &FileSystem) -> Option<Entry> {
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"]
        .iter()
        .filter_map(|path| entry::from_grub(&file_system.text(path)?))
        .find_map(|entry| located(file_system, entry))
}

fn bls_entry(file_system: &FileSystem) -> Option<Entry> {
    ["/boot/loader/entries", "/loader/entries"].iter().find_map(|dir| {
        let mut names = file_system.names(dir);
        names.retain(|name| Path::new(name).extension().is_some_and(|e| e == "conf"));
        names.sort_by(|a, b| entry::compare_versions(b, a));
        names
            .iter()
            .filter_map(|name| entry::from_bls(&file_system.text(&format!("{dir}/{name}"))?))
            .find_map(|entry| located(file_system, entry))
    })
}

/// Paths in a boot loader's text are from the top of /boot's file system, whatever it is mounted on.
fn located(file_system: &FileSystem, entry: Entry) -> Option<Entry> {
    let locate = |path: &str| {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let below_boot = format!("/boot{path}");
        [path, below_boot].into_iter().find(|path| file_system.is_file(path))
    };
    let kernel = locate(&entry.kernel)?;
    let initrd = match &entry.initrd {
        Some(initrd) => Some(locate(initrd)?),
        None => None,
    };
    Some(Entry { kernel, initrd, args: entry.args })
}

fn linked_kernel(file_system: &FileSystem) -> Option<Entry> {
    ["/vmlinuz", "/boot/vmlinuz"].iter().find_map(|link| {
        let kernel = file_system.resolve(link).filter(|path| file_system.is_file(path))?;
        Some(with_initrd(file_system, kernel))
    })
}

fn newest_kernel(file_system: &FileSystem) -> Option<Entry> {
    ["/boot", ""].iter().find_map(|dir| {
        let mut names = file_system.names(if dir.is_empty() { "/" } else { dir });
        names.retain(|name| {
            (name.starts_with("vmlinuz-")
                || name.starts_with("vmlinux-")
                || name.starts_with("Image-"))
                && !name.contains("rescue")
        });
        names.sort_by(|a, b| entry::compare_versions(b, a));
        let kernel = names
            .into_iter()
            .map(|name| format!("{dir}/{name}"))
            .find(|path| file_system.is_file(path))?;
        Some(with_initrd(file_system, kernel))
    })
}

/// The initrd that goes by the kernel's version.
fn with_initrd(file_system: &FileSystem, kernel: String) -> Entry {
    let (dir, name) = kernel.rsplit_once('/').unwrap_or(("", &kernel));
    let version = name.split_once('-').map_or("", |(_, version)| version);
    let initrd = [
        format!("{dir}/initrd.img-{version}"),
        format!("{dir}/initramfs-{version}.img"),
        format!("{dir}/initrd-{version}"),
        format!("{dir}/initrd.img"),
    ]
    .into_iter()
    .find(|path| file_system.is_file(path));
    Entry { kernel, initrd, args: Vec::new() }
}
