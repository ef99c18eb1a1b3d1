//! Owns what the kernel and the relays do to frames among guests, and brings it in line with what is
//! wanted. It must not know what a fault is, nor which there are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::linux::{Change, Cut, HOST_SIDE, Network};
use super::plan;
use super::relay::{Impairment, Mac, Relay, StagePlan};

/// How the frames of taps, named by their numbers, shall be treated.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted {
    /// Nothing from the first to the second.
    pub cuts: BTreeSet<(u32, u32)>,
    /// Nothing to or from these, whoever is there now or comes later.
    pub isolated: BTreeSet<u32>,
    /// What their links do.
    pub links: BTreeMap<u32, Vec<StagePlan>>,
    /// Whose guests have which MAC.
    pub macs: BTreeMap<u32, Mac>,
    /// Taps that are not there yet.
    pub booting: BTreeSet<u32>,
}

/// How they are treated now.
#[derive(Debug)]
pub(crate) struct Plane {
    network: Network,
    /// Whether the kernel can cut; unknown until it is first asked to.
    kernel_cuts: Option<bool>,
    cuts: BTreeSet<Cut>,
    relays: BTreeMap<u32, Relayed>,
}

#[derive(Debug)]
struct Relayed {
    relay: Relay,
    plans: Vec<StagePlan>,
}

impl Plane {
    pub(crate) fn new(network: Network) -> Self {
        Self { network, kernel_cuts: None, cuts: BTreeSet::new(), relays: BTreeMap::new() }
    }

    /// Brings about what is wanted. After an error it is brought about in part; asked again, the
    /// rest is tried again.
    pub(crate) async fn bring_about(&mut self, wanted: &Wanted) -> io::Result<()> {
        let cuts = !(wanted.cuts.is_empty() && wanted.isolated.is_empty());
        let kernel_cuts = cuts && self.kernel_can_cut().await;
        let mut links = wanted.links.clone();
        if cuts && !kernel_cuts {
            lose_all(wanted, &mut links);
        }
        let wanted_cuts =
            if kernel_cuts { elements(wanted, &links, &self.relays) } else { BTreeSet::new() };
        // First more cuts, last fewer: what is cut before and after is cut all the time.
        let more: Vec<Cut> = wanted_cuts.difference(&self.cuts).cloned().collect();
        self.change(Change::Add, more).await?;
        for (tap, plans) in &links {
            self.relay(*tap, plans).await?;
        }
        let over: Vec<u32> =
            self.relays.keys().filter(|tap| !links.contains_key(tap)).copied().collect();
        for tap in over {
            self.unrelay(tap).await;
        }
        let fewer: Vec<Cut> = self.cuts.difference(&wanted_cuts).cloned().collect();
        self.change(Change::Remove, fewer).await
    }

    async fn kernel_can_cut(&mut self) -> bool {
        if self.kernel_cuts.is_none() {
            let made = self.network.allow_cuts().await;
            if let Err(e) = &made {
                log::warn!("no nftables for bridges, so a relay cuts: {e}");
            }
            self.kernel_cuts = Some(made.is_ok());
        }
        self.kernel_cuts == Some(true)
    }

    async fn change(&mut self, change: Change, cuts: Vec<Cut>) -> io::Result<()> {
        if cuts.is_empty() {
            return Ok(());
        }
        self.network.change_cuts(change, cuts.clone()).await?;
        match change {
            Change::Add => self.cuts.extend(cuts),
            Change::Remove => {
                for cut in &cuts {
                    self.cuts.remove(cut);
                }
            }
        }
        Ok(())
    }

    async fn relay(&mut self, tap: u32, plans: &[StagePlan]) -> io::Result<()> {
        if let Some(relayed) = self.relays.get_mut(&tap) {
            if relayed.plans != plans {
                relayed.relay.set(plans.to_vec());
                relayed.plans = plans.to_vec();
            }
            return Ok(());
        }
        let taps = self.network.relay_taps(tap).await?;
        let entered = async {
            let relay = Relay::start(taps, HOST_SIDE, plans.to_vec())?;
            self.network.enter_relay(tap).await?;
            Ok(relay)
        };
        match entered.await {
            Ok(relay) => {
                self.relays.insert(tap, Relayed { relay, plans: plans.to_vec() });
                Ok(())
            }
            Err(e) => {
                self.remove(tap).await;
                Err(e)
            }
        }
    }

    async fn unrelay(&mut self, tap: u32) {
        let Some(Relayed { relay, .. }) = self.relays.remove(&tap) else { return };
        // What is under way arrives before what goes the short way.
        relay.flush();
        if let Err(e) = self.network.leave_relay(tap).await {
            // Its machine has ended and the tap is gone with it.
            log::debug!("lead tap {tap} to the bridge: {e}");
        }
        drop(relay);
        self.remove(tap).await;
    }

    async fn remove(&self, tap: u32) {
        if let Err(e) = self.network.remove_relay(tap).await {
            log::warn!("remove the relay of tap {tap}: {e}");
        }
    }
}

/// The ports of the bridge that a tap's frames pass: its own, its relay's, or either while it is
/// moved.
fn ports(tap: u32, links: &BTreeMap<u32, Vec<StagePlan>>, now: bool) -> Vec<String> {
    let mut ports = vec![plan::tap_name(tap)];
    if now || links.contains_key(&tap) {
        let [_, _, outer] = plan::relay_names(tap);
        ports.push(outer);
    }
    ports
}

fn elements(
    wanted: &Wanted,
    links: &BTreeMap<u32, Vec<StagePlan>>,
    relays: &BTreeMap<u32, Relayed>,
) -> BTreeSet<Cut> {
    let ports = |tap: u32| ports(tap, links, relays.contains_key(&tap));
    let pairs = wanted.cuts.iter().flat_map(|(from, to)| {
        let to = ports(*to);
        ports(*from)
            .into_iter()
            .flat_map(move |from| to.clone().into_iter().map(move |to| Cut::Pair(from.clone(), to)))
    });
    let isolated = wanted.isolated.iter().flat_map(|tap| ports(*tap)).map(Cut::Isolated);
    pairs.chain(isolated).collect()
}

/// Cuts as links that lose everything.
fn lose_all(wanted: &Wanted, links: &mut BTreeMap<u32, Vec<StagePlan>>) {
    let impairment = Impairment { loss: 1.0, ..Impairment::default() };
    let lost = |from| StagePlan { id: u64::MAX, from, impairment, seed: 0 };
    // What is not there yet cannot be relayed; when it is, this is asked again.
    let is_there = |tap: &u32| !wanted.booting.contains(tap);
    for (from, to) in wanted.cuts.iter().filter(|(_, to)| is_there(to)) {
        if let Some(mac) = wanted.macs.get(from) {
            links.entry(*to).or_default().push(lost(Some(*mac)));
        }
    }
    for tap in wanted.isolated.iter().filter(|tap| is_there(tap)) {
        links.entry(*tap).or_default().push(lost(None));
    }
}

#[cfg(test)]
mod tests;
