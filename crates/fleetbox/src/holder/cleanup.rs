//! Owns removing what a dead holder left on disk. The kernel has already ended its processes and
//! interfaces. It must only touch a cluster whose locks it has.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, WaitOptions, waitpid};

use crate::error::{Error, Result};
use crate::store::lock;
use crate::store::paths::ClusterPaths;
use crate::store::record::VmRecord;
use crate::store::whole::{GONE, HALF_MADE};

/// Waits for the holder to end in whatever way and tidies up after it.
pub(super) fn ward(dir: &ClusterPaths, label: &str, holder: Pid) {
    // The warden has no business with the log any more; errors have nowhere to go and the next
    // command sweeps again.
    while let Err(rustix::io::Errno::INTR) = waitpid(Some(holder), WaitOptions::empty()) {}
    drop(crate::net::remove_host_links(label));
    drop(sweep_if_free(dir));
}

/// Sweeps unless somebody else is at work on the cluster; they sweep themselves. Tells what went.
pub(crate) fn sweep_if_free(dir: &ClusterPaths) -> Result<Vec<PathBuf>> {
    // To lock what is gone would make it anew.
    if !dir.dir().exists() {
        return Ok(Vec::new());
    }
    let Some(holder) = lock::try_lock(&dir.holder_lock())? else { return Ok(Vec::new()) };
    remove_links(dir);
    let mut removed = Vec::new();
    if dir.socket().exists() {
        remove_file(&dir.socket())?;
        removed.push(dir.socket());
    }
    // A starter takes the other lock first, and may be about to want this one.
    drop(holder);
    let Some(_starter) = lock::try_lock(&dir.lock())? else { return Ok(removed) };
    let Some(_holder) = lock::try_lock(&dir.holder_lock())? else { return Ok(removed) };
    removed.extend(remove_leftovers(dir)?);
    Ok(removed)
}

/// Removes a dead holder's socket and throw-away members, and half-made or half-removed member
/// directories. The caller has the cluster's lock; a living holder's things stay.
pub(crate) fn sweep(dir: &ClusterPaths) -> Result<()> {
    let Some(_holder) = lock::try_lock(&dir.holder_lock())? else {
        return remove_half_made(dir).map(drop);
    };
    remove_links(dir);
    remove_file(&dir.socket())?;
    remove_half_made(dir)?;
    for entry in entries(dir.dir())? {
        if VmRecord::read_dir(&entry).is_ok_and(|r| r.is_some_and(|r| r.ephemeral)) {
            remove_member(&entry)?;
        }
    }
    Ok(())
}

/// Removes what leads from the host to a holder that is dead: a socket that a program still has keeps
/// the cluster's network, and with it the link. Not a reason to fail: whoever may not remove it did not
/// make it.
fn remove_links(dir: &ClusterPaths) {
    if let Err(e) = crate::net::remove_host_links(&dir.link_label()) {
        log::warn!("remove the host's links to {}: {e}", dir.dir().display());
    }
}

fn remove_leftovers(dir: &ClusterPaths) -> Result<Vec<PathBuf>> {
    let mut removed = remove_half_made(dir)?;
    let mut kept = 0;
    for entry in entries(dir.dir())? {
        match VmRecord::read_dir(&entry) {
            Ok(Some(record)) if record.ephemeral => {
                remove_member(&entry)?;
                removed.push(entry);
            }
            _ => kept += 1,
        }
    }
    if kept == 0 {
        remove_cluster(dir)?;
        removed.push(dir.dir().to_owned());
    }
    Ok(removed)
}

/// Removes the directory of a cluster that has neither members nor a living holder, whose warden
/// would do it otherwise. The caller has the cluster's lock.
pub(crate) fn remove_if_empty(dir: &ClusterPaths) -> Result<()> {
    if !entries(dir.dir())?.is_empty() {
        return Ok(());
    }
    match lock::try_lock(&dir.holder_lock())? {
        Some(_holder) => remove_cluster(dir),
        None => Ok(()),
    }
}

/// Removes the directory of a cluster without members. The caller has both locks.
fn remove_cluster(dir: &ClusterPaths) -> Result<()> {
    match std::fs::remove_dir_all(dir.dir()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir.dir(), e)),
        _ => Ok(()),
    }
}

/// Removes a member's directory: first out of sight, so that a kill in between leaves no half of
/// a VM.
pub(crate) fn remove_member(member: &Path) -> Result<()> {
    let name = member.file_name().unwrap_or_default().to_string_lossy();
    let gone = member.with_file_name(format!(".gone-{name}"));
    let remove = |path: &Path| match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    };
    remove(&gone)?;
    match std::fs::rename(member, &gone) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("remove", member, e)),
        Ok(()) => {}
    }
    remove(&gone)
}

fn remove_half_made(dir: &ClusterPaths) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let read = match std::fs::read_dir(dir.dir()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(removed),
        read => read.map_err(|e| Error::io("list", dir.dir(), e))?,
    };
    for entry in read.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let half_made = name.starts_with(HALF_MADE) || name.starts_with(GONE);
        if half_made && entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path();
            std::fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// The member directories of a cluster.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|e| Error::io("list", dir, e))?,
    };
    Ok(read
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
        .map(|e| e.path())
        .collect())
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
