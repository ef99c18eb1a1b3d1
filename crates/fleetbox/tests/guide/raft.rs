//! Raft under a partition, and a power cut.

use std::time::Duration;

use fleetbox::Cluster;
use fleetbox::wait::command;

#[fleetbox::test(image = "raft-base", vms = 3, durable, timeout = "10m")]
async fn a_minority_accepts_nothing(nodes: Cluster) -> fleetbox::Result<()> {
    let vms = nodes.vms();
    let split = nodes.partition([vec![vms[0].name()], vec![vms[1].name(), vms[2].name()]]).await?;
    vms[1].wait(command("raftctl leader").succeeds()).within(Duration::from_secs(30)).await?;
    vms[1].ssh("raftctl put key majority").await?;
    assert!(vms[0].ssh("timeout 5 raftctl put key minority").await.is_err());
    split.heal().await?;

    vms[1].power_cut().await?;
    let back = nodes.add(vms[1].name()).await?;
    back.wait(command("test \"$(raftctl get key)\" = majority").succeeds()).await
}
