//! Owns the figures of tests: what their machinery adds, how long the bundle of a failure takes, how long a user's
//! first build does. It must not know what a bundle has in it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use fleetbox::Cluster;
use fleetbox::testing::Test;

use super::report::{Bound, Row};
use super::stage::{IMAGE, Stage};
use super::user::{Crate, Dependency, PEER};
use crate::failure::{Failure, Outcome};
use crate::process;

/// A test of the fake backend with an empty body, against its machine's start and end alone.
pub(super) fn overhead(stage: &Stage) -> Outcome<Vec<Row>> {
    let mut cargo = process::cargo(&stage.root);
    cargo.args(["test", "--quiet", "--release", "--package", "fleetbox", "--test", "it"]);
    cargo.args(["--features", "unstable-fake", "--"]);
    cargo.args(["--exact", "testing::overhead", "--ignored", "--nocapture"]);
    let output = process::run(&mut cargo)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures = text.split("overhead-us ").nth(1).and_then(|rest| {
        let mut words = rest.split_whitespace().map(str::parse::<f64>);
        Some((words.next()?.ok()?, words.next()?.ok()?))
    });
    let (bare, tested) =
        figures.ok_or_else(|| Failure::new(format!("no figure in what the test said: {text}")))?;
    let note = format!(
        "fake backend, 100 tests: {:.1} ms each, start and end of their VM {:.1} ms",
        tested / 1000.0,
        bare / 1000.0
    );
    let added = ((tested - bare) / 1000.0, None);
    Ok(vec![Row::new("test-overhead", added, "ms", Bound::AtMost(20.0), 100, note)])
}

/// From the failure of a body to the end of its test: the bundle of three machines, and their end.
pub(super) fn bundle(stage: &Stage) -> Outcome<Vec<Row>> {
    stage.image()?;
    let failed = Mutex::new(None);
    let run = || {
        Test::new("bench::bundle").vms(3).vm(|vm| vm.image(IMAGE).memory_mib(768).cpus(1)).run(
            async |nodes: Cluster| -> Result<(), String> {
                let mut said = Vec::new();
                for vm in &nodes {
                    said.push(vm.ssh("uname -a; exit 1").await.is_err());
                }
                *failed.lock().map_err(|e| e.to_string())? = Some(Instant::now());
                Err(format!("on purpose: {said:?}"))
            },
        )
    };
    let outcome = catch_unwind(AssertUnwindSafe(run));
    let ended = Instant::now();
    let failed = failed.into_inner().ok().flatten();
    let (Ok(Err(_)), Some(failed)) = (outcome, failed) else {
        return Err(Failure::new("the test did not fail as it should"));
    };
    let seconds = (ended - failed).as_secs_f64();
    let note = "three real machines: all of it written, machines destroyed";
    Ok(vec![Row::new("test-bundle", (seconds, None), "s", Bound::AtMost(5.0), 1, note)])
}

/// A new crate with nothing but the dependency, built for tests, everything fetched before.
pub(super) fn build(stage: &Stage) -> Outcome<Vec<Row>> {
    let first = |name: &str, dependency: &Dependency| -> Outcome<f64> {
        let new = Crate::new(stage, name, dependency)?;
        let began = Instant::now();
        new.build()?;
        Ok(began.elapsed().as_secs_f64())
    };
    let ours = first("build-ours", &Dependency::Ours)?;
    let peer = first("build-peer", &Dependency::Published(PEER))?;
    let note = format!("debug, from nothing, of an empty crate; peer: {PEER}");
    let bound = Bound::TimesAsLong(1.0);
    Ok(vec![Row::new("test-build", (ours, Some(peer)), "s", bound, 1, note)])
}
