//! Owns a monitor's process: its log, its inherited fds, and how it ends. It must not know which
//! monitor it is, nor speak to it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::{BootPlan, Ended};
use crate::error::{Error, ErrorKind};

/// How much of the monitor's own log an error shows.
const LOG_TAIL_BYTES: u64 = 2048;

/// A running monitor. Dropping it ends the process.
pub(super) struct Monitor {
    kill: mpsc::Sender<()>,
    ended: Ended,
}

/// Says that the guest is about to end the monitor by itself, by a shutdown of its own.
pub(super) type GuestShutdown = mpsc::UnboundedSender<()>;

impl Monitor {
    /// Runs the plan's program. Each fd is inherited under the number beside it. The log begins
    /// with the command line; whatever the monitor says follows.
    pub(super) fn spawn(
        plan: &BootPlan,
        arguments: &[String],
        fds: Vec<(OwnedFd, RawFd)>,
    ) -> io::Result<(Self, GuestShutdown)> {
        let child = run(plan, arguments, fds)?;
        let (kill, kill_asked) = mpsc::channel(1);
        let (ended_sender, ended) = watch::channel(None);
        let (shutdown, shutdowns) = mpsc::unbounded_channel();
        tokio::spawn(reap(child, kill_asked, shutdowns, ended_sender));
        Ok((Self { kill, ended }, shutdown))
    }

    /// Ends it at once and waits until it has.
    pub(super) async fn kill(&self) {
        // Full or closed means it was asked already, or is gone.
        let _ = self.kill.try_send(());
        self.wait().await;
    }

    pub(super) async fn wait(&self) {
        drop(self.ended.clone().wait_for(Option::is_some).await);
    }

    pub(super) fn ended(&self) -> Ended {
        self.ended.clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }
}

fn run(plan: &BootPlan, arguments: &[String], fds: Vec<(OwnedFd, RawFd)>) -> io::Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&plan.vmm_log)?;
    writeln!(&log, "{} {}", plan.program.display(), arguments.join(" "))?;
    #[expect(clippy::disallowed_methods, reason = "a backend starts its monitor")]
    let mut command = std::process::Command::new(std::path::absolute(&plan.program)?);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // Layers are named without a directory; cloud-hypervisor opens them from where it runs.
    if let (false, Some(dir)) = (plan.layers.is_empty(), plan.disk.parent()) {
        command.current_dir(dir);
    }
    crate::sys::fd::inherit(&mut command, fds);
    Command::from(command).kill_on_drop(true).spawn()
}

/// Waits for the child's end, or ends it when asked to or when nobody could ask any more.
async fn reap(
    mut child: Child,
    mut kill_asked: mpsc::Receiver<()>,
    mut shutdowns: mpsc::UnboundedReceiver<()>,
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
            Some(()) = shutdowns.recv() => guest_did_it = true,
        }
    };
    // Its last words may still be on their way, until whoever reads them sees their end.
    while !guest_did_it && shutdowns.recv().await.is_some() {
        guest_did_it = true;
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

/// A monitor that did not come up, with what it said of it.
pub(super) fn failed(plan: &BootPlan, what: &str, source: io::Error) -> Error {
    let said = tail(&plan.vmm_log);
    // Both monitors lock their disks (fcntl(2), open file description locks).
    let taken = said.contains("\"write\" lock") || said.to_ascii_lowercase().contains("disklock");
    let kind = if taken { ErrorKind::Conflict } else { ErrorKind::BackendUnavailable };
    let error = Error::new(kind, format!("{what} {}", plan.program.display()))
        .vm(plan.vm.as_str())
        .source(source)
        .detail(said);
    if taken {
        error.hint("another monitor uses the VM's disk: end it first")
    } else {
        error.hint("`fleetbox doctor` checks the monitor and what it needs")
    }
}

/// Nothing of a monitor that did not get as far as to have a log.
pub(super) fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => crate::console::harmless(&bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => format!("(no log: {e})"),
    }
}
