//! Owns the figures of forks beside the time of one: three at once, their memory, the pause of a save,
//! and the command line's one-liner.

use std::time::{Duration, Instant};

use fleetbox::{Cluster, TimelineEvent, Vm};

use super::super::report::{Bound, Row};
use super::super::sample::{alone, median, seconds, side_by_side};
use super::super::stage::{IMAGE, MEMORY_MIB, Stage, machine_name};
use super::{CPUS, builder, ready, started};
use crate::failure::{Failure, Outcome};
use crate::process;

const RUNS: usize = 7;

pub(in crate::bench) fn three(stage: &Stage) -> Outcome<Vec<Row>> {
    ready(stage)?;
    let cluster = |run: usize, size: usize| {
        stage.wait(async move {
            let name = machine_name(&format!("all{size}of{run}x"));
            let began = Instant::now();
            let cluster = Cluster::builder(&name)
                .size(size)
                .image(IMAGE)
                .memory_mib(MEMORY_MIB)
                .cpus(CPUS)
                .warm(true)
                .every(|vm| vm.ephemeral(true))
                .start()
                .await?;
            let outputs = cluster.iter().map(|vm| async move { vm.ssh("uname").await.map(drop) });
            for output in outputs.map(tokio::spawn).collect::<Vec<_>>() {
                output.await.map_err(|e| Failure::new(e.to_string()))??;
            }
            let took = began.elapsed();
            cluster.destroy().await?;
            Ok(seconds(took))
        })
    };
    let runs = stage.runs_or(RUNS);
    let (three, one) = side_by_side(runs, |run| cluster(run, 3), |run| cluster(run, 1))?;
    let spent = stage.wait(async {
        let (vm, _) = started(&machine_name("spentx")).await?;
        let spent = processor_seconds(&vm)?;
        vm.destroy().await?;
        Ok(spent)
    })?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let least = (3.0 * spent / cores as f64).max(one) / one;
    let note = format!(
        "a cluster of three made warm, until each had its first output, against one of one; the monitor of \
         one has spent {spent:.1} s of processors by then, so on {cores} the ratio is {least:.1} at best"
    );
    let bound = Bound::TimesAsLong(2.2);
    Ok(vec![Row::new("fork-three", (three, Some(one)), "s", bound, runs, note)])
}

pub(in crate::bench) fn memory(stage: &Stage) -> Outcome<Vec<Row>> {
    ready(stage)?;
    let (cold, fork) = stage.wait(async {
        let cold = builder(&machine_name("coldx")).start().await?;
        cold.ssh("uname").await?;
        let cold_mib = pss_mib(&cold)?;
        cold.destroy().await?;
        let (first, _) = started(&machine_name("onex")).await?;
        let (second, _) = started(&machine_name("twox")).await?;
        let fork_mib = pss_mib(&second)?;
        first.destroy().await?;
        second.destroy().await?;
        Ok((cold_mib, fork_mib))
    })?;
    let note = "Pss of the monitor right after its first output: the second of two forks, against a \
                machine that was booted";
    let bound = Bound::TimesAsLong(0.6);
    Ok(vec![Row::new("fork-memory", (fork, Some(cold)), "MiB", bound, 1, note)])
}

/// The proportional share of the host's memory that the VM's monitor has.
fn pss_mib(vm: &Vm) -> Outcome<f64> {
    let text = of_monitor(vm, "smaps_rollup")?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = pss.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| Failure::new("there is no Pss"))
}

/// What the VM's monitor has had of the host's processors, in user and in kernel (proc(5)).
fn processor_seconds(vm: &Vm) -> Outcome<f64> {
    let text = of_monitor(vm, "stat")?;
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks.as_slice() {
        // A hundred a second on every Linux, whatever the kernel itself counts by.
        [user, kernel] => Ok((user + kernel) / 100.0),
        _ => Err(Failure::new("there is no time of processors")),
    }
}

/// That file in /proc of the VM's monitor.
fn of_monitor(vm: &Vm, file: &str) -> Outcome<String> {
    let console = format!("path={}", vm.console_path().display());
    let processes = std::fs::read_dir("/proc").map_err(Failure::io("list", "/proc".as_ref()))?;
    for process in processes.flatten() {
        let told = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&told).contains(&console) {
            let path = process.path().join(file);
            return std::fs::read_to_string(&path).map_err(Failure::io("read", &path));
        }
    }
    Err(Failure::new(format!("the monitor of {} is not there", vm.name())))
}

pub(in crate::bench) fn pause(stage: &Stage) -> Outcome<Vec<Row>> {
    ready(stage)?;
    let name = machine_name("savedx");
    let runs = stage.runs();
    let mut pauses_ms = stage.wait(async {
        let vm = builder(&name).start().await?;
        vm.ssh("systemctl is-system-running --wait || true").await?;
        for run in 0..runs {
            let snapshot = vm.snapshot(&format!("{name}-s{run}")).await?;
            snapshot.remove()?;
        }
        let events = Cluster::find(vm.info().await?.cluster.as_str())?.timeline()?;
        let pauses = events.into_iter().filter_map(|entry| match entry.event {
            TimelineEvent::Save { paused, .. } => Some(paused),
            _ => None,
        });
        let pauses: Vec<f64> = pauses.map(|paused: Duration| seconds(paused) * 1e3).collect();
        vm.destroy().await?;
        Ok(pauses)
    })?;
    let worst = pauses_ms.iter().copied().fold(0.0, f64::max);
    let note = format!(
        "vm.snapshot of a booted, running machine of {MEMORY_MIB} MiB: from when its processors stop \
         to when they go on; the worst {worst:.0} ms"
    );
    let bound = Bound::AtMost(300.0);
    Ok(vec![Row::new("fork-pause", (median(&mut pauses_ms), None), "ms", bound, runs, note)])
}

pub(in crate::bench) fn run(stage: &Stage) -> Outcome<Vec<Row>> {
    ready(stage)?;
    let cli = stage.cli()?;
    let (memory, cpus) = (MEMORY_MIB.to_string(), CPUS.to_string());
    let command = |_| {
        let mut run = process::command(cli);
        run.args(["run", "--quiet", "--image", IMAGE, "--memory", &memory, "--cpus", &cpus]);
        Ok(seconds(process::time(run.args(["--", "true"]))?))
    };
    // The command's own key of a golden machine is the library's.
    alone(1, command)?;
    let start = |run: usize| {
        stage.wait(async {
            let (vm, took) = started(&machine_name(&format!("peer{run}x"))).await?;
            vm.destroy().await?;
            Ok(seconds(took))
        })
    };
    let runs = stage.runs_or(RUNS);
    let (command, start) = side_by_side(runs, command, start)?;
    let note = "the whole command, its machine gone at the end, against a warm start to its first \
                output by the library";
    let bound = Bound::TimesAsLong(1.2);
    Ok(vec![Row::new("fork-run", (command, Some(start)), "s", bound, runs, note)])
}
