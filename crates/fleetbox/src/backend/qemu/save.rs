//! Owns saving a running QEMU machine: its memory to a file that others can map, the rest of its state,
//! a copy of its disk. The machine itself runs on as it is; it must not end it.
//!
//! ```text
//! source ══ live migration ══► receiver, whose memory is the file ──► device state
//!    │ stands still: some 50 ms
//!    └─ backup of its disk's overlay
//! ```
//!
//! The machine's own memory is not in a file, or, of one that was restored, in one that it must not
//! change; a second QEMU whose memory is the new file takes it over as if from another host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::args::{self, DISK_NODE, Memory};
use super::{QemuMachine, clock, migration, start};
use crate::backend::{BootPlan, SavePlan, Saved, Together, monitor};
use crate::error::{Error, ErrorKind, Result};
use crate::images::space;

pub(super) async fn save(
    machine: &QemuMachine,
    plan: &SavePlan,
    paused: bool,
    tap: OwnedFd,
    together: &Together,
) -> Result<Saved> {
    let receiver = receiver(machine, plan, tap).await.inspect_err(|_| together.fail())?;
    let saved = tokio::select! {
        saved = run(machine, &receiver, plan, paused, together) => saved,
        () = machine.monitor.wait() => Err(io::Error::other("the machine ended")),
        () = receiver.monitor.wait() => Err(io::Error::other("the monitor that receives it ended")),
    };
    receiver.monitor.kill().await;
    let saved = match saved {
        Ok(saved) => saved,
        Err(e) => {
            together.fail();
            go_on(machine, paused).await;
            let said = monitor::tail(&plan.vmm_log);
            return Err(failed(e, plan).detail(said));
        }
    };
    let files = [&plan.device, &plan.memory, &plan.disk].map(Clone::clone);
    let finish = move || {
        clock::take_from_memory(&files[0])?;
        files.iter().try_for_each(|file| sync(file))
    };
    let synced = tokio::task::spawn_blocking(finish);
    match synced.await {
        Ok(synced) => synced.map(|()| saved).map_err(|e| failed(e, plan)),
        Err(e) => Err(Error::new(ErrorKind::Internal, "wait for files").source(e)),
    }
}

/// A QEMU like the machine's, whose memory is the file.
async fn receiver(machine: &QemuMachine, plan: &SavePlan, tap: OwnedFd) -> Result<QemuMachine> {
    let room = || -> io::Result<()> {
        let memory = std::fs::File::create_new(&plan.memory)?;
        memory.set_len(args::memory_kib(&machine.plan) << 10)
    };
    room().map_err(|e| Error::io("make", &plan.memory, e))?;
    let like = BootPlan {
        disk: plan.spare.clone(),
        console: "/dev/null".into(),
        vmm_log: plan.vmm_log.clone(),
        ephemeral: true,
        durable: false,
        restore: None,
        memory: None,
        ..machine.plan.clone()
    };
    start(&like, Memory::Received(&plan.memory), tap).await
}

async fn run(
    machine: &QemuMachine,
    receiver: &QemuMachine,
    plan: &SavePlan,
    paused: bool,
    together: &Together,
) -> io::Result<Saved> {
    let (source, mut events) = (&machine.qmp, machine.qmp.events());
    let still = migration::copy(source, &receiver.qmp).await?;
    // A machine whose state has gone has let go of its disk. QEMU 10 can take it back without running
    // on; older ones copy it before they do.
    let active = match source.execute_with("blockdev-set-active", &json!({ "active": true })).await
    {
        Ok(()) => true,
        Err(e) if migration::is_unknown(&e) => false,
        Err(e) => return Err(e),
    };
    let copying = async {
        migration::begin_disk_copy(source, DISK_NODE, &plan.disk).await?;
        if active { Ok(()) } else { migration::end_disk_copy(source, &mut events).await }
    };
    copying.await?;
    if !together.wait().await {
        return Err(io::Error::other("another machine could not be saved in the same instant"));
    }
    if !paused {
        source.execute("cont").await?;
    }
    let paused = still.map(|since| since.elapsed()).unwrap_or_default();
    migration::save_device(&receiver.qmp, &plan.device).await?;
    if active {
        migration::end_disk_copy(source, &mut events).await?;
    }
    Ok(Saved { paused })
}

/// Copies the disk's own overlay, as it is now, to the empty one at `target`.
pub(super) async fn copy_disk(machine: &QemuMachine, target: &Path) -> Result<()> {
    let (qmp, mut events) = (&machine.qmp, machine.qmp.events());
    let copying = async {
        migration::begin_disk_copy(qmp, DISK_NODE, target).await?;
        migration::end_disk_copy(qmp, &mut events).await
    };
    let copied = tokio::select! {
        copied = copying => copied,
        () = machine.monitor.wait() => Err(io::Error::other("the machine ended")),
    };
    let file = target.to_owned();
    let synced = match copied {
        Ok(()) => tokio::task::spawn_blocking(move || sync(&file)).await.map_err(io::Error::other),
        Err(e) => Err(e),
    };
    synced.and_then(|synced| synced).map_err(|e| disk_failed(e, machine, target))
}

fn disk_failed(source: io::Error, machine: &QemuMachine, target: &Path) -> Error {
    let kind = if is_full(&source) { ErrorKind::NoSpace } else { ErrorKind::HolderDied };
    Error::new(kind, format!("copy the disk to {}", target.display()))
        .vm(machine.plan.vm.as_str())
        .source(source)
}

fn is_full(error: &io::Error) -> bool {
    error.to_string().contains("No space left")
}

/// After a failure the machine runs as it did before.
async fn go_on(machine: &QemuMachine, paused: bool) {
    let began = Instant::now();
    // What is over cannot be cancelled.
    drop(migration::cancel(&machine.qmp).await);
    if !paused && let Err(e) = machine.ask("cont", json!({})).await {
        log::warn!("let a machine go on that was not saved: {}", e.report());
    }
    log::info!("goes on {} ms after its save failed", began.elapsed().as_millis());
}

fn sync(file: &Path) -> io::Result<()> {
    std::fs::File::open(file)?.sync_all()
}

/// A monitor whose memory's file finds no room is killed, and cannot say why.
const ROOM_BYTES_MIN: u64 = 64 << 20;

fn has_no_room(plan: &SavePlan) -> bool {
    let dir = plan.memory.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(dir).ok().is_some_and(|open| {
        space::free_bytes_of(open, dir).is_ok_and(|free_bytes| free_bytes < ROOM_BYTES_MIN)
    })
}

fn failed(source: io::Error, plan: &SavePlan) -> Error {
    let full = is_full(&source) || has_no_room(plan);
    let kind = if full { ErrorKind::NoSpace } else { ErrorKind::HolderDied };
    let why = if full { ": there is no room left" } else { "" };
    let error = Error::new(kind, format!("save the machine to {}{why}", plan.memory.display()))
        .vm(plan.vm.as_str())
        .source(source);
    if full { error.hint("make room on the disk with the state directory") } else { error }
}
