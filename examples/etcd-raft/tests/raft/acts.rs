//! What the etcd goes through. It must not know how etcd is asked.

use std::time::Instant;

use fleetbox::{Cluster, Vm};
use tokio::task::JoinSet;

use crate::etcd::{
    ELECTION, Outcome, WRITES, Writer, check, has_all, leader_of, local, put, until,
};

/// The leader is cut off: the others elect another and go on, and it catches up when it is back.
pub(crate) async fn loses_its_leader(cluster: &Cluster, old: &Vm) -> Outcome<Vm> {
    let others: Vec<Vm> = cluster.iter().filter(|vm| vm.name() != old.name()).collect();
    let isolated = cluster.isolate(old.name()).await?;
    let began = Instant::now();
    let new = leader_of(&others).await?;
    let took = began.elapsed();
    println!("{} leads {:.1} s after {} was isolated", new.name(), took.as_secs_f64(), old.name());
    // Two rounds, if the first has no winner, and what asking takes.
    check(took < 5 * ELECTION, "no leader was elected in time")?;
    put(&new, "during", "2").await?;
    check(put(old, "alone", "3").await.is_err(), "the isolated one acknowledged a write")?;
    isolated.heal().await?;
    until("the old leader to catch up", async || Ok(local(old, "during").await? == "2")).await?;
    check(local(old, "alone").await?.is_empty(), "a write of a minority is there")?;
    println!("{} is back and has what it missed", old.name());
    leader_of(&cluster.vms()).await
}

/// The leader's power is cut while writes come in. Returns those that were acknowledged.
pub(crate) async fn one_loses_its_power(cluster: &Cluster, leader: &Vm) -> Outcome<Vec<String>> {
    let client = cluster.iter().find(|vm| vm.name() != leader.name()).ok_or("a follower")?;
    let mut writer = Writer::start(&client, "one").await?;
    let mut acknowledged = writer.acknowledged(WRITES).await?;
    leader.power_cut().await?;
    acknowledged.extend(writer.acknowledged(WRITES).await?);
    drop(writer);
    println!(
        "{} writes acknowledged before and after {} lost its power",
        acknowledged.len(),
        leader.name()
    );
    let back = cluster.add(leader.name()).await?;
    let last = acknowledged.last().cloned().ok_or("a write")?;
    until("the one that lost its power to catch up", async || {
        Ok(local(&back, &last).await? == last)
    })
    .await?;
    has_all(&back, &acknowledged).await?;
    println!("{} has them all", back.name());
    Ok(acknowledged)
}

/// Nobody is left who remembers: what was acknowledged is on the disks, or lost.
pub(crate) async fn all_lose_their_power(
    cluster: &Cluster,
    mut acknowledged: Vec<String>,
) -> Outcome<()> {
    let client = cluster.vms().into_iter().next().ok_or("a member")?;
    let mut writer = Writer::start(&client, "all").await?;
    acknowledged.extend(writer.acknowledged(WRITES).await?);
    let mut cuts = JoinSet::new();
    for vm in cluster {
        cuts.spawn(async move { vm.power_cut().await });
    }
    while let Some(cut) = cuts.join_next().await {
        cut??;
    }
    // Those that were under way.
    acknowledged.extend(writer.rest().await);
    println!("all lost their power after {} writes", acknowledged.len());
    let again = Cluster::builder(cluster.name()).size(3).start().await?;
    let leader = leader_of(&again.vms()).await?;
    has_all(&leader, &acknowledged).await?;
    println!("{} leads, and has them all", leader.name());
    Ok(())
}
