//! Owns saving a [`Vm`]. What a snapshot is, and what can be made of it, is [`Snapshot`]'s.

use super::Vm;
use crate::env;
use crate::error::{Error, Result};
use crate::launch;
use crate::snapshot::{self, Snapshot, Source};
use crate::spec::Name;
use crate::ssh::Session;
use crate::store::paths::{ClusterPaths, Paths};
use crate::store::record::{SnapshotOf, VmRecord};

impl Vm {
    /// Saves the running machine, disk and memory, as a snapshot of that name. The guest stands still
    /// for a fraction of a second and runs on; for some seconds before that it is slower. Its timers
    /// that go by the calendar (`systemd.timer`) are held back meanwhile. It needs Python 3, as every
    /// cloud image has it.
    ///
    /// Dropped before it is done, it leaves no snapshot, and a machine that runs on.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`](crate::ErrorKind::NotRunning);
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if there is a snapshot of that name;
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the backend
    /// [cannot](crate::Capabilities) save machines; [`ErrorKind::NoSpace`](crate::ErrorKind::NoSpace).
    pub async fn snapshot(&self, name: &str) -> Result<Snapshot> {
        let name = Name::new(name)?;
        env::cache_bytes()?;
        self.able_to_save()?;
        if self.state().await? == super::State::Stopped {
            return Err(Error::not_running(self.name()));
        }
        let paths = Paths::from_env()?;
        let target = paths.snapshot(&name);
        let cluster = self.cluster_paths();
        let saved = snapshot::save(cluster, vec![Source::of(self)], None, false, &target).await;
        let record = saved.map_err(|e| self.mine(e))?;
        self.note_snapshot(SnapshotOf { snapshot: name.clone(), vm: self.record().name.clone() })?;
        snapshot::keep_within_budget(&paths, target.dir())?;
        Ok(Snapshot::of(name.to_string(), target, record, false))
    }

    /// Takes the VM back to when it was last [saved](Vm::snapshot), or to the snapshot it came from: its
    /// disk and memory are as they were then, its name, address, keys and clock are those it has.
    /// Commands and connections under way are lost; the handle goes on. The snapshot must still be
    /// there.
    ///
    /// Dropped before it is done, the VM runs, before or after the revert.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`](crate::ErrorKind::NotRunning);
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no snapshot;
    /// [`ErrorKind::SnapshotUnusable`](crate::ErrorKind::SnapshotUnusable).
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.snapshot("before").await?;
    /// vm.command("rm").args(["-r", "/usr"]).sudo().output().await?;
    /// vm.revert().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn revert(&self) -> Result<()> {
        self.able_to_save()?;
        if self.state().await? == super::State::Stopped {
            return Err(Error::not_running(self.name()));
        }
        let request = Vm::builder(self.name()).request()?;
        let (cluster, client) = (self.cluster_paths(), &self.inner.client);
        let reverted = launch::revert(request, cluster, client, self.session()).await;
        reverted.map_err(|e| self.mine(e))
    }

    /// Refuses what the backend cannot, before any work.
    pub(crate) fn able_to_save(&self) -> Result<()> {
        self.able("save the machine", |can| can.snapshot)
    }

    /// What [`Vm::revert`] goes back to.
    pub(crate) fn note_snapshot(&self, of: SnapshotOf) -> Result<()> {
        let member = self.member();
        let Some(record) = VmRecord::read(&member)? else { return Ok(()) };
        VmRecord { snapshot: Some(of), ..record }.write(&member)
    }

    pub(crate) fn record(&self) -> &VmRecord {
        &self.inner.record
    }

    pub(crate) fn session(&self) -> &Session {
        &self.inner.session
    }

    pub(crate) fn cluster_paths(&self) -> &ClusterPaths {
        &self.inner.cluster
    }
}
