//! Owns the QEMU backend: its command line, its QMP connection, and what is asked over it. Debian 12
//! has QEMU 7.2, the oldest supported.

mod args;
mod disk;
mod qmp;
mod volatile;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use self::qmp::Qmp;
use super::monitor::{self, Monitor};
use super::{Asked, BootPlan, Ended, Machine};
use crate::control::message::Disk;
use crate::error::{Error, ErrorKind, Result};

/// How long QEMU may take until it greets: under emulation on a busy host it has much to map.
const GREETING_WAIT: Duration = Duration::from_secs(30);

pub(crate) struct QemuMachine {
    qmp: Qmp,
    monitor: Monitor,
    memory_mib: u32,
    disk: tokio::sync::Mutex<disk::Filters>,
}

/// Starts QEMU and waits for its greeting.
pub(crate) async fn boot(plan: &BootPlan, tap: OwnedFd) -> Result<QemuMachine> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| monitor::failed(plan, "prepare", e))?;
    let mut fds = vec![(tap, args::TAP_FD), (theirs.into(), args::QMP_FD)];
    if plan.durable {
        let served = volatile::serve(&plan.disk, plan.disk_bytes).await;
        let served = served.map_err(|e| monitor::failed(plan, "prepare the disk of", e))?;
        fds.push((served.into(), args::DISK_FD));
    }
    let (monitor, shutdown) = Monitor::spawn(plan, &args::arguments(plan), fds)
        .map_err(|e| monitor::failed(plan, "run", e))?;
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(GREETING_WAIT, greet(ours, shutdown)) => match greeted {
            Ok(greeted) => greeted,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
        () = monitor.wait() => Err(io::Error::other("it ended at once")),
    };
    match greeted {
        Ok(qmp) => {
            let disk = tokio::sync::Mutex::default();
            Ok(QemuMachine { qmp, monitor, memory_mib: plan.memory_mib, disk })
        }
        Err(e) => {
            monitor.kill().await;
            Err(monitor::failed(plan, "start", e))
        }
    }
}

async fn greet(socket: UnixStream, shutdown: monitor::GuestShutdown) -> io::Result<Qmp> {
    socket.set_nonblocking(true)?;
    Qmp::connect(tokio::net::UnixStream::from_std(socket)?, shutdown).await
}

impl Machine for QemuMachine {
    fn power_button(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("system_powerdown", json!({})))
    }

    fn reset(&self) -> Asked<'_, ()> {
        Box::pin(async {
            self.ask("system_reset", json!({})).await?;
            // A reset leaves a stopped machine stopped; a running one is not touched.
            self.ask("cont", json!({})).await
        })
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

    fn set_disk(&self, disk: Disk) -> Asked<'_, ()> {
        Box::pin(async move { self.disk.lock().await.set(self, disk).await })
    }

    fn kill(&self) -> Asked<'_, ()> {
        Box::pin(async {
            self.monitor.kill().await;
            Ok(())
        })
    }

    fn ended(&self) -> Ended {
        self.monitor.ended()
    }
}

impl QemuMachine {
    async fn ask(&self, command: &str, arguments: Value) -> Result<()> {
        match self.qmp.execute_with(command, &arguments).await {
            Ok(()) => Ok(()),
            Err(_) if self.monitor.has_ended() => Ok(()),
            Err(e) => {
                Err(Error::new(ErrorKind::HolderDied, format!("ask QEMU for {command}")).source(e))
            }
        }
    }
}
