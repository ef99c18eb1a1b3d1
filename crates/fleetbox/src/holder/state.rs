//! Owns the holder's members and what happens to them: boot and end; `power` has the buttons,
//! `sockets` the ways to them, `faults` what is broken, `outage` who is away, `console` what they said, `timeline` what was done, `save` what is saved and restored.
//! It must not know how requests arrive.
//!
//! ```text
//! (none) ──boot──► Booting ──► Running ──ended──► Ended ──boot──► Booting …
//! ```

mod clock;
mod console;
mod faults;
mod outage;
mod power;
mod save;
mod sockets;
mod timeline;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;

use crate::backend::{self, BootPlan, Machine};
use crate::control::message::{Booted, Event, HolderStatus, MemberStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::net::plan::HostSubnet;
use crate::net::{Names, Network, RuleSet};
use crate::spec::Name;
use crate::store::lock::{self, SharedLock};
use crate::store::memory::{self, Reservation};
use crate::store::paths::ClusterPaths;
use crate::store::timeline::{Appender, What};

use self::faults::Faults;

/// One cluster's holder.
pub(super) struct State {
    dir: ClusterPaths,
    /// What the link to the host is marked with.
    label: String,
    network: Network,
    names: Names,
    inner: Mutex<Inner>,
    events: broadcast::Sender<Event>,
    faults: tokio::sync::Mutex<Faults>,
    rules: watch::Sender<RuleSet>,
    timeline: Mutex<Appender>,
    /// How the host reaches members, once it was asked for.
    host_subnet: tokio::sync::OnceCell<HostSubnet>,
    /// Counts what keeps the holder alive.
    life: watch::Sender<Life>,
}

#[derive(Default)]
struct Inner {
    members: BTreeMap<Name, Member>,
    /// How many hold each member; it may be held before it is booted.
    holds: BTreeMap<Name, usize>,
    next_tap: u32,
}

struct Member {
    plan: BootPlan,
    /// The number of its tap, another at every boot.
    tap: u32,
    phase: Phase,
    /// Its processors stand still.
    paused: bool,
    /// Taken by whoever changes that, so that the machine and the word on it agree.
    pausing: Arc<tokio::sync::Mutex<()>>,
    /// It runs on when nobody holds it any more.
    detached: bool,
    /// The snapshot that its memory is mapped from is in use.
    snapshot: Option<SharedLock>,
    /// By the guest's port, and whether it is published.
    forwards: BTreeMap<(u16, bool), Forward>,
}

enum Phase {
    Booting,
    Running(Arc<dyn Machine>),
    Ended(String),
}

struct Forward {
    address: SocketAddr,
    task: AbortHandle,
}

/// What decides whether the holder stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Life {
    pub holds: usize,
    /// Members that run and need no hold.
    pub detached: usize,
    pub closing: bool,
}

impl Life {
    pub(super) fn is_over(self) -> bool {
        self.closing || (self.holds == 0 && self.detached == 0)
    }
}

/// Keeps the holder alive while it exists, and the member it is for.
pub(super) struct Holding {
    state: Arc<State>,
    vm: Option<Name>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(vm) = &self.vm {
            self.state.let_go(vm);
        }
        self.state.life.send_modify(|life| life.holds -= 1);
    }
}

impl State {
    pub(super) fn new(
        dir: ClusterPaths,
        label: String,
        network: Network,
        names: Names,
        timeline: Appender,
    ) -> Arc<Self> {
        Arc::new(Self {
            dir,
            faults: tokio::sync::Mutex::new(Faults::new(network.clone())),
            rules: watch::Sender::default(),
            timeline: Mutex::new(timeline),
            host_subnet: tokio::sync::OnceCell::new(),
            label,
            network,
            names,
            inner: Mutex::default(),
            events: broadcast::channel(64).0,
            life: watch::channel(Life::default()).0,
        })
    }

    pub(super) fn life(&self) -> watch::Receiver<Life> {
        self.life.subscribe()
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Keeps the holder alive, and the member if one is named, unless it is ending already.
    pub(super) fn hold(self: &Arc<Self>, vm: Option<Name>) -> Option<Holding> {
        let held = self.life.send_if_modified(|life| {
            if !life.closing {
                life.holds += 1;
            }
            !life.closing
        });
        held.then(|| {
            if let Some(vm) = &vm {
                *self.lock().holds.entry(vm.clone()).or_default() += 1;
            }
            Holding { state: self.clone(), vm }
        })
    }

    /// One hold of a member less; a bound one ends with its last.
    fn let_go(self: &Arc<Self>, vm: &Name) {
        let machine = {
            let mut inner = self.lock();
            let left = inner.holds.get_mut(vm).map_or(0, |holds| {
                *holds = holds.saturating_sub(1);
                *holds
            });
            match inner.members.get(vm) {
                Some(Member { phase: Phase::Running(machine), detached: false, .. })
                    if left == 0 =>
                {
                    machine.clone()
                }
                _ => return,
            }
        };
        log::info!("nobody holds {vm} any more");
        self.note(Some(vm), What::LetGo);
        tokio::spawn(async move {
            if let Err(e) = machine.kill().await {
                log::warn!("end a machine nobody holds: {}", e.report());
            }
        });
    }

    /// Lets a running member live on without a hold.
    pub(super) fn detach(&self, vm: &Name) -> Result<()> {
        match self.lock().members.get_mut(vm) {
            Some(Member { phase: Phase::Running(_), detached, .. }) => {
                if !std::mem::replace(detached, true) {
                    self.life.send_modify(|life| life.detached += 1);
                }
                Ok(())
            }
            _ => Err(Error::not_running(vm.as_str())),
        }
    }

    pub(super) fn close(&self) {
        self.life.send_modify(|life| life.closing = true);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> HolderStatus {
        let subnet = self.host_subnet.get().copied();
        let members = self.lock().members.values().map(|member| member.status(subnet)).collect();
        HolderStatus { version: env!("CARGO_PKG_VERSION").to_owned(), pid: None, members }
    }

    /// Lets the host reach members by addresses of their own; once is for the holder's life.
    pub(super) async fn route_to_host(&self) -> Result<()> {
        let route = || async {
            // Mostly the same at every start, mostly another for every cluster.
            let first = Sha256::digest(self.dir.link_label().as_bytes())[0];
            self.network.route_to_host(self.label.clone(), first, self.dir.subnets_lock()).await
        };
        self.host_subnet.get_or_try_init(route).await.map(drop)
    }

    /// Takes back what [`State::route_to_host`] made: a socket of a guest that is gone may keep the
    /// network, and with it the link, for minutes.
    pub(super) async fn leave_host(&self) {
        if self.host_subnet.initialized()
            && let Err(e) = self.network.leave_host().await
        {
            log::warn!("remove the link to the host: {e}");
        }
    }

    /// Boots a member, or reports that it runs already.
    pub(super) async fn boot(self: &Arc<Self>, plan: BootPlan) -> Result<Booted> {
        let (vm, address) = (plan.vm.clone(), plan.address);
        let tap = {
            let mut inner = self.lock();
            match inner.members.get(&vm).map(|m| &m.phase) {
                Some(Phase::Running(_)) => return Ok(Booted { address, started: false }),
                Some(Phase::Booting) => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        "boot: it is being booted already",
                    )
                    .vm(vm.as_str())
                    .hint("wait for the other start"));
                }
                Some(Phase::Ended(_)) | None => {}
            }
            inner.next_tap += 1;
            let tap = inner.next_tap;
            let member = Member {
                // Only once: whoever boots it again boots its disk.
                plan: BootPlan { restore: None, ..plan.clone() },
                tap,
                phase: Phase::Booting,
                paused: false,
                pausing: Arc::default(),
                detached: false,
                snapshot: None,
                forwards: BTreeMap::new(),
            };
            inner.members.insert(vm.clone(), member);
            tap
        };
        // Cut off before its first frame, if it is to be.
        self.follow().await;
        let booted = match forget_last_boot(&plan).and_then(|()| reservation(&plan)) {
            Ok(memory) => self.boot_on(&plan, tap).await.map(|machine| (machine, memory)),
            Err(error) => Err(error),
        };
        match booted {
            Ok((machine, memory)) => {
                let restored = plan.restore.is_some();
                self.note(Some(&vm), if restored { What::Restore } else { What::Boot });
                self.running(&vm, address, machine.into(), memory);
                self.follow().await;
                Ok(Booted { address, started: true })
            }
            Err(error) => {
                self.lock().members.remove(&vm);
                self.follow().await;
                Err(error.vm(vm.as_str()))
            }
        }
    }

    /// Starts the machine; a restored one is who it is to be when this returns.
    async fn boot_on(&self, plan: &BootPlan, tap: u32) -> Result<Box<dyn Machine>> {
        if let Some(restore) = &plan.restore {
            let used = lock::try_share(&restore.memory)?;
            if let Some(member) = self.lock().members.get_mut(&plan.vm) {
                member.snapshot = used;
            }
        }
        let machine = backend::boot(plan, &self.network, tap).await?;
        if let Some(restore) = &plan.restore
            && plan.backend.has_guest()
            && let Err(error) = self.become_itself(&plan.vm, tap, restore).await
        {
            machine.kill().await?;
            return Err(error);
        }
        Ok(machine)
    }

    fn running(
        self: &Arc<Self>,
        vm: &Name,
        address: std::net::Ipv4Addr,
        machine: Arc<dyn Machine>,
        memory: Option<Reservation>,
    ) {
        let mut ended = machine.ended();
        if let Some(member) = self.lock().members.get_mut(vm) {
            tokio::spawn(console::keep_bounded(member.plan.console.clone(), ended.clone()));
            member.phase = Phase::Running(machine);
        }
        let aliases = self.aliases(vm);
        if let Ok(mut names) = self.names.write() {
            for name in aliases.iter().chain([vm]) {
                names.insert(name.to_string(), address);
            }
        }
        log::info!("{vm} runs");
        let (state, vm) = (self.clone(), vm.clone());
        tokio::spawn(async move {
            let why = match ended.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or_default(),
                Err(_) => "its monitor was lost".to_owned(),
            };
            drop(memory);
            state.ended(&vm, why);
            state.follow().await;
        });
    }

    fn ended(&self, vm: &Name, why: String) {
        log::info!("{vm} ended: {why}");
        self.note(Some(vm), What::End { why: why.clone() });
        let mut was_detached = false;
        if let Some(member) = self.lock().members.get_mut(vm) {
            for forward in std::mem::take(&mut member.forwards).into_values() {
                forward.task.abort();
            }
            member.phase = Phase::Ended(why.clone());
            member.snapshot = None;
            was_detached = std::mem::take(&mut member.detached);
        }
        let aliases = self.aliases(vm);
        if let Ok(mut names) = self.names.write() {
            for name in aliases.iter().chain([vm]) {
                names.remove(name.as_str());
            }
        }
        // Nobody may be listening.
        drop(self.events.send(Event::Ended { vm: vm.clone(), why }));
        // Also tells those who wait for the end to be on the books.
        self.life.send_modify(|life| life.detached -= usize::from(was_detached));
    }

    fn aliases(&self, vm: &Name) -> Vec<Name> {
        self.lock().members.get(vm).map(|member| member.plan.aliases.clone()).unwrap_or_default()
    }

    fn machine(&self, vm: &Name) -> Result<Arc<dyn Machine>> {
        match self.lock().members.get(vm).map(|m| &m.phase) {
            Some(Phase::Running(machine)) => Ok(machine.clone()),
            Some(Phase::Booting) => Err(Error::new(ErrorKind::Conflict, "act: it is being booted")
                .vm(vm.as_str())
                .hint("wait for the start to end")),
            Some(Phase::Ended(why)) => Err(Error::not_running(vm.as_str()).detail(why.clone())),
            None => Err(Error::not_running(vm.as_str())),
        }
    }
}

/// The holder's own share in the machine's memory, which the starter's may not outlive.
fn reservation(plan: &BootPlan) -> Result<Option<Reservation>> {
    plan.memory.as_deref().map(|path| memory::hold(path, plan.memory_mib, plan.cpus)).transpose()
}

/// What an earlier boot wrote would be taken for this one's.
fn forget_last_boot(plan: &BootPlan) -> Result<()> {
    for path in [&plan.console, &plan.vmm_log] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", path, e));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Member {
    fn status(&self, subnet: Option<HostSubnet>) -> MemberStatus {
        MemberStatus {
            vm: self.plan.vm.clone(),
            running: !matches!(self.phase, Phase::Ended(_)),
            paused: self.paused && matches!(self.phase, Phase::Running(_)),
            address: self.plan.address,
            host_address: subnet.map(|subnet| subnet.of(self.plan.address)),
            ended: match &self.phase {
                Phase::Ended(why) => Some(why.clone()),
                _ => None,
            },
        }
    }
}
