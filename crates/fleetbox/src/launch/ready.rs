//! Owns waiting for a booted guest: the stages its console shows, the first SSH login, and the
//! error of a guest that does not come up. It must not boot anything.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::backend::{Accel, nested};
use crate::console::{self, StageReader};
use crate::control::client::Hold;
use crate::control::message::Event;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{ProgressSink, Stage};
use crate::spec::Name;
use crate::ssh::Session;
use crate::timings::Timings;

/// A kernel on a working KVM writes its first line well within a second.
const SILENCE: Duration = Duration::from_secs(10);
/// On a nested one it unpacks itself first at what pace the outer machine gives. A guess on the
/// generous side, not yet measured.
const SILENCE_NESTED: Duration = Duration::from_mins(3);
/// Generous: several emulated guests may boot side by side on a laptop.
const LIMIT_EMULATED: Duration = Duration::from_mins(10);
const LIMIT_KVM: Duration = Duration::from_mins(3);
/// An emulated login takes seconds; this only bounds a guest that accepts and then hangs.
const LOGIN_WAIT: Duration = Duration::from_mins(1);
const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_LAST: Duration = Duration::from_millis(250);

/// How long a guest may take: the caller's word, else `FLEETBOX_IP_WAIT_TIMEOUT`, else by how it
/// runs.
pub(super) fn limit(asked: Option<Duration>, accel: Accel) -> Result<Duration> {
    Ok(match (asked, env::ip_wait_timeout()?) {
        (Some(asked), _) => asked,
        (None, Some(set)) => set,
        (None, None) if accel == Accel::Kvm && !nested::host_is_virtual() => LIMIT_KVM,
        (None, None) => LIMIT_EMULATED,
    })
}

/// Whether the guest wrote nothing at all for too long.
pub(super) async fn is_silent(hold: &mut Hold, console: &Path) -> Result<bool> {
    let mut pause = POLL_FIRST;
    let silence = if nested::host_is_virtual() { SILENCE_NESTED } else { SILENCE };
    let deadline = Instant::now() + silence;
    while Instant::now() < deadline {
        if console.metadata().is_ok_and(|m| m.len() > 0) {
            return Ok(false);
        }
        tokio::select! {
            // That it ended is told by the wait that follows: the holder then refuses to dial.
            event = hold.next() => drop(event?),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(POLL_LAST),
        }
    }
    Ok(true)
}

/// The guest that is waited for, and for how long.
pub(super) struct Guest<'a> {
    pub vm: &'a Name,
    pub session: &'a Session,
    pub console: PathBuf,
    pub limit: Duration,
    /// It was restored: what its console says is not how far its boot is.
    pub restored: bool,
}

/// Waits until the guest lets us in. Tells each stage as the console shows it.
pub(super) async fn wait(
    guest: Guest<'_>,
    hold: &mut Hold,
    progress: &ProgressSink,
    timings: &mut Timings,
) -> Result<()> {
    let Guest { vm, session, console, limit, restored } = guest;
    let began = Instant::now();
    let mut reader = StageReader::new(console.clone());
    let outcome = tokio::select! {
        outcome = log_in(session) => outcome,
        ended = machine_ended(vm, hold) => Err(ended),
        () = tell_stages(&mut reader, progress, timings), if !restored => unreachable_stage(),
        () = tokio::time::sleep(limit) => Err(late(limit)),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::HostKeyMismatch => Err(e),
        Err(e) => {
            let stage = if restored { Stage::Ssh } else { reader.stage() };
            Err(explain(vm, &e, stage, began.elapsed(), &console))
        }
    }
}

/// `tell_stages` never ends; the compiler cannot know.
fn unreachable_stage() -> Result<()> {
    Err(Error::new(ErrorKind::Internal, "follow the console"))
}

/// Waits until a guest that runs lets us in.
pub(super) async fn answers(session: &Session, limit: Duration) -> Result<()> {
    tokio::time::timeout(limit, log_in(session)).await.unwrap_or_else(|_| Err(late(limit)))
}

async fn log_in(session: &Session) -> Result<()> {
    let mut pause = POLL_FIRST;
    loop {
        match session.try_connect(LOGIN_WAIT).await {
            Ok(()) => return Ok(()),
            // Another machine answers, or somebody is in between: waiting cannot help.
            Err(e) if e.kind() == ErrorKind::HostKeyMismatch => return Err(e),
            // Without a reason there is no holder any more, which its own connection tells.
            Err(e) if e.kind() == ErrorKind::NotRunning && e.detail_text().is_some() => {
                let why = e.detail_text().unwrap_or_default();
                return Err(Error::new(ErrorKind::BootFailed, format!("come up: {why}")));
            }
            Err(e) => tracing::debug!("not yet: {}", e.report()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_LAST);
    }
}

async fn machine_ended(vm: &Name, hold: &mut Hold) -> Error {
    loop {
        match hold.next().await {
            Ok(Event::Ended { vm: ended, why }) if ended == *vm => {
                return Error::new(ErrorKind::BootFailed, format!("come up: {why}"));
            }
            Ok(Event::Ended { .. }) => {}
            Err(e) => return e,
        }
    }
}

async fn tell_stages(reader: &mut StageReader, progress: &ProgressSink, timings: &mut Timings) {
    let mut pause = POLL_FIRST;
    loop {
        match reader.advance() {
            Ok(Some(stage)) => {
                progress.begin(stage);
                timings.enter(stage);
                pause = POLL_FIRST;
            }
            Ok(None) => pause = (pause * 2).min(POLL_LAST),
            Err(e) => {
                tracing::debug!("the console cannot be read: {e}");
                pause = POLL_LAST;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

fn late(limit: Duration) -> Error {
    Error::new(ErrorKind::BootFailed, format!("come up within {} s", limit.as_secs()))
}

/// The stage reached and the console's last words, for whatever went wrong.
fn explain(vm: &Name, error: &Error, stage: Stage, after: Duration, console: &Path) -> Error {
    let message = format!(
        "{}; it had reached the stage {stage} after {} s",
        error.message(),
        after.as_secs()
    );
    let hint = match (error.kind(), stage) {
        (ErrorKind::HolderDied, _) => {
            "see holder.log in the cluster's directory; start the VM again".to_owned()
        }
        (_, Stage::Kernel) => format!(
            "the kernel did not start systemd: look for a missing root device or a panic in `fleetbox logs {vm}`"
        ),
        _ => format!(
            "read `fleetbox logs {vm}`; give a slow host more time with FLEETBOX_IP_WAIT_TIMEOUT=900"
        ),
    };
    Error::new(error.kind(), message)
        .vm(vm.as_str())
        .detail(format!("the console's last lines:\n{}", console::tail(console)))
        .hint(hint)
}
