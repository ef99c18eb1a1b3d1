//! Owns the choice of backend and acceleration on this host, and the words that explain it. It
//! must not start anything.

use std::path::PathBuf;

use super::{Accel, Backend};
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Arch;

/// What was chosen, and what the user should hear of it.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub backend: Backend,
    pub program: PathBuf,
    pub accel: Accel,
    /// Said once per start when the choice is second best.
    pub note: Option<String>,
}

/// `FLEETBOX_BACKEND`, then what the caller asked for, then QEMU.
pub(crate) fn choose(asked: Option<Backend>, arch: Arch) -> Result<Choice> {
    let named = env::text(env::BACKEND)?.map(|word| word.parse::<Backend>()).transpose()?;
    match named.or(asked).unwrap_or(Backend::Qemu) {
        Backend::Qemu => choose_qemu(arch),
        Backend::Fake if cfg!(feature = "unstable-fake") => Ok(Choice {
            backend: Backend::Fake,
            program: PathBuf::from("/bin/sh"),
            accel: Accel::Tcg,
            note: None,
        }),
        Backend::Fake => Err(fake_is_off()),
    }
}

pub(crate) fn fake_is_off() -> Error {
    Error::new(ErrorKind::BackendUnavailable, "use the fake backend: it is not built in")
        .hint("enable the feature `unstable-fake`, or unset FLEETBOX_BACKEND")
}

fn choose_qemu(arch: Arch) -> Result<Choice> {
    let program = qemu_program(arch)?;
    let (accel, note) = accel(arch);
    Ok(Choice { backend: Backend::Qemu, program, accel, note })
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
    #[cfg(target_os = "linux")]
    match crate::sys::kvm::probe() {
        Ok(()) => (Accel::Kvm, None),
        Err(why) => (
            Accel::Tcg,
            Some(format!("no KVM: {why}; the guest is emulated and boots in about a minute")),
        ),
    }
    #[cfg(not(target_os = "linux"))]
    (Accel::Tcg, None)
}

/// The first executable file of that name on PATH.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
    })
}
