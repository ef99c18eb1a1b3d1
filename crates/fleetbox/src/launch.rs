//! Owns the way from a request to a running VM, as a list of named steps: spec, prepared files,
//! holder, boot, ready. Each step's work is done elsewhere.

pub(crate) mod admission;
mod boot;
mod create;
mod fixtures;
mod golden;
mod plan;
mod prepared;
mod ready;
mod request;
mod restore;
mod revert;
mod spawn;
mod starter;

use self::boot::{Running, boot_or_join};
pub(crate) use self::fixtures::Packed;
use self::prepared::prepare;
pub(crate) use self::request::{Origin, StartRequest, Trail};
pub(crate) use self::revert::revert;
use self::starter::Starter;
use crate::control::client::{Client, Hold};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::ssh::Session;
use crate::ssh::keys;
use crate::store::paths::{ClusterPaths, Paths};
use crate::store::place;
use crate::store::record::VmRecord;
use crate::timings::Timings;

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
