//! Owns how a planned fault is caused and healed, one step of a plan. Dropping it heals too, as far as
//! that goes without waiting. It must not know when.

use super::PlannedFault;
use crate::cluster::{Cluster, Impairment, Link, NetworkFault};
use crate::control::client::OutageHold;
use crate::control::message::Outage;
use crate::error::Result;
use crate::vm::Vm;

/// A fault that is there.
pub(super) enum Suffering {
    Network(NetworkFault),
    Paused(OutageHold),
    /// The holder boots it by itself when this is dropped.
    Off {
        vm: String,
        outage: OutageHold,
    },
    Clock(ClockOff),
}

/// Causes it, and returns when it is there.
pub(super) async fn begin(cluster: &Cluster, fault: &PlannedFault) -> Result<Suffering> {
    let network = match fault {
        PlannedFault::Cut { from, to } => cluster.cut(from, to).await?,
        PlannedFault::Partition { groups } => cluster.partition(groups).await?,
        PlannedFault::Isolate { vm } => cluster.isolate(vm).await?,
        PlannedFault::Link { vm, peer, impairment, seed } => {
            let link = match peer {
                Some(peer) => cluster.link_between(vm, peer),
                None => cluster.link(vm),
            };
            described(link, impairment, *seed).apply().await?
        }
        PlannedFault::Pause { vm } => {
            let vm = cluster.member(vm)?;
            return Ok(Suffering::Paused(cluster.client()?.outage(&vm, Outage::Paused).await?));
        }
        PlannedFault::PowerCut { vm } => {
            let outage = cluster.client()?.outage(&cluster.member(vm)?, Outage::Off).await?;
            return Ok(Suffering::Off { vm: vm.clone(), outage });
        }
        PlannedFault::ClockJump { vm, by_ms } => {
            let vm = cluster.vm(vm)?;
            vm.clock_jump(*by_ms).await?;
            return Ok(Suffering::Clock(ClockOff { vm, by_ms: *by_ms, is_off: true }));
        }
    };
    Ok(Suffering::Network(network))
}

fn described(link: Link, impairment: &Impairment, seed: Option<u64>) -> Link {
    let link = link
        .latency(impairment.latency)
        .jitter(impairment.jitter)
        .loss(impairment.loss)
        .duplicate(impairment.duplicate)
        .reorder(impairment.reorder);
    let link = match impairment.bandwidth_kbit_per_s {
        Some(kbit_per_s) => link.bandwidth_kbit_per_s(kbit_per_s),
        None => link,
    };
    match seed {
        Some(seed) => link.seed(seed),
        None => link,
    }
}

impl Suffering {
    /// Heals it, and returns when that is done: a member that was off answers again.
    pub(super) async fn heal(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Network(fault) => fault.heal().await,
            Self::Paused(outage) => outage.end().await,
            Self::Off { vm, outage } => {
                let answers = restart(cluster, &vm).await;
                // Detaches it if it was, and boots it if that did not work.
                let over = outage.end().await;
                answers.and(over)
            }
            Self::Clock(mut off) => {
                off.vm.clock_jump(-off.by_ms).await?;
                off.is_off = false;
                Ok(())
            }
        }
    }
}

async fn restart(cluster: &Cluster, vm: &str) -> Result<()> {
    // One that was removed meanwhile is not to be made anew.
    Vm::find(vm)?;
    cluster.add(vm).await.map(drop)
}

/// A guest whose clock is off.
pub(super) struct ClockOff {
    vm: Vm,
    by_ms: i64,
    is_off: bool,
}

impl Drop for ClockOff {
    fn drop(&mut self) {
        if !self.is_off {
            return;
        }
        // Without a runtime there is nobody to do it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (vm, by_ms) = (self.vm.clone(), self.by_ms);
        runtime.spawn(async move {
            if let Err(e) = vm.clock_jump(-by_ms).await {
                log::warn!("set the clock right again: {}", e.report());
            }
        });
    }
}
