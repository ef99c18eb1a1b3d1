//! Owns the figures of warm starts and snapshots. `start` measures one against its peers, `more` what
//! else they promise; `restored` is the peer that restores without us, `stock` the seed of others.

pub(super) mod more;
mod restored;
pub(super) mod start;
mod stock;

use std::time::{Duration, Instant};

use fleetbox::{Vm, VmBuilder};

use super::stage::{IMAGE, MEMORY_MIB, Stage, machine_name};
use crate::failure::Outcome;

const CPUS: u32 = 2;

fn builder(name: &str) -> VmBuilder {
    Vm::builder(name).image(IMAGE).memory_mib(MEMORY_MIB).cpus(CPUS).ephemeral(true)
}

/// A warm start until the first output.
async fn started(name: &str) -> Outcome<(Vm, Duration)> {
    let began = Instant::now();
    let vm = builder(name).warm(true).start().await?;
    vm.ssh("uname").await?;
    Ok((vm, began.elapsed()))
}

/// The golden machine is there from here on.
fn ready(stage: &Stage) -> Outcome<()> {
    stage.image()?;
    stage.wait(async {
        let (vm, _) = started(&machine_name("firstx")).await?;
        Ok(vm.destroy().await?)
    })
}
