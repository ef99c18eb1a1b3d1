//! Owns the golden machine of a warm start: booted once for all that want the same, saved when it is
//! whole and idle, then restored by every start. It must not know what is restored from it.

use std::pin::Pin;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::plan::Start;
use super::prepared::Bootable;
use super::restore::Saved;
use super::{Origin, Packed, StartRequest, Trail, create, fixtures};
use crate::error::{Error, ErrorKind, Result};
use crate::images::hex;
use crate::progress::{Progress, ProgressSink, Stage};
use crate::snapshot::{self, Source};
use crate::spec::{Name, VmSpec};
use crate::ssh::keys::{self, KeyPair};
use crate::store::lock;
use crate::store::paths::{Paths, SnapshotPaths};
use crate::store::snapshot::SnapshotRecord;
use crate::sys::random;
use crate::vm::Vm;

/// A booted system settles in a minute even emulated; one that does not is saved as it is.
const SETTLE_WAIT: Duration = Duration::from_mins(5);
/// Waits for the end of the boot, then until the processors were nearly idle for a second.
const SETTLE: &str = r"systemctl is-system-running --wait
calm=0 tries=0
set -- $(head -n 1 /proc/stat)
while [ $calm -lt 2 ] && [ $tries -lt 30 ]; do
    idle=$5 all=0
    shift
    for part; do all=$((all + part)); done
    sleep 0.5
    set -- $(head -n 1 /proc/stat)
    now=0
    for part in $2 $3 $4 $5 $6 $7 $8 $9; do now=$((now + part)); done
    spent=$((now - all)) rested=$(($5 - idle))
    if [ $((rested * 100)) -ge $((spent * 90)) ]; then calm=$((calm + 1)); else calm=0; fi
    tries=$((tries + 1))
done";

/// The saved golden machine of what is asked for, made now if need be. None where it cannot be, which
/// is told: a cold boot does as well.
pub(super) fn of<'a>(
    paths: &'a Paths,
    request: &'a StartRequest,
    start: &'a Start,
    image: Option<&'a Bootable>,
) -> Pin<Box<dyn Future<Output = Result<Option<Saved>>> + Send + 'a>> {
    // A start within a start: its type must not contain itself.
    Box::pin(find_or_make(paths, request, start, image))
}

async fn find_or_make(
    paths: &Paths,
    request: &StartRequest,
    start: &Start,
    image: Option<&Bootable>,
) -> Result<Option<Saved>> {
    if !start.choice.backend.capabilities().snapshot {
        let backend = start.choice.backend;
        request.progress.note(format!("a cold boot, as {backend} cannot save machines"));
        return Ok(None);
    }
    let client_key = keys::installation_key(paths)?;
    let key = key(request, start, image, &client_key)?;
    let dir = paths.golden(&key);
    if let Some(saved) = usable(&dir, request) {
        return Ok(Some(saved));
    }
    crate::store::whole::make_private_dir(&paths.goldens())?;
    let waiting = || {
        request.progress.note("waiting for another process that makes the same machine ready");
    };
    let _making = lock::lock(&paths.golden_lock(&key), waiting).await?;
    if let Some(saved) = usable(&dir, request) {
        return Ok(Some(saved));
    }
    request.progress.begin(Stage::Golden);
    snapshot::remove_half_made(&paths.goldens())?;
    // Without a record it is none.
    match snapshot::remove(&dir) {
        // A damaged one that machines run on.
        Err(e) if e.kind() == ErrorKind::Conflict => {
            request.progress.note(format!("a cold boot: {}", e.report()));
            return Ok(None);
        }
        removed => removed?,
    }
    let golden = make(request, start).await?;
    let saved = save(golden, &dir).await;
    match saved {
        Ok(()) => {
            // What is used is kept.
            let made = usable(&dir, request);
            snapshot::keep_within_budget(paths, dir.dir())?;
            Ok(made)
        }
        Err(e) if matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::Unsupported) => {
            request.progress.note(format!("a cold boot: {}", e.report()));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Forgets the golden machine that a restore from failed; one that others run on stays.
pub(super) fn discard(saved: Saved) -> Result<()> {
    let paths = saved.paths.clone();
    drop(saved);
    match snapshot::remove(&paths) {
        Err(e) if e.kind() == ErrorKind::Conflict => Ok(()),
        removed => removed,
    }
}

/// What is there, unless it is damaged; then it is removed, aloud.
fn usable(dir: &SnapshotPaths, request: &StartRequest) -> Option<Saved> {
    let opened = SnapshotRecord::read(dir).and_then(|record| {
        let Some(record) = record else { return Ok(None) };
        let Some(vm) = record.members.first().map(|member| member.record.name.clone()) else {
            return Ok(None);
        };
        Saved::open(dir.clone(), record, &vm, None).map(Some)
    });
    match opened {
        Ok(saved) => saved,
        Err(e) => {
            request
                .progress
                .note(format!("the machine that was ready is made anew: {}", e.report()));
            if let Err(e) = snapshot::remove(dir) {
                log::warn!("remove {}: {}", dir.dir().display(), e.report());
            }
            None
        }
    }
}

/// Everything that shapes the machine.
fn key(
    request: &StartRequest,
    start: &Start,
    image: Option<&Bootable>,
    client_key: &KeyPair,
) -> Result<String> {
    let told = json!({
        "release": env!("CARGO_PKG_VERSION"),
        "maker": start.maker_of(&request.spec)?,
        "from": start.shape(request.spec.arch),
        "spec": spec_of(request),
        "image": image.map(|(image, _)| &image.digest),
        "seed": create::seed_shape(client_key)?,
        "waiter": snapshot::waiter_program(),
    });
    Ok(hex(&Sha256::digest(told.to_string())[..16]))
}

/// Whether a power cut loses writes is each VM's own, and so is what it has of the host's: the golden
/// machine has as many drives, with nothing on them, and leaves them alone.
fn spec_of(request: &StartRequest) -> VmSpec {
    let fixtures = fixtures::blank(&request.spec);
    VmSpec { durable: false, fixtures, ..request.spec.clone() }
}

/// Boots it, under a name that nobody else has.
async fn make(request: &StartRequest, start: &Start) -> Result<Vm> {
    request
        .progress
        .note(format!("{} boots once, to be ready for every later start", request.spec.image));
    let name = Name::new(&format!("golden-{}x", random::hex::<4>()?))?;
    let outer = request.progress.clone();
    let notes = move |event| {
        if let Progress::Note(_) = event {
            outer.send(event);
        }
    };
    let golden = StartRequest {
        name,
        cluster: None,
        index: None,
        backend: Some(start.choice.backend),
        spec: spec_of(request),
        origin: Origin::Boot,
        detached: false,
        ephemeral: true,
        host_routable: false,
        progress: ProgressSink::new(notes),
        trail: Trail::default(),
        queue: std::sync::Arc::default(),
        packed: Packed::default(),
        ..request.clone()
    };
    Vm::launched(super::start(golden).await?)
}

async fn save(golden: Vm, dir: &SnapshotPaths) -> Result<()> {
    let source = Source::of(&golden);
    if golden.backend().has_guest() {
        let settled = golden.shell(SETTLE).timeout(SETTLE_WAIT).output().await;
        match settled {
            Err(e) if e.kind() == ErrorKind::TimedOut => {
                log::warn!("a golden machine does not settle; it is saved as it is");
            }
            settled => drop(settled?),
        }
    }
    let saved = snapshot::save(golden.cluster_paths(), vec![source], None, true, dir).await;
    let destroyed = golden.destroy().await;
    saved?;
    destroyed
}

/// The error of a VM that could not be restored. That nothing is heard of its holder says nothing of
/// what was saved.
pub(super) fn unusable(error: Error) -> Error {
    if matches!(error.kind(), ErrorKind::HolderUnavailable | ErrorKind::HolderDied) {
        return error;
    }
    Error::new(ErrorKind::SnapshotUnusable, "restore the machine")
        .hint("it may be damaged: remove the snapshot and make it anew")
        .source(error)
}
