//! Owns cloud-hypervisor's command line. Pure: a plan in, arguments out.

use std::os::fd::RawFd;
use std::path::Path;

use crate::backend::{Boot, BootPlan};
use crate::spec::Arch;

/// Where cloud-hypervisor finds its tap, its API's listener and the pipe for its events.
pub(super) const TAP_FD: RawFd = 10;
pub(super) const API_FD: RawFd = 11;
pub(super) const EVENTS_FD: RawFd = 12;

/// `landlock`: whether the host's kernel can confine the monitor to its files.
pub(super) fn arguments(plan: &BootPlan, landlock: bool) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("--api-socket", format!("fd={API_FD}"));
    add("--event-monitor", format!("fd={EVENTS_FD}"));
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
    add("--memory", format!("size={}M", plan.memory_mib));
    // One flag for both: given twice, only the last counts.
    add("--disk", format!("path={},image_type=qcow2,backing_files=on,id=disk0", text(&plan.disk)));
    args.push(format!("path={},image_type=raw,readonly=on,id=seed0", text(&plan.seed)));
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("--net", format!("fd=[{TAP_FD}],mac={},id=net0", plan.mac));
    add("--serial", format!("file={}", text(&plan.console)));
    add("--console", "off".to_owned());
    // Gives back what the guest frees. What was taken from the guest stays taken when it runs out, as
    // with QEMU.
    add("--balloon", "size=0,deflate_on_oom=off,free_page_reporting=on".to_owned());
    if landlock {
        args.push("--landlock".to_owned());
        // It allows the files it is told of, not those a disk lies on.
        for below in [&plan.image].into_iter().chain(&plan.layers) {
            let rule = format!("path={},access=r", text(below));
            args.extend(["--landlock-rules".to_owned(), rule]);
        }
    }
    args
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
        assert!(line.contains("--cpus boot=2,nested=off --memory size=1024M"));
        assert!(!line.contains("landlock"));
    }

    #[test]
    fn where_the_kernel_can_it_is_confined_to_its_files_and_the_image() {
        let line = arguments(&plan(), true).join(" ");
        assert!(line.ends_with("--landlock --landlock-rules path=/cache/debian.raw,access=r"));
    }

    #[test]
    fn layers_may_be_read_too() {
        let plan = BootPlan { layers: vec!["/vm/layer-1.qcow2".into()], ..plan() };
        let line = arguments(&plan, true).join(" ");
        assert!(line.ends_with("--landlock-rules path=/vm/layer-1.qcow2,access=r"), "{line}");
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
