//! Owns the machine the scenarios share: its options, starting it anew when one lost it, removing
//! it. It must not judge.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use fleetbox::{Backend, Result, State, Vm, VmBuilder};

/// None of them the default, but for a boot that does not take longer.
pub(super) const CPUS: u32 = 3;
pub(super) const MEMORY_MIB: u32 = 1024;
pub(super) const DISK_GIB: u32 = 7;

/// Time for what happens at once, on a busy host.
const SOON: Duration = Duration::from_secs(20);

pub(super) struct Bed {
    pub backend: Backend,
    pub name: String,
    /// The machine's handle; none after a scenario that ended it.
    pub vm: Option<Vm>,
    /// A scenario failed: the machine may be in any state.
    pub doubted: bool,
    /// What must stay the same over all starts.
    pub first: Option<(IpAddr, String)>,
}

impl Bed {
    pub(super) fn new(backend: Backend) -> Self {
        let name = crate::unique(&format!("conforms-{backend}").replace('_', "-"));
        Self { backend, name, vm: None, doubted: false, first: None }
    }

    /// Whether there is a kernel and a system of its own behind the SSH server.
    pub(super) fn has_guest(&self) -> bool {
        self.backend != Backend::Fake
    }

    pub(super) fn builder(&self) -> VmBuilder {
        Vm::builder(&self.name)
            .backend(self.backend)
            .cpus(CPUS)
            .memory_mib(MEMORY_MIB)
            .disk_gib(DISK_GIB)
    }

    /// Starts the machine, which stays the same if it was there.
    pub(super) async fn start(&mut self) -> Result<()> {
        let vm = self.builder().start().await?;
        if self.first.is_none() {
            self.first = Some((vm.address(), vm.info().await?.created_at));
        }
        self.vm = Some(vm);
        Ok(())
    }

    /// A running machine that answers, for the next scenario; a new one if the old is beyond help.
    pub(super) async fn make_ready(&mut self) -> Result<()> {
        if std::mem::take(&mut self.doubted) && !self.answers().await {
            self.vm = None;
            if Vm::find(&self.name).is_ok() && self.start().await.is_err() {
                self.clear().await;
            }
        }
        if self.vm.is_none() && Vm::find(&self.name).is_err() {
            self.first = None;
        }
        if self.vm.is_none() { self.start().await } else { Ok(()) }
    }

    async fn answers(&self) -> bool {
        let Some(vm) = &self.vm else { return false };
        vm.state().await.is_ok_and(|state| state == State::Running)
            && vm.command("true").timeout(SOON).run().await.is_ok()
    }

    /// The machine of a scenario that needs it to run.
    pub(super) fn vm(&self) -> &Vm {
        self.vm.as_ref().expect("the machine was started for this scenario")
    }

    pub(super) async fn clear(&mut self) {
        self.vm = None;
        if let Ok(vm) = Vm::find(&self.name)
            && let Err(e) = vm.destroy().await
        {
            eprintln!("{} is left behind: {}", self.name, e.report());
        }
    }
}

/// Waits until something holds that must come soon.
pub(super) async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(SOON, what, holds).await;
}

/// The same for what takes the guest its time.
pub(super) async fn until_within(
    limit: Duration,
    what: &str,
    mut holds: impl AsyncFnMut() -> bool,
) {
    let began = Instant::now();
    let mut pause = Duration::from_millis(5);
    while !holds().await {
        assert!(began.elapsed() < limit, "{what} did not happen within {limit:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}
