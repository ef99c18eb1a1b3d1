//! Owns the question whether KVM can work inside guests of this host. It must not start anything.

use std::path::Path;

use super::{Accel, select};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Arch;

/// Where KVM's module says whether it lets guests have guests; by vendor of the processor.
const MODULES: [&str; 2] = ["kvm_intel", "kvm_amd"];

/// The oldest QEMU seen to bear guests inside an emulated guest: 11.1, for half an hour at a time and
/// with one processor in the outer guest. With two, its kernel crashed or hung within minutes under
/// 7.2, 10.0 and 11.1 alike: it met kicks from the other processor where they are held off, or waited
/// for ones that never came.
const SOUND_QEMU: u32 = 11;

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

/// What the user should hear of a QEMU that shall emulate the extension; asks it for its version.
pub(crate) async fn doubts(program: &Path, cpus: u32) -> Option<String> {
    if cpus > 1 {
        let why =
            "emulated, a guest with several processors may crash while it has guests: give it one";
        return Some(why.to_owned());
    }
    let asked = tokio::process::Command::new(program).arg("--version").output().await;
    // One that does not run is told when it shall run the guest.
    doubt(program, &String::from_utf8_lossy(&asked.ok()?.stdout))
}

/// From `QEMU emulator version 7.2.22 (Debian …)`.
fn doubt(program: &Path, said: &str) -> Option<String> {
    let major: u32 = said.split_once("version ")?.1.split('.').next()?.parse().ok()?;
    (major < SOUND_QEMU).then(|| {
        format!(
            "{} is older than QEMU {SOUND_QEMU}: it may hang or crash with guests inside the guest",
            program.display()
        )
    })
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
    fn an_old_qemu_is_doubted() {
        let doubted = |said| doubt(Path::new("/q"), said).is_some();
        assert!(doubted("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\n"));
        assert!(doubted("QEMU emulator version 10.0.2\nCopyright"));
        assert!(!doubted("QEMU emulator version 11.1.3\nCopyright"));
        assert!(!doubted("something else"));
    }

    #[test]
    fn arm_guests_are_refused() {
        let error = check(Accel::Tcg, Arch::Aarch64).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnsupported);
    }
}
