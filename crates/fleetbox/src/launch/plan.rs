//! Owns what a backend is told to boot: the plan made of a VM's record, its image and the chosen
//! backend. It must not boot.

use std::path::Path;

use super::prepared::Bootable;
use crate::backend::select::{self, Choice};
use crate::backend::{Accel, Backend, Boot, BootPlan, Drive, FirmwareFiles, Turns};
use crate::error::{Error, Result};
use crate::prepare::firmware::{self, Firmware};
use crate::prepare::fixture;
use crate::prepare::kernel::{self, BootFiles, BootSource};
use crate::progress::ProgressSink;
use crate::snapshot::maker;
use crate::spec::{Arch, VmSpec};
use crate::store::paths::MemberPaths;
use crate::store::record::VmRecord;
use crate::store::snapshot::Maker;
use crate::store::whole::write_atomic;

/// What runs the guest, and what starts it.
pub(super) struct Start {
    pub choice: Choice,
    from: From,
}

enum From {
    Kernel(BootFiles),
    Firmware(Firmware),
    /// There is no guest.
    Nothing,
}

/// Decides what starts the guest. An image that only its own loader can boot needs a firmware; where
/// the chosen backend has none, QEMU does instead unless nothing else will do.
///
/// # Errors
/// If there is no firmware, with the reason why one is needed.
pub(super) fn start_of(
    choice: Choice,
    image: Option<&Bootable>,
    progress: &ProgressSink,
) -> Result<Start> {
    let (image, why) = match image {
        None | Some((_, None)) => return Ok(Start { choice, from: From::Nothing }),
        Some((_, Some(BootSource::Kernel(files)))) => {
            return Ok(Start { choice, from: From::Kernel(files.clone()) });
        }
        Some((image, Some(BootSource::Loader { why }))) => (image, why),
    };
    let needed = |e: Error| e.detail(format!("needed, as fleetbox cannot {why}"));
    match firmware::find(choice.backend, image.arch) {
        Ok(firmware) => Ok(Start { choice, from: From::Firmware(firmware) }),
        Err(lacking) if choice.backend == Backend::CloudHypervisor && !choice.only => {
            let qemu = select::qemu(image.arch).map_err(|_| needed(lacking))?;
            let firmware = firmware::find(Backend::Qemu, image.arch).map_err(needed)?;
            progress.note("QEMU runs the guest, as its image needs a firmware and there is none for cloud-hypervisor");
            Ok(Start { choice: qemu, from: From::Firmware(firmware) })
        }
        Err(lacking) => Err(needed(lacking)),
    }
}

impl Start {
    /// What would restore the machine of that record.
    pub(super) fn maker(&self, record: &VmRecord) -> Result<Maker> {
        maker::of(&self.plan_with(
            record,
            &MemberPaths::at("/".into()),
            self.shape(record.spec.arch),
        ))
    }

    /// The same of a machine that is only described.
    pub(super) fn maker_of(&self, spec: &VmSpec) -> Result<Maker> {
        self.maker(&VmRecord::described(spec)?)
    }

    /// What starts the guest, without what is one VM's own.
    pub(super) fn shape(&self, arch: Arch) -> Boot {
        match &self.from {
            From::Kernel(files) => Boot::Kernel {
                kernel: files.kernel.clone(),
                initrd: files.initrd.clone(),
                cmdline: cmdline(&files.cmdline, arch, self.choice.accel),
            },
            From::Firmware(firmware) => Boot::Firmware(FirmwareFiles {
                code: firmware.code.clone(),
                variables: firmware.variables.as_ref().map(|_| "/variables".into()),
                format: firmware.format.clone(),
            }),
            From::Nothing => Boot::Nothing,
        }
    }

    /// Everything the backend needs to know.
    pub(super) fn plan(&self, record: &VmRecord, member: &MemberPaths) -> Result<BootPlan> {
        Ok(self.plan_with(record, member, self.boot(record.spec.arch, member)?))
    }

    fn plan_with(&self, record: &VmRecord, member: &MemberPaths, boot: Boot) -> BootPlan {
        let choice = &self.choice;
        BootPlan {
            vm: record.name.clone(),
            backend: choice.backend,
            program: choice.program.clone(),
            accel: choice.accel,
            arch: record.spec.arch,
            cpus: record.spec.cpus,
            memory_mib: record.spec.memory_mib,
            boot,
            disk: member.disk(),
            image: record.image_path.clone(),
            seed: member.seed(),
            mac: record.mac.clone(),
            address: record.address,
            console: member.console(),
            vmm_log: member.vmm_log(),
            ephemeral: record.ephemeral,
            nested_virt: record.spec.nested_virt,
            durable: record.spec.durable,
            disk_bytes: u64::from(record.spec.disk_gib) << 30,
            layers: record.layers.iter().map(|layer| member.layer(layer)).collect(),
            aliases: record.aliases.clone(),
            scratch: member.scratch(),
            restore: None,
            memory: None,
            fixtures: drives(record, member),
            turns: Turns::default(),
        }
    }

    /// The same guest by QEMU's emulation, after a KVM that turned out to be none.
    pub(super) fn emulated(self, arch: Arch) -> Result<Self> {
        let from = match self.from {
            From::Firmware(_) => From::Firmware(firmware::find(Backend::Qemu, arch)?),
            from => from,
        };
        Ok(Self { choice: select::emulated(arch)?, from })
    }

    fn boot(&self, arch: Arch, member: &MemberPaths) -> Result<Boot> {
        let mut boot = self.shape(arch);
        if let (Boot::Firmware(files), From::Firmware(firmware)) = (&mut boot, &self.from)
            && let Some(template) = &firmware.variables
        {
            files.variables = Some(own_variables(template, member)?);
        }
        Ok(boot)
    }
}

fn drives(record: &VmRecord, member: &MemberPaths) -> Vec<Drive> {
    let drive = |place| Drive { image: member.fixture(place), serial: fixture::label(place) };
    (0..record.spec.fixtures.len()).map(drive).collect()
}

/// A machine's own copy, made at its first boot: its loader may write there what it wants to know at
/// the next.
fn own_variables(template: &Path, member: &MemberPaths) -> Result<std::path::PathBuf> {
    let own = member.firmware_variables();
    if !own.exists() {
        let content = std::fs::read(template).map_err(|e| Error::io("read", template, e))?;
        write_atomic(&own, &content)?;
    }
    Ok(own)
}

fn cmdline(image: &str, arch: Arch, accel: Accel) -> String {
    let console = match arch {
        Arch::X86_64 => "ttyS0",
        Arch::Aarch64 => "ttyAMA0",
    };
    let mut words = vec![image];
    if accel == Accel::Tcg {
        words.extend(kernel::EMULATED_BOOT_ARGS);
        if arch == Arch::X86_64 {
            words.push(kernel::EMULATED_X86_BOOT_ARG);
        }
    }
    format!("console={console} {}", words.join(" "))
}
