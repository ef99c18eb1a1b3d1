//! Owns saving a running machine and laying out what one comes back from: what cloud-hypervisor is asked,
//! and where its files go. What is in them is `saved`'s.
//!
//! ```text
//! the guest flushes each write ─► pause ─┬─► memory and state, to the scratch directory
//!                                        └─► a copy of its disk's file
//!                     all stand still ─► resume ─► to the host's disk, in their places
//! ```
//!
//! It writes where it may write, and nowhere else: its own scratch directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CloudHypervisor, args, saved, sparse};
use crate::backend::{BootPlan, Restore, SavePlan, Saved, Together};
use crate::error::{Error, ErrorKind, Result};

/// A few gigabytes on a slow host.
const WRITTEN_WAIT: Duration = Duration::from_mins(3);

pub(super) async fn save(
    machine: &CloudHypervisor,
    plan: &SavePlan,
    paused: bool,
    together: &Together,
) -> Result<Saved> {
    let saved = tokio::select! {
        saved = stand_still(machine, plan, paused, together) => saved,
        () = machine.monitor.wait() => Err(io::Error::other("the machine ended")),
    };
    let saved = match saved {
        Ok(saved) => saved,
        Err(e) => {
            together.fail();
            go_on(machine, paused).await;
            return Err(failed(e, plan));
        }
    };
    let (scratch, places) = (machine.plan.scratch.clone(), plan.clone());
    let put = in_background(move || put_in_place(&scratch, &places)).await;
    put.map(|()| saved).map_err(|e| failed(e, plan))
}

async fn stand_still(
    machine: &CloudHypervisor,
    plan: &SavePlan,
    paused: bool,
    together: &Together,
) -> io::Result<Saved> {
    let scratch = &machine.plan.scratch;
    clear(scratch)?;
    let since = Instant::now();
    if !paused {
        machine.api.put("vm.pause", None).await?;
    }
    let target = json!({ "destination_url": args::url(scratch) });
    let write = machine.api.put_within(WRITTEN_WAIT, "vm.snapshot", Some(target));
    let (from, to) = (machine.plan.disk.clone(), plan.disk.clone());
    let copy = in_background(move || sparse::copy(&from, &to));
    let (written, copied) = tokio::join!(write, copy);
    written.and(copied)?;
    log::info!("{} is written after {:?}", plan.vm, since.elapsed());
    if !together.wait().await {
        return Err(io::Error::other("another machine could not be saved in the same instant"));
    }
    if paused {
        return Ok(Saved { paused: Duration::ZERO });
    }
    machine.api.put("vm.resume", None).await?;
    Ok(Saved { paused: since.elapsed() })
}

/// After a failure the machine runs as it did before.
async fn go_on(machine: &CloudHypervisor, paused: bool) {
    // One that was not stopped refuses, which is right.
    if !paused && let Err(e) = machine.api.put("vm.resume", None).await {
        log::warn!("a machine that was not saved is not let go on: {e}");
    }
    if let Err(e) = clear(&machine.plan.scratch) {
        log::warn!("what was saved of a machine is left: {e}");
    }
}

fn put_in_place(scratch: &Path, plan: &SavePlan) -> io::Result<()> {
    let read = |name: &str| std::fs::read(scratch.join(name));
    let kept = saved::keep(&read(saved::CONFIG)?, &read(saved::STATE)?)?;
    write(&plan.device, &kept)?;
    let memory = scratch.join(saved::MEMORY);
    // A machine that was itself restored writes all of its memory.
    sparse::dig(&OpenOptions::new().read(true).write(true).open(&memory)?)?;
    for file in [&memory, &plan.device, &plan.disk] {
        File::open(file)?.sync_all()?;
    }
    std::fs::rename(memory, &plan.memory)?;
    clear(scratch)
}

/// Puts where it is looked for what the plan's machine comes back from. Returns where.
pub(super) fn lay_out(plan: &BootPlan, restore: &Restore, landlock: bool) -> io::Result<PathBuf> {
    clear(&plan.scratch)?;
    let kept = std::fs::read(&restore.device)?;
    let [config, state] = saved::come_back(&kept, plan, landlock)?;
    write(&plan.scratch.join(saved::CONFIG), &config)?;
    write(&plan.scratch.join(saved::STATE), &state)?;
    Ok(plan.scratch.clone())
}

/// Makes the directory, or empties it of what it is for.
pub(super) fn clear(scratch: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(scratch)?;
    for name in [saved::CONFIG, saved::STATE, saved::MEMORY] {
        match std::fs::remove_file(scratch.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    options?.write_all(bytes)
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn failed(source: io::Error, plan: &SavePlan) -> Error {
    let full = source.to_string().contains("No space left");
    let kind = match source.kind() {
        io::ErrorKind::InvalidData => ErrorKind::Unsupported,
        _ if full => ErrorKind::NoSpace,
        _ => ErrorKind::HolderDied,
    };
    let error = Error::new(kind, format!("save the machine to {}", plan.memory.display()))
        .vm(plan.vm.as_str())
        .source(source);
    match kind {
        ErrorKind::NoSpace => error.hint("make room on the disk with the state directory"),
        ErrorKind::Unsupported => error.hint("use cloud-hypervisor 52, or QEMU"),
        _ => error,
    }
}
