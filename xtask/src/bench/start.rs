//! Owns the figure of a start's own work: everything before the monitor runs.

use std::time::Instant;

use fleetbox::{Progress, Vm};
use tokio::sync::mpsc;

use super::report::{Bound, Row};
use super::sample::{ms, side_by_side};
use super::stage::{IMAGE, MEMORY_MIB, Stage, machine_name};
use crate::failure::{Failure, Outcome};
use crate::process;

const NOTE: &str = "from the call of start to the stage kernel, which begins when the monitor has \
                    answered its greeting, so a little after its exec; image and kernel cached";

pub(super) fn start_to_exec(stage: &Stage) -> Outcome<Vec<Row>> {
    let image = stage.image()?;
    let copy = stage.file("copy.raw");
    let copy_once = |_| {
        let mut cp = process::command("cp");
        let took = process::time(cp.arg("--sparse=always").args([&image.path, &copy]))?;
        std::fs::remove_file(&copy).map_err(Failure::io("remove", &copy))?;
        Ok(ms(took))
    };
    let start = |run: usize| start_once(stage, &format!("start{run}x"));
    // Takes the kernel out of the image and brings both into the page cache.
    start(usize::MAX)?;
    copy_once(0)?;
    let runs = stage.runs();
    let (ours, peer) = side_by_side(runs, start, copy_once)?;
    let note = format!(
        "peer: cp --sparse=always of the same image of {} MiB, from and to the page cache",
        image.size_bytes >> 20
    );
    Ok(vec![
        Row::new("start-to-exec", (ours, None), "ms", Bound::AtMost(150.0), runs, NOTE),
        Row::new(
            "start-to-exec/copy",
            (ours, Some(peer)),
            "ms",
            Bound::TimesAsFast(20.0),
            runs,
            note,
        ),
    ])
}

/// Starts a machine, and gives it up as soon as its monitor runs.
fn start_once(stage: &Stage, what: &str) -> Outcome<f64> {
    let name = machine_name(what);
    let (sender, mut begun) = mpsc::unbounded_channel();
    let took = stage.wait(async {
        let builder = Vm::builder(&name).image(IMAGE).memory_mib(MEMORY_MIB).ephemeral(true);
        let began = Instant::now();
        let start = builder
            .on_progress(move |event| {
                if matches!(event, Progress::Begin(fleetbox::Stage::Kernel)) {
                    // Nobody listens to the second of two kernels.
                    let _ = sender.send(began.elapsed());
                }
            })
            .start();
        tokio::select! {
            biased;
            Some(took) = begun.recv() => Ok(took),
            started = start => {
                started?;
                Err(Failure::new("the start never told of its kernel"))
            }
        }
    });
    // The machine ends by itself as nobody holds it; this waits until it has.
    if let Ok(vm) = Vm::find(&name) {
        stage.wait(async { Ok(vm.destroy().await?) })?;
    }
    Ok(ms(took?))
}
