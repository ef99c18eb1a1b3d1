//! A plan is carried out, and whatever becomes of it everything is healed: over the fake backend, in
//! real processes. What a plan's text and seeds mean is tested beside the code.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fleetbox::{Backend, Cluster, ErrorKind, FaultPlan, PlanEvent, PlanKind, Result, State, Vm};

use crate::unique;

async fn three(part: &str) -> Result<Cluster> {
    Cluster::builder(unique(part)).size(3).backend(Backend::Fake).start().await
}

/// A plan's text with `1`, `2`, `3` after an `@` for the members.
fn plan(cluster: &Cluster, text: &str) -> FaultPlan {
    text.replace('@', &format!("{}-", cluster.name())).parse().unwrap()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Waits until all run and nothing is broken.
async fn until_whole(cluster: &Cluster) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut states = Vec::new();
        for vm in cluster {
            states.push(vm.state().await?);
        }
        let faults = cluster.faults().await?;
        if faults.is_empty() && states.iter().all(|state| *state == State::Running) {
            return Ok(());
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{states:?} {faults:?}");
        tokio::time::sleep(ms(10)).await;
    }
}

/// Waits for an event of the plan that runs, told to `seen`.
async fn until_seen(seen: &Mutex<Vec<String>>, words: &[&str]) {
    let began = Instant::now();
    while !words.iter().all(|word| seen.lock().unwrap().iter().any(|line| line.contains(word))) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", seen.lock().unwrap());
        tokio::time::sleep(ms(5)).await;
    }
}

fn watcher() -> (Arc<Mutex<Vec<String>>>, impl Fn(&PlanEvent) + Send + Sync + 'static) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let tell = move |event: &PlanEvent| {
        let line = match event {
            PlanEvent::Began { step, .. } => format!("began {}", step.fault),
            PlanEvent::Healed { step, .. } => format!("healed {}", step.fault),
            _ => "?".to_owned(),
        };
        sink.lock().unwrap().push(line);
    };
    (seen, tell)
}

const ALL: &str = "
    0s +400ms isolate @1
    50ms +300ms partition @1,@2 / @3
    100ms +100ms cut @2 @3
    100ms +200ms link @2 @3 --latency 20ms --loss 5% --seed 9
    150ms +200ms pause @2
    200ms +300ms power-cut @3
    250ms +50ms link @1 --bandwidth 10mbit
";

#[tokio::test]
async fn a_plan_is_carried_out_at_its_times_and_told() -> Result<()> {
    let cluster = three("plan").await?;
    let plan = plan(&cluster, ALL);
    let (seen, tell) = watcher();
    let report = cluster.run_plan_with(&plan, tell).await?;
    assert_eq!(report.outcomes.len(), plan.steps().len());
    for (outcome, step) in report.outcomes.iter().zip(plan.steps()) {
        assert_eq!(outcome.step, *step);
        assert!(outcome.began >= step.at, "{outcome:?}");
        assert!(outcome.healed >= outcome.began + step.length, "{outcome:?}");
        assert!(outcome.healed <= report.took);
    }
    assert!(report.took >= plan.span());
    assert_eq!(seen.lock().unwrap().len(), 2 * plan.steps().len());
    // Nothing is left to wait for.
    assert!(cluster.faults().await?.is_empty());
    for vm in &cluster {
        assert_eq!(vm.state().await?, State::Running);
        assert_eq!(cluster.vm(vm.name())?.ssh("hostname").await?, vm.name());
    }
    let told: Vec<&str> =
        cluster.timeline()?.iter().skip(4).map(|entry| entry.event.word()).collect();
    for (word, times) in [
        ("fault", 5),
        ("heal", 5),
        ("pause", 1),
        ("resume", 1),
        ("power_cut", 1),
        ("end", 1),
        ("boot", 1),
    ] {
        assert_eq!(told.iter().filter(|told| **told == word).count(), times, "{word}: {told:?}");
    }
    cluster.destroy().await
}

#[tokio::test]
async fn a_dropped_plan_is_healed() -> Result<()> {
    let cluster = three("dropped").await?;
    let hour = "0s +1h isolate @1\n0s +1h pause @2\n0s +1h power-cut @3\n1h +1h cut @1 @2";
    let plan = plan(&cluster, hour);
    let (seen, tell) = watcher();
    {
        let run = cluster.run_plan_with(&plan, tell);
        tokio::select! {
            ended = run => panic!("{ended:?}"),
            () = until_seen(&seen, &["began isolate", "began pause", "began power-cut"]) => {}
        }
    }
    until_whole(&cluster).await?;
    assert_eq!(seen.lock().unwrap().len(), 3);
    let two = format!("{}-2", cluster.name());
    assert_eq!(Vm::find(&two)?.ssh("hostname").await?, two);
    cluster.destroy().await
}

#[tokio::test]
async fn a_plan_that_fails_is_healed_when_it_returns() -> Result<()> {
    let cluster = three("fails").await?;
    let plan = plan(
        &cluster,
        "0s +1h isolate @1\n0s +1h power-cut @2\n300ms +1s cut @3 @1\n1h +1s cut @1 @3",
    );
    let (seen, tell) = watcher();
    let third = cluster.vm(&format!("{}-3", cluster.name()))?;
    let (ended, stopped) = tokio::join!(cluster.run_plan_with(&plan, tell), async {
        until_seen(&seen, &["began isolate", "began power-cut"]).await;
        third.power_cut().await
    });
    stopped?;
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotRunning, "{}", error.report());
    assert_eq!(error.vm_name(), Some(third.name()));
    assert!(error.report().contains("cut"), "{}", error.report());
    assert!(cluster.faults().await?.is_empty());
    for vm in &cluster {
        let expected = if vm.name() == third.name() { State::Stopped } else { State::Running };
        assert_eq!(vm.state().await?, expected, "{}", vm.name());
    }
    cluster.destroy().await
}

#[tokio::test]
async fn a_member_removed_while_it_is_off_is_not_made_anew() -> Result<()> {
    let cluster = three("removed").await?;
    let plan = plan(&cluster, "0s +300ms power-cut @2\n0s +1h isolate @1");
    let (seen, tell) = watcher();
    let two = cluster.vm(&format!("{}-2", cluster.name()))?;
    let (ended, destroyed) = tokio::join!(cluster.run_plan_with(&plan, tell), async {
        until_seen(&seen, &["began power-cut", "began isolate"]).await;
        two.destroy().await
    });
    destroyed?;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(Vm::find(two.name()).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(cluster.faults().await?.is_empty());
    Cluster::find(cluster.name())?.destroy().await
}

#[tokio::test]
async fn a_detached_cluster_stays_so_with_all_of_it_off() -> Result<()> {
    let name = unique("stays");
    let started = Cluster::builder(&name).size(2).backend(Backend::Fake).detached(true);
    started.start().await?.close().await;
    let found = Cluster::find(&name)?;
    let plan =
        plan(&found, "0s +100ms power-cut @1\n0s +100ms power-cut @2\n150ms +50ms cut @1 @2");
    let report = found.run_plan(&plan).await?;
    assert_eq!(report.outcomes.len(), 3);
    found.close().await;
    let again = Cluster::find(&name)?;
    let holders = again.timeline()?;
    assert!(holders.iter().all(|entry| entry.holder_started == holders[0].holder_started));
    for vm in &again {
        assert_eq!(vm.ssh("hostname").await?, vm.name());
    }
    again.destroy().await
}

#[tokio::test]
async fn a_plan_for_others_is_refused_before_any_work() -> Result<()> {
    let cluster = three("others").await?;
    let one = cluster.vm(&format!("{}-1", cluster.name()))?;
    let before = cluster.timeline()?;
    let refused = async |text: &str| {
        let first = "0s +10ms isolate @2\n".to_owned();
        cluster.run_plan(&plan(&cluster, &(first + text))).await.unwrap_err()
    };
    let unknown = refused("1s +1s isolate @9").await;
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(unknown.hint_text().is_some_and(|hint| hint.contains("did you mean")));
    let clock = refused("1s +1s clock @1 --by 1s").await;
    assert_eq!(clock.kind(), ErrorKind::Unsupported, "the fake's guests have no clock");
    assert!(!cluster.plan_kinds().contains(&PlanKind::ClockJump));
    assert_eq!(cluster.timeline()?, before);
    one.pause().await?;
    assert_eq!(refused("1s +1s isolate @1").await.kind(), ErrorKind::Conflict);
    one.power_cut().await?;
    let stopped = refused("1s +1s isolate @1").await;
    assert_eq!(stopped.kind(), ErrorKind::NotRunning);
    assert_eq!(stopped.vm_name(), Some(one.name()));
    assert!(cluster.faults().await?.is_empty());
    let done = cluster.timeline()?.into_iter().filter(|entry| entry.event.word() == "fault");
    assert_eq!(done.count(), 0);
    // Nothing to do is no failure.
    assert!(cluster.run_plan(&plan(&cluster, "")).await?.outcomes.is_empty());
    cluster.destroy().await
}
