//! The etcd of a cluster: how it is formed, asked and written to. It must not break anything.

use std::time::{Duration, Instant};

use fleetbox::{Cluster, Command, ErrorKind, Stdio, Vm};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;

/// How long a follower waits for its leader, at least; at most it waits twice as long. Machines that
/// are emulated need more than etcd's own second.
pub(crate) const ELECTION: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Far more than anything here takes.
const WAIT: Duration = Duration::from_mins(5);
/// So many writes are acknowledged before the power is cut among them.
pub(crate) const WRITES: usize = 6;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Makes one etcd of three.
pub(crate) async fn form(cluster: &Cluster) -> Outcome<()> {
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

/// Writes one key after the other in a guest, each its own name, and says which were acknowledged.
pub(crate) struct Writer {
    // It ends in the guest when this is dropped.
    _child: fleetbox::Child,
    lines: tokio::io::Lines<BufReader<fleetbox::ChildStdout>>,
}

impl Writer {
    pub(crate) async fn start(vm: &Vm, prefix: &str) -> Outcome<Self> {
        let line = format!(
            "n=0; while :; do n=$((n + 1)); \
             etcdctl --command-timeout=20s put {prefix}$n {prefix}$n >/dev/null && echo {prefix}$n; done"
        );
        let mut child = vm.shell(line).stderr(Stdio::Null).stdout(Stdio::Piped).spawn().await?;
        let stdout = child.stdout.take().ok_or("its output")?;
        Ok(Self { _child: child, lines: BufReader::new(stdout).lines() })
    }

    pub(crate) async fn acknowledged(&mut self, count: usize) -> Outcome<Vec<String>> {
        let mut keys = Vec::new();
        while keys.len() < count {
            let line = tokio::time::timeout(WAIT, self.lines.next_line()).await;
            keys.push(line.map_err(|_| "no write is acknowledged")??.ok_or("the writer ended")?);
        }
        Ok(keys)
    }

    /// What still came before its machine's end.
    pub(crate) async fn rest(&mut self) -> Vec<String> {
        let mut keys = Vec::new();
        while let Ok(Some(line)) = self.lines.next_line().await {
            keys.push(line);
        }
        keys
    }
}

pub(crate) async fn put(vm: &Vm, key: &str, value: &str) -> fleetbox::Result<()> {
    etcdctl(vm).args(["put", key, value]).run().await.map(drop)
}

/// What this very member has, whatever the others have.
pub(crate) async fn local(vm: &Vm, key: &str) -> Outcome<String> {
    let get = ["get", "--consistency=s", "--print-value-only", key];
    let output = etcdctl(vm).args(get).run().await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(crate) async fn has_all(vm: &Vm, keys: &[String]) -> Outcome<()> {
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
pub(crate) async fn leader_of(vms: &[Vm]) -> Outcome<Vm> {
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

pub(crate) async fn until(
    what: &str,
    mut is_so: impl AsyncFnMut() -> Outcome<bool>,
) -> Outcome<()> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(50);
    while !is_so().await? {
        check(began.elapsed() < WAIT, &format!("waited in vain for {what}"))?;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    Ok(())
}

pub(crate) fn check(holds: bool, what: &str) -> Outcome<()> {
    if holds { Ok(()) } else { Err(what.into()) }
}
