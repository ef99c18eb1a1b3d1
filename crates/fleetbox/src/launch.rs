//! Owns the way from a request to a running VM, as a list of named steps: spec, prepared files,
//! holder, boot, ready. Each step's work is done elsewhere.

pub(crate) mod admission;
mod create;
mod fixtures;
mod golden;
mod plan;
mod ready;
mod request;
mod restore;
mod revert;
mod spawn;
mod starter;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) use self::fixtures::Packed;
pub(crate) use self::request::{Origin, StartRequest, Trail};
use self::restore::Saved;
pub(crate) use self::revert::revert;
use crate::backend::select::{self, Choice, Wanted};
use crate::backend::{Accel, Backend, BootPlan, Restore, nested};
use crate::control::client::{self, Client, Hold};
use crate::control::message::HolderStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::holder::cleanup;
use crate::images::{self, CachedImage};
use crate::prepare::kernel::{self, BootSource};
use crate::progress::{Progress, Stage};
use crate::spec::Name;
use crate::ssh::Session;
use crate::ssh::keys;
use crate::store::lock;
use crate::store::paths::{ClusterPaths, MemberPaths, Paths};
use crate::store::place;
use crate::store::record::VmRecord;
use crate::timings::Timings;

use self::plan::Start;
use self::starter::Starter;

/// A holder without machines ends in well under a second.
const HOLDER_END_WAIT: Duration = Duration::from_secs(5);

/// A VM that runs and answers.
pub(crate) struct Launched {
    pub record: VmRecord,
    pub cluster: ClusterPaths,
    pub client: Client,
    pub session: Session,
    pub hold: Hold,
    pub timings: Timings,
}

/// Starts a VM: creates it if it is missing, boots it if it is stopped, joins it if it runs.
pub(crate) async fn start(request: StartRequest) -> Result<Launched> {
    let name = request.name.clone();
    run(request).await.map_err(|e| e.vm(name.as_str()))
}

async fn run(mut request: StartRequest) -> Result<Launched> {
    let mut timings = Timings::start();
    let paths = Paths::from_env()?;
    request.check(&paths)?;
    let cluster = place::cluster_for(&paths, &request.name, request.cluster.as_ref())?;
    paths.prepare_root(&cluster)?;
    let client_key = keys::installation_key(&paths)?;
    // Not with the cluster's lock: whoever waits for memory keeps nobody from removing what has it.
    if request.memory.is_none() {
        request.memory = admission::one(&paths, &request, &cluster).await?;
    }
    // Before there is a directory: a golden machine takes its time to boot, and whoever is killed
    // meanwhile leaves nothing.
    let prepared = match &request.origin {
        Origin::Warm if place::find(&paths, &request.name)?.is_none() => {
            Some(prepare(&paths, &request, None).await?)
        }
        _ => None,
    };
    let cluster = paths.prepare(&cluster)?;
    let client = Client::new(cluster.socket());

    let mut starter = Starter::new(&cluster, &request).await?;
    let place = (&paths, &cluster, &client);
    let running = match boot_or_join(place, &request, prepared, &mut starter, &mut timings).await {
        Err(e) if e.kind() == ErrorKind::SnapshotUnusable && request.origin == Origin::Warm => {
            request.progress.note(format!("a cold boot: {}", e.report()));
            let request = StartRequest { origin: Origin::Boot, ..request.clone() };
            starter.take_turn(&request).await;
            boot_or_join(place, &request, None, &mut starter, &mut timings).await?
        }
        running => running?,
    };
    // From here on another start of the same name finds it running and waits with us.
    drop(starter);

    let Running { record, mut hold, accel, started, restored } = running;
    let session = crate::vm::session(&record, &client, client_key);
    let guest = ready::Guest {
        vm: &record.name,
        session: &session,
        console: cluster.member(&record.name).console(),
        limit: ready::limit(request.timeout, accel)?,
        restored,
    };
    let mut ready = ready::wait(guest, &mut hold, &request.progress, &mut timings).await;
    if ready.is_ok() && started && !restored {
        ready = fixtures::has_mounted(&session, &record).await;
    }
    if let Err(error) = ready {
        if started {
            // It goes with its hold in any case, but the caller shall find it gone. If the holder
            // cannot be asked there is nothing left to end.
            drop(client.kill(&record.name).await);
        }
        return Err(error);
    }
    if request.detached {
        client.detach(&record.name).await?;
    }
    request.progress.send(Progress::Ready);
    timings.finish();
    Ok(Launched { record, cluster, client, session, hold, timings })
}

/// A machine whose monitor runs.
struct Running {
    record: VmRecord,
    hold: Hold,
    accel: Accel,
    /// By this very call.
    started: bool,
    /// From a snapshot, instead of a boot.
    restored: bool,
}

/// The part of a start that only one caller may do at a time: joins the VM if it runs, else boots
/// it, and makes it first if need be.
async fn boot_or_join(
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

/// All that is known of a machine before it is made or booted.
struct Prepared {
    request: StartRequest,
    image: Option<Bootable>,
    start: Start,
    /// What it comes back from, if it is made.
    saved: Option<Saved>,
}

/// Decides what runs the machine and what it is made of; fetches and makes what that takes.
async fn prepare(
    paths: &Paths,
    request: &StartRequest,
    known: Option<&VmRecord>,
) -> Result<Prepared> {
    let named = match &request.origin {
        Origin::Snapshot(of) if known.is_none() => Some(restore::named(paths, of)?),
        _ => None,
    };
    let request = as_saved(request, named.as_ref())?;
    let like = known.or(named.as_ref().map(|saved| &saved.member.record));
    let choice = choose(paths, &request, like).await?;
    if let Some(record) = known {
        ignore_options(&request, record);
    }
    let layers = layers(paths, known, named.as_ref());
    let image = image(paths, &request, like, layers, &choice).await?;
    let start = plan::start_of(choice, image.as_ref(), &request.progress)?;
    let saved = match named {
        None if known.is_none() && request.origin == Origin::Warm => {
            golden::of(paths, &request, &start, image.as_ref()).await?
        }
        named => named,
    };
    if let Some(saved) = &saved {
        saved.check(&start)?;
    }
    Ok(Prepared { request, image, start, saved })
}

/// What is asked for, as a machine that is restored has it: it is as it was.
fn as_saved(request: &StartRequest, saved: Option<&Saved>) -> Result<StartRequest> {
    let Some(saved) = saved else { return Ok(request.clone()) };
    let spec = &saved.member.record.spec;
    if request.spec_given && request.spec != *spec {
        return Err(Error::new(
            ErrorKind::InvalidSpec,
            "change a machine that comes from a snapshot: it has the image, processors, memory, disk and fixtures it was saved with",
        )
        .hint("leave these options out"));
    }
    Ok(StartRequest { spec: spec.clone(), ..request.clone() })
}

/// A paused guest would never answer.
fn is_paused(status: Option<&HolderStatus>, vm: &Name) -> bool {
    status.into_iter().flat_map(|s| &s.members).any(|m| m.vm == *vm && m.paused)
}

async fn choose(paths: &Paths, request: &StartRequest, known: Option<&VmRecord>) -> Result<Choice> {
    let wanted =
        Wanted { recorded: known.and_then(|record| record.backend), asked: request.backend };
    let arch = known.map_or(request.spec.arch, |record| record.spec.arch);
    let choice = select::choose(paths, wanted, arch, &request.progress).await?;
    let spec = known.map_or(&request.spec, |record| &record.spec);
    if spec.nested_virt && choice.backend != Backend::Fake {
        nested::check(choice.accel, arch)?;
        if choice.accel == Accel::Tcg
            && let Some(doubts) = nested::doubts(&choice.program, spec.cpus).await
        {
            request.progress.note(doubts);
        }
    }
    if let Some(note) = &choice.note {
        request.progress.note(note.clone());
    }
    Ok(choice)
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

/// Options are frozen at creation; an existing VM keeps its own.
fn ignore_options(request: &StartRequest, record: &VmRecord) {
    if request.spec_given && request.spec != record.spec {
        request.progress.note(format!(
            "{} exists: it keeps its image {}, {} cpus, {} MiB, {} GiB, KVM inside {}, durable {}, {}; remove it to change them",
            record.name, record.spec.image, record.spec.cpus, record.spec.memory_mib,
            record.spec.disk_gib, on_or_off(record.spec.nested_virt), on_or_off(record.spec.durable),
            fixtures::told(&record.spec.fixtures)
        ));
    }
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// An image and what boots it; nothing boots a fake machine's.
type Bootable = (CachedImage, Option<BootSource>);

/// The VM's image: of an existing VM the one its disk lies on, else the one asked for. The fake
/// backend reads nothing of an image but what was derived from one by fake machines.
async fn image(
    paths: &Paths,
    request: &StartRequest,
    known: Option<&VmRecord>,
    layers: Vec<PathBuf>,
    choice: &Choice,
) -> Result<Option<Bootable>> {
    let (progress, spec) = (&request.progress, &request.spec);
    if choice.backend == Backend::Fake {
        let derived = match known {
            None => images::layer::resolve(paths, &spec.image, spec.arch)?,
            Some(_) => None,
        };
        let fake = derived.filter(|image| image.path.as_os_str().is_empty());
        return Ok(fake.map(|image| (image, None)));
    }
    let image = match known {
        Some(record) => {
            record.check_image()?;
            CachedImage {
                reference: record.spec.image.clone(),
                path: record.image_path.clone(),
                digest: record.image_digest.clone(),
                size_bytes: record.image_stamp.size_bytes,
                arch: record.spec.arch,
                layers,
            }
        }
        None => images::resolve(paths, &spec.image, spec.arch, progress).await?,
    };
    let source = kernel::extract(paths, &image, progress).await?;
    Ok(Some((image, Some(source))))
}

/// What the disk of a VM that is known lies on: its own files, or those of what it comes from.
fn layers(paths: &Paths, known: Option<&VmRecord>, saved: Option<&Saved>) -> Vec<PathBuf> {
    match (known, saved) {
        (Some(record), _) => {
            let member = paths.cluster(&record.cluster).member(&record.name);
            record.layers.iter().map(|layer| member.layer(layer)).collect()
        }
        (None, Some(saved)) => saved.layers(),
        (None, None) => Vec::new(),
    }
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
        let plan = BootPlan {
            restore: Some(Box::new(restore)),
            memory: request.memory.as_ref().map(|granted| granted.path().to_owned()),
            ..start.plan(record, member)?
        };
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
        plan.memory = request.memory.as_ref().map(|granted| granted.path().to_owned());
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

/// Starts a holder for nothing and ends it: whether this host can is what `host` wants to know.
pub(crate) async fn try_holder() -> Result<()> {
    let paths = Paths::from_env()?;
    crate::store::whole::make_private_dir(paths.root())?;
    let dir = tempfile::Builder::new()
        .prefix(".probe-")
        .tempdir_in(paths.root())
        .map_err(|e| Error::io("make a directory in", paths.root(), e))?;
    let cluster = ClusterPaths::at(dir.path().to_owned());
    let hold = spawn::holder(&cluster).await?;
    let closed = Client::new(cluster.socket()).close().await;
    drop(hold);
    closed
}
