//! Owns saving running machines into a snapshot: what is made ready before, what the holder is asked,
//! and the record that makes it one. A snapshot appears whole or not at all.

use std::path::Path;
use std::time::SystemTime;

use tokio::task::JoinSet;

use super::{maker, waiter};
use crate::backend::{Backend, SavePlan};
use crate::control::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::images::work;
use crate::prepare::disk;
use crate::spec::Name;
use crate::ssh::Session;
use crate::store::paths::{ClusterPaths, MemberPaths, SavedPaths, SnapshotPaths};
use crate::store::record::{ImageStamp, VmRecord};
use crate::store::snapshot::{SavedMember, SnapshotRecord, digest};
use crate::store::whole::{half_made_dir, make_private_dir};
use crate::sys::random;

/// One running machine that is to be saved.
pub(crate) struct Source {
    pub record: VmRecord,
    pub session: Session,
}

/// Saves the machines, all of one cluster, as they are at one instant; they run on. `whole` is the
/// cluster if these are all its members; `alone` if nobody but the caller is connected to them, who is not
/// any more afterwards.
pub(crate) async fn save(
    cluster: &ClusterPaths,
    sources: Vec<Source>,
    whole: Option<Name>,
    alone: bool,
    target: &SnapshotPaths,
) -> Result<SnapshotRecord> {
    if target.record().exists() {
        return Err(exists(target));
    }
    let parent = target.dir().parent().unwrap_or(target.dir());
    make_private_dir(parent)?;
    let half_made = half_made_dir(parent)?;
    let paths = SnapshotPaths::at(half_made.path().to_owned());
    let mut prepared = Vec::new();
    for source in &sources {
        prepared.push(prepare(cluster, &source.record, &paths)?);
    }
    let tokens = wait_all(&sources).await?;
    if alone {
        // What is restored has no end of a connection whose other is gone.
        for source in &sources {
            source.session.close();
        }
    }
    let plans = sources.iter().zip(&prepared).zip(&tokens);
    let plans = plans.map(|((source, layers), token)| {
        save_plan(&source.record, &paths.member(&source.record.name), layers, token)
    });
    let (_, running) = Client::new(cluster.socket()).save(plans.collect()).await?;
    let mut members = Vec::new();
    for (((source, layers), token), plan) in
        sources.into_iter().zip(prepared).zip(tokens).zip(running)
    {
        let saved = paths.member(&source.record.name);
        tidy(&saved)?;
        sync_fixtures(&source.record, &saved).await?;
        members.push(SavedMember {
            layers,
            token,
            maker: maker::of(&plan)?,
            memory: ImageStamp::of(&saved.memory())?,
            device_digest: digest(&saved.device())
                .map_err(|e| Error::io("read", &saved.device(), e))?,
            record: source.record,
        });
    }
    members.sort_by_key(|member| member.record.index);
    let record = SnapshotRecord {
        format: SnapshotRecord::FORMAT,
        cluster: whole,
        created_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        members,
    };
    super::touch(&paths)?;
    record.write(&paths)?;
    appear(half_made, target)?;
    Ok(record)
}

/// Not written to.
const NO_DISK: &str = "none";

/// Under its own name, unless another is there already.
fn appear(half_made: tempfile::TempDir, target: &SnapshotPaths) -> Result<()> {
    match std::fs::rename(half_made.path(), target.dir()) {
        Ok(()) => {
            // It is no longer there under its temporary name.
            drop(half_made.keep());
            Ok(())
        }
        Err(_) if target.dir().exists() => Err(exists(target)),
        Err(e) => Err(Error::io("make", target.dir(), e)),
    }
}

fn exists(target: &SnapshotPaths) -> Error {
    let name = target.dir().file_name().unwrap_or_default().to_string_lossy();
    Error::new(ErrorKind::Conflict, format!("make the snapshot {name}: there is one of this name"))
        .hint(format!("choose another name, or `fleetbox snapshot rm {name}` first"))
}

/// Makes the directory of one machine with the disks that are filled while it is saved, and what they
/// lie on. Returns its layers, of which the first is to be filled.
fn prepare(
    cluster: &ClusterPaths,
    record: &VmRecord,
    paths: &SnapshotPaths,
) -> Result<Vec<String>> {
    let saved = paths.member(&record.name);
    make_private_dir(saved.dir())?;
    let member = cluster.member(&record.name);
    for place in record.spec.mounted_fixtures() {
        // It never changes: another boot has another.
        link(&member.fixture(place), &saved.fixture(place))?;
    }
    if record.backend == Some(Backend::Fake) {
        // There is no disk.
        return Ok(Vec::new());
    }
    let top = format!("layer-{}.qcow2", random::hex::<8>()?);
    let size_bytes = u64::from(record.spec.disk_gib) << 30;
    for disk in [saved.layer(&top), saved.spare()] {
        match record.layers.first() {
            Some(layer) => disk::create_overlay_on_layer(&disk, layer, size_bytes)?,
            None => disk::create_overlay(&disk, &record.image_path, size_bytes)?,
        }
    }
    link_layers(&record.layers, |layer| member.layer(layer), &saved)?;
    let below = record.layers.iter().cloned();
    Ok([top].into_iter().chain(below).collect())
}

/// The drives of a saved machine in the directory of one that is made of it.
pub(crate) fn link_fixtures(
    saved_member: &SavedMember,
    saved: &SavedPaths,
    member: &MemberPaths,
) -> Result<()> {
    let mut places = saved_member.record.spec.mounted_fixtures();
    places.try_for_each(|place| link(&saved.fixture(place), &member.fixture(place)))
}

/// Brings to the host's disk what only a boot needed until now.
async fn sync_fixtures(record: &VmRecord, saved: &SavedPaths) -> Result<()> {
    let drives: Vec<_> = record.spec.mounted_fixtures().map(|place| saved.fixture(place)).collect();
    work::run("write fixtures to the disk", move |_| {
        drives.iter().try_for_each(|drive| {
            let synced = std::fs::File::open(drive).and_then(|file| file.sync_all());
            synced.map_err(|e| Error::io("write", drive, e))
        })
    })
    .await
}

/// Each layer's file is there once, under a name in every directory that needs it.
fn link_layers(
    layers: &[String],
    from: impl Fn(&str) -> std::path::PathBuf,
    to: &SavedPaths,
) -> Result<()> {
    layers.iter().try_for_each(|layer| link(&from(layer), &to.layer(layer)))
}

/// The layers of a saved machine in the directory of one that is made of it.
pub(crate) fn link_into_member(
    layers: &[String],
    saved: &SavedPaths,
    member: &MemberPaths,
) -> Result<()> {
    layers.iter().try_for_each(|layer| link(&saved.layer(layer), &member.layer(layer)))
}

fn link(from: &Path, to: &Path) -> Result<()> {
    std::fs::hard_link(from, to).map_err(|e| Error::io("link", from, e))
}

/// Lets all guests wait to be told who they are. Returns what each waits for.
async fn wait_all(sources: &[Source]) -> Result<Vec<String>> {
    let mut waits = JoinSet::new();
    for (place, source) in sources.iter().enumerate() {
        let (session, mac) = (source.session.clone(), source.record.mac.clone());
        let (name, backend) = (source.record.name.clone(), source.record.backend);
        waits.spawn(async move {
            if backend.is_some_and(|backend| !backend.has_guest()) {
                return Ok((place, String::new()));
            }
            let write_through = backend.is_some_and(Backend::holds_back_writes);
            let token = waiter::start(&session, &mac, write_through).await;
            let token = token.map_err(|e| e.vm(name.as_str()))?;
            Ok((place, token))
        });
    }
    let mut tokens = vec![String::new(); sources.len()];
    while let Some(joined) = waits.join_next().await {
        let waited: Result<(usize, String)> =
            joined.map_err(|e| Error::new(ErrorKind::Internal, "wait for a guest").source(e))?;
        let (place, token) = waited?;
        tokens[place] = token;
    }
    Ok(tokens)
}

fn save_plan(record: &VmRecord, saved: &SavedPaths, layers: &[String], token: &str) -> SavePlan {
    let layer = layers.first().map_or(NO_DISK, String::as_str);
    SavePlan {
        vm: record.name.clone(),
        memory: saved.memory(),
        device: saved.device(),
        disk: saved.layer(layer),
        spare: saved.spare(),
        vmm_log: saved.vmm_log(),
        token: token.to_owned(),
    }
}

fn tidy(saved: &SavedPaths) -> Result<()> {
    for path in [saved.spare(), saved.vmm_log()] {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, e));
            }
            _ => {}
        }
    }
    Ok(())
}
