//! What was done to a cluster is on its timeline, in order, whoever did it, over the fake backend.

use std::time::Duration;

use fleetbox::{Backend, Cluster, Result, TimelineEntry, TimelineEvent};

use crate::unique;

/// Each entry's word, with the member's place in the cluster.
fn told(cluster: &Cluster, entries: &[TimelineEntry]) -> Vec<String> {
    let name = format!("{}-", cluster.name());
    let word = |entry: &TimelineEntry| match &entry.vm {
        Some(vm) => format!("{} {}", entry.event.word(), vm.trim_start_matches(&name)),
        None => entry.event.word().to_owned(),
    };
    entries.iter().map(word).collect()
}

#[tokio::test]
async fn everything_done_to_a_cluster_is_told_in_order() -> Result<()> {
    let name = unique("told");
    let cluster =
        Cluster::builder(&name).size(2).boots_at_once(1).backend(Backend::Fake).start().await?;
    let (one, two) = (format!("{name}-1"), format!("{name}-2"));
    let alone = cluster.isolate(&one).await?;
    let cut = cluster.cut(&one, &two).await?;
    let cut_id = cut.id();
    cut.heal().await?;
    let vm = cluster.vm(&one)?;
    vm.pause().await?;
    vm.pause().await?;
    vm.resume().await?;
    vm.reset().await?;
    assert!(cluster.cut(&one, &one).await.is_err(), "what fails is not told");
    vm.power_cut().await?;
    vm.power_cut().await?;
    cluster.vm(&two)?.stop_within(Duration::from_secs(30)).await?;
    alone.heal().await?;

    let entries = cluster.timeline()?;
    assert_eq!(
        told(&cluster, &entries),
        [
            "holder_started",
            "boot 1",
            "boot 2",
            "fault 1",
            "fault",
            "heal",
            "pause 1",
            "resume 1",
            "reset 1",
            "power_cut 1",
            "end 1",
            "stop_asked 2",
            "end 2",
            "heal 1",
        ]
    );
    let TimelineEvent::Fault { id, what, .. } = &entries[4].event else { panic!("{entries:?}") };
    assert_eq!((*id, what.as_str()), (cut_id, format!("cut {one} {two}").as_str()));
    let TimelineEvent::Heal { id, what, lasted, .. } = &entries[13].event else {
        panic!("{entries:?}")
    };
    assert_eq!((*id, what), (1, &format!("isolate {one}")));
    // Both are by the monotonic clock.
    let between = entries[13].since_start.abs_diff(entries[3].since_start);
    assert!(lasted.abs_diff(between) < Duration::from_secs(1), "{lasted:?} {between:?}");
    for pair in entries.windows(2) {
        assert!(pair[0].since_start <= pair[1].since_start, "{pair:?}");
        assert_eq!(pair[0].holder_started, pair[1].holder_started);
    }
    drop((vm, cluster));

    // Without a holder it is there, and the next one goes on.
    let found = Cluster::find(&name)?;
    let before = found.timeline()?.len();
    let again = Cluster::builder(&name).size(2).start().await?;
    let entries = found.timeline()?;
    let fresh = entries.iter().position(|entry| entry.holder_started != entries[0].holder_started);
    let fresh = fresh.expect("another holder");
    assert!(fresh >= before, "{entries:?}");
    assert_eq!(entries[fresh - 1].event, TimelineEvent::HolderEnded, "{entries:?}");
    assert_eq!(entries[fresh].event.word(), "holder_started");
    assert!(entries[fresh].since_start < entries[fresh - 1].since_start, "it begins anew");
    again.destroy().await?;
    drop((again, found));
    Ok(())
}

#[tokio::test]
async fn a_machine_nobody_holds_is_told_to_be_let_go() -> Result<()> {
    let name = unique("letgo");
    let cluster = Cluster::builder(&name).size(2).backend(Backend::Fake).start().await?;
    let one = cluster.vm(&format!("{name}-1"))?;
    let found = Cluster::find(&name)?;
    drop(cluster);
    let began = std::time::Instant::now();
    let ended = loop {
        let told = told(&found, &found.timeline()?);
        if told.last().is_some_and(|last| last == "end 2") {
            break told;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{told:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(ended[ended.len() - 2], "let_go 2");
    one.destroy().await?;
    found.destroy().await
}
