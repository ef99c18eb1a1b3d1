//! `net`: breaks and mends the network of running VMs. What it breaks stays until it is healed, or
//! until no VM of the cluster runs.

use std::io::Write;
use std::path::Path;

use fleetbox::{Cluster, Error, ErrorKind, FaultInfo, FaultKind, NetworkFault, Vm};
use serde::Serialize;

use super::printed;
use crate::args::net::{Egress, Link, Net, NetCommand, PolicyWord};
use crate::args::{Format, Output};
use crate::{Outcome, render};

pub(super) async fn run(args: Net) -> Outcome {
    match args.command {
        NetCommand::Isolate { vm } => {
            let cluster = of(&vm).await?;
            told(&cluster, cluster.isolate(&vm).await?).await
        }
        NetCommand::Partition { groups } => {
            let groups = parse_groups(&groups);
            let first = groups.iter().flatten().next().cloned().unwrap_or_default();
            let cluster = of(&first).await?;
            told(&cluster, cluster.partition(groups).await?).await
        }
        NetCommand::Cut { from, to } => {
            let cluster = of(&from).await?;
            told(&cluster, cluster.cut(&from, &to).await?).await
        }
        NetCommand::Link(args) => link(args).await,
        NetCommand::Egress(args) => egress(args).await,
        NetCommand::Capture { name, write } => capture(&name, &write).await,
        NetCommand::Heal { name } => {
            clusters(&name).await?.heal().await?;
            Ok(0)
        }
        NetCommand::Show { names, output } => show(names, &output).await,
    }
}

/// The cluster a VM is in.
async fn of(vm: &str) -> Result<Cluster, Error> {
    Cluster::find(&Vm::find(vm)?.info().await?.cluster)
}

/// The cluster of that name, or the one a VM of that name is in.
pub(super) async fn clusters(name: &str) -> Result<Cluster, Error> {
    match of(name).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Cluster::find(name),
        found => found,
    }
}

/// Keeps the fault and says what it is, with what it needs to be repeated.
async fn told(cluster: &Cluster, fault: NetworkFault) -> Outcome {
    let id = fault.id();
    let faults = cluster.faults().await?;
    fault.keep().await?;
    match faults.iter().find(|fault| fault.id == id) {
        Some(fault) => printed(writeln!(std::io::stdout(), "{}", fault.what)),
        None => Ok(0),
    }
}

/// Groups are apart by `/`, members by `,`. Without a `/` each word is a group.
fn parse_groups(words: &[String]) -> Vec<Vec<String>> {
    let line = words.join(" ");
    let groups: Vec<&str> =
        if line.contains('/') { line.split('/').collect() } else { line.split(' ').collect() };
    let members = |group: &str| {
        group.split([',', ' ']).filter(|vm| !vm.is_empty()).map(str::to_owned).collect()
    };
    groups.into_iter().map(members).collect()
}

async fn link(args: Link) -> Outcome {
    let cluster = of(&args.vm).await?;
    let mut link = match &args.peer {
        Some(peer) => cluster.link_between(&args.vm, peer),
        None => cluster.link(&args.vm),
    };
    if let Some(latency) = args.latency {
        link = link.latency(latency);
    }
    if let Some(jitter) = args.jitter {
        link = link.jitter(jitter);
    }
    if let Some(share) = args.loss {
        link = link.loss(share);
    }
    if let Some(share) = args.duplicate {
        link = link.duplicate(share);
    }
    if let Some(share) = args.reorder {
        link = link.reorder(share);
    }
    if let Some(kbit_per_s) = args.bandwidth {
        link = link.bandwidth_kbit_per_s(kbit_per_s);
    }
    if let Some(seed) = args.seed {
        link = link.seed(seed);
    }
    told(&cluster, link.apply().await?).await
}

async fn egress(args: Egress) -> Outcome {
    if args.policy != PolicyWord::Only && !args.destinations.is_empty() {
        eprintln!("fleetbox: only `only` takes destinations");
        return Ok(2);
    }
    let policy = match args.policy {
        PolicyWord::Allow => fleetbox::Egress::Allow,
        PolicyWord::Deny => fleetbox::Egress::Deny,
        PolicyWord::Only => fleetbox::Egress::only(args.destinations),
    };
    let cluster = clusters(&args.name).await?;
    let fault = match cluster.vm(&args.name) {
        Ok(_) if cluster.name() != args.name => cluster.egress_of(&args.name, policy).await?,
        _ => cluster.egress(policy).await?,
    };
    told(&cluster, fault).await
}

/// Listens for signals before anything is written, so that none ends it in another way.
async fn capture(name: &str, write: &Path) -> Outcome {
    let mut interrupted = Box::pin(crate::interrupted());
    let start = async {
        let stdout = std::io::stdout();
        match (Vm::find(name), write.as_os_str() == "-") {
            (Ok(vm), false) => vm.capture(write).await,
            (Ok(vm), true) => vm.capture_to(stdout).await,
            (Err(e), _) if e.kind() != ErrorKind::NotFound => Err(e),
            (Err(_), false) => Cluster::find(name)?.capture(write).await,
            (Err(_), true) => Cluster::find(name)?.capture_to(stdout).await,
        }
    };
    let capture = tokio::select! {
        biased;
        () = &mut interrupted => return Ok(130),
        capture = start => capture?,
    };
    eprintln!("captures until Ctrl-C");
    interrupted.await;
    let captured = capture.stop().await?;
    let lost = match captured.lost {
        0 => String::new(),
        lost => format!(", {lost} lost"),
    };
    eprintln!("{} frames{lost}", captured.frames);
    Ok(0)
}

/// A row of `net show -o json`. What a kind does not have is left out.
#[derive(Debug, Default, Serialize)]
struct Row {
    cluster: String,
    id: u64,
    fault: &'static str,
    kept: bool,
    age_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Vec<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<LinkRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<DiskRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destinations: Option<Vec<String>>,
    /// In a line.
    summary: String,
}

#[derive(Debug, Serialize)]
struct LinkRow {
    latency_ms: f64,
    jitter_ms: f64,
    loss: f64,
    duplicate: f64,
    reorder: f64,
    bandwidth_kbit_per_s: Option<u64>,
    seed: u64,
}

#[derive(Debug, Serialize)]
struct DiskRow {
    iops: Option<u64>,
    kib_per_s: Option<u64>,
    read_errors: bool,
    write_errors: bool,
}

impl Row {
    fn new(cluster: &str, info: FaultInfo) -> Self {
        let row = Self {
            cluster: cluster.to_owned(),
            id: info.id,
            fault: info.what.word(),
            kept: info.kept,
            age_ms: info.age.as_millis(),
            summary: info.what.to_string(),
            ..Self::default()
        };
        match info.what {
            FaultKind::Cut { from, to, .. } => Self { from: Some(from), to: Some(to), ..row },
            FaultKind::Partition { groups, .. } => Self { groups: Some(groups), ..row },
            FaultKind::Disk { vm, disk, .. } => {
                let disk = DiskRow {
                    iops: disk.iops,
                    kib_per_s: disk.kib_per_s,
                    read_errors: disk.read_errors,
                    write_errors: disk.write_errors,
                };
                Self { vm: Some(vm), disk: Some(disk), ..row }
            }
            FaultKind::Isolate { vm, .. } => Self { vm: Some(vm), ..row },
            FaultKind::Link { vm, peer, impairment, seed, .. } => {
                let link = LinkRow {
                    latency_ms: impairment.latency.as_secs_f64() * 1000.0,
                    jitter_ms: impairment.jitter.as_secs_f64() * 1000.0,
                    loss: impairment.loss,
                    duplicate: impairment.duplicate,
                    reorder: impairment.reorder,
                    bandwidth_kbit_per_s: impairment.bandwidth_kbit_per_s,
                    seed,
                };
                Self { vm: Some(vm), peer, link: Some(link), ..row }
            }
            FaultKind::Egress { vm, policy, .. } => {
                let (word, destinations) = match policy {
                    fleetbox::Egress::Allow => ("allow", None),
                    fleetbox::Egress::Deny => ("deny", None),
                    fleetbox::Egress::Only(destinations) => ("only", Some(destinations)),
                    _ => ("other", None),
                };
                Self { vm, policy: Some(word), destinations, ..row }
            }
            _ => row,
        }
    }
}

async fn show(names: Vec<String>, output: &Output) -> Outcome {
    let mut found: Vec<Cluster> = Vec::new();
    let names = if names.is_empty() {
        let mut clusters = Vec::new();
        for info in fleetbox::list().await? {
            clusters.push(info?.cluster);
        }
        clusters
    } else {
        names
    };
    for name in names {
        let cluster = clusters(&name).await?;
        if found.iter().all(|known| known.name() != cluster.name()) {
            found.push(cluster);
        }
    }
    let mut rows = Vec::new();
    for cluster in found {
        let faults = cluster.faults().await?;
        rows.extend(faults.into_iter().map(|fault| Row::new(cluster.name(), fault)));
    }
    printed(match output.output {
        Format::Json => render::json(&rows),
        Format::Text => render::rows(
            &["CLUSTER", "ID", "FAULT", "KEPT", "AGE"],
            rows.into_iter().map(|row| {
                let kept = if row.kept { "yes" } else { "no" };
                let age = format!("{} s", row.age_ms / 1000);
                vec![row.cluster, row.id.to_string(), row.summary, kept.to_owned(), age]
            }),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_written_with_or_without_spaces() {
        let expected = [vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]];
        for words in [
            &["a,b", "/", "c"][..],
            &["a,b/c"],
            &["a", "b", "/", "c"],
            &["a,", "b", "/c"],
            &["a,b", "c"],
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(parse_groups(&words), expected, "{words:?}");
        }
    }
}
