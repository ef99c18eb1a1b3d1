//! `up`: starts VMs side by side and prints where they are.

use std::io::Write;

use fleetbox::{Vm, VmInfo};
use tokio::task::JoinSet;

use super::printed;
use crate::args::{Format, Up};
use crate::progress::Display;
use crate::{Outcome, render};

pub(super) async fn run(args: Up) -> Outcome {
    let names = match args.count {
        None => args.names.clone(),
        Some(count) => {
            args.names.iter().flat_map(|p| (1..=count).map(move |n| format!("{p}-{n}"))).collect()
        }
    };
    let display = Display::new();
    let mut starts = JoinSet::new();
    for (place, name) in names.iter().enumerate() {
        let start = builder(&args, name).on_progress(display.sink(name)).start();
        starts.spawn(async move { (place, start.await) });
    }
    let mut infos: Vec<(usize, VmInfo)> = Vec::new();
    let mut worst = 0;
    while let Some(joined) = starts.join_next().await {
        let Ok((place, started)) = joined else {
            worst = 70;
            continue;
        };
        let info = match started {
            Ok(vm) => {
                let info = vm.info().await;
                vm.release().await;
                info
            }
            Err(e) => Err(e),
        };
        match info {
            Ok(info) => infos.push((place, info)),
            Err(error) => {
                render::complain(&error);
                worst = worst.max(crate::code_of(&error));
            }
        }
    }
    infos.sort_by_key(|(place, _)| *place);
    let infos: Vec<VmInfo> = infos.into_iter().map(|(_, info)| info).collect();
    printed(print(&infos, args.output.output))?;
    Ok(worst)
}

fn builder(args: &Up, name: &str) -> fleetbox::VmBuilder {
    let mut builder = Vm::builder(name).detached(true);
    if let Some(image) = &args.image {
        builder = builder.image(image);
    }
    if let Some(cpus) = args.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(memory_mib) = args.memory {
        builder = builder.memory_mib(memory_mib);
    }
    if let Some(disk_gib) = args.disk {
        builder = builder.disk_gib(disk_gib);
    }
    if let Some(arch) = args.arch {
        builder = builder.arch(arch);
    }
    if args.nested {
        builder = builder.nested_virt(true);
    }
    if let Some(backend) = args.backend {
        builder = builder.backend(backend);
    }
    if let Some(timeout) = args.timeout {
        builder = builder.timeout(timeout);
    }
    builder
}

fn print(infos: &[VmInfo], format: Format) -> std::io::Result<()> {
    if format == Format::Json {
        return render::vms_json(infos);
    }
    let mut out = std::io::stdout().lock();
    for vm in infos {
        writeln!(out, "{} {} {}", vm.name, vm.state, vm.address)?;
    }
    Ok(())
}
