//! Owns what a snapshot depends on besides its files: the monitor, the machine it puts together, and the
//! host where the guest sees it. It must not decide what follows from a difference.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::backend::{self, Accel, Boot, BootPlan, Drive, Turns};
use crate::error::{Error, Result};
use crate::images::hex;
use crate::spec::Name;
use crate::store::snapshot::Maker;
use crate::sys::kvm;

/// What makes and restores snapshots of the plan's machine.
pub(crate) fn of(plan: &BootPlan) -> Result<Maker> {
    let host = match plan.accel {
        Accel::Kvm => kvm::processor(),
        // The emulated processor is the monitor's.
        Accel::Tcg => String::new(),
    };
    Ok(Maker {
        backend: plan.backend,
        program: program(&plan.program)?,
        machine: machine(plan)?,
        host,
    })
}

fn program(path: &Path) -> Result<String> {
    let metadata = path.metadata().map_err(|e| Error::io("find", path, e))?;
    Ok(format!("{} ({} bytes, {})", path.display(), metadata.len(), metadata.mtime()))
}

/// The machine without all that is one VM's own: names, files, addresses.
fn machine(plan: &BootPlan) -> Result<String> {
    let mut boot = plan.boot.clone();
    if let Boot::Firmware(files) = &mut boot {
        files.variables = files.variables.as_ref().map(|_| "/variables".into());
    }
    // How many there are, not what is on them.
    let drives = plan.fixtures.iter();
    let drives = drives.map(|drive| Drive { image: "/fixture".into(), ..drive.clone() }).collect();
    let plan = BootPlan {
        boot,
        fixtures: drives,
        vm: Name::new("x")?,
        disk: "/disk".into(),
        image: "/image".into(),
        seed: "/seed".into(),
        console: "/console".into(),
        vmm_log: "/log".into(),
        scratch: "/scratch".into(),
        mac: "52:54:00:00:00:00".to_owned(),
        ephemeral: true,
        durable: false,
        layers: Vec::new(),
        restore: None,
        memory: None,
        turns: Turns::default(),
        ..plan.clone()
    };
    let told = json!({ "arguments": backend::command_line(&plan), "disk_bytes": plan.disk_bytes });
    Ok(hex(&Sha256::digest(told.to_string())))
}
