//! Owns the part of a start that only one caller may do at a time: joining a VM that runs, else making and
//! booting it, until its monitor runs. It must not wait for the guest.

use std::time::{Duration, Instant};

use super::plan::Start;
use super::prepared::{Prepared, ignore_options, prepare};
use super::starter::Starter;
use super::{Origin, StartRequest, create, fixtures, golden, ready, spawn};
use crate::backend::{Accel, BootPlan, Restore};
use crate::control::client::{self, Client, Hold};
use crate::control::message::HolderStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::holder::cleanup;
use crate::progress::Stage;
use crate::spec::Name;
use crate::store::lock;
use crate::store::paths::{ClusterPaths, MemberPaths, Paths};
use crate::store::record::VmRecord;
use crate::timings::Timings;

/// A holder without machines ends in well under a second.
const HOLDER_END_WAIT: Duration = Duration::from_secs(5);

/// A machine whose monitor runs.
pub(super) struct Running {
    pub record: VmRecord,
    pub hold: Hold,
    pub accel: Accel,
    /// By this very call.
    pub started: bool,
    /// From a snapshot, instead of a boot.
    pub restored: bool,
}

/// The part of a start that only one caller may do at a time: joins the VM if it runs, else boots
/// it, and makes it first if need be.
pub(super) async fn boot_or_join(
    (paths, cluster, client): (&Paths, &ClusterPaths, &Client),
    request: &StartRequest,
    prepared: Option<Prepared>,
    starter: &mut Starter<'_>,
    timings: &mut Timings,
) -> Result<Running> {
    let member = cluster.member(&request.name);
    let alive = client.find().await?;
    if alive.is_none() {
        cleanup::sweep(cluster)?;
    }
    let known = VmRecord::read(&member)?;
    let running = alive.iter().flat_map(|s| &s.members).any(|m| m.vm == request.name && m.running);
    if running && let Some(record) = known {
        ignore_options(request, &record);
        let hold = client.hold(&request.name).await?;
        if request.host_routable {
            client.route_to_host().await?;
        }
        if is_paused(alive.as_ref(), &request.name) {
            client.resume(&request.name).await?;
        }
        timings.enter(Stage::Ssh);
        return Ok(Running { record, hold, accel: Accel::Tcg, started: false, restored: false });
    }

    let is_new = known.is_none();
    if let Some(record) = &known {
        fixtures::check_known(paths, record)?;
    }
    let Prepared { request, image, start, saved } = match (&known, prepared) {
        (None, Some(prepared)) => prepared,
        (known, _) => prepare(paths, request, known.as_ref()).await?,
    };
    let request = &request;
    request.progress.begin(Stage::Prepare);
    timings.enter(Stage::Prepare);
    let make = async {
        let spec = known.as_ref().map_or(&request.spec, |record| &record.spec);
        if !spec.fixtures.is_empty() {
            timings.enter(Stage::Pack);
            request.progress.begin(Stage::Pack);
        }
        if let Some(record) = known {
            fixtures::renew(request, cluster, &record).await?;
            return Ok((record, None));
        }
        let from = create::From { image: image.as_ref(), saved: saved.as_ref() };
        create::create(paths, request, cluster, &start.choice, from).await
    };
    // The holder sets itself up while the files are written.
    let (held, made) =
        tokio::join!(biased; hold_or_spawn(cluster, client, &request.name, alive.is_some()), make);
    let (record, restore) = match made {
        Ok(made) => made,
        Err(error) => {
            drop(held);
            holder_ended(cluster, alive.is_some()).await;
            return Err(error);
        }
    };
    let restored = restore.is_some();
    if held.is_ok() {
        // The holder lives, and the member is there: the next of the same caller finds both.
        starter.let_next();
    }
    let booted = async {
        let mut hold = held?;
        if request.host_routable {
            client.route_to_host().await?;
        }
        let to_boot = ToBoot { record: &record, member: &member, start, restore };
        let accel = boot_until_alive(request, client, &mut hold, to_boot, timings).await?;
        Ok::<_, Error>((hold, accel))
    };
    match booted.await {
        Ok((hold, accel)) => Ok(Running { record, hold, accel, started: true, restored }),
        Err(error) => {
            if is_new {
                // It never ran: a second try starts from nothing, with options of its own.
                cleanup::remove_member(member.dir())?;
            }
            if request.origin == Origin::Warm
                && error.kind() == ErrorKind::SnapshotUnusable
                && let Some(saved) = saved
            {
                golden::discard(saved)?;
            }
            holder_ended(cluster, alive.is_some()).await;
            Err(error)
        }
    }
}

/// A paused guest would never answer.
fn is_paused(status: Option<&HolderStatus>, vm: &Name) -> bool {
    status.into_iter().flat_map(|s| &s.members).any(|m| m.vm == *vm && m.paused)
}

/// Waits for the end of a holder that was only started for a VM that does not come: its directory
/// is not to be removed under it. One that lived before has other members.
async fn holder_ended(cluster: &ClusterPaths, lived_before: bool) {
    if !lived_before {
        // If it takes longer, its warden tidies up.
        let _ =
            tokio::time::timeout(HOLDER_END_WAIT, lock::lock(&cluster.holder_lock(), || ())).await;
    }
}

/// Holds the living holder; one that ended since it was seen is replaced.
async fn hold_or_spawn(
    cluster: &ClusterPaths,
    client: &Client,
    vm: &Name,
    alive: bool,
) -> Result<Hold> {
    if alive {
        match client.hold(vm).await {
            Err(e) if matches!(e.kind(), ErrorKind::NotRunning | ErrorKind::HolderDied) => {}
            held => return held,
        }
    }
    // The spawner's own connection holds the holder alone, and only until the VM is held.
    let _holder = spawn::holder(cluster).await?;
    client.hold(vm).await.map_err(client::lost)
}

/// A VM and what starts it.
struct ToBoot<'a> {
    record: &'a VmRecord,
    member: &'a MemberPaths,
    start: Start,
    restore: Option<Restore>,
}

/// Boots, or restores, and says how the guest runs. A KVM on which a booting guest says nothing is given
/// up for emulation, aloud.
async fn boot_until_alive(
    request: &StartRequest,
    client: &Client,
    hold: &mut Hold,
    to_boot: ToBoot<'_>,
    timings: &mut Timings,
) -> Result<Accel> {
    let ToBoot { record, member, mut start, restore } = to_boot;
    if let Some(restore) = restore {
        let mut plan = BootPlan { restore: Some(Box::new(restore)), ..start.plan(record, member)? };
        request.memory.iter().for_each(|granted| granted.give(&mut plan));
        let accel = plan.accel;
        request.trail.boots();
        timings.enter(Stage::Restore);
        request.progress.begin(Stage::Restore);
        client.boot(plan).await.map_err(golden::unusable)?;
        request.memory.as_ref().map_or(Ok(()), |granted| granted.runs_under(hold))?;
        timings.enter(Stage::Ssh);
        request.progress.begin(Stage::Ssh);
        return Ok(accel);
    }
    loop {
        let mut plan = start.plan(record, member)?;
        request.memory.iter().for_each(|granted| granted.give(&mut plan));
        request.trail.boots();
        let began = Instant::now();
        let (accel, console) = (plan.accel, plan.console.clone());
        client.boot(plan).await?;
        request.memory.as_ref().map_or(Ok(()), |granted| granted.runs_under(hold))?;
        timings.enter(Stage::Firmware);
        request.progress.begin(Stage::Firmware);
        if accel == Accel::Tcg || !ready::is_silent(hold, &console).await? {
            return Ok(accel);
        }
        request.progress.note(format!(
            "the guest made no progress on KVM for {} s: trying again by emulation",
            began.elapsed().as_secs()
        ));
        client.kill(&request.name).await?;
        start = start.emulated(record.spec.arch)?;
    }
}
