//! Owns the QEMU backend: one child process, its QMP connection, and how it ends. Debian 12 has
//! QEMU 7.2, the oldest supported.

mod args;
mod qmp;

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use self::qmp::{Qmp, QmpEvent};
use super::{Asked, BootPlan, Ended, Machine};
use crate::error::{Error, ErrorKind, Result};

/// How long QEMU may take until it greets: under emulation on a busy host it has much to map.
const GREETING_WAIT: Duration = Duration::from_secs(30);
/// How much of QEMU's own log an error shows.
const LOG_TAIL_BYTES: u64 = 2048;

pub(crate) struct QemuMachine {
    qmp: Qmp,
    kill: mpsc::Sender<()>,
    ended: Ended,
    memory_mib: u32,
}

/// Starts QEMU and waits for its greeting.
pub(crate) async fn boot(plan: &BootPlan, tap: OwnedFd) -> Result<QemuMachine> {
    let failed = |what: &str, e: io::Error| {
        Error::new(ErrorKind::BackendUnavailable, format!("{what} {}", plan.program.display()))
            .vm(plan.vm.as_str())
            .source(e)
    };
    let (ours, theirs) = UnixStream::pair().map_err(|e| failed("prepare", e))?;
    ours.set_nonblocking(true).map_err(|e| failed("prepare", e))?;
    let child = spawn(plan, tap, theirs.into()).map_err(|e| {
        failed("run", e).hint("check that the file can be executed; `fleetbox doctor` tells more")
    })?;
    let (kill, kill_asked) = mpsc::channel(1);
    let (ended_sender, mut ended) = watch::channel(None);
    let (events, event_receiver) = mpsc::unbounded_channel();
    tokio::spawn(reap(child, kill_asked, event_receiver, ended_sender));

    let stream = tokio::net::UnixStream::from_std(ours).map_err(|e| failed("talk to", e))?;
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(GREETING_WAIT, Qmp::connect(stream, events)) => match greeted {
            Ok(greeted) => greeted,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
        _ = ended.wait_for(Option::is_some) => Err(io::Error::other("it ended at once")),
    };
    match greeted {
        Ok(qmp) => Ok(QemuMachine { qmp, kill, ended, memory_mib: plan.memory_mib }),
        Err(e) => {
            // Ends the child too: `reap` sees the sender dropped.
            drop(kill);
            drop(ended.wait_for(Option::is_some).await);
            Err(failed("start", e)
                .detail(tail(&plan.vmm_log))
                .hint("`fleetbox doctor` checks QEMU and what it needs"))
        }
    }
}

fn spawn(plan: &BootPlan, tap: OwnedFd, qmp: OwnedFd) -> io::Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&plan.vmm_log)?;
    let arguments = args::arguments(plan);
    writeln!(&log, "{} {}", plan.program.display(), arguments.join(" "))?;
    #[expect(clippy::disallowed_methods, reason = "a backend starts its monitor")]
    let mut command = std::process::Command::new(&plan.program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    crate::sys::fd::inherit(&mut command, vec![(tap, args::TAP_FD), (qmp, args::QMP_FD)]);
    Command::from(command).kill_on_drop(true).spawn()
}

/// Waits for the child's end, or ends it when asked to or when nobody could ask any more.
async fn reap(
    mut child: Child,
    mut kill_asked: mpsc::Receiver<()>,
    mut events: mpsc::UnboundedReceiver<QmpEvent>,
    ended: watch::Sender<Option<String>>,
) {
    let mut killed = false;
    let mut guest_did_it = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            _ = kill_asked.recv(), if !killed => {
                killed = true;
                // It fails only if the child is gone already, which `wait` tells.
                drop(child.start_kill());
            }
            Some(event) = events.recv() => {
                if event.name == "SHUTDOWN" {
                    guest_did_it = event.by_guest;
                }
            }
        }
    };
    while let Ok(event) = events.try_recv() {
        guest_did_it |= event.name == "SHUTDOWN" && event.by_guest;
    }
    let why = match status {
        Ok(status) => describe(status, killed, guest_did_it),
        Err(e) => format!("its monitor was lost: {e}"),
    };
    ended.send_replace(Some(why));
}

fn describe(status: ExitStatus, killed: bool, guest_did_it: bool) -> String {
    if killed {
        return "it was cut off".to_owned();
    }
    match (status.code(), status.signal()) {
        (Some(0), _) if guest_did_it => "the guest shut down".to_owned(),
        (Some(0), _) => "its monitor was told to quit".to_owned(),
        (Some(code), _) => format!("its monitor failed with status {code}"),
        (None, Some(signal)) => format!("its monitor was killed by signal {signal}"),
        (None, None) => "its monitor ended".to_owned(),
    }
}

fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => crate::console::harmless(&bytes),
        Err(e) => format!("(no log: {e})"),
    }
}

impl Machine for QemuMachine {
    fn power_button(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("system_powerdown", json!({})))
    }

    fn reset(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("system_reset", json!({})))
    }

    fn pause(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("stop", json!({})))
    }

    fn resume(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("cont", json!({})))
    }

    fn set_balloon(&self, mib: u32) -> Asked<'_, ()> {
        // QEMU is told what shall be left.
        let left_bytes = u64::from(self.memory_mib.saturating_sub(mib)) << 20;
        Box::pin(self.ask("balloon", json!({ "value": left_bytes })))
    }

    fn kill(&self) -> Asked<'_, ()> {
        Box::pin(async {
            // Full or closed means it was asked already, or is gone.
            let _ = self.kill.try_send(());
            drop(self.ended.clone().wait_for(Option::is_some).await);
            Ok(())
        })
    }

    fn ended(&self) -> Ended {
        self.ended.clone()
    }
}

impl QemuMachine {
    async fn ask(&self, command: &str, arguments: Value) -> Result<()> {
        match self.qmp.execute_with(command, &arguments).await {
            Ok(()) => Ok(()),
            Err(_) if self.ended.borrow().is_some() => Ok(()),
            Err(e) => {
                Err(Error::new(ErrorKind::HolderDied, format!("ask QEMU for {command}")).source(e))
            }
        }
    }
}
