//! The etcd example, as a test: its leader is isolated, its power is cut, nothing is lost.

#[path = "../../examples/etcd/raft.rs"]
mod raft;

use std::time::Instant;

use fleetbox::Backend;

use crate::{require, unique};

#[tokio::test]
async fn etcd_survives_isolation_and_power_cuts() {
    if !require::can_boot().await {
        return;
    }
    if !require::has(raft::IMAGE).await {
        let why = format!(
            "the image {0} is not here; `fleetbox image build debian-12 --include etcd-server,etcd-client --as {0}` makes it",
            raft::IMAGE
        );
        return require::missing(Backend::Qemu, &why);
    }
    let began = Instant::now();
    let told = |what: &str| eprintln!("etcd {:>7.2} s  {what}", began.elapsed().as_secs_f64());
    raft::survives(&unique("etcd"), &told).await.unwrap();
}
