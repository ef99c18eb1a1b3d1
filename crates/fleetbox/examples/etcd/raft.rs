//! What the etcd of a [`Cluster`] goes through. It must not choose where to say so.

use std::time::{Duration, Instant};

use fleetbox::{Cluster, Command, ErrorKind, Stdio, Vm};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;

/// Debian's, with its packages etcd-server and etcd-client.
pub(crate) const IMAGE: &str = "debian-12-etcd";

/// How long a follower waits for its leader, at least; at most it waits twice as long. Machines that
/// are emulated need more than etcd's own second.
const ELECTION: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Far more than anything here takes.
const WAIT: Duration = Duration::from_mins(5);
/// So many writes are acknowledged before the power is cut among them.
const WRITES: usize = 12;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Where each step is said.
pub(crate) type Told<'a> = &'a dyn Fn(&str);

/// Starts three machines, breaks them, and destroys them.
pub(crate) async fn survives(name: &str, told: Told<'_>) -> Outcome<()> {
    told("starting three machines");
    let cluster = Cluster::builder(name)
        .size(3)
        .image(IMAGE)
        .cpus(1)
        .memory_mib(768)
        // What etcd has synced, a power cut does not take; what it has not, is gone.
        .durable(true)
        .warm(true)
        .start()
        .await?;
    let outcome = go_through(&cluster, told).await;
    cluster.destroy().await?;
    outcome
}

async fn go_through(cluster: &Cluster, told: Told<'_>) -> Outcome<()> {
    form(cluster).await?;
    let leader = leader_of(&cluster.vms()).await?;
    told(&format!("{} leads", leader.name()));
    put(&leader, "before", "1").await?;
    let leader = loses_its_leader(cluster, &leader, told).await?;
    let acknowledged = one_loses_its_power(cluster, &leader, told).await?;
    all_lose_their_power(cluster, acknowledged, told).await
}

/// Makes one etcd of three.
async fn form(cluster: &Cluster) -> Outcome<()> {
    let peers: Vec<String> =
        cluster.iter().map(|vm| format!("{0}=http://{0}:2380", vm.name())).collect();
    let mut starts = JoinSet::new();
    for vm in cluster {
        let settings = format!(
            "ETCD_NAME={0}\n\
             ETCD_DATA_DIR=/var/lib/etcd/cluster\n\
             ETCD_LISTEN_PEER_URLS=http://0.0.0.0:2380\n\
             ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379\n\
             ETCD_INITIAL_ADVERTISE_PEER_URLS=http://{0}:2380\n\
             ETCD_ADVERTISE_CLIENT_URLS=http://{0}:2379\n\
             ETCD_INITIAL_CLUSTER={1}\n\
             ETCD_INITIAL_CLUSTER_STATE=new\n\
             ETCD_HEARTBEAT_INTERVAL={2}\n\
             ETCD_ELECTION_TIMEOUT={3}\n",
            vm.name(),
            peers.join(","),
            HEARTBEAT.as_millis(),
            ELECTION.as_millis(),
        );
        starts.spawn(async move {
            let file = "/etc/default/etcd";
            vm.command("tee").arg(file).sudo().stdin_bytes(settings).run().await?;
            // It is up when it has found the others: none waits for the next.
            vm.ssh("sudo systemctl enable -q etcd; sudo systemctl restart --no-block etcd").await
        });
    }
    while let Some(started) = starts.join_next().await {
        started??;
    }
    Ok(())
}

/// The leader is cut off: the others elect another and go on, and it catches up when it is back.
async fn loses_its_leader(cluster: &Cluster, old: &Vm, told: Told<'_>) -> Outcome<Vm> {
    let others: Vec<Vm> = cluster.iter().filter(|vm| vm.name() != old.name()).collect();
    let isolated = cluster.isolate(old.name()).await?;
    let began = Instant::now();
    let new = leader_of(&others).await?;
    let took = began.elapsed();
    told(&format!(
        "{} leads {:.1} s after {} was isolated",
        new.name(),
        took.as_secs_f64(),
        old.name()
    ));
    // Two rounds, if the first has no winner, and what asking takes.
    check(took < 5 * ELECTION, "no leader was elected in time")?;
    put(&new, "during", "2").await?;
    check(put(old, "alone", "3").await.is_err(), "the isolated one acknowledged a write")?;
    isolated.heal().await?;
    until("the old leader to catch up", async || Ok(local(old, "during").await? == "2")).await?;
    check(local(old, "alone").await?.is_empty(), "a write of a minority is there")?;
    told(&format!("{} is back and has what it missed", old.name()));
    leader_of(&cluster.vms()).await
}

/// The leader's power is cut while writes come in. Returns those that were acknowledged.
async fn one_loses_its_power(
    cluster: &Cluster,
    leader: &Vm,
    told: Told<'_>,
) -> Outcome<Vec<String>> {
    let client = cluster.iter().find(|vm| vm.name() != leader.name()).ok_or("a follower")?;
    let mut writer = Writer::start(&client, "one").await?;
    let mut acknowledged = writer.acknowledged(WRITES).await?;
    leader.power_cut().await?;
    acknowledged.extend(writer.acknowledged(WRITES).await?);
    drop(writer);
    told(&format!(
        "{} writes acknowledged before and after {} lost its power",
        acknowledged.len(),
        leader.name()
    ));
    let back = cluster.add(leader.name()).await?;
    let last = acknowledged.last().cloned().ok_or("a write")?;
    until("the one that lost its power to catch up", async || {
        Ok(local(&back, &last).await? == last)
    })
    .await?;
    has_all(&back, &acknowledged).await?;
    told(&format!("{} has them all", back.name()));
    Ok(acknowledged)
}

/// Nobody is left who remembers: what was acknowledged is on the disks, or lost.
async fn all_lose_their_power(
    cluster: &Cluster,
    mut acknowledged: Vec<String>,
    told: Told<'_>,
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
    told(&format!("all lost their power after {} writes", acknowledged.len()));
    let again = Cluster::builder(cluster.name()).size(3).start().await?;
    let leader = leader_of(&again.vms()).await?;
    has_all(&leader, &acknowledged).await?;
    told(&format!("{} leads, and has them all", leader.name()));
    Ok(())
}

/// Writes one key after the other in a guest, each its own name, and says which were acknowledged.
struct Writer {
    // It ends in the guest when this is dropped.
    _child: fleetbox::Child,
    lines: tokio::io::Lines<BufReader<fleetbox::ChildStdout>>,
}

impl Writer {
    async fn start(vm: &Vm, prefix: &str) -> Outcome<Self> {
        let line = format!(
            "n=0; while :; do n=$((n + 1)); \
             etcdctl --command-timeout=20s put {prefix}$n {prefix}$n >/dev/null && echo {prefix}$n; done"
        );
        let mut child = vm.shell(line).stderr(Stdio::Null).stdout(Stdio::Piped).spawn().await?;
        let stdout = child.stdout.take().ok_or("its output")?;
        Ok(Self { _child: child, lines: BufReader::new(stdout).lines() })
    }

    async fn acknowledged(&mut self, count: usize) -> Outcome<Vec<String>> {
        let mut keys = Vec::new();
        while keys.len() < count {
            let line = tokio::time::timeout(WAIT, self.lines.next_line()).await;
            keys.push(line.map_err(|_| "no write is acknowledged")??.ok_or("the writer ended")?);
        }
        Ok(keys)
    }

    /// What still came before its machine's end.
    async fn rest(&mut self) -> Vec<String> {
        let mut keys = Vec::new();
        while let Ok(Some(line)) = self.lines.next_line().await {
            keys.push(line);
        }
        keys
    }
}

async fn put(vm: &Vm, key: &str, value: &str) -> fleetbox::Result<()> {
    etcdctl(vm).args(["put", key, value]).run().await.map(drop)
}

/// What this very member has, whatever the others have.
async fn local(vm: &Vm, key: &str) -> Outcome<String> {
    let get = ["get", "--consistency=s", "--print-value-only", key];
    let output = etcdctl(vm).args(get).run().await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn has_all(vm: &Vm, keys: &[String]) -> Outcome<()> {
    let output = etcdctl(vm).args(["get", "--prefix", "--keys-only", ""]).run().await?;
    let there = String::from_utf8_lossy(&output.stdout).into_owned();
    let lost: Vec<&String> =
        keys.iter().filter(|key| !there.lines().any(|line| line == *key)).collect();
    check(lost.is_empty(), &format!("acknowledged and lost: {lost:?}"))
}

fn etcdctl(vm: &Vm) -> Command {
    let mut etcdctl = vm.command("etcdctl");
    etcdctl.args(["--command-timeout=20s", "--endpoints=127.0.0.1:2379"]);
    etcdctl
}

/// The one of them all of them take for their leader.
async fn leader_of(vms: &[Vm]) -> Outcome<Vm> {
    let mut leader = None;
    until("a leader", async || {
        let mut ids = Vec::new();
        let mut leaders = Vec::new();
        for vm in vms {
            let Some((own, its_leader)) = ids_of(vm).await? else { return Ok(false) };
            ids.push(own);
            leaders.push(its_leader);
        }
        let agreed = leaders.windows(2).all(|pair| pair[0] == pair[1]);
        leader = ids.iter().position(|id| agreed && Some(id) == leaders.first());
        Ok(leader.is_some())
    })
    .await?;
    Ok(leader.map(|at| vms[at].clone()).ok_or("a leader")?)
}

/// A member's own number and its leader's; none while it does not answer.
async fn ids_of(vm: &Vm) -> Outcome<Option<(u64, u64)>> {
    let output = match etcdctl(vm).args(["endpoint", "status", "-w", "json"]).run().await {
        Err(e) if e.kind() == ErrorKind::CommandFailed => return Ok(None),
        output => output?,
    };
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let status = &said[0]["Status"];
    Ok(status["header"]["member_id"].as_u64().zip(status["leader"].as_u64()))
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Outcome<bool>) -> Outcome<()> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(50);
    while !is_so().await? {
        check(began.elapsed() < WAIT, &format!("waited in vain for {what}"))?;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    Ok(())
}

fn check(holds: bool, what: &str) -> Outcome<()> {
    if holds { Ok(()) } else { Err(what.into()) }
}
