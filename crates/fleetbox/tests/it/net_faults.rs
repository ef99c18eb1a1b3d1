//! Who keeps a fault of the network, and what is refused: over the fake backend, whose members have
//! taps that faults act on but no traffic. What faults do to frames is tested beside the plane.

use std::time::{Duration, Instant};

use fleetbox::{Backend, Cluster, Egress, ErrorKind, FaultKind, Result};

use crate::unique;

async fn three(part: &str) -> Result<Cluster> {
    Cluster::builder(unique(part)).size(3).backend(Backend::Fake).ephemeral(true).start().await
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.iter().map(|vm| vm.name().to_owned()).collect()
}

async fn words(cluster: &Cluster) -> Result<Vec<&'static str>> {
    Ok(cluster.faults().await?.iter().map(|fault| fault.what.word()).collect())
}

async fn until_healed(cluster: &Cluster) -> Result<()> {
    let began = Instant::now();
    while !cluster.faults().await?.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", cluster.faults().await?);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn each_fault_lasts_as_long_as_its_guard() -> Result<()> {
    let cluster = three("guard").await?;
    let vm = names(&cluster);
    let cut = cluster.cut(&vm[0], &vm[1]).await?;
    let alone = cluster.isolate(&vm[2]).await?;
    let split = cluster.partition([&vm[..1], &vm[1..]]).await?;
    let offline = cluster.egress(Egress::Deny).await?;
    let link = cluster
        .link_between(&vm[0], &vm[1])
        .latency(Duration::from_millis(50))
        .loss(0.1)
        .seed(42)
        .apply()
        .await?;
    assert_eq!(link.seed(), Some(42));
    assert_eq!(words(&cluster).await?, ["cut", "isolate", "partition", "egress", "link"]);

    // Each goes by itself.
    alone.heal().await?;
    drop(split);
    while words(&cluster).await? != ["cut", "egress", "link"] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One that is kept stays.
    cut.keep().await?;
    drop((offline, link));
    while words(&cluster).await? != ["cut"] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let kept = cluster.faults().await?.remove(0);
    assert!(kept.kept);
    assert!(matches!(&kept.what, FaultKind::Cut { from, .. } if *from == vm[0]));
    // The host still reaches every member.
    for member in &cluster {
        assert_eq!(member.ssh("hostname").await?, member.name());
    }
    cluster.heal().await?;
    assert!(cluster.faults().await?.is_empty());
    cluster.heal().await?;
    cluster.destroy().await
}

#[tokio::test]
async fn a_drawn_seed_is_told_and_a_healed_fault_cannot_be_kept() -> Result<()> {
    let cluster = three("seed").await?;
    let vm = names(&cluster);
    let link = cluster.link(&vm[0]).loss(0.5).apply().await?;
    let told = link.seed().expect("a link has dice");
    let info = cluster.faults().await?.remove(0);
    assert!(matches!(info.what, FaultKind::Link { seed, .. } if seed == told));
    cluster.heal().await?;
    assert_eq!(link.keep().await.unwrap_err().kind(), ErrorKind::NotFound);
    cluster.destroy().await
}

#[tokio::test]
async fn a_fault_follows_a_member_that_comes_back() -> Result<()> {
    let cluster = three("back").await?;
    let vm = names(&cluster);
    let slow = cluster.link(&vm[0]).latency(Duration::from_millis(5)).apply().await?;
    let member = cluster.vm(&vm[0])?;
    member.power_cut().await?;
    assert_eq!(words(&cluster).await?, ["link"]);
    let stopped = cluster.isolate(&vm[0]).await.unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::NotRunning);
    assert_eq!(stopped.vm_name(), Some(vm[0].as_str()));
    let again = cluster.add(&vm[0]).await?;
    assert_eq!(again.ssh("hostname").await?, vm[0]);
    assert_eq!(words(&cluster).await?, ["link"]);
    slow.heal().await?;
    until_healed(&cluster).await?;
    cluster.destroy().await
}

#[tokio::test]
async fn bad_input_is_refused_before_any_work() -> Result<()> {
    let cluster = three("refused").await?;
    let vm = names(&cluster);
    let (a, b) = (vm[0].as_str(), vm[1].as_str());
    let nearly = format!("{a}x");
    let unknown = cluster.cut(a, &nearly).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(unknown.hint_text().unwrap().contains(a), "{}", unknown.report());
    let ms = Duration::from_millis;
    let refused = [
        cluster.cut(a, a).await,
        cluster.partition([vec![a, b], vec![b]]).await,
        cluster.partition([vec![a, b]]).await,
        cluster.partition([vec![a], vec![]]).await,
        cluster.link_between(a, a).latency(ms(1)).apply().await,
        cluster.link(a).apply().await,
        cluster.link(a).loss(-0.1).apply().await,
        cluster.link(a).loss(f64::NAN).apply().await,
        cluster.link(a).duplicate(1.5).apply().await,
        cluster.link(a).latency(Duration::from_hours(2)).apply().await,
        cluster.link(a).latency(ms(1)).jitter(ms(2)).apply().await,
        cluster.link(a).bandwidth_kbit_per_s(0).apply().await,
        cluster.egress(Egress::only(["http://example.org"])).await,
        cluster.egress(Egress::only(Vec::<String>::new())).await,
    ];
    for (at, outcome) in refused.into_iter().enumerate() {
        let error = outcome.expect_err(&format!("number {at}"));
        assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{at}: {}", error.report());
        assert!(error.hint_text().is_some(), "{at}: {}", error.report());
    }
    assert!(cluster.faults().await?.is_empty());
    cluster.stop_within(Duration::ZERO).await?;
    assert_eq!(cluster.isolate(a).await.unwrap_err().kind(), ErrorKind::NotRunning);
    assert!(cluster.faults().await?.is_empty());
    cluster.heal().await?;
    cluster.destroy().await
}
