//! Owns QEMU's command line. Pure: a plan in, arguments out.

use std::os::fd::RawFd;
use std::path::Path;

use crate::backend::{Accel, Boot, BootPlan, FirmwareFiles, Turns};
use crate::spec::Arch;

/// Where QEMU finds its tap and its QMP connection.
pub(super) const TAP_FD: RawFd = 10;
pub(super) const QMP_FD: RawFd = 11;

/// Where it finds the server of a disk with a volatile cache.
pub(super) const DISK_FD: RawFd = 12;
/// The disk's device and the node it stands on while nothing is wrong with it.
pub(super) const DISK_DEVICE: &str = "vda";
pub(super) const DISK_NODE: &str = "disk0";
/// The guest's memory.
const MEMORY: &str = "ram0";

/// Translated code kept, in MiB. Without a bound QEMU takes a gigabyte; a booted Debian needs less
/// than this.
const TRANSLATION_CACHE_MIB: u32 = 512;
/// The same for a guest that has guests of its own, whose code is translated besides.
const TRANSLATION_CACHE_NESTED_MIB: u32 = 1024;

/// By these a processor says that it copies and fills memory fastest as bytes (`rep movsb`; CPUID's leaf 7,
/// "Enhanced REP MOVSB/STOSB"). Guests' kernels and libraries believe it, and QEMU emulates byte for byte.
/// Without, they take eight at a time: a boot of Debian 12 takes an eighth less of the host's processors.
const SLOW_WHEN_EMULATED: &str = ",erms=off,fsrm=off";

/// What the guest's memory is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory<'a> {
    /// The monitor's own.
    Anonymous,
    /// A file, which has in it what the guest's memory has. A guest comes in over QMP and stands still.
    Received(&'a Path),
    /// A file's content, and the guest's own from where it writes. A guest comes in over QMP.
    Restored(&'a Path),
}

pub(super) fn arguments(plan: &BootPlan, memory: Memory<'_>) -> Vec<String> {
    let mut args = Args(Vec::new());
    args.add("-name", format!("guest={},debug-threads=on", plan.vm));
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    // What the guest can break in QEMU stays in QEMU.
    args.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    args.add("-display", "none");
    machine(&mut args, plan);
    args.add("-smp", plan.cpus.to_string());
    self::memory(&mut args, plan, memory);
    boot(&mut args, &plan.boot);
    disks(&mut args, plan);
    args.add("-netdev", format!("tap,id=net0,fd={TAP_FD},vhost=off"));
    // No option ROM: nothing boots from the network.
    args.add("-device", format!("virtio-net-pci,netdev=net0,mac={},romfile=", plan.mac));
    args.add("-object", "rng-random,id=rng0,filename=/dev/urandom");
    args.add("-device", "virtio-rng-pci,rng=rng0");
    args.add("-device", "virtio-balloon-pci");
    if plan.arch == Arch::X86_64 {
        // A guest that has its driver renews its randomness when it comes back as another.
        args.add("-device", "vmgenid,guid=auto");
    }
    // Last, so that no other device is elsewhere with them.
    fixtures(&mut args, plan);
    args.add("-chardev", format!("file,id=console0,path={}", option(&path(&plan.console))));
    args.add("-serial", "chardev:console0");
    args.add("-chardev", format!("socket,id=qmp0,fd={QMP_FD}"));
    args.add("-mon", "chardev=qmp0,mode=control");
    args.0
}

fn machine(args: &mut Args, plan: &BootPlan) {
    let machine = match plan.arch {
        Arch::X86_64 => "q35,hpet=off",
        Arch::Aarch64 => "virt",
    };
    args.add("-machine", format!("{machine},memory-backend={MEMORY}"));
    match plan.accel {
        Accel::Kvm => {
            args.add("-accel", "kvm");
            args.add("-cpu", "host");
        }
        Accel::Tcg => {
            let cache_mib =
                if plan.nested_virt { TRANSLATION_CACHE_NESTED_MIB } else { TRANSLATION_CACHE_MIB };
            let threads = match plan.turns {
                Turns::SideBySide => "multi",
                Turns::InTurn => "single",
            };
            args.add("-accel", format!("tcg,thread={threads},tb-size={cache_mib}"));
            let cpu = match plan.arch {
                // The architected pointer authentication is very slow to emulate (QEMU's
                // docs/system/arm/cpu-features.rst).
                Arch::Aarch64 => "max,pauth-impdef=on",
                Arch::X86_64 if plan.nested_virt => "max,svm=on,npt=on",
                // `max` has svm, too. Taken away, mounts and udev fail in a Debian 12 guest (QEMU 7.2,
                // two boots of two; none of four with it).
                Arch::X86_64 => "max",
            };
            let slow = if plan.arch == Arch::X86_64 { SLOW_WHEN_EMULATED } else { "" };
            args.add("-cpu", format!("{cpu}{slow}"));
        }
    }
}

/// How much memory a machine has. An emulated one has two pages more than asked for: before 9.0, QEMU
/// loses what a guest writes while its memory is copied, unless that is no multiple of 64 pages. When it
/// takes the marks of what was written, it tells the emulated processors' TLBs to notice writes again, page
/// by page; of 64 pages at once it forgets to (`cpu_physical_memory_sync_dirty_bitmap`; mended by "physmem:
/// Fix migration dirty bitmap coherency with TCG memory access").
pub(super) fn memory_kib(plan: &BootPlan) -> u64 {
    let asked = u64::from(plan.memory_mib) << 10;
    match plan.accel {
        Accel::Kvm => asked,
        Accel::Tcg => asked + 8,
    }
}

/// The same by name in all three: QEMU finds what it saved by it.
fn memory(args: &mut Args, plan: &BootPlan, memory: Memory<'_>) {
    let file = |file: &Path, share: &str| {
        let file = option(&path(file));
        format!("memory-backend-file,mem-path={file},share={share}")
    };
    let (kind, incoming) = match memory {
        Memory::Anonymous => ("memory-backend-ram".to_owned(), false),
        Memory::Received(memory) => (file(memory, "on"), true),
        Memory::Restored(memory) => (file(memory, "off"), true),
    };
    let size_kib = memory_kib(plan);
    args.add("-m", format!("{size_kib}K"));
    args.add("-object", format!("{kind},id={MEMORY},size={size_kib}K"));
    if incoming {
        args.flag("-S");
        args.add("-incoming", "defer");
    }
}

fn boot(args: &mut Args, boot: &Boot) {
    match boot {
        Boot::Kernel { kernel, initrd, cmdline } => {
            args.add("-kernel", path(kernel));
            if let Some(initrd) = initrd {
                args.add("-initrd", path(initrd));
            }
            args.add("-append", cmdline.clone());
        }
        Boot::Firmware(FirmwareFiles { code, variables, format }) => {
            let flash = |unit: u8, file: &Path, more: &str| {
                format!("if=pflash,unit={unit},format={format},file={}{more}", option(&path(file)))
            };
            args.add("-drive", flash(0, code, ",readonly=on"));
            if let Some(variables) = variables {
                args.add("-drive", flash(1, variables, ""));
            }
        }
        Boot::Nothing => {}
    }
}

fn disks(args: &mut Args, plan: &BootPlan) {
    // Ignores flushes, also those that keep qcow2's own tables whole: only for disks that nobody sees
    // after a crash.
    // A durable disk's flushes are what a power cut goes by.
    let cache = if plan.ephemeral && !plan.durable { ",cache.no-flush=on" } else { "" };
    let file = if plan.durable {
        format!("driver=nbd,server.type=fd,server.str={DISK_FD}")
    } else {
        format!("driver=file,filename={}{cache}", option(&path(&plan.disk)))
    };
    args.add("-blockdev", format!("{file},node-name=file0,discard=unmap"));
    let backing = layers(args, plan);
    let disk =
        format!("driver=qcow2,node-name={DISK_NODE},file=file0,discard=unmap{cache}{backing}");
    args.add("-blockdev", disk);
    // A firmware looks nowhere else. 0 is the kernel that QEMU itself loads.
    let device = format!("virtio-blk-pci,id={DISK_DEVICE},drive={DISK_NODE},bootindex=1");
    args.add("-device", device);
    let seed = option(&path(&plan.seed));
    args.add("-blockdev", format!("driver=file,node-name=seed0,filename={seed},read-only=on"));
    args.add("-device", "virtio-blk-pci,drive=seed0");
}

fn fixtures(args: &mut Args, plan: &BootPlan) {
    for (number, drive) in plan.fixtures.iter().enumerate() {
        let (node, file) = (format!("fixture{number}"), option(&path(&drive.image)));
        args.add("-blockdev", format!("driver=file,node-name={node},filename={file},read-only=on"));
        let device = format!("virtio-blk-pci,drive={node},serial={}", option(&drive.serial));
        args.add("-device", device);
    }
}

/// What the disk lies on, told one by one: the names in the files are of the directory they were
/// made in. Returns the option that puts the disk on it.
fn layers(args: &mut Args, plan: &BootPlan) -> String {
    if plan.layers.is_empty() {
        return String::new();
    }
    let read_only = |args: &mut Args, node: &str, kind: &str, file: &Path, backing: &str| {
        let file = option(&path(file));
        args.add(
            "-blockdev",
            format!("driver=file,node-name={node}-file,filename={file},read-only=on"),
        );
        let layer =
            format!("driver={kind},node-name={node},file={node}-file,read-only=on{backing}");
        args.add("-blockdev", layer);
    };
    read_only(args, "image0", "raw", &plan.image, "");
    let mut below = "image0".to_owned();
    for (number, layer) in plan.layers.iter().enumerate().rev() {
        let node = format!("layer{number}");
        read_only(args, &node, "qcow2", layer, &format!(",backing={below}"));
        below = node;
    }
    format!(",backing={below}")
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Inside an option list a comma is doubled (qemu(1), "Options").
fn option(value: &str) -> String {
    value.replace(',', ",,")
}

struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn add(&mut self, flag: &str, value: impl Into<String>) {
        self.flag(flag);
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    fn plan() -> BootPlan {
        BootPlan::sample(Backend::Qemu, Accel::Tcg)
    }

    fn line(plan: &BootPlan) -> String {
        arguments(plan, Memory::Anonymous).join(" ")
    }

    #[test]
    fn emulation_bounds_its_cache_and_kvm_takes_the_hosts_processor() {
        assert!(
            line(&plan())
                .contains("-accel tcg,thread=multi,tb-size=512 -cpu max,erms=off,fsrm=off -smp 2")
        );
        let in_turn = BootPlan { turns: Turns::InTurn, ..plan() };
        assert!(line(&in_turn).contains("-accel tcg,thread=single,tb-size=512 -cpu max,"));
        let kvm = BootPlan { accel: Accel::Kvm, ..plan() };
        assert!(line(&kvm).contains("-accel kvm -cpu host"));
    }

    #[test]
    fn guests_with_guests_get_the_extension_and_a_larger_cache() {
        let nested = BootPlan { nested_virt: true, ..plan() };
        assert!(line(&nested).contains("tb-size=1024 -cpu max,svm=on,npt=on,erms=off,fsrm=off"));
        let kvm = BootPlan { accel: Accel::Kvm, ..nested };
        assert!(line(&kvm).contains("-accel kvm -cpu host -smp"));
    }

    #[test]
    fn arm_guests_get_the_virt_machine() {
        let arm = BootPlan { arch: Arch::Aarch64, ..plan() };
        assert!(line(&arm).contains(
            "-machine virt,memory-backend=ram0 -accel tcg,thread=multi,tb-size=512 -cpu max,pauth-impdef=on"
        ));
    }

    #[test]
    fn only_throw_away_disks_ignore_flushes() {
        assert!(!line(&plan()).contains("no-flush"));
        let ephemeral = line(&BootPlan { ephemeral: true, ..plan() });
        assert_eq!(ephemeral.matches("cache.no-flush=on").count(), 2, "{ephemeral}");
    }

    #[test]
    fn a_durable_disk_is_served() {
        let line = line(&BootPlan { durable: true, ..plan() });
        assert!(line.contains("driver=nbd,server.type=fd,server.str=12,node-name=file0"), "{line}");
        assert!(!line.contains("disk.qcow2"));
    }

    #[test]
    fn an_emulated_machine_has_memory_that_is_saved_page_by_page() {
        const TOGETHER_KIB: u64 = 64 * 4;
        let kib = |accel| memory_kib(&BootPlan { accel, ..plan() });
        assert_eq!(kib(Accel::Kvm), 1 << 20);
        assert!(!kib(Accel::Tcg).is_multiple_of(TOGETHER_KIB));
        assert!(line(&plan()).contains("-m 1048584K -object"));
    }

    #[test]
    fn a_machine_that_comes_in_has_its_memory_in_a_file() {
        let file = Path::new("/m,m");
        let restored = arguments(&plan(), Memory::Restored(file)).join(" ");
        assert!(restored.contains(
            "-object memory-backend-file,mem-path=/m,,m,share=off,id=ram0,size=1048584K -S -incoming defer"
        ));
        let received = arguments(&plan(), Memory::Received(file)).join(" ");
        assert!(received.contains("mem-path=/m,,m,share=on"), "{received}");
        assert!(line(&plan()).contains("-object memory-backend-ram,id=ram0,size=1048584K -kernel"));
    }

    #[test]
    fn layers_are_told_from_the_image_up() {
        let layers = vec!["/top.qcow2".into(), "/low.qcow2".into()];
        let line = line(&BootPlan { layers, ..plan() });
        assert!(
            line.contains("driver=raw,node-name=image0,file=image0-file,read-only=on"),
            "{line}"
        );
        assert!(line.contains("node-name=layer1,file=layer1-file,read-only=on,backing=image0"));
        assert!(line.contains("node-name=layer0,file=layer0-file,read-only=on,backing=layer1"));
        assert!(line.contains("node-name=disk0,file=file0,discard=unmap,backing=layer0"));
    }

    #[test]
    fn fixtures_are_drives_that_cannot_be_written_to() {
        let line = line(&plan().with_fixture());
        assert!(line.contains(
            "-device vmgenid,guid=auto -blockdev driver=file,node-name=fixture0,filename=/f,,f/fixture-0.img,read-only=on \
             -device virtio-blk-pci,drive=fixture0,serial=fleetbox-0 -chardev"
        ), "{line}");
    }

    #[test]
    fn commas_in_paths_stay_in_the_path() {
        assert!(line(&plan()).contains("driver=file,filename=/a,,b/disk.qcow2,node-name=file0"));
    }

    #[test]
    fn the_initrd_is_optional() {
        assert!(line(&plan()).contains("-kernel /k -initrd /i -append root=/dev/vda1"));
        let boot = Boot::Kernel { kernel: "/k".into(), initrd: None, cmdline: String::new() };
        assert!(!line(&BootPlan { boot, ..plan() }).contains("-initrd"));
    }

    #[test]
    fn a_firmware_is_read_only_and_its_variables_are_the_machines() {
        let boot = Boot::Firmware(FirmwareFiles {
            code: "/CODE.fd".into(),
            variables: Some("/own.fd".into()),
            format: "raw".into(),
        });
        let line = line(&BootPlan { boot, ..plan() });
        assert!(line.contains(
            "-drive if=pflash,unit=0,format=raw,file=/CODE.fd,readonly=on -drive if=pflash,unit=1,format=raw,file=/own.fd"
        ));
        assert!(!line.contains("-kernel") && !line.contains("-append"), "{line}");
    }
}
