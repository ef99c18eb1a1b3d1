//! Owns the question whether KVM really works here: a guest instruction must run, the file alone
//! proves nothing. Linux only.

mod guest;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Why KVM cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unusable {
    Absent,
    NotPermitted,
    /// It is there, but no guest makes progress on it.
    Useless(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Absent => f.write_str("this host has no /dev/kvm"),
            Unusable::NotPermitted => f.write_str("/dev/kvm may not be opened by this user"),
            Unusable::Useless(why) => write!(f, "/dev/kvm is there but {why}"),
        }
    }
}

impl Unusable {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Unusable::Absent => {
                "enable virtualization in the firmware, or nested virtualization in the outer hypervisor"
            }
            Unusable::NotPermitted => {
                "add the user to the group kvm, or run `sudo chmod 666 /dev/kvm`"
            }
            Unusable::Useless(_) => "ask the host's provider for nested virtualization",
        }
    }
}

/// Long enough for a busy host; a dead KVM never returns at all.
const PROBE_WAIT: Duration = Duration::from_secs(2);

/// Whether KVM works for guests of this host's architecture; asked once per process.
pub(crate) fn probe() -> Result<(), Unusable> {
    static ANSWER: OnceLock<Result<(), Unusable>> = OnceLock::new();
    ANSWER.get_or_init(probe_now).clone()
}

fn probe_now() -> Result<(), Unusable> {
    open(Path::new("/dev/kvm"))?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu_can_virtualize(&cpuinfo)?;
    // A dead KVM may never return from KVM_RUN: then the thread stays there until the process ends.
    let (sender, receiver) = mpsc::channel();
    let spawned = std::thread::Builder::new()
        .name("fleetbox-kvm-probe".into())
        .spawn(move || sender.send(guest::run()));
    if let Err(e) = spawned {
        return Err(Unusable::Useless(format!("the probe could not start: {e}")));
    }
    match receiver.recv_timeout(PROBE_WAIT) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(Unusable::Useless(format!("a guest cannot run: {e}"))),
        Err(_) => Err(Unusable::Useless("a guest instruction makes no progress".into())),
    }
}

fn open(device: &Path) -> Result<(), Unusable> {
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(Unusable::NotPermitted),
        // Without the module the file may be there all the same (ENODEV, ENXIO).
        Err(_) => Err(Unusable::Absent),
    }
}

/// What guests see of the host: its processor with all it can do, and its kernel, in a line.
pub(crate) fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| cpuinfo.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let what = format!("{}{}{}", line("flags"), line("Features"), line("microcode"));
    let digest = crate::images::hex(&Sha256::digest(what)[..4]);
    let model = line("model name").split(": ").nth(1).unwrap_or("processor");
    format!("{model} ({digest}) on Linux {}", kernel.trim())
}

/// A paravirtual KVM may run a few instructions and then no kernel, so on x86-64 the processor must
/// say itself that it can (flags of /proc/cpuinfo).
fn cpu_can_virtualize(cpuinfo: &str) -> Result<(), Unusable> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    if flags.split_whitespace().any(|f| f == "vmx" || f == "svm") {
        Ok(())
    } else {
        Err(Unusable::Useless("the processor shows neither vmx nor svm".into()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn absent_and_forbidden_devices_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        assert_eq!(open(&device), Err(Unusable::Absent));
        std::fs::write(&device, "").unwrap();
        assert_eq!(open(&device), Ok(()));
        std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o000)).unwrap();
        // Root may open anything.
        let expected =
            if rustix::process::geteuid().is_root() { Ok(()) } else { Err(Unusable::NotPermitted) };
        assert_eq!(open(&device), expected);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_processor_without_the_extension_makes_kvm_useless() {
        let flags =
            |flags: &str| cpu_can_virtualize(&format!("processor: 0\nflags : fpu {flags}\n"));
        assert_eq!(flags("vmx"), Ok(()));
        assert_eq!(flags("svm lahf_lm"), Ok(()));
        assert!(matches!(flags("svm_lock"), Err(Unusable::Useless(_))));
        assert!(matches!(cpu_can_virtualize(""), Err(Unusable::Useless(_))));
    }

    #[test]
    fn each_reason_names_its_fix() {
        for reason in [Unusable::Absent, Unusable::NotPermitted, Unusable::Useless("x".into())] {
            assert!(!reason.to_string().is_empty() && !reason.hint().is_empty());
        }
        assert!(Unusable::NotPermitted.hint().contains("group kvm"));
    }
}
