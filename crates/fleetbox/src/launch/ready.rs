//! Owns waiting for a booted guest: the stages its console shows, the first SSH login, and the
//! error of a guest that does not come up. It must not boot anything.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{Accel, nested};
use crate::console;
use crate::control::client::Hold;
use crate::control::message::Event;
use crate::diagnose::{BootCause, BootReport, Follower};
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
const LAST_WORDS_WAIT: Duration = Duration::from_millis(500);
/// Once a boot is over and its console is silent for so long, who refuses us then does so for good. Emulated on
/// a busy host an sshd may take some seconds to start.
const REST: Duration = Duration::from_secs(30);
/// A refusal is no older than this if one try follows another.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(10);
/// How much of its console the error of a failed boot keeps.
const CONSOLE_BYTES_MAX: u64 = 1024 * 1024;

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

/// Waits until the guest lets us in. Tells each stage as the console shows it; ends as soon as that says
/// that nothing will come any more.
pub(super) async fn wait(
    guest: Guest<'_>,
    hold: &mut Hold,
    progress: &ProgressSink,
    timings: &mut Timings,
) -> Result<()> {
    let Guest { vm, session, console, limit, restored } = guest;
    let began = Instant::now();
    let mut follower = Follower::new(console.clone());
    let refusal = LastTry::default();
    let told = (!restored).then_some((progress, timings));
    let outcome = tokio::select! {
        outcome = log_in(session, &refusal) => outcome,
        ended = machine_ended(vm, hold) => Err(ended),
        why = follow(&mut follower, told, &refusal) => Err(Error::new(ErrorKind::BootFailed, why)),
        () = tokio::time::sleep(limit) => Err(late(limit)),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::HostKeyMismatch => Err(e),
        Err(e) => {
            // What the guest said last may not have been read.
            if let Err(e) = follower.advance() {
                log::debug!("the console cannot be read: {e}");
            }
            let failed = Failed { vm, restored, after: began.elapsed(), refusal: refusal.get() };
            Err(failed.explain(&e, &follower, &console))
        }
    }
}

/// Waits until a guest that runs lets us in.
pub(super) async fn answers(session: &Session, limit: Duration) -> Result<()> {
    let refusal = LastTry::default();
    let log_in = tokio::time::timeout(limit, log_in(session, &refusal));
    log_in.await.unwrap_or_else(|_| {
        let error = late(limit);
        Err(match refusal.get() {
            Some(Refusal { last, .. }) => error.detail(format!("the last try: {last}")),
            None => error,
        })
    })
}

/// Why a try to log in was none.
#[derive(Clone)]
struct Refusal {
    kind: ErrorKind,
    last: String,
    at: Instant,
}

impl Refusal {
    /// Whether it is one, and not just slow.
    fn is_plain(&self) -> bool {
        matches!(self.kind, ErrorKind::Connect | ErrorKind::Authentication)
            && self.at.elapsed() < REFUSAL_AGE_MAX
    }
}

#[derive(Default)]
struct LastTry(Mutex<Option<Refusal>>);

impl LastTry {
    fn set(&self, refusal: Refusal) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }

    fn get(&self) -> Option<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn log_in(session: &Session, refusal: &LastTry) -> Result<()> {
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
            Err(e) => {
                log::debug!("not yet: {}", e.report());
                refusal.set(Refusal { kind: e.kind(), last: e.report(), at: Instant::now() });
            }
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

/// Follows the console, and returns what the guest does not do as soon as that is certain.
async fn follow(
    follower: &mut Follower,
    mut told: Option<(&ProgressSink, &mut Timings)>,
    refusal: &LastTry,
) -> &'static str {
    let mut pause = POLL_FIRST;
    loop {
        match follower.advance() {
            Ok(Some(stage)) => {
                if let Some((progress, timings)) = &mut told {
                    progress.begin(stage);
                    timings.enter(stage);
                }
                pause = POLL_FIRST;
            }
            Ok(None) => pause = (pause * 2).min(POLL_LAST),
            Err(e) => {
                log::debug!("the console cannot be read: {e}");
                pause = POLL_LAST;
            }
        }
        if follower.is_over() {
            // A kernel says more after the line that tells of its end.
            tokio::time::sleep(LAST_WORDS_WAIT).await;
            return "come up";
        }
        if follower.rests_for(REST) && refusal.get().is_some_and(|refusal| refusal.is_plain()) {
            return "let us in, although its boot is over";
        }
        tokio::time::sleep(pause).await;
    }
}

fn late(limit: Duration) -> Error {
    Error::new(ErrorKind::BootFailed, format!("come up within {} s", limit.as_secs()))
}

/// A guest that did not come up.
struct Failed<'a> {
    vm: &'a Name,
    restored: bool,
    after: Duration,
    refusal: Option<Refusal>,
}

impl Failed<'_> {
    /// The stage reached, the likely cause and the console's last words, for whatever went wrong.
    fn explain(self, error: &Error, follower: &Follower, console: &Path) -> Error {
        let stage = if self.restored { Stage::Ssh } else { follower.stage() };
        let (cause, line) = match follower.shown() {
            Some(shown) => (Some(shown.cause), Some(shown.line.as_str())),
            None => (self.cause(error, stage, follower), None),
        };
        let because = cause.map_or_else(String::new, |cause| format!(": {cause}"));
        let message = format!(
            "{}{because}; it had reached the stage {stage} after {} s",
            error.message(),
            self.after.as_secs()
        );
        let report = BootReport::failed(follower.seen().to_vec(), cause, line);
        let refusal = self.refusal.as_ref();
        let last_try = refusal.map_or_else(String::new, |refusal| {
            format!("the last try to log in: {}\n", refusal.last)
        });
        let tail = console::tail(console);
        let detail = format!("{report}{last_try}the console's last lines:\n{tail}");
        let words = console::end(console, CONSOLE_BYTES_MAX).unwrap_or_else(|e| {
            log::debug!("the console cannot be read: {e}");
            Vec::new()
        });
        Error::new(error.kind(), message)
            .vm(self.vm.as_str())
            .detail(detail)
            .hint(self.hint(error, stage, cause))
            .with_boot(report, words)
    }

    /// What can be told where the console shows no reason.
    fn cause(&self, error: &Error, stage: Stage, follower: &Follower) -> Option<BootCause> {
        if error.kind() != ErrorKind::BootFailed {
            return None;
        }
        if follower.has_read_nothing() && !self.restored {
            return Some(BootCause::Silent);
        }
        match self.refusal.as_ref()?.kind {
            // It may be on its way there yet.
            _ if stage < Stage::CloudInit && !self.restored && !follower.has_finished() => None,
            // A port that is shut or mute has an address; nobody at all has none.
            ErrorKind::Connect if self.is_unreachable() => Some(BootCause::NoAddress),
            _ => Some(BootCause::SshDown),
        }
    }

    fn is_unreachable(&self) -> bool {
        let words = ["No route to host", "unreachable", "os error 113"];
        self.refusal.as_ref().is_some_and(|r| words.iter().any(|word| r.last.contains(word)))
    }

    fn hint(&self, error: &Error, stage: Stage, cause: Option<BootCause>) -> String {
        let vm = self.vm;
        match (error.kind(), stage, cause) {
            (ErrorKind::HolderDied, ..) => {
                "see holder.log in the cluster's directory; start the VM again".to_owned()
            }
            (_, _, Some(cause)) => cause.hint(vm.as_str()),
            (_, stage, None) if stage < Stage::Init => format!(
                "the kernel did not start systemd: look for a missing root device or a panic in `fleetbox logs {vm}`"
            ),
            _ => format!(
                "read `fleetbox logs {vm}`; give a slow host more time with FLEETBOX_IP_WAIT_TIMEOUT=900"
            ),
        }
    }
}
