//! `up`: starts VMs side by side and prints where they are.

use std::io::Write;

use fleetbox::{Cluster, ClusterBuilder, Error, Snapshot, Vm, VmBuilder, VmInfo};
use tokio::task::JoinSet;

use super::printed;
use crate::args::{Format, Up};
use crate::progress::Display;
use crate::{Outcome, render};

pub(super) async fn run(args: Up) -> Outcome {
    let (display, timings) = (Display::new(), args.timings);
    let mut starts: JoinSet<(usize, Result<Vec<VmInfo>, Error>)> = JoinSet::new();
    let mut names: Vec<&String> = Vec::new();
    for name in &args.names {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match (args.count, names.as_slice()) {
        (None, names) if args.from.is_some() => {
            for (place, name) in names.iter().enumerate() {
                match forked(&args, &display, name)? {
                    Forked::Vm(vm) => {
                        starts.spawn(async move { (place, alone(vm, timings).await) })
                    }
                    Forked::Cluster(all) => {
                        starts.spawn(async move { (place, together(all, timings).await) })
                    }
                };
            }
        }
        (None, [name]) => {
            let vm = options(&args, Vm::builder(*name)).on_progress(display.sink(name));
            starts.spawn(async move { (0, alone(vm, timings).await) });
        }
        (None, names) => {
            let cluster = cluster(&args, &display, Cluster::of(names.iter().copied())?);
            starts.spawn(async move { (0, together(cluster, timings).await) });
        }
        (Some(count), prefixes) => {
            for (place, prefix) in prefixes.iter().enumerate() {
                let cluster = Cluster::builder(*prefix).size(count);
                let cluster = self::cluster(&args, &display, cluster);
                starts.spawn(async move { (place, together(cluster, timings).await) });
            }
        }
    }
    let mut infos: Vec<(usize, Vec<VmInfo>)> = Vec::new();
    let mut worst = 0;
    while let Some(joined) = starts.join_next().await {
        match joined {
            Ok((place, Ok(started))) => infos.push((place, started)),
            Ok((_, Err(error))) => {
                render::complain(&error);
                worst = worst.max(crate::code_of(&error));
            }
            Err(_) => worst = 70,
        }
    }
    infos.sort_by_key(|(place, _)| *place);
    let infos: Vec<VmInfo> = infos.into_iter().flat_map(|(_, infos)| infos).collect();
    printed(print(&infos, args.output.output))?;
    Ok(worst)
}

/// What `--from` makes.
enum Forked {
    Vm(VmBuilder),
    Cluster(ClusterBuilder),
}

fn forked(args: &Up, display: &Display, name: &str) -> Result<Forked, Error> {
    let snapshot = Snapshot::find(args.from.as_deref().unwrap_or_default())?;
    Ok(if snapshot.members().len() == 1 {
        let vm = options(args, snapshot.fork(name)?);
        Forked::Vm(vm.on_progress(display.sink(name)))
    } else {
        Forked::Cluster(cluster(args, display, snapshot.fork_cluster(name)?))
    })
}

/// One that does not come up stays, to be looked into.
async fn alone(vm: VmBuilder, timings: bool) -> Result<Vec<VmInfo>, Error> {
    let vm = vm.start().await?;
    if timings {
        tell(&vm).await?;
    }
    let info = vm.info().await;
    vm.release().await;
    Ok(vec![info?])
}

/// Where the time of the start went.
async fn tell(vm: &Vm) -> Result<(), Error> {
    let stages = vm.timings().stages();
    let report = vm.boot_report().await?;
    let rows = stages.iter().filter(|(_, took)| !took.is_zero());
    let rows = rows.map(|(stage, took)| {
        let (stage, seconds) = (stage.as_str(), took.as_secs_f64());
        format!("{stage:<18} {seconds:>8.2} s\n")
    });
    let text = rows.collect::<Vec<_>>().concat();
    let total = vm.timings().total().as_secs_f64();
    eprintln!("{}: ready after {total:.2} s\n{text}{report}", vm.name());
    Ok(())
}

async fn together(cluster: ClusterBuilder, timings: bool) -> Result<Vec<VmInfo>, Error> {
    let cluster = cluster.start().await?;
    let mut infos = Vec::new();
    for vm in &cluster {
        if timings {
            tell(&vm).await?;
        }
        infos.push(vm.info().await);
    }
    cluster.close().await;
    infos.into_iter().collect()
}

fn cluster(args: &Up, display: &Display, builder: ClusterBuilder) -> ClusterBuilder {
    let builder = builder.every(|vm| options(args, vm)).on_progress(display.sinks());
    match args.at_once {
        Some(boots) => builder.boots_at_once(boots),
        None => builder,
    }
}

fn options(args: &Up, vm: VmBuilder) -> VmBuilder {
    let mut builder = args.machine.of(vm.detached(true));
    if args.warm {
        builder = builder.warm(true);
    }
    if args.durable {
        builder = builder.durable(true);
    }
    if args.host_routable {
        builder = builder.host_routable(true);
    }
    builder
}

fn print(infos: &[VmInfo], format: Format) -> std::io::Result<()> {
    if format == Format::Json {
        return render::vms_json(infos);
    }
    let mut out = std::io::stdout().lock();
    for vm in infos {
        write!(out, "{} {} {}", vm.name, vm.state, vm.address)?;
        match vm.host_address {
            Some(address) => writeln!(out, " {address}")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}
