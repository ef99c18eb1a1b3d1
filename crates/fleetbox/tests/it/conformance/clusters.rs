//! Owns the list of what the library promises of a [`Cluster`], run against every backend: one cluster
//! that grows to three members and goes again. Each scenario finds what the one before left. Faults
//! between members are in `net_faults`.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use fleetbox::{Backend, Cluster, ClusterBuilder, ErrorKind, Result, State, Vm};
use tokio::io::AsyncReadExt;

use super::bed::until;
use super::{chosen, require, runtime, told};
use crate::unique;

/// Three emulated ones fit a small host.
const MEMORY_MIB: u32 = 512;
const SSH_PORT: u16 = 22;
/// A guest under emulation takes its time to shut down.
const STOP_GRACE: Duration = Duration::from_mins(3);

struct Trio {
    backend: Backend,
    name: String,
    cluster: Cluster,
    /// Of the members by their numbers, which no start may change.
    addresses: Vec<IpAddr>,
}

for_each_backend!(conforms: fake, qemu, cloud_hypervisor);

fn conforms(word: &str) {
    let Some(backend) = chosen(word) else { return };
    let runtime = runtime();
    let name = unique(&format!("trio-{backend}"));
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(backend, &name))));
    // None if all went well, as the last scenario destroys it.
    let cleared = match Cluster::find(&name) {
        Ok(left) => runtime.block_on(left.destroy()),
        Err(_) => Ok(()),
    };
    match ran.map(|outcome| outcome.and(cleared)) {
        Ok(Ok(())) => {}
        Ok(Err(e)) => panic!("{backend}: {}", e.report()),
        Err(panic) => resume_unwind(panic),
    }
}

fn like_all(backend: Backend, builder: ClusterBuilder) -> ClusterBuilder {
    let builder = builder.backend(backend);
    builder.memory_mib(MEMORY_MIB).cpus(1).durable(true).warm(can_be_warm(backend))
}

/// Others boot, and a word on it is nothing to read.
fn can_be_warm(backend: Backend) -> bool {
    backend.capabilities().snapshot
}

async fn run(backend: Backend, name: &str) -> Result<()> {
    if backend != Backend::Fake && !require::has_image().await {
        require::missing(backend, "the image is not here; `fleetbox image build` makes it");
        return Ok(());
    }
    let began = Instant::now();
    let cluster = match like_all(backend, Cluster::builder(name).size(2)).start().await {
        Err(e)
            if matches!(e.kind(), ErrorKind::HostUnsupported | ErrorKind::BackendUnavailable) =>
        {
            require::missing(backend, &e.report());
            return Ok(());
        }
        started => started?,
    };
    told(backend, "(creation and first boot of two)", began, "ok");
    let addresses = cluster.iter().map(|vm| vm.address()).collect();
    let mut trio = Trio { backend, name: name.to_owned(), cluster, addresses };
    step(&mut trio, "members_reach_each_other_by_name", members_reach_each_other).await?;
    step(&mut trio, "a_running_cluster_takes_one_in", a_running_cluster_takes_one_in).await?;
    step(&mut trio, "a_partition_splits_it_in_two", a_partition_splits_it_in_two).await?;
    step(&mut trio, "a_power_cut_takes_one_alone", a_power_cut_takes_one_alone).await?;
    step(&mut trio, "one_that_stops_is_missed_alone", one_that_stops_is_missed_alone).await?;
    step(&mut trio, "one_that_is_removed_is_forgotten", one_that_is_removed_is_forgotten).await?;
    step(&mut trio, "all_come_back_where_they_were", all_come_back_where_they_were).await?;
    step(&mut trio, "a_destroyed_cluster_is_gone", a_destroyed_cluster_is_gone).await
}

async fn step(
    trio: &mut Trio,
    name: &str,
    scenario: impl AsyncFnOnce(&mut Trio) -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    let outcome = scenario(trio).await;
    told(trio.backend, name, began, if outcome.is_ok() { "ok" } else { "FAILED" });
    outcome
}

impl Trio {
    /// By its number, from one.
    fn vm(&self, number: usize) -> Result<Vm> {
        self.cluster.vm(&self.name_of(number))
    }

    fn name_of(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    fn has_guests(&self) -> bool {
        self.backend != Backend::Fake
    }

    /// Each is at its address and reached from the host; where there are guests, from each other too.
    async fn is_whole(&self) -> Result<()> {
        let addresses: Vec<IpAddr> = self.cluster.iter().map(|vm| vm.address()).collect();
        assert_eq!(addresses, self.addresses);
        for vm in &self.cluster {
            assert_eq!(vm.state().await?, State::Running, "{}", vm.name());
            let mut banner = [0; 4];
            vm.connect(SSH_PORT).await?.read_exact(&mut banner).await?;
            assert_eq!(&banner, b"SSH-", "{}", vm.name());
            for other in self.cluster.iter().filter(|other| other.name() != vm.name()) {
                if self.has_guests() {
                    reaches(&vm, &other).await?;
                }
            }
        }
        Ok(())
    }
}

/// By short and full name, to the right address and to a service there, without /etc/hosts.
async fn reaches(from: &Vm, to: &Vm) -> Result<()> {
    for name in [to.name().to_owned(), format!("{}.fleetbox.internal", to.name())] {
        let found = from.ssh(&format!("getent ahostsv4 {name}")).await?;
        assert!(found.starts_with(&to.address().to_string()), "{name} is {found}");
        let dial = format!("timeout 60 bash -c 'head -c 4 </dev/tcp/{name}/22'");
        assert_eq!(from.ssh(&dial).await?, "SSH-", "{name} from {}", from.name());
    }
    assert_eq!(from.ssh(&format!("grep -c {} /etc/hosts || true", to.name())).await?, "0");
    Ok(())
}

/// A guest may keep an answer for some seconds.
async fn forgets(from: &Vm, name: &str) {
    until("the name's end", async || {
        from.ssh(&format!("getent ahostsv4 {name}")).await.is_err_and(|e| e.output().is_some())
    })
    .await;
}

async fn members_reach_each_other(trio: &mut Trio) -> Result<()> {
    let mut holders = Vec::new();
    for vm in &trio.cluster {
        let info = vm.info().await?;
        assert_eq!((info.cluster.as_str(), info.memory_mib), (trio.name.as_str(), MEMORY_MIB));
        assert_eq!(vm.ssh("hostname").await?, vm.name());
        holders.push(info.holder_pid.expect("a holder"));
    }
    assert_eq!(holders[0], holders[1], "one process is one cluster");
    trio.is_whole().await
}

async fn a_running_cluster_takes_one_in(trio: &mut Trio) -> Result<()> {
    let before = trio.vm(1)?.info().await?.holder_pid;
    let added = trio.cluster.add(&trio.name_of(3)).await?;
    let info = added.info().await?;
    assert_eq!((info.holder_pid, info.memory_mib), (before, MEMORY_MIB), "as the others");
    trio.addresses.push(added.address());
    trio.is_whole().await
}

/// Both sides are whole in themselves, and reached from the host.
async fn a_partition_splits_it_in_two(trio: &mut Trio) -> Result<()> {
    let (first, second, third) = (trio.vm(1)?, trio.vm(2)?, trio.vm(3)?);
    let split = trio.cluster.partition([vec![first.name(), second.name()], vec![third.name()]]);
    let split = split.await?;
    if trio.has_guests() {
        reaches(&first, &second).await?;
        for (from, to) in [(&first, &third), (&third, &second)] {
            let dial = format!("timeout 5 bash -c 'head -c 4 </dev/tcp/{}/22'", to.address());
            let error = from.ssh(&dial).await.expect_err("the partition lets it through");
            // Anything but an answer; not a command that never ran.
            assert!(error.output().is_some(), "{}", error.report());
        }
    }
    assert_eq!(third.ssh("hostname").await?, third.name());
    split.heal().await?;
    trio.is_whole().await
}

/// It has what it synced when it is back, and the others never missed each other. Where it came from a
/// golden machine it boots for the first time, as itself.
async fn a_power_cut_takes_one_alone(trio: &mut Trio) -> Result<()> {
    let (first, two) = (trio.vm(1)?, trio.name_of(2));
    if trio.has_guests() {
        // The file system would else flush by itself every five seconds.
        trio.vm(2)?.ssh("sudo mount -o remount,commit=600 /").await?;
    }
    let machine_id = trio.vm(2)?.ssh("cat /etc/machine-id").await?;
    trio.vm(2)?.ssh("echo synced > synced; sync; echo lost > lost").await?;
    trio.vm(2)?.power_cut().await?;
    assert_eq!(trio.vm(2)?.state().await?, State::Stopped);
    if trio.has_guests() {
        forgets(&first, &two).await;
        reaches(&first, &trio.vm(3)?).await?;
    }
    let back = trio.cluster.add(&two).await?;
    assert_eq!(back.ssh("cat synced").await?, "synced");
    assert_eq!(back.ssh("hostname").await?, two);
    assert_eq!(back.ssh("cat /etc/machine-id").await?, machine_id);
    if trio.has_guests() {
        assert_eq!(back.ssh("systemctl is-system-running --wait").await?, "running");
        if trio.backend.capabilities().disk_loss {
            assert!(back.ssh("cat lost").await.is_err(), "a write that was not flushed is there");
        }
    }
    trio.is_whole().await
}

/// It stays away until all come back.
async fn one_that_stops_is_missed_alone(trio: &mut Trio) -> Result<()> {
    let (first, three) = (trio.vm(1)?, trio.name_of(3));
    trio.vm(3)?.ssh("echo kept > kept; sync").await?;
    trio.vm(3)?.stop_within(STOP_GRACE).await?;
    if trio.has_guests() {
        forgets(&first, &three).await;
        reaches(&first, &trio.vm(2)?).await?;
    }
    assert_eq!(trio.cluster.len(), 3);
    Ok(())
}

async fn one_that_is_removed_is_forgotten(trio: &mut Trio) -> Result<()> {
    let (first, two) = (trio.vm(1)?, trio.name_of(2));
    trio.cluster.remove(&two).await?;
    assert_eq!(trio.vm(2).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(Vm::find(&two).unwrap_err().kind(), ErrorKind::NotFound);
    if trio.has_guests() {
        forgets(&first, &two).await;
    }
    trio.addresses.remove(1);
    Ok(())
}

async fn all_come_back_where_they_were(trio: &mut Trio) -> Result<()> {
    trio.cluster.stop_within(STOP_GRACE).await?;
    for vm in &trio.cluster {
        assert_eq!(vm.state().await?, State::Stopped, "{}", vm.name());
    }
    let left = Cluster::builder(&trio.name).members([trio.name_of(1), trio.name_of(3)]);
    trio.cluster = like_all(trio.backend, left).start().await?;
    assert_eq!(trio.vm(3)?.ssh("cat kept").await?, "kept");
    trio.is_whole().await
}

async fn a_destroyed_cluster_is_gone(trio: &mut Trio) -> Result<()> {
    let directory = trio.vm(1)?.console_path().parent().unwrap().parent().unwrap().to_owned();
    trio.cluster.destroy().await?;
    trio.cluster.destroy().await?;
    assert!(trio.cluster.is_empty());
    assert_eq!(Cluster::find(&trio.name).unwrap_err().kind(), ErrorKind::NotFound);
    trio.cluster.close().await;
    let closed = trio.cluster.add(&trio.name_of(1)).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::NotRunning);
    until("the cluster directory's end", async || !directory.exists()).await;
    Ok(())
}
