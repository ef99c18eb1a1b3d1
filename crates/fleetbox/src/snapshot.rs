//! Owns [`Snapshot`]: what a user holds of saved machines, the list of them, and their removal. Saving is
//! `save`'s, what waits in the guest `waiter`'s, what a snapshot depends on `maker`'s; restoring is a
//! start, and so `launch`'s.

pub(crate) mod maker;
mod save;
mod waiter;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

pub(crate) use self::save::{Source, link_fixtures, link_into_member, save};
use crate::builder::VmBuilder;
use crate::cluster::{Cluster, ClusterBuilder};
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::images::layer;
use crate::launch::Origin;
use crate::listing;
use crate::spec::Name;
use crate::store::lock;
use crate::store::paths::{Paths, SnapshotPaths};
use crate::store::record::SnapshotOf;
use crate::store::snapshot::SnapshotRecord;
use crate::store::whole::{GONE, HALF_MADE};
use crate::vm::Vm;

/// Saved machines: the disk, memory and processors of one running VM, or of all members of a cluster at
/// one instant. Any number of machines can be made of it, at once and in any process, each a machine of
/// its own, as [`VmBuilder::warm`] says what that means.
///
/// A snapshot lies in the state root until it is [removed](Snapshot::remove), or until what is saved there
/// is more than `FLEETBOX_CACHE_GIB` and it was used the longest ago. What was made of it needs it no
/// more. It can be restored by the monitor that made it alone, on a processor and kernel of the same kind.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Vm;
///
/// let vm = Vm::start("web").await?;
/// vm.command("apt-get").args(["install", "-y", "nginx"]).sudo().run().await?;
/// let installed = vm.snapshot("nginx").await?;
/// let (a, b) = tokio::try_join!(installed.fork("a")?.start(), installed.fork("b")?.start())?;
/// # drop((a, b));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Snapshot {
    name: String,
    paths: SnapshotPaths,
    record: SnapshotRecord,
    golden: bool,
}

impl Snapshot {
    /// The snapshot of that name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the nearest name; [`ErrorKind::SnapshotUnusable`] if its record
    /// cannot be read.
    pub fn find(name: &str) -> Result<Self> {
        let name = Name::new(name)?;
        let paths = Paths::from_env()?;
        let dir = paths.snapshot(&name);
        match SnapshotRecord::read(&dir)? {
            Some(record) => Ok(Self::of(name.to_string(), dir, record, false)),
            None => Err(not_found(&paths, &name)),
        }
    }

    pub(crate) fn of(
        name: String,
        paths: SnapshotPaths,
        record: SnapshotRecord,
        golden: bool,
    ) -> Self {
        Self { name, paths, record, golden }
    }

    /// Its name; of a golden machine, the number that warm starts find it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether warm starts made it for themselves. It cannot be forked by name.
    #[must_use]
    pub fn is_golden(&self) -> bool {
        self.golden
    }

    /// The machines in it, by the names they had, in the order of their addresses.
    #[must_use]
    pub fn members(&self) -> Vec<&str> {
        self.record.members.iter().map(|member| member.record.name.as_str()).collect()
    }

    /// The cluster it was made of, if it has all of it.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.record.cluster.as_ref().map(Name::as_str)
    }

    /// The image of its first machine, as it was named.
    #[must_use]
    pub fn image(&self) -> &str {
        self.record.members.first().map_or("", |member| &member.record.spec.image)
    }

    /// When it was made, RFC 3339 in UTC.
    #[must_use]
    pub fn created_at(&self) -> &str {
        &self.record.created_at
    }

    /// When a machine was last made of it, or it itself.
    #[must_use]
    pub fn last_used(&self) -> SystemTime {
        last_used(&self.paths)
    }

    /// The bytes it takes on the host's disk, what it shares with others included.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn disk_bytes(&self) -> Result<u64> {
        disk_bytes(self.paths.dir(), &mut HashSet::new())
    }

    /// Describes a VM that comes back from the snapshot's only machine when it is started. It has the
    /// processors, memory and disk that machine had; asking for others is
    /// [`ErrorKind::InvalidSpec`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] if the snapshot has several machines: fork it as a
    /// [cluster](Snapshot::fork_cluster).
    pub fn fork(&self, vm: impl Into<String>) -> Result<VmBuilder> {
        let [member] = self.record.members.as_slice() else {
            let members = self.members().join(", ");
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                format!("fork one VM from {}: it has {members}", self.name),
            )
            .hint("fork it as a cluster"));
        };
        let origin = self.origin(&member.record.name)?;
        Ok(VmBuilder::new(vm.into()).restored(&member.record.spec, origin))
    }

    /// Describes a cluster whose members come back from the snapshot's when it is started, all as they
    /// were at one instant: at the addresses they had, and connected with one another as they were. A
    /// member `node-2` of the cluster `node` becomes `NAME-2`, any other `web` becomes `NAME-web`; its
    /// fellows still reach it by the name it had.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub fn fork_cluster(&self, name: impl Into<String>) -> Result<ClusterBuilder> {
        let name = Name::new(&name.into())?;
        let mut members = Vec::new();
        for member in &self.record.members {
            let (saved, cluster) = (&member.record.name, &member.record.cluster);
            let own = saved.as_str().strip_prefix(&format!("{cluster}-")).unwrap_or(saved.as_str());
            members.push((Name::new(&format!("{name}-{own}"))?, self.origin(saved)?, member));
        }
        let names = members.iter().map(|(name, ..)| name.to_string());
        let mut builder = Cluster::builder(name.to_string()).members(names.collect::<Vec<_>>());
        for (name, origin, member) in members {
            let (index, spec) = (member.record.index, member.record.spec.clone());
            builder = builder.member(name.to_string(), move |vm| {
                vm.restored(&spec, origin.clone()).at_index(index)
            });
        }
        Ok(builder)
    }

    fn origin(&self, vm: &Name) -> Result<Origin> {
        if self.golden {
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                format!("fork {}: it is a golden machine", self.name),
            )
            .hint("warm starts come from it by themselves"));
        }
        let snapshot = Name::new(&self.name)?;
        Ok(Origin::Snapshot(SnapshotOf { snapshot, vm: vm.clone() }))
    }

    /// Removes it. Machines that came from it and were started since do not need it.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] while a machine that came from it runs, as its memory is still the
    /// snapshot's.
    pub fn remove(&self) -> Result<()> {
        remove(&self.paths)
    }
}

/// All snapshots of this state root, those with a name first, the golden machines after them. One whose
/// record cannot be read is an error in its place.
///
/// # Errors
/// If the state root itself cannot be read.
///
/// ```no_run
/// # fn example() -> fleetbox::Result<()> {
/// for snapshot in fleetbox::snapshots()? {
///     let snapshot = snapshot?;
///     println!("{} {} bytes", snapshot.name(), snapshot.disk_bytes()?);
/// }
/// # Ok(())
/// # }
/// ```
pub fn snapshots() -> Result<Vec<Result<Snapshot>>> {
    let paths = Paths::from_env()?;
    let mut found = all(&paths.snapshots(), false)?;
    found.extend(all(&paths.goldens(), true)?);
    Ok(found)
}

fn all(dir: &Path, golden: bool) -> Result<Vec<Result<Snapshot>>> {
    let mut found = Vec::new();
    for name in names(dir)? {
        let paths = SnapshotPaths::at(dir.join(&name));
        match SnapshotRecord::read(&paths) {
            Ok(Some(record)) => found.push(Ok(Snapshot::of(name, paths, record, golden))),
            Ok(None) => {}
            Err(e) => found.push(Err(e)),
        }
    }
    Ok(found)
}

/// The directories that are not half made, by name.
fn names(dir: &Path) -> Result<Vec<String>> {
    let read = match std::fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        read => read.map_err(|e| Error::io("list", dir, e))?,
    };
    let mut names: Vec<String> = read
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

/// The snapshots with a name that lie on that raw image.
pub(crate) fn on_image(paths: &Paths, raw: &Path) -> Vec<String> {
    // What cannot be read cannot be restored either.
    let named = all(&paths.snapshots(), false).unwrap_or_default().into_iter().flatten();
    let lies = |snapshot: &Snapshot| {
        snapshot.record.members.iter().any(|member| member.record.image_path == raw)
    };
    named.filter(lies).map(|snapshot| snapshot.name).collect()
}

pub(crate) fn not_found(paths: &Paths, name: &Name) -> Error {
    let known = names(&paths.snapshots()).unwrap_or_default();
    let hint = match listing::nearest(name.as_str(), known.iter().map(String::as_str)) {
        Some(nearest) => format!("did you mean {nearest}? `fleetbox snapshot ls` shows all"),
        None => "`fleetbox snapshot ls` shows all".to_owned(),
    };
    Error::new(ErrorKind::NotFound, format!("find the snapshot {name}: there is none")).hint(hint)
}

/// Marks it as used now.
pub(crate) fn touch(paths: &SnapshotPaths) -> Result<()> {
    let path = paths.used();
    let touched = File::create(&path).and_then(|file| file.set_modified(SystemTime::now()));
    touched.map_err(|e| Error::io("write", &path, e))
}

fn last_used(paths: &SnapshotPaths) -> SystemTime {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    modified(&paths.used()).or_else(|_| modified(&paths.record())).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Each file once, also if it has several names.
fn disk_bytes(dir: &Path, seen: &mut HashSet<(u64, u64)>) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?.flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if metadata.is_dir() {
            bytes += disk_bytes(&entry.path(), seen)?;
        } else if seen.insert((metadata.dev(), metadata.ino())) {
            bytes += metadata.blocks() * 512;
        }
    }
    Ok(bytes)
}

/// Removes a snapshot nobody uses: first out of sight, so that a kill in between leaves no half of one.
pub(crate) fn remove(paths: &SnapshotPaths) -> Result<()> {
    let dir = paths.dir();
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut taken = Vec::new();
    for vm in names(dir)?.iter().filter_map(|vm| Name::new(vm).ok()) {
        let memory = paths.member(&vm).memory();
        if memory.exists() {
            let Some(lock) = lock::try_lock(&memory)? else { return Err(in_use(&name)) };
            taken.push(lock);
        }
    }
    let gone = dir.with_file_name(format!("{GONE}{name}"));
    remove_dir(&gone)?;
    match std::fs::rename(dir, &gone) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("remove", dir, e)),
        Ok(()) => {}
    }
    remove_dir(&gone)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
        _ => Ok(()),
    }
}

fn in_use(name: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("remove the snapshot {name}: it is in use"))
        .hint("machines that came from it run on its memory: stop them first")
}

/// Removes the least recently used that nobody uses, layers of images included, until all together take
/// no more than `FLEETBOX_CACHE_GIB`, if that is set; what was just made stays.
pub(crate) fn keep_within_budget(paths: &Paths, made: &Path) -> Result<()> {
    let Some(budget_bytes) = env::cache_bytes()? else { return Ok(()) };
    let mut kept = Vec::new();
    for dir in [paths.snapshots(), paths.goldens()] {
        let saved = names(&dir)?.into_iter().map(|name| SnapshotPaths::at(dir.join(name)));
        kept.extend(saved.map(|saved| (last_used(&saved), saved.dir().to_owned(), Kept::Saved)));
    }
    let layers = layer::kept(paths).into_iter();
    kept.extend(layers.map(|(dir, used, may_go)| (used, dir, Kept::Layer { may_go })));
    kept.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
    let (mut seen, mut bytes) = (HashSet::new(), 0);
    for (_, dir, kind) in kept {
        bytes += disk_bytes(&dir, &mut seen)?;
        if bytes <= budget_bytes || dir == made {
            continue;
        }
        match kind {
            Kept::Saved => match remove(&SnapshotPaths::at(dir)) {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                removed => removed?,
            },
            Kept::Layer { may_go: true } => layer::evict(paths, &dir)?,
            Kept::Layer { may_go: false } => {}
        }
    }
    Ok(())
}

/// What takes room and may be made anew.
enum Kept {
    Saved,
    Layer { may_go: bool },
}

/// Removes what killed processes left of snapshots they were making or removing. The caller has the lock
/// of whoever makes such, or knows by their age that nobody does.
pub(crate) fn remove_half_made(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_old = entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| {
            SystemTime::now().duration_since(at).is_ok_and(|age| age > HALF_MADE_AGE)
        });
        if name.starts_with(GONE) || (name.starts_with(HALF_MADE) && is_old) {
            remove_dir(&entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

/// Making one takes seconds; what is older was left.
const HALF_MADE_AGE: std::time::Duration = std::time::Duration::from_mins(30);

/// What waits in guests, as text: golden machines made with another are of no use.
pub(crate) fn waiter_program() -> &'static str {
    waiter::PROGRAM
}

impl Source {
    /// The running machine of that handle.
    pub(crate) fn of(vm: &Vm) -> Self {
        Self { record: vm.record().clone(), session: vm.session().clone() }
    }
}
