//! Owns the figure of a start's own work: everything before the monitor runs.

use std::cell::RefCell;
use std::path::Path;
use std::time::{Instant, SystemTime};

use fleetbox::{Progress, Vm};
use tokio::sync::mpsc;

use super::report::{Bound, Row};
use super::sample::{in_turns, median, ms};
use super::stage::{IMAGE, MEMORY_MIB, Stage, machine_name};
use crate::failure::{Failure, Outcome};
use crate::process;

/// The peer of an image without holes.
const FULL_BYTES: u64 = 2 << 30;

pub(super) fn start_to_exec(stage: &Stage) -> Outcome<Vec<Row>> {
    let image = stage.image()?;
    let full = stage.noise("full.raw", FULL_BYTES)?;
    let greetings = RefCell::new(Vec::new());
    let start = |run: usize| {
        let (exec, greeting) = start_once(stage, &machine_name(&format!("start{run}x")))?;
        greetings.borrow_mut().push(greeting);
        Ok(exec)
    };
    // Takes the kernel out of the image and brings the files into the page cache.
    start(usize::MAX)?;
    copy_once(stage, &image.path)?;
    greetings.borrow_mut().clear();
    let runs = stage.runs();
    let medians =
        in_turns(runs, [&start, &|_| copy_once(stage, &image.path), &|_| copy_once(stage, &full)])?;
    std::fs::remove_file(&full).map_err(Failure::io("remove", &full))?;
    let [ours, copy, copy_full] = medians;
    let note = format!(
        "from the call of start to the making of the monitor's log, the last step before its exec \
         (by the file's time, which may be 4 ms early); until the monitor has answered {:.0} ms; \
         image and kernel cached",
        median(&mut greetings.borrow_mut())
    );
    let copies = [
        ("start-to-exec/copy", copy, format!("the same image, {} MiB of data", image.data_mib()?)),
        ("start-to-exec/copy-full", copy_full, "2 GiB without holes".to_owned()),
    ];
    let mut rows =
        vec![Row::new("start-to-exec", (ours, None), "ms", Bound::AtMost(150.0), runs, note)];
    rows.extend(copies.map(|(name, peer, what)| {
        let note = format!("peer: cp --sparse=always of {what}, into the page cache");
        Row::new(name, (ours, Some(peer)), "ms", Bound::TimesAsFast(20.0), runs, note)
    }));
    Ok(rows)
}

fn copy_once(stage: &Stage, from: &Path) -> Outcome<f64> {
    let copy = stage.file("copy.raw");
    let mut cp = process::command("cp");
    let took = process::time(cp.arg("--sparse=always").args([from, &copy]))?;
    std::fs::remove_file(&copy).map_err(Failure::io("remove", &copy))?;
    Ok(ms(took))
}

/// Starts a machine, and gives it up as soon as its monitor runs. Milliseconds to the exec, and to
/// the monitor's first answer.
fn start_once(stage: &Stage, name: &str) -> Outcome<(f64, f64)> {
    let (sender, mut begun) = mpsc::unbounded_channel();
    let outcome = stage.wait(async {
        let builder = Vm::builder(name).image(IMAGE).memory_mib(MEMORY_MIB).ephemeral(true);
        let (began, began_at) = (Instant::now(), SystemTime::now());
        let start = builder
            .on_progress(move |event| {
                if matches!(event, Progress::Begin(fleetbox::Stage::Firmware)) {
                    // Nobody listens to the second of two kernels.
                    let _ = sender.send(began.elapsed());
                }
            })
            .start();
        tokio::pin!(start);
        let greeting = tokio::select! {
            biased;
            Some(greeting) = begun.recv() => greeting,
            started = &mut start => {
                started?;
                return Err(Failure::new("the start never told of its kernel"));
            }
        };
        Ok((ms(log_made(name)?.duration_since(began_at).unwrap_or_default()), ms(greeting)))
    });
    // The machine ends by itself as nobody holds it; this waits until it has.
    if let Ok(vm) = Vm::find(name) {
        stage.wait(async { Ok(vm.destroy().await?) })?;
    }
    outcome
}

/// When the monitor's log was made.
fn log_made(name: &str) -> Outcome<SystemTime> {
    let log = Vm::find(name)?.console_path().with_file_name("vmm.log");
    log.metadata().and_then(|m| m.created()).map_err(Failure::io("look at", &log))
}
