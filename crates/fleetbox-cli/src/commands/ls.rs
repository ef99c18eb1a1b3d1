//! `ls`: the VMs of this state root.

use std::io::Write;

use fleetbox::VmInfo;

use super::{printed, resolve_all};
use crate::args::{Format, Ls};
use crate::{Outcome, render};

pub(super) async fn run(args: Ls) -> Outcome {
    let asked = resolve_all(&args.names)?;
    let is_asked = |name: &str| args.names.is_empty() || asked.iter().any(|vm| vm.name() == name);
    let mut vms: Vec<VmInfo> = Vec::new();
    let mut worst = 0;
    for listed in fleetbox::list().await? {
        match listed {
            Ok(vm) if is_asked(&vm.name) => vms.push(vm),
            Err(error) if !error.vm_name().is_none_or(is_asked) => {}
            Ok(_) => {}
            Err(error) => {
                render::complain(&error);
                worst = worst.max(crate::code_of(&error));
            }
        }
    }
    printed(match args.output.output {
        _ if args.quiet => {
            let mut out = std::io::stdout().lock();
            vms.iter().try_for_each(|vm| writeln!(out, "{}", vm.name))
        }
        Format::Json => render::vms_json(&vms),
        Format::Text => render::vms_table(&vms),
    })?;
    Ok(worst)
}
