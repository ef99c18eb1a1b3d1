//! Owns the figure of a warm start: against bare QEMU that restores the same machine, and against cold
//! boots of the same spec, ours and one with a stock seed.

use std::time::Instant;

use super::super::bare::Kept;
use super::super::report::{Bound, Row};
use super::super::sample::{alone, seconds, side_by_side};
use super::super::stage::{Stage, machine_name};
use super::restored::Restored;
use super::{builder, ready, started, stock};
use crate::failure::Outcome;

const RUNS: usize = 9;
const COLD_RUNS: usize = 2;

pub(in crate::bench) fn start(stage: &Stage) -> Outcome<Vec<Row>> {
    ready(stage)?;
    let image = stage.image()?;
    let (vm, _) = stage.wait(started(&machine_name("modelx")))?;
    let peer = Restored::of(stage, &vm)?;
    stage.wait(async { Ok(vm.destroy().await?) })?;
    let ours = |run: usize| {
        stage.wait(async {
            let (vm, took) = started(&machine_name(&format!("warm{run}x"))).await?;
            vm.destroy().await?;
            Ok(seconds(took))
        })
    };
    let runs = stage.runs_or(RUNS);
    let (warm, bare) = side_by_side(runs, ours, |_| Ok(seconds(peer.start(stage, &image)?)))?;
    peer.close()?;
    let (cold, stock) = cold(stage)?;
    let cold_runs = stage.runs_or(COLD_RUNS);
    Ok(vec![
        Row::new(
            "fork-start",
            (warm, Some(bare)),
            "s",
            Bound::TimesAsLong(1.15),
            runs,
            "warm start and vm.ssh(\"uname\"), the golden machine being there, against bare QEMU \
             restoring the same files on a tap by ip, and one OpenSSH command; bare keeps the golden \
             machine's name, keys and clock",
        ),
        Row::new(
            "fork-start-of-cold",
            (warm, Some(cold)),
            "s",
            Bound::TimesAsLong(1.0 / 12.0),
            cold_runs,
            "the same warm start against our own cold boot of the same spec",
        ),
        Row::new(
            "fork-start-of-stock",
            (warm, Some(stock)),
            "s",
            Bound::TimesAsLong(1.0 / 15.0),
            cold_runs,
            "the same warm start against bare QEMU booting the same machine with a stock seed \
             (name, user, key, address; cloud-init's own modules and host keys)",
        ),
    ])
}

/// Our cold boot, and that of a stock seed.
fn cold(stage: &Stage) -> Outcome<(f64, f64)> {
    let image = stage.image()?;
    let runs = stage.runs_or(COLD_RUNS);
    let kept = std::cell::RefCell::new(None);
    let ours = alone(runs, |run| {
        stage.wait(async {
            let began = Instant::now();
            let vm = builder(&machine_name(&format!("cold{run}x"))).start().await?;
            vm.ssh("uname").await?;
            let took = began.elapsed();
            let bare = Kept::of(stage, &vm)?.with_seed(stock::seed(stage, &vm)?);
            bare.trusts_any()?;
            *kept.borrow_mut() = Some(bare);
            vm.destroy().await?;
            Ok(seconds(took))
        })
    })?;
    let kept = kept.borrow();
    let stock = match kept.as_ref() {
        Some(kept) => alone(runs, |_| Ok(seconds(kept.boot(stage, &image)?)))?,
        None => f64::NAN,
    };
    Ok((ours, stock))
}
