//! Owns the choice of backend and acceleration on this host, and the words that explain it. It
//! must not start a machine.

use std::path::PathBuf;

use super::{Accel, Backend};
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::prepare::program::{self, Want};
use crate::progress::ProgressSink;
use crate::spec::Arch;
use crate::store::paths::Paths;

/// What was chosen, and what the user should hear of it.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub backend: Backend,
    pub program: PathBuf,
    pub accel: Accel,
    /// It was asked for: nothing else will do.
    pub only: bool,
    /// Said once per start when the choice is second best.
    pub note: Option<String>,
}

/// Who prefers what; `FLEETBOX_BACKEND` comes before both.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// What the VM ran on before. Where that is gone, another may do.
    pub recorded: Option<Backend>,
    /// What the caller asked for, for a new VM. Nothing else will do.
    pub asked: Option<Backend>,
}

/// The backend that is named, else the best that really works here: cloud-hypervisor with KVM, QEMU
/// with KVM, QEMU's emulation.
pub(crate) async fn choose(
    paths: &Paths,
    wanted: Wanted,
    arch: Arch,
    progress: &ProgressSink,
) -> Result<Choice> {
    match (only(wanted)?, wanted.recorded) {
        (Some(Backend::CloudHypervisor), _) => {
            kvm_for(arch)?;
            let chosen = choose_cloud_hypervisor(paths, Want::Only, progress).await?;
            Ok(Choice { only: true, ..chosen })
        }
        (None, Some(Backend::CloudHypervisor) | None) => best(paths, arch, progress).await,
        (Some(Backend::Qemu), _) | (None, Some(Backend::Qemu)) => qemu(arch),
        (Some(Backend::Fake), _) | (None, Some(Backend::Fake)) => choose_fake(),
    }
}

/// Whether there will be no machine.
pub(crate) fn is_fake(wanted: Wanted) -> Result<bool> {
    Ok(only(wanted)?.or(wanted.recorded) == Some(Backend::Fake))
}

/// What alone will do, if something.
fn only(wanted: Wanted) -> Result<Option<Backend>> {
    let named = env::text(env::BACKEND)?.map(|word| word.parse::<Backend>()).transpose()?;
    Ok(named.or(wanted.asked.filter(|_| wanted.recorded.is_none())))
}

async fn best(paths: &Paths, arch: Arch, progress: &ProgressSink) -> Result<Choice> {
    if kvm_for(arch).is_err() {
        return qemu(arch);
    }
    let want = if qemu_program(arch).is_ok() { Want::Rather } else { Want::Only };
    match choose_cloud_hypervisor(paths, want, progress).await {
        Err(e) if want == Want::Rather && e.kind() != ErrorKind::InvalidSetting => {
            let qemu = qemu(arch)?;
            let why = format!("QEMU runs the guest, as cloud-hypervisor is not here: {e}");
            let note = Some(qemu.note.map_or(why.clone(), |note| format!("{why}; {note}")));
            Ok(Choice { note, ..qemu })
        }
        chosen => chosen,
    }
}

async fn choose_cloud_hypervisor(
    paths: &Paths,
    want: Want,
    progress: &ProgressSink,
) -> Result<Choice> {
    let program = program::cloud_hypervisor(paths, want, progress).await?;
    let (backend, accel) = (Backend::CloudHypervisor, Accel::Kvm);
    Ok(Choice { backend, program, accel, only: false, note: None })
}

fn choose_fake() -> Result<Choice> {
    if !cfg!(feature = "unstable-fake") {
        return Err(fake_is_off());
    }
    let program = PathBuf::from("/bin/sh");
    Ok(Choice { backend: Backend::Fake, program, accel: Accel::Tcg, only: true, note: None })
}

pub(crate) fn fake_is_off() -> Error {
    Error::new(ErrorKind::BackendUnavailable, "use the fake backend: it is not built in")
        .hint("enable the feature `unstable-fake`, or unset FLEETBOX_BACKEND")
}

/// QEMU, on KVM where that works.
pub(crate) fn qemu(arch: Arch) -> Result<Choice> {
    let program = qemu_program(arch)?;
    let (accel, note) = accel(arch);
    Ok(Choice { backend: Backend::Qemu, program, accel, only: false, note })
}

/// QEMU's emulation, after a KVM that turned out to be none.
pub(crate) fn emulated(arch: Arch) -> Result<Choice> {
    let program = qemu_program(arch)?;
    let (backend, accel) = (Backend::Qemu, Accel::Tcg);
    Ok(Choice { backend, program, accel, only: false, note: None })
}

/// QEMU's binary for `arch`, from PATH.
pub(crate) fn qemu_program(arch: Arch) -> Result<PathBuf> {
    let name = format!("qemu-system-{arch}");
    which(&name).ok_or_else(|| {
        let package = match arch {
            Arch::X86_64 => "qemu-system-x86",
            Arch::Aarch64 => "qemu-system-arm",
        };
        Error::new(ErrorKind::BackendUnavailable, format!("find {name} on PATH"))
            .hint(format!("install it, on Debian and Ubuntu: `sudo apt-get install {package}`"))
    })
}

/// KVM where a guest really makes progress, else emulation, with a word on why.
pub(crate) fn accel(arch: Arch) -> (Accel, Option<String>) {
    if arch != Arch::host() {
        let note = format!("a guest for {arch} is emulated on this host: expect it to be slow");
        return (Accel::Tcg, Some(note));
    }
    match kvm() {
        Ok(()) => (Accel::Kvm, None),
        Err(NoKvm { why, .. }) => (
            Accel::Tcg,
            Some(format!("no KVM: {why}; the guest is emulated and boots in about a minute")),
        ),
    }
}

/// Why no guest runs on KVM here, and what mends it.
struct NoKvm {
    why: String,
    fix: &'static str,
}

#[cfg(target_os = "linux")]
fn kvm() -> std::result::Result<(), NoKvm> {
    crate::sys::kvm::probe().map_err(|e| NoKvm { why: e.to_string(), fix: e.hint() })
}

#[cfg(not(target_os = "linux"))]
fn kvm() -> std::result::Result<(), NoKvm> {
    Err(NoKvm { why: "it is part of Linux".to_owned(), fix: "use qemu" })
}

/// What cloud-hypervisor needs.
fn kvm_for(arch: Arch) -> Result<()> {
    let refused = |why: String| {
        Error::new(ErrorKind::BackendUnavailable, format!("use cloud-hypervisor: {why}"))
    };
    if arch != Arch::host() {
        return Err(refused(format!("it does not emulate {arch}")).hint("use qemu"));
    }
    kvm().map_err(|no| refused(no.why).hint(format!("{}; or use qemu, which emulates", no.fix)))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn needs_linux() -> Error {
    Error::new(ErrorKind::BackendUnavailable, "use cloud-hypervisor: it runs on Linux only")
        .hint("use qemu")
}

/// The first executable file of that name on PATH.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn chosen(recorded: Option<Backend>, asked: Option<Backend>) -> Result<Choice> {
        let home = tempfile::tempdir().unwrap();
        let paths = Paths::at(home.path()).unwrap();
        let wanted = Wanted { recorded, asked };
        choose(&paths, wanted, Arch::host(), &ProgressSink::default()).await
    }

    #[tokio::test]
    async fn without_kvm_cloud_hypervisor_is_refused_to_who_asks_and_replaced_for_who_had_it() {
        if kvm().is_ok() || qemu_program(Arch::host()).is_err() || env::os(env::BACKEND).is_some() {
            // Another host: the conformance list boots on it instead.
            return;
        }
        let refused = chosen(None, Some(Backend::CloudHypervisor)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BackendUnavailable);
        assert!(refused.hint_text().unwrap().contains("use qemu"), "{}", refused.report());
        for recorded in [None, Some(Backend::CloudHypervisor), Some(Backend::Qemu)] {
            let choice = chosen(recorded, None).await.unwrap();
            assert_eq!((choice.backend, choice.accel), (Backend::Qemu, Accel::Tcg));
            assert!(choice.note.unwrap().starts_with("no KVM: "));
        }
    }

    #[tokio::test]
    async fn cloud_hypervisor_emulates_nothing() {
        let other = match Arch::host() {
            Arch::X86_64 => Arch::Aarch64,
            Arch::Aarch64 => Arch::X86_64,
        };
        let error = kvm_for(other).unwrap_err();
        assert!(error.report().contains(&format!("does not emulate {other}")), "{error:?}");
    }
}
