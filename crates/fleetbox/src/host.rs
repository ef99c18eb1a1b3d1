//! Owns the question what this host can do: each need checked by trying it, with the fix where it
//! fails. It must leave nothing behind.

use std::path::PathBuf;

use crate::backend::{Accel, nested, select};
use crate::error::{Error, Result};
use crate::launch;
use crate::spec::Arch;
use crate::store::paths::Paths;

/// Below this a boot or an image may run out of space.
const FREE_GIB_WANTED: u64 = 10;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// All is well.
    Good,
    /// VMs boot without it, slower or with less.
    Limited,
    /// No VM boots until it is mended.
    Missing,
}

impl Verdict {
    /// `good`, `limited` or `missing`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Limited => "limited",
            Verdict::Missing => "missing",
        }
    }
}

/// One thing a host needs, and whether it has it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Check {
    /// What was checked, in a word or two.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it, unless all is well.
    pub fix: Option<String>,
}

impl Check {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, detail: detail.into(), fix: None }
    }

    fn bad(
        name: &'static str,
        verdict: Verdict,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { name, verdict, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn failed(name: &'static str, error: &Error) -> Self {
        let fix = error.hint_text().unwrap_or("see the message").to_owned();
        let mut detail = error.to_string();
        if let Some(cause) = std::error::Error::source(error) {
            detail = format!("{detail}: {cause}");
        }
        Self { name, verdict: Verdict::Missing, detail, fix: Some(fix) }
    }
}

/// Checks everything a VM needs here, by trying it: namespaces by making them, KVM by running an
/// instruction. Takes well under a second.
///
/// ```no_run
/// # async fn example() {
/// for check in fleetbox::host::check().await {
///     println!("{:<12} {:<8} {}", check.name, check.verdict.as_str(), check.detail);
/// }
/// # }
/// ```
pub async fn check() -> Vec<Check> {
    let mut checks = vec![state_root(), disk_space()];
    checks.push(namespaces().await);
    #[cfg(target_os = "linux")]
    checks.extend([tun(), kvm(), cloud_hypervisor()]);
    checks.push(qemu());
    checks.push(other_qemu());
    checks.push(nested_virt());
    checks.push(build_tools());
    checks
}

fn state_root() -> Check {
    let prepared = Paths::from_env().and_then(|paths| {
        crate::store::whole::make_private_dir(paths.root())?;
        tempfile::tempfile_in(paths.root()).map_err(|e| Error::io("write in", paths.root(), e))?;
        Ok(paths)
    });
    match prepared {
        Ok(paths) => Check::good("state", paths.root().display().to_string()),
        Err(e) => Check::failed("state", &e),
    }
}

fn disk_space() -> Check {
    let free = || -> Result<(PathBuf, u64)> {
        let paths = Paths::from_env()?;
        let root = paths.root();
        let existing = root.ancestors().find(|a| a.exists()).unwrap_or(root).to_owned();
        let stat = rustix::fs::statvfs(&existing)
            .map_err(|e| Error::io("measure", &existing, e.into()))?;
        Ok((existing, (stat.f_bavail * stat.f_frsize) >> 30))
    };
    match free() {
        Ok((path, free_gib)) if free_gib < FREE_GIB_WANTED => Check::bad(
            "disk",
            Verdict::Limited,
            format!("{free_gib} GiB free at {}", path.display()),
            "free some space, `fleetbox image rm` what is not needed, or set FLEETBOX_HOME to a larger disk",
        ),
        Ok((path, free_gib)) => {
            Check::good("disk", format!("{free_gib} GiB free at {}", path.display()))
        }
        Err(e) => Check::failed("disk", &e),
    }
}

/// Starts a holder and ends it: namespaces, bridge, name server and the hook are all needed for it.
async fn namespaces() -> Check {
    match launch::try_holder().await {
        Ok(()) => {
            let how = if rustix::process::geteuid().is_root() {
                "as root"
            } else {
                "as an ordinary user"
            };
            Check::good("namespaces", format!("a cluster's network can be made {how}"))
        }
        Err(e) => Check::failed("namespaces", &e),
    }
}

#[cfg(target_os = "linux")]
fn tun() -> Check {
    let path = crate::sys::tun::PATH;
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::good("tun", format!("{path} can be opened")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Check::bad(
            "tun",
            Verdict::Missing,
            format!("there is no {path}"),
            "run `sudo modprobe tun`; in a container start it with `--device /dev/net/tun`",
        ),
        Err(e) => Check::bad(
            "tun",
            Verdict::Missing,
            format!("open {path}: {e}"),
            "run `sudo chmod 666 /dev/net/tun`",
        ),
    }
}

#[cfg(target_os = "linux")]
fn kvm() -> Check {
    match crate::sys::kvm::probe() {
        Ok(()) => Check::good("kvm", "a guest runs on /dev/kvm"),
        Err(why) => {
            Check::bad("kvm", Verdict::Limited, format!("{why}; guests are emulated"), why.hint())
        }
    }
}

/// Whether it is at hand; it is fetched when a start needs it.
#[cfg(target_os = "linux")]
fn cloud_hypervisor() -> Check {
    const NAME: &str = "cloud-hypervisor";
    if crate::sys::kvm::probe().is_err() {
        return Check::good(NAME, "not used: it needs KVM");
    }
    match Paths::from_env().map(|paths| crate::prepare::program::at_hand(&paths)) {
        Ok(Some(program)) => Check::good(NAME, program.display().to_string()),
        Ok(None) if crate::env::offline() => Check::bad(
            NAME,
            Verdict::Limited,
            "it is not here, and FLEETBOX_OFFLINE forbids to fetch it; QEMU is used",
            "install it, or point FLEETBOX_CLOUD_HYPERVISOR at it",
        ),
        Ok(None) => Check::good(NAME, "it will be fetched at the first start"),
        Err(e) => Check::failed(NAME, &e),
    }
}

fn qemu() -> Check {
    match select::qemu_program(Arch::host()) {
        Ok(program) => Check::good("qemu", program.display().to_string()),
        Err(e) => Check::failed("qemu", &e),
    }
}

fn other_qemu() -> Check {
    let other = match Arch::host() {
        Arch::X86_64 => Arch::Aarch64,
        Arch::Aarch64 => Arch::X86_64,
    };
    match select::qemu_program(other) {
        Ok(program) => {
            Check::good("qemu-other", format!("{other} guests by {}", program.display()))
        }
        Err(e) => Check {
            verdict: Verdict::Limited,
            detail: format!("no {other} guests"),
            ..Check::failed("qemu-other", &e)
        },
    }
}

/// Whether guests can have guests.
fn nested_virt() -> Check {
    let arch = Arch::host();
    let (accel, _) = select::accel(arch);
    match nested::check(accel, arch) {
        Ok(()) => {
            let how = if accel == Accel::Kvm { "by the host's KVM" } else { "by emulation" };
            Check::good("nested", format!("KVM can work inside guests, {how}"))
        }
        Err(e) => Check { verdict: Verdict::Limited, ..Check::failed("nested", &e) },
    }
}

fn build_tools() -> Check {
    let missing: Vec<&str> =
        ["mmdebstrap", "mke2fs"].into_iter().filter(|tool| select::which(tool).is_none()).collect();
    if missing.is_empty() {
        return Check::good("image-build", "mmdebstrap and mke2fs are there");
    }
    Check::bad(
        "image-build",
        Verdict::Limited,
        format!("`fleetbox image build` lacks {}", missing.join(" and ")),
        "on Debian and Ubuntu: `sudo apt-get install mmdebstrap e2fsprogs`",
    )
}
