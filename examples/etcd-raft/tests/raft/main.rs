//! etcd on three machines: its leader is cut off, its power is cut, and nothing that was acknowledged is lost.
//!
//! ```console
//! $ fleetbox image build debian-12 --include etcd-server,etcd-client --as debian-12-etcd
//! $ cargo test                    # or: cargo nextest run
//! ```

mod acts;
mod etcd;

use fleetbox::Cluster;

/// `durable`: what etcd has synced, a power cut does not take; what it has not, is gone.
#[fleetbox::test(
    image = "debian-12-etcd",
    vms = 3,
    cpus = 1,
    memory_mib = 768,
    durable,
    timeout = "20m"
)]
async fn nothing_acknowledged_is_lost(nodes: Cluster) -> etcd::Outcome<()> {
    etcd::form(&nodes).await?;
    let leader = etcd::leader_of(&nodes.vms()).await?;
    println!("{} leads", leader.name());
    etcd::put(&leader, "before", "1").await?;
    let leader = acts::loses_its_leader(&nodes, &leader).await?;
    let acknowledged = acts::one_loses_its_power(&nodes, &leader).await?;
    acts::all_lose_their_power(&nodes, acknowledged).await
}
