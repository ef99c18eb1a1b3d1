//! Owns the figure of what a running machine costs besides its monitor: the holder's memory.

use super::report::{Bound, Row};
use super::sample::alone;
use super::stage::Stage;
use crate::failure::{Failure, Outcome};

pub(super) fn holder_memory(stage: &Stage) -> Outcome<Vec<Row>> {
    let guest = stage.guest()?;
    let info = stage.wait(async { Ok(guest.vm.info().await?) })?;
    let holder = info.holder_pid.ok_or_else(|| Failure::new("the holder's pid is not known"))?;
    let warden = field(holder, "status", "PPid:")?;
    let runs = stage.runs();
    let ours = alone(runs, |_| {
        Ok(mib(field(holder, "status", "VmRSS:")? + field(warden, "status", "VmRSS:")?))
    })?;
    let shares_kib =
        field(holder, "smaps_rollup", "Pss:")? + field(warden, "smaps_rollup", "Pss:")?;
    let note = format!(
        "VmRSS of the holder ({:.1} MiB) and of the warden it was forked from, pages they share \
         counted twice; by proportional shares (Pss) {:.1} MiB",
        mib(field(holder, "status", "VmRSS:")?),
        mib(shares_kib),
    );
    Ok(vec![Row::new("holder-memory", (ours, None), "MiB", Bound::AtMost(20.0), runs, note)])
}

fn mib(kib: u32) -> f64 {
    f64::from(kib) / 1024.0
}

/// The number after `name` in a file of proc(5).
fn field(pid: u32, file: &str, name: &str) -> Outcome<u32> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/{file}"));
    let text = std::fs::read_to_string(&path).map_err(Failure::io("read", &path))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| Failure::new(format!("there is no {name} in {}", path.display())))
}
