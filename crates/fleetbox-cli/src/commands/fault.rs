//! `fault`: breaks running machines on purpose, several side by side.

mod plan;
mod timeline;

use fleetbox::{Error, Vm};

use super::each;
use crate::Outcome;
use crate::args::fault::{Disk, Fault, FaultCommand};

pub(super) async fn run(args: Fault) -> Outcome {
    match args.command {
        FaultCommand::PowerCut(on) => {
            each(&on.names, |vm| async move { vm.power_cut().await }).await
        }
        FaultCommand::Reset(on) => each(&on.names, |vm| async move { vm.reset().await }).await,
        FaultCommand::Pause(on) => each(&on.names, |vm| async move { vm.pause().await }).await,
        FaultCommand::Resume(on) => each(&on.names, |vm| async move { vm.resume().await }).await,
        FaultCommand::Memory { machines: on, take_mib } => {
            each(&on.names, move |vm| async move { vm.set_balloon_mib(take_mib).await }).await
        }
        FaultCommand::Disk(args) => disk(args).await,
        FaultCommand::Plan(args) => plan::run(args).await,
        FaultCommand::Replay { name, file } => plan::replay(&name, &file).await,
        FaultCommand::Timeline { name, output } => timeline::run(&name, &output).await,
        FaultCommand::Clock { machines: on, by } => {
            each(&on.names, move |vm| async move { vm.clock_jump(by).await }).await
        }
    }
}

/// What it does to a disk stays until that is healed.
async fn disk(args: Disk) -> Outcome {
    let Disk { machines, iops, kib_per_s, read_errors, write_errors, leave_mib, heal } = args;
    each(&machines.names, move |vm| async move {
        if heal {
            return vm.heal_disk().await;
        }
        // Filled first: a disk that fails is not to be filled.
        if let Some(left_mib) = leave_mib {
            vm.fill_disk(left_mib).await?;
        }
        if iops.is_some() || kib_per_s.is_some() || read_errors || write_errors {
            bad(&vm, (iops, kib_per_s), read_errors, write_errors).await?;
        }
        Ok(())
    })
    .await
}

async fn bad(
    vm: &Vm,
    (iops, kib_per_s): (Option<u64>, Option<u64>),
    read_errors: bool,
    write_errors: bool,
) -> Result<(), Error> {
    let mut disk = vm.disk();
    if let Some(iops) = iops {
        disk = disk.iops(iops);
    }
    if let Some(kib_per_s) = kib_per_s {
        disk = disk.kib_per_s(kib_per_s);
    }
    if read_errors {
        disk = disk.read_errors();
    }
    if write_errors {
        disk = disk.write_errors();
    }
    disk.apply().await?.keep().await
}
