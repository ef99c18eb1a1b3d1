//! A real boot by firmware: of an image whose kernel lies where fleetbox does not read, on its EFI
//! system partition, beside the boot loader that stock images bring.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fleetbox::{Backend, Result, State, Vm};
use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, partition_types};

use crate::require;
use crate::unique;

/// Debian's own, of its package `grub-efi-amd64-signed`. It reads `/EFI/debian/grub.cfg`.
const LOADER: &str = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;
const EFI_BYTES: u64 = 64 * MIB;
/// What the loader is told besides, to see that it was it.
const MARK: &str = "fleetbox.booted_by=grub";

#[tokio::test]
async fn an_image_with_a_hidden_kernel_boots_by_its_loader() -> Result<()> {
    if !require::can_boot().await || fleetbox::Arch::host() != fleetbox::Arch::X86_64 {
        return Ok(());
    }
    if let Some(missing) = [LOADER, FIRMWARE].iter().find(|file| !Path::new(file).is_file()) {
        require::missing(Backend::Qemu, &format!("there is no {missing}"));
        return Ok(());
    }
    let dir = tempfile::tempdir().unwrap();
    let image = hidden(&plain_image().await, dir.path());
    let name = unique("loader");
    // QEMU, as there is no package of a firmware for cloud-hypervisor.
    let builder = Vm::builder(&name).backend(Backend::Qemu).memory_mib(1024);
    let vm = builder.image(image.to_str().unwrap()).start().await?;
    assert!(vm.ssh("cat /proc/cmdline").await?.contains(MARK));
    assert_eq!(
        vm.ssh("test -d /sys/firmware/efi && ls /boot | grep -c vmlinuz || true").await?,
        "0"
    );
    assert_eq!(vm.state().await?, State::Running);
    vm.reboot().await?;
    assert!(vm.ssh("cat /proc/cmdline").await?.contains(MARK));
    vm.destroy().await
}

async fn plain_image() -> PathBuf {
    let images = fleetbox::images::list().await.unwrap();
    let image = images.into_iter().find(|image| image.reference == fleetbox::DEFAULT_IMAGE);
    image.and_then(|image| image.path).expect("the image, as it can boot")
}

/// A copy of the image with its kernel moved to an EFI system partition.
fn hidden(plain: &Path, dir: &Path) -> PathBuf {
    let image = dir.join("hidden.raw");
    let copy = ["--sparse=always", "--reflink=auto"].map(OsStr::new);
    run("cp", &[copy[0], copy[1], plain.as_os_str(), image.as_os_str()]);
    let table = GptConfig::new().open(plain).unwrap();
    let root = table.partitions().values().find(|p| p.is_used()).unwrap().clone();
    let ext4 = format!("{}?offset={}", image.display(), root.first_lba * SECTOR_BYTES);
    let boot = debugfs(&ext4, "ls -p /boot");
    let named = |prefix: &str| {
        let name = boot.split('/').find(|name| name.starts_with(prefix));
        name.unwrap_or_else(|| panic!("no {prefix} in {boot}")).to_owned()
    };
    let mut files = vec![("EFI/BOOT/BOOTX64.EFI", std::fs::read(LOADER).unwrap())];
    for (name, target) in [(named("vmlinuz-"), "vmlinuz"), (named("initrd.img-"), "initrd")] {
        let file = dir.join(target);
        debugfs(&ext4, &format!("dump /boot/{name} {}", file.display()));
        debugfs(&ext4, &format!("rm /boot/{name}"));
        files.push((target, std::fs::read(&file).unwrap()));
    }
    let root_uuid = root.part_guid.to_string().to_lowercase();
    let menu = format!(
        "linux /vmlinuz root=PARTUUID={root_uuid} ro console=ttyS0 {MARK}\ninitrd /initrd\nboot\n"
    );
    files.push(("EFI/debian/grub.cfg", menu.into_bytes()));
    let efi = partition(&image, root);
    write_efi(&image, efi, &files);
    image
}

/// A new table on a longer disk: the root where it was, the EFI system partition behind it. Returns
/// where that is.
fn partition(image: &Path, root: gpt::partition::Partition) -> u64 {
    let mut disk = File::options().read(true).write(true).open(image).unwrap();
    let disk_bytes = (root.last_lba + 1) * SECTOR_BYTES + EFI_BYTES + 4 * MIB;
    disk.set_len(disk_bytes).unwrap();
    let sectors = u32::try_from(disk_bytes / SECTOR_BYTES - 1).unwrap();
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut disk).unwrap();
    let mut table = GptConfig::new().writable(true).create_from_device(disk, None).unwrap();
    table.update_partitions([(1, root)].into()).unwrap();
    let efi = table
        .add_partition("efi", EFI_BYTES, partition_types::EFI, 0, Some(MIB / SECTOR_BYTES))
        .unwrap();
    let offset_bytes = table.partitions()[&efi].first_lba * SECTOR_BYTES;
    table.write().unwrap();
    offset_bytes
}

fn write_efi(image: &Path, offset_bytes: u64, files: &[(&str, Vec<u8>)]) {
    let mut volume = std::io::Cursor::new(vec![0; usize::try_from(EFI_BYTES).unwrap()]);
    fatfs::format_volume(&mut volume, fatfs::FormatVolumeOptions::new()).unwrap();
    {
        let fat = fatfs::FileSystem::new(&mut volume, fatfs::FsOptions::new()).unwrap();
        for (path, content) in files {
            let mut dir = fat.root_dir();
            let mut parts = path.split('/').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_some() {
                    dir = dir.create_dir(part).unwrap();
                } else {
                    dir.create_file(part).unwrap().write_all(content).unwrap();
                }
            }
        }
    }
    let disk = File::options().write(true).open(image).unwrap();
    disk.write_all_at(volume.get_ref(), offset_bytes).unwrap();
}

fn debugfs(file_system: &str, request: &str) -> String {
    run("/usr/sbin/debugfs", &["-w", "-R", request, file_system].map(OsStr::new))
}

fn run(program: &str, args: &[&OsStr]) -> String {
    #[expect(clippy::disallowed_methods, reason = "makes an image with the tools there are")]
    let output = std::process::Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
