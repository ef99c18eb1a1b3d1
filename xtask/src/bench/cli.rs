//! Owns the figures of the command itself, whole processes.

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::report::{Bound, Row};
use super::sample::{alone, ms};
use super::stage::Stage;
use crate::failure::{Failure, Outcome};
use crate::process;

/// They take milliseconds: more runs cost nothing.
const RUNS: usize = 25;
const MACHINES: usize = 50;
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn version(stage: &Stage) -> Outcome<Vec<Row>> {
    let cli = stage.cli()?;
    let runs = stage.runs_or(RUNS);
    let once = |_| Ok(ms(process::time(process::command(cli).arg("--version"))?));
    once(0)?;
    let ours = alone(runs, once)?;
    Ok(vec![Row::new("version", (ours, None), "ms", Bound::AtMost(5.0), runs, "")])
}

/// Fake machines, as fifty real ones would not fit: each is a member with a record, an address and
/// a place in a living holder, which is all that `ls` looks at.
pub(super) fn ls_50(stage: &Stage) -> Outcome<Vec<Row>> {
    let cli = stage.build_cli("fleetbox-fake", &["unstable-fake"])?;
    let runs = stage.runs_or(RUNS);
    let clusters: Vec<String> = (1..=MACHINES).map(|n| format!("box{n}x")).collect();
    let members: Vec<String> = (1..=MACHINES).map(|n| format!("box-{n}")).collect();
    let mut rows = Vec::new();
    for (name, names, note) in [
        ("ls-50", members, "50 running fake machines in one cluster, so one holder to ask"),
        ("ls-50/clusters", clusters, "50 running fake machines, each in a cluster of its own"),
    ] {
        let crowd = Crowd::start(&cli, &names)?;
        crowd.check()?;
        let ours = alone(runs, |_| Ok(ms(process::time(&mut crowd.ls())?)))?;
        crowd.close(stage)?;
        rows.push(Row::new(name, (ours, None), "ms", Bound::AtMost(15.0), runs, note));
    }
    Ok(rows)
}

/// Fake machines in a state directory of their own, removed with it.
struct Crowd<'a> {
    cli: &'a Path,
    // A short path: sockets have to fit.
    home: TempDir,
    names: &'a [String],
}

impl<'a> Crowd<'a> {
    fn start(cli: &'a Path, names: &'a [String]) -> Outcome<Self> {
        let temporary = std::env::temp_dir();
        let home = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir()
            .map_err(Failure::io("make a directory in", &temporary))?;
        let crowd = Self { cli, home, names };
        process::run(crowd.command("up").args(["--backend", "fake"]).args(names))?;
        Ok(crowd)
    }

    fn command(&self, verb: &str) -> std::process::Command {
        let mut command = process::command(self.cli);
        command.env("FLEETBOX_HOME", self.home.path()).arg(verb);
        command
    }

    fn ls(&self) -> std::process::Command {
        self.command("ls")
    }

    /// All of them must be there and running, or the figure is of something else.
    fn check(&self) -> Outcome<()> {
        let listed = process::run(&mut self.ls())?.stdout;
        let running = String::from_utf8_lossy(&listed).matches("running").count();
        if running == self.names.len() {
            return Ok(());
        }
        Err(Failure::new(format!("{running} of {} fake machines run", self.names.len())))
    }

    /// Ends them. Their wardens tidy up at the same time, which the removal has to wait for.
    fn close(self, stage: &Stage) -> Outcome<()> {
        process::run(&mut self.remove())?;
        let deadline = Instant::now() + CLOSE_LIMIT;
        let mut pause = Duration::from_millis(1);
        while let Err(e) = std::fs::remove_dir_all(self.home.path()) {
            if Instant::now() > deadline {
                return Err(Failure::io("remove", self.home.path())(e));
            }
            stage.pause(pause)?;
            pause *= 2;
        }
        Ok(())
    }

    fn remove(&self) -> std::process::Command {
        let mut remove = self.command("rm");
        remove.arg("--force").args(self.names);
        remove
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        // Only after a failure, and then there is nobody to tell of another.
        if self.home.path().exists() {
            drop(process::run(&mut self.remove()));
        }
    }
}
