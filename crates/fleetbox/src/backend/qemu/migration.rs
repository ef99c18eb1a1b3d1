//! Owns moving a machine's state between a QEMU and another, or a file (QEMU's docs/devel/migration):
//! how it is asked for over QMP, and waiting for its end. It must not know what for.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::qmp::{Qmp, QmpEvent};

/// What QEMU calls the fd that the state goes through.
const NAME: &str = "state";
/// Leaves out memory that is in a file others have, too.
const WITHOUT_MEMORY: &str = "x-ignore-shared";
/// How long a guest stands still for the last of its memory, as QEMU estimates it.
const STILL_MS: u64 = 100;
/// As much as the host can.
const BYTES_PER_S_MAX: u64 = 1 << 40;
/// A guest that writes its memory faster than it can be read is stopped after this long.
const LIVE_WAIT: Duration = Duration::from_secs(20);
/// A few gigabytes on a slow host.
const STILL_WAIT: Duration = Duration::from_mins(3);
/// Loading the rest of a machine takes some 10 ms; more is a busy host.
const RESTORE_WAIT: Duration = Duration::from_secs(30);

/// Copies the running machine of `source` into `receiver`, which waits for one. Returns when it stands
/// still and all of it is there, with the time since when it stands still, if it ran before.
pub(super) async fn copy(source: &Qmp, receiver: &Qmp) -> io::Result<Option<Instant>> {
    let (to, from) = UnixStream::pair()?;
    let mut incoming = tell_events(receiver).await?;
    receiver.pass(NAME, from.as_fd()).await?;
    receiver.execute_with("migrate-incoming", &json!({ "uri": format!("fd:{NAME}") })).await?;
    let mut events = tell_events(source).await?;
    // It may have been restored itself.
    set_capability(source, WITHOUT_MEMORY, false).await?;
    let parameters = json!({ "max-bandwidth": BYTES_PER_S_MAX, "downtime-limit": STILL_MS });
    source.execute_with("migrate-set-parameters", &parameters).await?;
    let mut still = None;
    send(source, to.as_fd()).await?;
    // From here on only the two have it, so that each hears of the other's end.
    drop((to, from));
    if let Ok(outcome) =
        tokio::time::timeout(LIVE_WAIT, ended(source, &mut events, &mut still)).await
    {
        outcome?;
    } else {
        source.execute("stop").await?;
        tokio::time::timeout(STILL_WAIT, ended(source, &mut events, &mut still))
            .await
            .map_err(|_| late())??;
    }
    tokio::time::timeout(STILL_WAIT, ended(receiver, &mut incoming, &mut None))
        .await
        .map_err(|_| late())??;
    Ok(still)
}

/// Writes what is not in the machine's memory file.
pub(super) async fn save_device(receiver: &Qmp, device: &Path) -> io::Result<()> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(device)?;
    let mut events = tell_events(receiver).await?;
    set_capability(receiver, WITHOUT_MEMORY, true).await?;
    send(receiver, file.as_fd()).await?;
    tokio::time::timeout(RESTORE_WAIT, ended(receiver, &mut events, &mut None))
        .await
        .map_err(|_| late())?
}

/// Loads that into a machine whose memory is the file already.
pub(super) async fn restore(qmp: &Qmp, device: &Path) -> io::Result<()> {
    let file = OwnedFd::from(File::open(device)?);
    let mut events = tell_events(qmp).await?;
    set_capability(qmp, WITHOUT_MEMORY, true).await?;
    qmp.pass(NAME, file.as_fd()).await?;
    qmp.execute_with("migrate-incoming", &json!({ "uri": format!("fd:{NAME}") })).await?;
    tokio::time::timeout(RESTORE_WAIT, ended(qmp, &mut events, &mut None))
        .await
        .map_err(|_| late())?
}

/// Lets the machine go on as if nothing had been asked.
pub(super) async fn cancel(source: &Qmp) -> io::Result<()> {
    source.execute("migrate_cancel").await
}

async fn send(qmp: &Qmp, to: BorrowedFd<'_>) -> io::Result<()> {
    qmp.pass(NAME, to).await?;
    qmp.execute_with("migrate", &json!({ "uri": format!("fd:{NAME}") })).await
}

async fn tell_events(qmp: &Qmp) -> io::Result<broadcast::Receiver<QmpEvent>> {
    let events = qmp.events();
    set_capability(qmp, "events", true).await?;
    Ok(events)
}

async fn set_capability(qmp: &Qmp, name: &str, state: bool) -> io::Result<()> {
    let capabilities = json!({ "capabilities": [{ "capability": name, "state": state }] });
    qmp.execute_with("migrate-set-capabilities", &capabilities).await
}

/// Waits for the end of what was begun, and notes when the guest was stopped.
async fn ended(
    qmp: &Qmp,
    events: &mut broadcast::Receiver<QmpEvent>,
    still: &mut Option<Instant>,
) -> io::Result<()> {
    loop {
        let QmpEvent { name, data, at } = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return Err(io::ErrorKind::NotConnected.into()),
        };
        match (name.as_str(), data["status"].as_str()) {
            ("STOP", _) => *still = Some(at),
            ("MIGRATION", Some("completed")) => return Ok(()),
            ("MIGRATION", Some("failed" | "cancelled")) => return Err(why(qmp).await),
            _ => {}
        }
    }
}

async fn why(qmp: &Qmp) -> io::Error {
    match qmp.ask("query-migrate", &json!({})).await {
        Ok(told) => {
            let why = told["error-desc"].as_str().unwrap_or("QEMU does not say why; see its log");
            io::Error::other(why.to_owned())
        }
        Err(e) => e,
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it takes too long")
}

/// A command's answer as text, for the commands whose names differ between releases.
pub(super) fn is_unknown(error: &io::Error) -> bool {
    error.to_string().contains("has not been found")
}

/// Copies what is in the overlay of the device's disk to the empty one at `target`, as it is now.
/// Returns the job, which runs on.
pub(super) async fn begin_disk_copy(qmp: &Qmp, node: &str, target: &Path) -> io::Result<()> {
    let target = json!({
        "driver": "qcow2", "node-name": COPY, "discard": "unmap",
        "file": { "driver": "file", "filename": target },
        // Only its own content is written.
        "backing": Value::Null,
    });
    qmp.execute_with("blockdev-add", &target).await?;
    let job = json!({ "job-id": COPY, "device": node, "target": COPY, "sync": "top" });
    match qmp.execute_with("blockdev-backup", &job).await {
        Ok(()) => Ok(()),
        Err(e) => {
            // The first error says what is wrong.
            drop(qmp.execute_with("blockdev-del", &json!({ "node-name": COPY })).await);
            Err(e)
        }
    }
}

/// The copy of a disk: its job and its node.
const COPY: &str = "copy";

/// Waits for the end of the copy and lets go of its file.
pub(super) async fn end_disk_copy(
    qmp: &Qmp,
    events: &mut broadcast::Receiver<QmpEvent>,
) -> io::Result<()> {
    let outcome = loop {
        let QmpEvent { name, data, .. } = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return Err(io::ErrorKind::NotConnected.into()),
        };
        if data["device"] != COPY {
            continue;
        }
        match (name.as_str(), data["error"].as_str()) {
            ("BLOCK_JOB_COMPLETED", None) => break Ok(()),
            ("BLOCK_JOB_COMPLETED", Some(why)) => break Err(io::Error::other(why.to_owned())),
            ("BLOCK_JOB_CANCELLED", _) => break Err(io::Error::other("it was cancelled")),
            _ => {}
        }
    };
    qmp.execute_with("blockdev-del", &json!({ "node-name": COPY })).await?;
    outcome
}
