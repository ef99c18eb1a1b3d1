//! Owns what can be said of VMs without starting one: the list, look-up by name or cluster, the
//! OpenSSH client's configuration. It must not change anything.

use std::path::Path;

use tokio::task::JoinSet;

use crate::control::client::Client;
use crate::control::message::{HolderStatus, WireError};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{FixtureSpec, Name};
use crate::store::paths::{MemberPaths, Paths};
use crate::store::place::{self, Placed};
use crate::store::record::{self, VmRecord};
use crate::vm::{State, Vm, VmInfo};

/// Every VM of this state root, by cluster and name.
///
/// A record that cannot be read is an error in its place, as is a VM whose holder cannot be asked;
/// the others are still there.
///
/// # Errors
/// If the state root itself cannot be read.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// for vm in fleetbox::list().await? {
///     let vm = vm?;
///     println!("{} {}", vm.name, vm.state);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn list() -> Result<Vec<Result<VmInfo>>> {
    let paths = Paths::from_env()?;
    let mut asks = JoinSet::new();
    for (place, cluster) in record::clusters(&paths)?.into_iter().enumerate() {
        let cluster = paths.cluster(&cluster);
        asks.spawn(async move {
            let records = record::members(&cluster)?;
            // Where nothing was ever created there is nobody to ask.
            let status = if records.is_empty() {
                Ok(None)
            } else {
                Client::new(cluster.socket()).find().await
            };
            let infos: Vec<Result<VmInfo>> =
                records.into_iter().map(|record| described(&record?, &status)).collect();
            Ok((place, infos))
        });
    }
    let mut clusters = Vec::new();
    while let Some(joined) = asks.join_next().await {
        let listed: Result<_> =
            joined.map_err(|e| Error::new(ErrorKind::Internal, "list a cluster").source(e))?;
        clusters.push(listed?);
    }
    clusters.sort_by_key(|(place, _)| *place);
    Ok(clusters.into_iter().flat_map(|(_, infos)| infos).collect())
}

/// Whether a VM runs is its holder's word: without it nothing is claimed.
fn described(record: &VmRecord, status: &Result<Option<HolderStatus>>) -> Result<VmInfo> {
    match status {
        Ok(status) => Ok(info(record, status.as_ref())),
        Err(error) => Err(Error::from(WireError::from(error)).vm(record.name.as_str())),
    }
}

/// The VMs a name stands for: the VM of exactly that name, else the members of the cluster of that
/// name.
///
/// # Errors
/// [`ErrorKind::NotFound`] with the nearest names.
pub fn resolve(name: &str) -> Result<Vec<Vm>> {
    let checked = Name::new(name)?;
    let paths = Paths::from_env()?;
    if let Some(Placed { cluster, record }) = place::find(&paths, &checked)? {
        return Ok(vec![Vm::placed(&paths, cluster, record)?]);
    }
    let vms = members(&paths, &checked)?;
    if vms.is_empty() { Err(not_found(&paths, &checked)) } else { Ok(vms) }
}

/// The members of a cluster in the order of their addresses; none if there is no such cluster.
pub(crate) fn members(paths: &Paths, cluster: &Name) -> Result<Vec<Vm>> {
    let cluster = paths.cluster(cluster);
    let mut records = record::members(&cluster)?.into_iter().collect::<Result<Vec<_>>>()?;
    records.sort_by_key(|record| record.index);
    records.into_iter().map(|record| Vm::placed(paths, cluster.clone(), record)).collect()
}

pub(crate) fn not_found(paths: &Paths, name: &Name) -> Error {
    let mut known: Vec<String> = Vec::new();
    for cluster in record::clusters(paths).unwrap_or_default() {
        for record in
            record::members(&paths.cluster(&cluster)).unwrap_or_default().into_iter().flatten()
        {
            known.push(record.name.to_string());
        }
    }
    let hint = match nearest(name.as_str(), known.iter().map(String::as_str)) {
        Some(nearest) => format!("did you mean {nearest}? `fleetbox ls` shows all"),
        None if known.is_empty() => format!("there are no VMs yet; `fleetbox up {name}` makes one"),
        None => format!("`fleetbox ls` shows all; `fleetbox up {name}` makes it"),
    };
    Error::new(ErrorKind::NotFound, "find it: there is no such VM").vm(name.as_str()).hint(hint)
}

/// The name most like `name`, if one is.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (strsim::jaro_winkler(k, name), k))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, nearest)| nearest)
}

/// What record and holder together say of a VM.
pub(crate) fn info(record: &VmRecord, status: Option<&HolderStatus>) -> VmInfo {
    let members = status.iter().flat_map(|s| &s.members);
    let running = members.into_iter().find(|m| m.vm == record.name && m.running);
    let state = match running {
        Some(member) if member.paused => State::Paused,
        Some(_) => State::Running,
        None => State::Stopped,
    };
    let holder_pid = running.and(status).and_then(|status| status.pid);
    VmInfo {
        name: record.name.to_string(),
        cluster: record.cluster.to_string(),
        state,
        address: record.address,
        host_address: running.and_then(|member| member.host_address),
        image: record.spec.image.clone(),
        arch: record.spec.arch,
        cpus: record.spec.cpus,
        memory_mib: record.spec.memory_mib,
        disk_gib: record.spec.disk_gib,
        nested_virt: record.spec.nested_virt,
        durable: record.spec.durable,
        fixtures: record.spec.fixtures.iter().filter_map(FixtureSpec::asked).collect(),
        user: record.user.clone(),
        created_at: record.created_at.clone(),
        holder_pid,
    }
}

/// An entry of `ssh_config(5)`. The proxy hands the connected socket over, so no bytes pass through
/// it; the host key is the pinned one and nothing else is accepted.
pub(crate) fn ssh_config(
    record: &VmRecord,
    member: &MemberPaths,
    paths: &Paths,
    fleetbox: &Path,
) -> String {
    let name = &record.name;
    let quote = |path: &Path| format!("\"{}\"", path.display());
    format!(
        "Host {name}\n  \
           HostName {name}\n  \
           HostKeyAlias {name}\n  \
           User {user}\n  \
           IdentityFile {identity}\n  \
           IdentitiesOnly yes\n  \
           UserKnownHostsFile {known_hosts}\n  \
           GlobalKnownHostsFile /dev/null\n  \
           StrictHostKeyChecking yes\n  \
           HostKeyAlgorithms ssh-ed25519\n  \
           ProxyCommand {fleetbox} proxy {name} %p\n  \
           ProxyUseFdpass yes\n",
        user = record.user,
        identity = quote(&paths.keys().join("id_ed25519")),
        known_hosts = quote(&member.known_hosts()),
        fleetbox = quote(fleetbox),
    )
}
