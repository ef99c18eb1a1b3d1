//! Owns the contract between the holder and a virtual machine monitor: what to boot, and what a
//! running machine can be asked. A backend sees a [`BootPlan`] and fds, never the store.

#[cfg(feature = "unstable-fake")]
pub(crate) mod fake;
#[cfg(target_os = "linux")]
mod cloud_hypervisor;
mod monitor;
pub(crate) mod nested;
mod qemu;
pub(crate) mod select;
mod snapshot;

use std::fmt;
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(crate) use self::snapshot::{Identity, Mount, Restore, SavePlan, Saved, Together};
use crate::control::message::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Arch, Name};

/// The program that runs machines.
///
/// ```
/// use fleetbox::Backend;
/// assert_eq!("qemu".parse::<Backend>().unwrap(), Backend::Qemu);
/// assert!("vmware".parse::<Backend>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Backend {
    /// cloud-hypervisor, on Linux with KVM.
    #[serde(rename = "cloud-hypervisor")]
    CloudHypervisor,
    /// QEMU, on KVM where that works and by software emulation elsewhere.
    Qemu,
    /// No machine at all: a process that answers SSH, to test coordination. Only with the feature
    /// `unstable-fake`, and never chosen by itself.
    Fake,
}

/// What a [`Backend`] can do beyond what every one can.
///
/// Asking a VM for something its backend lacks is [`ErrorKind::Unsupported`] before any work.
///
/// ```
/// use fleetbox::Backend;
/// assert!(Backend::Qemu.capabilities().balloon);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing by itself")]
pub struct Capabilities {
    /// [`Vm::pause`](crate::Vm::pause) and [`Vm::resume`](crate::Vm::resume).
    pub pause: bool,
    /// [`Vm::set_balloon_mib`](crate::Vm::set_balloon_mib).
    pub balloon: bool,
    /// [`Vm::clock_jump`](crate::Vm::clock_jump): guests have a clock of their own.
    pub clock: bool,
    /// [`Vm::fill_disk`](crate::Vm::fill_disk): guests have a disk of their own.
    pub disk_fill: bool,
    /// [`Vm::disk`](crate::Vm::disk): a disk can be slow, or fail.
    pub disk_faults: bool,
    /// A power cut of a [durable](crate::VmBuilder::durable) VM loses what was not flushed. Without
    /// it no more is lost than the guest itself had not written.
    pub disk_loss: bool,
    /// [`Vm::snapshot`](crate::Vm::snapshot), and all that is made of one: forks and
    /// [warm](crate::VmBuilder::warm) starts.
    pub snapshot: bool,
}

impl Backend {
    /// What it can do, known without asking any machine.
    #[must_use]
    pub const fn capabilities(self) -> Capabilities {
        match self {
            Backend::CloudHypervisor => Capabilities {
                pause: true,
                balloon: true,
                clock: true,
                disk_fill: true,
                disk_faults: false,
                disk_loss: false,
                snapshot: true,
            },
            Backend::Qemu => Capabilities {
                disk_faults: true,
                disk_loss: true,
                ..Backend::CloudHypervisor.capabilities()
            },
            Backend::Fake => Capabilities {
                balloon: false,
                clock: false,
                disk_fill: false,
                disk_faults: true,
                ..Backend::CloudHypervisor.capabilities()
            },
        }
    }

    /// Whether there is a system in its machines that knows who it is.
    pub(crate) fn has_guest(self) -> bool {
        self != Backend::Fake
    }

    /// Whether its disk's file is what the guest wrote only once the guest flushed it.
    pub(crate) fn holds_back_writes(self) -> bool {
        self == Backend::CloudHypervisor
    }

    /// The word used in `FLEETBOX_BACKEND` and `--backend`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::CloudHypervisor => "cloud-hypervisor",
            Backend::Qemu => "qemu",
            Backend::Fake => "fake",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Backend {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "cloud-hypervisor" => Ok(Backend::CloudHypervisor),
            "qemu" => Ok(Backend::Qemu),
            "fake" => Ok(Backend::Fake),
            _ => Err(Error::new(
                ErrorKind::InvalidSetting,
                format!("unknown backend \"{}\"", text.escape_debug()),
            )
            .hint("use cloud-hypervisor or qemu")),
        }
    }
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accel {
    /// The host's processor.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

/// How the processors of an emulated machine share those of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Turns {
    /// Each in a thread of its own.
    #[default]
    SideBySide,
    /// One after the other, in one thread.
    InTurn,
}

/// What a machine's processor runs first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Boot {
    /// A kernel, which the monitor loads.
    Kernel { kernel: PathBuf, initrd: Option<PathBuf>, cmdline: String },
    /// A UEFI firmware, which finds the boot loader on the disk.
    Firmware(FirmwareFiles),
    /// Nothing: there is no processor.
    Nothing,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FirmwareFiles {
    pub code: PathBuf,
    /// The machine's own, written to; none where the monitor keeps none.
    pub variables: Option<PathBuf>,
    /// Of both.
    pub format: String,
}

/// Everything a backend needs to boot one machine; made by `launch`, sent to the holder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BootPlan {
    pub vm: Name,
    pub backend: Backend,
    pub program: PathBuf,
    pub accel: Accel,
    pub arch: Arch,
    pub cpus: u32,
    pub memory_mib: u32,
    pub boot: Boot,
    /// A qcow2 overlay on `image`.
    pub disk: PathBuf,
    #[serde(default)]
    pub image: PathBuf,
    pub seed: PathBuf,
    pub mac: String,
    pub address: Ipv4Addr,
    pub console: PathBuf,
    pub vmm_log: PathBuf,
    /// The disk goes with the holder, so writes need not survive a crash.
    pub ephemeral: bool,
    /// KVM is to work in the guest.
    #[serde(default)]
    pub nested_virt: bool,
    /// A power cut loses what the guest did not flush, and nothing else.
    #[serde(default)]
    pub durable: bool,
    /// What the guest sees of the disk; 0 from those who do not say.
    #[serde(default)]
    pub disk_bytes: u64,
    /// What the disk is an overlay on, each on the next, the last on `image`; empty if it lies on
    /// that itself.
    #[serde(default)]
    pub layers: Vec<PathBuf>,
    /// Further names by which its fellows know it.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// A directory for what the monitor writes on request; made when it starts.
    #[serde(default)]
    pub scratch: PathBuf,
    /// It comes back from there, instead of booting.
    #[serde(default)]
    pub restore: Option<Box<Restore>>,
    /// Where its memory is reserved, if it is: the holder has a share in that for as long as it runs.
    #[serde(default)]
    pub memory: Option<PathBuf>,
    /// Further drives, which the guest cannot write to.
    #[serde(default)]
    pub fixtures: Vec<Drive>,
    /// How its processors run, if they are emulated.
    #[serde(default)]
    pub turns: Turns,
}

/// A drive that a guest can only read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drive {
    /// Raw.
    pub image: PathBuf,
    /// What the guest knows it by.
    pub serial: String,
}

#[cfg(test)]
impl BootPlan {
    /// One to start from in tests; nothing it names exists.
    fn sample(backend: Backend, accel: Accel) -> Self {
        Self {
            vm: Name::new("web").unwrap(),
            backend,
            program: "/monitor".into(),
            accel,
            arch: Arch::X86_64,
            cpus: 2,
            memory_mib: 1024,
            boot: Boot::Kernel {
                kernel: "/k".into(),
                initrd: Some("/i".into()),
                cmdline: "root=/dev/vda1 console=ttyS0".into(),
            },
            disk: "/a,b/disk.qcow2".into(),
            image: "/cache/debian.raw".into(),
            seed: "/seed.img".into(),
            mac: "52:54:00:00:00:01".into(),
            address: Ipv4Addr::new(10, 213, 77, 10),
            console: "/console.log".into(),
            vmm_log: "/vmm.log".into(),
            ephemeral: false,
            nested_virt: false,
            durable: false,
            disk_bytes: 20 << 30,
            layers: Vec::new(),
            aliases: Vec::new(),
            scratch: "/scratch".into(),
            restore: None,
            memory: None,
            fixtures: Vec::new(),
            turns: Turns::default(),
        }
    }

    /// The same with a drive for a fixture.
    fn with_fixture(self) -> Self {
        let drive = Drive { image: "/f,f/fixture-0.img".into(), serial: "fleetbox-0".into() };
        Self { fixtures: vec![drive], ..self }
    }
}

pub(crate) type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Why a machine is no longer running; `None` while it is.
pub(crate) type Ended = watch::Receiver<Option<String>>;

/// A running machine. Every call may be made at any time and more than once; after the end they do
/// nothing and succeed. Dropping it ends the monitor.
pub(crate) trait Machine: Send + Sync {
    /// Presses the power button; the guest decides what follows.
    fn power_button(&self) -> Asked<'_, ()>;
    /// Presses the reset button. A paused machine runs on from there.
    fn reset(&self) -> Asked<'_, ()>;
    /// Stops its processors, if its backend is [able](Capabilities) to. Not asked of a paused one.
    fn pause(&self) -> Asked<'_, ()>;
    /// Lets its processors go on. Not asked of one that is not paused.
    fn resume(&self) -> Asked<'_, ()>;
    /// Asks the guest to do without that much of its memory, if its backend is
    /// [able](Capabilities) to; 0 gives all of it back. The guest does it in its own time.
    fn set_balloon(&self, mib: u32) -> Asked<'_, ()>;
    /// Makes the disk bad, or good again, if its backend is [able](Capabilities) to.
    fn set_disk(&self, disk: Disk) -> Asked<'_, ()>;
    /// Saves the machine as it is at one instant, if its backend is [able](Capabilities) to, and lets
    /// it go on unless it was `paused`. `tap` is one the guest does not see. When it returns the files
    /// are whole and on the host's disk.
    fn save<'a>(
        &'a self,
        plan: &'a SavePlan,
        paused: bool,
        tap: OwnedFd,
        together: &'a Together,
    ) -> Asked<'a, Saved>;
    /// Copies the machine's own disk as it is at one instant, without what that lies on, to `target`, an
    /// empty overlay on the same, unless its backend [holds back writes](Backend::holds_back_writes). It
    /// runs on meanwhile. When this returns the file is whole and on the host's disk.
    fn copy_disk<'a>(&'a self, target: &'a Path) -> Asked<'a, ()>;
    /// Ends the monitor at once, as a power cut would.
    fn kill(&self) -> Asked<'_, ()>;
    /// Tells when and why it ended.
    fn ended(&self) -> Ended;
}

/// The machine as the monitor is told it.
pub(crate) fn command_line(plan: &BootPlan) -> Vec<String> {
    match plan.backend {
        Backend::Qemu => qemu::command_line(plan),
        #[cfg(target_os = "linux")]
        Backend::CloudHypervisor => cloud_hypervisor::command_line(plan),
        backend => vec![format!("{backend} {} {} {}", plan.arch, plan.cpus, plan.memory_mib)],
    }
}

/// Starts the machine of `plan` on a tap of that number. Returns once the monitor answers; one that is
/// restored runs then, and its tap leads nowhere yet.
pub(crate) async fn boot(
    plan: &BootPlan,
    network: &crate::net::Network,
    tap_number: u32,
) -> Result<Box<dyn Machine>> {
    match plan.backend {
        #[cfg(target_os = "linux")]
        Backend::CloudHypervisor => {
            let tap = tap(plan, network, tap_number).await?;
            Ok(Box::new(cloud_hypervisor::boot(plan, network, tap_number, tap).await?))
        }
        #[cfg(not(target_os = "linux"))]
        Backend::CloudHypervisor => Err(select::needs_linux()),
        Backend::Qemu => {
            Ok(Box::new(qemu::boot(plan, tap(plan, network, tap_number).await?).await?))
        }
        #[cfg(feature = "unstable-fake")]
        Backend::Fake => Ok(Box::new(fake::boot(plan, network, tap_number).await?)),
        #[cfg(not(feature = "unstable-fake"))]
        Backend::Fake => Err(select::fake_is_off()),
    }
}

async fn tap(plan: &BootPlan, network: &crate::net::Network, number: u32) -> Result<OwnedFd> {
    let name = crate::net::plan::tap_name(number);
    match plan.restore {
        None => network.tap(name).await,
        Some(_) => network.tap_apart(name).await,
    }
}
