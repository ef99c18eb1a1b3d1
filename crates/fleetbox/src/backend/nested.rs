//! Owns the question whether KVM can work inside guests of this host. It must not start anything.

use std::path::Path;

use super::{Accel, select};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Arch;

/// Where KVM's module says whether it lets guests have guests; by vendor of the processor.
const MODULES: [&str; 2] = ["kvm_intel", "kvm_amd"];

/// Whether KVM can work inside guests of this host's architecture, that is, whether
/// [`VmBuilder::nested_virt`](crate::VmBuilder::nested_virt) is of use here.
///
/// Without KVM on the host, x86-64 guests still get it: QEMU emulates the processor's extension, at
/// the price of being slow twice. With KVM, its module must allow nesting, as it does by default
/// since Linux 4.20 (Intel) and always did (AMD). Guests for aarch64 cannot have it.
///
/// ```
/// if !fleetbox::nested_virt_supported() {
///     println!("no virtual machines inside virtual machines here");
/// }
/// ```
#[must_use]
pub fn nested_virt_supported() -> bool {
    let (accel, _) = select::accel(Arch::host());
    check(accel, Arch::host()).is_ok()
}

/// Whether this host is itself a virtual machine, as far as its processor says: then its KVM, if it
/// has one, is nested, and may be slower than a bare one by any factor.
pub(crate) fn host_is_virtual() -> bool {
    // Elsewhere than on Linux there is no such file, and no KVM either.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "hypervisor")
}

/// Refuses a guest that shall have KVM where it cannot, with the fix.
pub(crate) fn check(accel: Accel, arch: Arch) -> Result<()> {
    check_at(Path::new("/sys/module"), accel, arch)
}

fn check_at(modules: &Path, accel: Accel, arch: Arch) -> Result<()> {
    let refuse = |why: &str, hint: &str| {
        let message = format!("offer KVM inside the guest: {why}");
        Err(Error::new(ErrorKind::HostUnsupported, message).hint(hint))
    };
    match (arch, accel) {
        (Arch::Aarch64, _) => refuse(
            "guests for aarch64 cannot have it",
            "use an x86_64 guest, or leave nested virtualization out",
        ),
        (Arch::X86_64, Accel::Tcg) => Ok(()),
        (Arch::X86_64, Accel::Kvm) => match loaded(modules) {
            Some((_, true)) => Ok(()),
            Some((module, false)) => refuse(
                &format!("the host's module {module} does not allow it"),
                &format!(
                    "with no VM running: `sudo modprobe -r {module} && sudo modprobe {module} nested=1`"
                ),
            ),
            None => refuse(
                "the host's KVM module does not say that it allows it",
                "see that kvm_intel or kvm_amd is loaded with nested=1",
            ),
        },
    }
}

/// The loaded module and whether it allows nesting: Intel's prints a letter, AMD's a digit.
fn loaded(modules: &Path) -> Option<(&'static str, bool)> {
    MODULES.into_iter().find_map(|module| {
        let text = std::fs::read_to_string(modules.join(module).join("parameters/nested")).ok()?;
        Some((module, matches!(text.trim(), "Y" | "y" | "1")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_module_decides_where_there_is_kvm() {
        let dir = tempfile::tempdir().unwrap();
        let check = |accel| check_at(dir.path(), accel, Arch::X86_64);
        check(Accel::Tcg).unwrap();
        assert_eq!(check(Accel::Kvm).unwrap_err().kind(), ErrorKind::HostUnsupported);
        let parameters = dir.path().join("kvm_amd/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        for (text, allowed) in [("1\n", true), ("0\n", false), ("Y\n", true), ("N\n", false)] {
            std::fs::write(parameters.join("nested"), text).unwrap();
            assert_eq!(check(Accel::Kvm).is_ok(), allowed, "{text:?}");
        }
        let error = check(Accel::Kvm).unwrap_err();
        assert!(error.hint_text().unwrap().contains("modprobe kvm_amd nested=1"), "{error:?}");
    }

    #[test]
    fn arm_guests_are_refused() {
        let error = check(Accel::Tcg, Arch::Aarch64).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnsupported);
    }
}
