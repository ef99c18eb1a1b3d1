//! Owns removing layers: those of an image that is not wanted any more, those nobody used for long, and
//! what killed processes left. It must not decide how much is too much.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::name::{PREFIX, key_of, names};
use super::{Layer, all, bytes, dir, keys, lock_path};
use crate::error::Result;
use crate::images::cache::absent_is_fine;
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;
use crate::store::record;
use crate::store::whole::{GONE, HALF_MADE};

/// Removes what lies on the raw image at `path`, of no use without it.
pub(in crate::images) async fn remove_on_image(paths: &Paths, path: &Path) -> Result<u64> {
    let mut freed_bytes = 0;
    for layer in all(paths).into_iter().filter(|layer| layer.image_path == path) {
        for named in names(paths).into_iter().filter(|named| named.key == layer.key) {
            named.forget(paths)?;
        }
        freed_bytes += remove_waiting(paths, &layer.key).await?;
    }
    Ok(freed_bytes)
}

/// Removes the derived image of that name or key, with the layers before it that nothing else is made
/// of. None if there is none. Machines that were made of it have what they need.
pub(in crate::images) async fn remove(paths: &Paths, reference: &str) -> Result<Option<u64>> {
    let mut doomed = Vec::new();
    for named in names(paths).into_iter().filter(|named| named.name == reference) {
        named.forget(paths)?;
        doomed.push(named.key);
    }
    if reference.starts_with(PREFIX) {
        // No name is needed to tell the architecture.
        doomed.extend(key_of(paths, reference, Arch::host())?);
    }
    if doomed.is_empty() {
        return Ok(None);
    }
    let mut freed_bytes = 0;
    for key in doomed {
        let mut next = Some(key);
        while let Some(key) = next {
            if names(paths).iter().any(|named| named.key == key) {
                break;
            }
            let layers = all(paths);
            if layers.iter().any(|layer| layer.parent.as_deref() == Some(&key)) {
                break;
            }
            next = layers.into_iter().find(|l| l.key == key).and_then(|layer| layer.parent);
            freed_bytes += remove_waiting(paths, &key).await?;
        }
    }
    Ok(Some(freed_bytes))
}

async fn remove_waiting(paths: &Paths, key: &str) -> Result<u64> {
    let lock_path = lock_path(paths, key);
    let _held = lock::lock(&lock_path, || ()).await?;
    remove_locked(paths, key)
}

/// Removes a layer: first out of sight, so that a kill in between leaves no half of one. The caller has
/// its lock, whose file goes too. Returns the bytes of disk given back.
fn remove_locked(paths: &Paths, key: &str) -> Result<u64> {
    let (dir, gone) = (dir(paths, key), paths.layers().join(format!("{GONE}{key}")));
    let freed_bytes = bytes(&dir, |m| m.nlink() == 1);
    clear(paths, &gone)?;
    absent_is_fine("remove", &dir, std::fs::rename(&dir, &gone))?;
    clear(paths, &gone)?;
    let lock_path = lock_path(paths, key);
    absent_is_fine("remove", &lock_path, std::fs::remove_file(&lock_path))?;
    Ok(freed_bytes)
}

/// Removes a layer's directory, and before that the kernel that was taken out of it, unless a machine
/// needs that.
pub(super) fn clear(paths: &Paths, dir: &Path) -> Result<()> {
    if let Some(layer) = Layer::read(dir)
        && !has_machines(paths, &layer.digest)?
    {
        let kernel = paths.kernels().join(layer.digest);
        absent_is_fine("remove", &kernel, std::fs::remove_dir_all(&kernel))?;
    }
    absent_is_fine("remove", dir, std::fs::remove_dir_all(dir))
}

/// Whether a VM was made of the layer of that digest: it boots its kernel.
fn has_machines(paths: &Paths, digest: &str) -> Result<bool> {
    for cluster in record::clusters(paths)? {
        let members = record::members(&paths.cluster(&cluster))?;
        if members.into_iter().flatten().any(|vm| vm.image_digest == digest) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The directories of layers with when each was last used, and whether it may go: nobody named it.
pub(crate) fn kept(paths: &Paths) -> Vec<(PathBuf, SystemTime, bool)> {
    let named: HashSet<String> = names(paths).into_iter().map(|named| named.key).collect();
    let dirs = keys(paths).into_iter().map(|key| (dir(paths, &key), !named.contains(&key)));
    dirs.map(|(dir, may_go)| (dir.clone(), last_used(&dir), may_go)).collect()
}

/// Removes the layer in that directory, unless somebody works on it.
pub(crate) fn evict(paths: &Paths, dir: &Path) -> Result<()> {
    let key = dir.file_name().unwrap_or_default().to_string_lossy();
    match lock::try_lock(&lock_path(paths, &key))? {
        Some(_held) => remove_locked(paths, &key).map(drop),
        None => Ok(()),
    }
}

/// Removes what killed processes left of layers they were making or removing, and locks of layers that
/// were never made. Returns what was left, locks aside.
pub(crate) fn remove_half_made(paths: &Paths) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(paths.layers()) else { return Ok(Vec::new()) };
    let (mut removed, mut locks) = (Vec::new(), Vec::new());
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        locks.extend(name.strip_suffix(".lock").map(str::to_owned));
        let key = name.strip_prefix(HALF_MADE).or_else(|| name.strip_prefix(GONE));
        if let Some(key) = key
            && let Some(_held) = lock::try_lock(&lock_path(paths, key))?
        {
            clear(paths, &entry.path())?;
            removed.push(entry.path());
        }
    }
    for key in locks.into_iter().filter(|key| !dir(paths, key).exists()) {
        let path = lock_path(paths, &key);
        if let Some(_held) = lock::try_lock(&path)? {
            absent_is_fine("remove", &path, std::fs::remove_file(&path))?;
        }
    }
    Ok(removed)
}

/// When it was made, or a machine was made of it.
fn last_used(dir: &Path) -> SystemTime {
    let modified = dir.join("used").metadata().and_then(|metadata| metadata.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}
