//! Owns finding a UEFI firmware on this host, for images that only their own boot loader can boot. It
//! must not decide which images those are.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::backend::Backend;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Arch;

/// A firmware's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firmware {
    pub code: PathBuf,
    /// What a machine's own variables start from, where the monitor keeps any.
    pub variables: Option<PathBuf>,
    /// `raw` or `qcow2`, of both.
    pub format: String,
}

/// Where QEMU's firmwares are described, the first that has a name wins (QEMU's
/// `docs/interop/firmware.json`); the last two are those of local builds and of Homebrew.
const DESCRIPTIONS: [&str; 4] = [
    "/etc/qemu/firmware",
    "/usr/share/qemu/firmware",
    "/usr/local/share/qemu/firmware",
    "/opt/homebrew/share/qemu/firmware",
];

/// Where firmwares for cloud-hypervisor are put by those who package them, under the names of its
/// releases and of EDK II's.
const FOR_CLOUD_HYPERVISOR: [&str; 4] = [
    "/usr/share/cloud-hypervisor/CLOUDHV.fd",
    "/usr/share/cloud-hypervisor/CLOUDHV_EFI.fd",
    "/usr/share/cloud-hypervisor/hypervisor-fw",
    "/usr/local/share/cloud-hypervisor/CLOUDHV.fd",
];

/// What would need more of a machine than it has, or refuse loaders it was not told of.
const UNWANTED: [&str; 2] = ["requires-smm", "enrolled-keys"];

/// The firmware for machines of `backend`.
///
/// # Errors
/// [`ErrorKind::BackendUnavailable`] if there is none; [`ErrorKind::InvalidSetting`] if the one that
/// is named is not there.
pub(crate) fn find(backend: Backend, arch: Arch) -> Result<Firmware> {
    match backend {
        Backend::CloudHypervisor => for_cloud_hypervisor(),
        Backend::Qemu | Backend::Fake => {
            described(&DESCRIPTIONS.map(Path::new), arch).ok_or_else(|| {
                let package = match arch {
                    Arch::X86_64 => "ovmf",
                    Arch::Aarch64 => "qemu-efi-aarch64",
                };
                Error::new(
                    ErrorKind::BackendUnavailable,
                    format!("find a UEFI firmware for {arch}"),
                )
                .hint(format!(
                    "install one, on Debian and Ubuntu: `sudo apt-get install {package}`"
                ))
            })
        }
    }
}

fn for_cloud_hypervisor() -> Result<Firmware> {
    let only = |code| Firmware { code, variables: None, format: "raw".to_owned() };
    if let Some(named) = env::path(env::CLOUD_HYPERVISOR_FIRMWARE) {
        if named.is_file() {
            return Ok(only(named));
        }
        let message = format!(
            "use {}={}: there is no such file",
            env::CLOUD_HYPERVISOR_FIRMWARE,
            named.display()
        );
        return Err(
            Error::new(ErrorKind::InvalidSetting, message).hint("point it at one, or unset it")
        );
    }
    let installed = FOR_CLOUD_HYPERVISOR.iter().map(PathBuf::from).find(|path| path.is_file());
    installed.map(only).ok_or_else(|| {
        Error::new(ErrorKind::BackendUnavailable, "find a firmware for cloud-hypervisor").hint(
            format!(
                "set {} to a CLOUDHV.fd of EDK II or a hypervisor-fw, or use qemu",
                env::CLOUD_HYPERVISOR_FIRMWARE
            ),
        )
    })
}

/// The part of a description that says whether it will do.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    executable: Option<Flash>,
    nvram_template: Option<Flash>,
}

#[derive(Deserialize)]
struct Flash {
    filename: PathBuf,
    format: String,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// The first that will do, by the descriptions' names.
fn described(dirs: &[&Path], arch: Arch) -> Option<Firmware> {
    let mut descriptions: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for entry in entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "json"))
        {
            descriptions.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    descriptions.values().find_map(|path| {
        // An empty one hides another of its name; what cannot be understood is for other machines.
        let description: Description = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        usable(description, arch)
    })
}

fn usable(description: Description, arch: Arch) -> Option<Firmware> {
    let Description { interface_types, mapping, targets, features } = description;
    // The machine types of `backend/qemu/args.rs`, with a version behind them.
    let machine = match arch {
        Arch::X86_64 => "pc-q35-",
        Arch::Aarch64 => "virt-",
    };
    let fits = interface_types.iter().any(|kind| kind == "uefi")
        && mapping.device == "flash"
        && features.iter().all(|feature| !UNWANTED.contains(&feature.as_str()))
        && targets.iter().any(|target| {
            target.architecture == arch.as_str()
                && target.machines.iter().any(|pattern| pattern.starts_with(machine))
        });
    let (code, variables) = (mapping.executable?, mapping.nvram_template?);
    let is_whole = matches!(code.format.as_str(), "raw" | "qcow2")
        && code.format == variables.format
        && code.filename.is_file()
        && variables.filename.is_file();
    (fits && is_whole).then_some(Firmware {
        code: code.filename,
        variables: Some(variables.filename),
        format: code.format,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(dir: &Path, name: &str, machine: &str, feature: &str) {
        for file in ["code.fd", "vars.fd"] {
            std::fs::write(dir.join(file), "").unwrap();
        }
        let flash = |file: &str| serde_json::json!({ "filename": dir.join(file), "format": "raw" });
        let json = serde_json::json!({
            "description": "x",
            "interface-types": ["uefi"],
            "mapping": {
                "device": "flash",
                "executable": flash("code.fd"),
                "nvram-template": flash("vars.fd"),
            },
            "targets": [{ "architecture": "x86_64", "machines": [machine] }],
            "features": ["acpi-s3", feature],
            "tags": [],
        });
        std::fs::write(dir.join(name), json.to_string()).unwrap();
    }

    #[test]
    fn the_first_that_will_do_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let find = |arch| described(&[dir.path()], arch);
        assert_eq!(find(Arch::X86_64), None);
        describe(dir.path(), "10-secure.json", "pc-q35-*", "requires-smm");
        describe(dir.path(), "20-old.json", "pc-i440fx-*", "amd-sev");
        std::fs::write(dir.path().join("30-broken.json"), "{").unwrap();
        assert_eq!(find(Arch::X86_64), None);
        describe(dir.path(), "40-good.json", "pc-q35-*", "amd-sev");
        let found = find(Arch::X86_64).unwrap();
        assert_eq!(found.code, dir.path().join("code.fd"));
        assert_eq!(found.variables, Some(dir.path().join("vars.fd")));
        assert_eq!(find(Arch::Aarch64), None);
        std::fs::remove_file(dir.path().join("vars.fd")).unwrap();
        assert_eq!(find(Arch::X86_64), None, "half of it is not there");
    }

    #[test]
    fn an_empty_description_hides_another_of_its_name() {
        let (system, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        describe(system.path(), "60-x.json", "pc-q35-*", "amd-sev");
        std::fs::write(own.path().join("60-x.json"), "").unwrap();
        assert_eq!(described(&[own.path(), system.path()], Arch::X86_64), None);
        assert!(described(&[system.path()], Arch::X86_64).is_some());
    }
}
