//! Coordination of members over the fake backend: together or not at all, growing and shrinking, names
//! and addresses. What members see of each other is in `conformance`.

use std::net::IpAddr;
use std::time::Duration;

use fleetbox::{Backend, Cluster, ClusterBuilder, ErrorKind, Result, State, Vm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::unique;

/// The port on which the fake guest echoes.
const ECHO_PORT: u16 = 7;

fn fake(name: &str) -> ClusterBuilder {
    Cluster::builder(name).backend(Backend::Fake)
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.iter().map(|vm| vm.name().to_owned()).collect()
}

fn addresses(cluster: &Cluster) -> Vec<IpAddr> {
    cluster.iter().map(|vm| vm.address()).collect()
}

async fn answers(vm: &Vm) -> bool {
    let Ok(mut stream) = vm.connect(ECHO_PORT).await else { return false };
    let mut back = [0; 2];
    stream.write_all(b"hi").await.is_ok()
        && stream.read_exact(&mut back).await.is_ok()
        && &back == b"hi"
}

#[tokio::test]
async fn members_have_one_holder_and_addresses_by_their_place() -> Result<()> {
    let name = unique("nodes");
    let cluster = fake(&name).size(3).start().await?;
    assert_eq!(names(&cluster), [1, 2, 3].map(|n| format!("{name}-{n}")));
    let before = addresses(&cluster);
    let mut holders = Vec::new();
    for vm in &cluster {
        let info = vm.info().await?;
        assert_eq!((info.cluster.as_str(), info.state), (name.as_str(), State::Running));
        assert!(answers(&vm).await);
        holders.push(info.holder_pid.expect("a holder"));
    }
    holders.dedup();
    assert_eq!(holders.len(), 1, "one process is one cluster");

    cluster.stop().await?;
    drop(cluster);
    // In another order, and not all: each is where it was.
    let two = format!("{name}-2");
    let vm = Vm::start(two.as_str()).await?;
    assert_eq!(vm.address(), before[1]);
    let cluster = fake(&name).size(3).start().await?;
    assert_eq!(addresses(&cluster), before);
    cluster.destroy().await?;
    assert_eq!(Cluster::find(&name).unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}

#[tokio::test]
async fn one_that_fails_takes_those_with_it_that_were_started_with_it() -> Result<()> {
    let name = unique("none");
    let before = fake(&name).members([format!("{name}-1")]).start().await?;
    let stopped = fake(&name).members([format!("{name}-2")]).start().await?;
    stopped.vm(&format!("{name}-2"))?.stop().await?;
    // No login is as fast.
    let failing = format!("{name}-4");
    let late = |vm: fleetbox::VmBuilder| vm.timeout(Duration::from_nanos(1));
    let error = fake(&name).size(4).member(&failing, late).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BootFailed);
    assert_eq!(error.vm_name(), Some(failing.as_str()));
    assert!(error.hint_text().is_some_and(|hint| hint.contains("alone")), "{}", error.report());

    let vm = before.vm(&format!("{name}-1"))?;
    assert_eq!(vm.state().await?, State::Running, "it ran before");
    assert_eq!(Vm::find(&format!("{name}-2"))?.state().await?, State::Stopped, "as it was");
    for n in [3, 4] {
        let error = Vm::find(&format!("{name}-{n}")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "it was made for this start");
    }
    Cluster::find(&name)?.destroy().await
}

#[tokio::test]
async fn a_running_cluster_grows_and_shrinks() -> Result<()> {
    let name = unique("grows");
    let cluster =
        fake(&name).members([format!("{name}-db"), format!("{name}-web")]).start().await?;
    let added = cluster.add(&format!("{name}-more")).await?;
    assert_eq!(cluster.len(), 3);
    assert!(answers(&added).await);
    assert_eq!(added.info().await?.cluster, name);
    // The place of one that left is the next one's.
    let gone = cluster.vm(&format!("{name}-db"))?.address();
    cluster.remove(&format!("{name}-db")).await?;
    let next = cluster.add_with(&format!("{name}-next"), |vm| vm.memory_mib(256)).await?;
    assert_eq!((next.address(), next.info().await?.memory_mib), (gone, 256));
    assert_eq!(names(&cluster)[0], next.name(), "in the order of addresses");
    let nearest = cluster.vm(&format!("{name}-wed")).unwrap_err();
    assert_eq!(nearest.kind(), ErrorKind::NotFound);
    assert!(nearest.hint_text().is_some_and(|hint| hint.contains("-web")), "{nearest:?}");

    let other = cluster.clone();
    cluster.close().await;
    assert!(other.is_empty());
    let closed = other.add(&format!("{name}-late")).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::NotRunning);
    assert!(closed.hint_text().is_some());
    Cluster::find(&name)?.destroy().await
}

#[tokio::test]
async fn two_clusters_have_equal_addresses_and_do_not_meet() -> Result<()> {
    let (one, two) = (unique("one"), unique("two"));
    let both = tokio::join!(fake(&one).size(2).start(), fake(&two).size(2).start());
    let (one, two) = (both.0?, both.1?);
    assert_eq!(addresses(&one), addresses(&two));
    one.stop().await?;
    for vm in &two {
        assert!(answers(&vm).await, "the other's end is not its own");
    }
    // A name is one VM's, whatever cluster asks for it.
    let taken = two.add(one.vms()[0].name()).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    assert!(taken.report().contains(one.name()), "{}", taken.report());
    let apart = Cluster::of([one.vms()[0].name(), two.vms()[0].name()]).expect_err("refused");
    assert_eq!(apart.kind(), ErrorKind::Conflict);
    assert!(apart.report().contains(two.name()), "{}", apart.report());
    one.destroy().await?;
    two.destroy().await
}

#[tokio::test]
async fn what_cannot_be_a_cluster_is_refused_before_any_work() {
    let name = unique("refused");
    let twice = [format!("{name}-a"), format!("{name}-a")];
    for (builder, kind) in [
        (fake(&name).size(0), ErrorKind::InvalidSpec),
        (fake(&name).size(300), ErrorKind::InvalidSpec),
        (fake(&name).members(twice), ErrorKind::InvalidSpec),
        (fake(&name).size(1).members(["a"]), ErrorKind::InvalidSpec),
        (fake(&name).size(1).boots_at_once(0), ErrorKind::InvalidSpec),
        (fake("").size(1), ErrorKind::InvalidName),
        (fake("../x").size(1), ErrorKind::InvalidName),
    ] {
        let error = builder.start().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.report());
        assert!(error.hint_text().is_some(), "{}", error.report());
    }
    assert_eq!(Cluster::find(&name).unwrap_err().kind(), ErrorKind::NotFound);
}
