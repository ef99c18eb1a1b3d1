//! Owns the faults there are: who keeps each, what all of them together ask of the plane, the proxy and
//! the members' disks. It must not touch frames or requests.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Member, Phase, State};
use crate::backend::Machine;
use crate::control::message::{ActiveFault, Broken, Disk, Fault, Link, Policy};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{
    Destination, Egress, Impairment, Mac, Network, Plane, RuleSet, Rules, StagePlan, Wanted,
};
use crate::spec::Name;

/// How long the end of a machine may take to be known.
const GONE_POLL_FIRST: Duration = Duration::from_millis(2);
const GONE_POLL_LAST: Duration = Duration::from_millis(512);

/// What is broken, and what was done to break it.
pub(super) struct Faults {
    active: BTreeMap<u64, Active>,
    next: u64,
    plane: Plane,
    /// What was last asked of each machine's disk.
    disks: Vec<AskedDisk>,
}

/// A machine, and what its disk is like: nobody knows after a failure.
type AskedDisk = (Arc<dyn Machine>, Option<Disk>);

struct Active {
    fault: Fault,
    kept: bool,
    since: Instant,
}

/// Where a member is in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    tap: u32,
    mac: Mac,
    address: Ipv4Addr,
    /// Its tap is there.
    runs: bool,
}

type Seats = BTreeMap<Name, Seat>;

impl Faults {
    pub(super) fn new(network: Network) -> Self {
        Self { active: BTreeMap::new(), next: 1, plane: Plane::new(network), disks: Vec::new() }
    }
}

impl State {
    /// Breaks the network or a disk. Returns the fault's number, and the seed of its dice.
    pub(in crate::holder) async fn fault(&self, mut fault: Fault) -> Result<(u64, Option<u64>)> {
        for vm in named(&fault) {
            self.machine(vm)?;
        }
        if let Fault::Egress { policy, .. } = &fault {
            egress(policy)?;
        }
        let mut drawn = None;
        if let Fault::Link { seed, .. } = &mut fault {
            drawn = Some(*seed.get_or_insert_with(|| RandomState::new().hash_one(0)));
        }
        let mut faults = self.faults.lock().await;
        let id = faults.next;
        faults.next += 1;
        log::info!("fault {id}: {fault:?}");
        faults.active.insert(id, Active { fault, kept: false, since: Instant::now() });
        if let Err(e) = self.settle(&mut faults).await {
            faults.active.remove(&id);
            if let Err(e) = self.settle(&mut faults).await {
                log::warn!("undo what fault {id} did: {}", e.report());
            }
            return Err(e);
        }
        if let Some(active) = faults.active.get(&id) {
            self.note_fault(id, &active.fault);
        }
        Ok((id, drawn))
    }

    pub(in crate::holder) async fn keep_fault(&self, id: u64) -> Result<()> {
        match self.faults.lock().await.active.get_mut(&id) {
            Some(active) => {
                active.kept = true;
                Ok(())
            }
            None => Err(Error::new(ErrorKind::NotFound, "keep the fault: it is healed already")),
        }
    }

    pub(in crate::holder) async fn heal_fault(&self, id: u64) -> Result<()> {
        self.undo(|other, _| other == id).await
    }

    /// All, or those that are like this.
    pub(in crate::holder) async fn heal(&self, only: Option<&Broken>) -> Result<()> {
        self.undo(|_, active| only.is_none_or(|only| only.has(&active.fault))).await
    }

    /// Whoever caused it is gone.
    pub(in crate::holder) async fn let_fault_go(&self, id: u64) {
        if let Err(e) = self.undo(|other, active| other == id && !active.kept).await {
            log::warn!("heal fault {id}: {}", e.report());
        }
    }

    async fn undo(&self, which: impl Fn(u64, &Active) -> bool) -> Result<()> {
        let mut faults = self.faults.lock().await;
        let all = std::mem::take(&mut faults.active).into_iter();
        let (healed, left): (BTreeMap<_, _>, _) = all.partition(|(id, active)| which(*id, active));
        faults.active = left;
        if healed.is_empty() {
            return Ok(());
        }
        log::info!("healed {} faults", healed.len());
        let settled = self.settle(&mut faults).await;
        for (id, Active { fault, since, .. }) in healed {
            self.note_heal(id, &fault, since.elapsed());
        }
        settled
    }

    pub(in crate::holder) async fn active_faults(&self) -> Vec<ActiveFault> {
        let faults = self.faults.lock().await;
        let describe = |(id, active): (&u64, &Active)| ActiveFault {
            id: *id,
            fault: active.fault.clone(),
            kept: active.kept,
            age_ms: u64::try_from(active.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        faults.active.iter().map(describe).collect()
    }

    /// What the proxy goes by.
    pub(in crate::holder) fn rules(&self) -> Rules {
        self.rules.subscribe()
    }

    /// A member came or went: faults on it follow.
    pub(super) async fn follow(&self) {
        let mut faults = self.faults.lock().await;
        if let Err(e) = self.settle(&mut faults).await {
            log::warn!("keep the faults: {}", e.report());
        }
    }

    async fn settle(&self, faults: &mut Faults) -> Result<()> {
        let seats = self.seats();
        let Faults { active, plane, disks, .. } = faults;
        let active = || active.iter().map(|(id, active)| (*id, &active.fault));
        let rules = rules(active(), &seats);
        self.rules.send_if_modified(|now| {
            let differs = *now != rules;
            *now = rules;
            differs
        });
        let mut network = plane.bring_about(&wanted(active(), &seats)).await;
        // A machine that ends takes its tap along before its end is on the books.
        let mut pause = GONE_POLL_FIRST;
        while is_gone(&network) && pause <= GONE_POLL_LAST {
            tokio::time::sleep(pause).await;
            pause *= 2;
            network = plane.bring_about(&wanted(active(), &self.seats())).await;
        }
        // Whatever one of them says, the other follows.
        let disks = self.settle_disks(active().map(|(_, fault)| fault), disks).await;
        network.map_err(|e| failed("bring the network's faults about", e)).and(disks)
    }

    /// Asks each machine that runs for what is wanted of its disk, unless it is so.
    async fn settle_disks<'a>(
        &self,
        faults: impl Iterator<Item = &'a Fault>,
        asked: &mut Vec<AskedDisk>,
    ) -> Result<()> {
        let wanted = disks(faults);
        let mut outcome = Ok(());
        let mut now = Vec::new();
        for (vm, machine) in self.running_machines() {
            let wanted = wanted.get(&vm).copied().unwrap_or_default();
            let known = asked.iter().find(|(known, _)| Arc::ptr_eq(known, &machine));
            let mut is = known.map_or(Some(Disk::default()), |(_, disk)| *disk);
            if is != Some(wanted) {
                let set = machine.set_disk(wanted).await;
                is = set.is_ok().then_some(wanted);
                outcome = outcome.and(set.map_err(|e| e.vm(vm.as_str())));
            }
            now.push((machine, is));
        }
        *asked = now;
        outcome
    }

    fn running_machines(&self) -> Vec<(Name, Arc<dyn Machine>)> {
        let inner = self.lock();
        let running = |(vm, member): (&Name, &Member)| match &member.phase {
            Phase::Running(machine) => Some((vm.clone(), machine.clone())),
            Phase::Booting | Phase::Ended(_) => None,
        };
        inner.members.iter().filter_map(running).collect()
    }

    fn seats(&self) -> Seats {
        let inner = self.lock();
        inner.members.iter().filter_map(|(vm, member)| Some((vm.clone(), member.seat()?))).collect()
    }
}

impl Member {
    fn seat(&self) -> Option<Seat> {
        Some(Seat {
            tap: self.tap,
            mac: mac(&self.plan.mac)?,
            address: self.plan.address,
            runs: match self.phase {
                Phase::Running(_) => true,
                Phase::Booting => false,
                Phase::Ended(_) => return None,
            },
        })
    }
}

fn mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    for slot in &mut mac {
        *slot = bytes.next()?.ok()?;
    }
    Some(mac)
}

/// The members a fault names.
pub(super) fn named(fault: &Fault) -> Vec<&Name> {
    match fault {
        Fault::Cut { from, to } => vec![from, to],
        Fault::Partition { groups } => groups.iter().flatten().collect(),
        Fault::Isolate { vm } | Fault::Disk { vm, .. } => vec![vm],
        Fault::Link { vm, peer, .. } => std::iter::once(vm).chain(peer).collect(),
        Fault::Egress { vm, .. } => vm.iter().collect(),
    }
}

/// What all faults together do to frames.
fn wanted<'a>(faults: impl Iterator<Item = (u64, &'a Fault)>, seats: &Seats) -> Wanted {
    let mut wanted = Wanted {
        macs: seats.values().map(|seat| (seat.tap, seat.mac)).collect(),
        booting: seats.values().filter(|seat| !seat.runs).map(|seat| seat.tap).collect(),
        ..Wanted::default()
    };
    let tap = |vm: &Name| seats.get(vm).map(|seat| seat.tap);
    for (id, fault) in faults {
        match fault {
            Fault::Cut { from, to } => wanted.cuts.extend(tap(from).zip(tap(to))),
            Fault::Partition { groups } => {
                for (at, group) in groups.iter().enumerate() {
                    let others = groups.iter().enumerate().filter(|(other, _)| *other != at);
                    for to in others.flat_map(|(_, group)| group) {
                        wanted.cuts.extend(group.iter().filter_map(|from| tap(from).zip(tap(to))));
                    }
                }
            }
            Fault::Isolate { vm } => wanted.isolated.extend(tap(vm)),
            Fault::Link { vm, peer, link, seed } => {
                let impairment = impairment(*link);
                let seed = seed.unwrap_or_default();
                // Each end has the frames that come to it; one end alone has both ways.
                let ends = match peer {
                    None => vec![(vm, None)],
                    Some(peer) => vec![(vm, Some(peer)), (peer, Some(vm))],
                };
                for (end, from) in ends {
                    let Some(seat) = seats.get(end).filter(|seat| seat.runs) else { continue };
                    let from = match from.map(|from| seats.get(from)) {
                        None => None,
                        Some(Some(from)) => Some(from.mac),
                        Some(None) => continue,
                    };
                    let seed = seed ^ u64::from(u32::from(seat.address));
                    let stage = StagePlan { id, from, impairment, seed };
                    wanted.links.entry(seat.tap).or_default().push(stage);
                }
            }
            Fault::Egress { .. } | Fault::Disk { .. } => {}
        }
    }
    wanted
}

/// What all faults together do to disks. Of several limits the lowest counts.
fn disks<'a>(faults: impl Iterator<Item = &'a Fault>) -> BTreeMap<Name, Disk> {
    let mut disks: BTreeMap<Name, Disk> = BTreeMap::new();
    let lowest = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
    for fault in faults {
        let Fault::Disk { vm, disk } = fault else { continue };
        let all = disks.entry(vm.clone()).or_default();
        *all = Disk {
            iops: lowest(all.iops, disk.iops),
            bytes_per_s: lowest(all.bytes_per_s, disk.bytes_per_s),
            read_errors: all.read_errors || disk.read_errors,
            write_errors: all.write_errors || disk.write_errors,
        };
    }
    disks
}

/// What all faults together do to the way out. Of several policies for the same member the newest
/// counts.
fn rules<'a>(faults: impl Iterator<Item = (u64, &'a Fault)>, seats: &Seats) -> RuleSet {
    let mut rules = RuleSet::default();
    for (_, fault) in faults {
        match fault {
            Fault::Isolate { vm } => rules.isolated.extend(seats.get(vm).map(|seat| seat.address)),
            Fault::Egress { vm, policy } => {
                // Checked when it came.
                let egress = egress(policy).unwrap_or(Egress::Deny);
                match vm {
                    None => rules.others = egress,
                    Some(vm) => {
                        let seat = seats.get(vm);
                        rules.members.extend(seat.map(|seat| (seat.address, egress)));
                    }
                }
            }
            Fault::Cut { .. }
            | Fault::Partition { .. }
            | Fault::Link { .. }
            | Fault::Disk { .. } => {}
        }
    }
    rules
}

fn egress(policy: &Policy) -> Result<Egress> {
    Ok(match policy {
        Policy::Allow => Egress::Allow,
        Policy::Deny => Egress::Deny,
        Policy::Only(allowed) => {
            let allowed: Result<Vec<Destination>> =
                allowed.iter().map(|destination| destination.parse()).collect();
            Egress::Only(allowed?)
        }
    })
}

fn impairment(link: Link) -> Impairment {
    Impairment {
        latency: Duration::from_micros(link.latency_us),
        jitter: Duration::from_micros(link.jitter_us),
        loss: link.loss,
        duplicate: link.duplicate,
        reorder: link.reorder,
        bits_per_s: link.bandwidth_kbit_per_s.map(|kbit| kbit.saturating_mul(1000)),
    }
}

/// Whether an interface was not there any more.
fn is_gone(outcome: &io::Result<()>) -> bool {
    outcome.as_ref().is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)))
}

fn failed(what: &str, source: io::Error) -> Error {
    Error::new(ErrorKind::HostUnsupported, what)
        .hint("see holder.log in the cluster's directory; `fleetbox doctor` tells what this host lacks")
        .source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn seats() -> Seats {
        let seat = |n: u8| Seat {
            tap: u32::from(n),
            mac: [n; 6],
            address: Ipv4Addr::new(10, 213, 77, n),
            runs: true,
        };
        ["a", "b", "c"].iter().zip(1..).map(|(vm, n)| (name(vm), seat(n))).collect()
    }

    fn plan(faults: &[Fault]) -> Wanted {
        wanted((1..).zip(faults), &seats())
    }

    fn pairs(wanted: &Wanted) -> Vec<(u32, u32)> {
        wanted.cuts.iter().copied().collect()
    }

    #[test]
    fn a_partition_cuts_between_groups_both_ways_and_nothing_else() {
        let groups = vec![vec![name("a"), name("b")], vec![name("c")]];
        let wanted = plan(&[Fault::Partition { groups }]);
        assert_eq!(pairs(&wanted), [(1, 3), (2, 3), (3, 1), (3, 2)]);
    }

    #[test]
    fn a_cut_is_one_way_and_members_that_are_away_are_left_out() {
        let cut = |from, to| Fault::Cut { from: name(from), to: name(to) };
        assert_eq!(pairs(&plan(&[cut("a", "b")])), [(1, 2)]);
        assert!(pairs(&plan(&[cut("a", "gone")])).is_empty());
    }

    #[test]
    fn a_pairs_link_is_at_both_ends_and_a_members_at_its_own() {
        let link = Link { latency_us: 50_000, ..Link::default() };
        let pair = Fault::Link { vm: name("a"), peer: Some(name("b")), link, seed: Some(1) };
        let own = Fault::Link { vm: name("a"), peer: None, link, seed: Some(1) };
        let wanted = plan(&[pair, own]);
        let at = |tap: u32| wanted.links[&tap].iter().map(|s| (s.id, s.from)).collect::<Vec<_>>();
        assert_eq!(at(1), [(1, Some([2; 6])), (2, None)]);
        assert_eq!(at(2), [(1, Some([1; 6]))]);
        assert_eq!(wanted.links[&1][0].impairment.latency, Duration::from_millis(50));
        // The ends do not throw the same dice.
        assert_ne!(wanted.links[&1][0].seed, wanted.links[&2][0].seed);
    }

    #[test]
    fn the_newest_policy_counts_and_isolation_is_apart() {
        let policy = |vm: Option<&str>, policy| Fault::Egress { vm: vm.map(name), policy };
        let faults = [
            policy(None, Policy::Deny),
            policy(Some("a"), Policy::Allow),
            policy(None, Policy::Allow),
            Fault::Isolate { vm: name("b") },
        ];
        let rules = rules((1..).zip(&faults), &seats());
        assert_eq!(rules.others, Egress::Allow);
        assert_eq!(rules.members.len(), 1);
        assert!(rules.isolated.contains(&Ipv4Addr::new(10, 213, 77, 2)));
    }

    #[test]
    fn of_several_faults_of_a_disk_the_worst_counts() {
        let fault = |vm, disk| Fault::Disk { vm: name(vm), disk };
        let faults = [
            fault("a", Disk { iops: Some(10), write_errors: true, ..Disk::default() }),
            fault("a", Disk { iops: Some(5), bytes_per_s: Some(9), ..Disk::default() }),
            fault("b", Disk { iops: Some(20), ..Disk::default() }),
        ];
        let disks = disks(faults.iter());
        let worst =
            Disk { iops: Some(5), bytes_per_s: Some(9), write_errors: true, read_errors: false };
        assert_eq!((disks[&name("a")], disks[&name("b")].iops), (worst, Some(20)));
    }

    #[test]
    fn a_mac_is_read_or_refused() {
        assert_eq!(mac("52:54:00:0a:ff:01"), Some([0x52, 0x54, 0, 0x0a, 0xff, 1]));
        assert_eq!(mac("52:54"), None);
    }
}
