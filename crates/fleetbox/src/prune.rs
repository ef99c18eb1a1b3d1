//! Owns reclaiming what killed processes left in the state root. It must not touch what a living one
//! works on.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::holder::cleanup;
use crate::images::layer;
use crate::snapshot;
use crate::store::memory;
use crate::store::paths::{ClusterPaths, Paths};

/// A probe of the host takes well under a second; what is older was left.
const PROBE_AGE: Duration = Duration::from_mins(1);

/// Removes what killed processes left in the state root: sockets nobody listens at, VMs half made or
/// half removed, throw-away VMs whose holder is gone, clusters without members, memory reserved for
/// machines that are gone, layers of images half made. Returns what it
/// removed.
///
/// There is rarely anything: the kernel ends a dead holder's machines and interfaces, its warden tidies
/// up after it, and every start sweeps its own cluster. Only a warden that was killed, too, leaves
/// something. What a living process works on is passed over, as are VMs that are merely stopped.
///
/// # Errors
/// If the state root cannot be read, or something in it cannot be removed.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// for path in fleetbox::prune().await? {
///     println!("removed {}", path.display());
/// }
/// # Ok(())
/// # }
/// ```
pub async fn prune() -> Result<Vec<PathBuf>> {
    let paths = Paths::from_env()?;
    let swept = tokio::task::spawn_blocking(move || sweep_all(&paths)).await;
    swept.map_err(|e| Error::new(crate::ErrorKind::Internal, "sweep the state root").source(e))?
}

fn sweep_all(paths: &Paths) -> Result<Vec<PathBuf>> {
    let mut removed = memory::sweep(paths)?;
    for cluster in directories(&paths.clusters())? {
        removed.extend(cleanup::sweep_if_free(&ClusterPaths::at(cluster))?);
    }
    for dir in [paths.snapshots(), paths.goldens()] {
        removed.extend(snapshot::remove_half_made(&dir)?);
    }
    for dir in directories(paths.root())? {
        let is_probe = dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".probe-"));
        if is_probe && is_old(&dir) {
            removed.extend(cleanup::sweep_if_free(&ClusterPaths::at(dir))?);
        }
    }
    removed.extend(layer::remove_half_made(paths)?);
    Ok(removed)
}

fn is_old(dir: &Path) -> bool {
    let modified = dir.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > PROBE_AGE))
}

fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|e| Error::io("list", dir, e))?,
    };
    Ok(read
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::lock;

    #[test]
    fn leftovers_go_and_what_is_worked_on_stays() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::at(root.path()).unwrap();
        let make = |path: &str| {
            let dir = paths.clusters().join(path);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (left, busy) = (make("left/.new-x1"), make("busy/.gone-y"));
        let kept = make("kept/kept");
        std::fs::write(kept.join("config.json"), "{").unwrap();
        std::fs::write(paths.clusters().join("kept/holder.sock"), "").unwrap();
        let holder = ClusterPaths::at(paths.clusters().join("busy")).holder_lock();
        let _held = lock::try_lock(&holder).unwrap().unwrap();
        let removed = sweep_all(&paths).unwrap();
        assert!(removed.contains(&left), "{removed:?}");
        assert!(!paths.clusters().join("left").exists());
        assert!(busy.exists() && kept.exists(), "{removed:?}");
        assert!(!paths.clusters().join("kept/holder.sock").exists());
        assert_eq!(sweep_all(&paths).unwrap(), Vec::<PathBuf>::new(), "the second time");
    }
}
