//! Owns the cloud-hypervisor backend: its command line, its REST interface and its events. Made for
//! version 52, whose seccomp filter stays on, as does its landlock where the kernel has it.

mod api;
mod args;
mod save;
mod saved;
mod sparse;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use self::api::Api;
use super::monitor::{self, GuestShutdown, Monitor};
use super::{Asked, BootPlan, Ended, Machine, SavePlan, Saved, Together};
use crate::control::message::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::net::Network;

/// How long it may take until its guest's first instruction: there is memory to map.
const BOOTED_WAIT: Duration = Duration::from_secs(30);
/// It answers at once unless it hangs; a pause waits for what its disks have under way.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Confinement to files came with this version of landlock (cloud-hypervisor's `landlock.rs`).
const LANDLOCK_VERSION: u32 = 3;
/// More than any event has: what is longer is no event.
const EVENT_BYTES_MAX: usize = 64 << 10;

pub(crate) struct CloudHypervisor {
    api: Api,
    monitor: Monitor,
    plan: BootPlan,
}

/// What a machine that boots is run with.
pub(crate) fn command_line(plan: &BootPlan) -> Vec<String> {
    // Whether the host confines it is nothing to the guest.
    args::arguments(plan, false)
}

/// Starts cloud-hypervisor and waits until its guest runs.
pub(crate) async fn boot(
    plan: &BootPlan,
    network: &Network,
    tap_number: u32,
    tap: OwnedFd,
) -> Result<CloudHypervisor> {
    let failed = |what| move |e: io::Error| monitor::failed(plan, what, e);
    let (name, listener) =
        network.listen_local(format!("vmm-{tap_number}")).await.map_err(failed("prepare"))?;
    let (event_sender, events) = pipe::pipe().map_err(failed("prepare"))?;
    let event_sender = event_sender.into_blocking_fd().map_err(failed("prepare"))?;
    let fds = vec![(tap, args::TAP_FD), (listener, args::API_FD), (event_sender, args::EVENTS_FD)];
    let arguments = arguments(plan).map_err(failed("prepare"))?;
    let (monitor, shutdown) = Monitor::spawn(plan, &arguments, fds).map_err(failed("run"))?;
    let (runs_sender, mut runs) = watch::channel(false);
    tokio::spawn(read_events(events, runs_sender, shutdown));
    // Its events end with it.
    let said = async { runs.wait_for(|it| *it).await.map(|_| ()) };
    let outcome = match tokio::time::timeout(BOOTED_WAIT, said).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => {
            monitor.wait().await;
            Err(io::Error::other("it ended at once"))
        }
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    if let Err(e) = outcome {
        monitor.kill().await;
        let what = if plan.restore.is_some() { "restore a machine with" } else { "start" };
        return Err(monitor::failed(plan, what, e));
    }
    save::clear(&plan.scratch).map_err(failed("tidy up after"))?;
    let api = Api::new(network.clone(), name, ANSWER_WAIT);
    Ok(CloudHypervisor { api, monitor, plan: plan.clone() })
}

fn arguments(plan: &BootPlan) -> io::Result<Vec<String>> {
    let landlock = crate::sys::landlock::version() >= LANDLOCK_VERSION;
    if let Some(restore) = &plan.restore {
        return Ok(args::restored(&save::lay_out(plan, restore, landlock)?, landlock));
    }
    save::clear(&plan.scratch)?;
    Ok(args::arguments(plan, landlock))
}

/// What the monitor tells of itself (`event_monitor` in its source): JSON values one after another.
#[derive(Debug, Deserialize)]
struct Event {
    source: String,
    event: String,
}

async fn read_events(
    mut events: impl AsyncRead + Unpin,
    runs: watch::Sender<bool>,
    shutdown: GuestShutdown,
) {
    let mut unread = Vec::new();
    loop {
        match events.read_buf(&mut unread).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let mut values = serde_json::Deserializer::from_slice(&unread).into_iter::<Event>();
        let mut read_to = 0;
        while let Some(Ok(Event { source, event })) = values.next() {
            read_to = values.byte_offset();
            log::debug!("cloud-hypervisor's event {source} {event}");
            match (source.as_str(), event.as_str()) {
                ("vm", "booted" | "resumed") => drop(runs.send_replace(true)),
                // Nobody listens any more once the machine is gone.
                ("vm", "shutdown") => drop(shutdown.send(())),
                _ => {}
            }
        }
        unread.drain(..read_to);
        if unread.len() > EVENT_BYTES_MAX {
            log::warn!("cloud-hypervisor's events cannot be read");
            return;
        }
    }
}

impl Machine for CloudHypervisor {
    fn power_button(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("vm.power-button", None))
    }

    fn reset(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("vm.reboot", None))
    }

    fn pause(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("vm.pause", None))
    }

    fn resume(&self) -> Asked<'_, ()> {
        Box::pin(self.ask("vm.resume", None))
    }

    fn set_balloon(&self, mib: u32) -> Asked<'_, ()> {
        let balloon_bytes = u64::from(mib) << 20;
        Box::pin(self.ask("vm.resize", Some(json!({ "desired_balloon": balloon_bytes }))))
    }

    fn set_disk(&self, disk: Disk) -> Asked<'_, ()> {
        Box::pin(async move {
            if disk == Disk::default() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Unsupported, "make the disk bad: cloud-hypervisor cannot"))
        })
    }

    fn save<'a>(
        &'a self,
        plan: &'a SavePlan,
        paused: bool,
        _tap: OwnedFd,
        together: &'a Together,
    ) -> Asked<'a, Saved> {
        Box::pin(save::save(self, plan, paused, together))
    }

    fn copy_disk<'a>(&'a self, _target: &'a Path) -> Asked<'a, ()> {
        Box::pin(async {
            let what = "copy the disk of a machine that runs: cloud-hypervisor holds back writes";
            Err(Error::new(ErrorKind::Unsupported, what))
        })
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

impl CloudHypervisor {
    async fn ask(&self, action: &str, body: Option<serde_json::Value>) -> Result<()> {
        match self.api.put(action, body).await {
            Ok(()) => Ok(()),
            Err(_) if self.monitor.has_ended() => Ok(()),
            Err(e) => {
                Err(Error::new(ErrorKind::HolderDied, format!("ask cloud-hypervisor for {action}"))
                    .hint("it hangs: `fleetbox down` ends it after a grace time")
                    .source(e))
            }
        }
    }
}

#[cfg(test)]
mod tests;
