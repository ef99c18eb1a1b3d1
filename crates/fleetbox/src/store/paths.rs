//! Owns every name on disk below the state root, and the check that sockets fit into their address.
//! No other file may spell one. It must not read or write what the paths lead to, except to have
//! the private directories made.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::owner::Handover;
use super::whole::make_private_dir;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;

/// Bytes of `sockaddr_un.sun_path` less its final NUL: 108 on Linux, 104 on macOS (unix(7), unix(4)).
const SOCKET_PATH_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The state root and what lies below it.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
    _handover: Option<Arc<Handover>>,
}

impl Paths {
    /// The state root of this process's user: `FLEETBOX_HOME`, else `~/.fleetbox`; under sudo the
    /// invoking user's, and what was made there becomes theirs when the last clone is dropped.
    pub(crate) fn from_env() -> Result<Self> {
        let root = match env::path(env::HOME) {
            Some(root) => root,
            None => crate::sys::user::home()?.join(".fleetbox"),
        };
        let paths = Self::at(&root)?;
        Ok(Self { _handover: Some(Arc::new(Handover::of(paths.root()))), ..paths })
    }

    pub(crate) fn at(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|e| Error::io("resolve", root, e))?;
        Ok(Self { root, _handover: None })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("cache/images")
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("cache/kernels")
    }

    /// Monitors that were fetched, and what belongs to fetching them.
    pub(crate) fn monitors(&self) -> PathBuf {
        self.root.join("cache/monitors")
    }

    pub(crate) fn monitor(&self, file: &str) -> PathBuf {
        self.monitors().join(file)
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The installation's private key, in the format `ssh -i` reads.
    pub(crate) fn key(&self) -> PathBuf {
        self.keys().join("id_ed25519")
    }

    pub(crate) fn public_key(&self) -> PathBuf {
        self.keys().join("id_ed25519.pub")
    }

    /// Held while the installation's key is made.
    pub(crate) fn key_lock(&self) -> PathBuf {
        self.keys().join("lock")
    }

    /// Held for the instant in which a VM appears: its name must be in no other cluster.
    pub(crate) fn names_lock(&self) -> PathBuf {
        self.root.join("names.lock")
    }

    /// Snapshots that were given a name.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn snapshot(&self, name: &Name) -> SnapshotPaths {
        SnapshotPaths { dir: self.snapshots().join(name) }
    }

    /// Snapshots that warm starts made for themselves, by what they depend on.
    pub(crate) fn goldens(&self) -> PathBuf {
        self.root.join("cache/golden")
    }

    pub(crate) fn golden(&self, key: &str) -> SnapshotPaths {
        SnapshotPaths { dir: self.goldens().join(key) }
    }

    /// Held while that one is made.
    pub(crate) fn golden_lock(&self, key: &str) -> PathBuf {
        self.goldens().join(format!("{key}.lock"))
    }

    /// Layers of derived images, each in a directory called by its key.
    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("cache/layers")
    }

    /// Names of derived images.
    pub(crate) fn derived(&self) -> PathBuf {
        self.root.join("cache/derived")
    }

    /// Held for the instant in which it is decided who may have memory.
    pub(crate) fn memory_lock(&self) -> PathBuf {
        self.root.join("memory.lock")
    }

    /// What is promised to machines, and who waits for more.
    pub(crate) fn memory(&self) -> PathBuf {
        self.root.join("memory")
    }

    /// The memory promised to one machine.
    pub(crate) fn memory_of(&self, cluster: &Name, vm: &Name) -> PathBuf {
        self.memory().join(format!("{cluster}.{vm}"))
    }

    /// The place in the queue of one who waits for memory: no cluster's name begins with a dot. They
    /// sort by their number.
    pub(crate) fn memory_turn(&self, number: u64) -> PathBuf {
        self.memory().join(format!("{MEMORY_TURN_PREFIX}{number:020}"))
    }

    pub(crate) fn clusters(&self) -> PathBuf {
        self.root.join("clusters")
    }

    pub(crate) fn cluster(&self, cluster: &Name) -> ClusterPaths {
        ClusterPaths { dir: self.clusters().join(cluster) }
    }

    /// Checks that the sockets of `cluster` will fit and makes the state root, for its owner only.
    pub(crate) fn prepare_root(&self, cluster: &Name) -> Result<()> {
        self.cluster(cluster).check_sockets(&self.root)?;
        make_private_dir(&self.root)
    }

    /// [`Paths::prepare_root`], and the directory of `cluster`.
    pub(crate) fn prepare(&self, cluster: &Name) -> Result<ClusterPaths> {
        self.prepare_root(cluster)?;
        let paths = self.cluster(cluster);
        for dir in [&self.clusters(), paths.dir()] {
            make_private_dir(dir)?;
        }
        Ok(paths)
    }
}

const MEMORY_TURN_PREFIX: &str = ".turn-";

/// The cluster and the VM in the name of a [`Paths::memory_of`]; other files have none.
pub(crate) fn memory_names(file_name: &str) -> Option<(Name, Name)> {
    let (cluster, vm) = file_name.split_once('.')?;
    Some((Name::new(cluster).ok()?, Name::new(vm).ok()?))
}

/// The number in the name of a [`Paths::memory_turn`]; other files have none.
pub(crate) fn memory_turn_number(file_name: &str) -> Option<u64> {
    file_name.strip_prefix(MEMORY_TURN_PREFIX)?.parse().ok()
}

/// The directory of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct ClusterPaths {
    dir: PathBuf,
}

impl ClusterPaths {
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster's name, which its directory has.
    pub(crate) fn name(&self) -> Result<Name> {
        Name::new(&self.dir.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Held by whoever creates, starts or removes members. Every name here has a dot, which no VM's
    /// name has.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("cluster.lock")
    }

    /// Held by the holder for as long as it lives.
    pub(crate) fn holder_lock(&self) -> PathBuf {
        self.dir.join("holder.lock")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("holder.sock")
    }

    pub(crate) fn holder_log(&self) -> PathBuf {
        self.dir.join("holder.log")
    }

    /// What was done to the cluster, newest last.
    pub(crate) fn timeline(&self) -> PathBuf {
        self.dir.join("timeline.jsonl")
    }

    /// What was done before that file began.
    pub(crate) fn timeline_before(&self) -> PathBuf {
        self.dir.join("timeline.old.jsonl")
    }

    /// Held for the instant in which a cluster of this state root takes a subnet of the host.
    pub(crate) fn subnets_lock(&self) -> PathBuf {
        let root = self.dir.ancestors().nth(2).unwrap_or(&self.dir);
        root.join("subnets.lock")
    }

    /// What links of the host that belong to this cluster are marked with first; what follows is their
    /// holder.
    pub(crate) fn link_label(&self) -> String {
        format!("fleetbox {} of ", self.dir.display())
    }

    pub(crate) fn member(&self, vm: &Name) -> MemberPaths {
        MemberPaths { dir: self.dir.join(vm) }
    }

    fn check_sockets(&self, root: &Path) -> Result<()> {
        let length = self.socket().as_os_str().as_bytes().len();
        if length <= SOCKET_PATH_MAX {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::StateRoot,
            format!(
                "the state directory {} is too long for a socket's path ({length} bytes, {SOCKET_PATH_MAX} at most)",
                root.display()
            ),
        )
        .hint("set FLEETBOX_HOME to a shorter path"))
    }
}

/// The directory of one VM.
#[derive(Debug, Clone)]
pub(crate) struct MemberPaths {
    dir: PathBuf,
}

impl MemberPaths {
    /// A member that is still being made, under a temporary name.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VM's record; a VM exists when this file does.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    pub(crate) fn seed(&self) -> PathBuf {
        self.dir.join("seed.img")
    }

    /// What the guest wrote to its serial console since the last boot.
    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What the monitor itself had to say.
    pub(crate) fn vmm_log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }

    /// What the monitor writes on request, until it is put where it belongs.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// What the guest's firmware remembers from boot to boot, where it has one.
    pub(crate) fn firmware_variables(&self) -> PathBuf {
        self.dir.join("firmware.fd")
    }

    /// A layer that the disk lies on.
    pub(crate) fn layer(&self, layer: &str) -> PathBuf {
        self.dir.join(layer)
    }

    /// The drive of the fixture of that place.
    pub(crate) fn fixture(&self, place: usize) -> PathBuf {
        self.dir.join(fixture_name(place))
    }

    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }
}

fn fixture_name(place: usize) -> String {
    format!("fixture-{place}.img")
}

/// The directory of one snapshot.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotPaths {
    dir: PathBuf,
}

impl SnapshotPaths {
    /// One that is still being made, under a temporary name.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The snapshot's record; it exists when this file does.
    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join("snapshot.json")
    }

    /// Its time is that of the last use.
    pub(crate) fn used(&self) -> PathBuf {
        self.dir.join("used")
    }

    pub(crate) fn member(&self, vm: &Name) -> SavedPaths {
        SavedPaths { dir: self.dir.join(vm) }
    }
}

/// The directory of one machine in a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct SavedPaths {
    dir: PathBuf,
}

impl SavedPaths {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The guest's memory. Locked by who uses it.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// The rest of the machine's state.
    pub(crate) fn device(&self) -> PathBuf {
        self.dir.join("device")
    }

    pub(crate) fn layer(&self, layer: &str) -> PathBuf {
        self.dir.join(layer)
    }

    pub(crate) fn fixture(&self, place: usize) -> PathBuf {
        self.dir.join(fixture_name(place))
    }

    /// A disk that is needed while it is saved.
    pub(crate) fn spare(&self) -> PathBuf {
        self.dir.join("spare.qcow2")
    }

    pub(crate) fn vmm_log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_root_too_long_for_a_socket_is_refused_before_anything_is_made() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("x".repeat(100));
        let paths = Paths::at(&root).unwrap();
        let error = paths.prepare(&Name::new("web").unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StateRoot);
        assert!(!root.exists());
    }

    #[test]
    fn directories_are_private() {
        let base = tempfile::tempdir().unwrap();
        let paths = Paths::at(&base.path().join("home")).unwrap();
        let cluster = paths.prepare(&Name::new("web").unwrap()).unwrap();
        let mode = cluster.dir().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
