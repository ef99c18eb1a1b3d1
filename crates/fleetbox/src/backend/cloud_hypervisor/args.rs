//! Owns cloud-hypervisor's command line. Pure: a plan in, arguments out.

use std::os::fd::RawFd;
use std::path::Path;

use crate::backend::{Boot, BootPlan};
use crate::spec::Arch;

/// Where cloud-hypervisor finds its tap, its API's listener and the pipe for its events.
pub(super) const TAP_FD: RawFd = 10;
pub(super) const API_FD: RawFd = 11;
pub(super) const EVENTS_FD: RawFd = 12;
/// What it calls the devices that are one VM's own.
pub(super) const DISK_ID: &str = "disk0";
pub(super) const SEED_ID: &str = "seed0";
pub(super) const NET_ID: &str = "net0";

/// The drive of the fixture of that number.
pub(super) fn fixture_id(number: usize) -> String {
    format!("fixture{number}")
}

/// `landlock`: whether the host's kernel can confine the monitor to its files.
pub(super) fn arguments(plan: &BootPlan, landlock: bool) -> Vec<String> {
    let mut args = connections();
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    match &plan.boot {
        Boot::Kernel { kernel, initrd, cmdline } => {
            add("--kernel", text(kernel));
            if let Some(initrd) = initrd {
                add("--initramfs", text(initrd));
            }
            add("--cmdline", cmdline.clone());
        }
        Boot::Firmware(firmware) => add("--firmware", text(&firmware.code)),
        Boot::Nothing => {}
    }
    add("--cpus", cpus(plan));
    // Shared with nobody, but so only what the guest ever wrote to is saved of it.
    add("--memory", format!("size={}M,shared=on", plan.memory_mib));
    // One flag for both: given twice, only the last counts.
    let disk = format!("image_type=qcow2,backing_files=on,id={DISK_ID}");
    add("--disk", format!("path={},{disk}", text(&plan.disk)));
    let seed = (SEED_ID.to_owned(), plan.seed.as_path(), String::new());
    let fixtures = plan.fixtures.iter().enumerate().map(|(number, drive)| {
        (fixture_id(number), drive.image.as_path(), format!(",serial={}", drive.serial))
    });
    for (id, image, more) in std::iter::once(seed).chain(fixtures) {
        args.push(format!("path={},image_type=raw,readonly=on,id={id}{more}", text(image)));
    }
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("--net", format!("fd=[{TAP_FD}],mac={},id={NET_ID}", plan.mac));
    add("--serial", format!("file={}", text(&plan.console)));
    add("--console", "off".to_owned());
    // Gives back what the guest frees. What was taken from the guest stays taken when it runs out, as
    // with QEMU.
    add("--balloon", "size=0,deflate_on_oom=off,free_page_reporting=on".to_owned());
    if landlock {
        args.extend([LANDLOCK, "--landlock-rules"].map(str::to_owned));
        let rule = |(path, access): (&Path, &str)| format!("path={},access={access}", text(path));
        args.extend(rules(plan).map(rule));
    }
    args
}

const LANDLOCK: &str = "--landlock";

/// What a machine that comes back is run with: all else is in that directory.
pub(super) fn restored(source: &Path, landlock: bool) -> Vec<String> {
    let mut args = connections();
    let source = text(Path::new(&url(source)));
    let restore = format!("source_url={source},net_fds=[{NET_ID}@[{TAP_FD}]],resume=on");
    args.extend(["--restore".to_owned(), restore]);
    args.extend(landlock.then(|| LANDLOCK.to_owned()));
    args
}

/// A directory as it wants it named: nothing in it is escaped.
pub(super) fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn connections() -> Vec<String> {
    let api = ["--api-socket".to_owned(), format!("fd={API_FD}")];
    let events = ["--event-monitor".to_owned(), format!("fd={EVENTS_FD}")];
    api.into_iter().chain(events).collect()
}

/// What it may touch besides the files it is told of: those its disk lies on, and a place to write to.
pub(super) fn rules(plan: &BootPlan) -> impl Iterator<Item = (&Path, &'static str)> {
    let below = plan.layers.iter().chain([&plan.image]).map(|path| (path.as_path(), "r"));
    below.chain([(plan.scratch.as_path(), "rw")])
}

fn cpus(plan: &BootPlan) -> String {
    let nested = match (plan.arch, plan.nested_virt) {
        (Arch::Aarch64, _) => "",
        (Arch::X86_64, true) => ",nested=on",
        (Arch::X86_64, false) => ",nested=off",
    };
    format!("boot={}{nested}", plan.cpus)
}

/// A path among the options of one argument. What separates them cannot be written in a value
/// unless that is in quotes (cloud-hypervisor's `option_parser`).
fn text(path: &Path) -> String {
    let path = path.to_string_lossy();
    if path.contains([',', '=', '[', ']']) { format!("\"{path}\"") } else { path.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Accel, Backend, FirmwareFiles};

    fn plan() -> BootPlan {
        BootPlan::sample(Backend::CloudHypervisor, Accel::Kvm)
    }

    #[test]
    fn the_overlay_may_have_its_image_and_the_seed_is_read_only() {
        let line = arguments(&plan(), false).join(" ");
        assert!(line.contains(
            "--disk path=\"/a,b/disk.qcow2\",image_type=qcow2,backing_files=on,id=disk0 \
             path=/seed.img,image_type=raw,readonly=on,id=seed0 --net fd=[10],mac=52:54:00:00:00:01"
        ));
        assert!(line.contains("--cpus boot=2,nested=off --memory size=1024M,shared=on"));
        assert!(!line.contains("landlock"));
    }

    #[test]
    fn fixtures_are_disks_that_cannot_be_written_to() {
        let line = arguments(&plan().with_fixture(), false).join(" ");
        assert!(line.contains(
            "readonly=on,id=seed0 path=\"/f,f/fixture-0.img\",image_type=raw,readonly=on,id=fixture0,serial=fleetbox-0 --net"
        ), "{line}");
    }

    #[test]
    fn where_the_kernel_can_it_is_confined_to_its_files_and_the_image() {
        let plan = BootPlan { layers: vec!["/a,b/layer-1.qcow2".into()], ..plan() };
        let line = arguments(&plan, true).join(" ");
        assert!(line.ends_with(
            "--landlock --landlock-rules path=\"/a,b/layer-1.qcow2\",access=r \
             path=/cache/debian.raw,access=r path=/scratch,access=rw"
        ));
    }

    #[test]
    fn one_that_comes_back_is_told_where_from_and_gets_its_tap() {
        let args = restored(Path::new("/a,b/scratch"), true);
        assert_eq!(
            args.join(" "),
            "--api-socket fd=11 --event-monitor fd=12 --restore \
             source_url=\"file:///a,b/scratch\",net_fds=[net0@[10]],resume=on --landlock"
        );
        assert!(!restored(Path::new("/a"), false).contains(&"--landlock".to_owned()));
    }

    #[test]
    fn the_initrd_is_optional() {
        assert!(arguments(&plan(), false).contains(&"--initramfs".to_owned()));
        let boot = Boot::Kernel { kernel: "/k".into(), initrd: None, cmdline: String::new() };
        let plan = BootPlan { boot, ..plan() };
        assert!(!arguments(&plan, false).contains(&"--initramfs".to_owned()));
    }

    #[test]
    fn a_firmware_takes_the_kernels_place() {
        let boot = Boot::Firmware(FirmwareFiles {
            code: "/CLOUDHV.fd".into(),
            variables: None,
            format: "raw".into(),
        });
        let line = arguments(&BootPlan { boot, ..plan() }, false).join(" ");
        assert!(line.contains("--firmware /CLOUDHV.fd"), "{line}");
        assert!(!line.contains("--kernel") && !line.contains("--cmdline"), "{line}");
    }
}
