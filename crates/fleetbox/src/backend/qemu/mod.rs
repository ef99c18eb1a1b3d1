//! Owns the QEMU backend: its command line, its QMP connection, and what is asked over it. Debian 12
//! has QEMU 7.2, the oldest supported.

mod args;
mod clock;
mod disk;
mod migration;
mod qmp;
mod save;
mod volatile;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use self::args::Memory;
use self::qmp::Qmp;
use super::monitor::{self, Monitor};
use super::{Asked, BootPlan, Ended, Machine, SavePlan, Saved, Together};
use crate::control::message::Disk;
use crate::error::{Error, ErrorKind, Result};

/// How long QEMU may take until it greets: under emulation on a busy host it has much to map.
const GREETING_WAIT: Duration = Duration::from_secs(30);

pub(crate) struct QemuMachine {
    qmp: Qmp,
    monitor: Monitor,
    plan: BootPlan,
    disk: tokio::sync::Mutex<disk::Filters>,
}

/// What a machine that boots is run with.
pub(crate) fn command_line(plan: &BootPlan) -> Vec<String> {
    args::arguments(plan, Memory::Anonymous)
}

/// Starts QEMU and waits for its greeting; a machine that is restored runs when this returns.
pub(crate) async fn boot(plan: &BootPlan, tap: OwnedFd) -> Result<QemuMachine> {
    let Some(restore) = &plan.restore else {
        return start(plan, Memory::Anonymous, tap).await;
    };
    let machine = start(plan, Memory::Restored(&restore.memory), tap).await?;
    let restored = async {
        migration::restore(&machine.qmp, &restore.device).await?;
        machine.qmp.execute("cont").await
    };
    let restored = tokio::select! {
        restored = restored => restored,
        () = machine.monitor.wait() => Err(io::Error::other("it ended")),
    };
    match restored {
        Ok(()) => Ok(machine),
        Err(e) => {
            machine.monitor.kill().await;
            Err(monitor::failed(plan, "restore a machine with", e))
        }
    }
}

/// Runs QEMU with that memory.
async fn start(plan: &BootPlan, memory: Memory<'_>, tap: OwnedFd) -> Result<QemuMachine> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| monitor::failed(plan, "prepare", e))?;
    let mut fds = vec![(tap, args::TAP_FD), (theirs.into(), args::QMP_FD)];
    if plan.durable {
        let served = volatile::serve(&plan.disk, plan.disk_bytes).await;
        let served = served.map_err(|e| monitor::failed(plan, "prepare the disk of", e))?;
        fds.push((served.into(), args::DISK_FD));
    }
    let (monitor, shutdown) = Monitor::spawn(plan, &args::arguments(plan, memory), fds)
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
            Ok(QemuMachine { qmp, monitor, plan: plan.clone(), disk })
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
        let left_kib = args::memory_kib(&self.plan).saturating_sub(u64::from(mib) << 10);
        Box::pin(self.ask("balloon", json!({ "value": left_kib << 10 })))
    }

    fn set_disk(&self, disk: Disk) -> Asked<'_, ()> {
        Box::pin(async move { self.disk.lock().await.set(self, disk).await })
    }

    fn save<'a>(
        &'a self,
        plan: &'a SavePlan,
        paused: bool,
        tap: OwnedFd,
        together: &'a Together,
    ) -> Asked<'a, Saved> {
        Box::pin(save::save(self, plan, paused, tap, together))
    }

    fn copy_disk<'a>(&'a self, target: &'a Path) -> Asked<'a, ()> {
        Box::pin(save::copy_disk(self, target))
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
