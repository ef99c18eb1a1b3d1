//! Owns the figure of a cold boot: a new machine from nothing but its image to its first output.

use std::cell::RefCell;
use std::time::Instant;

use fleetbox::Vm;

use super::bare::Kept;
use super::report::{Bound, Row};
use super::sample::{seconds, side_by_side};
use super::stage::{IMAGE, MEMORY_MIB, Stage, machine_name};
use crate::failure::{Failure, Outcome};

const RUNS: usize = 3;
const NOTE: &str = "vm.start and vm.ssh(\"uname\") against bare QEMU with the same machine, kernel, \
    initrd, command line and seed on a new disk, its network QEMU's own, polled with ssh. Both \
    first boots are spared: loader and firmware menus (direct kernel boot), a host key (brought \
    along), all cloud-init modules but the 19 the seed needs, file system checks, and mitigations \
    when emulated";

pub(super) fn cold_boot(stage: &Stage) -> Outcome<Vec<Row>> {
    let image = stage.image()?;
    let kept = RefCell::new(None);
    let ours = |run: usize| {
        let name = machine_name(&format!("boot{run}x"));
        let outcome = boot_ours(stage, &name, &kept);
        if let Ok(vm) = Vm::find(&name) {
            stage.wait(async { Ok(vm.destroy().await?) })?;
        }
        outcome
    };
    let peer = |_| {
        let kept = kept.borrow();
        let kept: &Kept = kept.as_ref().ok_or_else(|| Failure::new("no machine to boot again"))?;
        Ok(seconds(kept.boot(stage, &image)?))
    };
    let runs = stage.runs_or(RUNS);
    let (ours, peer) = side_by_side(runs, ours, peer)?;
    let bound = Bound::TimesAsLong(1.05);
    Ok(vec![Row::new("cold-boot", (ours, Some(peer)), "s", bound, runs, NOTE)])
}

fn boot_ours(stage: &Stage, name: &str, kept: &RefCell<Option<Kept>>) -> Outcome<f64> {
    let (vm, took) = stage.wait(async {
        let builder = Vm::builder(name).image(IMAGE).memory_mib(MEMORY_MIB).cpus(2);
        let began = Instant::now();
        let vm = builder.ephemeral(true).start().await?;
        vm.ssh("uname").await?;
        Ok((vm, began.elapsed()))
    })?;
    *kept.borrow_mut() = Some(Kept::of(stage, &vm)?);
    stage.wait(async { Ok(vm.destroy().await?) })?;
    Ok(seconds(took))
}
