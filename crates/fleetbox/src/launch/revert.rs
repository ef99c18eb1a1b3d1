//! Owns taking a running VM back to a snapshot of it: it is who it is, with the disk and memory it had
//! then. It must not make a VM.

use super::prepared::{choose, image, layers};
use super::restore::{self, Saved};
use super::{StartRequest, admission, plan, ready};
use crate::backend::{Backend, BootPlan};
use crate::control::client::Client;
use crate::control::message::Outage;
use crate::error::{Error, ErrorKind, Result};
use crate::prepare::{disk, seed};
use crate::snapshot;
use crate::ssh::Session;
use crate::store::lock;
use crate::store::paths::{ClusterPaths, MemberPaths, Paths};
use crate::store::record::VmRecord;
use crate::store::whole::half_made_dir;

/// Takes the VM of that record back to the snapshot its record names, and waits until it answers.
pub(crate) async fn revert(
    request: StartRequest,
    cluster: &ClusterPaths,
    client: &Client,
    session: &Session,
) -> Result<()> {
    let paths = Paths::from_env()?;
    let member = cluster.member(&request.name);
    let Some(record) = VmRecord::read(&member)? else {
        return Err(Error::not_running(request.name.as_str()));
    };
    let Some(of) = &record.snapshot else {
        return Err(Error::new(ErrorKind::NotFound, "revert: there is no snapshot of it")
            .hint("save it first: `fleetbox snapshot save VM NAME`"));
    };
    let saved = restore::named(&paths, of)?;
    let choice = choose(&paths, &request, Some(&record)).await?;
    let layers = layers(&paths, Some(&record), None);
    let image = image(&paths, &request, Some(&record), layers, &choice).await?;
    let start = plan::start_of(choice, image.as_ref(), &request.progress)?;
    saved.check(&start)?;

    let away = client.outage(&request.name, Outage::Off).await?;
    let booted = async {
        // Whoever removes or starts it waits, and finds it running or stopped.
        let _starter = lock::lock(&cluster.lock(), || ()).await?;
        let record = swap(cluster, &member, &record, &saved)?;
        let key = seed::host_key_private_openssh(&member.seed())?;
        let restore = Some(Box::new(saved.restore(&record, key)));
        // What it had it keeps.
        let memory = paths.memory_of(&record.cluster, &record.name);
        let memory = memory.exists().then_some(memory);
        let turns = admission::turns(&paths, &record.spec)?;
        let plan = BootPlan { restore, memory, turns, ..start.plan(&record, &member)? };
        let accel = plan.accel;
        client.boot(plan).await.map_err(super::golden::unusable)?;
        Ok::<_, Error>(accel)
    };
    let booted = booted.await;
    // What could not be restored boots its disk.
    let back = away.end().await;
    let accel = booted?;
    back?;
    ready::answers(session, ready::limit(request.timeout, accel)?).await
}

/// Gives the member the disk of the snapshot, whole or not at all.
fn swap(
    cluster: &ClusterPaths,
    member: &MemberPaths,
    record: &VmRecord,
    saved: &Saved,
) -> Result<VmRecord> {
    let half_made = half_made_dir(cluster.dir())?;
    let fresh = MemberPaths::at(half_made.path().to_owned());
    let layers = saved.member.layers.clone();
    let record = VmRecord { layers, ..record.clone() };
    if record.backend != Some(Backend::Fake) {
        let size_bytes = u64::from(record.spec.disk_gib) << 30;
        let layer = record.layers.first().map_or("", String::as_str);
        disk::create_overlay_on_layer(&fresh.disk(), layer, size_bytes)?;
        snapshot::link_into_member(&record.layers, &saved.member_paths(), &fresh)?;
    }
    saved.link_fixtures(&fresh)?;
    for (from, to) in [
        (member.seed(), fresh.seed()),
        (member.known_hosts(), fresh.known_hosts()),
        (member.firmware_variables(), fresh.firmware_variables()),
    ] {
        match std::fs::hard_link(&from, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("link", &from, e));
            }
            _ => {}
        }
    }
    record.write(&fresh)?;
    crate::sys::exchange(fresh.dir(), member.dir())
        .map_err(|e| Error::io("make", member.dir(), e))?;
    Ok(record)
}
